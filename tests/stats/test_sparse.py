from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import (
    BaselineNotReady,
    CorruptState,
    InvalidInput,
    LayerConflict,
    LimitReached,
    MalformedMessage,
    ShapeMismatch,
    UnknownFeature,
    UnknownLayer,
    UnregisteredLayer,
    UnsupportedDtype,
)
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request, Slice, SparseSample
from sidecar.stats import (
    Bank,
    Binning,
    Period,
    SparseBank,
    SparseDistribution,
    SparseKernels,
    Watched,
    compile_sparse_kernels,
)
from sidecar.stats.encoding import pack, unpack
from sidecar.stats.sparse_kernels import NUMPY
from sidecar.stats.sparse_record import LIMB_BITS, ROUND, SLOTS, SUM_SLOT, Hits, Octaves, Records
from tests.reference import quantile, request_exceedances, sparse_counts

pytestmark = pytest.mark.unit

LAYER = LayerKey("m", "r", "sae", FeatureKind.LATENT)
WIDTH = 6
KERNELS = {"numpy": NUMPY, "numba": compile_sparse_kernels()}
BOUNDS: dict[str, Any] = {"history_seconds": 100.0, "layer_limit": 2, "latent_limit": 20}
LIMIT = 2.0**17
"""The least value that is too great for the default octaves."""

ODD = [0.0, -0.0, np.nan, np.inf, -np.inf, -1.0, LIMIT, 1e30, 1e-30, 2.0**-8, 2.0**11]
VALUES = st.sampled_from(ODD) | st.floats(0, 2.0**13, width=32) | st.floats(width=32)
ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.just(WIDTH)), elements=VALUES, fill=st.just(0.0)
)


@pytest.fixture(params=["numpy", "numba"])
def kernels(request: pytest.FixtureRequest) -> SparseKernels:
    """Return each set of kernels in turn."""
    return KERNELS[request.param]


def make_bank(kernels: SparseKernels = NUMPY, **changed: Any) -> SparseBank:
    """Return a bank with small limits and one registered layer."""
    bank = SparseBank(**{**BOUNDS, **changed}, kernels=kernels)
    bank.register(LAYER, WIDTH)
    return bank


def sample(
    rows: Any,
    requests: list[int] | None = None,
    listed: Any = None,
    weights: Sequence[float] | None = None,
) -> SparseSample:
    """Return dense rows as a sparse sample that lists what is not zero, or the ``listed`` places."""
    rows = np.asarray(rows, np.float32)
    where = (rows != 0) if listed is None else np.asarray(listed)
    row, latents = np.nonzero(where)
    index = np.arange(len(rows)) if requests is None else np.array(requests)
    return SparseSample(
        LAYER,
        rows.shape[1],
        np.searchsorted(row, np.arange(len(rows) + 1)),
        latents.astype(np.uint32),
        rows[where],
        index.astype(np.int32),
        tuple(Request(weight=w) for w in weights or [1.0] * (int(index.max(initial=-1)) + 1)),
    )


def entries(*listed: tuple[int, float], width: int = WIDTH, **changed: Any) -> SparseSample:
    """Return one row of ``(latent, value)`` entries, with some of its arrays changed."""
    parts = {
        "row_splits": np.array([0, len(listed)]),
        "latents": np.array([latent for latent, _ in listed], np.uint32),
        "values": np.array([value for _, value in listed], np.float32),
        "request_index": np.zeros(1, np.int32),
    }
    return SparseSample(LAYER, width, requests=(Request(),), **{**parts, **changed})


def seen(bank: SparseBank, period: Period = Period.CURRENT, *features: int) -> SparseDistribution:
    """Return the bank's distribution of the layer."""
    return bank.snapshot(LAYER, period, np.array(features) if features else None)


