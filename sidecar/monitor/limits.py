"""Beyond which values a flagged feature exceeds, and how often it did so in its baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import Direction, SpikePolicy, greatest_rate
from sidecar.monitor.views import Flag
from sidecar.stats import Distribution, Expectation, SparseDistribution, Watched


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """The thresholds of ``n`` flagged features.

    Attributes:
        high: A value above exceeds, shape ``(n,)``; NaN: there is no such threshold.
        low: Or one below, shape ``(n,)``; NaN likewise.
        rates: Share of requests that exceed in the baseline, shape ``(n,)``; NaN without one. Where too
            few did to tell it within ``baseline_factor``, so much more as they are compatible with.
    """

    high: NDArray[np.float64]
    low: NDArray[np.float64]
    rates: NDArray[np.float64]

    @classmethod
    def none(cls, n: int) -> Self:
        """Return those of ``n`` features without a baseline."""
        return cls(np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan))

    @classmethod
    def of(
        cls,
        baseline: Distribution | SparseDistribution,
        expected: Expectation | None,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        policy: SpikePolicy,
    ) -> Self:
        """Return what a frozen baseline says.

        A feature that is watched above its baseline, on all traffic, at the quantile that every feature
        is compared with, has a rate that was measured request by request. For any other it follows
        from rows as if they were independent: that is right for one row a request, and an upper bound
        for more, so that such a feature is told later and not falsely.

        Args:
            baseline: Of these features, in this order.
            expected: What was measured of the layer; None: nothing was.
            indices: The features' places in the layer, shape ``(n,)``.
            flags: How each is watched.
            policy: Its quantile is that beyond which a value exceeds; watched on both sides, half of
                the rest on each.
        """
        quantile = policy.quantile
        above, below, both = (
            np.array([flag.direction is one for flag in flags], np.bool_)
            for one in (Direction.ABOVE, Direction.BELOW, Direction.BOTH)
        )
        rest = 1.0 - quantile
        high = np.where(above, baseline.threshold(quantile), np.nan)
        low = np.where(below, _floor(baseline, rest), np.nan)
        if both.any():
            high = np.where(both, baseline.threshold(1.0 - rest / 2), high)
            low = np.where(both, _floor(baseline, rest / 2), low)
        found = cls(high, low, _derived(baseline, high, low))
        return found if expected is None else found._measured(expected, indices, flags, policy)

    def _measured(
        self,
        expected: Expectation,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        policy: SpikePolicy,
    ) -> Self:
        """Return these with what was measured in place of what is derived."""
        if expected.level != policy.quantile or not expected.windows:
            return self
        placed = expected.thresholds[indices].astype(np.float64)
        known = _plain(flags) & np.isfinite(placed)
        greatest = greatest_rate(expected.exceedances[indices], expected.requests)
        rates = np.maximum(expected.rate[indices], greatest / policy.baseline_factor)
        return type(self)(
            np.where(known, placed, self.high),
            self.low,
            np.where(known, rates, self.rates),
        )

    @property
    def shown(self) -> NDArray[np.float64]:
        """The threshold that people see: the upper one, else the lower one, shape ``(n,)``."""
        return np.where(np.isfinite(self.high), self.high, self.low)

    def watched(
        self,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        levels: NDArray[np.float32],
        learning: NDArray[np.float32] | None,
    ) -> Watched:
        """Return what a bank should count.

        Args:
            indices: The features' places in the layer, shape ``(n,)``.
            flags: How each is watched.
            levels: Further thresholds to count, shape ``(n, k)``.
            learning: Thresholds of the whole layer that its baseline will have; None: there are none
                yet. Features that are watched as every feature is are compared with them already.
        """
        high = self.high
        if learning is not None:
            high = np.where(_plain(flags) & np.isnan(high), learning[indices], high)
        traffic = tuple(flag.traffic for flag in flags)
        return Watched(
            indices,
            np.where(np.isfinite(high), high, np.inf).astype(np.float32),
            np.where(np.isfinite(self.low), self.low, -np.inf).astype(np.float32),
            traffic if any(one.pairs for one in traffic) else (),
            levels,
        )


def _plain(flags: Sequence[Flag]) -> NDArray[np.bool_]:
    """Return which features are watched as the screen watches all: above, on all traffic."""
    return np.array(
        [flag.direction is Direction.ABOVE and not flag.traffic.pairs for flag in flags], np.bool_
    )


def _floor(baseline: Distribution | SparseDistribution, level: float) -> NDArray[np.float64]:
    """Return a quantile as a float32, which is what values are compared with."""
    return baseline.quantile(np.array([level]))[:, 0].astype(np.float32).astype(np.float64)


def _derived(
    baseline: Distribution | SparseDistribution,
    high: NDArray[np.float64],
    low: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the share of requests that exceed if their rows were independent."""
    above = np.where(np.isfinite(high), baseline.exceedance(high), 0.0)
    # What equals the lower threshold, as the many zeros of a ReLU may, is not below it.
    beneath = np.nextafter(low.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    below = np.where(np.isfinite(low), 1.0 - baseline.exceedance(beneath), 0.0)
    # A bounded sample cannot show rates below about one over its size: do not believe 0.
    row_rate = np.clip(above + below, 1.0 / (baseline.sampled + 1), 1.0)
    # Only rows that were sampled are compared, whatever they stand for.
    rows_per_request = max(1.0, baseline.sampled / max(baseline.requests, 1))
    known = np.isfinite(high) | np.isfinite(low)
    return np.where(known, 1.0 - (1.0 - row_rate) ** rows_per_request, np.nan)
