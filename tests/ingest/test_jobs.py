"""The job service under many clients."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.features import Capture, LayerKey
from sidecar.ingest.jobs import PAGE_LIMIT, WATCH_LIMIT, WATCH_SECONDS
from sidecar.jobs import JobRequest, Priority
from sidecar.recipes import Target
from sidecar.testing import RunningDaemon, running_daemon
from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc

pytestmark = pytest.mark.service

LAYER = LayerKey("m", "c" * 64, "a")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon whose jobs wait for ever."""
    models = [{"name": "m", "factory": "nowhere.at_all:build"}]
    with running_daemon(tmp_path, {"models": models}) as found:
        found.daemon.runner.stop()
        found.daemon.monitor.register(LAYER, 1, Capture(), 0.0)
        yield found


def submit(running: RunningDaemon) -> str:
    """Queue a job and return its id."""
    return running.daemon.operations.submit(JobRequest((Target(LAYER.feature(0)),))).id


def test_watchers_do_not_keep_others_from_an_answer(running: RunningDaemon) -> None:
    """Every watch waits in a thread; those are not the threads that answer."""
    job_id = submit(running)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(running.grpc))
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        for _ in range(WATCH_LIMIT):
            watch = stub.WatchJob(jobs_pb2.WatchJobRequest(id=job_id))
            stack.callback(watch.cancel)
            assert [job_id] * 2 == [next(watch).job.id for _ in range(2)]
        began = time.monotonic()
        stub.GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=WATCH_SECONDS)
        seconds = time.monotonic() - began
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.WatchJob(jobs_pb2.WatchJobRequest(id=job_id)))

    assert seconds < WATCH_SECONDS / 2
    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
    assert "SC603" in caught.value.details()


def test_more_jobs_than_a_page_are_listed(running: RunningDaemon) -> None:
    """The command asks for page after page until it has as many as were asked for."""
    wanted = PAGE_LIMIT + 2
    for _ in range(wanted):
        submit(running)

    found = CliRunner().invoke(
        main, ["job", "list", "--limit", str(PAGE_LIMIT + 1), "--address", running.grpc]
    )

    assert PAGE_LIMIT + 2 == len(found.stdout.splitlines())


def command(running: RunningDaemon, *arguments: str) -> Result:
    """Run a job command against the daemon."""
    return CliRunner().invoke(main, ["job", *arguments, "--address", running.grpc])


FEATURE = f"m@{LAYER.revision}/a/channel/0"


def test_a_command_asks_for_a_priority_and_a_deadline(running: RunningDaemon) -> None:
    """Both reach the queue, and are shown."""
    began = time.time()

    made = command(running, "run", FEATURE, "--priority", "audit", "--within", "2h", "--no-watch")
    job = running.daemon.queue.list(1)[0]
    listed = command(running, "list")

    assert 0 == made.exit_code, made.stderr
    assert "priority   audit" in made.stdout
    assert "deadline   20" in made.stdout
    assert Priority.AUDIT is job.request.priority
    assert began + 7200 <= job.request.deadline <= time.time() + 7200
    assert ["PRIORITY", "audit"] == [line.split()[2] for line in listed.stdout.splitlines()]


def test_a_deadline_is_a_time_too(running: RunningDaemon) -> None:
    """ISO 8601 with a zone; without any deadline none is shown."""
    command(running, "run", FEATURE, "--deadline", "2096-05-01T06:00+02:00", "--no-watch")
    patient = command(running, "run", FEATURE, "--no-watch")

    second, first = running.daemon.queue.list(2)
    assert (3_986_683_200.0, 0.0) == (first.request.deadline, second.request.deadline)
    assert Priority.INTERACTIVE is second.request.priority
    assert "deadline" not in patient.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--within", "soon"], "'soon' is no duration"),
        (["--deadline", "soon"], "'soon' is no time"),
        (["--deadline", "2020-01-01"], "passed"),
        (["--within", "1h", "--deadline", "2096-01-01"], "give one of them"),
        (["--priority", "urgent"], "'urgent' is not one of"),
    ],
)
def test_deadlines_and_priorities_that_make_no_sense_are_refused(
    running: RunningDaemon, options: list[str], message: str
) -> None:
    """Nothing is queued."""
    found = command(running, "run", FEATURE, "--no-watch", *options)

    assert 2 == found.exit_code
    assert message in found.stderr
    assert 0 == len(running.daemon.queue.list(1))


def test_what_is_quarantined_is_released_by_command(running: RunningDaemon) -> None:
    """A refusal names the command that lifts it, and then the job is taken."""
    queue = running.daemon.queue
    job_id = submit(running)
    for _ in range(running.daemon.config.jobs.attempt_limit):
        claimed = queue.claim("x", time.time() + 60)
        assert claimed is not None
        queue.fail(job_id, "x", "SC806", "SIGSEGV", time.time(), retry=True)

    refused = command(running, "run", FEATURE, "--no-watch")
    listed = command(running, "list", "--quarantined")
    (told,) = json.loads(command(running, "list", "--quarantined", "-o", "json").stdout)
    advised = refused.stderr.rpartition("sidecar job release ")[2].split("'")[0]
    released = command(running, "release", advised)
    again = command(running, "release", advised)
    taken = command(running, "run", FEATURE, "--no-watch")

    assert "SC505" in refused.stderr
    assert (told["job_id"], told["content_key"], told["reason"]) == (job_id, advised, "SIGSEGV")
    assert advised[:16] in listed.stdout
    assert told["feature"] in listed.stdout
    assert "nothing found\n" == command(running, "list", "--quarantined").stderr
    assert (0, "released 1 content keys\n") == (released.exit_code, released.stdout)
    assert (3, True) == (again.exit_code, "SC404" in again.stderr)
    assert 0 == taken.exit_code
    running.daemon.operations.flush_events()
    events = running.daemon.operations.events(None, 10)
    assert "quarantine_released" in [event.what for event in events]
