"""Every feature against its threshold: what windows held, and what they were expected to hold."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import BaselineNotReady, InvalidInput
from sidecar.features import LayerKey, LayerSample
from sidecar.stats import Bank, Binning, Expectation, Period, WindowCounts, compiled
from tests import reference

pytestmark = pytest.mark.unit

MakeBank = Callable[..., Bank]
SETTINGS = {"warmup_rows": 8, "history_seconds": 1e3, "layer_limit": 4, "feature_limit": 1 << 14}
LAYER = LayerKey("m", "r", "layer")


def feed(bank: Bank, rows: np.ndarray, per_request: int = 1, at: float = 1.0) -> None:
    """Send rows of requests of equal length."""
    index = np.arange(len(rows), dtype=np.int32) // per_request
    bank.update(LayerSample(LAYER, rows.astype(np.float32), index, ()), at)


def close(bank: Bank, at: float = 2.0) -> WindowCounts:
    """End the layer's window."""
    return bank.close(LAYER, at)


def learning_bank(rows: np.ndarray, level: float = 0.9, **changed: float) -> Bank:
    """Return a bank whose thresholds were placed after a window of these rows."""
    bank = Bank(Binning(), **{**SETTINGS, **changed})
    bank.register(LAYER, rows.shape[1])
    feed(bank, rows)
    close(bank)
    bank.place_thresholds(LAYER, level)
    return bank


def expected(bank: Bank) -> Expectation:
    """Return the layer's expectation, which there is."""
    found = bank.expectation(LAYER)
    assert found is not None
    return found


@pytest.mark.parametrize("warmup_rows", [8, 10_000])
def test_thresholds_are_quantiles_of_what_was_learned(warmup_rows: int) -> None:
    """In warm-up too, of more features than are placed at a time, and they stay where they are."""
    rows = np.random.default_rng(0).normal(size=(200, 5000))

    bank = learning_bank(rows, 0.95, warmup_rows=warmup_rows)
    first = expected(bank).thresholds
    wanted = bank.snapshot(LAYER, Period.BASELINE).threshold(0.95)
    feed(bank, rows * 3)
    close(bank)

    assert np.float32 == first.dtype
    assert wanted.tolist() == first.tolist()
    assert (0.95, first.tolist()) == (expected(bank).level, expected(bank).thresholds.tolist())
    assert (rows.astype(np.float32) > first).mean(axis=0).max() <= 0.05


def test_a_window_says_of_every_feature_how_many_requests_passed() -> None:
    """From the moment the thresholds are there; an empty window has zeros, none before."""
    bank = Bank(Binning(), **SETTINGS)
    bank.register(LAYER, 2)
    feed(bank, np.array([[0.0, 0.0], [1.0, 4.0]] * 5))
    before = close(bank)
    feed(bank, np.array([[9.0, 9.0]] * 3))
    bank.place_thresholds(LAYER, 1.0)
    feed(bank, np.array([[10.0, 0.0], [0.0, 0.0], [8.0, 10.0], [0.0, 9.5]]), per_request=2)
    within, empty = close(bank), close(bank)

    assert (None, 0) == (before.screened, before.screened_requests)
    assert within.screened is not None
    assert ([1, 1], 2, 5) == (within.screened.tolist(), within.screened_requests, within.requests)
    assert empty.screened is not None
    assert ([0, 0], 0) == (empty.screened.tolist(), empty.screened_requests)


