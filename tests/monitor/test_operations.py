"""Operations over a real daemon's parts: paging, flags that stay, alerts that ask for portraits."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.config import SidecarConfig
from sidecar.daemon import Daemon
from sidecar.detect import Detector, Direction, State
from sidecar.errors import (
    Conflict,
    InvalidInput,
    JobQueueFull,
    NotFound,
    UnknownFeature,
    UnsupportedTarget,
)
from sidecar.features import (
    Capture,
    FeatureKey,
    FeatureKind,
    LayerKey,
    LayerSample,
    Request,
    Slice,
    View,
)
from sidecar.jobs import Cause, JobRequest
from sidecar.monitor import Event, Flag, Operations, Watching
from sidecar.monitor.operations import urgency
from sidecar.recipes import Maximisation, Side, Target
from sidecar.testing import running_daemon, wait_until

pytestmark = pytest.mark.service

REVISION = "c" * 64
LAYERS = {
    LayerKey("m", REVISION, "a"): 5,
    LayerKey("m", REVISION, "b"): 3,
    LayerKey("m", REVISION, "fc", FeatureKind.HEAD, View.MEAN): 4,
}
KEYS = [layer.feature(i) for layer, width in LAYERS.items() for i in range(width)]
WATCHED = {
    "factor": 2.5,
    "direction": "both",
    "slice": {"route": "/v1"},
    "detectors": ["spike", "drift"],
}
"""How the configuration watches its feature."""

CONFIGURED = Flag(
    "configured",
    factor=2.5,
    direction=Direction.BOTH,
    traffic=Slice((("route", "/v1"),)),
    detectors=(Detector.SPIKE, Detector.DRIFT),
)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """The operations of a daemon whose worker cannot load its model: jobs wait or fail."""
    settings_ = {
        "models": [{"name": "m", "factory": "nowhere.at_all:build"}],
        "flags": [{"feature": "m/a/channel/4", "name": "configured", **WATCHED}],
    }
    with running_daemon(tmp_path_factory.mktemp("operations"), settings_) as running:
        for layer, width in LAYERS.items():
            running.daemon.monitor.register(layer, width, Capture(), 0.0)
        yield running.daemon.operations


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flagged=st.sets(st.sampled_from(KEYS[:4] + KEYS[5:])),
    size=st.integers(1, 6),
)
def test_pages_show_every_feature_once_flagged_first(
    operations: Operations, flagged: set[FeatureKey], size: int
) -> None:
    """Whatever is flagged, paging through the list skips and repeats nothing."""
    for key in flagged:
        operations.flag(key, Flag("x"))
    try:
        seen, total = [], len(KEYS)
        for offset in range(0, len(KEYS), size):
            page, total = operations.features(offset=offset, limit=size)
            seen += [status.key for status in page]
    finally:
        for key in flagged:
            operations.unflag(key)

    watched = sorted(flagged | {KEYS[4]})
    assert watched + [key for key in KEYS if key not in watched] == seen
    assert len(KEYS) == total


def test_what_is_certain_stands_below_spikes_and_above_the_calm(operations: Operations) -> None:
    """A stuck feature is not looked for among a hundred normal ones."""
    base = operations.feature(KEYS[0])
    wanted = [
        replace(base, state=State.FIRING),
        replace(base, state=State.PENDING, conditions=("silent",)),
        replace(base, state=State.NORMAL, conditions=("saturated",)),
        replace(base, state=State.UNKNOWN, drifting=True),
        replace(base, state=State.RESOLVED),
        replace(base, state=State.NORMAL),
        replace(base, state=State.UNKNOWN),
    ]

    assert wanted == sorted(set(wanted), key=urgency)


def test_flags_set_by_command_survive_a_restart(tmp_path: Path) -> None:
    """A flag is written before the command answers."""
    layer, width = next(iter(LAYERS.items()))
    settings_ = {"models": [{"name": "m"}]}
    with running_daemon(tmp_path, settings_) as first:
        first.daemon.monitor.register(layer, width, Capture(), 0.0)
        first.daemon.operations.flag(layer.feature(2), Flag("kept", "critical", "me"))
    with running_daemon(tmp_path, settings_) as second:
        found = second.daemon.operations.feature(layer.feature(2)).flag

    assert Flag("kept", "critical", "me") == found


def test_how_a_feature_is_watched_is_set_by_hand_and_survives_a_restart(tmp_path: Path) -> None:
    """What a later word leaves out stays, and the audit log has it."""
    layer, width = next(iter(LAYERS.items()))
    key, settings_ = layer.feature(2), {"models": [{"name": "m"}]}
    with running_daemon(tmp_path, settings_) as first:
        operations = first.daemon.operations
        first.daemon.monitor.register(layer, width, Capture(), 0.0)
        operations.flag(key, Flag("kept"), Watching.of(2.0, "below", "route=eu", ["spike"]))
        operations.flag(key, Flag("renamed"), Watching.of(traffic=""))
        operations.flush_events()
        told = [event.detail for event in operations.events(key, 2)]
    with running_daemon(tmp_path, settings_) as second:
        found = second.daemon.operations.feature(key).flag

    below = Flag("renamed", factor=2.0, direction=Direction.BELOW, detectors=(Detector.SPIKE,))
    assert below == found
    assert [
        "renamed, severity warning, watched on all traffic",
        "kept, severity warning, watched factor 2.0, below, on route=eu, for spike",
    ] == told


def test_a_configured_feature_watched_otherwise_by_hand_comes_back(operations: Operations) -> None:
    """What is not said by hand is as configured, and unflagging undoes the rest."""
    operations.flag(KEYS[4], Flag("by hand"), Watching.of(direction="below"))
    by_hand = operations.feature(KEYS[4]).flag
    operations.unflag(KEYS[4])

    expected = replace(CONFIGURED, name="by hand", severity="warning", owner="")
    assert replace(expected, direction=Direction.BELOW) == by_hand
    assert CONFIGURED == operations.feature(KEYS[4]).flag


def test_a_flag_of_the_configuration_is_not_removed_by_command(operations: Operations) -> None:
    """What the file says is changed in the file."""
    with pytest.raises(Conflict, match="flagged in the configuration"):
        operations.unflag(KEYS[4])
    with pytest.raises(UnknownFeature, match="is not flagged"):
        operations.unflag(KEYS[0])


def test_what_was_set_by_hand_on_a_configured_feature_can_be_undone(
    operations: Operations,
) -> None:
    """By hand only words change, not how it is watched; the configuration's own flag comes back."""
    operations.flag(KEYS[4], Flag("by hand", "critical", "me"))
    by_hand = operations.feature(KEYS[4]).flag
    operations.unflag(KEYS[4])

    assert replace(CONFIGURED, name="by hand", severity="critical", owner="me") == by_hand
    assert CONFIGURED == operations.feature(KEYS[4]).flag


