"""Flags that change while something holds: what was counted otherwise is forgotten, and said to be."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import Detector, Direction, SpikePolicy, State
from sidecar.errors import CorruptState, InvalidName
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
from sidecar.monitor.watch import LayerWatch
from sidecar.testing import running_daemon, wait_until

pytestmark = pytest.mark.unit

WIDTH, ROWS, WINDOW = 3, 320, 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=32, baseline_min_requests=6_400, baseline_min_seconds=20
)
CANARY = Slice.of({"canary": "yes"})
SPIKY, BROKEN = LAYER.feature(1), LAYER.feature(2)


class Traffic:
    """A monitor in which one feature spikes and another is not finite."""

    def __init__(self, flag: Flag | None = None, spike: SpikeConfig | None = None) -> None:
        self.rng = np.random.default_rng(3)
        self.now, self.spike = 0.0, spike or SpikeConfig()
        self.monitor = Monitor(STATISTICS, self.spike, now=0.0)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.flag(flag or Flag("common"))
        for _ in range(21):
            self.window()
        for _ in range(3):
            self.window(c1=20.0, c2=np.nan)

    def flag(self, flag: Flag) -> tuple[Event, ...]:
        """Watch every feature so."""
        names = [f"m/conv/channel/{index}" for index in range(WIDTH)]
        flags = {FeatureSelector.parse(name): flag for name in names}
        return self.monitor.set_flags(flags, self.now)

    def window(self, **columns: float) -> list[str]:
        """Send one window of ordinary traffic but for some columns; return what was told."""
        values = self.rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        for name, value in columns.items():
            values[:, int(name[1:])] = value
        requests = tuple(Request(str(at), CANARY) for at in range(ROWS))
        sample = LayerSample(LAYER, values, np.arange(ROWS, dtype=np.int32), requests)
        self.monitor.apply(sample, self.now + 1)
        self.now += WINDOW
        return [event.what for event in self.monitor.tick(self.now)]

    def restart(self, flag: Flag, spike: SpikeConfig | None = None) -> tuple[Event, ...]:
        """Continue from a snapshot under other settings."""
        payload = self.monitor.encode()
        self.monitor = Monitor(STATISTICS, spike or self.spike, now=self.now)
        self.monitor.restore(payload, self.now)
        return self.flag(flag)

    @property
    def holds(self) -> tuple[State, tuple[str, ...]]:
        """The state of the one and the conditions of the other."""
        return self.monitor.feature(SPIKY).state, self.monitor.feature(BROKEN).conditions


HELD = (State.FIRING, ("nonfinite",))
ALIKE = [
    Flag("renamed", "critical", "somebody"),
    Flag("common", factor=9.0),
    Flag("common", detectors=(Detector.CONDITIONS, Detector.SPIKE)),
]
OTHERWISE = [
    Flag("common", direction=Direction.BELOW),
    Flag("common", direction=Direction.BOTH),
    Flag("common", traffic=CANARY),
]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("flag", ALIKE)
def test_what_is_counted_alike_is_kept(flag: Flag, *, restart: bool) -> None:
    """A name, an owner, a factor or the order of detectors changes nothing that was counted."""
    traffic = Traffic()
    assert traffic.holds == HELD

    told = traffic.restart(flag) if restart else traffic.flag(flag)

    assert () == told
    assert traffic.holds == HELD
    assert [] == [what for what in traffic.window(c1=20.0, c2=np.nan) if "settled" not in what]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("flag", OTHERWISE)
def test_an_alarm_of_another_direction_or_slice_is_not_inherited(
    flag: Flag, *, restart: bool
) -> None:
    """It ends with a word; what is not finite stays so, whatever direction is watched."""
    traffic = Traffic()

    told = traffic.restart(flag) if restart else traffic.flag(flag)

    assert [("feature_unknown", str(SPIKY))] == [(event.what, event.subject) for event in told]
    assert "watched otherwise" in told[0].detail
    assert "(was firing)" in told[0].detail
    assert traffic.holds == (State.UNKNOWN, ("nonfinite",))
    assert 0.0 == traffic.monitor.feature(SPIKY).evidence_log10
    assert 0 == traffic.monitor.feature(SPIKY).requests


@pytest.mark.parametrize("restart", [False, True])
def test_a_flag_of_its_own_kind_is_kept_over_a_restart(*, restart: bool) -> None:
    """A feature watched on one slice and on both sides goes on firing under the same flag."""
    flag = Flag("own", traffic=CANARY, direction=Direction.BOTH)
    traffic = Traffic(flag)

    told = traffic.restart(flag) if restart else traffic.flag(flag)

    assert () == told
    assert traffic.holds == HELD


def test_an_alarm_beyond_another_quantile_is_not_inherited() -> None:
    """After a restart with another quantile what exceeded is not what exceeds."""
    traffic = Traffic()

    told = traffic.restart(Flag("common"), SpikeConfig(quantile=0.99))

    assert [("feature_unknown", str(SPIKY))] == [(event.what, event.subject) for event in told]
    assert traffic.holds == (State.UNKNOWN, ("nonfinite",))
    assert () == traffic.restart(Flag("common"), SpikeConfig(quantile=0.99))


@pytest.mark.parametrize("restart", [False, True])
def test_a_detector_that_is_not_asked_for_any_more_lets_go(*, restart: bool) -> None:
    """Nothing would ever end what it holds, and its alert would stay for good."""
    traffic = Traffic()
    flag = Flag("common", detectors=(Detector.DRIFT,))

    told = traffic.restart(flag) if restart else traffic.flag(flag)

    assert {
        ("feature_unknown", str(SPIKY), "no longer watched for it (was firing)"),
        ("feature_condition", str(SPIKY), "no longer never_seen: no longer watched for it"),
        ("feature_condition", str(BROKEN), "no longer nonfinite: no longer watched for it"),
    } <= {(event.what, event.subject, event.detail) for event in told}
    assert (State.UNKNOWN, ()) == traffic.holds
    assert [] == traffic.window(c1=20.0, c2=np.nan)
    assert (State.UNKNOWN, ()) == traffic.holds


def test_what_is_asked_for_again_starts_from_nothing() -> None:
    """A condition that still holds is then told as news."""
    traffic = Traffic()
    traffic.flag(Flag("common", detectors=(Detector.SPIKE,)))

    traffic.flag(Flag("common"))

    assert () == traffic.holds[1]
    assert "feature_condition" in traffic.window(c2=np.nan)


@pytest.mark.parametrize("restart", [False, True])
def test_a_feature_that_nobody_watches_any_more_lets_go(*, restart: bool) -> None:
    """Its alarm ends in the audit log as it does in the scrape."""
    traffic = Traffic()
    if restart:
        payload = traffic.monitor.encode()
        traffic.monitor = Monitor(STATISTICS, SpikeConfig(), now=traffic.now)
        traffic.monitor.restore(payload, traffic.now)

    told = traffic.monitor.set_flags({}, traffic.now)

    assert "no longer watched for it (was firing)" in [event.detail for event in told]
    assert str(BROKEN) in [event.subject for event in told]
    assert () == traffic.monitor.watched()


def test_counters_of_a_scrape_go_on_under_another_flag() -> None:
    """A Prometheus counter that falls would look like a restart."""
    traffic = Traffic()
    before = traffic.monitor.feature(SPIKY)

    traffic.flag(Flag("common", direction=Direction.BELOW))
    after = traffic.monitor.feature(SPIKY)

    assert (before.sampled_requests, before.spikes) == (after.sampled_requests, after.spikes)
    assert before.sampled_requests


def saved() -> dict[str, Any]:
    """Return a watch over one feature as a snapshot holds it."""
    policy = SpikePolicy()
    watch = LayerWatch.empty(LAYER, policy, 0.0)
    watch.rewatch({1: Flag(traffic=CANARY, detectors=(Detector.SPIKE,))}, policy, 0.0)
    found: dict[str, Any] = json.loads(json.dumps(watch.to_dict()))
    return found


def test_how_a_feature_is_watched_comes_back() -> None:
    """Direction, slice and detectors, though not the name, which is kept elsewhere."""
    watch = LayerWatch.empty(LAYER, SpikePolicy(quantile=0.9), 0.0)

    watch.restore(saved())

    assert [Flag(traffic=CANARY, detectors=(Detector.SPIKE,))] == watch.flags
    assert SpikePolicy().quantile == watch.quantile


def test_a_snapshot_of_an_earlier_build_is_taken_as_usual() -> None:
    """It does not say how features were watched."""
    watch = LayerWatch.empty(LAYER, SpikePolicy(), 0.0)

    watch.restore({name: value for name, value in saved().items() if name != "flags"})

    assert [Flag()] == watch.flags


@pytest.mark.parametrize(
    "change",
    [
        {"flags": []},
        {"flags": None},
        {"flags": 7},
        {"flags": "x"},
        {"flags": [{}]},
        {"flags": [[]]},
        {"flags": [{"direction": "up", "slice": {}, "detectors": []}]},
        {"flags": [{"direction": "above", "slice": 3, "detectors": []}]},
        {"flags": [{"direction": "above", "slice": {"a b": "c"}, "detectors": []}]},
        {"flags": [{"direction": "above", "slice": {"a": 1}, "detectors": []}]},
        {"flags": [{"direction": "above", "slice": {}, "detectors": "spike"}]},
        {"quantile": None},
        {"quantile": "high"},
    ],
)
def test_a_damaged_flag_is_refused(change: Mapping[str, Any]) -> None:
    """As every other part of a snapshot, by one of the errors that set a snapshot aside."""
    watch = LayerWatch.empty(LAYER, SpikePolicy(), 0.0)

    with pytest.raises((CorruptState, KeyError, TypeError, ValueError, InvalidName)):
        watch.restore({**saved(), **change})


@pytest.mark.service
def test_a_restart_with_another_configuration_says_what_it_let_go(tmp_path: Path) -> None:
    """The daemon's audit log has it, and the console shows no condition."""
    settings: dict[str, Any] = {
        "models": [{"name": "m"}],
        "statistics": {"warmup_rows": 16, "window_seconds": 0.2},
        "flags": [{"feature": "m/conv/channel/2"}],
    }
    values = np.full((64, WIDTH), np.nan, np.float32)
    requests = tuple(Request(str(at)) for at in range(64))
    sample = LayerSample(LAYER, values, np.arange(64, dtype=np.int32), requests)
    with running_daemon(tmp_path, settings) as running:
        monitor = running.daemon.monitor
        monitor.register(LAYER, WIDTH, Capture(), 1.0)
        monitor.apply(replace(sample, values=np.ones_like(values)), 2.0)
        running.daemon.operations.freeze("m", "", "")
        monitor.apply(sample, 3.0)
        wait_until(lambda: monitor.feature(BROKEN).conditions)
    settings["flags"][0]["detectors"] = ["spike"]
    with running_daemon(tmp_path, settings) as running:
        operations = running.daemon.operations
        told = wait_until(
            lambda: [e.detail for e in operations.events(BROKEN, 9) if "watched" in e.detail]
        )
        held = operations.feature(BROKEN).conditions

    assert ["no longer nonfinite: no longer watched for it"] == told
    assert () == held
