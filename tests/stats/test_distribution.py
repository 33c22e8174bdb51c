import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import ShapeMismatch, UnknownFeature
from sidecar.stats import Binning, Distribution
from sidecar.stats.batch import EVERY, Batch
from sidecar.stats.binning import Grid, learn_grid
from sidecar.stats.distribution import merge
from sidecar.stats.kernels import NUMPY
from sidecar.stats.tally import Tally
from tests import reference

pytestmark = pytest.mark.unit

LEVELS = np.array([0.5, 0.75, 0.9, 0.99, 0.999])
ANY = st.floats(width=32)
"""NaN, infinities, denormals and huge values included."""

# Few distinct values: quantised features are what breaks interpolation.
CLUSTERED = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-6, -1.0, 2.0, 1e-40, 3e38, math.nan])
SAMPLES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=ANY | CLUSTERED
)

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t3": lambda rng, n: rng.standard_t(3, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1.5, n),
    "relu": lambda rng, n: np.maximum(rng.normal(-1.2816, 1, n), 0),
    "far_mean": lambda rng, n: rng.normal(100, 1, n),
    "negative": lambda rng, n: -rng.lognormal(0, 1.5, n),
    "constant": lambda _, n: np.full(n, 3.25),
    "huge": lambda rng, n: np.clip(rng.normal(size=n) * 1e38, -3e38, 3e38),
    "denormal": lambda rng, n: rng.normal(size=n) * 1e-42,
}


def counted(rows: np.ndarray, grid: Grid | None = None, at: float = 1.0) -> Distribution:
    """Return the distribution of rows on bins learned from their beginning."""
    found = learn_grid(rows[:256], Binning()) if grid is None else grid
    tally = Tally.empty(rows.shape[1], found.binning.bins)
    if len(rows):
        NUMPY.absorb(tally, Batch(rows, np.arange(len(rows)), EVERY, at), found)
    return tally.distribution(found)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_keep_their_promise(name: str, bits: int) -> None:
    """Every quantile is within the promised ratio of the exact one's distance from the centre."""
    rng = np.random.default_rng(7)
    rows = np.stack([DISTRIBUTIONS[name](rng, 50_000) for _ in range(3)], axis=1)
    rows = rows.astype(np.float32)
    grid = learn_grid(rows[:256], Binning(bits))
    exact = np.sort(rows.astype(np.float64), axis=0)[np.ceil(LEVELS * 50_000).astype(int) - 1].T

    found = counted(rows, grid).quantile(LEVELS)

    away = np.abs(exact - grid.centre[:, None])
    near_zero = 2.0 ** (grid.exponent[:, None] - 1.0)
    allowed = np.maximum(grid.binning.relative_error * away, near_zero) * (1 + 1e-6)
    assert np.all(away < 2.0 ** (grid.exponent[:, None] + 16.0)), "beyond the promised range"
    assert np.all(np.abs(found - exact) <= allowed)


def test_quantiles_of_a_sparse_feature_are_exactly_zero() -> None:
    """Where the counters prove that a quantile is an exact zero, it is returned as one."""
    rows = np.maximum(np.random.default_rng(0).normal(-1.2816, 1, (20_000, 1)), 0)

    found = counted(rows.astype(np.float32)).quantile(np.array([0.1, 0.5, 0.85]))

    assert [[0.0, 0.0, 0.0]] == found.tolist()


def test_zero_is_not_claimed_where_other_values_share_its_bin() -> None:
    """Among as many other values, nobody knows which rank is the zero: the bin speaks."""
    grid = Grid(Binning(), np.array([63.0], np.float32), np.array([-6], np.int32))
    rows = np.array([[-0.5]] * 5 + [[0.0]] * 3 + [[-90.0], [90.0]], np.float32)

    found = counted(rows, grid).quantile(np.array([0.2, 0.5, 0.8]))

    assert np.all(found != 0.0)
    assert np.all(np.abs(found) <= 64 * 0.0304)


@pytest.mark.parametrize("within", [0.0, 0.5, 0.999999])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_promise_holds_wherever_in_a_bin_the_values_are(within: float, sign: float) -> None:
    """All values at one end of the widest bin of an octave: the worst case of every estimate."""
    grid = Grid(Binning(), np.zeros(1, np.float32), np.array([-6], np.int32))
    value = sign * (1.0 + within / 16)
    rows = np.array([[-9.0], *[[value]] * 50, [9.0]], np.float32)

    found = counted(rows, grid).quantile(np.array([0.5]))[0, 0]

    assert abs(found - value) <= Binning().relative_error * abs(value) * (1 + 1e-6)


