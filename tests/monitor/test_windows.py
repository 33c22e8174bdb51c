"""What the monitor hands out of closed windows is what its detector saw."""

from dataclasses import replace

import numpy as np
import pytest

from sidecar.detect import Direction
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Slice,
)
from sidecar.monitor import Flag, Monitor
from sidecar.monitor.windows import record_of
from sidecar.stats import WindowCounts
from sidecar.store import Screened, WindowRecord
from tests.monitor.test_monitor import (
    LAYER,
    OTHER,
    SPIKE,
    STATISTICS,
    WIDTH,
    WINDOW,
    learn,
    sample,
    spike,
)

pytestmark = pytest.mark.unit


def recorded(
    *layers: LayerKey, levels: tuple[float, ...] = (), requests: int = 6400
) -> tuple[Monitor, list[WindowRecord]]:
    """Return a monitor with feature 2 flagged, and the list its windows go to."""
    found: list[WindowRecord] = []
    statistics = STATISTICS.model_copy(update={"baseline_min_requests": requests})
    made = Monitor(statistics, SPIKE, now=0.0, on_window=found.append, levels=levels)
    for layer in layers:
        made.register(layer, WIDTH, Capture(server="test"), 0.0)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    return made, found


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(7)


def test_a_window_without_a_baseline_says_that_nothing_was_compared(
    rng: np.random.Generator,
) -> None:
    """Then a replay knows as little as the detector did."""
    made, found = recorded(LAYER)

    made.apply(sample(rng), 1.0)
    made.tick(WINDOW)

    (one,) = found
    assert (WINDOW, 64, 64, 1) == (one.at, one.requests, one.rows, one.flagged)
    assert ("", 0, 0.0) == (
        one.subject.baseline,
        one.subject.baseline_requests,
        one.subject.baseline_seconds,
    )
    assert [0] == one.compared.tolist()
    assert np.isnan(one.subject.baseline_rate).all()


def test_a_window_carries_the_counts_of_every_row(rng: np.random.Generator) -> None:
    """Requests, exceedances, rows beyond and extremes are those of the traffic."""
    made, found = recorded(LAYER)
    now = learn(made, rng)
    values = rng.normal(size=(40, WIDTH)).astype(np.float32)
    values[:12, 2] = 9.0  # three rows of each of four requests
    values[12, 2] = 0.0
    values[13, 2] = np.inf
    values[14, 2] = np.nan
    requests = np.repeat(np.arange(10), 4).astype(np.int32)
    requests[:12] = np.repeat(np.arange(4), 3)
    requests[12:] = 4 + np.arange(28) // 5

    made.apply(
        LayerSample(LAYER, values, requests, tuple(Request(str(i)) for i in range(10))), now + 1
    )
    made.tick(now + WINDOW)

    one = found[-1]
    limit = one.subject.thresholds[0]
    with np.errstate(invalid="ignore"):
        beyond = values[:, 2] > limit
    assert (10, 40) == (one.requests, one.rows)
    assert [10] == one.compared.tolist()
    assert len(set(requests[beyond])) == one.exceedances[0] >= 5
    assert np.isfinite(values[beyond, 2]).sum() == one.rows_beyond[0] >= 12
    assert [9.0] == one.maximum.tolist()
    assert np.nanmin(values[:, 2]) == one.minimum[0]
    assert ([1], [2]) == (one.zeros.tolist(), one.nonfinite.tolist())


def test_windows_of_one_baseline_share_their_subject(rng: np.random.Generator) -> None:
    """It is written once for all of them; a new baseline is another subject with another name."""
    made, found = recorded(LAYER)
    now = learn(made, rng)
    learned = found[-1].subject

    made.reset([LAYER], now)
    for _ in range(104):
        made.apply(sample(rng), now + 1)
        now += WINDOW
        made.tick(now)

    again = found[-1].subject
    assert "" == found[0].subject.baseline
    assert found[-2].subject is again is not learned
    assert len({"", learned.baseline, again.baseline}) == 3
    assert again.baseline_requests >= STATISTICS.baseline_min_requests
    assert again.baseline_seconds > 0


