"""When nights begin and end: the clock, the disk and kill -9, without a worker."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from sidecar.audits import AuditState, NightlyAudits, NightState, nightly
from sidecar.audits.book import AuditBook, Entry
from sidecar.daemon import Daemon
from sidecar.errors import Conflict, DiskFull, InvalidInput, UnknownAudit
from sidecar.jobs import Priority
from sidecar.store import Artifact, OwnerKind
from sidecar.testing import FakeClock
from tests.audits.conftest import DAY, HALF_PAST_TWO, HOUR, built

pytestmark = pytest.mark.service


def fail_jobs(daemon: Daemon, clock: FakeClock) -> int:
    """End every waiting job as one whose model cannot be loaded, and say how many there were."""
    count = 0
    while (job := daemon.queue.claim("test", clock())) is not None:
        daemon.queue.fail(job.id, "test", "SC801", "no such file", clock(), retry=False)
        count += 1
    return count


def whole_night(daemon: Daemon, clock: FakeClock) -> None:
    """Bring a night from its beginning to its end, where its time has come."""
    for _ in range(3):
        daemon.audits.tick()
    fail_jobs(daemon, clock)
    daemon.audits.tick()


def ids(audits: NightlyAudits) -> list[str]:
    """Return the nights there are, the newest first."""
    return [night.id for night in audits.status("nightly").nights]


def test_a_night_begins_at_its_time_and_ends_with_its_jobs(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Not before; while its job waits it runs; a night of which no job was done has failed, with a report."""
    with built(tmp_path, settings, clock) as daemon:
        audits = daemon.audits
        audits.tick()
        assert [] == ids(audits)

        clock.advance(HOUR)
        for _ in range(3):
            audits.tick()
        status = audits.status("nightly")
        assert (AuditState.RUNNING, None) == (status.state, status.last)
        with pytest.raises(UnknownAudit, match="is running: no report yet"):
            audits.report("nightly", status.nights[0].id, "html")

        assert {Priority.AUDIT} == {one.request.priority for one in daemon.queue.list(9)}
        assert 2 == fail_jobs(daemon, clock)
        audits.tick()
        status = audits.status("nightly")
        assert ["20260925T023000Z"] == ids(audits)
        assert (AuditState.FAILED, None) == (status.state, status.running)
        assert "compare-0 failed (SC801 no such file)" in status.nights[0].checks[0].reason
        assert b"<b>Failed</b>: no job" in audits.report("nightly", status.nights[0].id, "html")
        assert HALF_PAST_TWO + DAY == status.next_at


