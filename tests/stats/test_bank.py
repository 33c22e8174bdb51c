import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import (
    BaselineNotReady,
    LayerConflict,
    LimitReached,
    ShapeMismatch,
    UnknownLayer,
    UnregisteredLayer,
    UnsupportedDtype,
)
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request, Scope, View
from sidecar.stats import Bank, Binning, Distribution, Period, Watched
from tests import reference

pytestmark = pytest.mark.unit

MakeBank = Callable[..., Bank]
MakeSample = Callable[..., LayerSample]

SETTINGS = {"warmup_rows": 4, "history_seconds": 100.0, "layer_limit": 4, "feature_limit": 64}
LAYER = LayerKey("m", "r", "layer", FeatureKind.NEURON, View.RAW, Scope.PROMPT)


def rows_of(*values: float) -> list[list[float]]:
    """Return one-feature rows."""
    return [[value] for value in values]


def same(a: Distribution, b: Distribution) -> bool:
    """Whether two distributions are equal in every array and number."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name in ("minimum", "maximum"))
        if isinstance(getattr(a, name), np.ndarray)
        else getattr(a, name) == getattr(b, name)
        for name in a.__slots__
    )


# -- layers --------------------------------------------------------------------------------------


def test_registering_again_changes_nothing(make_bank: MakeBank, layer: LayerKey) -> None:
    """A layer may be announced by every stream that sends it."""
    bank = make_bank()

    bank.register(layer, 3)
    bank.register(layer, 3)

    assert (layer,) == bank.layers()
    assert 3 == bank.width(layer)


def test_another_width_is_a_conflict(make_bank: MakeBank, layer: LayerKey) -> None:
    """One layer cannot have two widths."""
    bank = make_bank()
    bank.register(layer, 3)

    with pytest.raises(LayerConflict, match="3 features"):
        bank.register(layer, 4)


def test_limits_bound_what_is_kept(make_bank: MakeBank) -> None:
    """Neither layers nor features grow beyond their limits, and the bank goes on."""
    bank = make_bank(layer_limit=2, feature_limit=10)
    bank.register(LayerKey("m", "r", "a"), 6)

    with pytest.raises(LimitReached, match="features"):
        bank.register(LayerKey("m", "r", "b"), 5)
    bank.register(LayerKey("m", "r", "b"), 4)
    with pytest.raises(LimitReached, match="layers"):
        bank.register(LayerKey("m", "r", "c"), 1)

    assert 2 == len(bank.layers())


def test_a_layer_without_features_is_refused(make_bank: MakeBank, layer: LayerKey) -> None:
    """A width below one is an error."""
    with pytest.raises(ShapeMismatch):
        make_bank().register(layer, 0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda bank, layer: bank.width(layer),
        lambda bank, layer: bank.snapshot(layer, Period.CURRENT),
        lambda bank, layer: bank.freeze(layer),
        lambda bank, layer: bank.reset(layer),
        lambda bank, layer: bank.frozen(layer),
        lambda bank, layer: bank.baseline_rate(layer, 0.999),
        lambda bank, layer: bank.watch(
            layer, Watched.above(np.empty(0, np.int64), np.empty(0, np.float32))
        ),
    ],
)
def test_a_layer_nobody_registered_is_unknown(
    make_bank: MakeBank, layer: LayerKey, ask: Callable[[Bank, LayerKey], object]
) -> None:
    """Every question about an unknown layer says so."""
    with pytest.raises(UnknownLayer, match="never registered"):
        ask(make_bank(), layer)


def test_samples_that_do_not_fit_are_refused_and_change_nothing(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Unregistered layer, wrong width and wrong dtype are errors; nothing of them is counted."""
    bank = make_bank()
    with pytest.raises(UnregisteredLayer):
        bank.update(make_sample([[1.0]]), 1.0)
    bank.register(layer, 1)
    double = LayerSample(layer, np.ones((1, 1), np.float64), np.zeros(1, np.int32), ())  # type: ignore[arg-type]

    with pytest.raises(ShapeMismatch, match="need 1"):
        bank.update(make_sample([[1.0, 2.0]]), 1.0)
    with pytest.raises(UnsupportedDtype, match="float64"):
        bank.update(double, 1.0)

    assert 0 == bank.snapshot(layer, Period.CURRENT).rows


