"""Spreading counted values over exponential buckets: exact counts, right places, coarser sums."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.monitor.exponential import (
    BUCKET_LIMIT,
    COARSEST,
    FINEST,
    Cells,
    coarsened,
    finest_schema,
    gathered,
    spread,
    swallowed,
)
from sidecar.stats import Occupied

pytestmark = pytest.mark.unit

MAGNITUDES = st.floats(-8.0, 8.0).map(lambda x: float(np.sign(x) * 2.0 ** abs(x) - np.sign(x)))


def occupied(*bins: tuple[float, float, int], feature: int = 0) -> Occupied:
    """Return bins of one feature."""
    low, high, counts = (np.array(column) for column in zip(*bins, strict=True))
    owners = np.full(len(bins), feature)
    return Occupied(owners, low.astype(float), high.astype(float), counts.astype(np.int64))


@st.composite
def some_bins(draw: st.DrawFn) -> Occupied:
    """Draw adjacent bins of two features, some without width."""
    parts = []
    for feature in range(2):
        edges = sorted(draw(st.lists(MAGNITUDES, min_size=2, max_size=8)))
        counts = st.integers(1, 1000)
        bins = [(a, b, draw(counts)) for a, b in pairwise(edges)]
        parts.append(occupied(*bins, feature=feature))
    return Occupied(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("features", "low", "high", "counts")
        )
    )


def borders(rank: int, zero: int, schema: int) -> tuple[float, float]:
    """Return a bucket's lower and upper border, by Prometheus' definition."""
    if rank == 0:
        return -(2.0**zero), 2.0**zero
    index = abs(rank) + zero * 2**schema
    near, far = (2.0 ** ((index - less) * 2.0**-schema) for less in (1, 0))
    return (near, far) if rank > 0 else (-far, -near)


def as_dict(cells: Cells) -> dict[tuple[int, int], int]:
    """Return the counts by feature and rank."""
    places = zip(cells.features.tolist(), cells.ranks.tolist(), strict=True)
    return dict(zip(places, cells.counts.tolist(), strict=True))


@settings(deadline=None)
@given(bins=some_bins(), zero=st.integers(-6, 2), schema=st.integers(0, FINEST))
def test_counts_add_up_and_stay_where_their_bin_is(bins: Occupied, zero: int, schema: int) -> None:
    """Every feature keeps its total, and no value leaves the buckets that its bin overlaps."""
    cells = spread(bins, np.full(2, zero), np.full(2, schema))

    for feature in range(2):
        mine = bins.features == feature
        assert bins.counts[mine].sum() == cells.counts[cells.features == feature].sum()
        reached = set()
        for low, high in zip(bins.low[mine], bins.high[mine], strict=True):
            reached |= {
                rank
                for (owner, rank) in as_dict(cells)
                if owner == feature
                for lower, upper in [borders(rank, zero, schema)]
                if lower <= high * (1 + np.sign(high) * 1e-9) + 1e-12
                and upper >= low * (1 - np.sign(low) * 1e-9) - 1e-12
            }
        assert {rank for (owner, rank) in as_dict(cells) if owner == feature} == reached


def test_a_bin_is_split_in_proportion() -> None:
    """A wide bin gives each bucket its share; a bin without width goes into one bucket."""
    seen = occupied((0.5, 2.0, 300), (2.0, 2.0, 7))

    cells = spread(seen, np.array([-1]), np.array([0]))

    # Schema 0 above a zero bucket up to 0.5: rank 1 is (0.5, 1], rank 2 is (1, 2].
    assert {(0, 1): 100, (0, 2): 207} == as_dict(cells)


def test_a_single_value_is_put_in_the_middle_of_its_bin() -> None:
    """Counts that cannot be split are not pushed to either end of what they may lie in."""
    seen = occupied((1.0, 8.0, 1))

    cells = spread(seen, np.array([0]), np.array([3]))

    # The middle, 4.5, lies in the bucket up to 2 ** (18 / 8).
    assert {(0, 18): 1} == as_dict(cells)


def test_buckets_across_zero_are_mirrored() -> None:
    """The zero bucket holds both sides up to its border, and a border belongs to the nearer bucket."""
    seen = occupied((-2.0, 2.0, 400), (0.0, 0.0, 5), (-1.0, -1.0, 9))

    cells = spread(seen, np.array([0]), np.array([0]))

    assert {(0, -1): 100, (0, 0): 214, (0, 1): 100} == as_dict(cells)


@settings(deadline=None)
@given(bins=some_bins(), fine=st.integers(1, FINEST), steps=st.integers(1, 3))
def test_coarser_buckets_are_exact_sums(bins: Occupied, fine: int, steps: int) -> None:
    """Lowering the schema adds up the buckets that the coarser borders enclose, and nothing else."""
    steps = min(steps, fine)
    zero = np.array([-3, -2])
    cells = spread(bins, zero, np.full(2, fine))

    coarse = coarsened(cells, np.full(2, steps))

    expected: dict[tuple[int, int], int] = {}
    for (feature, rank), count in as_dict(cells).items():
        lower, upper = borders(rank, zero[feature], fine)
        middle = (lower + upper) / 2
        index = np.ceil(np.log2(abs(middle)) * 2 ** (fine - steps)) if rank else 0
        place = int(np.sign(rank) * (index - zero[feature] * 2 ** (fine - steps))) if rank else 0
        expected[feature, place] = expected.get((feature, place), 0) + count
    assert expected == as_dict(coarse)


def test_a_wider_zero_bucket_swallows_its_neighbours() -> None:
    """Buckets up to the new border join it; the others are counted from there."""
    cells = gathered(np.zeros(4, int), np.array([-3, -1, 1, 4]), np.array([5, 6, 7, 8]))

    found = swallowed(cells, np.array([2]))

    assert {(0, -1): 5, (0, 0): 13, (0, 2): 8} == as_dict(found)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 554.0))
def test_the_schema_fits_the_limit(octaves: float) -> None:
    """Buckets over so many octaves, cut at four ends, are within the limit; a finer one's are not."""
    schema = int(finest_schema(np.array([octaves]))[0])

    def needed(one: int) -> float:
        return octaves * 2**one + 4

    assert schema == COARSEST or needed(schema) <= BUCKET_LIMIT
    assert schema == FINEST or needed(schema + 1) > BUCKET_LIMIT
