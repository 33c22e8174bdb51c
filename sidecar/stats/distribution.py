"""The distribution of many features at once, as an immutable value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ShapeMismatch, UnknownFeature
from sidecar.stats.binning import Binning, Grid, round_down, round_up
from sidecar.stats.moments import add_wide, to_float, unit_exponent

_SUMMED = ("unit_sums", "unit_squares_high", "unit_squares_low")
_EXTREMES = ("minimum", "maximum")
_TALLIED = ("zeros", "nans", "infinities")


@dataclass(frozen=True, slots=True, eq=False)
class Occupied:
    """The bins that hold something, of many features, as one flat list.

    Exact zeros are apart, as bins without width. Ordered by feature.

    Attributes:
        features: Which feature, shape ``(k,)``.
        low: Least value the bin can hold, shape ``(k,)``; never below the feature's minimum.
        high: Greatest value, shape ``(k,)``; never above the maximum, nor below ``low``.
        counts: Values in it, shape ``(k,)``, at least 1 each; they add up to the finite values.
    """

    features: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """What was seen of ``F`` features over one stretch of time.

    Values are counted in log-linear bins of their distance from a frozen centre, so the counts are
    exact and only the position of a value within its bin is lost. A value less than
    ``2.0**exponent`` from the centre is known to that distance; one more than
    ``2.0**(exponent + octaves)`` away is known to lie between that and the extreme; any other is
    known to ``binning.relative_error`` of its distance, up to float32 rounding of that distance.

    Everything that is added up is a whole number, so that no split of the rows into windows and
    replicas and no order of merging them changes a bit: counts, and in the moments each distance in
    whole units of a 256th of the near-zero width, see ``sums``.

    Attributes:
        binning: How finely values are binned.
        centre: Where each feature's bins mirror, shape ``(F,)``, float32.
        exponent: Power of two at which each feature's near-zero bins end, shape ``(F,)``, int32.
        rows: Rows of traffic, finite or not: each sampled row counts as many as it stands for.
        sampled: Rows that were looked at; equal to ``rows`` where nothing was sampled away.
        requests: Requests those rows belonged to; one split over several samples counts for each.
        unit_sums: Sum of the finite values' distances from the centre in whole units, shape
            ``(F,)``, int64: exact up to 2**35 rows of the farthest distance there is.
        unit_squares_high: Sum of the squares of those: the part above 2**64, shape ``(F,)``, int64.
        unit_squares_low: The part below, shape ``(F,)``, uint64.
        minimum: Least finite value, shape ``(F,)``, float32; NaN where there is none.
        maximum: Greatest finite value, likewise.
        zeros: Values that are exactly zero, shape ``(F,)``, int64.
        nans: NaN values, counted here only, shape ``(F,)``, int64.
        infinities: Infinite values of either sign, counted here only, shape ``(F,)``, int64.
        counts: Finite values in each bin from most negative to most positive, shape
            ``(F, binning.bins)``, uint32, or uint64 beyond 2**32 - 1 rows.
        started: Unix seconds of the first sample; 0: empty.
        ended: Unix seconds of the last sample; 0: empty.
    """

    binning: Binning
    centre: NDArray[np.float32]
    exponent: NDArray[np.int32]
    rows: int
    sampled: int
    requests: int
    unit_sums: NDArray[np.int64]
    unit_squares_high: NDArray[np.int64]
    unit_squares_low: NDArray[np.uint64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    zeros: NDArray[np.int64]
    nans: NDArray[np.int64]
    infinities: NDArray[np.int64]
    counts: NDArray[np.unsignedinteger[Any]]
    started: float
    ended: float

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same features."""
        names = ("exponent", *_SUMMED, *_EXTREMES, *_TALLIED)
        shapes = {getattr(self, name).shape for name in names}
        if shapes != {(self.features,)} or self.counts.shape != (self.features, self.binning.bins):
            raise ShapeMismatch(
                f"arrays of {self.features} features and {self.binning.bins} bins have shapes "
                f"{sorted(shapes)} and {self.counts.shape}"
            )

    @property
    def features(self) -> int:
        """How many features it describes."""
        return len(self.centre)

    @property
    def count(self) -> NDArray[np.int64]:
        """Finite values of each feature, shape ``(F,)``."""
        return self.rows - self.nans - self.infinities

    @property
    def relative_error(self) -> float:
        """Largest error of a quantile as a ratio of its distance from the centre."""
        return self.binning.relative_error

    @property
    def sums(self) -> NDArray[np.float64]:
        """Sum of the finite values' distances from the centre, shape ``(F,)``.

        Each distance is rounded to a 256th of the near-zero width, so a mean is off by at most half of
        that, a 32,000th of the scale; one beyond 2**20 near-zero widths, 8,192 scales at least, counts
        as that far.
        """
        return np.ldexp(self.unit_sums.astype(np.float64), unit_exponent(self.exponent))

    @property
    def squares(self) -> NDArray[np.float64]:
        """Sum of the squares of those distances, as rounded, shape ``(F,)``."""
        return to_float(self.unit_squares_high, self.unit_squares_low, self.exponent)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the finite values, shape ``(F,)``; NaN where there is none."""
        return self.centre.astype(np.float64) + _ratio(self.sums, self.count)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance of the finite values, shape ``(F,)``; NaN where there is none."""
        mean = _ratio(self.sums, self.count)
        return np.maximum(_ratio(self.squares, self.count) - mean * mean, 0.0)

    def quantile(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return quantiles of the finite values.

        The quantile at level ``p`` of ``n`` values is the ``ceil(p * n)``-th smallest. The bin of
        that value is known, and its place in the bin is read off its rank. However values cluster,
        the error is at most ``binning.relative_error`` of its distance from the centre, or half the
        near-zero width, whichever is greater (and float32 rounding). Where values are spread over
        their bin it is at most ``binning.usual_error``: 1.6 % at 4 mantissa bits. The least and the
        greatest value are exact, and so is an exact zero where the counters prove it.

        Args:
            levels: Shape ``(q,)``, each from 0 to 1.

        Returns:
            Shape ``(F, q)``, never decreasing along ``q``'s order; NaN where nothing was counted.

        Complexity:
            O(F * bins) additions and O(F * q * log(F * bins)) comparisons; a temporary of
            ``(F, bins)`` int64.
        """
        found = _Located.at(self, np.asarray(levels, np.float64))
        size = found.distance(self)
        value = self.centre[:, None] + np.where(found.bin < self.binning.half, -size, size)
        return found.sharpen(self, np.clip(value, self._least, self._most))

    def threshold(self, level: float) -> NDArray[np.float64]:
        """Return the least bin edge with at most ``1 - level`` of the finite values above it.

        Unlike a quantile this errs to one side only: of the values counted here, the share above
        the threshold is never more than ``1 - level``, however they cluster within a bin. It is at
        most one bin's width above the quantile, and never above the maximum.

        Args:
            level: From 0 to 1.

        Returns:
            Shape ``(F,)``, each exactly a float32; NaN where nothing was counted.
        """
        found = _Located.at(self, np.array([level]))
        features = np.arange(self.features)[:, None]
        edge = self.centre[:, None] + self._grid.edge_offset(found.bin + 1, features)  # (F, 1)
        return found.sharpen(self, np.minimum(round_up(edge), self._most))[:, 0]

    def floor(self, level: float) -> NDArray[np.float64]:
        """Return the greatest bin edge with at most ``level`` of the finite values below it.

        The twin of ``threshold`` on the other side: where many values are one and the same, that value
        is not below it. It is at most one bin's width below the quantile, and never below the minimum.

        Args:
            level: From 0 to 1.

        Returns:
            Shape ``(F,)``, each exactly a float32; NaN where nothing was counted.
        """
        found = _Located.at(self, np.array([level]))
        features = np.arange(self.features)[:, None]
        edge = self.centre[:, None] + self._grid.edge_offset(found.bin, features)  # (F, 1)
        return found.sharpen(self, np.maximum(round_down(edge), self._least))[:, 0]

    def rank(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of finite values at or below one value for each feature.

        Exact zeros are placed exactly, other values evenly over their bin, so the error is at most
        the share of values in the one bin that holds ``values``.

        Args:
            values: Shape ``(F,)``.

        Returns:
            Shape ``(F,)``; NaN where nothing was counted or the value is NaN.
        """
        value = np.asarray(values, np.float64)
        bins = self.bin_of(value)
        features = np.arange(self.features)
        low, high = (
            self.centre + self._grid.edge_offset(bins + upper, features) for upper in (0, 1)
        )
        # Rounding of the distance can carry an extreme just over an edge: keep both in between.
        low, high = (np.clip(edge, self.minimum, self.maximum) for edge in (low, high))
        with np.errstate(invalid="ignore", divide="ignore"):
            inside = np.where(high > low, (value - low) / (high - low), value >= low)
        zeros = np.where(bins == self._zero_bin, self.zeros, 0)
        below = np.where(np.arange(self.binning.bins) < bins[:, None], self.counts, 0).sum(axis=1)
        spread = (self.counts[features, bins] - zeros) * np.clip(inside, 0.0, 1.0)
        share = _ratio(below + spread + zeros * (value >= 0), self.count)
        return np.where(np.isnan(value), np.nan, share)

    def exceedance(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of finite values above one threshold for each feature.

        Args:
            thresholds: Shape ``(F,)``.

        Returns:
            Shape ``(F,)``, as exact as ``rank``; NaN where nothing was counted or the threshold is
            NaN.
        """
        return 1.0 - self.rank(thresholds)

    def edges(self, index: int) -> NDArray[np.float64]:
        """Return one feature's bin edges.

        Args:
            index: Which feature.

        Returns:
            Shape ``(bins + 1,)``, finite and increasing: bin ``i`` holds ``[edges[i], edges[i+1])``.
            The outermost two lie beyond every value seen.

        Raises:
            UnknownFeature: There is no such feature.
        """
        one = self.select(np.array([index]))
        numbers = np.arange(1, self.binning.bins)
        inner = one.centre + one._grid.edge_offset(numbers, np.zeros_like(numbers))  # noqa: SLF001 - another of us
        reach = 2.0 * (inner[-1] - one.centre.astype(np.float64))
        low = np.fmin(one.centre - reach, np.nextafter(one.minimum.astype(np.float64), -np.inf))
        high = np.fmax(one.centre + reach, np.nextafter(one.maximum.astype(np.float64), np.inf))
        return np.concatenate((low, inner, high))

    def occupied(self) -> Occupied:
        """Return the bins that hold something, clipped to each feature's extremes.

        Complexity:
            One pass over ``(F, bins)`` counters; everything else is in the occupied bins alone.
        """
        features, bins = np.nonzero(self.counts)
        counts = self.counts[features, bins].astype(np.int64)
        counts -= np.where(bins == self._zero_bin[features], self.zeros[features], 0)
        low, high = (
            np.clip(
                self.centre[features] + self._grid.edge_offset(bins + upper, features),
                self.minimum[features],
                self.maximum[features],
            )
            for upper in (0, 1)
        )
        with_zeros = np.flatnonzero(self.zeros)
        exact = np.zeros(len(with_zeros))
        owner = np.concatenate((features, with_zeros))
        counts = np.concatenate((counts, self.zeros[with_zeros]))
        order = np.argsort(owner, kind="stable")
        order = order[counts[order] > 0]
        return Occupied(
            owner[order],
            np.concatenate((low, exact))[order],
            np.concatenate((high, exact))[order],
            counts[order],
        )

    def select(self, indices: NDArray[np.int64]) -> "Distribution":
        """Return the distribution of some features, in the order of ``indices``.

        Raises:
            UnknownFeature: An index is negative or not below the number of features.
        """
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= self.features)]
        if len(wrong):
            raise UnknownFeature(f"feature {wrong[0]}: use 0 to {self.features - 1}")
        return Distribution(
            binning=self.binning,
            centre=self.centre[chosen],
            exponent=self.exponent[chosen],
            rows=self.rows,
            sampled=self.sampled,
            requests=self.requests,
            unit_sums=self.unit_sums[chosen],
            unit_squares_high=self.unit_squares_high[chosen],
            unit_squares_low=self.unit_squares_low[chosen],
            minimum=self.minimum[chosen],
            maximum=self.maximum[chosen],
            zeros=self.zeros[chosen],
            nans=self.nans[chosen],
            infinities=self.infinities[chosen],
            counts=self.counts[chosen],
            started=self.started,
            ended=self.ended,
        )

    def bin_of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of one value for each feature, shape ``(F,)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._grid.index(values.astype(np.float32)[None, :])
        return np.asarray(found[0], np.int64)

    def middles(self, features: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return where the values of some bins are taken to be if nothing is said of their ranks.

        Args:
            features: Which features, shape ``(n,)``.
            bins: Which of their bins, shape ``(n,)``.

        Returns:
            Shape ``(n,)``, between the least and the greatest value of each feature.
        """
        one = self.select(features)
        near, far = one.reaches(bins[:, None])
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.where(near == 0, far / 2, 2 * near * far / (near + far))[:, 0]
        value = one.centre + np.where(bins < self.binning.half, -size, size)
        return np.clip(value, one.minimum, one.maximum)

    def reaches(self, bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the distances from the centre at which bins begin and end.

        Args:
            bins: Shape ``(F, q)``.

        Returns:
            Two arrays of shape ``(F, q)``; the outermost bins end at the extreme.
        """
        features = np.arange(self.features)[:, None]
        one, other = (np.abs(self._grid.edge_offset(bins + upper, features)) for upper in (0, 1))
        extreme = np.fmax(self._most - self.centre[:, None], self.centre[:, None] - self._least)
        far = np.maximum(one, other)
        return np.minimum(one, other), np.where(np.isinf(far), extreme, far)

    @property
    def _grid(self) -> Grid:
        return Grid(self.binning, self.centre, self.exponent)

    @property
    def _zero_bin(self) -> NDArray[np.int64]:
        """The bin that exact zeros fall into, shape ``(F,)``."""
        return self.bin_of(np.zeros(self.features))

    @property
    def _least(self) -> NDArray[np.float64]:
        return self.minimum.astype(np.float64)[:, None]

    @property
    def _most(self) -> NDArray[np.float64]:
        return self.maximum.astype(np.float64)[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class _Located:
    """The bins that hold the values of given ranks; all arrays have shape ``(F, q)``."""

    rank: NDArray[np.int64]
    bin: NDArray[np.int64]
    bin_rank: NDArray[np.int64]
    zero_rank: NDArray[np.int64]

    @classmethod
    def at(cls, seen: Distribution, levels: NDArray[np.float64]) -> "_Located":
        """Find the value at each level; where nothing was counted, some bin."""
        count = seen.count[:, None]
        rank = np.clip(np.ceil(levels * count).astype(np.int64) - 1, 0, np.maximum(count - 1, 0))
        # One cumulative sum over all features, so that one binary search serves them all.
        running = np.cumsum(seen.counts, dtype=np.int64)  # (F * bins,)
        first = np.arange(seen.features)[:, None] * seen.binning.bins
        before = np.concatenate(([0], running))
        start = before[first]
        place = np.searchsorted(running, start + rank, side="right") - first
        place = np.clip(place, 0, seen.binning.bins - 1)
        bin_rank = rank - (before[first + place] - start)
        zero_rank = rank - (before[first + seen._zero_bin[:, None]] - start)  # noqa: SLF001 - same file
        return cls(rank, place, bin_rank, zero_rank)

    def distance(self, seen: Distribution) -> NDArray[np.float64]:
        """Return the estimated distances from the centre.

        Values are taken to be spread evenly over their bin, but none is put so near an edge that it
        could be off by more than the promise were they all at the other one.
        """
        near, far = seen.reaches(self.bin)
        held = np.take_along_axis(seen.counts, self.bin, axis=1)
        share = (self.bin_rank + 0.5) / np.maximum(held, 1)
        outwards = np.where(self.bin < seen.binning.half, 1.0 - share, share)
        error = seen.binning.relative_error
        low, high = far * (1.0 - error), near * (1.0 + error)
        with np.errstate(invalid="ignore", divide="ignore"):
            middle = np.where(near == 0, far / 2, 2 * near * far / (near + far))
            spread = np.clip(near + outwards * (far - near), low, high)
        # The near-zero and the overflow bins are too wide for any place to keep that promise.
        return np.where(low <= high, spread, middle)

    def sharpen(self, seen: Distribution, estimate: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace estimates by values that are known exactly."""
        count = seen.count[:, None]
        zeros = seen.zeros[:, None]
        zero_bin = seen._zero_bin[:, None]  # noqa: SLF001 - same file
        others = np.take_along_axis(seen.counts, zero_bin, axis=1) - zeros
        # Zeros are adjacent in rank. Wherever in their bin the others lie, these ranks are zeros.
        is_zero = (self.bin == zero_bin) & (self.zero_rank >= others) & (self.zero_rank < zeros)
        known = np.where(is_zero, 0.0, estimate)
        known = np.where(self.rank == 0, seen._least, known)  # noqa: SLF001 - same file
        known = np.where(self.rank == count - 1, seen._most, known)  # noqa: SLF001 - same file
        return np.where(count > 0, known, np.nan)


def merge(a: Distribution, b: Distribution) -> Distribution:
    """Combine two disjoint samples as if they had been one.

    Exact to the bit, associative and independent of order, moments included. An empty side is the
    identity, so windows and replicas may be merged as they arrive.

    Args:
        a: A distribution.
        b: One of the same features on the same bins, from values not in ``a``.

    Returns:
        A new distribution; neither argument is changed.

    Raises:
        ShapeMismatch: They have other features, binning, centres or exponents.

    Complexity:
        O(F * bins) time and one new array of counts.
    """
    if not a._grid.equals(b._grid):  # noqa: SLF001 - same file
        raise ShapeMismatch(
            f"distributions of {a.features} and {b.features} features do not lie on the same bins: "
            "merge only what was counted with one binning, centre and exponent"
        )
    rows = a.rows + b.rows
    starts = [side.started for side in (a, b) if side.rows]
    high, low = add_wide(
        a.unit_squares_high, a.unit_squares_low, b.unit_squares_high, b.unit_squares_low
    )
    return Distribution(
        binning=a.binning,
        centre=a.centre,
        exponent=a.exponent,
        rows=rows,
        sampled=a.sampled + b.sampled,
        requests=a.requests + b.requests,
        unit_sums=a.unit_sums + b.unit_sums,
        unit_squares_high=high,
        unit_squares_low=low,
        minimum=np.fmin(a.minimum, b.minimum),
        maximum=np.fmax(a.maximum, b.maximum),
        zeros=a.zeros + b.zeros,
        nans=a.nans + b.nans,
        infinities=a.infinities + b.infinities,
        counts=np.add(a.counts, b.counts, dtype=count_type(rows)),
        started=min(starts, default=0.0),
        ended=max(a.ended, b.ended),
    )


def count_type(rows: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the counter type of a distribution that no bin of ``rows`` rows can overflow."""
    return np.dtype(np.uint32 if rows <= np.iinfo(np.uint32).max else np.uint64)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide, giving NaN where there is nothing to divide by."""
    return np.where(whole > 0, part, np.nan) / np.maximum(whole, 1)