def test_a_damaged_flag_in_the_database_stops_no_start(tmp_path: Path) -> None:
    """The row is told in the log, and the other flags are there."""
    layer = next(iter(LAYERS))
    settings_ = {"models": [{"name": "m"}]}
    with running_daemon(tmp_path, settings_) as first:
        first.daemon.storage.catalogue.set_flag("mXr1/a/channel", "", "info", "")
        first.daemon.storage.catalogue.set_flag("m/a/channel/1", "", "info", "", "damaged")
        first.daemon.storage.catalogue.set_flag("m/a/channel/2", "good", "info", "")
    with structlog.testing.capture_logs() as logs, running_daemon(tmp_path, settings_) as second:
        second.daemon.monitor.register(layer, 5, Capture(), 0.0)
        found = second.daemon.operations.feature(layer.feature(2)).flag

    assert Flag("good", "info") == found
    assert "mXr1/a/channel" in [line.get("selector") for line in logs]


def test_an_alert_is_one_job_however_often_it_is_sent(operations: Operations) -> None:
    """Alertmanager repeats itself; the queue does not."""
    labels = {
        "model": "m",
        "revision": REVISION[:12],
        "layer": "a",
        "kind": "channel",
        "feature": "1",
    }

    jobs = [operations.alert_fired("f1", 100.0, labels, {}) for _ in range(3)]
    later = operations.alert_fired("f1", 200.0, labels, {})

    assert 1 == len({job.id for job in jobs if job})
    assert later is not None
    assert jobs[0] is not None
    assert later.id != jobs[0].id
    assert "alert" == later.request.origin
    assert Cause(alert="f1", alert_started=200.0) == later.request.cause


@pytest.mark.parametrize(
    ("direction", "side"),
    [("above", Side.POSITIVE), ("both", Side.POSITIVE), ("below", Side.NEGATIVE)],
)
def test_a_flag_that_watches_below_asks_for_the_negative_side(
    tmp_path: Path, direction: str, side: Side
) -> None:
    """What is too low is shown by what makes the unit low."""
    flag = {"feature": "m/a/channel/2", "name": "x", "direction": direction}
    configured = {"models": [{"name": "m", "factory": "nowhere.at_all:build"}], "flags": [flag]}
    with running_daemon(tmp_path, configured) as running:
        running.daemon.monitor.register(next(iter(LAYERS)), 5, Capture(), 0.0)
        operations = running.daemon.operations
        key = operations.resolve("m/a/channel/2")

        job = operations.portrait_of(key, "once", "", Cause())

    assert job is not None
    assert side == job.request.targets[0].side


def test_an_alert_about_no_feature_is_refused_by_name(operations: Operations) -> None:
    """Alerts of other systems may come by the same webhook."""
    with pytest.raises(NotFound, match="has no labels revision, layer"):
        operations.alert_fired("f2", 1.0, {"model": "m"}, {})


def test_an_alert_about_a_unit_without_pictures_asks_for_none(operations: Operations) -> None:
    """A head has no portrait yet; its alert is still an alert."""
    labels = {"model": "m", "revision": REVISION, "layer": "fc", "kind": "head", "feature": "1"}

    assert operations.alert_fired("f3", 1.0, labels, {}) is None


