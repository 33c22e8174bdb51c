"""Values in bins of any kind, spread over the exponential buckets of Prometheus' native histograms.

Schema ``s`` has ``2**s`` buckets to each factor of two. Here a bucket is named by its *rank*: 0 is
the zero bucket, whose border is a power of two; the rank grows with the value by one a bucket, so
that neighbours differ by one, also across zero. Bucket borders of a schema are borders of every
finer one, and a power of two is a border in all of them, so coarser buckets are exact sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.stats import Occupied

FINEST = 8
"""The finest schema there is: buckets 0.27 % wide."""

COARSEST = 0
"""The coarsest used here: a factor of two. Below it a power of two need not be a border."""

BUCKET_LIMIT = 320
"""Buckets of one feature, above schema 0: enough for schema 4, 4.4 %, over twenty octaves."""

_RANK_BITS = 20
"""Bits that hold every rank and its sign: float32 has 277 octaves, at most 256 buckets each."""

_ENDS = 4
"""Buckets that the four ends of two stretches may cut: they come on top of the octaves between."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """How many values lie in which bucket of which feature; ordered by feature, then rank.

    Attributes:
        features: Positions in the list of features, shape ``(c,)``.
        ranks: Buckets, shape ``(c,)``.
        counts: Values, shape ``(c,)``, at least 1 each.
    """

    features: NDArray[np.int64]
    ranks: NDArray[np.int64]
    counts: NDArray[np.int64]


def no_cells() -> Cells:
    """Return cells of nothing."""
    nothing = np.empty(0, np.int64)
    return Cells(nothing, nothing, nothing)


def finest_schema(octaves: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the finest schema whose buckets over so many octaves are within ``BUCKET_LIMIT``.

    Args:
        octaves: Factors of two that are covered, both signs together, shape ``(n,)``.

    Returns:
        From ``COARSEST`` to ``FINEST``, shape ``(n,)``.
    """
    room = (BUCKET_LIMIT - _ENDS) / np.maximum(octaves, 1e-9)
    return np.clip(np.floor(np.log2(room)), COARSEST, FINEST).astype(np.int64)


def spread(seen: Occupied, zero: NDArray[np.int64], schema: NDArray[np.int64]) -> Cells:
    """Spread counted values over buckets, in proportion to how much of a bin each bucket overlaps.

    Counts stay whole and add up exactly: what lies below a bucket's upper border is rounded, and the
    bucket has the difference. No value leaves the buckets that its bin overlaps.

    Args:
        seen: What was counted of ``n`` features.
        zero: Power of two at which each feature's zero bucket ends, shape ``(n,)``.
        schema: Of each feature, shape ``(n,)``.
    """
    zero, schema = zero[seen.features], schema[seen.features]  # (k,)
    first = _rank(seen.low, zero, schema)
    wide = _rank(seen.high, zero, schema) - first + 1
    entry = np.repeat(np.arange(len(first)), wide)  # (sum of wide,)
    starts = np.cumsum(wide) - wide
    ranks = first[entry] + np.arange(len(entry)) - starts[entry]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (_upper(ranks, zero[entry], schema[entry]) - seen.low[entry]) / (
            seen.high - seen.low
        )[entry]
    share[starts + wide - 1] = (
        1.0  # the last bucket ends at or beyond its bin, also one without width
    )
    below = np.rint(seen.counts[entry] * np.clip(share, 0.0, 1.0)).astype(np.int64)
    counts = np.diff(below, prepend=0)
    counts[starts] = below[starts]
    return gathered(seen.features[entry], ranks, counts)


def coarsened(cells: Cells, steps: NDArray[np.int64]) -> Cells:
    """Return the cells with the schema of each feature lowered by ``steps``, shape ``(n,)``."""
    if not steps.any():
        return cells
    step = steps[cells.features]
    size = -((-np.abs(cells.ranks)) >> step)  # rounded up: a bucket includes its upper border
    return gathered(cells.features, np.sign(cells.ranks) * size, cells.counts)


def swallowed(cells: Cells, buckets: NDArray[np.int64]) -> Cells:
    """Return the cells with the zero bucket widened by ``buckets`` to either side, shape ``(n,)``."""
    if not buckets.any():
        return cells
    size = np.maximum(np.abs(cells.ranks) - buckets[cells.features], 0)
    return gathered(cells.features, np.sign(cells.ranks) * size, cells.counts)


def gathered(
    features: NDArray[np.int64], ranks: NDArray[np.int64], counts: NDArray[np.int64]
) -> Cells:
    """Return cells in order, with equal buckets added up and empty ones left out."""
    some = counts > 0
    features, ranks, counts = features[some], ranks[some], counts[some]
    if not len(counts):
        return no_cells()
    keys = (features << _RANK_BITS) + ranks  # ordered as features, then ranks, of either sign
    order = np.argsort(keys, kind="stable")  # merges runs that are in order already, as here
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    first = order[starts]
    return Cells(features[first], ranks[first], np.add.reduceat(counts[order], starts))


def _rank(
    values: NDArray[np.float64], zero: NDArray[np.int64], schema: NDArray[np.int64]
) -> NDArray[np.int64]:
    size = np.maximum(np.ldexp(np.abs(values), -zero), 1.0)  # 1: the border of the zero bucket
    rank = np.ceil(np.ldexp(np.log2(size), schema)).astype(np.int64)
    return np.where(values < 0, -rank, rank)


def _upper(
    ranks: NDArray[np.int64], zero: NDArray[np.int64], schema: NDArray[np.int64]
) -> NDArray[np.float64]:
    # A negative bucket's upper border is the one nearer to zero.
    steps = np.where(ranks < 0, -ranks - 1, ranks)
    size = np.exp2(np.ldexp(steps.astype(np.float64), -schema) + zero)
    return np.where(ranks < 0, -size, size)