def test_the_extremes_are_exact() -> None:
    """Levels 0 and 1 give the least and greatest value, even in the overflow bins."""
    rows = np.random.default_rng(0).normal(0, 1, (1000, 1)).astype(np.float32)
    rows[500:502, 0] = [1e30, -1e31]

    found = counted(rows).quantile(np.array([0.0, 1.0]))

    assert [[np.float32(-1e31), np.float32(1e30)]] == found.tolist()


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES, level=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]))
def test_a_quantile_lies_in_the_bin_of_the_exact_one(rows: np.ndarray, level: float) -> None:
    """Whatever the values, the estimate and the exact quantile share a bin or an extreme."""
    seen = counted(rows)

    found = seen.quantile(np.array([level]))[:, 0]

    for j in range(2):
        finite = [float(x) for x in rows[:, j] if math.isfinite(x)]
        if not finite:
            assert math.isnan(found[j])
            continue
        exact = reference.quantile(finite, level)
        edges = seen.edges(j)
        at = int(np.searchsorted(edges, exact, side="right")) - 1
        slack = 1e-6 * (abs(exact) + abs(float(seen.centre[j])))
        low, high = edges[max(at - 1, 0)] - slack, edges[min(at + 2, len(edges) - 1)] + slack
        assert low <= found[j] <= high
        assert min(finite) <= found[j] <= max(finite)


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES, level=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))
def test_a_threshold_is_passed_by_no_more_than_promised(rows: np.ndarray, level: float) -> None:
    """However values cluster, at most ``1 - level`` of them lie above the float32 threshold."""
    found = counted(rows).threshold(level)

    for j in range(2):
        finite = rows[np.isfinite(rows[:, j]), j]
        if not len(finite):
            assert math.isnan(found[j])
            continue
        assert np.float32(found[j]) == found[j]
        above = np.count_nonzero(finite > np.float32(found[j]))
        assert above <= len(finite) - max(math.ceil(level * len(finite)), 1)
        assert found[j] <= finite.max()


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES, level=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.7, 1.0]))
def test_no_more_than_promised_are_below_a_floor(rows: np.ndarray, level: float) -> None:
    """However values cluster, at most ``level`` of them lie below the float32 floor, and it is in reach."""
    found = counted(rows).floor(level)

    for j in range(2):
        finite = rows[np.isfinite(rows[:, j]), j]
        if not len(finite):
            assert math.isnan(found[j])
            continue
        assert np.float32(found[j]) == found[j]
        assert np.count_nonzero(finite < np.float32(found[j])) <= level * len(finite)
        assert finite.min() <= found[j] <= finite.max()


def test_a_floor_is_at_most_one_bin_below_the_quantile() -> None:
    """And at a value that is taken very often it is that value, which is then not below it."""
    rows = np.random.default_rng(3).normal(0, 1, (100_000, 2)).astype(np.float32)
    rows[:, 1] = np.maximum(rows[:, 1], -0.25)
    exact = reference.quantile(rows[:, 0].tolist(), 0.001)

    spread, atom = counted(rows).floor(0.001)

    assert exact >= spread >= exact * (1 + 2**-4 + 1e-3)
    assert -0.25 == atom


def test_a_threshold_is_at_most_one_bin_above_the_quantile() -> None:
    """The price of the one-sided promise is at most a bin's width."""
    rows = np.random.default_rng(3).normal(0, 1, (100_000, 1)).astype(np.float32)
    exact = reference.quantile(rows[:, 0].tolist(), 0.999)

    found = counted(rows).threshold(0.999)[0]

    assert exact <= found <= exact * (1 + 2**-4 + 1e-3)


def test_rank_and_exceedance_agree_with_the_sample() -> None:
    """Shares at or below a value are right to within the one bin that is split."""
    rows = np.random.default_rng(1).normal(5, 2, (20_000, 3)).astype(np.float32)
    seen = counted(rows)
    at = np.array([3.0, 5.0, 9.0])

    found = seen.rank(at)

    assert np.allclose((rows <= at).mean(axis=0), found, atol=0.005)
    assert np.allclose(1 - found, seen.exceedance(at))