def test_a_restart_does_not_rename_a_baseline(rng: np.random.Generator) -> None:
    """Windows before and after it are about the same thing."""
    made, found = recorded(LAYER)
    now = learn(made, rng)
    again, after = recorded()

    again.restore(made.encode(), now)
    again.tick(now + WINDOW)

    assert found[-1].subject.baseline == after[-1].subject.baseline != ""
    assert found[-1].subject.thresholds.tolist() == after[-1].subject.thresholds.tolist()


def test_another_capture_is_another_subject(rng: np.random.Generator) -> None:
    """What was measured in another way is not comparable, and the recording says so."""
    made, found = recorded(LAYER)
    made.tick(WINDOW)
    made.register(LAYER, WIDTH, Capture(server="other"), WINDOW)
    made.tick(2 * WINDOW)

    assert found[0].subject.capture != found[1].subject.capture


def test_only_flagged_features_are_handed_out_with_how_many_there_are(
    rng: np.random.Generator,
) -> None:
    """Layers without one have no record; the number of all is in each, for the threshold."""
    made, found = recorded(LAYER, OTHER, LayerKey("m", "a" * 64, "other", FeatureKind.CHANNEL))

    made.apply(spike(rng, 2), 1.0)
    made.tick(WINDOW)

    assert {LAYER, OTHER} == {one.subject.layer for one in found}
    assert [2, 2] == [one.flagged for one in found]
    assert [[2], [2]] == [one.subject.indices.tolist() for one in found]


def test_requests_are_counted_at_further_levels(rng: np.random.Generator) -> None:
    """A policy with another quantile finds its counts, and the rate that the baseline had."""
    made, found = recorded(LAYER, levels=(0.75, 0.9, SPIKE.quantile), requests=12_800)
    now = learn(made, rng, windows=201)
    counted = [found[-1].level_exceedances[0]]
    for _ in range(30):
        made.apply(sample(rng), now + 1)
        now += WINDOW
        made.tick(now)
        counted.append(found[-1].level_exceedances[0])

    subject = found[-1].subject
    share = np.sum(counted, axis=0) / (64 * len(counted))
    assert [0.75, 0.9, SPIKE.quantile] == subject.levels.tolist()
    assert found[-1].level_exceedances[0, 2] == found[-1].exceedances[0]
    assert subject.level_rates[0, 2] == pytest.approx(subject.baseline_rate[0])
    assert subject.level_rates[0].tolist() == pytest.approx([0.25, 0.1, 0.01], rel=0.35)
    assert share.tolist() == pytest.approx([0.25, 0.1, 0.01], rel=0.25)


def test_a_window_carries_the_layer_in_sum(rng: np.random.Generator) -> None:
    """Where every feature is compared with a threshold, the record says how that went."""
    made, found = recorded(LAYER)
    made.tick(WINDOW)
    subject, nothing, plain = found[0].subject, np.zeros(1, np.int64), np.ones(1, np.bool_)
    counts = WindowCounts(
        requests=64,
        rows=64,
        nonfinite=0,
        indices=subject.indices,
        exceedances=nothing,
        watched_requests=nothing,
        maximum=np.zeros(1, np.float32),
        minimum=np.zeros(1, np.float32),
        level_exceedances=np.empty((1, 0), np.int64),
        screened=np.array([3, 0, 1, 0, 0, 2]),
        screened_requests=60,
    )

    assert Screened(6, 60, 6) == record_of(subject, counts, plain, WINDOW, 1).screened
    assert record_of(subject, replace(counts, screened=None), plain, WINDOW, 1).screened is None


def test_a_feature_on_a_slice_has_its_own_threshold_alone(rng: np.random.Generator) -> None:
    """Levels are counted above and on all traffic: elsewhere they are of something else."""
    made, found = recorded(LAYER, levels=(0.9,))
    flags = {
        FeatureSelector.parse("m/conv/channel/1"): Flag(traffic=Slice.of({"route": "v1"})),
        FeatureSelector.parse("m/conv/channel/2"): Flag(),
        FeatureSelector.parse("m/conv/channel/3"): Flag(direction=Direction.BELOW),
    }
    made.set_flags(flags, 0.0)
    now = learn(made, rng)

    made.apply(sample(rng), now + 1)
    made.tick(now + WINDOW)

    one = found[-1]
    assert [True, False, True] == np.isnan(one.subject.level_rates[:, 0]).tolist()
    assert [0, 0] == one.rows_beyond[[0, 2]].tolist()
