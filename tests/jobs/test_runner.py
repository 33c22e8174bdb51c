"""The runner against children that work, crash, hang, lie and are killed."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import sidecar
from sidecar.jobs import Job, JobQueue, JobState, LiveContext
from sidecar.recipes import Maximisation
from sidecar.store import ArtifactStore, Database
from tests.jobs.bench import SCRIPT, Bench, bench_at, children, wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(sidecar.__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def live(**values: object) -> LiveContext:
    """Return a live distribution from 0 to 4."""
    table = {
        "levels": np.array([0.1, 0.5, 0.9]),
        "values": np.array([0.0, 1.0, 3.0]),
        "count": 100,
        "minimum": 0.0,
        "maximum": 4.0,
        "window": "baseline",
    }
    return LiveContext(**(table | values))  # type: ignore[arg-type]  # names and types as above


def test_a_job_is_done_with_a_picture_and_manifest_a_target(bench: Bench) -> None:
    """Every target of the request gets its own picture, in the order asked for."""
    bench.runner().start()

    done = bench.ended(bench.submit("work", 3, 1, 2))

    features = [portrait.feature for portrait in done.portraits]
    assert (JobState.DONE, 5, 5, 1, "") == (
        done.state,
        done.step,
        done.steps,
        done.attempts,
        done.error,
    )
    assert [f"work@r1/layer/channel/{unit}" for unit in (3, 1, 2)] == features
    for portrait in done.portraits:
        assert PNG + portrait.feature.encode() + b" 0" == bench.artifacts.get(
            portrait.picture_digest
        )
        manifest = json.loads(bench.artifacts.get(portrait.manifest_digest))
        assert portrait.feature == manifest["feature"]
        assert "application/json" == bench.artifacts.open(portrait.manifest_digest)[1]


def test_an_equal_request_is_answered_without_a_child(bench: Bench) -> None:
    """The second time the same pictures come from the store, marked so."""
    bench.runner(env={"LOCKS": str(bench.root)}).start()
    first = bench.ended(bench.submit("alone", 1, 2))

    second = bench.ended(bench.submit("alone", 2, 1))

    assert (False, True) == (first.from_cache, second.from_cache)
    assert first.portraits == second.portraits[::-1]
    assert [first.id] == (bench.root / "runs").read_text().split()


def test_only_what_is_missing_is_made(bench: Bench) -> None:
    """Of three targets, one of them known and one twice, the child is asked for the new ones."""
    bench.runner().start()
    known = bench.ended(bench.submit("work", 1)).portraits[0]

    done = bench.ended(bench.submit("work", 1, 2, 3, 2))

    assert known == done.portraits[0]
    assert done.portraits[1] == done.portraits[3]
    assert not done.from_cache
    manifest = json.loads(bench.artifacts.get(done.portraits[2].manifest_digest))
    assert "work@r1/layer/channel/3" == manifest["feature"]


def test_another_recipe_is_another_answer(bench: Bench) -> None:
    """A changed seed is not answered from the cache."""
    bench.runner().start()
    bench.ended(bench.submit("work", 1))

    assert not bench.ended(bench.submit("work", 1, recipe=Maximisation(seed=1))).from_cache


def test_a_lost_artifact_is_made_again(bench: Bench) -> None:
    """An answer whose manifest is gone from the disk is no answer."""
    bench.runner().start()
    first = bench.ended(bench.submit("work", 1)).portraits[0]
    bench.artifacts.open(first.manifest_digest)[0].unlink()

    again = bench.ended(bench.submit("work", 1))

    assert not again.from_cache
    assert bench.artifacts.get(again.portraits[0].manifest_digest)


def test_a_full_store_makes_room(bench: Bench) -> None:
    """Older answers of a feature go, the newest of every feature stays, and the job is done."""
    bench.artifacts = ArtifactStore(bench.root / "small", 220)
    bench.runner().start()

    jobs = [
        bench.ended(bench.submit("work", 1, recipe=Maximisation(seed=seed))) for seed in range(8)
    ]

    assert {JobState.DONE} == {job.state for job in jobs}
    assert bench.artifacts.used_bytes <= 220
    newest = jobs[-1].portraits[0]
    assert bench.artifacts.has(newest.picture_digest)
    assert bench.queue.portrait(jobs[0].portraits[0].content_key) is None


def test_collecting_forgets_what_it_removes(bench: Bench) -> None:
    """Older answers beyond the limit are removed and made anew when asked for again."""
    runner = bench.runner()
    runner.start()
    old, new = (bench.ended(bench.submit("work", 1, recipe=Maximisation(seed=s))) for s in (1, 2))
    runner.stop(5)
    bench.artifacts = ArtifactStore(bench.root / "artifacts", bench.artifacts.used_bytes - 1)
    smaller = bench.runner()

    removed = smaller.collect()

    assert 2 == removed  # a manifest goes with its picture
    assert not bench.artifacts.has(old.portraits[0].manifest_digest)
    assert bench.queue.portrait(old.portraits[0].content_key) is None
    assert new.portraits[0] == bench.queue.portrait(new.portraits[0].content_key)
    assert bench.artifacts.has(new.portraits[0].picture_digest)


def test_no_room_for_the_scratch_folder_is_a_full_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that could not even begin for want of space says so, with the code of a full disk."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.runner().start()
    with monkeypatch.context() as full:
        full.setattr(Path, "mkdir", refuse)
        failed = bench.ended(bench.submit("work", 1))

    assert (JobState.FAILED, "SC701") == (failed.state, failed.error_code)
    assert "make room on the disk" in failed.error


def test_a_store_that_is_full_of_kept_answers_fails_the_job(bench: Bench) -> None:
    """Where nothing may be removed the job fails as DiskFull, once, and what is kept is kept."""
    bench.artifacts = ArtifactStore(bench.root / "small", 150)
    bench.runner().start()
    kept = bench.ended(bench.submit("work", 1))

    failed = bench.ended(bench.submit("work", 2))

    assert (JobState.DONE, JobState.FAILED) == (kept.state, failed.state)
    assert ("SC701", 1) == (failed.error_code, failed.attempts)
    assert bench.artifacts.has(kept.portraits[0].picture_digest)


def test_progress_is_monotone_over_a_crash(bench: Bench) -> None:
    """A watcher never sees a smaller step, although the second attempt starts anew."""
    job = bench.submit("crash_once", 1)
    seen: list[int] = []
    runner = bench.runner()

    def watch() -> None:
        version = 0
        while not (now := bench.queue.get(job.id)).state.ended:
            seen.append(now.step)
            version = runner.wait_change(job.id, version, 1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    runner.start()
    done = bench.ended(job)
    watcher.join()

    assert (JobState.DONE, 2, 100) == (done.state, done.attempts, done.step)
    assert sorted(seen) == seen
    assert any(0 < step <= 60 for step in seen)


def test_the_newest_preview_is_at_hand_while_a_job_runs(bench: Bench) -> None:
    """Intermediate pictures are served during the job and not after it."""
    runner = bench.runner()
    runner.start()
    job = bench.submit("hang", 1)

    wait_until(lambda: bench.queue.get(job.id).preview_version > 0, "a preview")
    during = runner.preview(job.id)
    bench.queue.cancel(job.id, time.time())
    bench.ended(job)

    assert PNG + b"1" == during
    assert runner.preview(job.id) is None
    assert runner.preview("nothing") is None


@pytest.mark.parametrize("behaviour", ["hang", "stubborn"])
def test_a_cancelled_job_ends_within_two_and_a_half_seconds(bench: Bench, behaviour: str) -> None:
    """Also one that ignores SIGTERM; its process is gone when it counts as cancelled."""
    bench.runner().start()
    job = bench.started(bench.submit(behaviour, 1))
    pids = [child.pid for child in children()]

    began = time.monotonic()
    bench.queue.cancel(job.id, time.time())
    cancelled = bench.ended(job)
    took = time.monotonic() - began

    assert (JobState.CANCELLED, "") == (cancelled.state, cancelled.error_code)
    assert took <= 2.5
    assert 1 == len(pids)
    assert not psutil.pid_exists(pids[0])


def test_nothing_a_child_started_is_left(bench: Bench) -> None:
    """A grandchild that ignores SIGTERM goes with its job."""
    bench.runner().start()
    job = bench.submit("family", 1)
    wait_until(lambda: "grandchild" in bench.queue.get(job.id).message, "the grandchild")
    grandchild = int(bench.queue.get(job.id).message.split()[-1])

    alive = psutil.pid_exists(grandchild)
    bench.queue.cancel(job.id, time.time())
    bench.ended(job)

    assert alive
    wait_until(lambda: not children(), "the end of the grandchild")


def test_a_time_limit_ends_a_job(bench: Bench) -> None:
    """A hanging job fails as JobTimedOut, naming the limit, and is not tried again."""
    bench.runner().start()

    failed = bench.ended(bench.submit("hang", 1, time_limit_seconds=0.3))

    assert (JobState.FAILED, "SC804", 1) == (failed.state, failed.error_code, failed.attempts)
    assert "0.3 s" in failed.error


def test_a_time_limit_says_what_hung(bench: Bench) -> None:
    """Whoever reads the error knows whether the factory or the optimiser took too long."""
    bench.runner().start()

    failed = bench.ended(bench.submit("family", 1, time_limit_seconds=3.0))

    assert "at 'grandchild " in failed.error


def test_the_configured_limit_is_the_longest(bench: Bench) -> None:
    """A request cannot give itself more time than the operator grants."""
    bench.runner(time_limit_seconds=0.3).start()

    assert "0.3 s" in bench.ended(bench.submit("hang", 1, time_limit_seconds=1e6)).error


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("crash", "killed by SIGSEGV"),
        ("crash", "out of luck"),
        ("leave", "at 'starting': exit code 7"),
    ],
)
def test_a_poison_job_is_failed_after_its_attempts(
    bench: Bench, behaviour: str, words: str
) -> None:
    """Three crashes, then WorkerCrashed with how it ended and what it printed last."""
    bench.runner().start()

    failed = bench.ended(bench.submit(behaviour, 1))

    assert (JobState.FAILED, "SC806", 3) == (failed.state, failed.error_code, failed.attempts)
    assert words in failed.error


def test_a_poison_job_does_not_hold_up_others(bench: Bench) -> None:
    """Jobs behind one that crashes are done."""
    bench.runner().start()
    bench.submit("crash", 1)

    assert JobState.DONE == bench.ended(bench.submit("work", 1)).state


def test_a_named_failure_is_not_tried_again(bench: Bench) -> None:
    """What the child says is wrong is what people read, after one attempt."""
    bench.runner().start()

    failed = bench.ended(bench.submit("refuse", 1))

    assert ("SC803", "unit 7 gives no gradient", 1) == (
        failed.error_code,
        failed.error,
        failed.attempts,
    )


@pytest.mark.parametrize("behaviour", ["babble", "lie", "escape"])
def test_a_child_that_breaks_the_protocol_fails_its_job(bench: Bench, behaviour: str) -> None:
    """Nonsense, a false done, and a path outside the folder make WorkerCrashed; nothing is stored."""
    bench.runner().start()

    failed = bench.ended(bench.submit(behaviour, 1))

    assert (JobState.FAILED, "SC806") == (failed.state, failed.error_code)
    assert 0 == bench.artifacts.used_bytes


def test_a_child_that_hangs_after_its_last_word_is_believed(bench: Bench) -> None:
    """Done is done, even where the process must be killed on its way out."""
    bench.runner().start()

    done = bench.ended(bench.submit("linger", 1))

    assert (JobState.DONE, 1) == (done.state, done.attempts)


def test_megabytes_of_output_do_no_harm(bench: Bench) -> None:
    """Output is read and forgotten but for its tail, so the child neither blocks nor fills memory."""
    bench.runner().start()

    failed = bench.ended(bench.submit("chatter", 1))

    assert "the last line" in failed.error
    assert "line 10 " not in failed.error
    assert len(failed.error) < 5000


def test_misconfigured_models_fail_in_words(bench: Bench) -> None:
    """A model that is not configured, and one without a factory, are named."""
    bench.runner().start()

    unknown = bench.ended(bench.submit("unconfigured", 1))
    watched = bench.ended(bench.submit("watched", 1))

    assert ("SC401", "SC801") == (unknown.error_code, watched.error_code)
    assert "'watched' has neither factory nor onnx" in watched.error


def test_a_context_that_fails_fails_the_job_alone(bench: Bench) -> None:
    """A bug in what the daemon hands in ends that job, and the slot goes on."""
    runner = bench.runner()
    runner._context = lambda request: {"": 1 / request.targets[0].feature.index}  # type: ignore[dict-item]  # noqa: SLF001 - the fault

    runner.start()
    failed, done = (bench.ended(bench.submit("work", unit)) for unit in (0, 1))

    assert (JobState.FAILED, JobState.DONE) == (failed.state, done.state)
    assert "ZeroDivisionError" in failed.error


def test_the_live_distribution_reaches_the_child(bench: Bench) -> None:
    """The table of each missing target is in the specification; ranges only where needed."""
    ranges = np.zeros(4, np.float32)
    bench.live["work@r1/layer/channel/1"] = live(typical_low=ranges, typical_high=ranges + 1)
    bench.live["work@r1/layer/channel/9"] = live()
    bench.runner().start()

    plain = bench.ended(bench.submit("work", 1, 2)).portraits[0]
    ranged = bench.ended(bench.submit("work", 1, recipe=Maximisation(typical_range=1.0))).portraits[
        0
    ]

    facts = [json.loads(bench.artifacts.get(p.manifest_digest))["live"] for p in (plain, ranged)]
    assert ["work@r1/layer/channel/1"] == list(facts[0]) == list(facts[1])
    tables = [next(iter(found.values())) for found in facts]
    assert [None, [1.0] * 4] == [table["typical_high"] for table in tables]
    assert [0.0, 1.0, 3.0] == tables[0]["values"]


def test_other_typical_ranges_are_another_answer(bench: Bench) -> None:
    """A new baseline makes a new picture where the recipe uses it, and only there."""
    ranges = np.zeros(4, np.float32)
    bench.runner().start()
    ranged = Maximisation(typical_range=1.0)
    jobs = []
    for high in (1, 1, 2):
        bench.live["work@r1/layer/channel/1"] = live(typical_low=ranges, typical_high=ranges + high)
        jobs += [bench.ended(bench.submit("work", 1, recipe=r)) for r in (ranged, Maximisation())]

    assert [False, False, True, True, False, True] == [job.from_cache for job in jobs]


def test_a_recipe_that_needs_a_baseline_says_so(bench: Bench) -> None:
    """Without typical ranges the job is refused before a child is started."""
    bench.runner().start()

    failed = bench.ended(bench.submit("work", 1, recipe=Maximisation(typical_range=1.0)))

    assert ("SC207", 1) == (failed.error_code, failed.attempts)


def test_stopping_puts_running_jobs_back(bench: Bench) -> None:
    """The child is ended, the job waits uncounted, and the next runner takes it up."""
    runner = bench.runner()
    runner.start()
    job = bench.started(bench.submit("hang", 1))

    runner.stop(5)
    waiting = bench.queue.get(job.id)

    assert (JobState.QUEUED, 0) == (waiting.state, waiting.attempts)
    assert not runner.alive
    bench.runner().start()
    wait_until(lambda: bench.queue.get(job.id).state is JobState.RUNNING, "the second start")
    bench.queue.cancel(job.id, time.time())
    bench.ended(job)


def test_a_lost_lease_stops_the_child(bench: Bench) -> None:
    """Where somebody else got the job, this one's child is ended and records nothing."""
    bench.runner().start()
    job = bench.started(bench.submit("hang", 1))

    taken = bench.queue.claim("another host", time.time() + 60)

    assert taken is not None
    wait_until(lambda: not children(), "the end of the child")
    assert JobState.RUNNING == bench.queue.get(job.id).state
    assert bench.queue.complete(job.id, "another host", [], False, time.time())  # noqa: FBT003 - the contract's order


