"""A baseline is learned in two halves: where thresholds lie, and how often they are passed."""

import numpy as np
import pytest

from sidecar.config import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.detect import State, measured_rate, measured_share
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    SparseSample,
    View,
)
from sidecar.monitor import Flag, Monitor
from sidecar.stats import Bank, Expectation

pytestmark = pytest.mark.unit

WIDTH, ROWS, REQUESTS, WINDOW = 4, 8, 100, 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
FEATURE = LAYER.feature(2)
FLAGS = {FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=32, baseline_min_requests=4000, baseline_min_seconds=300
)
HALF = 20
"""Windows after which 2,000 of 4,000 requests have come, and 200 of 300 seconds have passed."""


def monitor(quantile: float = 0.99) -> Monitor:
    """Return a monitor with one layer of which one feature is flagged."""
    made = Monitor(STATISTICS, SpikeConfig(quantile=quantile), now=0.0)
    made.register(LAYER, WIDTH, Capture(), 0.0)
    made.set_flags(FLAGS, 0.0)
    return made


def alike(rng: np.random.Generator, requests: int = REQUESTS) -> LayerSample:
    """Return requests of several rows that are all the same, as of a stable prompt."""
    values = np.repeat(rng.normal(size=(requests, WIDTH)), ROWS, axis=0).astype(np.float32)
    index = np.repeat(np.arange(requests, dtype=np.int32), ROWS)
    return LayerSample(LAYER, values, index, tuple(Request() for _ in range(requests)))


def feed(made: Monitor, windows: int, seed: int = 0, since: int = 0) -> list[str]:
    """Send whole windows of ordinary traffic and return what was told."""
    rng, told = np.random.default_rng(seed), []
    for at in range(since, since + windows):
        made.apply(alike(rng), at * WINDOW + 1)
        told += [f"{one.what}: {one.detail}" for one in made.tick((at + 1) * WINDOW)]
    return told


def bank_of(made: Monitor) -> Bank:
    """Return what counts; a monitor tells nobody what it has counted before it may say anything."""
    return made._bank  # noqa: SLF001 - see above


def granted(found: Expectation, index: int = 2) -> float:
    """Return what a feature's baseline is taken for: what was measured, or what few cannot rule out."""
    return float(measured_rate(found.exceedances[[index]], found.requests, 1.5)[0])


def measured(found: Expectation, index: int = 2) -> float:
    """Return what people are told of a feature's baseline."""
    return float(measured_share(found.exceedances[[index]], found.requests)[0])


def expected(made: Monitor) -> Expectation | None:
    """Return what the bank expects of the layer's windows."""
    return bank_of(made).expectation(LAYER)


def test_the_second_half_of_a_baseline_measures_how_often_thresholds_are_passed() -> None:
    """Whatever the rows of a request have to do with each other: 1 % here, where a bound says 8 %."""
    made = monitor()

    before = feed(made, HALF - 1), expected(made)
    halfway = feed(made, 1, 1, HALF - 1), expected(made)
    rest = feed(made, HALF, 2, HALF)

    assert ([], None) == before
    assert [] == halfway[0]
    assert halfway[1] is not None
    assert (0, 0.99) == (halfway[1].windows, halfway[1].level)
    assert ["baseline_frozen: learned, 4000 requests"] == rest
    found, status = expected(made), made.feature(FEATURE)
    assert found is not None
    assert (HALF, HALF * REQUESTS) == (found.windows, found.requests)
    assert found.thresholds.tolist() == halfway[1].thresholds.tolist()
    assert (measured(found), found.thresholds[2]) == (status.baseline_ratio, status.threshold)
    assert 1.5 * granted(found) <= status.tolerated_ratio
    # Four standard errors of 2,000 requests, and of where 2,000 others put the threshold.
    assert 0.01 == pytest.approx(found.rate[2], abs=4 * np.sqrt(2 * 0.01 / 2000))
    assert bank_of(made).baseline_rate(LAYER, 0.99) == pytest.approx(0.077, abs=0.001)


def test_flagged_features_are_compared_while_the_rate_is_measured() -> None:
    """With the thresholds that they will have; nothing is said of them before the baseline is there."""
    made = monitor()
    feed(made, HALF)

    made.apply(alike(np.random.default_rng(3)), HALF * WINDOW + 1)
    counts = bank_of(made).close(LAYER, HALF * WINDOW + 2)

    assert counts.screened is not None
    assert counts.screened[[2]].tolist() == counts.exceedances.tolist()
    assert [REQUESTS] == counts.watched_requests.tolist()
    assert State.UNKNOWN is made.feature(FEATURE).state
    assert "Learning its baseline" in made.feature(FEATURE).explanation


