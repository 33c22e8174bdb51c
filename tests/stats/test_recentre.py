import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import ShapeMismatch
from sidecar.stats import NUMPY, Binning, Distribution
from sidecar.stats.batch import EVERY, Batch
from sidecar.stats.binning import Grid, learn_grid
from sidecar.stats.distribution import merge
from sidecar.stats.recentre import recentre
from sidecar.stats.tally import Tally

pytestmark = pytest.mark.unit

LEVELS = np.array([0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(width=32)
)
KEPT = ("rows", "sampled", "requests", "started", "ended")
KEPT_ARRAYS = ("minimum", "maximum", "zeros", "nans", "infinities")


def counted(rows: np.ndarray, grid: Grid) -> Distribution:
    """Return the distribution of rows on a grid."""
    tally = Tally.empty(rows.shape[1], grid.binning.bins)
    NUMPY.absorb(tally, Batch(rows, np.arange(len(rows)), EVERY, 3.0), grid)
    return tally.distribution(grid)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, other=ROWS)
def test_everything_but_places_is_kept(rows: np.ndarray, other: np.ndarray) -> None:
    """Totals, extremes, zeros and what is not finite are those of before, whatever the values."""
    seen, target = counted(rows, learn_grid(rows, Binning())), learn_grid(other, Binning())

    found = recentre(seen, target.centre, target.exponent)

    for name in KEPT:
        assert getattr(seen, name) == getattr(found, name)
    for name in KEPT_ARRAYS:
        assert getattr(seen, name).tobytes() == getattr(found, name).tobytes()
    assert seen.count.tolist() == found.counts.sum(axis=1).tolist()
    assert np.all(found.counts[np.arange(2), found.bin_of(np.zeros(2))] >= found.zeros)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_staying_where_it_is_changes_nothing(rows: np.ndarray) -> None:
    """Moving a distribution onto its own bins returns it, to the bit."""
    seen = counted(rows, learn_grid(rows, Binning()))

    found = recentre(seen, seen.centre, seen.exponent)

    for name in seen.__slots__:
        one, other = getattr(seen, name), getattr(found, name)
        assert np.array_equal(one, other, equal_nan=True) if name != "binning" else one == other


@pytest.mark.parametrize("shift", [-3.0, 0.25, 40.0])
@pytest.mark.parametrize("octaves", [-2, 0, 3])
def test_quantiles_keep_the_promise_of_both_places(shift: float, octaves: int) -> None:
    """The error is at most that of the old bins plus that of the new ones."""
    rows = np.random.default_rng(0).normal(2, 1, (50_000, 3)).astype(np.float32)
    old = learn_grid(rows[:256], Binning())
    new = Grid(Binning(), old.centre + np.float32(shift), old.exponent + np.int32(octaves))
    exact = np.sort(rows, axis=0)[np.ceil(LEVELS * 50_000).astype(int) - 1].T.astype(np.float64)

    found = recentre(counted(rows, old), new.centre, new.exponent).quantile(LEVELS)

    allowed = sum(
        np.maximum(
            grid.binning.relative_error * np.abs(exact - grid.centre[:, None]) * 1.05,
            2.0 ** (grid.exponent[:, None] - 1.0),
        )
        for grid in (old, new)
    )
    assert np.all(np.abs(found - exact) <= allowed)


def test_moments_move_with_the_centre() -> None:
    """Mean and variance stay what they were, to within the new unit."""
    rows = np.random.default_rng(1).normal(-5, 2, (10_000, 2)).astype(np.float32)
    seen = counted(rows, learn_grid(rows[:256], Binning()))

    found = recentre(seen, seen.centre + np.float32(7.5), seen.exponent - np.int32(1))

    assert seen.mean == pytest.approx(found.mean, abs=1e-6)
    assert seen.variance == pytest.approx(found.variance, rel=1e-6)


def test_what_was_moved_merges_with_what_was_counted_there() -> None:
    """The purpose: windows of two epochs in one distribution."""
    rows = np.random.default_rng(2).normal(0, 1, (2_000, 2)).astype(np.float32)
    old, new = learn_grid(rows[:300] * 2 + 1, Binning()), learn_grid(rows[:300], Binning())
    moved = recentre(counted(rows[:1000], old), new.centre, new.exponent)

    found = merge(moved, counted(rows[1000:], new))

    exact = np.sort(rows, axis=0)[[999, 1799]].T
    assert 2000 == found.rows
    assert np.all(np.abs(found.quantile(np.array([0.5, 0.9])) - exact) <= 0.1)


@pytest.mark.parametrize("centre", [[0.0], [0.0, math.inf]])
def test_places_that_do_not_fit_are_refused(centre: list[float]) -> None:
    """As many finite centres as features, or an error."""
    rows = np.zeros((3, 2), np.float32)
    seen = counted(rows, learn_grid(rows, Binning()))

    with pytest.raises(ShapeMismatch, match="centre"):
        recentre(seen, np.array(centre, np.float32), np.zeros(2, np.int32))
