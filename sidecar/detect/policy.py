"""What goes into the detector and what comes out of it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True, slots=True)
class SpikePolicy:
    """When a feature counts as spiking; names and defaults are those of the ``spike`` settings.

    A window is *suspect* when, together, the rate of the short windows is at least ``factor`` times
    the baseline's, that of the long windows at least ``long_factor`` times, at least
    ``min_exceedances`` requests of the short windows exceed, and so many or more would by chance
    have at most ``false_alarm_probability``. It is *calm* when the short rate is below
    ``clear_factor`` times the baseline's. See ``required_rate`` for baselines whose multiple would
    not be a rate.

    Attributes:
        quantile: The baseline quantile above which a request exceeds.
        factor: Of the short rate over the baseline's.
        short_windows: Windows of the short rate.
        long_windows: Windows of the long rate.
        long_factor: Of the long rate over the baseline's.
        min_exceedances: Exceeding requests in the short windows.
        false_alarm_probability: Largest binomial tail probability of those.
        pending_windows: Suspect windows in a row a feature is pending for; the next one fires.
        clear_factor: Of the short rate over the baseline's.
        clear_windows: Calm windows in a row after which a firing feature resolves.
        resolved_windows: Windows a feature stays resolved.
        unsampled_windows: Windows in a row without a request after which nothing is known.
    """

    quantile: float = 0.999
    factor: float = 5.0
    short_windows: int = 2
    long_windows: int = 12
    long_factor: float = 2.0
    min_exceedances: int = 5
    false_alarm_probability: float = 1e-6
    pending_windows: int = 1
    clear_factor: float = 2.0
    clear_windows: int = 6
    resolved_windows: int = 6
    unsampled_windows: int = 6

    @property
    def kept_windows(self) -> int:
        """Windows that must be remembered."""
        return max(self.short_windows, self.long_windows)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One closed window of ``n`` watched features.

    Attributes:
        requests: Requests compared with each threshold, shape ``(n,)``; 0: not sampled.
        exceedances: Those that passed it, shape ``(n,)``.
        baseline_rate: Share of requests that pass it in the baseline, shape ``(n,)``; NaN: there is
            no baseline.
    """

    requests: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    baseline_rate: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state of one feature.

    Attributes:
        index: Which of the watched features.
        before: Its state before.
        after: Its state now.
        at: Unix seconds.
        reason: Why, in words, with the numbers.
        short_rate: Exceeding share of the short windows' requests; NaN without requests.
        long_rate: The same of the long windows.
        baseline_rate: The same of the baseline; NaN without one.
        probability: Chance of so many exceeding requests in the short windows, or more, under the
            baseline rate; 0 below 1e-308; NaN where it cannot be said.
    """

    index: int
    before: State
    after: State
    at: float
    reason: str
    short_rate: float
    long_rate: float
    baseline_rate: float
    probability: float
