"""Runs the detector over many made or cut series side by side, and says where alarms are raised."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import Observation, SpikePolicy, State, initial, step

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Requests of ``m`` series in one window, and those that exceed, shape ``(m,)`` each."""


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """Under what ``m`` series are judged.

    Attributes:
        spike: The policy.
        flagged: Features that share its false alarms.
        baseline_rate: What is granted because of each baseline, shape ``(m,)``.
        baseline_share: Share of its requests that exceeded, shape ``(m,)``.
        factor: Shape ``(m,)``.
        judged: Shape ``(m,)``.
    """

    spike: SpikePolicy
    flagged: int
    baseline_rate: NDArray[np.float64]
    baseline_share: NDArray[np.float64]
    factor: NDArray[np.float64]
    judged: NDArray[np.bool_]


def warm_windows(spike: SpikePolicy) -> int:
    """Return the windows after which a level has forgotten where it began, but for a fiftieth."""
    return spike.lag_windows + 4 * spike.level_windows


def raised(
    lanes: Lanes, counts: Callable[[int], Counts], warm: int, length: int
) -> NDArray[np.bool_]:
    """Return in which windows an alarm is raised.

    Args:
        lanes: Under what the series are judged.
        counts: Gives window ``i`` of all series, from 0 to ``warm + length - 1``.
        warm: Windows from which only the level is learned: what they suspect is no alarm.
        length: Windows after those.

    Returns:
        Shape ``(length, m)``.
    """
    state = initial(len(lanes.factor), lanes.spike, 0.0)
    found = np.zeros((length, len(lanes.factor)), np.bool_)
    for number in range(warm + length):
        if number == warm:
            state = replace(
                state,
                codes=np.full(len(state), State.NORMAL.code, np.int8),
                evidence=np.zeros_like(state.evidence),
                onset=np.full(len(state), math.nan),
            )
        requests, exceedances = counts(number)
        seen = Observation(
            requests=requests,
            exceedances=exceedances,
            baseline_rate=lanes.baseline_rate,
            baseline_share=lanes.baseline_share,
            factor=lanes.factor,
            judged=lanes.judged,
        )
        firing = state.codes == State.FIRING.code
        state, _ = step(state, seen, lanes.spike, float(number), flagged=lanes.flagged)
        if number >= warm:
            found[number - warm] = (state.codes == State.FIRING.code) & ~firing
    return found