def test_a_job_about_a_direction_is_refused_before_it_is_queued(
    tmp_path: Path,
) -> None:
    """There is no dictionary over its layer, even if somebody measures such directions."""
    configured = {"models": [{"name": "m", "factory": "nowhere.at_all:build"}]}
    layer = LayerKey("m", REVISION, "a", FeatureKind.DIRECTION, View.MEAN)
    with running_daemon(tmp_path, configured) as running:
        running.daemon.monitor.register(layer, 3, Capture(), 0.0)
        target = Target(layer.feature(1))

        assert not running.daemon.operations.can_picture(layer.feature(1))
        with pytest.raises(
            UnsupportedTarget, match="name a file of vectors for it under dictionaries"
        ):
            running.daemon.operations.submit(JobRequest((target,), Maximisation()))


def test_a_job_that_cannot_be_done_is_refused_before_it_is_queued(operations: Operations) -> None:
    """The person who asks is told, not the log of a worker."""
    typical = operations.recipe({"typical_range": 1.0})
    with pytest.raises(UnsupportedTarget, match="needs a frozen baseline"):
        operations.submit(JobRequest((Target(KEYS[0]),), typical))
    with pytest.raises(UnsupportedTarget, match="no features"):
        operations.submit(JobRequest(()))
    with pytest.raises(UnknownFeature):
        operations.submit(JobRequest((Target(KEYS[0].layer.feature(99)),)))


def test_the_job_queue_is_bounded(tmp_path: Path) -> None:
    """Beyond the limit a request is refused, and may be sent again."""
    settings_ = {
        "models": [{"name": "m", "factory": "nowhere.at_all:build"}],
        "jobs": {"queue_limit": 2},
    }
    with running_daemon(tmp_path, settings_) as running:
        running.daemon.monitor.register(KEYS[0].layer, 5, Capture(), 0.0)

        def flood() -> None:
            for _ in range(20):
                running.daemon.operations.submit(JobRequest((Target(KEYS[0]),)))

        with pytest.raises(JobQueueFull, match="2"):
            flood()


def test_features_in_the_unknown_state_are_the_unknown_ones_only(tmp_path: Path) -> None:
    """A feature that is flagged and known is left out; what nobody watches is unknown."""
    layer = KEYS[0].layer
    settings_ = {
        "models": [{"name": "m"}],
        "flags": [{"feature": "m/a/channel/1"}],
        "statistics": {"window_seconds": 0.2, "warmup_rows": 4},
    }
    with running_daemon(tmp_path, settings_) as running:
        monitor, operations = running.daemon.monitor, running.daemon.operations
        monitor.register(layer, 5, Capture(), 0.0)
        rows = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
        index = np.arange(64, dtype=np.int32)
        sample = LayerSample(layer, rows, index, tuple(Request() for _ in index))
        monitor.apply(sample, time.time())
        monitor.freeze([layer], time.time())

        def known() -> bool:
            monitor.apply(sample, time.time())
            return monitor.feature(layer.feature(1)).state is not State.UNKNOWN

        wait_until(known, what="a state")
        found, total = operations.features(state=State.UNKNOWN)

    assert ([0, 2, 3, 4], 4) == ([status.key.index for status in found], total)


def test_an_alert_that_is_sent_again_is_one_audit_entry(operations: Operations) -> None:
    """However long its job waits, the portrait was asked for once."""
    labels = {
        "model": "m",
        "revision": REVISION[:12],
        "layer": "a",
        "kind": "channel",
        "feature": "3",
    }
    for _ in range(3):
        operations.alert_fired("again", 300.0, labels, {"summary": "loud"})
    operations.flush_events()

    asked = [e for e in operations.events(KEYS[3], 100) if e.what == "portrait_requested"]
    assert ["loud"] == [event.detail for event in asked]


@pytest.mark.parametrize(
    "flag", [Flag("x" * 81), Flag("two\nlines"), Flag(owner="\ud800"), Flag(severity="loud")]
)
def test_a_flag_that_could_not_be_a_label_is_refused(operations: Operations, flag: Flag) -> None:
    """The same bounds as in the configuration, whichever way the flag comes in."""
    with pytest.raises(InvalidInput):
        operations.flag(KEYS[1], flag)

    assert operations.feature(KEYS[1]).flag is None


def test_a_job_of_too_many_features_is_refused(operations: Operations) -> None:
    """All of a job are optimised in one batch, so their number is bounded."""
    with pytest.raises(UnsupportedTarget, match="name at most 64"):
        operations.submit(JobRequest((Target(KEYS[0]),) * 65))


def test_audit_entries_beyond_the_backlog_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest are written, and the log says how many of the oldest were not."""
    monkeypatch.setattr("sidecar.monitor.operations.EVENT_BACKLOG", 3)
    daemon = Daemon(SidecarConfig(state_dir=tmp_path))
    for i in range(5):
        daemon.operations.record((Event(float(i), "what", "subject", ""),))

    with structlog.testing.capture_logs() as logs:
        daemon.operations.flush_events()
    kept = [event.at for event in daemon.operations.events(None, 10)]
    daemon.storage.close()

    assert [4.0, 3.0, 2.0] == kept
    assert [2] == [line["count"] for line in logs if line["event"] == "audit_entries_lost"]