def test_thresholds_stay_when_the_baseline_freezes() -> None:
    """What was counted in the window in which it froze goes on being counted."""
    made = monitor()
    feed(made, HALF + 3)
    made.apply(alike(np.random.default_rng(3)), HALF * WINDOW + 31)

    made.freeze([LAYER], HALF * WINDOW + 32)
    counts = bank_of(made).close(LAYER, HALF * WINDOW + 33)

    assert [REQUESTS] == counts.watched_requests.tolist()
    found = expected(made)
    assert found is not None
    assert 3 == found.windows
    assert measured(found) == made.feature(FEATURE).baseline_ratio


@pytest.mark.parametrize("windows", [5, HALF])
def test_a_baseline_frozen_before_its_second_half_has_a_derived_bound(windows: int) -> None:
    """Every feature has a threshold then too, and none a measured rate."""
    made = monitor()
    feed(made, windows)

    made.freeze([LAYER], windows * WINDOW + 1)
    feed(made, 1, 1, windows)

    found, status = expected(made), made.feature(FEATURE)
    assert found is not None
    assert 0 == found.windows
    assert State.NORMAL is status.state
    assert 0.05 < status.baseline_ratio <= found.bound
    assert status.threshold == found.thresholds[2]


def test_a_reset_layer_learns_both_halves_again() -> None:
    """Thresholds and rates of the old baseline are gone with it."""
    made = monitor()
    feed(made, 2 * HALF)

    made.reset([LAYER], 2 * HALF * WINDOW)
    forgotten = expected(made)
    told = feed(made, 2 * HALF, 5, 2 * HALF)

    assert forgotten is None
    assert ["baseline_frozen: learned, 4000 requests"] == [
        one for one in told if one.startswith("baseline")
    ]
    found = expected(made)
    assert found is not None
    assert HALF == found.windows


def test_a_snapshot_within_the_second_half_loses_nothing() -> None:
    """A daemon that starts again measures on, and ends with the same baseline."""
    made, restored = monitor(), Monitor(STATISTICS, SpikeConfig(quantile=0.99), now=0.0)
    feed(made, HALF + 5)

    restored.restore(made.encode(), (HALF + 5) * WINDOW)
    restored.set_flags(FLAGS, (HALF + 5) * WINDOW)
    for one in (made, restored):
        feed(one, HALF, 6, HALF + 5)

    assert made.feature(FEATURE).baseline_ratio == restored.feature(FEATURE).baseline_ratio
    assert made.feature(FEATURE).threshold == restored.feature(FEATURE).threshold
    found = expected(restored)
    assert found is not None
    assert HALF == found.windows


@pytest.mark.parametrize("windows", [HALF + 5, 2 * HALF])
def test_another_quantile_after_a_restart_is_not_taken_for_the_measured_one(windows: int) -> None:
    """While it learns the halves begin anew; once frozen, the flag learns a rate of its own."""
    made, restored = monitor(), Monitor(STATISTICS, SpikeConfig(quantile=0.9), now=0.0)
    feed(made, windows)

    restored.restore(made.encode(), windows * WINDOW)
    restored.set_flags(FLAGS, windows * WINDOW)
    feed(restored, HALF, 6, windows)

    status, found = restored.feature(FEATURE), expected(restored)
    assert found is not None
    learned = windows < 2 * HALF
    assert (0.9 if learned else 0.99) == found.level
    assert 1.28 == pytest.approx(status.threshold, abs=0.15)
    assert learned is bool(measured(found) == status.baseline_ratio)
    assert status.baseline_ratio == pytest.approx(0.1, abs=0.02)
    assert State.NORMAL is status.state


def test_a_feature_without_a_value_in_its_baseline_is_not_said_to_be_learning() -> None:
    """Waiting would not help: there is a baseline, and nothing of the feature in it."""
    made, rng = monitor(), np.random.default_rng(0)
    sample = alike(rng)
    sample.values[:, FEATURE.index] = np.nan
    made.apply(sample, 1.0)
    made.tick(WINDOW)
    made.freeze([LAYER], WINDOW)

    found = made.feature(FEATURE)

    assert State.UNKNOWN is found.state
    assert "Its baseline has no finite value of it: nothing can be said." == found.explanation


