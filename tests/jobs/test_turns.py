"""Priorities, limits a model, deadlines and the quarantine, as the queue keeps them."""

import json
import sqlite3
from pathlib import Path

import pytest

from sidecar.errors import (
    DeadlineMissed,
    InvalidInput,
    JobQuarantined,
    UnknownJob,
    WorkerCrashed,
)
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobQueue, JobRequest, JobState, Priority, schema
from sidecar.recipes import Maximisation, Target, content_key
from sidecar.store import Database

pytestmark = pytest.mark.service


def request(unit: int = 0, model: str = "m", **values: object) -> JobRequest:
    """Ask for a picture of one unit."""
    target = Target(FeatureKey.parse(f"{model}@r1/layer/channel/{unit}"))
    return JobRequest((target,), **values)  # type: ignore[arg-type]  # passed on


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a fresh database."""
    return Database(tmp_path / "s.db")


@pytest.fixture
def queue(database: Database) -> JobQueue:
    """Return a queue that quarantines for an hour and has room; 2 attempts, no pause."""
    return JobQueue(
        database,
        queue_limit=50,
        lease_seconds=10,
        attempt_limit=2,
        retry_seconds=0,
        quarantine_seconds=3600,
        model_limits={"one": 1, "two": 2},
    )


def claimed(queue: JobQueue, now: float = 2.0, **values: bool) -> str:
    """Claim a job; return its id, or nothing."""
    job = queue.claim(f"owner {now}", now, **values)
    return job.id if job else ""


@pytest.mark.parametrize(
    ("origin", "asked", "expected"),
    [
        ("cli", None, Priority.INTERACTIVE),
        ("console", None, Priority.INTERACTIVE),
        ("api", None, Priority.INTERACTIVE),
        ("alert", None, Priority.ALERT),
        ("audit", None, Priority.AUDIT),
        ("api", Priority.AUDIT, Priority.AUDIT),
    ],
)
def test_the_priority_is_that_of_the_origin_unless_asked_for(
    queue: JobQueue, origin: str, asked: Priority | None, expected: Priority
) -> None:
    """And it comes back from the disk."""
    job = queue.submit(request(origin=origin, asked_priority=asked), 1.0)

    assert expected == queue.get(job.id).request.priority


def test_people_go_before_alerts_and_those_before_audits(queue: JobQueue) -> None:
    """Whatever the order of submission; within a priority it is that order."""
    origins = ("audit", "alert", "cli", "audit", "alert", "console")
    jobs = [queue.submit(request(n, origin=origin), 1.0) for n, origin in enumerate(origins)]

    claims = [claimed(queue) for _ in origins]

    assert [jobs[n].id for n in (2, 5, 1, 4, 0, 3)] == claims


def test_a_model_at_its_limit_lets_others_pass(queue: JobQueue) -> None:
    """One of a model at a time, two of another; those that wait start when one has ended."""
    ones = [queue.submit(request(n, "one"), 1.0).id for n in range(2)]
    twos = [queue.submit(request(n, "two"), 1.0).id for n in range(3)]

    claims = [claimed(queue) for _ in range(4)]
    queue.complete(ones[0], "owner 2.0", [], False, 3.0)  # noqa: FBT003 - the contract's order
    last = claimed(queue, 4.0)

    assert [ones[0], twos[0], twos[1], ""] == claims
    assert ones[1] == last


def test_audits_wait_while_they_may_not_start(queue: JobQueue) -> None:
    """Outside their windows only the others are claimed."""
    audit = queue.submit(request(0, origin="audit"), 1.0).id
    alert = queue.submit(request(1, origin="alert"), 1.0).id

    claims = [claimed(queue, audits=False), claimed(queue, audits=False), claimed(queue)]

    assert [alert, "", audit] == claims


def test_a_released_job_keeps_its_attempts_and_says_why(queue: JobQueue) -> None:
    """Making way costs no attempt."""
    job = queue.submit(request(origin="audit"), 1.0)
    claimed(queue)

    queue.release(job.id, "owner 2.0", 3.0, "it made way for job X")

    found = queue.get(job.id)
    assert (JobState.QUEUED, 0) == (found.state, found.attempts)
    assert "waiting again: it made way for job X" == found.message


def why(_: Job) -> str:
    """Give a reason."""
    return "all slots were taken"


def test_a_job_that_waits_past_its_deadline_fails(queue: JobQueue) -> None:
    """With a code of its own, how long it waited, and why; one that runs is left alone."""
    late = queue.submit(request(0, deadline=100.0), 10.0)
    claimed_job = queue.submit(request(1, deadline=100.0, origin="cli"), 10.0)
    patient = queue.submit(request(2), 10.0)
    first = claimed(queue, 20.0)  # the first in line runs

    early = queue.fail_overdue(99.9, why)
    failed = queue.fail_overdue(100.0, why)

    assert late.id == first
    assert (0, 1) == (early, failed)
    ended = queue.get(claimed_job.id)
    assert (JobState.FAILED, DeadlineMissed.code) == (ended.state, ended.error_code)
    assert "waited 90 s, until its deadline: all slots were taken" == ended.error
    assert JobState.RUNNING == queue.get(late.id).state
    assert JobState.QUEUED == queue.get(patient.id).state


def test_an_overdue_job_is_not_started(queue: JobQueue) -> None:
    """Even before somebody has noticed."""
    queue.submit(request(deadline=100.0), 10.0)

    assert "" == claimed(queue, 100.0)


@pytest.mark.parametrize("deadline", [5.0, float("nan"), float("inf"), -1.0])
def test_deadlines_that_make_no_sense_are_refused(queue: JobQueue, deadline: float) -> None:
    """Past ones, and what is no time."""
    with pytest.raises(InvalidInput, match="deadline"):
        queue.submit(request(deadline=deadline), 10.0)


def crash_for_good(queue: JobQueue, wanted: JobRequest, now: float) -> str:
    """Have a job kill its worker in both attempts; return its id."""
    job = queue.submit(wanted, now)
    for _ in range(2):
        assert job.id == claimed(queue, now)
        queue.fail(job.id, f"owner {now}", WorkerCrashed.code, "SIGSEGV\nat", now, retry=True)
    assert JobState.FAILED == queue.get(job.id).state
    return job.id


def test_what_killed_every_worker_is_refused_for_a_while(queue: JobQueue) -> None:
    """The same request, alone or in company, until the time is over; others are not."""
    wanted = request(7)
    job_id = crash_for_good(queue, wanted, 10.0)

    with pytest.raises(JobQuarantined, match="SIGSEGV") as caught:
        queue.submit(wanted, 11.0)
    with pytest.raises(JobQuarantined):
        queue.submit(JobRequest((*request(8).targets, *wanted.targets)), 3609.0)
    other = queue.submit(request(8), 11.0)
    again = queue.submit(wanted, 3610.1)

    assert job_id in caught.value.message
    assert "1970-01-01T01:00:10+00:00" in caught.value.message
    assert content_key(wanted.targets[0], Maximisation()) in caught.value.message
    assert JobState.QUEUED == other.state == again.state
    assert 1 == queue.quarantine.total


def test_what_is_quarantined_is_listed_until_its_time_is_over(queue: JobQueue) -> None:
    """Each with its feature, its job and why, the longest first; without the job, without a feature."""
    first, second = crash_for_good(queue, request(7), 10.0), crash_for_good(queue, request(8), 20.0)

    late, early = queue.quarantine.held(21.0, 10)
    assert (second, first) == (late.job_id, early.job_id)
    assert (3620.0, "SIGSEGV") == (late.until, late.reason)
    assert str(request(8).targets[0].feature) == late.feature
    assert content_key(request(8).targets[0], Maximisation()) == late.content_key
    assert [late] == list(queue.quarantine.held(21.0, 1)) == list(queue.quarantine.held(3610.0, 9))
    assert () == queue.quarantine.held(3620.0, 10)
    with queue.database.transaction() as cursor:
        cursor.execute("DELETE FROM jobs")
    assert ["", ""] == [one.feature for one in queue.quarantine.held(21.0, 10)]


def test_named_failures_are_not_quarantined(queue: JobQueue) -> None:
    """A silent unit harms nobody."""
    job = queue.submit(request(), 10.0)
    claimed(queue, 10.0)
    queue.fail(job.id, "owner 10.0", "SC803", "silent", 10.0, retry=False)

    assert JobState.QUEUED == queue.submit(request(), 11.0).state
    assert 0 == queue.quarantine.total


def test_a_job_that_took_its_daemon_along_is_quarantined_too(queue: JobQueue) -> None:
    """Two lapsed leases are two attempts."""
    queue.submit(request(), 10.0)
    assert claimed(queue, 10.0)
    assert claimed(queue, 30.0)
    assert not claimed(queue, 50.0)

    with pytest.raises(JobQuarantined, match="fell silent"):
        queue.submit(request(), 51.0)


@pytest.mark.parametrize("by", ["job", "key", "prefix"])
def test_the_quarantine_is_lifted_by_key_or_job(queue: JobQueue, by: str) -> None:
    """All of a job, one key, or the first digits of a key."""
    wanted = request(7)
    job_id = crash_for_good(queue, wanted, 10.0)
    key = content_key(wanted.targets[0], Maximisation())

    lifted = queue.quarantine.lift({"job": job_id, "key": key, "prefix": key[:8]}[by])

    assert 1 == lifted
    assert JobState.QUEUED == queue.submit(wanted, 11.0).state


@pytest.mark.parametrize("name", ["", "*", "????????", "0123456", "f" * 64])
def test_lifting_what_is_not_there_says_so(queue: JobQueue, name: str) -> None:
    """Too short a prefix and patterns name nothing."""
    crash_for_good(queue, request(7), 10.0)

    with pytest.raises(UnknownJob, match="quarantined"):
        queue.quarantine.lift(name)


def test_a_database_of_the_first_release_is_taken_on(tmp_path: Path) -> None:
    """Its jobs are there, the waiting ones with the priority and the model of their request."""
    database = Database(tmp_path / "s.db")
    first = schema.TABLES[: next(n for n, t in enumerate(schema.TABLES) if t.startswith("ALTER"))]
    database.migrate("jobs", first)
    texts = [
        json.dumps(
            {
                "targets": [{"feature": f"old@r1/layer/channel/{n}", "position": None}],
                "recipe": {"steps": 8},
                "origin": origin,
                "idempotency_key": "",
                "time_limit_seconds": 0.0,
            }
        )
        for n, origin in enumerate(("alert", "cli"))
    ]
    with database.transaction() as cursor:
        for job_id, text, state in (
            ("A", texts[0], "queued"),
            ("B", texts[1], "queued"),
            ("C", "{damaged", "queued"),
            ("D", texts[0], "cancelled"),
        ):
            cursor.execute(
                "INSERT INTO jobs (id, request, created, state, ended) VALUES (?, ?, 1.0, ?, ?)",
                (job_id, text, state, 1.0 if state == "cancelled" else 0.0),
            )
    database.close()

    database = Database(tmp_path / "s.db")
    queue = JobQueue(
        database, queue_limit=9, lease_seconds=10, attempt_limit=3, model_limits={"old": 1}
    )
    claims = [claimed(queue), claimed(queue)]

    assert 0 == database.quarantined
    assert ["B", "C"] == claims  # the alert's waits: its model has one running
    assert (JobState.QUEUED, Priority.ALERT) == (
        queue.get("A").state,
        queue.get("A").request.priority,
    )
    assert JobState.CANCELLED == queue.get("D").state
    database.close()
    assert 0 == Database(tmp_path / "s.db").quarantined


def test_the_pause_before_an_attempt_is_at_most_a_minute(database: Database) -> None:
    """However many attempts there were."""
    queue = JobQueue(database, queue_limit=5, lease_seconds=10, attempt_limit=100)
    job = queue.submit(request(), 1.0)
    now, pauses = 1.0, []
    for _ in range(12):
        failed_at = now
        while queue.claim("a", now) is None:
            now += 1.0
        pauses.append(now - failed_at)
        queue.fail(job.id, "a", WorkerCrashed.code, "SIGSEGV", now, retry=True)

    assert [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60] == pauses


def test_sqlite_itself_refuses_a_waiting_job_as_done(queue: JobQueue, database: Database) -> None:
    """The rules hold whoever writes."""
    job = queue.submit(request(), 1.0)

    with (
        pytest.raises(sqlite3.IntegrityError, match="no such transition"),
        database.transaction() as c,
    ):
        c.execute("UPDATE jobs SET state = 'done', ended = 2 WHERE id = ?", (job.id,))
