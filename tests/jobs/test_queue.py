"""The queue's promises: durable, idempotent, exactly once, bounded."""

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.errors import (
    DiskFull,
    JobCancelled,
    JobFinished,
    JobQueueFull,
    UnknownJob,
    UnsupportedTarget,
    WorkerCrashed,
)
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobQueue, JobRequest, JobState, Portrait
from sidecar.recipes import Maximisation, Target
from sidecar.store import Database

pytestmark = pytest.mark.service

FEATURE = "m@r1/layer/channel/{}"


def request(unit: int = 0, **values: object) -> JobRequest:
    """Ask for a picture of one unit."""
    return JobRequest((Target(FeatureKey.parse(FEATURE.format(unit))),), **values)  # type: ignore[arg-type]  # passed on


def portrait(key: str = "k", *, unit: int = 0, created: float = 1.0) -> Portrait:
    """Return an answer whose digests derive from its key."""
    return Portrait(FEATURE.format(unit), key, f"picture-{key}", f"manifest-{key}", created)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a fresh database."""
    return Database(tmp_path / "s.db")


@pytest.fixture
def queue(database: Database) -> JobQueue:
    """Return a queue of small bounds: 5 waiting, lease 10 s, 3 attempts, pause 1 s."""
    return JobQueue(database, queue_limit=5, lease_seconds=10, attempt_limit=3)


def claimed(queue: JobQueue, owner: str = "a", now: float = 1.0) -> Job:
    """Submit a job and take it."""
    queue.submit(request(), now)
    job = queue.claim(owner, now)
    assert job is not None
    return job


def test_a_request_comes_back_as_it_was(queue: JobQueue) -> None:
    """Targets, positions, recipe, origin and limits survive the table."""
    target = Target(FeatureKey.parse("m@r1/_blocks.2/neuron/5"), (3, 4))
    wanted = JobRequest(
        (target,), Maximisation(steps=7, seed=2**62), "alert", "fingerprint/1", 12.5
    )

    job = queue.submit(wanted, 5.0)

    assert wanted == job.request == queue.get(job.id).request
    assert (JobState.QUEUED, 5.0, 0) == (job.state, job.created, job.attempts)


def test_ids_sort_by_time(queue: JobQueue) -> None:
    """Later jobs have greater ids of 26 characters."""
    ids = [queue.submit(request(), 1_700_000_000.0 + n / 100).id for n in range(5)]

    assert sorted(ids) == ids
    assert {26} == {len(job_id) for job_id in ids}


def test_the_same_key_is_the_same_job(queue: JobQueue) -> None:
    """A key seen before returns the job of then, also when that has ended, and fills no queue."""
    first = queue.submit(request(idempotency_key="alert/1"), 1.0)
    queue.cancel(first.id, 2.0)

    again = [queue.submit(request(9, idempotency_key="alert/1"), 3.0) for _ in range(10)]

    assert {first.id} == {job.id for job in again}
    assert JobState.CANCELLED == again[0].state
    assert 1 == len(queue.list(100))


def test_jobs_without_a_key_are_different(queue: JobQueue) -> None:
    """An empty key joins nothing."""
    assert queue.submit(request(), 1.0).id != queue.submit(request(), 1.0).id


def test_a_key_used_by_many_threads_at_once_is_one_job(queue: JobQueue) -> None:
    """Alertmanager's repeated webhooks cannot race each other into two jobs."""
    ids: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(queue.submit(request(idempotency_key="x"), 1.0).id)
        )
        for _ in range(8)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 8 == len(ids)
    assert 1 == len(set(ids))


def test_a_full_queue_refuses(queue: JobQueue) -> None:
    """The sixth waiting job is refused; a running one does not count."""
    for _ in range(5):
        queue.submit(request(), 1.0)

    with pytest.raises(JobQueueFull, match="limit is 5"):
        queue.submit(request(), 1.0)
    queue.claim("a", 1.0)
    queue.submit(request(), 1.0)

    assert 5 == queue.counts()[JobState.QUEUED]


def test_bad_requests_are_refused(queue: JobQueue) -> None:
    """No targets, targets of two revisions, and odd time limits are errors at once."""
    mixed = (*request().targets, Target(FeatureKey.parse("m@r2/layer/channel/0")))

    for bad in (
        JobRequest(()),
        JobRequest(mixed),
        request(time_limit_seconds=-1.0),
        request(time_limit_seconds=float("nan")),
        request(time_limit_seconds=float("inf")),
    ):
        with pytest.raises(UnsupportedTarget):
            queue.submit(bad, 1.0)

    assert () == queue.list(10)