def same(a: SparseDistribution, b: SparseDistribution) -> bool:
    """Whether two distributions are equal to the bit."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and _dtype(a, name) == _dtype(b, name)
        for name in a.__slots__
    )


def _dtype(value: object, name: str) -> object:
    return getattr(getattr(value, name), "dtype", None)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=60, deadline=None)
@given(rows=ROWS, listed=hnp.arrays(np.bool_, (12, WIDTH)))
def test_counting_matches_the_definition(name: str, rows: np.ndarray, listed: np.ndarray) -> None:
    """Zeros (listed or not), invalid values, sums, extremes and octaves are those of the rows."""
    bank = make_bank(KERNELS[name])

    bank.update(sample(rows, listed=(rows != 0) | listed[: len(rows)]), 1.0)

    found = seen(bank)
    for latent in range(WIDTH):
        column = [float(x) for x in rows[:, latent]]
        zeros, invalid, total, squares, most, bins = sparse_counts(column, -8)
        assert zeros == found.zeros[latent]
        assert invalid == found.invalid[latent]
        assert total == found.sums[latent, 0] * 2**62 + found.sums[latent, 1]
        assert squares == found.squares[latent, 0] * 2**62 + int(found.squares[latent, 1])
        assert most == found.maximum[latent]
        assert bins == found.hits[latent].tolist()


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(ROWS, min_size=1, max_size=5), closes=st.sets(st.integers(0, 4)))
def test_compiled_and_numpy_kernels_leave_the_same_bank(
    batches: list[np.ndarray], closes: set[int]
) -> None:
    """Whatever came in, both encode to the same bytes, and to the same counts of the windows."""
    banks = [make_bank(kernels) for kernels in KERNELS.values()]
    for number, rows in enumerate(batches):
        for bank in banks:
            bank.update(sample(rows), 1.0 + number)
        if number in closes:
            first, second = (bank.close_window(2.0 + number)[LAYER] for bank in banks)
            assert first.nonfinite == second.nonfinite

    assert banks[0].encode() == banks[1].encode()


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(ROWS, min_size=3, max_size=6), order=st.randoms(use_true_random=False))
def test_merging_is_exact_in_any_order_and_grouping(batches: list[np.ndarray], order: Any) -> None:
    """Shards merged in any way have the bits of one pass over everything."""
    whole = make_bank()
    parts = []
    for rows in batches:
        whole.update(sample(rows), 1.0)
        shard = make_bank()
        shard.update(sample(rows), 1.0)
        parts.append(seen(shard))
    order.shuffle(parts)

    while len(parts) > 1:
        a, b = parts.pop(order.randrange(len(parts))), parts.pop(order.randrange(len(parts)))
        parts.append(a.merge(b))

    assert same(seen(whole), parts[0])


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=60, deadline=None)
@given(rows=ROWS, data=st.data())
def test_a_row_of_weight_n_counts_as_n_equal_rows(
    name: str, rows: np.ndarray, data: st.DataObject
) -> None:
    """Everything is as if the row had come so often, but for how many rows were sampled."""
    counts = st.integers(1, 5) | st.sampled_from([ROUND, ROUND + 1, 1 << 17])
    weights = data.draw(st.lists(counts, min_size=len(rows), max_size=len(rows)))
    weighted, shard = make_bank(KERNELS[name]), make_bank()

    weighted.update(sample(rows, weights=[float(w) for w in weights]), 1.0)

    found = seen(weighted)
    assert (sum(weights), len(rows), len(rows)) == (found.rows, found.sampled, found.requests)
    shard.update(sample(rows), 1.0)
    assert seen(shard).maximum.tolist() == found.maximum.tolist()
    for latent in range(WIDTH):
        parts = [sparse_counts([float(x)], -8) for x in rows[:, latent]]
        sums = [sum(w * part[i] for w, part in zip(weights, parts, strict=True)) for i in range(4)]
        zeros, invalid, total, squares = sums
        assert (zeros, invalid) == (found.zeros[latent], found.invalid[latent])
        assert total == int(found.sums[latent, 0]) * 2**62 + int(found.sums[latent, 1])
        assert squares == int(found.squares[latent, 0]) * 2**62 + int(found.squares[latent, 1])
        bins = [
            sum(w * part[5][i] for w, part in zip(weights, parts, strict=True)) for i in range(21)
        ]
        assert bins == found.hits[latent].tolist()


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(1, 2**20), min_size=1, max_size=30), restart=st.integers(0, 30))
def test_fractions_of_weights_are_carried_to_the_next_row(
    weights: list[float], restart: int
) -> None:
    """The rows counted are never more than one from the sum of the weights, over a restart too."""
    bank = make_bank()
    for number, weight in enumerate(weights):
        if number == restart:
            bank = SparseBank.decode(bank.encode(), **BOUNDS)
        bank.update(sample(np.eye(1, WIDTH), weights=[weight]), 1.0)

        exact = sum(weights[: number + 1])
        assert abs(seen(bank).rows - exact) <= 1 + 1e-6

    assert seen(bank).rows == seen(bank).nonzero[0]
    assert len(weights) == seen(bank).sampled


@pytest.mark.parametrize("weight", [0.5, 0.0, -1.0, np.nan, np.inf, 2.0**20 + 1])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    """A row stands for itself at least, and for no more than can be counted."""
    with pytest.raises(InvalidInput, match="has weight"):
        make_bank().update(sample(np.eye(1, WIDTH), weights=[weight]), 1.0)


def test_rows_of_no_request_are_refused() -> None:
    """A request index beyond the requests names nobody."""
    nobody = SparseSample(
        LAYER,
        WIDTH,
        np.array([0, 0]),
        np.empty(0, np.uint32),
        np.empty(0, np.float32),
        np.ones(1, np.int32),
        (Request(),),
    )

    with pytest.raises(ShapeMismatch, match="request_index"):
        make_bank().update(nobody, 1.0)


def test_half_precision_is_widened_exactly(kernels: SparseKernels) -> None:
    """float16 and the bits of bfloat16 count as the float32s they stand for."""
    values = np.array([0.5, 1.5, 3.0], np.float32)
    listed = [(0, 0.0), (2, 0.0), (5, 0.0)]
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)

    found = []
    for given_values in (values, values.astype(np.float16), bits):
        bank = make_bank(kernels)
        bank.update(entries(*listed, values=given_values), 1.0)
        found.append(seen(bank))

    assert [0.5, 1.5, 3.0] == found[0].maximum[[0, 2, 5]].tolist()
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_full_counters_carry_over(kernels: SparseKernels) -> None:
    """Hits beyond what 16 bits hold are counted exactly, over windows too."""
    bank = make_bank(kernels)
    rows = np.zeros((ROUND + 3, WIDTH), np.float32)
    rows[:, 1], rows[:, 4] = 1.0, -1.0
    everything = sample(rows)

    bank.update(everything, 1.0)
    bank.close_window(2.0)
    bank.update(everything, 3.0)

    found = seen(bank)
    assert 2 * (ROUND + 3) == found.nonzero[1] == found.hits[1].max()
    assert 2 * (ROUND + 3) == found.invalid[4]
    assert 0 == found.zeros[1] == found.count[4]
    assert (1.0, 0.0) == (found.mean[1], found.variance[1])


def test_full_sums_carry_over(kernels: SparseKernels) -> None:
    """Squares of the greatest values pass 62 bits at every second hit, and stay exact."""
    most = float(np.nextafter(np.float32(LIMIT), np.float32(0)))
    rows = np.full((9, WIDTH), most, np.float32)
    bank = make_bank(kernels)

    bank.update(sample(rows), 1.0)
    bank.close_window(2.0)
    bank.update(sample(rows), 3.0)

    found = seen(bank)
    exact = 18 * round(most * most * 2.0**28)
    assert found.squares[0, 0] > 0
    assert exact == int(found.squares[0, 0]) * 2**62 + int(found.squares[0, 1])
    assert same(found, seen(bank, Period.BASELINE))


def test_a_sum_that_is_full_is_carried_when_windows_are_folded(kernels: SparseKernels) -> None:
    """Folding two records whose sums are just below the limit keeps their exact total."""
    records, added = Records.empty(3), Records.empty(1)
    near = (1 << LIMB_BITS) - 1
    records.words[2, :2] = near
    added.words[0, :2] = near

    codes, amounts = kernels.fold(records.words, np.array([2]), added.words)

    assert {2 * SLOTS + SUM_SLOT, 2 * SLOTS + SUM_SLOT + 1} == set(codes.tolist())
    assert [1, 1] == amounts.tolist()
    assert [near - 1, near - 1] == records.words[2, :2].tolist()


def test_records_lie_on_cache_lines() -> None:
    """Each latent's record begins a line, so that a hit costs one miss."""
    assert 0 == Records.empty(5).words.ctypes.data % 64


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, levels=st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_quantiles_keep_their_guarantee(rows: np.ndarray, levels: list[float]) -> None:
    """Within a third of the value inside the octaves; zeros and the greatest value exactly."""
    bank = make_bank()
    bank.update(sample(rows), 1.0)

    found = seen(bank).quantile(np.array(levels))

    for latent in range(WIDTH):
        valid = [float(x) for x in rows[:, latent] if 0 <= x < LIMIT]
        for level, value in zip(levels, found[latent], strict=True):
            exact = quantile(valid, level) if valid else np.nan
            if not valid or exact == 0 or level > 1 - 1 / len(valid):
                np.testing.assert_array_equal(exact, value)
            elif exact < 2.0**11:
                assert abs(value - exact) <= max(exact / 3, 2.0**-9) * (1 + 1e-6)
            else:
                assert 2.0**11 <= value <= max(valid)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, level=st.floats(0, 1))
