"""Slow drift of flagged features: told by the hour, kept over a restart, forgotten with the baseline."""

import numpy as np
import pytest

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import Detector
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    View,
)
from sidecar.monitor import Flag, Monitor
from sidecar.monitor.drift import WatchedDrift
from sidecar.stats import Bank, Binning, Distribution, Period

pytestmark = pytest.mark.unit

WIDTH, ROWS, HOUR = 3, 1200, 3600.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=HOUR / 2, warmup_rows=64, baseline_min_requests=5000, baseline_min_seconds=20
)
FLAGS = {
    FeatureSelector.parse("m/conv/channel/0"): Flag("steady"),
    FeatureSelector.parse("m/conv/channel/1"): Flag("moves"),
    FeatureSelector.parse("m/conv/channel/2"): Flag(detectors=(Detector.SPIKE,)),
}


class Traffic:
    """A monitor with a frozen baseline, two windows an hour, and what was told of drift."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.now, self.told = 0.0, list[tuple[str, str]]()
        self.monitor = Monitor(STATISTICS, SpikeConfig(), now=0.0)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.monitor.set_flags(FLAGS, 0.0)

    def hours(self, count: int, shift: float = 0.0) -> None:
        """Send hours of traffic of which features 1 and 2 are shifted."""
        for _ in range(2 * count):
            values = self.rng.normal([5.0, 5.0 + shift, 5.0 + shift], size=(ROWS, WIDTH))
            requests = tuple(Request(str(at)) for at in range(ROWS))
            index = np.arange(ROWS, dtype=np.int32)
            sample = LayerSample(LAYER, values.astype(np.float32), index, requests)
            self.monitor.apply(sample, self.now + 1)
            self.now += HOUR / 2
            for event in self.monitor.tick(self.now):
                if event.what in ("feature_drifting", "feature_settled"):
                    self.told.append((event.what, event.subject))


@pytest.fixture(scope="module")
def learned() -> bytes:
    """A monitor after its baseline and the day that teaches it how far apart hours are."""
    traffic = Traffic()
    traffic.hours(28)
    assert traffic.monitor.layers()[0].baseline_frozen
    assert [] == traffic.told
    return traffic.monitor.encode()


@pytest.fixture
def traffic(learned: bytes) -> Traffic:
    """The same after a restart."""
    found = Traffic()
    found.now = 28 * HOUR
    found.monitor = Monitor(STATISTICS, SpikeConfig(), now=found.now)
    found.monitor.restore(learned, found.now)
    found.monitor.set_flags(FLAGS, found.now)
    return found


def test_a_lasting_shift_is_told_once_and_its_end_too(traffic: Traffic) -> None:
    """The flagged feature that moved, not the steady one, and not the one that does not ask."""
    traffic.hours(6, shift=0.8)
    moved = {status.key.index: status for status in traffic.monitor.watched()}
    traffic.hours(4)
    after = traffic.monitor.feature(LAYER.feature(1))

    subject = str(LAYER.feature(1))
    assert [("feature_drifting", subject), ("feature_settled", subject)] == traffic.told
    assert [False, True, False] == [moved[index].drifting for index in range(WIDTH)]
    assert moved[1].drift_wasserstein == pytest.approx(0.8, abs=0.15)
    assert moved[1].drift_js > 0.25
    assert moved[0].drift_js < 0.1
    assert moved[1].drift_js_yesterday == pytest.approx(moved[1].drift_js, abs=0.08)
    assert np.isnan(moved[2].drift_js)
    assert not after.drifting


def test_ordinary_hours_are_within_the_chance_of_their_size(traffic: Traffic) -> None:
    """Windows in finer bins than the baseline's are compared with it without a bias."""
    traffic.hours(3)

    steady = traffic.monitor.feature(LAYER.feature(0))

    assert steady.drift_js < 0.08
    assert steady.drift_wasserstein < 0.08
    assert steady.drift_js_yesterday < 0.08


def test_a_new_baseline_forgets_the_old_ones_hours(traffic: Traffic) -> None:
    """Counts in the bins of another baseline say nothing."""
    traffic.hours(6, shift=0.8)
    told = traffic.monitor.reset([LAYER], traffic.now)
    gone = traffic.monitor.feature(LAYER.feature(1))
    traffic.hours(8, shift=0.8)
    found = traffic.monitor.feature(LAYER.feature(1))

    assert (False, True) == (gone.drifting, np.isnan(gone.drift_js))
    assert [str(LAYER.feature(1))] == [e.subject for e in told if e.what == "feature_settled"]
    assert not found.drifting
    assert found.drift_js < 0.08


def test_a_flag_that_does_not_ask_for_it_any_more_ends_it(traffic: Traffic) -> None:
    """Else it would drift for good: nothing is compared any more."""
    traffic.hours(6, shift=0.8)
    flags = {one: Flag(detectors=(Detector.CONDITIONS,)) for one in FLAGS}

    told = traffic.monitor.set_flags(flags, traffic.now)

    subject = str(LAYER.feature(1))
    settled = [e.detail for e in told if (e.what, e.subject) == ("feature_settled", subject)]
    assert ["no longer watched for it"] == settled
    assert not traffic.monitor.feature(LAYER.feature(1)).drifting


def baseline(seed: int) -> Distribution:
    """Return a frozen baseline of the layer's features, another one for each seed."""
    bank = Bank(
        Binning(mantissa_bits=4),
        warmup_rows=64,
        history_seconds=HOUR,
        layer_limit=1,
        feature_limit=WIDTH,
    )
    bank.register(LAYER, WIDTH)
    values = np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)
    values[:, 0] = np.arange(ROWS)  # the first feature's is always the same
    index = np.arange(ROWS, dtype=np.int32)
    sample = LayerSample(LAYER, values, index, tuple(Request() for _ in range(ROWS)))
    bank.update(sample, 1.0)
    bank.freeze(LAYER)
    return bank.snapshot(LAYER, Period.BASELINE)


def test_only_features_whose_baseline_is_another_start_anew() -> None:
    """The same baseline after a restart keeps what was counted in its bins; an imported one does not."""
    drift = WatchedDrift.empty()
    drift.rewatch(np.array([-1] * WIDTH))
    drift.use_baseline(baseline(1))
    drift.memory.open[:] = 7

    again = WatchedDrift.empty()
    again.restore(drift.to_dict())
    again.use_baseline(baseline(1))
    kept = again.memory.open[:, 0].tolist()
    again.use_baseline(baseline(2))

    assert [7, 7, 7] == kept
    assert [7, 0, 0] == again.memory.open[:, 0].tolist()