def test_another_quantile_leaves_the_screen_on_and_is_cautioned_against() -> None:
    """A layer that was measured at one quantile is screened at it, whatever the setting says now."""
    screen = ScreenConfig(baseline_windows=HALF)
    made = Monitor(STATISTICS, SpikeConfig(quantile=0.95), now=0.0, screen=screen)
    made.register(LAYER, WIDTH, Capture(), 0.0)
    feed(made, 2 * HALF + 1)
    restored = Monitor(STATISTICS, SpikeConfig(quantile=0.9), now=0.0, screen=screen)
    restored.restore(made.encode(), 0.0)
    feed(restored, 2, 6, 2 * HALF + 1)

    (before,), (after,) = made.layers(), restored.layers()
    assert WIDTH == before.screened_features == after.screened_features
    assert 0.95 == made.screened_quantile(LAYER) == restored.screened_quantile(LAYER)
    assert {} == made.baseline_cautions()
    ((told,),) = restored.baseline_cautions().values()
    assert told.startswith("it was learned at quantile 0.95, and spike.quantile says 0.9: ")


def test_another_way_of_measuring_after_the_freeze_is_cautioned_against() -> None:
    """Not before it, and no longer when it is put right, relearned, or after a restart forgotten."""
    made = monitor(quantile=0.95)
    feed(made, HALF)
    made.register(LAYER, WIDTH, Capture(dtype="float16"), HALF * WINDOW)
    learning = made.baseline_cautions()
    feed(made, HALF, 1, HALF)
    made.register(LAYER, WIDTH, Capture(dtype="bfloat16"), 2 * HALF * WINDOW)
    ((told,),) = made.baseline_cautions().values()
    restored = Monitor(STATISTICS, SpikeConfig(quantile=0.95), now=0.0)
    restored.restore(made.encode(), 0.0)
    found = made.baseline(LAYER)

    assert {} == learning
    assert "dtype 'float16' there and 'bfloat16' here" in told
    assert made.baseline_cautions() == restored.baseline_cautions()
    assert found is not None
    assert Capture(dtype="float16") == found[0].capture
    made.register(LAYER, WIDTH, Capture(dtype="float16"), 2 * HALF * WINDOW)
    restored.reset([LAYER], 2 * HALF * WINDOW)
    assert {} == made.baseline_cautions() == restored.baseline_cautions()


def test_traffic_too_thin_for_the_quantile_is_cautioned_against() -> None:
    """Where a window expects less than one request that exceeds."""
    made = monitor(quantile=0.999)
    feed(made, 2 * HALF)

    ((told,),) = made.baseline_cautions().values()

    assert "requests beyond the 99.9 % quantile, less than one" in told


def test_a_baseline_of_so_few_measured_requests_says_that_it_is_too_short() -> None:
    """Not that the feature exceeds too often, which nobody can know."""
    made = monitor()
    feed(made, HALF)
    made.apply(alike(np.random.default_rng(8), requests=30), HALF * WINDOW + 1)
    made.tick((HALF + 1) * WINDOW)
    made.freeze([LAYER], (HALF + 1) * WINDOW + 1)
    feed(made, 2, 9, HALF + 2)

    status = made.feature(FEATURE)

    assert State.UNKNOWN is status.state
    assert np.isnan(status.baseline_ratio)
    assert "Its baseline is too short to judge it" in status.explanation


def test_a_sparse_layer_learns_as_before() -> None:
    """It has no thresholds for every latent; its flagged ones have a derived rate."""
    made = Monitor(STATISTICS, SpikeConfig(quantile=0.99), now=0.0)
    key = LayerKey("m", "a" * 64, "sae", FeatureKind.LATENT, View.RAW)
    made.register(key, WIDTH, Capture(), 0.0, sparse=True)
    made.set_flags({FeatureSelector.parse("m/sae/latent/2"): Flag()}, 0.0)
    rng = np.random.default_rng(0)

    for at in range(2 * HALF):
        values = rng.exponential(size=REQUESTS).astype(np.float32)
        latents, splits = np.full(REQUESTS, 2, np.uint32), np.arange(REQUESTS + 1)
        index = np.arange(REQUESTS, dtype=np.int32)
        requests = tuple(Request() for _ in range(REQUESTS))
        one = SparseSample(key, WIDTH, splits, latents, values, index, requests)
        made.apply(one, at * WINDOW + 1)
        made.tick((at + 1) * WINDOW)

    assert made.layers()[0].baseline_frozen
    assert 0.01 == pytest.approx(made.feature(key.feature(2)).baseline_ratio, abs=0.01)