def test_a_threshold_is_exceeded_as_rarely_as_it_says(rows: np.ndarray, level: float) -> None:
    """At most ``1 - level`` of the values are above it, and ``exceedance`` says just how many."""
    bank = make_bank()
    bank.update(sample(rows), 1.0)
    found = seen(bank)

    threshold = found.threshold(level)

    share = found.exceedance(threshold)
    for latent in range(WIDTH):
        valid = [float(x) for x in rows[:, latent] if 0 <= x < LIMIT]
        if not valid:
            assert np.isnan(threshold[latent])
            continue
        above = sum(x > threshold[latent] for x in valid)
        assert above <= len(valid) - max(np.ceil(level * len(valid)), 1)
        assert share[latent] * len(valid) >= above - 1e-6


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, level=st.floats(0, 1))
def test_as_few_are_below_a_floor_as_it_says(rows: np.ndarray, level: float) -> None:
    """At most ``level`` of the values, and none where zeros alone are as many."""
    bank = make_bank()
    bank.update(sample(rows), 1.0)

    floor = seen(bank).floor(level)

    for latent in range(WIDTH):
        valid = [float(x) for x in rows[:, latent] if 0 <= x < LIMIT]
        if not valid:
            assert np.isnan(floor[latent])
            continue
        below = sum(x < floor[latent] for x in valid)
        assert below <= level * len(valid) or floor[latent] == max(valid)
        if valid.count(0.0) >= max(np.ceil(level * len(valid)), 1):
            assert 0.0 == floor[latent]


