import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sidecar.features import FeatureKey
from sidecar.jobs import JobState
from sidecar.web import WebServer
from sidecar.web.console import STREAM_LIMIT

pytestmark = pytest.mark.service


def events(lines: Iterator[str]) -> Any:
    """Yield the named events of a stream with their data."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_progress_arrives_as_it_happens_and_the_stream_ends(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Each step is one event; the last is named end and closes the stream."""
    job = backend.add_job(spiking, JobState.RUNNING, started=backend.now - 5, steps=3)
    with client.stream("GET", f"/api/v1/jobs/{job.id}/events") as response:
        found = events(response.iter_lines())
        first = next(found)
        backend.show(job.id, b"picture", 1)
        second = next(found)
        backend.change(job.id, state=JobState.DONE, step=3, ended=backend.now)
        last = next(found)
        rest = list(found)

    assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
    assert ("job", 0, None) == (first[0], first[1]["step"], first[1]["preview"])
    assert ("job", 1) == (second[0], second[1]["step"])
    assert second[1]["preview"].endswith("preview.png?v=1")
    assert ("end", "done") == (last[0], last[1]["state"])
    assert [] == rest


def test_the_stream_of_an_ended_job_is_one_event(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Who comes late hears how it ended."""
    job = backend.add_job(spiking, JobState.CANCELLED, ended=1.0)
    with client.stream("GET", f"/api/v1/jobs/{job.id}/events") as response:
        found = list(events(response.iter_lines()))

    assert [("end", "cancelled")] == [(name, data["state"]) for name, data in found]


def test_a_reader_who_leaves_gives_the_place_back(
    client: httpx.Client, server: WebServer, backend: Any, spiking: FeatureKey
) -> None:
    """Closed tabs do not use up the streams, however many."""
    job = backend.add_job(spiking, JobState.RUNNING, steps=3)
    for _ in range(3):
        with client.stream("GET", f"/api/v1/jobs/{job.id}/events") as response:
            next(events(response.iter_lines()))
    streams = server._app.state.console.streams  # noqa: SLF001 - the count is not shown anywhere

    gone = threading.Event()
    for _ in range(1000):
        if streams._open == 0:  # noqa: SLF001
            break
        gone.wait(0.01)
    assert 0 == streams._open  # noqa: SLF001


def test_too_many_readers_are_told_and_pages_still_answer(
    server: WebServer, client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The limit refuses one more stream with a code; ordinary pages go on."""
    job = backend.add_job(spiking, JobState.RUNNING, steps=3)
    streams = server._app.state.console.streams  # noqa: SLF001 - fills the places quickly
    for _ in range(STREAM_LIMIT):
        streams.enter()
    refused = client.get(f"/api/v1/jobs/{job.id}/events")
    for _ in range(STREAM_LIMIT):
        streams.leave()

    assert (429, "SC603") == (refused.status_code, refused.json()["code"])
    assert 200 == client.get("/").status_code


def test_stopping_the_server_ends_open_streams(
    server: WebServer, backend: Any, spiking: FeatureKey
) -> None:
    """A reader of a job that never ends does not hold the daemon up."""
    job = backend.add_job(spiking, JobState.RUNNING, steps=3)
    url = f"http://127.0.0.1:{server.port}/api/v1/jobs/{job.id}/events"
    with httpx.Client(trust_env=False) as client, client.stream("GET", url, timeout=20) as response:
        lines = response.iter_lines()
        next(events(lines))
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        rest = list(lines)
        stopper.join(15)

    assert not stopper.is_alive()
    assert not [line for line in rest if line.startswith("event: end")]


def test_many_streams_leave_room_for_pages(
    server: WebServer, client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """More waiting readers than the page pool has threads do not stop a page."""
    job = backend.add_job(spiking, JobState.RUNNING, steps=3)
    url = f"http://127.0.0.1:{server.port}/api/v1/jobs/{job.id}/events"
    limits = httpx.Limits(max_connections=60)
    with httpx.Client(trust_env=False, limits=limits, timeout=30) as many:
        opened = [many.send(many.build_request("GET", url), stream=True) for _ in range(50)]
        answer = client.get("/")
        for response in opened:
            response.close()

    assert 200 == answer.status_code
    assert {200} == {response.status_code for response in opened}
