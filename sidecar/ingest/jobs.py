"""``JobService``: submits, watches and cancels jobs, and hands out what they made."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from sidecar.errors import InvalidInput, LimitReached, UnknownArtifact
from sidecar.ingest import answers
from sidecar.jobs import Fate, Job, JobRequest, MadePicture, Priority
from sidecar.monitor import IMAGE_LIMIT_BYTES, Operations
from sidecar.recipes import Recipe, Target
from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc

CHUNK_BYTES = 256 << 10
"""Artifact bytes a message: the size at which gRPC's cost per byte levels off."""

PAGE_DEFAULT, PAGE_LIMIT = 50, 200
"""Jobs in a page."""

NOTE_LIMIT = 200
"""Characters of the note of a pin."""

WATCH_SECONDS = 5.0
"""Longest silence of a watch; a dead client is noticed this late at most."""

WATCH_LIMIT = 32
"""Watches at once. Each holds a thread while it waits, and those are not the threads that answer."""

Context = grpc.aio.ServicerContext[Any, Any]


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Answers from ``Operations``; every error carries its stable code."""

    def __init__(self, operations: Operations) -> None:
        """Serve over ``operations``."""
        self._operations = operations
        self._watches = 0
        self._waiters = ThreadPoolExecutor(WATCH_LIMIT, "sidecar-watch")

    async def SubmitJob(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.SubmitJobRequest, context: Context
    ) -> jobs_pb2.SubmitJobResponse:
        """Queue a job, or return the one with the same idempotency key."""
        found = await answers.answer(context, self._submit, request)
        return jobs_pb2.SubmitJobResponse(job=answers.job(found))

    async def GetJob(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.GetJobRequest, context: Context
    ) -> jobs_pb2.GetJobResponse:
        """Return one job."""
        found = await answers.answer(context, self._operations.job, request.id)
        return jobs_pb2.GetJobResponse(job=answers.job(found))

    async def ListJobs(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.ListJobsRequest, context: Context
    ) -> jobs_pb2.ListJobsResponse:
        """Return one page of jobs, newest first."""
        size = min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT)
        found = await answers.answer(
            context, self._operations.jobs, None, size, before=request.page_token
        )
        return jobs_pb2.ListJobsResponse(
            jobs=[answers.job(item) for item in found],
            next_page_token=found[-1].id if len(found) == size else "",
        )

    async def WatchJob(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        """Yield the job as it is, then every change of it until it has ended."""
        if self._watches >= WATCH_LIMIT:
            error = LimitReached(f"{WATCH_LIMIT} jobs are being watched: try again later")
            await answers.abort(context, error)
        self._watches += 1
        try:
            async for change in self._changes(request.id, context):
                yield change
        finally:
            self._watches -= 1

    async def _changes(
        self, job_id: str, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        found = await answers.answer(context, self._operations.job, job_id)
        version, picture = -1, 0
        while True:
            preview = None
            if found.preview_version != picture:
                picture = found.preview_version
                preview = await answers.answer(context, self._operations.preview, job_id)
            yield jobs_pb2.WatchJobResponse(job=answers.job(found), picture=preview or b"")
            if found.state.ended:
                return
            wait = partial(self._operations.wait_job, job_id, version, WATCH_SECONDS)
            change = asyncio.get_running_loop().run_in_executor(self._waiters, wait)
            version = await answers.settled(context, change)
            found = await answers.answer(context, self._operations.job, job_id)

    async def CancelJob(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.CancelJobRequest, context: Context
    ) -> jobs_pb2.CancelJobResponse:
        """Stop a job that has not ended."""
        found = await answers.answer(context, self._operations.cancel, request.id)
        return jobs_pb2.CancelJobResponse(job=answers.job(found))

    async def ListQuarantine(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.ListQuarantineRequest, context: Context
    ) -> jobs_pb2.ListQuarantineResponse:
        """Return what is refused for killing its worker, the longest first."""
        size = min(request.page_size or PAGE_LIMIT, PAGE_LIMIT)
        found = await answers.answer(context, self._operations.quarantined, size)
        return jobs_pb2.ListQuarantineResponse(requests=map(answers.quarantined, found))

    async def ReleaseQuarantine(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.ReleaseQuarantineRequest, context: Context
    ) -> jobs_pb2.ReleaseQuarantineResponse:
        """Refuse no longer what killed its worker."""
        count = await answers.answer(context, self._operations.release_quarantine, request.name)
        return jobs_pb2.ReleaseQuarantineResponse(released=count)

    async def GetArtifact(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.GetArtifactRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.GetArtifactResponse]:
        """Yield an artifact in chunks."""
        data, media_type = await answers.answer(context, self._read, request.digest)
        for start in range(0, max(len(data), 1), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            yield jobs_pb2.GetArtifactResponse(chunk=chunk, media_type=media_type)

    def _read(self, digest: str) -> tuple[bytes, str]:
        path, media_type = self._operations.artifact(digest)
        try:
            return path.read_bytes(), media_type
        except FileNotFoundError as error:
            raise UnknownArtifact(f"artifact {digest[:80]!r} was just removed") from error

    async def ListArtifacts(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.ListArtifactsRequest, context: Context
    ) -> jobs_pb2.ListArtifactsResponse:
        """Return one page of pictures, newest first."""
        size = min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT)
        found = await answers.answer(context, self._list, request, size)
        return jobs_pb2.ListArtifactsResponse(
            artifacts=[answers.stored(one) for one in found],
            next_page_token=found[-1].manifest_digest if len(found) == size else "",
        )

    def _list(self, request: jobs_pb2.ListArtifactsRequest, size: int) -> Sequence[MadePicture]:
        feature = str(self._operations.resolve(request.feature)) if request.feature else ""
        return self._operations.provenance.list(
            feature=feature,
            model=request.model,
            revision=request.revision,
            method=request.method,
            verdict=request.verdict,
            job_id=request.job_id,
            limit=size,
            before=request.page_token,
        )

    async def FindArtifact(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.FindArtifactRequest, context: Context
    ) -> jobs_pb2.FindArtifactResponse:
        """Return the picture that a digest names, and who refers to it."""
        found = await answers.answer(context, self._find, request.digest)
        return jobs_pb2.FindArtifactResponse(artifact=found)

    def _find(self, digest: str) -> jobs_pb2.StoredArtifact:
        pictures = self._operations.provenance
        found = pictures.find(digest)
        return answers.stored(found, pictures.references(found))

    async def PutImage(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[jobs_pb2.PutImageRequest], context: Context
    ) -> jobs_pb2.PutImageResponse:
        """Store an image that recipes may look at; what is too large is not read to its end."""
        data = bytearray()
        async for part in requests:
            data += part.chunk
            if len(data) > IMAGE_LIMIT_BYTES:
                break
        digest, kind = await answers.answer(context, self._operations.put_image, bytes(data))
        return jobs_pb2.PutImageResponse(digest=digest, media_type=kind)

    async def PinArtifact(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.PinArtifactRequest, context: Context
    ) -> jobs_pb2.PinArtifactResponse:
        """Keep a picture and its manifest, or let them go with the others again."""
        found = await answers.answer(context, self._pin, request)
        return jobs_pb2.PinArtifactResponse(artifact=answers.stored(found))

    def _pin(self, request: jobs_pb2.PinArtifactRequest) -> MadePicture:
        if len(request.note) > NOTE_LIMIT or not request.note.isprintable():
            raise InvalidInput(f"note: use at most {NOTE_LIMIT} printable characters")
        if request.pinned:
            return self._operations.provenance.pin(request.digest, request.note)
        return self._operations.provenance.unpin(request.digest)

    async def CollectArtifacts(  # noqa: N802 - named by the protocol
        self, request: jobs_pb2.CollectArtifactsRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.CollectArtifactsResponse]:
        """Yield what becomes of every artifact, after what goes was removed."""
        found = await answers.answer(context, self._collect, dry_run=request.dry_run)
        for start in range(0, len(found), PAGE_LIMIT):
            page = [answers.fate(one) for one in found[start : start + PAGE_LIMIT]]
            yield jobs_pb2.CollectArtifactsResponse(fates=page)

    def _collect(self, *, dry_run: bool) -> Sequence[Fate]:
        found = self._operations.provenance.fates()
        if not dry_run:
            self._operations.provenance.collect()
        return found

    def _submit(self, request: jobs_pb2.SubmitJobRequest) -> Job:
        if request.reproduces:
            if request.features or request.recipe_json:
                raise InvalidInput("reproduces names all there is: leave features and recipe out")
            return self._operations.reproduce(request.reproduces, request.time_limit_seconds)
        targets = tuple(Target(self._operations.resolve(text)) for text in request.features)
        recipe = self._recipe(request.recipe_json)
        return self._operations.submit(
            JobRequest(
                targets,
                recipe,
                origin="api",
                idempotency_key=request.idempotency_key,
                time_limit_seconds=request.time_limit_seconds,
                deadline=request.deadline_unix_seconds,
                asked_priority=_priority(request.priority),
            )
        )

    def _recipe(self, text: str) -> Recipe:
        try:
            values = json.loads(text or "{}")
        except ValueError as error:
            raise InvalidInput(f"recipe_json is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInput(f"recipe_json holds {type(values).__name__}, need an object")
        return self._operations.recipe(values)


def _priority(asked: int) -> Priority | None:
    """Return the priority that was asked for; None where none was, or one of a newer release."""
    return next((one for one, number in answers.PRIORITIES.items() if number == asked), None)