def test_the_mean_and_variance_are_close_to_exact() -> None:
    """Rounding to whole units costs less than the docstring says."""
    rows = np.random.default_rng(0).lognormal(0, 1, (500, WIDTH)).astype(np.float32)
    rows[np.random.default_rng(1).random(rows.shape) < 0.9] = 0
    bank = make_bank()
    bank.update(sample(rows), 1.0)

    found = seen(bank)

    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), atol=2.0**-21)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-4)


def test_edges_and_counts_describe_a_histogram() -> None:
    """Every value lies in the bin that counts it, zeros in the first."""
    values = [0.001, 0.01, 1.0, 3000.0, 100_000.0]
    bank = make_bank()
    for value in values:
        bank.update(entries((2, value)), 1.0)
    bank.update(entries(), 1.0)

    found = seen(bank)
    edges, counts = found.edges(2), found.counts[2]

    assert len(counts) + 1 == len(edges)
    assert np.histogram([0.0, *values], edges)[0].tolist() == counts.tolist()


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    thresholds=st.lists(st.sampled_from([0.0, 0.5, 100.0]), min_size=WIDTH, max_size=WIDTH),
    data=st.data(),
)
def test_requests_above_a_threshold_are_counted_once(
    rows: np.ndarray, thresholds: list[float], data: st.DataObject
) -> None:
    """A request exceeds when one of its rows does, as for rows with every zero written out."""
    steps = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    requests = np.cumsum(steps).tolist()
    watched = np.array([4, 0, 3, 1, 5, 2])
    bank = make_bank()
    bank.watch(LAYER, Watched.above(watched, np.array(thresholds, np.float32)))

    bank.update(sample(rows, requests), 1.0)

    counts = bank.close_window(2.0)[LAYER]
    expected = [
        request_exceedances(rows[:, latent].tolist(), requests, threshold)
        for latent, threshold in zip(watched, thresholds, strict=True)
    ]
    assert expected == counts.exceedances.tolist()
    assert len(set(requests)) == counts.requests
    finite = np.where(np.isfinite(rows), rows, np.nan)[:, watched]
    np.testing.assert_array_equal(np.fmax.reduce(finite, axis=0), counts.maximum)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, data=st.data())
