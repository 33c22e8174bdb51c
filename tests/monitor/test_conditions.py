"""Certain conditions of flagged features, told as events and kept over a restart."""

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
from sidecar.monitor import Event, Flag, Monitor

pytestmark = pytest.mark.unit

WIDTH, ROWS, WINDOW = 4, 640, 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=32, baseline_min_requests=5000, baseline_min_seconds=20
)


class Traffic:
    """A monitor of four rectified channels, all flagged, and what was told of them."""

    def __init__(self, flag: Flag | None = None) -> None:
        self.rng = np.random.default_rng(3)
        self.now, self.told = 0.0, list[Event]()
        names = [f"m/conv/channel/{index}" for index in range(WIDTH)]
        self.flags = {FeatureSelector.parse(name): flag or Flag() for name in names}
        self.monitor = Monitor(STATISTICS, SpikeConfig(), now=0.0)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.monitor.set_flags(self.flags, 0.0)
        for _ in range(8):
            self.window()

    def window(self, **columns: float) -> None:
        """Send one window of ordinary traffic but for some columns, such as ``c2=0.0``."""
        values = np.maximum(self.rng.normal(size=(ROWS, WIDTH)), 0).astype(np.float32)
        for name, value in columns.items():
            values[:, int(name[1:])] = value
        requests = tuple(Request(str(at)) for at in range(ROWS))
        sample = LayerSample(LAYER, values, np.arange(ROWS, dtype=np.int32), requests)
        self.monitor.apply(sample, self.now + 1)
        self.close()

    def close(self) -> None:
        """End the window."""
        self.now += WINDOW
        found = self.monitor.tick(self.now)
        self.told += [event for event in found if event.what == "feature_condition"]

    def holding(self, index: int) -> tuple[str, ...]:
        """Return the conditions of one feature."""
        return self.monitor.feature(LAYER.feature(index)).conditions


def test_each_condition_is_told_once_and_shown_while_it_holds() -> None:
    """A dead, a stuck, a broken and a far too great feature, each by its own word."""
    traffic = Traffic()
    assert [] == traffic.told

    for _ in range(5):
        traffic.window(c0=0.0, c1=1.25, c2=np.nan, c3=50.0)

    assert {
        str(LAYER.feature(0)): "silent",
        str(LAYER.feature(1)): "saturated",
        str(LAYER.feature(2)): "nonfinite",
    } == {e.subject: e.detail.split(":")[0] for e in traffic.told if "channel/3" not in e.subject}
    assert ("nonfinite",) == traffic.holding(2)
    assert ("never_seen", "saturated") == traffic.holding(3)
    assert any("never_seen: a value of 50; those of the baseline" in e.detail for e in traffic.told)
    assert 5 == len(traffic.told)


def test_what_is_over_is_told_after_some_windows() -> None:
    """The end is an event of its own, and windows without samples do not bring it nearer."""
    traffic = Traffic()
    traffic.window(c2=np.nan)

    for _ in range(20):
        traffic.close()
    waiting = traffic.holding(2)
    for _ in range(6):
        traffic.window()

    assert ("nonfinite",) == waiting
    assert () == traffic.holding(2)
    assert "no longer nonfinite: not seen for 6 windows" == traffic.told[-1].detail


def test_a_flag_that_does_not_ask_is_left_alone() -> None:
    """Conditions are looked for where the flag says so."""
    traffic = Traffic(Flag(detectors=(Detector.SPIKE, Detector.DRIFT)))

    for _ in range(5):
        traffic.window(c0=0.0, c2=np.nan, c3=50.0)

    assert [] == traffic.told
    assert () == traffic.holding(3)


def test_a_restart_tells_nothing_again_and_forgets_no_silence() -> None:
    """What holds is held, and zeros before the restart count after it."""
    traffic = Traffic()
    for _ in range(2):
        traffic.window(c0=0.0, c2=np.nan)
    told = len(traffic.told)

    payload = traffic.monitor.encode()
    traffic.monitor = Monitor(STATISTICS, SpikeConfig(), now=traffic.now)
    traffic.monitor.restore(payload, traffic.now)
    traffic.monitor.set_flags(traffic.flags, traffic.now)
    restored = traffic.holding(2)
    traffic.window(c0=0.0, c2=np.nan)

    assert ("nonfinite",) == restored
    assert told == len(traffic.told)
    assert ("silent",) == traffic.holding(0)


def test_without_a_baseline_only_what_is_not_finite_is_told() -> None:
    """A reset baseline leaves nothing to compare with."""
    traffic = Traffic()
    traffic.monitor.reset([LAYER], traffic.now)

    for _ in range(3):
        traffic.window(c0=0.0, c2=np.nan, c3=50.0)

    assert ["nonfinite"] == [event.detail.split(":")[0] for event in traffic.told]


def test_a_reset_ends_what_was_told_against_the_baseline() -> None:
    """A record ends with a word; what is not finite is so without a baseline, and goes on."""
    traffic = Traffic()
    for _ in range(2):
        traffic.window(c0=0.0, c2=np.nan, c3=50.0)
    held = traffic.holding(3)

    told = traffic.monitor.reset([LAYER], traffic.now)

    ended = {event.subject: event.detail for event in told if event.what == "feature_condition"}
    assert ("never_seen", "saturated") == held
    assert {str(LAYER.feature(0)), str(LAYER.feature(3))} == set(ended)
    assert "no longer silent: what it was compared with is gone" == ended[str(LAYER.feature(0))]
    assert ((), ("nonfinite",)) == (traffic.holding(3), traffic.holding(2))
