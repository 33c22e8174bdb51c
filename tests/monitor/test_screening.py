"""A layer that moves as a whole: one word about it, at once or after minutes, and none about bursts."""

import numpy as np
import pytest

from sidecar.config import ScreenConfig, SpikeConfig, StatisticsConfig
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
from sidecar.monitor.screening import Screening

pytestmark = pytest.mark.unit

WIDTH, REQUESTS, WINDOW = 64, 64, 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=64, baseline_min_requests=5120, baseline_min_seconds=800
)
SPIKE = SpikeConfig(quantile=0.99, clear_windows=3, resolved_windows=2)
SCREEN = ScreenConfig(baseline_windows=30, pending_windows=5, clear_windows=3)


class Traffic:
    """A monitor with one layer, fed window by window."""

    def __init__(self, flagged: int = 4, screen: ScreenConfig = SCREEN) -> None:
        self.rng, self.now, self.screen = np.random.default_rng(5), 0.0, screen
        self.flags = {
            FeatureSelector.parse(f"m/conv/channel/{index}"): Flag() for index in range(flagged)
        }
        self.monitor = self._monitor()
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.monitor.set_flags(self.flags, 0.0)

    def _monitor(self) -> Monitor:
        return Monitor(STATISTICS, SPIKE, now=self.now, screen=self.screen)

    def restart(self) -> None:
        """Go on in another monitor, from what this one saved."""
        saved, self.monitor = self.monitor.encode(), self._monitor()
        self.monitor.restore(saved, self.now)
        self.monitor.set_flags(self.flags, self.now)

    def windows(self, count: int, moved: slice = slice(0), by: float = 3.0) -> list[str]:
        """Send windows in which some features are shifted; return what was told of the layer."""
        told = []
        for _ in range(count):
            values = self.rng.normal(size=(REQUESTS, WIDTH)).astype(np.float32)
            values[:, moved] += by
            requests = tuple(Request() for _ in range(REQUESTS))
            index = np.arange(REQUESTS, dtype=np.int32)
            self.monitor.apply(LayerSample(LAYER, values, index, requests), self.now + 1)
            self.now += WINDOW
            events = self.monitor.tick(self.now)
            told += [event for event in events if event.what.startswith("layer_")]
        return [event.what for event in told]

    @property
    def shifted(self) -> bool:
        """Whether the monitor says that the layer is shifted."""
        return self.monitor.layers()[0].shifted


def learned(flagged: int = 4, screen: ScreenConfig = SCREEN) -> Traffic:
    """Return traffic whose layer has its baseline, and some calm windows behind it."""
    traffic = Traffic(flagged, screen)
    assert traffic.windows(90) == []
    assert traffic.monitor.layers()[0].baseline_frozen
    return traffic


def test_a_layer_whose_flagged_features_spike_together_is_told_at_once() -> None:
    """In the very window in which they fire, so that nobody is told of each."""
    traffic = learned()

    first = traffic.windows(1, slice(None))
    status = traffic.monitor.layers()[0]

    assert first == ["layer_shifted"]
    assert status.shifted
    assert status.screened_features == WIDTH
    assert status.significant_features > WIDTH // 2


def test_it_ends_with_the_last_pair_of_its_features() -> None:
    """Features are held for a while; until then their own alerts must stay held back."""
    traffic = learned()
    traffic.windows(3, slice(None))

    told = traffic.windows(8)

    assert told == ["layer_settled"]
    assert not traffic.shifted
    assert {str(one.state) for one in traffic.monitor.watched()} <= {"resolved", "normal"}


def test_two_features_that_spike_alone_are_no_shift() -> None:
    """Few of the layer move: each is told for itself."""
    traffic = learned()

    assert traffic.windows(4, slice(0, 2)) == []
    assert not traffic.shifted


def test_a_burst_without_flagged_spikes_is_told_only_when_it_lasts() -> None:
    """Nothing flagged moves: the screen waits for as many windows as it is told to."""
    traffic = learned(flagged=1)

    assert traffic.windows(4, slice(20, 60)) == []
    assert traffic.windows(1, slice(20, 60)) == ["layer_shifted"]
    assert traffic.windows(4) == ["layer_settled"]


def test_a_baseline_that_was_measured_too_briefly_is_not_screened() -> None:
    """Then flagged features are told one by one, and the status says that nothing was screened."""
    traffic = learned(screen=SCREEN.model_copy(update={"baseline_windows": 1000}))

    assert traffic.windows(3, slice(None)) == []
    assert 0 == traffic.monitor.layers()[0].screened_features


def test_a_shift_outlives_a_restart_and_is_not_told_again() -> None:
    """What was told before is not news."""
    traffic = learned()
    traffic.windows(2, slice(None))
    traffic.restart()

    assert traffic.shifted
    assert traffic.windows(2, slice(None)) == []
    assert traffic.shifted


def test_a_reset_ends_a_shift() -> None:
    """There is nothing to be shifted from until a new baseline is learned."""
    traffic = learned()
    traffic.windows(2, slice(None))

    told = traffic.monitor.reset([LAYER], traffic.now)

    assert not traffic.shifted
    assert 0 == traffic.monitor.layers()[0].screened_features
    assert ["baseline_relearned", "layer_settled"] == [event.what for event in told[:2]]
    assert str(LAYER) == told[1].subject
    assert "what it was compared with is gone" == told[1].detail
    assert [] == traffic.windows(2, slice(None))


def test_a_layer_that_was_not_shifted_does_not_settle() -> None:
    """A reset tells of ends only where something held."""
    traffic = learned()

    told = traffic.monitor.reset([LAYER], traffic.now)

    assert "layer_settled" not in [event.what for event in told]


def test_a_damaged_screen_is_refused() -> None:
    """As every other part of a snapshot."""
    saved = Screening().to_dict()

    with pytest.raises(CorruptState):
        Screening().restore(saved | {"shifted": 1})
    with pytest.raises(CorruptState):
        Screening().restore(saved | {"layer": {}})


def test_two_features_that_go_on_alone_hide_the_others_only_for_a_while() -> None:
    """After the layer has calmed down, a spike of another feature is told for itself again."""
    traffic = learned()
    traffic.windows(2, slice(None))

    told = traffic.windows(2 * SCREEN.clear_windows + 2, slice(0, 2))

    assert told == ["layer_settled"]
    assert not traffic.shifted


def test_a_second_shift_soon_after_the_first_is_told_as_well() -> None:
    """Also while the screen still holds the layer as resolved."""
    traffic = learned(screen=SCREEN.model_copy(update={"resolved_windows": 50}))
    traffic.windows(6, slice(None))
    assert traffic.windows(12) == ["layer_settled"]

    assert "layer_shifted" in traffic.windows(6, slice(None), by=6.0)
