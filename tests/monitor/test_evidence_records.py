"""Records over a real daemon's parts: written, found again, gone in time, never more than allowed."""

import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from sidecar.detect import State
from sidecar.errors import StorageError
from sidecar.features import (
    Capture,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Slice,
)
from sidecar.monitor import Exposure
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.service

LAYER = LayerKey("m", "c" * 64, "a")
KEY = LAYER.feature(2)
ROUTES = [Slice.of({"route": "/eu" if i < 30 else "/us"}) for i in range(200)]


def settings(**evidence: Any) -> dict[str, Any]:
    """Return the configuration of a daemon that watches one feature."""
    return {
        "models": [{"name": "m"}],
        "flags": [{"feature": "m/a/channel/2", "name": "stripes"}],
        "evidence": evidence,
    }


def window(
    running: RunningDaemon, clock: FakeClock, rng: np.random.Generator, *, loud: bool
) -> None:
    """Let one window of traffic pass; in a loud one half of the requests of one route exceed."""
    values = rng.normal(size=(200, 4)).astype(np.float32)
    values[:15, 2] += 20.0 * loud
    requests = tuple(Request(f"user-{i}", ROUTES[i]) for i in range(200))
    sample = LayerSample(LAYER, values, np.arange(200, dtype=np.int32), requests)
    running.daemon.monitor.apply(sample, clock())
    clock.advance(10.0)
    running.daemon.operations.record(running.daemon.monitor.tick(clock()))


def fire(running: RunningDaemon, clock: FakeClock) -> None:
    """Let the feature fire and wait until its record is on the disk."""
    rng = np.random.default_rng(5)
    monitor, operations = running.daemon.monitor, running.daemon.operations
    monitor.register(LAYER, 4, Capture(), clock())
    operations.reset("m", "", "")
    for _ in range(10):
        window(running, clock, rng, loud=False)
    operations.freeze("m", "", "")
    before = len(operations.evidence(KEY, 99))
    while monitor.feature(KEY).state is not State.FIRING:
        window(running, clock, rng, loud=True)
    wait_until(lambda: len(operations.evidence(KEY, 99)) > before, 20, "the record on the disk")