def test_low_thresholds_slices_and_levels_are_counted_as_of_dense_rows(
    rows: np.ndarray, data: st.DataObject
) -> None:
    """What a dense bank says of the same rows with every zero written out."""
    steps = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    slices = [Slice(), Slice.of({"route": "a"}), Slice.of({"route": "a", "lang": "en"})]
    traffic = data.draw(st.lists(st.sampled_from(slices), min_size=13, max_size=13))
    wanted = data.draw(st.lists(st.sampled_from(slices[:2]), min_size=4, max_size=4))
    limit = st.sampled_from([0.0, 0.5, 100.0, np.inf, np.nan])
    high, low, level = (data.draw(hnp.arrays(np.float32, 4, elements=limit)) for _ in range(3))
    watched = Watched(np.array([4, 0, 3, 4]), high, low, tuple(wanted), level[:, None])
    sparse, dense = (
        make_bank(),
        Bank(Binning(), warmup_rows=1, history_seconds=1.0, layer_limit=1, feature_limit=WIDTH),
    )
    dense.register(LAYER, WIDTH)
    requests = tuple(Request(traffic=one) for one in traffic)
    index = np.cumsum(steps).astype(np.int32)

    for bank in (sparse, dense):
        bank.watch(LAYER, watched)
    sparse.update(replace(sample(rows, index.tolist()), requests=requests), 1.0)
    dense.update(LayerSample(LAYER, rows, index, requests), 1.0)

    found, expected = (bank.close(LAYER, 2.0) for bank in (sparse, dense))
    for name in ("exceedances", "watched_requests", "maximum", "level_exceedances"):
        np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), name)
    assert (None, 0) == (found.screened, found.screened_requests)


def test_a_negative_threshold_is_refused() -> None:
    """Every row of a latent is above it, listed or not, so it can only be a mistake."""
    with pytest.raises(InvalidInput, match="at least 0"):
        make_bank().watch(LAYER, Watched.above(np.array([1]), np.array([-0.5], np.float32)))


def test_a_window_counts_the_values_no_latent_may_have() -> None:
    """NaN, infinities and negative values are counted with the window they came in."""
    bank = make_bank()
    bank.update(entries((0, np.nan), (1, -np.inf), (2, -2.0), (3, 1.0), (4, 0.0)), 1.0)

    assert 3 == bank.close_window(2.0)[LAYER].nonfinite
    assert 0 == bank.close_window(3.0)[LAYER].nonfinite


def test_periods_cover_what_they_say(kernels: SparseKernels) -> None:
    """Current is the open and the last window, the baseline ends when frozen, history forgets."""
    bank = make_bank(kernels)
    for number in range(4):
        bank.update(entries((number, 1.0)), float(number))
        if number == 2:
            bank.freeze(LAYER)
        bank.close_window(number + 0.5)
    bank.update(entries((5, 1.0)), 4.0)

    hit = {period: np.flatnonzero(seen(bank, period).nonzero).tolist() for period in Period}

    assert {"current": [3, 5], "baseline": [0, 1, 2], "history": [0, 1, 2, 3]} == hit
    assert (3, 3) == (seen(bank, Period.BASELINE).rows, seen(bank, Period.BASELINE).requests)
    assert bank.frozen(LAYER)
    for at in (150.0, 250.0):
        bank.close_window(at)
    assert [5] == np.flatnonzero(seen(bank, Period.HISTORY).nonzero).tolist()
    bank.close_window(500.0)
    assert 0 == seen(bank, Period.HISTORY).rows


