"""Runs the jobs of a queue, each in a process of its own, and puts what they make into the store."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import structlog

from sidecar.config import JobsConfig
from sidecar.errors import (
    ConfigError,
    CorruptState,
    DiskFull,
    GpuOutOfMemory,
    JobError,
    SidecarError,
    StoreUnreachable,
    UnknownJob,
    WorkerCrashed,
)
from sidecar.jobs.assignment import (
    Assignment,
    ContextLookup,
    assign,
    child_environment,
    child_spec,
    confined,
)
from sidecar.jobs.checkpoint import CheckpointFolder
from sidecar.jobs.child import Child
from sidecar.jobs.confine import missing
from sidecar.jobs.datasets import Datasets
from sidecar.jobs.dictionaries import Dictionaries
from sidecar.jobs.dispatch import Dispatcher
from sidecar.jobs.fates import Fate, fates
from sidecar.jobs.gpu import GPU_MEMORY, PRESSURE, Admission
from sidecar.jobs.index import ArtifactIndex, MadePicture
from sidecar.jobs.manifest import artifact_inputs, read_verdict
from sidecar.jobs.owner import is_dead, is_stale_scratch, make_scratch, owner_name
from sidecar.jobs.pressure import Pressure
from sidecar.jobs.protocol import Job, Portrait
from sidecar.jobs.quarantine import quarantine_keys
from sidecar.jobs.queue import JobQueue
from sidecar.jobs.sources import ModelLookup, ModelSources
from sidecar.jobs.spec import JobSpec, encode_spec
from sidecar.jobs.supervision import Ending, Lease, Outcome, Supervisor
from sidecar.store import Artifact, ArtifactStore, OwnerKind, References

_log = structlog.get_logger(__name__)

_IDLE_SECONDS = 0.2  # how soon a job is seen that another process submitted, or whose pause ends
_ERROR_SECONDS = 1.0  # pause after a broken disk, which is not mended by asking faster
_TIDY_SECONDS = 5.0  # between looks for what jobs left that ended without a slot
_PREVIEW_LIMIT_BYTES = 16 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
WORKER_COMMAND = (sys.executable, "-m", "sidecar.jobs.worker")
"""The child; the number of the descriptor for its events is appended."""


class Runner:
    """Claims jobs and supervises up to ``concurrency`` children.

    No error of a job, of a child or of the disk ends it; a job whose record cannot be written is
    tried again when its lease has lapsed. Several runners may share one queue.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        queue: JobQueue,
        artifacts: ArtifactStore,
        models: ModelLookup,
        jobs_config: JobsConfig,
        scratch: Path,
        context: ContextLookup,
        index: ArtifactIndex | None = None,
        references: References | None = None,
        *,
        max_age_seconds: float | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        clock: Callable[[], float] = time.time,
        env: Mapping[str, str] | None = None,
        datasets: Datasets | None = None,
        dictionaries: Dictionaries | None = None,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            queue: Where jobs come from.
            artifacts: Where pictures and manifests go.
            models: Configured models by name.
            jobs_config: Concurrency, time limit, device, threads, import paths.
            scratch: Folder for what children write; each attempt has its own in it.
            context: Live distributions of a request's targets.
            index: Where made pictures are listed; None makes one in the queue's database.
            references: Which artifacts must stay; None as above.
            max_age_seconds: Age at which an unreferenced artifact goes; None: never.
            command: The child's programme and arguments.
            clock: Unix seconds.
            env: Environment of children; None takes this process's.
            datasets: Folders of images that recipes look through; None: there are none.
            dictionaries: Files of directions; None: there are none.
        """
        self._datasets = datasets or Datasets()
        self._dictionaries = dictionaries or Dictionaries()
        self._queue = queue
        self._artifacts = artifacts
        self._models = ModelSources(models)
        self._config = jobs_config
        self._scratch = scratch
        self._context = context
        self._command = tuple(command)
        self._clock = clock
        self._index = index or ArtifactIndex(queue.database)
        self._references = references or References(queue.database)
        self._max_age_seconds = max_age_seconds
        self._env = child_environment(jobs_config, os.environ if env is None else env)
        self._checkpoints = CheckpointFolder(
            scratch.with_name("checkpoints"), jobs_config.checkpoint_bytes
        )
        self._pressure = Pressure(jobs_config.yield_to)
        self.admission = Admission(jobs_config, self._env)
        self._dispatcher = Dispatcher(
            queue,
            jobs_config,
            clock,
            pressed=self._pressure,
            held=self.admission.held_for,
            tidy=self._tidy,
        )
        self._tidied_at = float("-inf")
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._storing = threading.Lock()
        self._previews: dict[str, bytes] = {}
        self._timed, self._seconds = 0, 0.0

    def start(self) -> None:
        """Take back what dead processes left, and begin to run jobs.

        Raises:
            ConfigError: The sandbox must be whole, and this kernel cannot make it so; or NVML must
                answer, and does not.
            StorageError: The database cannot be read or written.
        """
        self._check_sandbox()
        self.admission.start()
        recovered = self._queue.recover(is_dead, self._clock())
        self._sweep()
        self._stopping.clear()
        self._pressure.start()
        self._dispatcher.start()
        for number in range(self._config.concurrency):
            # The name is unique even among runners of one process: a lease has exactly one owner.
            owner = owner_name(f"{id(self):x}-{number}")
            thread = threading.Thread(
                target=self._serve, args=(owner,), name=f"job-slot-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        _log.info("job_runner_started", slots=self._config.concurrency, recovered=recovered)

    def _check_sandbox(self) -> None:
        lacks = () if self._config.sandbox == "off" else missing()
        if lacks and self._config.sandbox == "require":
            raise ConfigError(
                f"jobs.sandbox require: this kernel has no {'; no '.join(lacks)}: use a kernel that has "
                "it, or jobs.sandbox: auto"
            )
        if lacks:
            _log.warning("sandbox_incomplete", missing=list(lacks))

    def stop(self, timeout: float = 10.0) -> None:
        """End all children and put their jobs back into the queue, uncounted.

        Args:
            timeout: Most seconds to wait for that; children that ignore the request to end are
                killed after two.
        """
        self._stopping.set()
        self._queue.wake()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._pressure.stop()
        self._dispatcher.stop(max(1.0, deadline - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        _log.info("job_runner_stopped", still_running=len(self._threads))

    @property
    def alive(self) -> bool:
        """Whether every slot runs, and turns are kept; for the liveness probe."""
        slots = bool(self._threads) and all(thread.is_alive() for thread in self._threads)
        return slots and self._dispatcher.alive

    def timings(self) -> tuple[int, float]:
        """Return how many attempts ended since the runner was made, and their seconds in all."""
        with self._storing:
            return self._timed, self._seconds

    def preview(self, job_id: str) -> bytes | None:
        """Return the newest intermediate picture of a running job as PNG, or None."""
        return self._previews.get(job_id)

    def wait_change(self, job_id: str, seen: int, timeout: float) -> int:
        """Block until a job's version differs from ``seen``; see ``JobQueue.wait_change``."""
        return self._queue.wait_change(job_id, seen, timeout)

    def collect(self) -> int:
        """Bring the store within its limits, without touching what a job is storing right now.

        The newest answer of every feature and whatever is referred to stay; answers whose artifacts
        go are forgotten.

        Returns:
            How many artifacts were removed.

        Raises:
            StorageError: The store or the database cannot be written.
        """
        with self._storing:
            removed = self._artifacts.collect(
                self._kept(), before=self._oldest(), together=self._index.together()
            )
            self._forget(removed)
        return len(removed)

    def fates(self) -> Sequence[Fate]:
        """Say of every artifact, the oldest first, whether ``collect`` would remove it, and why.

        Raises:
            StorageError: The store or the database cannot be read.
        """
        with self._storing:
            removals = self._artifacts.plan(
                self._kept(), before=self._oldest(), together=self._index.together()
            )
            entries = self._artifacts.entries()
        return fates(entries, removals, self._references.of(), self._queue.kept_digests())

    def _kept(self) -> AbstractSet[str]:
        return self._references.digests() | self._queue.kept_digests()

    def _oldest(self) -> float:
        return 0.0 if self._max_age_seconds is None else self._clock() - self._max_age_seconds

    def _forget(self, removed: Sequence[str]) -> None:
        """Drop what is known of artifacts that are gone, and what they referred to."""
        if removed:
            self._queue.forget(removed)
            self._index.forget(removed)
            for digest in removed:
                self._references.release(OwnerKind.INPUT, digest)

    def _sweep(self) -> None:
        """Remove the scratch folders of processes that are no more, and what ended jobs left."""
        if self._scratch.is_dir():
            for folder in self._scratch.iterdir():
                if is_stale_scratch(folder):
                    shutil.rmtree(folder, ignore_errors=True)
        self._checkpoints.sweep(self._goes_on)

    def _tidy(self) -> None:
        """Remove the checkpoints of jobs that were cancelled or failed while they waited."""
        if time.monotonic() - self._tidied_at >= _TIDY_SECONDS:
            self._tidied_at = time.monotonic()
            self._checkpoints.sweep(self._goes_on)

    def _goes_on(self, job_id: str) -> bool:
        try:
            return not self._queue.get(job_id).state.ended
        except UnknownJob:
            return False

    def _serve(self, owner: str) -> None:
        while not self._stopping.is_set():
            try:
                audits = not self._dispatcher.why_no_audits()
                job = self._queue.claim(owner, self._clock(), audits=audits)
                if job is None:
                    self._queue.wait_any(_IDLE_SECONDS)
                else:
                    self._run(job, owner)
            except Exception:  # noqa: BLE001 - a slot that ended would silently run no more jobs
                # The disk is broken or we are: the slot stays, the job's lease lapses.
                _log.exception("job_slot_failed", owner=owner)
                self._stopping.wait(_ERROR_SECONDS)

    def _run(self, job: Job, owner: str) -> None:
        log = _log.bind(job_id=job.id, attempt=job.attempts)
        lease = Lease(self._queue, job.id, owner, self._clock, job.preview_version)
        started = time.monotonic()
        try:
            outcome = self._attempt(job, lease)
        except SidecarError as error:
            # Nothing was recorded: a store on another machine may answer the next attempt.
            retry = isinstance(error, StoreUnreachable)
            outcome = _failed(error.code, error.message, retry=retry)
        except Exception as error:
            log.exception("job_attempt_failed")
            outcome = _failed(JobError.code, f"the runner failed: {error!r}")
        finally:
            self._previews.pop(job.id, None)
        if outcome.ending is Ending.FAILED:
            self._queue.fail(
                job.id,
                owner,
                outcome.code,
                outcome.error,
                self._clock(),
                retry=outcome.retry,
                poison=outcome.code != GpuOutOfMemory.code,  # it may have been others' doing
            )
        elif outcome.ending is Ending.RELEASED:
            pause = self.admission.hold(job, outcome.held, outcome.needs_bytes)
            self._queue.release(job.id, owner, self._clock(), outcome.reason, pause)
        # What waits looks again every few seconds: its message says why, the metric how often.
        if not outcome.held:
            self._time(time.monotonic() - started)
            log.info(
                "job_attempt_ended",
                ending=outcome.ending.value,
                code=outcome.code,
                reason=outcome.reason,
            )
        self._checkpoints.sweep(self._goes_on)

    def _time(self, seconds: float) -> None:
        with self._storing:
            self._timed += 1
            self._seconds += seconds

    def _attempt(self, job: Job, lease: Lease) -> Outcome:
        """Answer a job from the store, or have a child make what is missing."""
        if not job.request.targets:
            raise CorruptState("the stored request was damaged: submit it again")
        live = self._context(job.request)
        assignment = assign(
            job.request,
            self._queue,
            self._artifacts,
            live,
            self._datasets,
            self._models,
            self._dictionaries,
        )
        if not assignment.missing:
            return self._complete(job, assignment, {}, lease)
        self._queue.quarantine.refuse(quarantine_keys(job.request), self._clock())
        model = self._models.find(job.request.model)
        if reason := self._dispatcher.why_nobody():
            return Outcome(Ending.RELEASED, reason=reason, held=PRESSURE)
        if reason := self.admission.why_not(job.id, model):
            return Outcome(Ending.RELEASED, reason=reason, held=GPU_MEMORY)
        spec = child_spec(
            job,
            assignment,
            self._models,
            self._config,
            self._artifacts,
            self._datasets,
            self._checkpoints.open(job.id),
        )
        _log.info(
            "job_started",
            job_id=job.id,
            attempt=job.attempts,
            targets=len(assignment.missing),
            origin=job.request.origin,
        )
        folder = make_scratch(self._scratch, job.id, job.attempts)
        try:
            limit = self._config.time_limit_seconds
            limit = min(job.request.time_limit_seconds or limit, limit)
            outcome = self._supervise(spec, folder, lease, limit)
            if outcome.ending is not Ending.MADE:
                return outcome
            with self._storing:  # what was stored must not be collected before it is recorded
                made = self._store(job, assignment, outcome, folder)
                return self._complete(job, assignment, made, lease)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _supervise(self, spec: JobSpec, folder: Path, lease: Lease, limit: float) -> Outcome:
        kept = [Path(spec.checkpoint)] if spec.checkpoint else []
        command = confined(self._command, self._config, [folder, *kept])
        # What numba compiles for a library is kept where a worker may write.
        places = dict.fromkeys(("TMPDIR", "NUMBA_CACHE_DIR"), str(folder.resolve()))
        child = Child(command, encode_spec(spec), folder, {**self._env, **places})

        def makes_way() -> str:
            stopping = self._stopping.is_set()
            return "the daemon stopped" if stopping else self._dispatcher.makes_way(spec.job_id)

        def keep(path: Path) -> None:
            picture = _read_picture(path)
            if picture:
                self._previews[spec.job_id] = picture

        try:
            return Supervisor(child, lease, limit, makes_way, keep, folder).run()
        finally:
            child.close()

    def _store(
        self, job: Job, assignment: Assignment, outcome: Outcome, folder: Path
    ) -> Mapping[str, Portrait]:
        made: dict[str, Portrait] = {}
        for index, (key, target) in enumerate(assignment.missing.items()):
            picture, manifest = (
                folder / Path(n).name for n in outcome.results.get(index, ("", ""))
            )
            if not _read_picture(picture) or not manifest.is_file():
                raise WorkerCrashed(
                    f"the worker said done, but made no picture of {target.feature}"
                )
            keep = _digests([*assignment.cached.values(), *made.values()])
            stored = self._put(picture, "image/png", keep)
            noted = self._put(manifest, "application/json", keep | {stored.digest})
            made[key] = Portrait(
                str(target.feature),
                key,
                stored.digest,
                noted.digest,
                self._clock(),
                *read_verdict(manifest),
            )
            self._note(made[key], job, manifest)
        return made

    def _note(self, portrait: Portrait, job: Job, manifest: Path) -> None:
        """List a stored picture, and hold the artifacts it was made from."""
        facts = _read_facts(manifest)
        self._index.add(MadePicture.of(portrait, job, facts))
        inputs = artifact_inputs(facts)
        if inputs:
            digest, now = portrait.manifest_digest, self._clock()
            self._references.hold(OwnerKind.INPUT, digest, inputs, now, portrait.feature)

    def _put(self, path: Path, media_type: str, keep: AbstractSet[str]) -> Artifact:
        try:
            return self._artifacts.put(path, media_type)
        except DiskFull:
            # Older answers make room; what this job is about to be answered with stays.
            removed = self._artifacts.collect(
                keep | self._kept(), path.stat().st_size, together=self._index.together()
            )
            self._forget(removed)
            return self._artifacts.put(path, media_type)

    def _complete(
        self, job: Job, assignment: Assignment, made: Mapping[str, Portrait], lease: Lease
    ) -> Outcome:
        known, cause = {**assignment.cached, **made}, job.request.cause
        portraits = [known[key] for key in assignment.keys]
        cached = not assignment.missing
        if cause.alert:  # what an open alert shows stays, whatever is made of the feature later
            owner = f"{cause.alert}:{cause.alert_started:.3f}"
            for one in portraits:
                held = (one.picture_digest, one.manifest_digest)
                self._references.hold(OwnerKind.ALERT, owner, held, lease.now(), one.feature)
        done = self._queue.complete(
            lease.job_id,
            lease.owner,
            portraits,
            cached,
            lease.now(),
            remember=not cause.reproduces,
        )
        return Outcome(Ending.MADE if done else Ending.LOST)


def _digests(portraits: Iterable[Portrait]) -> set[str]:
    return {d for p in portraits for d in (p.picture_digest, p.manifest_digest)}


def _failed(code: str, error: str, *, retry: bool = False) -> Outcome:
    return Outcome(Ending.FAILED, code=code, error=error, retry=retry)


def _read_facts(manifest: Path) -> Mapping[str, Any]:
    """Return a manifest as the child wrote it; nothing where that is no JSON object."""
    try:
        facts = json.loads(manifest.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _read_picture(path: Path) -> bytes:
    """Return a PNG, or nothing where the file is none or is too large to be a picture."""
    try:
        with path.open("rb") as file:
            content = file.read(_PREVIEW_LIMIT_BYTES + 1)
    except OSError:
        return b""
    return content if content.startswith(_PNG) and len(content) <= _PREVIEW_LIMIT_BYTES else b""