def stored(folder: Path, clock: FakeClock, evidence: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the newest record a daemon with these settings finds, and what its status says."""
    with running_daemon(folder, settings(**evidence), clock=clock) as running:
        found = running.daemon.operations.evidence(KEY, 1)
        return (found[0] if found else None), running.daemon.monitor.feature(KEY).evidence_id


def test_a_record_is_there_after_a_restart_and_expires_by_the_clock(tmp_path: Path) -> None:
    """With the time set in the configuration, not a second more, and the status forgets it, too."""
    clock, evidence = FakeClock(), {"enabled": True, "expire_seconds": 1000.0}
    with running_daemon(tmp_path, settings(**evidence), clock=clock) as running:
        fire(running, clock)
        (record,) = running.daemon.operations.evidence(KEY, 9)
        shown = running.daemon.operations.feature(KEY).evidence_id
        used = running.daemon.storage.evidence.used_bytes
    clock.advance(999.0 - (clock() - record.at))
    last = stored(tmp_path, clock, evidence)
    with running_daemon(tmp_path, settings(**evidence), clock=clock) as running:
        clock.advance(1.5)
        unseen = running.daemon.operations.evidence(KEY, 9)
        clock.advance(61.0)  # housekeeping looks once a minute
        wait_until(
            lambda: not running.daemon.storage.evidence.used_bytes, 20, "the disk to be clear"
        )
        wait_until(lambda: not running.daemon.monitor.feature(KEY).evidence_id, 20, "no id")

    assert record.id == shown
    assert used > 0
    assert (record, record.id) == last
    assert [] == list(unseen)
    assert "route=/eu" == record.attribution.cause
    assert {f"user-{i}" for i in range(15)} >= {row.request_id for row in record.rows[:3]}


@pytest.mark.parametrize(
    ("evidence", "kept"),
    [
        ({"enabled": True, "ids": "keep"}, True),
        ({"enabled": True, "ids": "hash"}, False),
        ({"enabled": False, "ids": "keep"}, False),
    ],
)
def test_what_may_no_longer_be_kept_is_deleted_at_the_next_start(
    tmp_path: Path, evidence: dict[str, Any], *, kept: bool
) -> None:
    """Switched off, or to hashes: records with plain request ids do not outlive the decision."""
    clock = FakeClock()
    with running_daemon(tmp_path, settings(enabled=True), clock=clock) as running:
        fire(running, clock)
    with structlog.testing.capture_logs() as logs:
        record, shown = stored(tmp_path, clock, evidence)

    deleted = [line for line in logs if line["event"] == "evidence_deleted"]
    assert kept == bool(record) == bool(shown) == (not deleted)
    assert Exposure.KEEP is record.exposure if record else deleted[0]["records"] >= 1


def test_nothing_of_a_request_reaches_the_disk_while_evidence_is_off(tmp_path: Path) -> None:
    """The database, its log and every snapshot, byte for byte; with it on, the same search finds it."""
    found = {}
    for name, evidence in (("off", {}), ("on", {"enabled": True})):
        clock, folder = FakeClock(), tmp_path / name
        with running_daemon(folder, settings(**evidence), clock=clock) as running:
            fire(running, clock)
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        found[name] = sum(data.count(b"user-") for data in files)

    assert 0 == found["off"]
    assert found["on"] > 0


def test_the_hash_of_a_request_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """The key belongs to the state directory, so a request can be followed over weeks."""
    ids = []
    for i, folder in enumerate((tmp_path / "one", tmp_path / "one", tmp_path / "two")):
        clock = FakeClock(1e6 + 5000.0 * i)
        with running_daemon(folder, settings(enabled=True, ids="hash"), clock=clock) as running:
            fire(running, clock)
            ids.append([r.request_id for r in running.daemon.operations.evidence(KEY, 1)[0].rows])

    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])


def test_a_disk_that_refuses_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in memory, and the next look at the house writes it."""
    clock = FakeClock()
    with running_daemon(tmp_path, settings(enabled=True), clock=clock) as running:
        store, monitor = running.daemon.storage.evidence, running.daemon.monitor
        add = store.add

        def refuse(*_: object) -> None:
            raise StorageError("cannot write: make room")

        monkeypatch.setattr(store, "add", refuse)
        rng = np.random.default_rng(5)
        monitor.register(LAYER, 4, Capture(), clock())
        for loud in (False,) * 10:
            window(running, clock, rng, loud=loud)
        running.daemon.operations.freeze("m", "", "")
        while monitor.feature(KEY).state is not State.FIRING:
            window(running, clock, rng, loud=True)
        waiting = monitor.waiting_evidence()
        shown = monitor.feature(KEY).evidence_id
        with pytest.raises(StorageError, match="make room"):
            running.daemon.operations.save_evidence()
        monkeypatch.setattr(store, "add", add)
        clock.advance(61.0)
        written = wait_until(lambda: running.daemon.operations.evidence(KEY, 1), 20, "the record")
        left = wait_until(lambda: not monitor.waiting_evidence(), 5, "nothing to wait")

    assert [waiting[-1].id] == [written[0].id] == [shown]
    assert left


def test_a_damaged_record_is_passed_over_and_told(tmp_path: Path) -> None:
    """One bad row does not hide the others."""
    clock = FakeClock()
    with running_daemon(tmp_path, settings(enabled=True), clock=clock) as running:
        fire(running, clock)
        running.daemon.storage.evidence.add("bad", str(KEY), clock(), 0, "{half")
        running.daemon.storage.evidence.add("odd", "no feature", clock(), 0, "{}")
        with structlog.testing.capture_logs() as logs:
            found = running.daemon.operations.evidence(KEY, 9)
            running.daemon.operations.expire_evidence()

    assert 1 == len(found)
    assert [str(KEY)] == [log["subject"] for log in logs if log["event"] == "evidence_unreadable"]


def test_flagging_by_selector_does_not_lose_the_id(tmp_path: Path) -> None:
    """The status names its record whatever is flagged beside it meanwhile."""
    clock = FakeClock()
    with running_daemon(tmp_path, settings(), clock=clock) as running:
        fire(running, clock)
        monitor = running.daemon.monitor
        before = monitor.feature(KEY).evidence_id
        flags = {
            FeatureSelector.parse(f"m/a/channel/{i}"): monitor.feature(KEY).flag for i in (1, 2)
        }
        monitor.set_flags({k: v for k, v in flags.items() if v}, clock())

        assert before == monitor.feature(KEY).evidence_id != ""
        assert "" == monitor.feature(LAYER.feature(1)).evidence_id


def test_what_is_left_out_is_in_the_scrape(tmp_path: Path) -> None:
    """Memory, its limit, and the requests whose slices were too many to be counted."""
    clock, rng = FakeClock(), np.random.default_rng(5)
    with running_daemon(tmp_path, settings(slices_limit=1), clock=clock) as running:
        fire(running, clock)
        window(running, clock, rng, loud=True)
        with urllib.request.urlopen(f"{running.metrics_url}/metrics", timeout=5) as answer:
            lines = dict(line.decode().rsplit(" ", 1) for line in answer if b"#" not in line)

    assert 0 < float(lines["sidecar_evidence_bytes"]) < float(lines["sidecar_evidence_limit_bytes"])
    # One place, and the first request has it: what is left over are those of the other route.
    left_out = float(lines['sidecar_evidence_dropped_total{what="uncounted"}'])
    assert left_out >= 2 * 170
    assert 0 == left_out % 170
    assert 0 == float(lines['sidecar_evidence_dropped_total{what="rows"}'])