def test_latents_that_stopped_firing_show(kernels: SparseKernels) -> None:
    """A latent is idle for the rows since the window of its last hit; in the open one, for none."""
    bank = make_bank(kernels)
    bank.update(sample(np.eye(3, WIDTH)), 1.0)
    bank.close_window(2.0)
    bank.update(entries((0, 1.0)), 3.0)
    bank.close_window(4.0)
    bank.update(entries((1, 1.0)), 5.0)

    assert [1, 0, 2, 5] == bank.idle_rows(LAYER, np.array([0, 1, 2, 5])).tolist()
    assert [1, 0, 2, 5, 5, 5] == bank.idle_rows(LAYER).tolist()


def test_a_reset_layer_starts_over() -> None:
    """Nothing is left of what was seen, and its baseline is learned anew."""
    bank = make_bank()
    bank.update(entries((1, 1.0)), 1.0)
    bank.freeze(LAYER)

    bank.reset(LAYER)

    assert not bank.frozen(LAYER)
    assert 0 == seen(bank, Period.BASELINE).rows
    assert [0] * WIDTH == bank.idle_rows(LAYER).tolist()


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(ROWS, min_size=1, max_size=4), frozen=st.booleans())
def test_an_encoded_bank_comes_back_and_goes_on(batches: list[np.ndarray], frozen: bool) -> None:
    """A restored bank says the same of every period, and counts on as if never stopped."""
    bank = make_bank()
    bank.watch(LAYER, Watched.above(np.array([2]), np.array([0.5], np.float32)))
    for number, rows in enumerate(batches):
        bank.update(sample(rows), 1.0 + number)
        if number % 2 == 0:
            bank.close_window(1.5 + number)
    if frozen:
        bank.freeze(LAYER)

    restored = SparseBank.decode(bank.encode(), **BOUNDS)

    for one in (bank, restored):
        one.update(sample(batches[0]), 60.0)
    for period in Period:
        assert same(seen(bank, period), seen(restored, period))
    assert bank.idle_rows(LAYER).tolist() == restored.idle_rows(LAYER).tolist()
    first, second = (one.close_window(61.0)[LAYER] for one in (bank, restored))
    assert first.exceedances.tolist() == second.exceedances.tolist()
    assert bank.encode() == restored.encode()


ENCODED = make_bank()
ENCODED.update(sample(np.eye(3, WIDTH)), 1.0)
ENCODED.close_window(2.0)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("0.baseline.latents", np.array([0, 1, 9], np.uint32)),
        ("0.baseline.latents", np.array([0, 0, 1], np.uint32)),
        ("0.baseline.latents", np.array([0, 1], np.uint32)),
        ("0.baseline.words", np.zeros((3, 8), np.int64)),
        ("0.baseline.words", np.full((3, 8), -1, np.int64)),
        ("0.baseline.words", np.zeros((3, 7), np.int64)),
        ("0.baseline.words", np.zeros((3, 8), np.float64)),
        ("0.baseline.codes", np.array([7], np.int64)),
        ("0.hit_at", np.zeros(2, np.int64)),
        ("0.hit_at", np.full(WIDTH, 4, np.int64)),
        ("0.hit_at", np.full(WIDTH, -1, np.int64)),
    ],
)
def test_content_that_no_bank_wrote_is_corrupt(name: str, wrong: np.ndarray) -> None:
    """Behind a right checksum too, what does not fit together never becomes a bank."""
    header, arrays = unpack(b"spba", ENCODED.encode())
    assert name in arrays

    with pytest.raises(CorruptState):
        SparseBank.decode(pack(b"spba", header, {**arrays, name: wrong}), **BOUNDS)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("width", 0),
        ("width", 2),
        ("width", "wide"),
        ("rows", 0),
        ("carried", 1.0),
        ("carried", float("nan")),
        ("stores", {"baseline": {}}),
        ("stores", []),
        ("key", {}),
    ],
)
def test_a_header_that_no_bank_wrote_is_corrupt(name: str, wrong: object) -> None:
    """Numbers that contradict the arrays, or are none, are refused too."""
    header, arrays = unpack(b"spba", ENCODED.encode())
    layer = {**header["layers"][0], name: wrong}
    assert name in header["layers"][0]

    with pytest.raises(CorruptState):
        SparseBank.decode(pack(b"spba", {**header, "layers": [layer]}, arrays), **BOUNDS)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.booleans())
