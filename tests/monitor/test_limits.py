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
ALL = 160
"""Requests a window of traffic one slice of which is unlike the rest."""

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
    """The shares of all sides are those of the baseline; what so few cannot rule out is tolerated."""
    traffic = Traffic(Flag(), Flag(direction=Direction.BELOW), Flag(direction=Direction.BOTH))
    traffic.windows(60)

    assert ["normal"] * 3 == traffic.states()
    for status in traffic.monitor.watched():
        assert 0.01 == pytest.approx(status.baseline_ratio, abs=0.005)
        assert 0.015 < status.tolerated_ratio


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


def test_a_slice_unlike_the_rest_is_held_to_its_own_rate() -> None:
    """Ten times as many of its requests exceed as of all: that is no alarm, and a spike in it is one."""
    unlike = Unlike(Flag(traffic=EU), Flag(direction=Direction.BELOW, traffic=EU))
    told = unlike.windows(400)
    ordinary = unlike.monitor.watched()
    told += unlike.windows(6, by=4.0)

    assert 0.05 < ordinary[0].baseline_ratio < 0.15
    assert ["normal", "normal"] == [str(one.state) for one in ordinary]
    assert ["feature_firing"] == [one for one in told if one == "feature_firing"]
    assert "firing" == unlike.monitor.watched()[0].state


def test_a_flag_that_is_changed_learns_its_own_rate_before_it_is_judged() -> None:
    """It says how far it is; a feature that a baseline has measured already is judged at once."""
    unlike = Unlike(Flag())
    unlike.flag(Flag(traffic=EU), Flag())
    unlike.windows(30)
    learning, known = unlike.monitor.watched()
    unlike.windows(100)
    judged, _ = unlike.monitor.watched()

    assert "unknown" == learning.state
    assert "Learning its own rate: 600 of 1000 requests of route=eu." == learning.explanation
    assert np.isfinite(learning.threshold)
    assert np.isnan(learning.baseline_ratio)
    assert "normal" == known.state == judged.state
    assert judged.baseline_ratio > 0.05


def test_what_was_learned_for_a_slice_survives_a_restart_and_travels_with_the_baseline() -> None:
    """To the bit, finished or not; a flag that nobody asks for there is there when somebody does."""
    unlike = Unlike(Flag(traffic=EU), Flag(direction=Direction.BOTH))
    restored = Monitor(STATISTICS, SPIKE, now=0.0)
    restored.restore(unlike.monitor.encode(), unlike.now)
    restored.set_flags(unlike.wanted, unlike.now)
    found = unlike.monitor.baseline(LAYER)
    assert found is not None
    elsewhere = Monitor(STATISTICS, SPIKE, now=0.0)
    elsewhere.register(LAYER, WIDTH, Capture(), 0.0)
    elsewhere.adopt_baseline(found[0], found[1], "d" * 64, "from a test", 1.0)
    elsewhere.set_flags(unlike.wanted, 2.0)

    rates = [one.baseline_ratio for one in unlike.monitor.watched()]
    assert np.isfinite(rates).all()
    assert rates == [one.baseline_ratio for one in restored.watched()]
    assert rates == [one.baseline_ratio for one in elsewhere.watched()]
    assert [one.low_threshold for one in restored.watched()] == pytest.approx(
        [one.low_threshold for one in unlike.monitor.watched()], nan_ok=True
    )


def test_a_relearned_baseline_forgets_what_flags_had_learned() -> None:
    """Their rates belong to the traffic that is ordinary no longer."""
    unlike = Unlike(Flag(traffic=EU))
    before = unlike.monitor.watched()[0].baseline_ratio
    unlike.monitor.reset([LAYER], unlike.now)
    unlike.windows(20)

    assert np.isfinite(before)
    assert np.isnan(unlike.monitor.watched()[0].baseline_ratio)
    assert "Learning its baseline" in unlike.monitor.watched()[0].explanation


def test_another_quantile_is_a_rate_of_its_own() -> None:
    """After a restart with another setting a plain flag learns anew, and is judged then."""
    unlike = Unlike(Flag())
    changed = Unlike.of(Monitor(STATISTICS, SpikeConfig(quantile=0.95), now=0.0), unlike)
    changed.windows(5)
    (learning,) = changed.monitor.watched()
    changed.windows(8)
    (judged,) = changed.monitor.watched()

    assert "Learning its own rate: 800 of 1000 requests." == learning.explanation
    assert "normal" == judged.state
    # Four standard errors of 1,000 requests.
    assert 0.05 == pytest.approx(judged.baseline_ratio, abs=4 * np.sqrt(0.05 / 1000))
    assert 1.5 * 0.05 < judged.tolerated_ratio


def test_a_flag_that_learned_from_a_spike_says_what_helps() -> None:
    """It cannot be judged from then on, and another quantile is not the way out."""
    unlike = Unlike()
    unlike.flag(Flag(direction=Direction.BELOW))
    unlike.windows(20, by=-4.0)

    (found,) = unlike.monitor.watched()

    assert "unknown" == found.state
    assert "too many to tell a spike from them" in found.explanation
    assert "unusual while this was learned" in found.explanation