def test_the_oldest_job_is_claimed_first(queue: JobQueue) -> None:
    """Jobs start in the order of submission, each once."""
    submitted = [queue.submit(request(), 5.0 - n).id for n in range(3)]

    claims = [queue.claim("a", 6.0) for _ in range(4)]

    assert [*submitted, None] == [job and job.id for job in claims]
    assert {(JobState.RUNNING, 1)} == {(job.state, job.attempts) for job in claims if job}


def test_threads_never_claim_the_same_job(database: Database) -> None:
    """Sixteen owners race for forty jobs; every job is claimed by exactly one."""
    queue = JobQueue(database, queue_limit=100, lease_seconds=10, attempt_limit=3)
    jobs = {queue.submit(request(), 1.0).id for _ in range(40)}
    taken: list[str] = []

    def take(owner: str) -> None:
        while job := queue.claim(owner, 2.0):
            taken.append(job.id)

    threads = [threading.Thread(target=take, args=(str(number),)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 40 == len(taken)
    assert jobs == set(taken)


def test_a_heartbeat_keeps_the_lease(queue: JobQueue) -> None:
    """A job that is heard of every 9 s is never given away; 10.1 s of silence loses it."""
    job = claimed(queue, "a", 0.5)

    for now in (9.0, 18.0, 27.0):
        assert queue.heartbeat(job.id, "a", now)
        assert queue.claim("b", now + 9) is None

    stolen = queue.claim("b", 37.1)
    assert stolen is not None
    assert (job.id, 2) == (stolen.id, stolen.attempts)
    assert not queue.heartbeat(job.id, "a", 38.0)


def test_progress_never_goes_back(queue: JobQueue) -> None:
    """Smaller steps are ignored, also from a second attempt; more steps than said stretch the sum."""
    job = claimed(queue)
    seen = []

    for step, steps in ((10, 100), (5, 100), (120, 100), (-3, -1), (0, 0)):
        queue.heartbeat(job.id, "a", 2.0, step, steps, f"step {step}")
        now = queue.get(job.id)
        seen.append((now.step, now.steps))

    assert [(10, 100), (10, 100), (120, 120), (120, 120), (120, 120)] == seen


def test_only_the_owner_completes_and_only_once(queue: JobQueue) -> None:
    """A stranger, a second time, and a loser of its lease record nothing."""
    job = claimed(queue, "a", 1.0)

    results = [
        queue.complete(job.id, "b", [portrait("b")], False, 2.0),  # noqa: FBT003 - the contract's order
        queue.complete(job.id, "a", [portrait("a")], False, 2.0),  # noqa: FBT003 - the contract's order
        queue.complete(job.id, "a", [portrait("c")], False, 3.0),  # noqa: FBT003 - the contract's order
    ]

    done = queue.get(job.id)
    assert [False, True, False] == results
    assert (JobState.DONE, 2.0, (portrait("a"),)) == (done.state, done.ended, done.portraits)
    assert (None, None) == (queue.portrait("b"), queue.portrait("c"))


def test_completion_is_all_or_nothing(queue: JobQueue, database: Database) -> None:
    """A disk that fills while the portraits are written leaves the job running, not half done."""
    job = claimed(queue)
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages + 1}")
    many = [portrait(f"{n}-" + "x" * 2000) for n in range(10)]

    with pytest.raises(DiskFull):
        queue.complete(job.id, "a", many, False, 2.0)  # noqa: FBT003 - the contract's order

    assert JobState.RUNNING == queue.get(job.id).state
    assert () == queue.portraits(FEATURE.format(0), 100)
    database.query("PRAGMA max_page_count = 100000")
    assert queue.complete(job.id, "a", many, False, 3.0)  # noqa: FBT003 - the contract's order


def test_a_retry_waits_and_then_fails_for_good(queue: JobQueue) -> None:
    """Three crashes with growing pauses, then WorkerCrashed with the last words."""
    queue.submit(request(), 1.0)
    now, waits = 1.0, []
    for _ in range(3):
        job = queue.claim("a", now)
        assert job is not None
        queue.fail(job.id, "a", WorkerCrashed.code, "SIGSEGV", now, retry=True)
        started = now
        while queue.claim("probe", now) is None and now < started + 10:
            now += 0.5
        waits.append(now - started)
        if now < started + 10:
            queue.release(job.id, "probe", now)

    failed = queue.get(job.id)
    assert [1.0, 2.0, 10.0] == waits
    assert (JobState.FAILED, "SC806", "SIGSEGV", 3) == (
        failed.state,
        failed.error_code,
        failed.error,
        failed.attempts,
    )


def test_a_deterministic_failure_is_not_retried(queue: JobQueue) -> None:
    """What would fail again ends at once, with its own code."""
    job = claimed(queue)

    assert queue.fail(job.id, "a", "SC803", "silent", 2.0, retry=False)
    assert not queue.fail(job.id, "a", "SC803", "again", 3.0, retry=False)

    assert (JobState.FAILED, "SC803", "silent", 2.0) == (
        queue.get(job.id).state,
        queue.get(job.id).error_code,
        queue.get(job.id).error,
        queue.get(job.id).ended,
    )


def test_a_long_error_keeps_its_end(queue: JobQueue) -> None:
    """Of a megabyte of output the last lines are kept, so the table stays bounded."""
    job = claimed(queue)

    queue.fail(job.id, "a", "SC806", "x" * 1_000_000 + "the reason", 2.0, retry=False)

    assert queue.get(job.id).error.endswith("the reason")
    assert len(queue.get(job.id).error) <= 8192


def test_a_worker_that_falls_silent_too_often_is_failed(queue: JobQueue) -> None:
    """Lapsed leases count as attempts: the third makes the job fail as WorkerCrashed."""
    queue.submit(request(), 1.0)
    for attempt in range(3):
        job = queue.claim(f"owner {attempt}", 1.0 + 20 * attempt)
        assert job is not None
        queue.heartbeat(job.id, f"owner {attempt}", 2.0 + 20 * attempt, 1, 9, "step 1")

    assert queue.claim("d", 100.0) is None

    failed = queue.get(job.id)
    assert (JobState.FAILED, WorkerCrashed.code) == (failed.state, failed.error_code)
    assert "step 1" in failed.error


def test_a_waiting_job_is_cancelled_at_once(queue: JobQueue) -> None:
    """It never runs, and cancelling twice is harmless."""
    job = queue.submit(request(), 1.0)

    assert JobState.CANCELLED == queue.cancel(job.id, 2.0).state == queue.cancel(job.id, 3.0).state
    assert queue.claim("a", 4.0) is None
    assert 2.0 == queue.get(job.id).ended


def test_a_running_job_is_told_to_stop(queue: JobQueue) -> None:
    """Its heartbeats say no, and a crash on the way ends it as cancelled, not as a retry."""
    job = claimed(queue)

    cancelling = queue.cancel(job.id, 2.0)
    beat = queue.heartbeat(job.id, "a", 2.5)
    queue.fail(job.id, "a", WorkerCrashed.code, "killed", 3.0, retry=True)

    assert (JobState.RUNNING, "cancelling", False) == (cancelling.state, cancelling.message, beat)
    assert JobState.CANCELLED == queue.get(job.id).state


@pytest.mark.parametrize("way", ["code", "release", "silence"])
def test_every_end_of_a_cancelled_job_is_cancelled(queue: JobQueue, way: str) -> None:
    """Whether its worker says so, its daemon stops, or nobody is heard of again."""
    job = claimed(queue)
    queue.cancel(job.id, 2.0)

    if way == "code":
        queue.fail(job.id, "a", JobCancelled.code, "cancelled", 3.0, retry=False)
    elif way == "release":
        queue.release(job.id, "a", 3.0)
    else:
        assert queue.claim("b", 30.0) is None

    assert (JobState.CANCELLED, "") == (queue.get(job.id).state, queue.get(job.id).error_code)


def test_an_ended_job_cannot_be_cancelled(queue: JobQueue) -> None:
    """Done is done."""
    job = claimed(queue)
    queue.complete(job.id, "a", [portrait()], False, 2.0)  # noqa: FBT003 - the contract's order

    with pytest.raises(JobFinished, match="done"):
        queue.cancel(job.id, 3.0)


def test_a_stopping_daemon_gives_the_attempt_back(queue: JobQueue) -> None:
    """A released job waits again as if it had never been started."""
    job = claimed(queue)

    assert queue.release(job.id, "a", 2.0)

    again = queue.claim("b", 2.0)
    assert again is not None
    assert (job.id, 1) == (again.id, again.attempts)


def test_jobs_of_dead_owners_are_taken_back_at_once(queue: JobQueue) -> None:
    """Only those of owners known to be dead, without waiting for their lease."""
    first, second = claimed(queue, "dead"), claimed(queue, "alive")

    assert 1 == queue.recover(lambda owner: owner == "dead", 2.0)

    states = [queue.get(job.id).state for job in (first, second)]
    assert [JobState.QUEUED, JobState.RUNNING] == states


def test_unknown_ids_are_unknown(queue: JobQueue) -> None:
    """Every question about a job that is not there says so."""
    for ask in (
        lambda: queue.get("nothing"),
        lambda: queue.cancel("nothing", 1.0),
        lambda: queue.wait_change("nothing", 0, 0.1),
        lambda: queue.list(1, "nothing"),
    ):
        with pytest.raises(UnknownJob):
            ask()


def test_pages_cover_the_list_once(queue: JobQueue) -> None:
    """Newest first, page by page, nothing twice and nothing missing."""
    ids = [queue.submit(request(), 1.0).id for _ in range(5)]

    pages, before = [], None
    while page := queue.list(2, before):
        pages.append([job.id for job in page])
        before = page[-1].id

    assert [ids[:2:-1], ids[2:0:-1], ids[:1]] == pages


def test_counts_name_every_state(queue: JobQueue) -> None:
    """States without jobs are there with a zero, so a metric never disappears."""
    claimed(queue)
    queue.submit(request(), 1.0)

    assert {"queued": 1, "running": 1, "done": 0, "failed": 0, "cancelled": 0} == queue.counts()


def test_portraits_come_newest_first(queue: JobQueue) -> None:
    """Of one feature only; a remade answer replaces the one of the same key."""
    job = claimed(queue)
    made = [portrait("old", created=1.0), portrait("new", created=2.0), portrait("x", unit=1)]
    queue.complete(job.id, "a", made, False, 3.0)  # noqa: FBT003 - the contract's order

    assert ["new", "old"] == [p.content_key for p in queue.portraits(FEATURE.format(0), 10)]
    assert ["new"] == [p.content_key for p in queue.portraits(FEATURE.format(0), 1)]
    assert {"picture-new", "manifest-new", "picture-x", "manifest-x"} == queue.kept_digests()


def test_forgotten_answers_are_made_anew(queue: JobQueue) -> None:
    """Dropping an artifact drops its answer, but not the history of the job."""
    job = claimed(queue)
    queue.complete(job.id, "a", [portrait("k"), portrait("l")], False, 3.0)  # noqa: FBT003 - the contract's order

    queue.forget(["manifest-k"])

    assert queue.portrait("k") is None
    assert queue.portrait("l") is not None
    assert 2 == len(queue.get(job.id).portraits)


def test_history_is_bounded(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended jobs beyond the limit go, with what they made; answers stay."""
    monkeypatch.setattr("sidecar.jobs.queue.HISTORY_LIMIT", 3)
    for number in range(8):
        job = claimed(queue, "a", float(number + 1))
        queue.complete(job.id, "a", [portrait(str(number))], False, number + 1.5)  # noqa: FBT003 - the contract's order

    assert 4 == len(queue.list(100))
    assert queue.portrait("0") is not None


def test_a_damaged_row_hides_no_other(queue: JobQueue, database: Database) -> None:
    """A request that cannot be read is shown as damaged; lists and other jobs work."""
    bad, good = queue.submit(request(), 1.0), queue.submit(request(), 2.0)
    with database.transaction() as cursor:
        cursor.execute("UPDATE jobs SET request = '{\"targets\": 3' WHERE id = ?", (bad.id,))

    assert [good.id, bad.id] == [job.id for job in queue.list(10)]
    assert "SC702" == queue.get(bad.id).error_code


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running'",
        "state = 'done', ended = 1",
        "state = 'dreaming'",
        "step = -1",
        "step = 5",
        "owner = 'me'",
        "ended = 5",
        "error_code = 'SC1'",
    ],
)
def test_the_table_refuses_illegal_steps(queue: JobQueue, database: Database, change: str) -> None:
    """Constraints and triggers hold against any writer, not only against this code."""
    job = queue.submit(request(), 1.0)

    with pytest.raises(sqlite3.IntegrityError), database.transaction() as cursor:
        cursor.execute(f"UPDATE jobs SET {change} WHERE id = ?", (job.id,))  # noqa: S608 - the test's own words


def test_an_ended_job_never_changes(queue: JobQueue, database: Database) -> None:
    """Not even its message."""
    job = queue.submit(request(), 1.0)
    queue.cancel(job.id, 2.0)

    with pytest.raises(sqlite3.IntegrityError), database.transaction() as cursor:
        cursor.execute("UPDATE jobs SET message = 'x' WHERE id = ?", (job.id,))


def test_watchers_are_woken_by_a_change(queue: JobQueue) -> None:
    """A waiter returns with the new version at once, and with the old one after its timeout."""
    job = queue.submit(request(), 1.0)
    seen = queue.version(job.id)
    found: list[int] = []
    waiter = threading.Thread(target=lambda: found.append(queue.wait_change(job.id, seen, 30)))

    waiter.start()
    began = time.monotonic()
    queue.cancel(job.id, 2.0)
    waiter.join()

    assert time.monotonic() - began < 5
    assert [queue.version(job.id)] == found
    assert found[0] > seen
    assert found[0] == queue.wait_change(job.id, found[0], 0.01)


def test_watchers_see_what_another_process_wrote(queue: JobQueue, tmp_path: Path) -> None:
    """A change through another connection, without a notice, is seen within a second."""
    other = JobQueue(Database(tmp_path / "s.db"), queue_limit=5, lease_seconds=10, attempt_limit=3)
    job = queue.submit(request(), 1.0)
    seen = queue.version(job.id)
    found: list[int] = []
    waiter = threading.Thread(target=lambda: found.append(queue.wait_change(job.id, seen, 30)))

    waiter.start()
    other.cancel(job.id, 2.0)
    waiter.join(20)

    assert [seen + 1] == found


class QueueMachine(RuleBasedStateMachine):
    """Random owners do random things at random times; the promises hold after each."""

    @initialize()
    def prepare(self) -> None:
        """Start with an empty queue in memory of its own."""
        self.database = Database(Path(f"/dev/shm/queue-{id(self)}.db"))  # noqa: S108 - memory, not a secret
        self.queue = JobQueue(
            self.database, queue_limit=4, lease_seconds=10, attempt_limit=2, retry_seconds=1
        )
        self.now = 1.0
        self.held: dict[str, tuple[str, float]] = {}
        self.completions: dict[str, int] = {}
        self.steps: dict[str, int] = {}

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "database"):
            self.database.close()
            for path in Path("/dev/shm").glob(f"queue-{id(self)}.db*"):  # noqa: S108 - memory, not a secret
                path.unlink()

    @rule(key=st.sampled_from(["", "a", "b"]))
    def submit(self, key: str) -> None:
        """Somebody asks."""
        # Ids are random within a millisecond; a replay must find the jobs in the same order.
        self.now += 0.01
        try:
            self.queue.submit(request(idempotency_key=key), self.now)
        except JobQueueFull:
            assert 4 == self.queue.counts()[JobState.QUEUED]

    @rule(owner=st.sampled_from("xyz"))
    def claim(self, owner: str) -> None:
        """An owner takes a job; nobody alive may hold it."""
        job = self.queue.claim(owner, self.now)
        if job is not None:
            holder, until = self.held.get(job.id, ("", -1.0))
            assert until < self.now, f"{holder} still holds {job.id}"
            self.held[job.id] = (owner, self.now + 10)

    @rule(seconds=st.floats(0.1, 12))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.now += seconds

    @precondition(lambda self: self.held)
    @rule(data=st.data(), owner=st.sampled_from("xyz"), step=st.integers(-1, 50))
    def beat(self, data: st.DataObject, owner: str, step: int) -> None:
        """Somebody, rightly or not, says how far a job is."""
        job_id = data.draw(st.sampled_from(list(self.held)))
        if self.queue.heartbeat(job_id, owner, self.now, step, 40):
            assert owner == self.held[job_id][0]
            self.held[job_id] = (owner, self.now + 10)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), owner=st.sampled_from("xyz"), how=st.sampled_from("dfrc"))
    def end(self, data: st.DataObject, owner: str, how: str) -> None:
        """Somebody, rightly or not, ends a job in one of four ways."""
        job_id = data.draw(st.sampled_from(list(self.held)))
        ended = False
        if how == "d":
            ended = self.queue.complete(job_id, owner, [portrait()], False, self.now)  # noqa: FBT003 - the contract's order
            self.completions[job_id] = self.completions.get(job_id, 0) + ended
        elif how == "f":
            ended = self.queue.fail(job_id, owner, "SC806", "x", self.now, retry=True)
        elif how == "r":
            ended = self.queue.release(job_id, owner, self.now)
        else:
            try:
                self.queue.cancel(job_id, self.now)
            except JobFinished:
                assert self.queue.get(job_id).state.ended
        if ended:
            assert owner == self.held[job_id][0]
            self.held[job_id] = (owner, -1.0)

    @invariant()
    def promises_hold(self) -> None:
        """Completed at most once, steps never go back, attempts are bounded."""
        if not hasattr(self, "queue"):
            return
        assert all(count <= 1 for count in self.completions.values())
        for job in self.queue.list(1000):
            assert job.step >= self.steps.get(job.id, 0)
            assert job.attempts <= 2
            assert (job.state is JobState.DONE) == bool(self.completions.get(job.id))
            self.steps[job.id] = job.step


QueueMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
