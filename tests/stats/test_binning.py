import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import InvalidInput
from sidecar.stats import Binning
from sidecar.stats.binning import Grid, learn_grid, round_up
from tests import reference

pytestmark = pytest.mark.unit

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BINNINGS = st.builds(Binning, st.integers(2, 6), st.integers(8, 20))


@st.composite
def grids(draw: st.DrawFn, width: int = 3) -> Grid:
    """Draw the bins of a few features, placed as learning could place them."""
    rows = draw(hnp.arrays(np.float32, (draw(st.integers(0, 8)), width), elements=FINITE))
    return learn_grid(rows, draw(BINNINGS))


@settings(max_examples=60, deadline=None)
@given(grid=grids(), rows=hnp.arrays(np.float32, (5, 3), elements=FINITE))
def test_bins_are_those_of_the_definition(grid: Grid, rows: np.ndarray) -> None:
    """The bit trick puts every value where the naive twin puts it."""
    binning = grid.binning
    expected = [
        [
            reference.bin_of(x, c, int(e), binning.mantissa_bits, binning.octaves)
            for x, c, e in zip(row, grid.centre, grid.exponent, strict=True)
        ]
        for row in rows
    ]

    found = grid.index(rows)

    assert expected == found.tolist()


@settings(max_examples=60, deadline=None)
@given(grid=grids(), rows=hnp.arrays(np.float32, (5, 3), elements=FINITE))
def test_a_value_lies_between_the_edges_of_its_bin(grid: Grid, rows: np.ndarray) -> None:
    """Edge offsets and bin numbers agree, on both sides of the centre and on the edges."""
    with np.errstate(over="ignore"):
        away = (rows - grid.centre).astype(np.float64)

    found = grid.index(rows).astype(np.int64)

    features = np.arange(3)[None, :]
    assert np.all(grid.edge_offset(found, features) <= away)
    assert np.all((away < grid.edge_offset(found + 1, features)) | np.isposinf(away))


@given(binning=BINNINGS, exponent=st.integers(-126, 60))
def test_no_bin_is_wider_than_the_promised_error(binning: Binning, exponent: int) -> None:
    """In every regular bin some places are within ``relative_error`` of both ends, as promised."""
    grid = Grid(binning, np.zeros(1, np.float32), np.full(1, exponent, np.int32))
    numbers = np.arange(binning.half + 1, binning.bins)
    edges = grid.edge_offset(numbers, np.zeros_like(numbers))

    lowest, highest = (
        edges[1:] * (1 - binning.relative_error),
        edges[:-1] * (1 + binning.relative_error),
    )

    assert np.all(lowest < highest)
    room = (highest - lowest) / np.diff(edges)
    assert room.min() == pytest.approx(0.5)
    assert 2.0 ** (exponent + binning.octaves) == edges[-1]


def test_bins_are_closed_below_on_both_sides() -> None:
    """A value exactly on an edge belongs to the bin above it, also left of the centre."""
    grid = Grid(Binning(), np.zeros(1, np.float32), np.zeros(1, np.int32))
    numbers = np.arange(1, grid.binning.bins)
    edges = grid.edge_offset(numbers, np.zeros_like(numbers)).astype(np.float32)

    assert numbers.tolist() == grid.index(edges[:, None])[:, 0].tolist()
    assert (numbers - 1).tolist() == grid.index(np.nextafter(edges, np.float32(-np.inf))[:, None])[
        :, 0
    ].tolist()


def test_both_zeros_share_a_bin() -> None:
    """Minus zero is counted where zero is."""
    grid = Grid(Binning(), np.zeros(1, np.float32), np.zeros(1, np.int32))

    found = grid.index(np.array([[0.0], [-0.0]], np.float32))

    assert [[258], [258]] == found.tolist()


@pytest.mark.parametrize("extreme", [np.float32(3.4e38), np.float32(np.inf)])
def test_distances_beyond_float32_fall_into_the_overflow_bins(extreme: np.float32) -> None:
    """A distance that overflows float32 is still on the right side."""
    grid = Grid(Binning(), np.array([-3e38, 3e38], np.float32), np.array([100, 100], np.int32))

    found = grid.index(np.array([[extreme, -extreme]], np.float32))

    assert [[515, 0]] == found.tolist()


def test_the_grid_of_a_normal_feature_reaches_from_a_64th_to_512_sigma() -> None:
    """The bins cover the promised range around the median."""
    rows = np.random.default_rng(0).normal(100, 0.5, (4096, 1)).astype(np.float32)

    grid = learn_grid(rows, Binning())

    assert abs(float(grid.centre[0]) - 100) < 0.05
    assert 2.0 ** float(grid.exponent[0]) <= 0.52 / 64
    assert 2.0 ** (float(grid.exponent[0]) + 16) >= 512 * 0.48


def test_one_outlier_does_not_move_the_grid() -> None:
    """Centre and scale are medians: a single wild value changes nothing."""
    rows = np.random.default_rng(0).normal(0, 1, (255, 1)).astype(np.float32)
    wild = np.concatenate([rows, np.array([[1e30]], np.float32)])

    grid, disturbed = learn_grid(rows, Binning()), learn_grid(wild, Binning())

    assert grid.exponent.tolist() == disturbed.exponent.tolist()


def test_a_mostly_silent_feature_is_centred_on_exact_zero() -> None:
    """The scale of a sparse feature is that of its activations, not of its zeros."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((1000, 1)) < 0.1, np.abs(rng.normal(0, 8, (1000, 1))), 0)

    grid = learn_grid(rows.astype(np.float32), Binning())

    assert 0.0 == grid.centre[0]
    assert 4 / 64 <= 2.0 ** float(grid.exponent[0]) <= 8 / 64


def test_constant_features_borrow_the_scale_of_their_layer() -> None:
    """A feature that has not varied yet gets bins like its neighbours', on its own centre."""
    rows = np.random.default_rng(0).normal(0, 1, (256, 3)).astype(np.float32)
    rows[:, 1] = 7.5

    grid = learn_grid(rows, Binning())

    assert 7.5 == grid.centre[1]
    assert abs(int(grid.exponent[1]) - int(grid.exponent[0])) <= 1


@pytest.mark.parametrize("rows", [np.empty((0, 2)), np.full((3, 2), np.nan), np.zeros((3, 2))])
def test_a_layer_that_showed_nothing_gets_bins_around_one(rows: np.ndarray) -> None:
    """No rows, only NaN, and all zeros give centre 0 and scale 1."""
    grid = learn_grid(rows.astype(np.float32), Binning())

    assert [0.0, 0.0] == grid.centre.tolist()
    assert [-6, -6] == grid.exponent.tolist()


@pytest.mark.parametrize(("bits", "octaves"), [(1, 16), (7, 16), (4, 7), (4, 65)])
def test_bins_nobody_could_keep_are_refused(bits: int, octaves: int) -> None:
    """Binning outside its limits is an error that names the limits."""
    with pytest.raises(InvalidInput, match="use"):
        Binning(bits, octaves)


@given(st.floats(-1e39, 1e39))
def test_rounding_up_gives_the_next_float32(value: float) -> None:
    """The result is a float32, not below, and no smaller float32 would do."""
    found = float(round_up(value))

    assert found >= value
    assert found == float(np.float32(found))
    if np.isfinite(found):
        with np.errstate(over="ignore"):
            assert float(np.nextafter(np.float32(found), np.float32(-np.inf))) < value
