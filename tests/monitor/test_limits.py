"""Flags that watch another side, or another slice of the traffic."""

import numpy as np
import pytest

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import Direction
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Slice,
    View,
)
from sidecar.monitor import Flag, Monitor

pytestmark = pytest.mark.unit

WIDTH, REQUESTS, WINDOW = 4, 64, 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=64, baseline_min_requests=5120, baseline_min_seconds=800
)
SPIKE = SpikeConfig(quantile=0.99)
EU = Slice.of({"route": "eu"})


class Traffic:
    """A monitor with one layer; odd requests are of the route eu."""

    def __init__(self, *flags: Flag) -> None:
        self.rng, self.now = np.random.default_rng(5), 0.0
        self.monitor = Monitor(STATISTICS, SPIKE, now=0.0)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        wanted = {
            FeatureSelector.parse(f"m/conv/channel/{index}"): flag
            for index, flag in enumerate(flags)
        }
        self.monitor.set_flags(wanted, 0.0)
        self.windows(90)

    def windows(self, count: int, by: float = 0.0, every: int = 1) -> None:
        """Send windows in which every feature is shifted in each so many-th request."""
        requests = tuple(Request("", EU if i % 2 else Slice()) for i in range(REQUESTS))
        for _ in range(count):
            values = self.rng.normal(size=(REQUESTS, WIDTH)).astype(np.float32)
            values[::every] += by
            index = np.arange(REQUESTS, dtype=np.int32)
            self.monitor.apply(LayerSample(LAYER, values, index, requests), self.now + 1)
            self.now += WINDOW
            self.monitor.tick(self.now)

    def states(self) -> list[str]:
        """Return how each flagged feature stands."""
        return [str(one.state) for one in self.monitor.watched()]


def test_a_fall_fires_only_what_is_watched_below() -> None:
    """And a rise only what is watched above; both sides fire on either."""
    flags = (Flag(), Flag(direction=Direction.BELOW), Flag(direction=Direction.BOTH))

    fallen, risen = Traffic(*flags), Traffic(*flags)
    fallen.windows(3, by=-6.0)
    risen.windows(3, by=6.0)

    assert ["normal", "firing", "firing"] == fallen.states()
    assert ["firing", "normal", "firing"] == risen.states()


def test_people_are_told_both_thresholds() -> None:
    """The one below is that of every flag with a side below, and of no other."""
    traffic = Traffic(Flag(), Flag(direction=Direction.BELOW), Flag(direction=Direction.BOTH))
    above, below, both = traffic.monitor.watched()

    assert np.isnan(above.low_threshold)
    assert below.threshold == below.low_threshold < 0
    assert both.low_threshold < below.low_threshold < above.threshold < both.threshold


def test_ordinary_traffic_fires_no_side() -> None:
    """The rates of both sides are those of the baseline."""
    traffic = Traffic(Flag(), Flag(direction=Direction.BELOW), Flag(direction=Direction.BOTH))
    traffic.windows(60)

    assert ["normal"] * 3 == traffic.states()
    for status in traffic.monitor.watched():
        assert status.baseline_ratio == pytest.approx(0.01, abs=0.008)


def test_the_status_says_how_a_feature_is_watched() -> None:
    """A threshold is on the side that counts."""
    traffic = Traffic(Flag(), Flag(direction=Direction.BELOW), Flag(traffic=EU))

    above, below, sliced = traffic.monitor.watched()

    assert below.threshold < 0 < above.threshold
    assert ["above", "below", "above"] == [one.direction for one in (above, below, sliced)]
    assert ["", "", "route=eu"] == [one.slice for one in (above, below, sliced)]


def test_a_flag_of_a_slice_sees_that_slice_alone() -> None:
    """Half the requests, and nothing of a spike elsewhere."""
    traffic = Traffic(Flag(), Flag(traffic=EU))

    traffic.windows(3, by=6.0, every=2)  # even requests: none of the slice
    everywhere, sliced = traffic.monitor.watched()

    assert ["firing", "normal"] == traffic.states()
    assert (2 * REQUESTS, REQUESTS) == (everywhere.requests, sliced.requests)


def test_many_zeros_below_are_not_beyond_a_floor_of_zero() -> None:
    """A ReLU's zeros are its floor: nothing is below them, so the feature can still be judged."""
    monitor = Monitor(STATISTICS, SPIKE, now=0.0)
    monitor.register(LAYER, WIDTH, Capture(), 0.0)
    flag = Flag(direction=Direction.BELOW)
    monitor.set_flags({FeatureSelector.parse("m/conv/channel/0"): flag}, 0.0)
    rng, now = np.random.default_rng(1), 0.0
    for _ in range(90):
        values = np.maximum(rng.normal(-1.0, size=(REQUESTS, WIDTH)), 0).astype(np.float32)
        index = np.arange(REQUESTS, dtype=np.int32)
        requests = tuple(Request() for _ in range(REQUESTS))
        monitor.apply(LayerSample(LAYER, values, index, requests), now + 1)
        now += WINDOW
        monitor.tick(now)

    (found,) = monitor.watched()
    assert 0.0 == found.threshold
    assert found.baseline_ratio < 0.01
    assert "normal" == str(found.state)
