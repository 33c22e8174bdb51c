"""Moving a distribution onto other bins: for comparing what was counted around different centres."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ShapeMismatch
from sidecar.stats.binning import Grid
from sidecar.stats.distribution import Distribution
from sidecar.stats.moments import REACH, to_halves, unit_exponent


def recentre(
    distribution: Distribution, centre: NDArray[np.float32], exponent: NDArray[np.int32]
) -> Distribution:
    """Return the distribution as if its values had been counted around other centres.

    Rows, requests, extremes, zeros and what was not finite stay exact, and so do the sums of the moments
    up to one rounding to new units, as far as those reach. The values of a bin are moved
    together, as if they all were where a quantile takes the middle of the bin to be, so none is off by
    more than ``binning.relative_error`` of its distance from the old centre (or half the near-zero
    width, and beyond the octaves by what the overflow bin hides) before the new bins add an error of
    their own. Not to be undone, and not the same as having counted so from the start: merge first,
    move last.

    Args:
        distribution: Counted anywhere.
        centre: The new centres, shape ``(F,)``, finite.
        exponent: Powers of two at which the new near-zero bins end, shape ``(F,)``.

    Returns:
        A new distribution with the same binning, which merges with those counted at the new place.

    Raises:
        ShapeMismatch: There are not as many centres or exponents as features, or a centre is not
            finite.

    Complexity:
        O(F * occupied bins), and a few microseconds a feature for the moments.
    """
    wanted = Grid(
        distribution.binning, np.asarray(centre, np.float32), np.asarray(exponent, np.int32)
    )
    shape = distribution.centre.shape
    if not wanted.centre.shape == wanted.exponent.shape == shape:
        raise ShapeMismatch(
            f"{wanted.centre.shape} centres and {wanted.exponent.shape} exponents for {shape} features"
        )
    if not np.isfinite(wanted.centre).all():
        raise ShapeMismatch(
            f"centre {wanted.centre[~np.isfinite(wanted.centre)][0]}: use a finite one"
        )
    sums, squares = zip(*_moments(distribution, wanted), strict=True)
    high, low = to_halves(list(squares))
    return Distribution(
        binning=distribution.binning,
        centre=wanted.centre,
        exponent=wanted.exponent,
        rows=distribution.rows,
        sampled=distribution.sampled,
        requests=distribution.requests,
        unit_sums=np.array(sums, np.int64),
        unit_squares_high=high,
        unit_squares_low=low,
        minimum=distribution.minimum,
        maximum=distribution.maximum,
        zeros=distribution.zeros,
        nans=distribution.nans,
        infinities=distribution.infinities,
        counts=_moved(distribution, wanted),
        started=distribution.started,
        ended=distribution.ended,
    )


def _moved(distribution: Distribution, wanted: Grid) -> NDArray[np.unsignedinteger[Any]]:
    """Return the counts in the new bins."""
    features, bins = np.nonzero(distribution.counts)  # (occupied,)
    held = distribution.counts[features, bins]
    zero_bin = distribution.bin_of(np.zeros(distribution.features))
    zeros = np.where(bins == zero_bin[features], distribution.zeros[features], 0)
    counts = np.zeros_like(distribution.counts)
    middles = distribution.middles(features, bins)
    place = wanted.select(features)
    for values, times in (
        (middles, held - zeros.astype(held.dtype)),
        (np.zeros_like(middles), zeros),
    ):
        found = place.index(values.astype(np.float32)[None, :])[0]
        np.add.at(counts, (features, found), times.astype(counts.dtype))
    return counts


def _moments(distribution: Distribution, wanted: Grid) -> Iterator[tuple[int, int]]:
    """Yield each feature's new sums in new units, from whole numbers all the way."""
    old, new = unit_exponent(distribution.exponent), unit_exponent(wanted.exponent)
    for j in range(distribution.features):
        # A float32 is a whole multiple of 2**-149: in such steps nothing has to be rounded.
        step = min(int(old[j]), int(new[j]), -149)
        shift = _steps(float(distribution.centre[j]), step) - _steps(float(wanted.centre[j]), step)
        n, from_old = int(distribution.count[j]), int(old[j]) - step
        total = int(distribution.unit_sums[j]) << from_old
        high, low = distribution.unit_squares_high[j], distribution.unit_squares_low[j]
        squares = ((int(high) << 64) + int(low)) << (2 * from_old)
        bits = int(new[j]) - step
        moved = _rounded(total + n * shift, bits)
        squared = _rounded(squares + 2 * shift * total + n * shift * shift, 2 * bits)
        # As where values are counted: no distance is above REACH, so neither is a mean of them.
        yield max(-n * REACH, min(moved, n * REACH)), min(squared, n * REACH**2)


def _steps(value: float, exponent: int) -> int:
    """Return a value as a whole multiple of a power of two that divides it."""
    above, below = value.as_integer_ratio()
    return (above << -exponent) // below


def _rounded(number: int, bits: int) -> int:
    """Return a number over ``2**bits``, half upwards."""
    return (number + (1 << bits >> 1)) >> bits