def test_rank_places_exact_zeros_exactly() -> None:
    """Zeros count as at or below zero, and as above anything less."""
    rows = np.array([[0.0]] * 9 + [[4.0]], np.float32)

    seen = counted(rows)

    assert [0.9] == seen.rank(np.array([0.0])).tolist()
    assert [0.0] == seen.rank(np.array([-1e-9])).tolist()
    assert [pytest.approx(0.1)] == seen.exceedance(np.array([0.0])).tolist()


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES)
def test_nothing_exceeds_the_maximum_and_everything_exceeds_less_than_the_minimum(
    rows: np.ndarray,
) -> None:
    """Exceedance is exact at both ends."""
    seen = counted(rows)
    known = seen.count > 0
    under = np.nextafter(seen.minimum.astype(np.float64), -np.inf)

    assert np.all(seen.exceedance(seen.maximum.astype(np.float64))[known] == 0)
    assert np.all(seen.exceedance(under)[known] == 1)
    assert np.isnan(seen.exceedance(np.full(2, np.nan))).all()


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES)
def test_moments_and_counters_are_those_of_the_finite_values(rows: np.ndarray) -> None:
    """NaN and infinities are counted apart and touch nothing else."""
    seen = counted(rows)

    for j in range(2):
        column = rows[:, j].astype(np.float64)
        count, mean, variance = reference.moments(column.tolist())
        assert count == seen.count[j] == seen.counts[j].sum()
        assert np.count_nonzero(np.isnan(column)) == seen.nans[j]
        assert np.count_nonzero(np.isinf(column)) == seen.infinities[j]
        assert np.count_nonzero(column == 0) == seen.zeros[j]
        if not count:
            assert np.isnan([seen.mean[j], seen.variance[j], seen.minimum[j]]).all()
            continue
        finite = column[np.isfinite(column)]
        assert (finite.min(), finite.max()) == (seen.minimum[j], seen.maximum[j])
        place = float(seen.centre[j]), int(seen.exponent[j])
        squares = (int(seen.unit_squares_high[j]) << 64) + int(seen.unit_squares_low[j])
        expected = reference.unit_moments(column.tolist(), *place)
        assert expected == (seen.unit_sums[j], squares)
        away = np.abs(finite - place[0])
        if away.max() < 2.0 ** (place[1] + 20):
            allowed = 2.0 ** max(place[1] - 9, -127) + 2.0**-23 * away.max()
            assert abs(mean - seen.mean[j]) <= allowed
            deviation = math.sqrt(variance), math.sqrt(seen.variance[j])
            assert abs(deviation[0] - deviation[1]) <= 2 * allowed + 1e-7 * away.max()


@st.composite
def shards(draw: st.DrawFn) -> list[Distribution]:
    """Draw three distributions on one grid, some of them empty."""
    rows = draw(hnp.arrays(np.float32, (draw(st.integers(0, 20)), 2), elements=ANY | CLUSTERED))
    cut = sorted(draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    grid = learn_grid(rows, Binning())
    return [
        counted(part, grid, at)
        for at, part in enumerate((rows[: cut[0]], rows[cut[0] : cut[1]], rows[cut[1] :]), 1)
    ]


def assert_equal(a: Distribution, b: Distribution) -> None:
    """Check that everything is equal to the bit."""
    for name in a.__slots__:
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape, one.tobytes()) == (
                other.dtype,
                other.shape,
                other.tobytes(),
            ), name
        else:
            assert one == other, name


@settings(max_examples=60, deadline=None)
@given(parts=shards())
def test_merging_does_not_depend_on_order(parts: list[Distribution]) -> None:
    """Merge is commutative and associative."""
    a, b, c = parts

    assert_equal(merge(a, b), merge(b, a))
    assert_equal(merge(merge(a, b), c), merge(a, merge(b, c)))