@settings(max_examples=40, deadline=None)
@given(
    windows=st.lists(
        hnp.arrays(
            np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(width=32)
        ),
        max_size=4,
    ),
    per_request=st.integers(1, 3),
    numba=st.booleans(),
)
def test_the_expectation_is_the_sum_of_the_windows(
    windows: list[np.ndarray], per_request: int, numba: bool
) -> None:
    """Windows without a request are left out; both kernels leave the same behind; as the twin says."""
    bank = learning_bank(np.random.default_rng(0).normal(size=(20, 2)), 0.5)
    if numba:
        bank.use(compiled())
    thresholds = expected(bank).thresholds
    counts = []

    for rows in windows:
        feed(bank, rows, per_request)
        close(bank)
        close(bank)  # empty
        owners = (np.arange(len(rows)) // per_request).tolist()
        counts.append(
            [
                *(
                    reference.request_exceedances(rows[:, j].tolist(), owners, thresholds[j])
                    for j in range(2)
                ),
                owners[-1] + 1,
            ]
        )

    found, table = expected(bank), np.array(counts, np.int64).reshape(-1, 3)
    requests = table[:, 2].sum()
    assert (len(windows), requests) == (found.windows, found.requests)
    assert table[:, :2].sum(axis=0).tolist() == found.exceedances.tolist()
    squares = [
        sum(y * y / r for y, r in zip(table[:, j], table[:, 2], strict=True)) for j in (0, 1)
    ]
    assert squares == found.squares.tolist()
    if windows:
        wanted = (table[:, :2].sum(axis=0) + 0.5) / (requests + 1)
        assert wanted.tolist() == found.rate.tolist()


def test_rate_and_dispersion_are_those_of_the_traffic() -> None:
    """Bursts that come and go by the window are seen as such; independent requests are not."""
    rng = np.random.default_rng(1)
    bank = learning_bank(rng.normal(size=(4000, 3)), 0.9)
    limit = float(expected(bank).thresholds.max())

    # 400 windows of 64: a steady tenth, a fifth in every other window, and nothing at all.
    for at in range(400):
        steady = rng.random(64) < 0.1
        bursting = rng.random(64) < (0.2 if at % 2 else 0.0)
        feed(bank, np.stack((steady, bursting, np.zeros(64)), axis=1) * (limit + 1))
        close(bank)

    found = expected(bank)
    assert [0.1, 0.1] == pytest.approx(found.rate[:2].tolist(), abs=0.01)
    assert 0.5 / (400 * 64 + 1) == found.rate[2]
    # Of the second: (0.1 * 64)**2 / (64 * 0.1 * 0.9) is 7.1, beside what chance adds to that.
    assert 1.0 <= found.dispersion[0] < 1.25
    assert 7.0 < found.dispersion[1] < 9.0
    assert 1.0 == found.dispersion[2]


def test_the_dispersion_is_pearson_s() -> None:
    """Of windows with differing numbers of requests, from the definition."""
    rng = np.random.default_rng(2)
    bank = learning_bank(rng.normal(size=(100, 1)), 1.0)
    above = float(expected(bank).thresholds[0]) + 1
    table = []

    for _ in range(30):
        requests = int(rng.integers(1, 40))
        passing = int(rng.binomial(requests, rng.random()))
        feed(bank, np.where(np.arange(requests) < passing, above, 0.0)[:, None])
        close(bank)
        table.append((passing, requests))

    y, r = np.array(table, float).T
    p = y.sum() / r.sum()
    pearson = ((y - p * r) ** 2 / (r * p * (1 - p))).sum() / (len(table) - 1)
    assert max(pearson, 1.0) == pytest.approx(expected(bank).dispersion[0], rel=1e-9)


def test_freezing_ends_the_expectation_but_not_the_counting() -> None:
    """What comes after the baseline is compared with it, and is no part of it."""
    rng = np.random.default_rng(3)
    bank = learning_bank(rng.normal(size=(50, 2)))
    feed(bank, rng.normal(size=(40, 2)))
    close(bank)

    bank.freeze(LAYER)
    feed(bank, np.full((7, 2), 99.0))
    counts = close(bank)

    assert (1, 40) == (expected(bank).windows, expected(bank).requests)
    assert counts.screened is not None
    assert ([7, 7], 7) == (counts.screened.tolist(), counts.screened_requests)


def test_a_baseline_frozen_early_gives_a_bound_instead_of_a_rate() -> None:
    """Without a measured window the rate is what independent rows would make of the level."""
    bank = Bank(Binning(), **SETTINGS)
    bank.register(LAYER, 2)
    feed(bank, np.random.default_rng(4).normal(size=(60, 2)), per_request=3)

    bank.place_thresholds(LAYER, 0.9)
    bank.freeze(LAYER)

    found = expected(bank)
    assert (0, 0) == (found.windows, found.requests)
    assert [1 - 0.9**3] * 2 == pytest.approx(found.rate.tolist())
    assert found.rate[0] == bank.baseline_rate(LAYER, 0.9)
    assert [1.0, 1.0] == found.dispersion.tolist()


def test_placing_again_starts_the_expectation_anew() -> None:
    """At whatever level; the thresholds are those of everything learned by then."""
    rng = np.random.default_rng(5)
    bank = learning_bank(rng.normal(size=(50, 2)), 0.9)
    feed(bank, 10 + rng.normal(size=(500, 2)))
    close(bank)

    bank.place_thresholds(LAYER, 0.5)

    found = expected(bank)
    assert (0.5, 0, [0, 0]) == (found.level, found.windows, found.exceedances.tolist())
    assert found.thresholds.min() > 8


def test_a_feature_never_seen_finite_has_a_threshold_that_nothing_passes() -> None:
    """There is no quantile of nothing; the others are screened."""
    rows = np.random.default_rng(6).normal(size=(20, 2))
    rows[:, 1] = np.nan

    bank = learning_bank(rows)
    feed(bank, np.full((5, 2), 1e30))
    counts = close(bank)

    assert [False, True] == np.isnan(expected(bank).thresholds).tolist()
    assert counts.screened is not None
    assert [5, 0] == counts.screened.tolist()


def test_thresholds_need_a_baseline_and_a_level(make_bank: MakeBank) -> None:
    """Refused, with nothing placed: a layer that saw nothing, and a level that is no share."""
    bank = make_bank()
    bank.register(LAYER, 2)

    with pytest.raises(BaselineNotReady, match="send traffic"):
        bank.place_thresholds(LAYER, 0.9)
    feed(bank, np.zeros((3, 2)))
    for level in (-0.1, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="use 0 to 1"):
            bank.place_thresholds(LAYER, level)

    assert bank.expectation(LAYER) is None


def test_a_reset_layer_is_not_screened_until_its_thresholds_are_placed_anew() -> None:
    """They go with the baseline they came from."""
    bank = learning_bank(np.random.default_rng(7).normal(size=(20, 2)))

    bank.reset(LAYER)
    feed(bank, np.zeros((5, 2)))

    assert bank.expectation(LAYER) is None
    assert close(bank).screened is None


def test_an_expectation_cannot_be_written_to() -> None:
    """It is shared with the bank, which goes on with it."""
    bank = learning_bank(np.random.default_rng(8).normal(size=(20, 2)))
    feed(bank, np.zeros((5, 2)))
    close(bank)

    for name in ("thresholds", "exceedances", "squares"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(expected(bank), name)[0] = 1