def test_a_sample_without_rows_changes_nothing(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """An empty batch is legal and invisible."""
    bank = make_bank()
    bank.register(layer, 2)

    bank.update(make_sample(np.empty((0, 2))), 1.0)

    seen = bank.snapshot(layer, Period.CURRENT)
    assert (0, 0.0) == (seen.rows, seen.ended)


# -- counting ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rows=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(width=32)
    ),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_batches_and_warm_up_do_not_change_the_result(rows: np.ndarray, cuts: list[int]) -> None:
    """However rows arrive, the distribution is that of one batch, during warm-up too."""
    whole, split = Bank(Binning(), **SETTINGS), Bank(Binning(), **SETTINGS)
    for bank in (whole, split):
        bank.register(LAYER, 2)
    index = np.arange(len(rows), dtype=np.int32)

    whole.update(LayerSample(LAYER, rows, index, ()), 1.0)
    for part in np.split(np.arange(len(rows)), sorted(cuts)):
        split.update(LayerSample(LAYER, rows[part], index[part], ()), 1.0)

    a, b = (bank.snapshot(LAYER, Period.CURRENT) for bank in (whole, split))
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.minimum, b.minimum)
    assert (a.rows, a.requests) == (b.rows, b.requests)
    np.testing.assert_array_equal(a.squares, b.squares)