def test_a_silent_child_keeps_its_lease(tmp_path: Path) -> None:
    """A step that takes longer than the lease loses nothing: the runner speaks for its child."""
    bench = bench_at(tmp_path, lease_seconds=0.4)
    runner = bench.runner()
    runner.start()
    job = bench.started(bench.submit("hang", 1))
    version = bench.queue.version(job.id)

    try:
        wait_until(lambda: bench.queue.version(job.id) > version + 8, "eight heartbeats")
        stolen = bench.queue.claim("another host", time.time())
    finally:
        runner.stop(5)

    assert stolen is None
    assert 0 == bench.queue.get(job.id).attempts


def test_two_runners_never_run_a_job_at_once(bench: Bench) -> None:
    """Two runners of three slots over one file run sixty jobs, each exactly once."""
    locks = bench.root / "locks"
    locks.mkdir()
    other = Bench(
        bench.root,
        JobQueue(
            Database(bench.root / "s.db"), queue_limit=1000, lease_seconds=30, attempt_limit=3
        ),
        bench.artifacts,
        bench.database,
    )
    jobs = [bench.submit("alone", unit) for unit in range(60)]
    runners = [b.runner(concurrency=3, env={"LOCKS": str(locks)}) for b in (bench, other)]

    for runner in runners:
        runner.start()
    done = [bench.ended(job) for job in jobs]
    other.runners[0].stop(5)

    runs = (locks / "runs").read_text().split()
    assert {(JobState.DONE, 1)} == {(job.state, job.attempts) for job in done}
    assert sorted(job.id for job in jobs) == sorted(runs)
    assert not (locks / "overlap").exists()


