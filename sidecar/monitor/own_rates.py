"""Rates of flags that are watched in a way of their own: another side, a slice, another quantile.

What every feature is screened for, above and on all traffic, says nothing of them. So each is given
thresholds while its baseline is learned, and requests of its own traffic are counted that pass them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import Direction
from sidecar.features import Slice
from sidecar.monitor.views import Flag
from sidecar.stats import (
    OWN_COUNTS,
    Distribution,
    Expectation,
    OwnCount,
    SparseDistribution,
    WindowCounts,
)

OWN_REQUESTS = 1000
"""Requests of its own traffic after which a flag is judged. With 0.1 % to 2 % of them exceeding, the rate
that so few cannot rule out is 3 to 5 %: no more than three times a usual level in a window of 64."""

OwnLimits = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
"""Upper and lower thresholds, exceeding requests and all requests of flags, see ``OwnRates.limits``."""

_Way = tuple[int, bool, bool, Slice, float]


def plain(flags: Sequence[Flag]) -> NDArray[np.bool_]:
    """Return which features are watched as the screen watches all: above, on all traffic."""
    return np.array(
        [flag.direction is Direction.ABOVE and not flag.traffic.pairs for flag in flags], np.bool_
    )


def in_own_way(
    flags: Sequence[Flag], expected: Expectation | None, quantile: float
) -> NDArray[np.bool_]:
    """Return which features have no rate in what was measured of their layer, shape ``(n,)``."""
    elsewhere = expected is not None and expected.windows > 0 and expected.level != quantile
    return ~plain(flags) | elsewhere


def sides(
    baseline: Distribution | SparseDistribution, flags: Sequence[Flag], quantile: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where requests begin to exceed, above and below, shape ``(n,)`` each.

    Watched on both sides, half of the values beyond the quantile are on each. Thresholds lie on edges of
    bins, so that a value taken very often is beyond neither.

    Args:
        baseline: What was learned, of all traffic, of these features in this order.
        flags: How each is watched.
        quantile: Beyond which a value exceeds.

    Returns:
        Float32 numbers; NaN where a flag has no such side, or the feature had no value.
    """
    above, below, both = (
        np.array([flag.direction is one for flag in flags], np.bool_)
        for one in (Direction.ABOVE, Direction.BELOW, Direction.BOTH)
    )
    rest = 1.0 - quantile
    high = np.where(above, baseline.threshold(quantile), np.nan)
    low = np.where(below, baseline.floor(rest), np.nan)
    if both.any():
        high = np.where(both, baseline.threshold(1.0 - rest / 2), high)
        low = np.where(both, baseline.floor(rest / 2), low)
    return high, low


