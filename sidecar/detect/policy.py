"""What goes into the spike test and what comes out of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

_SECONDS_PER_DAY = 86_400.0


class State(StrEnum):
    """How a watched feature stands."""

    UNKNOWN = "unknown"
    NORMAL = "normal"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"

    @property
    def code(self) -> int:
        """The state as a number, for metrics: unknown 0, then 1 to 4 as an alert proceeds."""
        return STATES.index(self)


STATES = (State.UNKNOWN, State.NORMAL, State.PENDING, State.FIRING, State.RESOLVED)
"""States by their code."""


class Direction(StrEnum):
    """On which side of its baseline a feature is watched."""

    ABOVE = "above"
    BELOW = "below"
    BOTH = "both"

    @property
    def code(self) -> int:
        """The direction as a number, for recordings: above 0, below 1, both 2."""
        return tuple(Direction).index(self)

    def beyond(self, quantile: float) -> str:
        """Return in words where a request exceeds.

        Example:
            >>> Direction.BOTH.beyond(0.99)
            "outside the baseline's 0.5 % and 99.5 % quantiles"
        """
        rest = 100 * (1.0 - quantile)
        if self is Direction.BELOW:
            return f"below the baseline's {rest:.6g} % quantile"
        if self is Direction.BOTH:
            return f"outside the baseline's {rest / 2:.6g} % and {100 - rest / 2:.6g} % quantiles"
        return f"beyond the baseline's {100 * quantile:.6g} % quantile"


class Detector(StrEnum):
    """What a flag may ask for."""

    SPIKE = "spike"
    CONDITIONS = "conditions"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class SpikePolicy:
    """When a feature counts as spiking; names and defaults are those of the ``spike`` settings.

    A request exceeds with some chance. The test tolerates any chance up to the *tolerated rate*, the
    greater of ``baseline_factor`` times the baseline's and ``factor`` times the recent level, at most
    1/2, and counts evidence against it. As long as the chance of the next request, whatever came
    before it, stays within that, the expected time to a false alarm of one feature is at least
    ``10**threshold_log10`` windows. Nothing else is assumed: neither independence nor a shape.

    Attributes:
        quantile: The baseline quantile beyond which a request exceeds.
        factor: The least factor over the recent level that can raise an alarm: the sensitivity.
        baseline_factor: Of the baseline's rate that is always tolerated.
        level_windows: Windows over which the recent level forgets.
        lag_windows: Windows after which a window counts for the recent level, so that a spike is not
            compared with itself.
        false_alarms_per_1000_days: Expected of all flagged features together.
        window_seconds: Length of a window.
        short_windows: Windows of the rate that is shown, and that must fall for an alert to end.
        clear_factor: A window is calm while that rate is below so many times the greater of the
            baseline's and the level at the onset.
        clear_windows: Calm windows in a row after which a firing feature resolves.
        resolved_windows: Windows a feature stays resolved.
        unsampled_windows: Windows in a row without a request after which nothing is known.
    """

    quantile: float = 0.999
    factor: float = 3.0
    baseline_factor: float = 1.5
    level_windows: int = 15
    lag_windows: int = 4
    false_alarms_per_1000_days: float = 1.0
    window_seconds: float = 10.0
    short_windows: int = 2
    clear_factor: float = 2.0
    clear_windows: int = 6
    resolved_windows: int = 6
    unsampled_windows: int = 6

    def threshold_log10(self, flagged: int) -> float:
        """Return the evidence that raises an alarm, as a power of ten.

        Args:
            flagged: Features watched in all layers; they share the expected false alarms.
        """
        windows = 1000 * _SECONDS_PER_DAY / self.window_seconds
        return math.log10(windows * max(flagged, 1) / self.false_alarms_per_1000_days)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One closed window of ``n`` watched features.

    Attributes:
        requests: Requests compared with each threshold, shape ``(n,)``; 0: not sampled.
        exceedances: Those beyond it, shape ``(n,)``.
        baseline_rate: Rate that is granted because of the baseline, see ``measured_rate``: its share, or
            more where that was measured on few requests; shape ``(n,)``; NaN: there is no baseline.
        baseline_share: Share of requests beyond it in the baseline, shape ``(n,)``; NaN likewise.
        factor: Each feature's least factor over its recent level, more than 1, shape ``(n,)``.
        judged: Whether the feature is tested at all, shape ``(n,)``; where not it stays unknown.
        directions: On which side each exceeds, for the words; empty: all above.
    """

    requests: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    baseline_rate: NDArray[np.float64]
    baseline_share: NDArray[np.float64]
    factor: NDArray[np.float64]
    judged: NDArray[np.bool_]
    directions: Sequence[Direction] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state of one feature.

    Attributes:
        index: Which of the watched features.
        before: Its state before.
        after: Its state now.
        at: Unix seconds.
        reason: Why, in words, with the numbers.
        evidence_log10: Evidence in this window, before an alarm resets it, as a power of ten; 0: none.
        threshold_log10: Evidence that raises an alarm.
        short_rate: Exceeding share of the short windows' requests; NaN without requests.
        level: Recent level of that share; NaN while nothing is known of it.
        baseline_share: That share in the baseline; NaN without one.
        tolerated: The rate that was tolerated; NaN where nothing could be judged.
    """

    index: int
    before: State
    after: State
    at: float
    reason: str
    evidence_log10: float
    threshold_log10: float
    short_rate: float
    level: float
    baseline_share: float
    tolerated: float
