"""A job's progress as server-sent events."""

import math
from collections.abc import AsyncIterator
from functools import partial

import anyio.to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sidecar.jobs import Job
from sidecar.web import serialise
from sidecar.web.console import Console
from sidecar.web.pages import remaining

_WAIT_SECONDS = 1.0  # so a stream notices the end of the server, or of its reader, this soon
_KEEP_ALIVE_WAITS = 15  # proxies close what is silent for half a minute
_RETRY_MILLISECONDS = 2000


async def job_events(request: Request) -> Response:
    """``GET /api/v1/jobs/{id}/events``: the job as it is, then each change, until it has ended.

    Events are named ``job``; the one that says it has ended is named ``end`` and is the last.
    """
    console = Console.of(request)
    job_id = request.path_params["job_id"]
    await run_in_threadpool(console.backend.job, job_id)  # refuses unknown jobs with their code
    console.streams.enter()
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return _Stream(_events(console, job_id), media_type="text/event-stream", headers=headers)


class _Stream(StreamingResponse):
    """Gives its place back however it ends; a generator that never started could not."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Console.of(Request(scope)).streams.leave()


async def _events(console: Console, job_id: str) -> AsyncIterator[str]:
    # A thread of its own while it waits: the pool that makes pages stays free for pages.
    limiter = anyio.CapacityLimiter(1)
    seen, silent = -1, 0
    yield f"retry: {_RETRY_MILLISECONDS}\n\n"
    while not console.stopping.is_set():
        wait = partial(console.backend.wait_job, job_id, seen, _WAIT_SECONDS)
        version = await anyio.to_thread.run_sync(wait, limiter=limiter)
        if version == seen:
            silent += 1
            if silent % _KEEP_ALIVE_WAITS == 0:
                yield ": still here\n\n"
            continue
        seen, silent = version, 0
        job = await run_in_threadpool(console.backend.job, job_id)
        yield _event(job, console)
        if job.state.ended:
            return


def _event(job: Job, console: Console) -> str:
    body = serialise.job(job, console.base)
    share = job.step / job.steps if job.steps else math.nan
    body["share"] = serialise.known(share)
    body["remaining"] = remaining(job, console.clock())
    name = "end" if job.state.ended else "job"
    return f"event: {name}\ndata: {serialise.encode(body)}\n\n"