def _count_completions(database: Database) -> None:
    """Have the database itself write down every completion."""
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE completions (id TEXT)")
        cursor.execute(
            "CREATE TRIGGER completed AFTER UPDATE ON jobs "
            "WHEN NEW.state = 'done' BEGIN INSERT INTO completions VALUES (NEW.id); END"
        )


def _kill_at_random(jobs: list[Job], queue: JobQueue, rng: random.Random) -> int:
    """Kill a random child every few milliseconds, at most 60 in all; say how many."""
    kills = 0
    while kills < 60 and not all(queue.get(job.id).state.ended for job in jobs):
        time.sleep(rng.uniform(0.02, 0.08))
        found = [child for child in children() if str(SCRIPT) in _arguments(child)]
        if found:
            kills += 1
            with suppress(psutil.NoSuchProcess):
                rng.choice(found).kill()
    return kills


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_hundred_jobs_survive_random_kills_exactly_once(tmp_path: Path) -> None:
    """While workers are killed with -9 at random, every job is completed exactly once."""
    bench = bench_at(tmp_path / "state", attempt_limit=100)  # more than there are kills
    _count_completions(bench.database)
    jobs = [bench.submit("work", unit) for unit in range(100)]
    runner = bench.runner(concurrency=3)

    runner.start()
    try:
        kills = _kill_at_random(jobs, bench.queue, random.Random(7))  # noqa: S311 - a repeatable fault
        done = [bench.ended(job) for job in jobs]
    finally:
        runner.stop(10)

    completions = [row[0] for row in bench.database.query("SELECT id FROM completions")]
    assert [] == [(job.error, job.attempts) for job in done if job.state is not JobState.DONE]
    assert sorted(job.id for job in jobs) == sorted(completions)
    assert all(bench.artifacts.has(job.portraits[0].picture_digest) for job in done)
    assert kills >= 10
    assert max(job.attempts for job in done) > 1
    assert [] == children()
    assert [] == list(bench.scratch.iterdir())
    assert "ok" == bench.database.query("PRAGMA integrity_check")[0][0]


