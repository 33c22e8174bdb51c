"""How long a baseline learns, whatever the clock does, and layers that fail without harming others."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from structlog.testing import capture_logs

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import SpikePolicy
from sidecar.errors import CorruptState
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
from sidecar.monitor.layer import MonitoredLayer, read_layer
from sidecar.monitor.watch import LayerWatch
from sidecar.store import WindowRecord

pytestmark = pytest.mark.unit

WIDTH, ROWS, WINDOW, START = 2, 64, 10.0, 1e9
FIRST, SECOND, THIRD = (
    LayerKey("m", "a" * 64, name, FeatureKind.CHANNEL, View.MAX) for name in ("a", "b", "c")
)
WINDOWS = 60
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW,
    warmup_rows=32,
    baseline_min_requests=100,
    baseline_min_seconds=WINDOWS * WINDOW,
)
JUMPS = [3600.0, -3600.0, 86_400.0, -86_400.0, 0.5, -0.5, 3.0, -3.0]


class Traffic:
    """A monitor under steady traffic, and the daemon's clock, which somebody may move."""

    def __init__(
        self, *layers: LayerKey, on_window: Callable[[WindowRecord], None] | None = None
    ) -> None:
        self.rng = np.random.default_rng(1)
        self.layers, self.true, self.offset = layers or (FIRST,), START, 0.0
        self.monitor = Monitor(STATISTICS, SpikeConfig(), now=START, on_window=on_window)
        for layer in self.layers:
            self.monitor.register(layer, WIDTH, Capture(), START)
        self.told = list[tuple[str, str]]()
        self.windows = 0

    def second(self) -> None:
        """Let a second of real time pass; in every fifth there is a batch of each layer."""
        self.true += 1.0
        now = self.true + self.offset
        for layer in self.layers if self.true % 5 == 0 else ():
            values = self.rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
            requests = tuple(Request(str(at)) for at in range(ROWS))
            index = np.arange(ROWS, dtype=np.int32)
            self.monitor.apply(LayerSample(layer, values, index, requests), now)
        self.told += [(event.what, event.subject) for event in self.monitor.tick(now)]

    def seconds(self, count: int) -> None:
        """Let so many pass."""
        for _ in range(count):
            self.second()

    def until_frozen(self) -> float:
        """Return how many seconds the baseline of the first layer has learned when it freezes."""
        for _ in range(2000):
            if ("baseline_frozen", str(self.layers[0])) in self.told:
                return self.true - START
            self.second()
        raise AssertionError("it never froze")

    def restart(self) -> None:
        """Continue from a snapshot."""
        payload, now = self.monitor.encode(), self.true + self.offset
        self.monitor = Monitor(STATISTICS, SpikeConfig(), now=now)
        self.monitor.restore(payload, now)


def hours(monitor: Monitor) -> float:
    """Return the hours that the first layer's baseline says it covers."""
    found = monitor.baseline(FIRST)
    assert found is not None
    return found[0].hours


def test_an_undisturbed_clock_learns_as_long_as_it_should() -> None:
    """What the jumps are compared with."""
    traffic = Traffic()

    assert WINDOWS * WINDOW == pytest.approx(traffic.until_frozen(), abs=2 * WINDOW)
    assert WINDOWS * WINDOW / 3600 == pytest.approx(hours(traffic.monitor), rel=0.05)


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("back", [False, True])
def test_a_clock_that_jumps_neither_ends_nor_prolongs_learning(jump: float, *, back: bool) -> None:
    """Put forward or back by an hour, a day or a little, for good or for a moment."""
    traffic = Traffic()
    traffic.seconds(95)

    traffic.offset = jump
    if back:
        traffic.seconds(1)
        traffic.offset = 0.0
    learned = traffic.until_frozen()

    assert WINDOWS * WINDOW == pytest.approx(learned, abs=4 * WINDOW)
    assert WINDOWS * WINDOW / 3600 == pytest.approx(hours(traffic.monitor), rel=0.05)


