"""The audit log says all that holds: whatever flags, baselines, clocks and restarts do, it adds up."""

from collections.abc import Iterable

import numpy as np
import pytest

from sidecar.config import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.detect import Detector, Direction, State
from sidecar.errors import BaselineNotReady
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
from sidecar.monitor import Event, Flag, Monitor

pytestmark = pytest.mark.unit

WIDTH, FLAGGED, ROWS, WINDOW, STEPS = 24, 4, 1100, 1800.0, 120
LAYERS = tuple(
    LayerKey("m", "a" * 64, name, FeatureKind.CHANNEL, View.MAX) for name in ("conv", "fc")
)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW,
    warmup_rows=64,
    baseline_min_requests=5 * ROWS,
    baseline_min_seconds=8 * WINDOW,
)
SPIKES = [
    SpikeConfig(quantile=quantile, clear_windows=2, resolved_windows=2, unsampled_windows=3)
    for quantile in (0.99, 0.95)
]
SCREEN = ScreenConfig(baseline_windows=3, layer_minimum=3, pending_windows=2, clear_windows=2)
CANARY = Slice.of({"canary": "yes"})
DETECTORS = list(Detector)
LOUD = (State.PENDING, State.FIRING, State.RESOLVED)


class Log:
    """What somebody believes who knows nothing but the audit log."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.conditions: dict[str, set[str]] = {}
        self.drifting, self.shifted = set[str](), set[str]()
        self.kinds = set[str]()

    def read(self, events: Iterable[Event]) -> None:
        """Take in entries, each of which must be news."""
        for event in events:
            self.kinds.add(event.what)
            kind, _, what = event.what.partition("_")
            if event.what == "feature_condition":
                self._condition(event)
            elif event.what == "feature_drifting":
                assert event.subject not in self.drifting, event
                self.drifting.add(event.subject)
            elif event.what == "feature_settled":
                self.drifting.remove(event.subject)
            elif event.what == "layer_shifted":
                assert event.subject not in self.shifted, event
                self.shifted.add(event.subject)
            elif event.what == "layer_settled":
                self.shifted.remove(event.subject)
            elif kind == "feature":
                self.states[event.subject] = what

    def _condition(self, event: Event) -> None:
        held = self.conditions.setdefault(event.subject, set())
        words = event.detail.partition(":")[0]
        over = words.removeprefix("no longer ")
        if over != words:
            held.remove(over)
        else:
            assert words not in held, event
            held.add(words)

    def check(self, monitor: Monitor) -> None:
        """Compare the belief with what the monitor says."""
        seen = {str(one.key): one for one in monitor.watched()}
        believed = {key: state for key, state in self.states.items() if State(state) in LOUD}
        true = {key: str(one.state) for key, one in seen.items() if one.state in LOUD}
        assert true == believed
        assert {k: set(one.conditions) for k, one in seen.items() if one.conditions} == {
            key: held for key, held in self.conditions.items() if held
        }
        assert {key for key, one in seen.items() if one.drifting} == self.drifting
        assert {str(one.key) for one in monitor.layers() if one.shifted} == self.shifted


class Life:
    """A monitor of two layers to which anything may happen."""

    def __init__(self, seed: int) -> None:
        self.rng, self.log, self.now, self.spike = np.random.default_rng(seed), Log(), 1e6, 0
        self.flags = dict[FeatureSelector, Flag]()
        self.trouble = np.zeros((len(LAYERS), WIDTH), np.int64)
        self.monitor = self._monitor()
        for layer in LAYERS:
            self.monitor.register(layer, WIDTH, Capture(), self.now)

    def _monitor(self) -> Monitor:
        return Monitor(STATISTICS, SPIKES[self.spike], now=self.now, screen=SCREEN)

    def window(self) -> None:
        """Send a window of traffic, some features of which are in trouble."""
        for number, layer in enumerate(LAYERS):
            values = self.rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
            for index, trouble in enumerate(self.trouble[number].tolist()):
                column = values[:, index]
                if trouble:
                    values[:, index] = (column + 1, column + 6, 0 * column, np.nan, 3 + 0 * column)[
                        trouble - 1
                    ]
            requests = tuple(Request(traffic=CANARY if at % 2 else Slice()) for at in range(ROWS))
            index_of = np.arange(ROWS, dtype=np.int32)
            self.monitor.apply(LayerSample(layer, values, index_of, requests), self.now + 1)
        self.silence()

    def silence(self) -> None:
        """End a window."""
        self.now += WINDOW
        self.log.read(self.monitor.tick(self.now))

    def trouble_of(self, features: slice) -> None:
        """Let features be shifted, far up, dead, not finite, stuck, or well."""
        self.trouble[int(self.rng.integers(len(LAYERS))), features] = self.rng.integers(6)

    def calm(self) -> None:
        """Let all be well."""
        self.trouble[:] = 0

    def flags_of(self) -> Flag:
        """Return any flag."""
        chosen = [one for one in DETECTORS if self.rng.random() < 0.7]
        return Flag(
            str(self.rng.integers(3)),
            direction=list(Direction)[self.rng.integers(3)],
            traffic=CANARY if self.rng.random() < 0.3 else Slice(),
            detectors=tuple(chosen),
        )

    def choose(self) -> None:
        """Flag some features otherwise, or no longer."""
        for layer in LAYERS:
            for index in range(FLAGGED):
                selector = FeatureSelector.parse(f"m/{layer.layer}/channel/{index}")
                if self.rng.random() < 0.4:
                    self.flags[selector] = self.flags_of()
                elif self.rng.random() < 0.1:
                    self.flags.pop(selector, None)

    def restart(self) -> None:
        """Go on from a snapshot, now and then with another configuration."""
        payload = self.monitor.encode()
        if self.rng.random() < 0.3:
            self.spike = 1 - self.spike
        if self.rng.random() < 0.3:
            self.choose()
        self.monitor = self._monitor()
        self.monitor.restore(payload, self.now)
        self.log.read(self.monitor.set_flags(self.flags, self.now))

    def reset(self) -> None:
        """Learn one layer anew."""
        self.log.read(self.monitor.reset([LAYERS[self.rng.integers(2)]], self.now))

    def freeze(self) -> None:
        """Freeze what there is."""
        try:
            self.log.read(self.monitor.freeze(LAYERS, self.now))
        except BaselineNotReady:
            return

    def clock(self) -> None:
        """Put the clock somewhere else."""
        self.now += float(self.rng.choice([-86_400.0, -3600.0, -1.0, 1.0, 3600.0, 86_400.0]))


def happen(life: Life, what: str) -> None:
    """Let one named thing happen, and compare."""
    if what == "trouble":
        few = int(life.rng.integers(FLAGGED))
        life.trouble_of(slice(None) if life.rng.random() < 0.3 else slice(few, few + 1))
    elif what == "flags":
        life.choose()
        life.log.read(life.monitor.set_flags(life.flags, life.now))
    else:
        getattr(life, what)()
    life.log.check(life.monitor)


KINDS = ("window", "flags", "restart", "trouble", "calm", "reset", "freeze", "silence", "clock")
CHANCES = (0.66, 0.05, 0.04, 0.09, 0.03, 0.03, 0.02, 0.04, 0.04)


def test_the_audit_log_says_all_that_holds() -> None:
    """Each entry is news, and together they are what the console shows, at every step."""
    kinds = set[str]()
    for seed in range(4):
        life = Life(seed)
        happen(life, "flags")
        for _ in range(14):
            happen(life, "window")
        for what in life.rng.choice(KINDS, size=STEPS, p=CHANCES):
            happen(life, str(what))
        kinds |= life.log.kinds

    assert {
        "baseline_frozen",
        "baseline_relearned",
        "feature_condition",
        "feature_firing",
        "feature_unknown",
        "layer_settled",
        "layer_shifted",
    } <= kinds