@dataclass(slots=True)
class OwnRates:
    """What was measured for the flags of one layer, each on its own side and traffic.

    An entry is counted until its baseline is frozen, and from then on while it has fewer than
    ``OWN_REQUESTS``. Entries that no flag asks for any more, at another quantile too, are kept for one
    that may, the newest ``OWN_COUNTS`` of them.
    """

    _counts: dict[_Way, OwnCount] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop everything: the baseline that it belongs to is gone."""
        self._counts.clear()

    def unplaced(
        self,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        own: NDArray[np.bool_],
        quantile: float,
    ) -> NDArray[np.int64]:
        """Return the places of flags without thresholds at this quantile.

        Args:
            indices: The features, shape ``(n,)``.
            flags: How each is watched.
            own: Which are watched in their own way, see ``in_own_way``.
            quantile: Beyond which a value exceeds.
        """
        missing = [
            at
            for at in np.flatnonzero(own).tolist()
            if _way(int(indices[at]), flags[at], quantile) not in self._counts
        ]
        return np.array(missing, np.int64)

    def place(
        self,
        baseline: Distribution | SparseDistribution,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        quantile: float,
    ) -> None:
        """Give flags thresholds, and count from nothing; ``baseline`` is of exactly these features."""
        high, low = sides(baseline, flags, quantile)
        for at, flag in enumerate(flags):
            if np.isfinite(high[at]) or np.isfinite(low[at]):
                index = int(indices[at])
                above = float(high[at]) if np.isfinite(high[at]) else np.inf
                below = float(low[at]) if np.isfinite(low[at]) else -np.inf
                fresh = OwnCount(index, flag.traffic, quantile, above, below)
                way = _way(index, flag, quantile)
                self._counts.pop(way, None)  # the newest come last
                self._counts[way] = fresh
        while len(self._counts) > OWN_COUNTS:
            del self._counts[next(iter(self._counts))]

    def add(
        self, counts: WindowCounts, flags: Sequence[Flag], quantile: float, *, learning: bool
    ) -> bool:
        """Take in a closed window of these flags; return whether one has got its rate by it.

        Args:
            counts: The window, of the flagged features in the order of ``flags``.
            flags: How each is watched.
            quantile: Beyond which a value exceeds.
            learning: Whether the baseline is still learned, and all of it counts.
        """
        told = False
        if not self._counts:
            return told
        for at, flag in enumerate(flags):
            way, requests = (
                _way(int(counts.indices[at]), flag, quantile),
                int(counts.watched_requests[at]),
            )
            known = self._counts.get(way)
            if known is None or not requests:
                continue
            if learning or known.requests < OWN_REQUESTS:
                grown = known.plus(requests, int(counts.exceedances[at]))
                told |= known.requests < OWN_REQUESTS <= grown.requests
                self._counts[way] = grown
        return told

    def limits(
        self, indices: NDArray[np.int64], flags: Sequence[Flag], quantile: float
    ) -> OwnLimits:
        """Return the upper and lower thresholds of flags, and what was counted, shape ``(n,)`` each.

        Args:
            indices: The features, shape ``(n,)``.
            flags: How each is watched.
            quantile: Beyond which a value exceeds.

        Returns:
            ``(high, low, exceedances, requests)``: NaN for what is not placed or has no such side, and 0
            while too few requests were counted.
        """
        high, low = (np.full(len(flags), np.nan) for _ in range(2))
        passed, requests = (np.zeros(len(flags), np.int64) for _ in range(2))
        for at, flag in enumerate(flags):
            known = self._counts.get(_way(int(indices[at]), flag, quantile))
            if known is None:
                continue
            high[at] = known.high if np.isfinite(known.high) else np.nan
            low[at] = known.low if np.isfinite(known.low) else np.nan
            if known.requests >= OWN_REQUESTS:
                passed[at], requests[at] = known.exceedances, known.requests
        return high, low, passed, requests

    def words(self, index: int, flag: Flag, quantile: float) -> str:
        """Return that a flag's rate is being learned, and how far; empty: it is not."""
        known = self._counts.get(_way(index, flag, quantile))
        if known is None or known.requests >= OWN_REQUESTS:
            return ""
        on = f" of {flag.traffic}" if flag.traffic.pairs else ""
        return f"learning its own rate: {known.requests} of {OWN_REQUESTS} requests{on}"

    def counts(self) -> tuple[OwnCount, ...]:
        """Return all that was measured, the oldest first."""
        return tuple(self._counts.values())

    def take(self, counts: Iterable[OwnCount]) -> None:
        """Become what ``counts`` returned, here or elsewhere."""
        self._counts = {
            (
                one.index,
                bool(np.isfinite(one.high)),
                bool(np.isfinite(one.low)),
                one.traffic,
                one.level,
            ): one
            for one in counts
        }

    def to_list(self) -> list[dict[str, Any]]:
        """Return JSON-able values for ``restore``."""
        return [one.to_dict() for one in self._counts.values()]

    def restore(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Take back what ``to_list`` saw.

        Raises:
            ValueError: It is not that; so may KeyError, TypeError and InvalidName say.
        """
        self.take(OwnCount.from_dict(one) for one in saved)


def _way(index: int, flag: Flag, quantile: float) -> _Way:
    """Return what a flag's rate depends on."""
    above, below = flag.direction is not Direction.BELOW, flag.direction is not Direction.ABOVE
    return index, above, below, flag.traffic, quantile
