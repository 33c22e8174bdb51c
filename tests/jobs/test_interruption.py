"""Jobs that make way, wait for their hours, miss their deadline or are quarantined, with children."""

import time
from pathlib import Path

import pytest

from sidecar.errors import JobQuarantined
from sidecar.jobs import Job, JobState, Priority
from tests.jobs.bench import Bench, bench_at, children, wait_until

pytestmark = pytest.mark.e2e

NEVER = [{"cron": "0 0 1 1 *", "duration_seconds": 1}]
"""A second in the year, which no test runs in but by bad luck."""


def audit(bench: Bench, behaviour: str, unit: int = 1, **values: object) -> Job:
    """Submit an audit."""
    return bench.submit(behaviour, unit, asked_priority=Priority.AUDIT, **values)


def state(bench: Bench, job: Job) -> JobState:
    """Return a job's state."""
    return bench.queue.get(job.id).state


def test_a_person_interrupts_an_audit_which_goes_on_where_it_was(bench: Bench) -> None:
    """The audit is put back uncounted, takes each step once, and no checkpoint is left."""
    log = bench.root / "steps"
    bench.runner(env={"STEPS": str(log)}).start()
    slow = audit(bench, "resumable")
    wait_until(lambda: bench.queue.get(slow.id).step >= 3, "three steps")

    began = time.monotonic()
    quick = bench.ended(bench.submit("work", 2))
    took = time.monotonic() - began
    done = bench.ended(slow)

    steps = [int(line) for line in log.read_text().split()]
    assert (JobState.DONE, JobState.DONE) == (quick.state, done.state)
    assert quick.ended < done.ended
    assert took < 5
    assert 1 == done.attempts
    assert list(range(1, 21)) == steps
    wait_until(lambda: not list((bench.root / "checkpoints").iterdir()), "the checkpoint's end")


@pytest.mark.parametrize("origin", ["alert", "audit"])
def test_others_do_not_interrupt_it(bench: Bench, origin: str) -> None:
    """An alert's job waits for the audit's end."""
    bench.runner().start()
    slow = audit(bench, "resumable")
    wait_until(lambda: bench.queue.get(slow.id).step >= 3, "three steps")

    other = bench.ended(bench.submit("work", 2, origin=origin))

    assert bench.queue.get(slow.id).ended <= other.started


def test_at_the_end_of_a_window_an_audit_is_put_back(bench: Bench) -> None:
    """It says until when it waits; others still run."""
    minute = time.localtime(time.time()).tm_min
    runner = bench.runner(audit_windows=[{"cron": "* * * * *", "duration_seconds": 3600}])
    runner.start()
    slow = audit(bench, "resumable")
    wait_until(lambda: bench.queue.get(slow.id).step >= 3, f"three steps, in minute {minute}")

    later = time.time() + 3600 * 24 * 400
    runner._dispatcher._window = (later, False)  # noqa: SLF001 - as if it had closed
    runner._dispatcher._clock = lambda: later  # noqa: SLF001 - and stays closed
    wait_until(lambda: state(bench, slow) is JobState.QUEUED, "the audit's return")
    waiting = bench.queue.get(slow.id)
    other = bench.ended(bench.submit("work", 2))

    assert "jobs.audit_windows" in waiting.message
    assert 0 == waiting.attempts
    assert JobState.DONE == other.state


def test_outside_its_windows_an_audit_waits_and_may_miss_its_deadline(bench: Bench) -> None:
    """People's jobs pass it; the error says how long it waited and for what."""
    bench.runner(audit_windows=NEVER).start()
    waiting = audit(bench, "work", deadline=time.time() + 1.5)
    patient = audit(bench, "work", 3)

    other = bench.ended(bench.submit("work", 2))
    late = bench.ended(waiting)

    assert JobState.DONE == other.state
    assert (JobState.FAILED, "SC808", 0) == (late.state, late.error_code, late.attempts)
    assert late.error.startswith("waited ")
    assert "jobs.audit_windows" in late.error
    assert "-01-01T00:00+00:00" in late.error
    assert JobState.QUEUED == state(bench, patient)


def test_a_deadline_missed_for_want_of_a_slot_says_so(bench: Bench) -> None:
    """Nobody had a slot to notice it in."""
    bench.runner().start()
    bench.started(bench.submit("hang", 1))
    bench.submit("work", 2)

    late = bench.ended(bench.submit("work", 3, deadline=time.time() + 1))

    assert "SC808" == late.error_code
    assert "1 jobs were running, of jobs.concurrency 1, and 1 waited" in late.error


def test_a_quarantined_job_is_not_run_again_even_where_it_waits(tmp_path: Path) -> None:
    """Equal jobs behind the one that crashed are failed without a child; new ones are refused."""
    bench = bench_at(tmp_path, quarantine_seconds=60)
    first, second = bench.submit("crash", 1), bench.submit("crash", 1)
    runner = bench.runner()
    runner.start()
    try:
        crashed, refused = bench.ended(first), bench.ended(second)

        with pytest.raises(JobQuarantined, match="sidecar job release"):
            bench.submit("crash", 1)
        lifted = bench.queue.quarantine.lift(first.id)
        again = bench.ended(bench.submit("crash", 1))
    finally:
        runner.stop(5)

    assert ("SC806", 3) == (crashed.error_code, crashed.attempts)
    assert ("SC505", 1) == (refused.error_code, refused.attempts)
    assert 1 == lifted
    assert "SC806" == again.error_code


def test_an_attempt_goes_on_after_a_crash_and_after_a_restart(bench: Bench) -> None:
    """The checkpoint outlives a crash, a stopped runner, and nothing else."""
    log = bench.root / "steps"
    env = {"STEPS": str(log), "CRASH_AT": "5"}
    runner = bench.runner(env=env)
    runner.start()
    job = bench.submit("resumable", 1)
    wait_until(lambda: bench.queue.get(job.id).step >= 8, "the second attempt")
    runner.stop(5)
    kept = [folder.name for folder in (bench.root / "checkpoints").iterdir()]

    bench.runner(env=env).start()
    done = bench.ended(job)

    assert [job.id] == kept
    assert (JobState.DONE, 2) == (done.state, done.attempts)
    assert list(range(1, 21)) == [int(line) for line in log.read_text().split()]
    wait_until(lambda: not list((bench.root / "checkpoints").iterdir()), "the checkpoint's end")


def test_the_checkpoint_of_a_job_cancelled_while_it_waits_is_removed(bench: Bench) -> None:
    """Nobody will go on from it; neither from what jobs of another database left."""
    runner = bench.runner()
    runner.start()
    job = bench.submit("resumable", 1)
    wait_until(lambda: bench.queue.get(job.id).step >= 3, "three steps")
    runner.stop(5)
    (bench.root / "checkpoints" / "orphan").mkdir()
    bench.queue.cancel(job.id, time.time())

    bench.runner().start()

    wait_until(lambda: not list((bench.root / "checkpoints").iterdir()), "an empty folder")
    assert [] == children()