def test_a_clock_that_is_stepped_again_and_again_still_learns() -> None:
    """As by a daemon that sets a drifting clock back by half a second every minute."""
    traffic = Traffic()
    for _ in range(8):
        traffic.seconds(60)
        traffic.offset -= 0.5

    assert WINDOWS * WINDOW == pytest.approx(traffic.until_frozen(), abs=8 * WINDOW)


@pytest.mark.parametrize("jump", [-86_400.0, 0.0, 86_400.0])
def test_a_restart_in_the_middle_keeps_what_was_learned(jump: float) -> None:
    """Time during which the daemon was away is no time that was learned from."""
    traffic = Traffic()
    traffic.seconds(int(WINDOWS * WINDOW / 2))
    traffic.true += 5000.0  # nobody is there
    traffic.offset = jump
    traffic.restart()

    learned = traffic.until_frozen() - 5000.0

    assert WINDOWS * WINDOW == pytest.approx(learned, abs=3 * WINDOW)


def test_what_is_learned_anew_takes_as_long_again() -> None:
    """Nothing that was learned before counts."""
    traffic = Traffic()
    traffic.seconds(500)
    traffic.monitor.reset([FIRST], traffic.true)

    assert 500 + WINDOWS * WINDOW == pytest.approx(traffic.until_frozen(), abs=2 * WINDOW)


def test_a_layer_without_a_sample_does_not_begin_to_learn() -> None:
    """Its time begins with its first sample, not with its registration."""
    traffic = Traffic()
    for _ in range(100):
        traffic.true += WINDOW
        traffic.monitor.tick(traffic.true)

    silent = traffic.true - START

    assert WINDOWS * WINDOW == pytest.approx(traffic.until_frozen() - silent, abs=2 * WINDOW)


def book(**change: object) -> dict[str, object]:
    """Return a layer's book as an earlier build wrote it, but for some values."""
    layer = MonitoredLayer(Capture(), LayerWatch.empty(FIRST, SpikePolicy(), 0.0))
    layer.baseline_started, layer.last_seen = 1000.0, 4600.0
    saved = json.loads(json.dumps(layer.to_dict(FIRST)))
    del saved["learned_seconds"]
    return {**saved, **change}


def test_a_snapshot_of_an_earlier_build_has_learned_what_its_clock_says() -> None:
    """Learning does not start anew with an update."""
    _, layer = read_layer(book(), SpikePolicy(), 5000.0)

    assert 3600.0 == layer.learned_seconds


@pytest.mark.parametrize("learned", [math.nan, math.inf, -1.0])
def test_a_time_that_is_none_is_refused(learned: float) -> None:
    """A NaN would never freeze, and infinity at once."""
    with pytest.raises(CorruptState, match="has learned for"):
        read_layer(book(learned_seconds=learned), SpikePolicy(), 5000.0)


def test_a_layer_that_fails_does_not_stop_the_others() -> None:
    """It is counted and told once; the layers after it learn, and it goes on itself when it can."""
    broken = [True]

    def take(record: WindowRecord) -> None:
        if broken[0] and record.subject.layer == SECOND:
            raise RuntimeError("poisoned")

    traffic = Traffic(FIRST, SECOND, THIRD, on_window=take)
    flags = {FeatureSelector.parse(f"m/{name}/channel/0"): Flag() for name in ("a", "b", "c")}
    traffic.monitor.set_flags(flags, START)

    with capture_logs() as logs:
        traffic.seconds(int(WINDOWS * WINDOW) + 20)
    failed = [status.failed_windows for status in traffic.monitor.layers()]
    frozen = [status.baseline_frozen for status in traffic.monitor.layers()]
    seen = [status.rows for status in traffic.monitor.layers()]
    broken[0] = False
    traffic.seconds(int(WINDOWS * WINDOW) + 20)

    assert [0, WINDOWS + 2, 0] == failed
    assert [True, False, True] == frozen
    assert 1 == len(set(seen))
    assert [("layer_failed", str(SECOND))] == [(log["event"], log["layer"]) for log in logs]
    assert all(status.baseline_frozen for status in traffic.monitor.layers())
    assert [0, WINDOWS + 2, 0] == [one.failed_windows for one in traffic.monitor.layers()]
