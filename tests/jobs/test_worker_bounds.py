"""The real child: what a factory may not do, how soon it ends, and going on where it was."""

import time

import psutil
import pytest

from sidecar.jobs import JobState, confine
from sidecar.recipes import Maximisation
from tests.jobs import tiny_model
from tests.jobs.bench import Bench, children, lives, wait_until
from tests.jobs.test_worker import Desk, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(confine.missing()), reason=f"this kernel has no {confine.missing()}"),
]

LONG = Maximisation(steps=10_000, canvas=64)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("call_home", "no network"),
        ("write_outside", "written-by-a-model"),
        ("fork_many", "starts no processes"),
        ("run_a_tool", "starts no processes"),
        ("hoard", "jobs.memory_limit_bytes"),
        ("fill", "jobs.file_limit_bytes"),
        ("kill_the_daemon", "in its sandbox"),
    ],
)
def test_a_factory_that_wants_more_than_it_may_is_refused(
    bench: Bench, factory: str, words: str
) -> None:
    """One attempt, a code of its own, what was refused and what to do; this process is unharmed."""
    desk = Desk(bench)
    desk.factory = factory

    failed = desk.run(target("v1", 3))

    assert (JobState.FAILED, "SC809", 1) == (failed.state, failed.error_code, failed.attempts)
    assert words in failed.error
    assert factory in failed.error
    assert not tiny_model.OUTSIDE.exists()
    assert desk.runner.alive


def test_a_factory_that_keeps_to_itself_is_let_be(bench: Bench) -> None:
    """Temporary files and threads; the manifest says what the sandbox was."""
    desk = Desk(bench)
    desk.factory = "keep_to_itself"

    done = desk.run(target("v1", 3))

    assert (JobState.DONE, "") == (done.state, done.error)
    assert {
        "mode": "auto",
        "applied": ["landlock", "seccomp", "capabilities", "limits"],
        "missing": {},
    } == desk.manifest(done)["sandbox"]


@pytest.mark.parametrize(
    ("phase", "factory"),
    [("starting", "make"), ("importing", "make"), ("loading", "hang"), ("step ", "make")],
)
def test_a_cancelled_child_is_dead_within_two_seconds(
    bench: Bench, phase: str, factory: str
) -> None:
    """From the request to the end of the process, whatever it is at."""
    desk = Desk(bench)
    desk.factory = factory
    job = desk.submit(target("v1", 3), recipe=LONG)
    wait_until(lambda: phase in bench.queue.get(job.id).message, f"{phase!r}")
    wait_until(children, "the child")
    child = children()[0]

    began = time.monotonic()
    bench.queue.cancel(job.id, time.time())
    while lives(child) and time.monotonic() < began + 10:
        time.sleep(0.01)
    took = time.monotonic() - began

    assert took <= 2.0
    assert JobState.CANCELLED == bench.ended(job).state
    assert not psutil.pid_exists(child.pid)


def test_an_interrupted_job_makes_the_picture_it_would_have_made(bench: Bench) -> None:
    """Stopped in the middle and taken up by another runner: the same bytes as without a break."""
    recipe = Maximisation(steps=400, canvas=64)
    desk = Desk(bench)
    whole = desk.run(target("v1", 3), recipe=recipe)
    bench.queue.forget([whole.portraits[0].picture_digest])
    job = desk.submit(target("v1", 3), recipe=recipe)
    wait_until(lambda: bench.queue.get(job.id).step >= 16, "sixteen steps")
    desk.runner.stop(5)
    waiting = bench.queue.get(job.id)
    kept = list((bench.root / "checkpoints").rglob("state"))

    resumed = Desk(bench)
    wait_until(lambda: bench.queue.get(job.id).message.startswith("step"), "its first report")
    done = bench.ended(job)

    assert (JobState.QUEUED, 0) == (waiting.state, waiting.attempts)
    assert 1 == len(kept)
    assert JobState.DONE == done.state
    assert whole.portraits[0].picture_digest == done.portraits[0].picture_digest
    wait_until(lambda: not list((bench.root / "checkpoints").iterdir()), "the checkpoint's end")
    first, second = (resumed.manifest(one) for one in (whole, done))
    assert first["history"] == second["history"]
    assert first["activation"] == second["activation"]