DAEMON = """
import sys, time
from contextlib import suppress
from pathlib import Path
from tests.jobs.bench import bench_at

bench = bench_at(Path(sys.argv[1]), attempt_limit=50)
bench.runner(concurrency=2).start()
time.sleep(600)
"""


def _daemon(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(root)], cwd=ROOT, stdout=subprocess.DEVNULL
    )


def _scripts(root: Path) -> list[psutil.Process]:
    """Return all living scripted children whose folder is below a root."""
    found = []
    for process in psutil.process_iter():
        try:
            below = str(root) in process.cwd()
            if below and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_daemon_killed_over_and_over_loses_no_job(tmp_path: Path) -> None:
    """Kill -9 of the daemon in mid-job, five times: its successor takes the jobs up at once."""
    bench = bench_at(tmp_path, attempt_limit=50)
    _count_completions(bench.database)
    jobs = [bench.submit("work", unit) for unit in range(60)]
    rng = random.Random(3)  # noqa: S311 - a repeatable fault

    for _ in range(5):
        daemon = _daemon(tmp_path)
        before = bench.queue.counts()[JobState.DONE]
        target = min(60, before + rng.randrange(1, 6))
        try:
            wait_until(lambda t=target: bench.queue.counts()[JobState.DONE] >= t, "some more jobs")
        finally:
            daemon.kill()
            daemon.wait()
    daemon = _daemon(tmp_path)
    try:
        done = [bench.ended(job) for job in jobs]
        wait_until(lambda: not list(bench.scratch.iterdir()), "the last folder's end")
    finally:
        daemon.kill()
        daemon.wait()

    completions = [row[0] for row in bench.database.query("SELECT id FROM completions")]
    assert {JobState.DONE} == {job.state for job in done}
    assert sorted(job.id for job in jobs) == sorted(completions)
    wait_until(lambda: not _scripts(tmp_path), "the end of all children")


