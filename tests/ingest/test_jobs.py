"""The job service under many clients."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.features import Capture, LayerKey
from sidecar.ingest.jobs import PAGE_LIMIT, WATCH_LIMIT, WATCH_SECONDS
from sidecar.jobs import JobRequest
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