def test_a_flag_that_learned_its_rate_in_an_incident_says_so() -> None:
    """More than a third of its requests exceeded: it is judged by that from then on, and nobody would know."""
    unlike = Unlike(Flag())
    unlike.flag(Flag(direction=Direction.BELOW))
    unlike.windows(16, by=-3.0)
    (learned,) = unlike.monitor.watched()
    unlike.monitor.reset([LAYER], unlike.now)
    (again,) = unlike.monitor.watched()

    assert 0.3 < learned.baseline_ratio < 0.45
    assert "of the requests it learned its rate from exceeded" in learned.caution
    assert "its baseline's rows explain 1 % at most" in learned.caution
    assert "its slice" not in learned.caution
    assert "" == again.caution


def test_a_flag_that_learned_on_ordinary_traffic_has_no_caution() -> None:
    """Nor has one that counted while the baseline was learned."""
    unlike = Unlike(Flag(), Flag(direction=Direction.BOTH))
    unlike.flag(Flag(), Flag(direction=Direction.BOTH), Flag(direction=Direction.BELOW))
    unlike.windows(20)

    assert [""] * 3 == [one.caution for one in unlike.monitor.watched()]
    assert np.isfinite([one.baseline_ratio for one in unlike.monitor.watched()]).all()


def test_a_slice_unlike_the_rest_is_told_as_that() -> None:
    """It exceeds far more often than all traffic, and that need be no incident."""
    unlike = Unlike(Flag(traffic=EU))
    (found,) = unlike.monitor.watched()

    assert "or its slice is unlike all traffic" in found.caution


def test_a_quantile_that_is_put_right_has_what_was_measured_at_it() -> None:
    """What the baseline counted is not lost by a restart with another setting, and not learned anew."""
    unlike = Unlike(Flag(direction=Direction.BELOW), Flag(traffic=EU))
    before = [one.baseline_ratio for one in unlike.monitor.watched()]
    changed = Unlike.of(Monitor(STATISTICS, SpikeConfig(quantile=0.95), now=0.0), unlike)
    changed.windows(3)
    restored = Unlike.of(Monitor(STATISTICS, SPIKE, now=0.0), changed)
    restored.windows(1, by=-3.0)

    assert np.isfinite(before).all()
    assert before == [one.baseline_ratio for one in restored.monitor.watched()]


@pytest.mark.parametrize("direction", [Direction.BELOW, Direction.BOTH])
def test_a_floor_at_a_value_taken_very_often_sees_a_fall(direction: Direction) -> None:
    """Half of all values are the least there is: they are not below it, and what is less is."""
    unlike = Unlike(Flag(direction=direction), floor=0.5)
    unlike.windows(60)
    (ordinary,) = unlike.monitor.watched()
    unlike.windows(3, by=-1.0)

    assert "normal" == ordinary.state
    assert 0.5 == ordinary.low_threshold
    assert ordinary.baseline_ratio < 0.02
    assert "firing" == unlike.monitor.watched()[0].state


class Unlike:
    """A monitor with one layer; an eighth of its requests is of route eu, and some of it far higher."""

    def __init__(self, *flags: Flag, floor: float = -np.inf) -> None:
        self.rng, self.now, self.floor = np.random.default_rng(7), 0.0, floor
        self.monitor = Monitor(STATISTICS, SPIKE, now=0.0)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.flag(*flags)
        self.windows(340)

    @classmethod
    def of(cls, monitor: Monitor, other: "Unlike") -> "Unlike":
        """Return the traffic of another, on a monitor that continues its snapshot."""
        made = cls.__new__(cls)
        made.rng, made.now, made.floor = other.rng, other.now, other.floor
        made.monitor = monitor
        monitor.restore(other.monitor.encode(), other.now)
        made.wanted = other.wanted
        monitor.set_flags(other.wanted, other.now)
        return made

    def flag(self, *flags: Flag) -> None:
        """Watch the first features so."""
        self.wanted = {
            FeatureSelector.parse(f"m/conv/channel/{index}"): flag
            for index, flag in enumerate(flags)
        }
        self.monitor.set_flags(self.wanted, self.now)

    def windows(self, count: int, by: float = 0.0) -> list[str]:
        """Send windows in which half of the requests of each route are shifted; return what is told."""
        told: list[str] = []
        for _ in range(count):
            eu = np.arange(ALL) % 8 == 0
            values = np.maximum(self.rng.normal(size=(ALL, WIDTH)), self.floor)
            high = self.rng.normal(3.2, 0.5, (eu.sum(), WIDTH))
            values[eu] = np.where(self.rng.random((eu.sum(), WIDTH)) < 0.08, high, values[eu])
            values[: ALL // 2] += by
            requests = tuple(Request("", EU if own else Slice()) for own in eu)
            index = np.arange(ALL, dtype=np.int32)
            sample = LayerSample(LAYER, values.astype(np.float32), index, requests)
            self.monitor.apply(sample, self.now + 1)
            self.now += WINDOW
            told += [one.what for one in self.monitor.tick(self.now)]
        return told


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
