"""How soon a policy finds a spike: one is put into recorded traffic, and the detector is run over it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.replay.running import Counts, Lanes, raised, warm_windows
from sidecar.replay.traffic import Behaviour, Stretch

SPIKE_SHARE = 0.2
"""Share of requests that a spike touches."""

WITHIN_WINDOWS = 20
"""A spike that is not found by then is missed: by now the level has learned it."""

TRIES = 400


@dataclass(frozen=True, slots=True)
class Delay:
    """What became of spikes in ``SPIKE_SHARE`` of the requests.

    Attributes:
        windows: Windows until one is found, the median; infinite where half are missed.
        missed: Share that is not found within ``WITHIN_WINDOWS``.
        tries: Spikes.
    """

    windows: float
    missed: float
    tries: int


def delay(
    parts: Sequence[Stretch],
    rng: np.random.Generator,
    *,
    factor: float | None = None,
    tries: int = TRIES,
) -> Delay | None:
    """Return how soon spikes are found that are put anywhere into recorded traffic.

    Args:
        parts: Stretches; None is returned where none is long enough.
        rng: Draws places, and the requests that a spike touches.
        factor: Another minimum factor for every feature; None: that of the policy.
        tries: Spikes.
    """
    warm = warm_windows(parts[0].terms.spike)
    long = [part for part in parts if len(part.at) >= warm + WITHIN_WINDOWS]
    if not long:
        return None
    first = long[0]
    picked = [_pick(long[int(rng.integers(len(long)))], warm, rng) for _ in range(tries)]
    rates, shares, factors, compared, exceedances = map(np.array, zip(*picked, strict=True))
    if factor is not None:
        factors = np.full_like(factors, factor)
    judged = np.ones(tries, np.bool_)
    lanes = Lanes(first.terms.spike, first.flagged, rates, shares, factors, judged)
    return _found(lanes, compared.T, exceedances.T, warm, rng)


def _pick(
    part: Stretch, warm: int, rng: np.random.Generator
) -> tuple[float, float, float, NDArray[np.int64], NDArray[np.int64]]:
    """Return a feature of a stretch and some of its windows."""
    column = int(rng.integers(part.compared.shape[1]))
    begin = int(rng.integers(len(part.at) - warm - WITHIN_WINDOWS + 1))
    span = slice(begin, begin + warm + WITHIN_WINDOWS)
    terms = part.terms
    return (
        float(terms.baseline_rate[column]),
        float(terms.baseline_share[column]),
        float(terms.factor[column]),
        part.compared[span, column],
        part.exceedances[span, column],
    )


def _found(
    lanes: Lanes,
    compared: NDArray[np.int64],
    exceedances: NDArray[np.int64],
    warm: int,
    rng: np.random.Generator,
) -> Delay:
    """Put a spike into the last windows of series, shape ``(warm + WITHIN_WINDOWS, m)``."""
    more = rng.binomial(compared - exceedances, SPIKE_SHARE)
    loud = exceedances + np.where(np.arange(len(compared))[:, None] >= warm, more, 0)

    def window(number: int) -> Counts:
        return compared[number], loud[number]

    alarms = raised(lanes, window, warm, WITHIN_WINDOWS)
    there = alarms.any(axis=0)
    delays = np.where(there, alarms.argmax(axis=0) + 1.0, math.inf)
    return Delay(float(np.median(delays)), float(1.0 - there.mean()), len(delays))


def enough_requests(
    part: Stretch, one: Behaviour, rng: np.random.Generator, *, windows: float, missed: float
) -> int | None:
    """Return the requests of a window at which spikes are found in time, were requests independent.

    Args:
        part: Gives the policy.
        one: Gives the rate, and the requests to begin with.
        rng: Draws traffic.
        windows: Median delay wanted.
        missed: Greatest share that may be missed.

    Returns:
        At most a hundred times as many as there are; None where that does not help.
    """
    warm, tries = warm_windows(part.terms.spike), TRIES // 2
    factor = float(np.median(part.terms.factor))
    rate, share = (
        float(np.median(known)) for known in (part.terms.baseline_rate, part.terms.baseline_share)
    )
    lanes = Lanes(
        part.terms.spike,
        part.flagged,
        np.full(tries, rate),
        np.full(tries, share),
        np.full(tries, factor),
        np.ones(tries, np.bool_),
    )
    requests = one.requests_per_window
    while requests <= 100 * one.requests_per_window:
        shape = (warm + WITHIN_WINDOWS, tries)
        compared = np.full(shape, math.ceil(requests), np.int64)
        found = _found(lanes, compared, rng.binomial(compared, min(one.rate, 1.0)), warm, rng)
        if found.windows <= windows and found.missed <= missed:
            return math.ceil(requests)
        requests *= 1.25
    return None