def test_a_wide_tall_batch_is_counted_like_its_naive_twin(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Tiles meet without gap or overlap: a batch of many tiles gives every feature its own counts."""
    rows = np.random.default_rng(0).normal(size=(600, 1200)).astype(np.float32)
    rows[5, 700] = np.nan
    bank = make_bank(feature_limit=2000)
    bank.register(layer, 1200)

    bank.update(make_sample(rows), 1.0)

    seen = bank.snapshot(layer, Period.CURRENT)
    assert np.array_equal(seen.counts.sum(axis=1), np.isfinite(rows).sum(axis=0))
    for j in (0, 511, 512, 700, 1199):
        expected = np.zeros(seen.binning.bins, int)
        for x in rows[np.isfinite(rows[:, j]), j]:
            expected[reference.bin_of(x, seen.centre[j], int(seen.exponent[j]), 4, 16)] += 1
        assert expected.tolist() == seen.counts[j].tolist()
        assert reference.moments(rows[:, j].tolist())[1] == pytest.approx(seen.mean[j], abs=1e-4)


def test_nonfinite_values_touch_only_their_own_counters(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """A layer that overflows keeps the statistics of its finite values."""
    clean, dirty = make_bank(), make_bank()
    for bank in (clean, dirty):
        bank.register(layer, 1)
        bank.update(make_sample(rows_of(1, 2, 3, 4)), 1.0)

    clean.update(make_sample(rows_of(5)), 1.0)
    dirty.update(make_sample(rows_of(math.nan, math.inf, 5, -math.inf)), 1.0)

    a, b = (bank.snapshot(layer, Period.CURRENT) for bank in (clean, dirty))
    assert (a.mean, a.variance, a.maximum) == (b.mean, b.variance, b.maximum)
    assert a.counts.tolist() == b.counts.tolist()
    assert ([1], [2]) == (b.nans.tolist(), b.infinities.tolist())
    assert 3 == dirty.close_window(2.0)[layer].nonfinite


def test_narrow_counters_widen_before_they_overflow(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """70,000 equal values are 70,000 in their bin."""
    bank = make_bank()
    bank.register(layer, 1)

    for _ in range(7):
        bank.update(make_sample(np.ones((10_000, 1)), requests=[0] * 10_000), 1.0)

    assert 70_000 == bank.snapshot(layer, Period.CURRENT).counts.max()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e38, -3e38, 1e-42, 5.0])
def test_constant_features_are_exact(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey, value: float
) -> None:
    """A feature that never varies has no variance and only one quantile."""
    bank = make_bank()
    bank.register(layer, 1)

    bank.update(make_sample(rows_of(*[value] * 50)), 1.0)

    seen = bank.snapshot(layer, Period.CURRENT)
    wanted = float(np.float32(value))
    assert [[wanted] * 3] == seen.quantile(np.array([0.0, 0.5, 0.999])).tolist()
    assert ([wanted], [0.0]) == (seen.mean.tolist(), seen.variance.tolist())
    assert [wanted] == seen.threshold(0.999).tolist()


# -- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_rows", [1, 8, 1000])
def test_periods_hold_what_their_names_say(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey, warmup_rows: int
) -> None:
    """Current is the open and the last window; history the closed ones; warm-up changes nothing."""
    bank = make_bank(warmup_rows=warmup_rows)
    bank.register(layer, 1)

    for window in range(3):
        bank.update(make_sample(rows_of(*range(4))), window * 10.0 + 1)
        bank.close_window(window * 10.0 + 10)
    bank.update(make_sample(rows_of(7, 8)), 31.0)

    current = bank.snapshot(layer, Period.CURRENT)
    history = bank.snapshot(layer, Period.HISTORY)
    baseline = bank.snapshot(layer, Period.BASELINE)
    assert (6, 21.0, 31.0) == (current.rows, current.started, current.ended)
    assert (12, 1.0, 21.0) == (history.rows, history.started, history.ended)
    assert (14, 8.0) == (baseline.rows, baseline.maximum[0])


@settings(max_examples=40, deadline=None)
@given(
    windows=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=8),
    warmup_rows=st.sampled_from([1, 5, 1000]),
)
def test_closing_windows_conserves_counts(windows: list[list[int]], warmup_rows: int) -> None:
    """Every row and request is in exactly one window, and in the history once it is closed."""
    bank = Bank(Binning(), **{**SETTINGS, "warmup_rows": warmup_rows})
    bank.register(LAYER, 1)
    closed = []

    for at, batches in enumerate(windows):
        for size in batches:
            values = np.full((2 * size, 1), at, np.float32)
            index = np.repeat(np.arange(size), 2).astype(np.int32)
            bank.update(LayerSample(LAYER, values, index, ()), float(at))
        closed.append(bank.close_window(float(at) + 0.5)[LAYER])

    assert [sum(batches) for batches in windows] == [counts.requests for counts in closed]
    assert [2 * sum(batches) for batches in windows] == [counts.rows for counts in closed]
    for period in (Period.HISTORY, Period.BASELINE):
        seen = bank.snapshot(LAYER, period)
        assert sum(counts.rows for counts in closed) == seen.rows == seen.counts.sum()
        assert sum(counts.requests for counts in closed) == seen.requests
    assert closed[-1].rows == bank.snapshot(LAYER, Period.CURRENT).rows


def history_rows(bank: Bank, layer: LayerKey) -> int:
    """Return how many rows the history holds."""
    return bank.snapshot(layer, Period.HISTORY).rows


@pytest.mark.parametrize("warmup_rows", [1, 1000])
def test_history_covers_between_one_and_two_lengths(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey, warmup_rows: int
) -> None:
    """With one row every 10 s and a length of 100 s, history holds 10 to 20 rows for ever."""
    bank = make_bank(warmup_rows=warmup_rows)
    bank.register(layer, 1)
    held = []

    for at in range(0, 1000, 10):
        bank.update(make_sample(rows_of(1)), float(at))
        bank.close_window(at + 5.0)
        held.append(history_rows(bank, layer))

    assert (11, 20) == (min(held[20:]), max(held[20:]))


def test_history_forgets_over_a_long_silence(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """What is older than two lengths is gone however few windows were closed since."""
    bank = make_bank(warmup_rows=1)
    bank.register(layer, 1)
    bank.update(make_sample(rows_of(1)), 0.0)
    bank.close_window(5.0)

    bank.close_window(106.0)
    after_one = history_rows(bank, layer)
    bank.close_window(210.0)
    after_two = history_rows(bank, layer)
    bank.update(make_sample(rows_of(1)), 215.0)
    bank.close_window(220.0)
    bank.close_window(420.0)

    assert (1, 0, 0) == (after_one, after_two, history_rows(bank, layer))


def test_history_goes_on_after_the_clock_was_put_back(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """A clock that was ahead for a while does not keep history from turning over for years."""
    bank = make_bank(warmup_rows=1)
    bank.register(layer, 1)
    bank.close_window(1e12)

    for at in range(0, 1000, 10):
        bank.update(make_sample(rows_of(1)), float(at))
        bank.close_window(at + 5.0)

    assert 20 >= history_rows(bank, layer)


def test_a_snapshot_never_changes(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Readers keep what they were given, and cannot write into it."""
    bank = make_bank()
    bank.register(layer, 1)
    bank.update(make_sample(rows_of(1, 2, 3, 4)), 1.0)
    seen = bank.snapshot(layer, Period.CURRENT)
    before = seen.counts.copy()

    bank.update(make_sample(rows_of(1, 2, 3, 4)), 2.0)

    assert before.tolist() == seen.counts.tolist()
    with pytest.raises(ValueError, match="read-only"):
        seen.counts[0, 0] = 1


def test_a_quiet_layer_in_warm_up_stays_small(make_bank: MakeBank, layer: LayerKey) -> None:
    """A thousand empty windows before the first row cost no more than two."""
    bank, other = make_bank(), make_bank()
    for one in (bank, other):
        one.register(layer, 1)

    for at in range(1000):
        bank.close_window(float(at))
    for at in range(2):
        other.close_window(float(at))

    assert len(bank.encode()) <= len(other.encode()) + 8


# -- baseline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_rows", [1, 1000])
def test_a_frozen_baseline_no_longer_learns(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey, warmup_rows: int
) -> None:
    """Freezing takes what was seen up to now, and nothing after."""
    bank = make_bank(warmup_rows=warmup_rows)
    bank.register(layer, 1)
    bank.update(make_sample(rows_of(1, 2)), 1.0)
    bank.close_window(2.0)
    bank.update(make_sample(rows_of(3)), 3.0)

    bank.freeze(layer)
    frozen = bank.snapshot(layer, Period.BASELINE)
    bank.update(make_sample(rows_of(9)), 4.0)
    bank.close_window(5.0)
    bank.freeze(layer)

    assert bank.frozen(layer)
    assert (3, 3.0) == (frozen.rows, frozen.maximum[0])
    assert same(frozen, bank.snapshot(layer, Period.BASELINE))
    assert 4 == history_rows(bank, layer)


def test_nothing_seen_cannot_be_frozen(make_bank: MakeBank, layer: LayerKey) -> None:
    """A baseline of no samples is refused, and the layer stays as it was."""
    bank = make_bank()
    bank.register(layer, 1)
    bank.close_window(1.0)

    with pytest.raises(BaselineNotReady, match="traffic"):
        bank.freeze(layer)

    assert not bank.frozen(layer)


def test_reset_starts_a_layer_over_on_new_bins(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """After a reset the layer learns again, fits its bins to what comes, and watches nothing."""
    bank = make_bank()
    bank.register(layer, 1)
    bank.update(make_sample(np.zeros((10, 1))), 1.0)
    bank.freeze(layer)
    bank.watch(layer, Watched.above(np.array([0]), np.array([1.0], np.float32)))

    bank.reset(layer)
    bank.update(make_sample(1000 + np.random.default_rng(0).normal(size=(100, 1))), 2.0)

    seen = bank.snapshot(layer, Period.CURRENT)
    assert not bank.frozen(layer)
    assert 100 == seen.rows
    assert abs(float(seen.centre[0]) - 1000) < 2
    assert 0 == len(bank.close_window(3.0)[layer].indices)


@pytest.mark.parametrize(
    ("rows", "requests", "expected"), [(4, 4, 0.1), (8, 4, 0.19), (6, 4, 0.146185)]
)
def test_the_baseline_rate_is_that_of_independent_rows(
    make_bank: MakeBank,
    make_sample: MakeSample,
    layer: LayerKey,
    rows: int,
    requests: int,
    expected: float,
) -> None:
    """One row a request gives one minus the level; more rows a request give more."""
    bank = make_bank()
    bank.register(layer, 1)
    index = sorted(i % requests for i in range(rows))

    bank.update(make_sample(np.ones((rows, 1)), requests=index), 1.0)

    assert expected == pytest.approx(bank.baseline_rate(layer, 0.9), abs=1e-6)


def test_there_is_no_baseline_rate_before_a_sample(make_bank: MakeBank, layer: LayerKey) -> None:
    """An unlearned rate is NaN, not zero."""
    bank = make_bank()
    bank.register(layer, 1)

    assert math.isnan(bank.baseline_rate(layer, 0.999))


def test_rows_of_a_request_that_is_not_there_are_refused(
    make_bank: MakeBank, layer: LayerKey
) -> None:
    """Where requests are described at all, every row belongs to one of them; nothing is counted."""
    bank = make_bank()
    bank.register(layer, 1)
    index = np.array([0, 2], np.int32)

    with pytest.raises(ShapeMismatch, match="point into 2 requests"):
        bank.update(
            LayerSample(layer, np.ones((2, 1), np.float32), index, (Request(), Request())), 1.0
        )

    assert 0 == bank.snapshot(layer, Period.CURRENT).rows