def test_changed_or_cut_bytes_are_corrupt(at: int, flip: int, cut: bool) -> None:
    """No changed byte and no cut goes unnoticed, in a bank's bytes or a distribution's."""
    for payload, decode in (
        (ENCODED.encode(), lambda data: SparseBank.decode(data, **BOUNDS)),
        (seen(ENCODED).encode(), SparseDistribution.decode),
    ):
        place = at % len(payload)
        changed = bytearray(payload)
        changed[place] ^= flip
        with pytest.raises(CorruptState):
            decode(payload[:place] if cut else bytes(changed))


def test_other_octaves_are_corrupt() -> None:
    """A configuration with another exponent cannot go on with what was counted."""
    with pytest.raises(CorruptState, match="start anew"):
        SparseBank.decode(ENCODED.encode(), exponent=-4, **BOUNDS)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_a_distribution_comes_back_from_its_bytes(rows: np.ndarray) -> None:
    """Every number and dtype survives."""
    bank = make_bank()
    bank.update(sample(rows), 1.0)

    assert same(seen(bank), SparseDistribution.decode(seen(bank).encode()))


def test_snapshots_are_immutable_copies() -> None:
    """What is counted later does not show in them, and nobody can write to them."""
    bank = make_bank()
    bank.update(entries((1, 1.0)), 1.0)
    before = seen(bank)

    bank.update(entries((1, 1.0)), 2.0)

    assert 1 == before.nonzero[1]
    with pytest.raises(ValueError, match="read-only"):
        before.hits[0, 0] = 1


def test_some_latents_cost_only_themselves() -> None:
    """A snapshot of chosen latents, in any order and repeated, is that selection of all."""
    bank = make_bank()
    rows = np.zeros((ROUND + 1, WIDTH), np.float32)
    rows[:, 3] = 1.0
    bank.update(sample(rows), 1.0)
    bank.close_window(2.0)

    chosen = np.array([3, 0, 3])

    assert same(seen(bank).select(chosen), seen(bank, Period.CURRENT, *chosen))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"row_splits": np.array([0, 1])}, MalformedMessage),
        ({"row_splits": np.array([1, 2])}, MalformedMessage),
        ({"row_splits": np.array([0, 1, 2])}, ShapeMismatch),
        ({"row_splits": np.array([2, 0], np.uint32)}, MalformedMessage),
        ({"latents": np.array([1, 6], np.uint32)}, ShapeMismatch),
        ({"latents": np.array([1, 2**32 - 1], np.uint32)}, ShapeMismatch),
        ({"latents": np.array([1, 1], np.uint32)}, MalformedMessage),
        ({"latents": np.array([2, 1], np.uint32)}, MalformedMessage),
        ({"latents": np.array([1, 2], np.int64)}, UnsupportedDtype),
        ({"latents": np.array([1], np.uint32)}, ShapeMismatch),
        ({"values": np.array([1.0, 1.0])}, UnsupportedDtype),
        ({"values": np.array([1.0], np.float32)}, ShapeMismatch),
        ({"request_index": np.zeros(2, np.int32)}, ShapeMismatch),
    ],
)
def test_samples_that_lie_are_refused(changed: Any, error: type[Exception]) -> None:
    """Overlapping rows, latents out of range, out of order or twice, and wrong shapes and dtypes."""
    with pytest.raises(error):
        entries((1, 1.0), (2, 1.0), **changed)