def test_a_missed_night_is_made_up_for_once(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Of three days without a daemon the newest night runs, and no other; none before the audit was known."""
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.tick()
        assert [] == ids(daemon.audits)
    clock.advance(3 * DAY)

    with built(tmp_path, settings, clock) as daemon:
        assert daemon.audits.status("nightly").overdue
        for _ in range(2):
            whole_night(daemon, clock)
        assert ["20260927T023000Z"] == ids(daemon.audits)
        assert not daemon.audits.status("nightly").overdue


def test_a_clock_that_jumps_back_runs_no_night_twice(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Nor does a daemon that starts again then."""
    with built(tmp_path, settings, clock) as daemon:
        for _ in range(2):
            clock.advance(DAY)
            whole_night(daemon, clock)
        assert not daemon.audits.status("nightly").running
        before = ids(daemon.audits)
        clock.advance(-DAY)
        daemon.audits.tick()
        clock.advance(-HOUR)
        daemon.audits.tick()
        assert before == ids(daemon.audits)
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.tick()
        assert before == ids(daemon.audits)


def test_a_clock_that_was_ahead_at_first_stops_no_night(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """An audit first seen in a year that has not come is due from the time it is."""
    clock.advance(400 * DAY)
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.tick()
        clock.advance(-400 * DAY)
        daemon.audits.tick()
        clock.advance(HOUR)
        daemon.audits.tick()
        assert ["20260925T023000Z"] == ids(daemon.audits)


def test_a_night_whose_jobs_wait_a_day_is_overdue_and_the_next_follows(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """One night of an audit at a time; the newest that was missed meanwhile begins when it has ended."""
    with built(tmp_path, settings, clock) as daemon:
        audits = daemon.audits
        clock.advance(HOUR)
        audits.tick()
        clock.advance(DAY - 1)
        assert not audits.status("nightly").overdue
        clock.advance(DAY)
        audits.tick()
        status = audits.status("nightly")
        assert (AuditState.OVERDUE, True, 1) == (status.state, status.overdue, len(status.nights))

        fail_jobs(daemon, clock)
        audits.tick()
        audits.tick()
        assert ["20260926T023000Z", "20260925T023000Z"] == ids(audits)
        assert not audits.status("nightly").overdue


def test_a_killed_daemon_goes_on_with_the_same_jobs(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Also where it died between the queue taking a job and the night knowing its id."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        daemon.audits.tick()
        daemon.audits.tick()
        before = [one.id for one in daemon.queue.list(10)]
        path = daemon.storage.database.path
    with sqlite3.connect(path) as database:
        database.execute("UPDATE audit_nights SET plan = json_set(plan, '$.jobs', json('{}'))")
    database.close()

    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.tick()
        assert 2 == len(before)
        assert before == [one.id for one in daemon.queue.list(10)]
        fail_jobs(daemon, clock)
        daemon.audits.tick()
        (night,) = daemon.audits.status("nightly").nights
        assert NightState.FAILED == night.state


def test_a_judged_night_never_changes(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """The database itself refuses it, whoever asks."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        daemon.audits.tick()
        daemon.audits.tick()
        fail_jobs(daemon, clock)
        daemon.audits.tick()
        path = daemon.storage.database.path
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="a judged night does not change"):
        database.execute("UPDATE audit_nights SET state = 'passed'")
    database.close()


def test_somebody_may_start_an_audit_and_it_is_the_one_that_runs(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """With an audit entry that says who; asked again it is the same night; the schedule waits for it."""
    with built(tmp_path, settings, clock) as daemon:
        audits = daemon.audits
        night = audits.start("nightly", "cli")
        again = audits.start("nightly", "console")
        clock.advance(HOUR)
        audits.tick()
        daemon.operations.flush_events()
        said = [e.detail for e in daemon.operations.events(None, 9) if e.what == "audit_started"]

        assert (night.id, "cli", "20260925T013000Z") == (again.id, again.actor, night.id)
        assert ["night 20260925T013000Z, asked for by cli"] == said
        assert [night.id] == ids(audits)
        fail_jobs(daemon, clock)
        audits.tick()
        audits.tick()
        assert ["20260925T023000Z", night.id] == ids(audits)


def test_a_model_whose_file_is_gone_is_a_failed_night_not_one_without_end(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Its one check that says anything names the file."""
    with built(tmp_path, settings, clock) as daemon:
        (tmp_path / "tiny.safetensors").unlink()
        daemon.audits.start("nightly", "cli")
        daemon.audits.tick()
        (night,) = daemon.audits.status("nightly").nights

        assert NightState.FAILED == night.state
        assert "tiny.safetensors" in night.checks[0].reason


def test_what_is_not_there_is_named(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Audits, nights and reports; and a note that says nothing is refused."""
    with built(tmp_path, settings, clock) as daemon:
        audits = daemon.audits
        night = audits.start("nightly", "cli")
        with pytest.raises(UnknownAudit, match="audit 'away' is unknown: use one of nightly"):
            audits.status("away")
        with pytest.raises(UnknownAudit, match="has no night 'never'"):
            audits.night("nightly", "never")
        with pytest.raises(InvalidInput, match="say in 1 to 200 printable characters"):
            audits.accept("nightly", night.id, "")
        with pytest.raises(Conflict, match="still runs"):
            audits.accept("nightly", night.id, "Ada: on purpose")


def test_nights_beyond_the_limit_go_with_what_they_held(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Reports of nights that are kept stay in the store, whatever room is needed; others may go."""
    settings["audits"][0]["keep_nights"] = 2
    with built(tmp_path, settings, clock) as daemon:
        for _ in range(4):
            clock.advance(DAY)
            whole_night(daemon, clock)
        owners = {one.owner for one in daemon.storage.references.of()}
        daemon.storage.artifacts.collect(daemon.storage.references.digests(), 1 << 40)

        kept = ids(daemon.audits)
        assert ["20260928T023000Z", "20260927T023000Z"] == kept
        assert {f"audit:nightly:{name}" for name in kept} == owners
        assert all(daemon.audits.report("nightly", name, "json") for name in kept)
        assert 4 == daemon.storage.artifacts.number


def test_a_damaged_night_is_forgotten_and_ends_no_other(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """A running one would else keep every later night from beginning."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        daemon.audits.tick()
        path = daemon.storage.database.path
    with sqlite3.connect(path) as database:
        database.execute("UPDATE audit_nights SET plan = 'x'")
    database.close()
    clock.advance(DAY)

    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.tick()
        assert ["20260926T023000Z"] == ids(daemon.audits)


def test_what_no_night_holds_is_let_go_at_the_next_start(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Such as that of a night that was lost with its row; an audit's nights outlive it for a while."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        whole_night(daemon, clock)
        daemon.storage.references.hold(OwnerKind.REPORT, "audit:nightly:lost", ["d" * 64], clock())
        daemon.storage.references.hold(OwnerKind.PIN, "operator", ["e" * 64], clock())
    settings["audits"] = [{"name": "other", "model": "tiny", "layers": ["2"]}]

    for days, left in ((1, 3), (91, 1)):
        clock.advance(days * DAY)
        with built(tmp_path, settings, clock) as daemon:
            daemon.audits.start_thread()
            daemon.audits.stop(10)
            mine = [one for one in daemon.storage.references.of() if "other" not in one.owner]
            assert left == len(mine)


def test_a_night_that_cannot_be_judged_yet_leaves_no_report_for_each_attempt(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may last for days, and each attempt is another minute's report."""
    monkeypatch.setattr(nightly, "PATIENCE_SECONDS", 0.0)
    with built(tmp_path, settings, clock) as daemon:
        put = daemon.storage.artifacts.put

        def refuse_data(content: bytes, media_type: str) -> Artifact:
            if media_type == "application/json":
                raise DiskFull("no room for it")
            return put(content, media_type)

        monkeypatch.setattr(daemon.storage.artifacts, "put", refuse_data)
        clock.advance(HOUR)
        for _ in range(5):
            whole_night(daemon, clock)
            clock.advance(60)
        assert daemon.audits.status("nightly").running
        assert () == daemon.storage.references.of()

        monkeypatch.setattr(daemon.storage.artifacts, "put", put)
        daemon.audits.tick()
        assert 2 == len(daemon.storage.references.of())


def test_a_night_that_failed_is_not_accepted(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """It found nothing that later nights could be held against, and saying yes would change nothing."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        whole_night(daemon, clock)

        with pytest.raises(Conflict, match="name the one that regressed with --night"):
            daemon.audits.accept("nightly", ids(daemon.audits)[0], "Ada: on purpose")


def test_no_night_of_an_audit_outlives_the_last_one_that_is_configured(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Where there is no audit left, what old nights held is let go as well."""
    with built(tmp_path, settings, clock) as daemon:
        clock.advance(HOUR)
        whole_night(daemon, clock)
        assert daemon.storage.references.of()
    settings["audits"] = []
    clock.advance(91 * DAY)

    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.start_thread()
        assert () == daemon.storage.references.of()


def test_a_night_is_not_hidden_by_what_was_read_before_it_began(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads begin a night each; nobody would go on with one that is not seen."""
    settings["audits"].append({**settings["audits"][0], "name": "other"})
    with built(tmp_path, settings, clock) as daemon:
        read, go_on = threading.Event(), threading.Event()
        entries = AuditBook.entries

        def entries_slowly(book: AuditBook) -> tuple[Entry, ...]:
            found = entries(book)
            if threading.current_thread() is first:
                read.set()
                go_on.wait(10)
            return found

        monkeypatch.setattr(AuditBook, "entries", entries_slowly)
        first = threading.Thread(target=daemon.audits.start, args=("other", "cli"))
        second = threading.Thread(target=daemon.audits.start, args=("nightly", "cli"))
        first.start()
        assert read.wait(10)
        second.start()
        second.join(0.3)  # it waits for the first, or it would be over by now
        go_on.set()
        first.join()
        second.join()

        assert all(one.running for one in daemon.audits.statuses())
