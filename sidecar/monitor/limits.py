"""Beyond which values a flagged feature exceeds, and how often it did so in its baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import SpikePolicy, beyond_judging, measured_rate, measured_share
from sidecar.monitor.own_rates import OwnLimits, OwnRates, in_own_way, plain, sides
from sidecar.monitor.views import Flag
from sidecar.stats import Distribution, Expectation, SparseDistribution, Watched

_DOUBT_FACTOR = 3.0
"""Over what the baseline explains: as ``spike.factor`` says by default, as much as would be a spike."""

_DOUBT_REQUESTS = 10
"""Exceeding ones from which that is no chance: a third of so many become ten once in 400 times."""


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """The thresholds of ``n`` flagged features.

    Attributes:
        high: A value above exceeds, shape ``(n,)``; NaN: there is no such threshold.
        low: Or one below, shape ``(n,)``; NaN likewise.
        rates: What is granted: the share, or where too few exceeded to tell it within
            ``baseline_factor``, so much more as they are compatible with; shape ``(n,)``; NaN without a
            baseline, and while a flag learns its own rate.
        shares: Share of requests that exceed in the baseline, shape ``(n,)``; NaN without one.
        requests: Requests it was measured on, shape ``(n,)``; 0: it was not.
        explained: Most that the baseline's rows explain of a share, were they independent; NaN without one.
    """

    high: NDArray[np.float64]
    low: NDArray[np.float64]
    rates: NDArray[np.float64]
    shares: NDArray[np.float64]
    requests: NDArray[np.int64]
    explained: float = np.nan

    @classmethod
    def none(cls, n: int) -> Self:
        """Return those of ``n`` features without a baseline."""
        unknown = np.full(n, np.nan)
        return cls(unknown, unknown, unknown, unknown, np.zeros(n, np.int64))

    @classmethod
    def of(
        cls,
        baseline: Distribution | SparseDistribution,
        expected: Expectation | None,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        policy: SpikePolicy,
        own: OwnRates,
    ) -> Self:
        """Return what a frozen baseline says.

        A feature that is watched above its baseline, on all traffic, at the quantile that every feature
        is compared with, has a rate that was measured request by request. So has one that is watched
        in its own way, as soon as enough requests of its own were counted. Only where nothing was
        measured of a layer, because it is sparse or was frozen too early, the rate of the first kind
        follows from rows as if they were independent: that is right for one row a request, and an upper
        bound for more, so that such a feature is told later and not falsely.

        Args:
            baseline: Of these features, in this order.
            expected: What was measured of the layer; None: nothing was.
            indices: The features' places in the layer, shape ``(n,)``.
            flags: How each is watched.
            policy: Its quantile is that beyond which a value exceeds.
            own: What was measured for flags that are watched in their own way.
        """
        high, low = sides(baseline, flags, policy.quantile)
        derived = _derived(baseline, high)
        none = np.zeros(len(flags), np.int64)
        explained = 1.0 - policy.quantile ** _rows_per_request(baseline)
        found = cls(high, low, derived, derived, none, explained)
        if expected is not None:
            found = found._measured(expected, indices, flags, policy)
        apart = in_own_way(flags, expected, policy.quantile)
        return found.with_own(apart, own.limits(indices, flags, policy.quantile), policy)

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
        known = plain(flags) & np.isfinite(placed)
        requests = np.full(len(indices), expected.requests)
        passed = expected.exceedances[indices]
        return type(self)(
            np.where(known, placed, self.high),
            self.low,
            *self._granted(known, passed, requests, policy.baseline_factor),
            self.explained,
        )

    def with_own(self, apart: NDArray[np.bool_], own: OwnLimits, policy: SpikePolicy) -> Self:
        """Return these with their own thresholds and counts of those that are watched ``apart``."""
        high, low, passed, requests = own
        return type(self)(
            np.where(apart, high, self.high),
            np.where(apart, low, self.low),
            *self._granted(apart, passed, requests, policy.baseline_factor),
            self.explained,
        )

    def _granted(
        self,
        where: NDArray[np.bool_],
        passed: NDArray[np.int64],
        requests: NDArray[np.int64],
        factor: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return rates, shares and requests, with what was counted for the features ``where``."""
        counted = requests > 0
        shares = np.where(counted, measured_share(passed, requests), np.nan)
        rates = np.where(counted, measured_rate(passed, requests, factor), np.nan)
        # What so few allow for is no reason to say that the feature itself exceeds too often.
        short = beyond_judging(rates, factor) & ~beyond_judging(shares, factor)
        return (
            np.where(where, np.where(short, np.nan, rates), self.rates),
            np.where(where, shares, self.shares),
            np.where(where, requests, self.requests),
        )

    @property
    def short(self) -> NDArray[np.bool_]:
        """Whether too few requests were measured to have a rate that can be judged, shape ``(n,)``."""
        return np.isfinite(self.shares) & np.isnan(self.rates)

    @property
    def doubtful(self) -> NDArray[np.bool_]:
        """Whether a share was measured that the baseline does not explain, shape ``(n,)``.

        Thresholds are quantiles of the baseline's rows, so no more exceed than as if these were
        independent, but for chance and what differs from the baseline.
        """
        passed = self.shares * self.requests
        return (self.shares > _DOUBT_FACTOR * self.explained) & (passed >= _DOUBT_REQUESTS)

    @property
    def shown(self) -> NDArray[np.float64]:
        """The threshold that people see: the upper one, else the lower one, shape ``(n,)``."""
        return np.where(np.isfinite(self.high), self.high, self.low)

    def learning(
        self,
        indices: NDArray[np.int64],
        flags: Sequence[Flag],
        thresholds: NDArray[np.float32] | None,
        own: OwnRates,
        quantile: float,
    ) -> Self:
        """Return, before there is a baseline, what requests are compared with to learn its rates.

        Args:
            indices: The features' places in the layer, shape ``(n,)``.
            flags: How each is watched.
            thresholds: Those of the whole layer that its baseline will have, shape ``(width,)``; None:
                there are none yet.
            own: Those of flags that are watched in their own way.
            quantile: Beyond which a value exceeds.
        """
        high, low, _, _ = own.limits(indices, flags, quantile)
        if thresholds is not None:
            high = np.where(plain(flags), thresholds[indices], high)
        return replace(self, high=high, low=low)

    def watched(
        self, indices: NDArray[np.int64], flags: Sequence[Flag], levels: NDArray[np.float32]
    ) -> Watched:
        """Return what a bank should count.

        Args:
            indices: The features' places in the layer, shape ``(n,)``.
            flags: How each is watched.
            levels: Further thresholds to count, shape ``(n, k)``.
        """
        traffic = tuple(flag.traffic for flag in flags)
        return Watched(
            indices,
            np.where(np.isfinite(self.high), self.high, np.inf).astype(np.float32),
            np.where(np.isfinite(self.low), self.low, -np.inf).astype(np.float32),
            traffic if any(one.pairs for one in traffic) else (),
            levels,
        )


def _rows_per_request(baseline: Distribution | SparseDistribution) -> float:
    """Return the rows that were compared of a request, whatever they stand for; at least 1."""
    return max(1.0, baseline.sampled / max(baseline.requests, 1))


def _derived(
    baseline: Distribution | SparseDistribution, high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the share of requests above a threshold if their rows were independent."""
    # A bounded sample cannot show rates below about one over its size: do not believe 0.
    row_rate = np.clip(baseline.exceedance(high), 1.0 / (baseline.sampled + 1), 1.0)
    return np.asarray(1.0 - (1.0 - row_rate) ** _rows_per_request(baseline))