@settings(max_examples=60, deadline=None)
@given(parts=shards())
def test_merging_an_empty_side_changes_nothing(parts: list[Distribution]) -> None:
    """A distribution of no rows is the identity."""
    whole = parts[0]
    empty = counted(np.empty((0, 2), np.float32), Grid(Binning(), whole.centre, whole.exponent))

    assert_equal(whole, merge(whole, empty))
    assert_equal(whole, merge(empty, whole))


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES, cut=st.integers(0, 40))
def test_merging_shards_matches_one_pass(rows: np.ndarray, cut: int) -> None:
    """Splitting a sample and merging the parts loses nothing."""
    grid = learn_grid(rows, Binning())

    merged = merge(counted(rows[:cut], grid), counted(rows[cut:], grid))

    assert_equal(counted(rows, grid), merged)


def test_merging_other_bins_is_refused() -> None:
    """Distributions whose bins do not line up are never added."""
    rows = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)

    with pytest.raises(ShapeMismatch, match="same bins"):
        merge(counted(rows), counted(rows * 4))
    with pytest.raises(ShapeMismatch):
        merge(counted(rows), counted(rows[:, :1]))


def test_counts_widen_instead_of_overflowing() -> None:
    """Two halves of more than 2**32 rows merge into wider counters."""
    one = counted(np.zeros((1, 1), np.float32))
    many = Distribution(
        **{name: getattr(one, name) for name in one.__slots__ if name not in ("rows", "counts")},
        rows=2**32 - 1,
        counts=one.counts * np.uint32(2**32 - 1),
    )

    found = merge(many, many)

    assert np.uint64 == found.counts.dtype
    assert 2 * (2**32 - 1) == found.counts.max()


@settings(max_examples=60, deadline=None)
@given(rows=SAMPLES)
def test_edges_increase_and_enclose_everything(rows: np.ndarray) -> None:
    """Edges are finite, strictly increasing, and the values are between them bin by bin."""
    seen = counted(rows)

    for j in range(2):
        edges = seen.edges(j)
        finite = rows[np.isfinite(rows[:, j]), j].astype(np.float64)
        assert np.isfinite(edges).all()
        assert np.all(np.diff(edges) > 0)
        assert np.all((edges[0] < finite) & (finite < edges[-1]))


@settings(deadline=None)
@given(rows=SAMPLES)
def test_occupied_bins_hold_every_finite_value_once(rows: np.ndarray) -> None:
    """By feature they add up, exact zeros stand alone, and every value lies in one of them."""
    seen = counted(rows)

    found = seen.occupied()

    assert (found.counts > 0).all()
    assert (found.low <= found.high).all()
    assert (np.diff(found.features) >= 0).all()
    for feature in range(seen.features):
        mine = found.features == feature
        low, high, counts = found.low[mine], found.high[mine], found.counts[mine]
        values = rows[np.isfinite(rows[:, feature]), feature].astype(np.float64)
        assert counts.sum() == len(values)
        assert counts[(low == 0) & (high == 0)].sum() >= np.count_nonzero(values == 0)
        slack = 1e-6 * np.abs(values - np.float64(seen.centre[feature]))  # float32 distances
        inside = (low <= (values + slack)[:, None]) & ((values - slack)[:, None] <= high)
        assert inside.any(axis=1).all()


def test_selected_features_keep_their_numbers() -> None:
    """Selecting reorders features and leaves their statistics alone."""
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    seen = counted(rows)

    found = seen.select(np.array([3, 1]))

    assert seen.mean[[3, 1]].tolist() == found.mean.tolist()
    assert seen.quantile(LEVELS)[[3, 1]].tolist() == found.quantile(LEVELS).tolist()


@pytest.mark.parametrize("index", [-1, 2])
def test_a_feature_that_does_not_exist_is_named(index: int) -> None:
    """Asking for a feature outside the layer is an error, not somebody else's numbers."""
    seen = counted(np.zeros((3, 2), np.float32))

    with pytest.raises(UnknownFeature, match=str(index)):
        seen.select(np.array([index]))
    with pytest.raises(UnknownFeature):
        seen.edges(index)


def test_arrays_of_different_features_are_refused() -> None:
    """A distribution whose arrays disagree cannot be made."""
    one = counted(np.zeros((3, 2), np.float32))
    fields = {name: getattr(one, name) for name in one.__slots__}

    with pytest.raises(ShapeMismatch):
        Distribution(**{**fields, "unit_sums": np.zeros(3, np.int64)})
    with pytest.raises(ShapeMismatch):
        Distribution(**{**fields, "binning": Binning(3)})