def test_decreasing_splits_are_refused() -> None:
    """Rows may be empty, but none ends before it begins."""
    good = sample([[0] * WIDTH, [1] + [0] * (WIDTH - 1), [0] * WIDTH])
    assert [0, 0, 1, 1] == good.row_splits.tolist()

    with pytest.raises(MalformedMessage, match="row_splits"):
        entries((1, 1.0), row_splits=np.array([0, 2, 1]), request_index=np.zeros(2, np.int32))


def test_registration_is_bounded_and_repeatable() -> None:
    """The same again is fine; another width, no width, too many layers or latents are not."""
    bank = make_bank()
    bank.register(LAYER, WIDTH)
    other = LayerKey("m", "r", "other", FeatureKind.LATENT)

    with pytest.raises(LayerConflict):
        bank.register(LAYER, WIDTH + 1)
    with pytest.raises(ShapeMismatch):
        bank.register(other, 0)
    with pytest.raises(LimitReached, match="latent_limit"):
        bank.register(other, 15)
    bank.register(other, 14)
    with pytest.raises(LimitReached, match="layers"):
        bank.register(LayerKey("m", "r", "third", FeatureKind.LATENT), 1)
    assert ((LAYER, other), 14) == (bank.layers(), bank.width(other))


def test_what_was_never_registered_is_unknown() -> None:
    """Updates and questions about other layers, widths and latents say so."""
    bank = make_bank()
    stranger = LayerKey("m", "r", "other", FeatureKind.LATENT)
    questions: list[Callable[[], object]] = [
        lambda: bank.width(stranger),
        lambda: bank.snapshot(stranger, Period.CURRENT),
        lambda: bank.watch(stranger, Watched.above(np.array([0]), np.array([0.0], np.float32))),
        lambda: bank.reset(stranger),
        lambda: bank.freeze(stranger),
        lambda: bank.idle_rows(stranger),
    ]

    for ask in questions:
        with pytest.raises(UnknownLayer):
            ask()
    with pytest.raises(UnknownFeature):
        seen(bank, Period.CURRENT, WIDTH)
    with pytest.raises(UnknownFeature):
        bank.idle_rows(LAYER, np.array([-1]))
    with pytest.raises(ShapeMismatch):
        bank.update(entries((1, 1.0), width=WIDTH + 1), 1.0)
    with pytest.raises(UnregisteredLayer):
        SparseBank(**BOUNDS).update(entries((1, 1.0)), 1.0)
    with pytest.raises(BaselineNotReady):
        bank.freeze(LAYER)


def test_the_stated_bytes_hold() -> None:
    """What a layer holds after its busiest window is within the bytes said of a latent."""
    bank = make_bank()
    rows = np.ones((2, WIDTH), np.float32)
    for at in (1.0, 150.0, 250.0):
        bank.update(sample(rows), at)
        bank.close_window(at + 1)
    bank.update(sample(rows), 300.0)

    used = bank.layer_bytes(LAYER)

    assert 4 * 64 * WIDTH < used <= SparseBank.LATENT_BYTES * WIDTH


def test_octaves_beyond_float32_are_refused() -> None:
    """An exponent that no activation has is a mistake in the configuration."""
    with pytest.raises(InvalidInput, match="exponent"):
        SparseBank(exponent=200, **BOUNDS)


def test_distributions_on_other_octaves_do_not_merge() -> None:
    """Counts mean something else there."""
    other = make_bank(exponent=0)
    other.update(entries((1, 1.0)), 1.0)

    with pytest.raises(ShapeMismatch, match="do not merge"):
        seen(other).merge(seen(make_bank()))


def test_hits_are_a_copy_of_their_records() -> None:
    """A closed window does not change when the open one does."""
    records = Records.empty(2)
    one = np.array([1], np.uint32), np.array([1.0], np.float32), np.empty(0, np.int64)
    NUMPY.count(records.words, *one, Octaves())
    window = Hits.of(records, records.used())

    records.words[:] = 0

    assert [1] == window.latents.tolist()
    assert window.words.any()