def test_no_file_descriptor_is_lost(bench: Bench) -> None:
    """After fifty jobs, ten of them crashes, this process holds no more open files than before."""
    bench.runner().start()
    for behaviour in ("work", "crash", "refuse"):
        bench.ended(bench.submit(behaviour, 1))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, not paths

    for unit in range(10):
        for behaviour in ("work", "crash", "refuse"):
            bench.ended(bench.submit(behaviour, 10 + unit))

    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208 - counts, not paths


def test_a_broken_disk_does_not_end_a_slot(bench: Bench) -> None:
    """While the database refuses to be written jobs wait; afterwards they are done."""
    runner = bench.runner()
    pages = bench.database.query("PRAGMA page_count")[0][0]
    job = bench.submit("work", 1)
    with bench.database.transaction() as cursor:
        cursor.execute(
            "CREATE TRIGGER broken BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    assert pages

    runner.start()
    wait_until(lambda: runner.alive, "the slot")
    still = runner.wait_change(job.id, bench.queue.version(job.id), 0.5)
    with bench.database.transaction() as cursor:
        cursor.execute("DROP TRIGGER broken")

    assert bench.queue.version(job.id) >= still
    assert JobState.DONE == bench.ended(job).state
    assert runner.alive


def test_a_signal_number_without_a_name_is_said_too(bench: Bench) -> None:
    """A child killed by a real-time signal is described by its number."""
    bench.runner().start()
    job = bench.started(bench.submit("hang", 1))

    for child in children():
        os.kill(child.pid, signal.SIGRTMIN + 3)
    wait_until(lambda: bench.queue.get(job.id).attempts == 2, "the second attempt")
    message = bench.queue.get(job.id)
    bench.queue.cancel(job.id, time.time())

    assert JobState.CANCELLED == bench.ended(job).state
    assert message.attempts == 2
