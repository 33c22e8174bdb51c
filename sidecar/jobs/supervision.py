"""Watches one child until its job has an outcome: lease, cancellation, time limit, crash."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import structlog

from sidecar.errors import (
    CorruptState,
    JobCancelled,
    JobTimedOut,
    StorageError,
    WorkerCrashed,
)
from sidecar.jobs.child import Child, describe_exit
from sidecar.jobs.gpu import GPU_MEMORY
from sidecar.jobs.queue import JobQueue, Standing
from sidecar.jobs.spec import (
    DoneEvent,
    Event,
    FailureEvent,
    HeldBackEvent,
    PreviewEvent,
    ProgressEvent,
    ResultEvent,
)

_log = structlog.get_logger(__name__)

_TICK_SECONDS = 0.1  # how often cancellation is looked for: well inside the two seconds promised
_NOTE_SECONDS = 0.25  # each note is a synced write; faster than this nobody reads
_LEASE_PARTS = 4  # heartbeats in one lease: three may be missed


class Ending(Enum):
    """How supervision ended."""

    MADE = "made"
    FAILED = "failed"
    RELEASED = "released"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        ending: Which of the four.
        results: File names of picture and manifest by index of the target, when made.
        code: Stable code, when failed.
        error: What went wrong, when failed.
        retry: Whether another attempt might fare better, when failed.
        reason: For what it makes way, or waits, when released.
        held: What it waits for in one word, when it was held back; empty: it made way.
        needs_bytes: Memory of the GPU that it takes, where it waits for that and knows.
    """

    ending: Ending
    results: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    code: str = ""
    error: str = ""
    retry: bool = False
    reason: str = ""
    held: str = ""
    needs_bytes: int = 0


class Lease:
    """One owner's hold on one job: renewed by progress and by the clock."""

    def __init__(
        self,
        queue: JobQueue,
        job_id: str,
        owner: str,
        clock: Callable[[], float],
        preview_version: int = 0,
    ) -> None:
        """Hold a job that was just claimed."""
        self.job_id = job_id
        self.owner = owner
        self.now = clock
        self._queue = queue
        self._progress = ProgressEvent(0, 0, "starting")
        self._preview_version = preview_version
        self._noted_at = time.monotonic()
        self._news = False

    @property
    def doing(self) -> str:
        """What the child last said it was at."""
        return self._progress.message or f"step {self._progress.step}"

    def note(self, progress: ProgressEvent) -> None:
        """Take note of progress; ``renew`` writes it down."""
        self._progress = progress
        self._news = True

    def note_preview(self) -> None:
        """Take note of a new intermediate picture."""
        self._preview_version += 1
        self._news = True

    def renew(self) -> None:
        """Write a heartbeat where one is due; a full disk only costs the note."""
        due = _NOTE_SECONDS if self._news else self._queue.lease_seconds / _LEASE_PARTS
        if time.monotonic() - self._noted_at >= due:
            self._beat()

    def flush(self) -> None:
        """Write down the last news, if any."""
        if self._news:
            self._beat()

    def _beat(self) -> None:
        self._noted_at = time.monotonic()
        self._news = False
        p = self._progress
        try:
            self._queue.heartbeat(
                self.job_id,
                self.owner,
                self.now(),
                p.step,
                p.steps,
                p.message,
                self._preview_version,
            )
        except StorageError as error:
            # The picture may still be saved: go on, and let the lease decide if it may not.
            _log.warning("job_heartbeat_failed", job_id=self.job_id, error=str(error))

    def standing(self) -> Standing:
        """Say whether the job is still ours; assumed so while the database cannot be read."""
        try:
            return self._queue.standing(self.job_id, self.owner)
        except StorageError:
            return Standing.OURS


class Supervisor:
    """Listens to a child and ends it when it must end."""

    def __init__(
        self,
        child: Child,
        lease: Lease,
        time_limit_seconds: float,
        makes_way: Callable[[], str],
        on_preview: Callable[[Path], None],
        folder: Path,
    ) -> None:
        """Take over a child that was just started.

        Args:
            child: The child; the caller closes it.
            lease: The hold on its job.
            time_limit_seconds: Wall time it has.
            makes_way: Says for what the job must be put back now; empty: it goes on.
            on_preview: Called with the path of every new intermediate picture.
            folder: The job's scratch folder.
        """
        self._child = child
        self._lease = lease
        self._limit = time_limit_seconds
        self._deadline = time.monotonic() + time_limit_seconds
        self._makes_way = makes_way
        self._on_preview = on_preview
        self._folder = folder
        self._results: dict[int, tuple[str, str]] = {}
        self._final: DoneEvent | FailureEvent | HeldBackEvent | None = None
        self._verdict: Outcome | None = None

    def run(self) -> Outcome:
        """Block until the child has ended, and say what came of it."""
        while True:
            self._take(self._pump)
            if self._child.exited:
                self._take(self._child.drain)
                self._lease.flush()
                break
            self._judge()
            self._child.enforce()
            self._lease.renew()
        return self._verdict or self._said() or self._crash()

    def _pump(self) -> list[Event]:
        return self._child.pump(_TICK_SECONDS)

    def _take(self, read: Callable[[], list[Event]]) -> None:
        try:
            for event in read():
                self._handle(event)
        except CorruptState as error:
            self._end(_failure(WorkerCrashed.code, error.message, retry=True))

    def _handle(self, event: Event) -> None:
        if isinstance(event, ProgressEvent):
            self._lease.note(event)
        elif isinstance(event, PreviewEvent):
            self._on_preview(self._folder / Path(event.file).name)
            self._lease.note_preview()
        elif isinstance(event, ResultEvent):
            self._results[event.index] = (event.picture, event.manifest)
        elif self._final is None:
            self._final = event
            # All is said; a child that hangs on its way out is helped.
            self._child.terminate_later()

    def _judge(self) -> None:
        """Decide whether the child must end, once."""
        if self._verdict is not None or self._final is not None:
            return
        standing = self._lease.standing()
        if standing is Standing.LOST:
            self._end(Outcome(Ending.LOST))
        elif standing is Standing.CANCELLING:
            self._end(_failure(JobCancelled.code, "cancelled", retry=False))
        elif reason := self._makes_way():
            self._end(Outcome(Ending.RELEASED, reason=reason))
        elif time.monotonic() >= self._deadline:
            message = (
                f"stopped after its time limit of {self._limit:g} s, at {self._lease.doing!r}: "
                "mend what hangs there, ask for fewer steps, or raise jobs.time_limit_seconds"
            )
            self._end(_failure(JobTimedOut.code, message, retry=False))

    def _end(self, verdict: Outcome) -> None:
        if self._verdict is None:
            self._verdict = verdict
            self._child.terminate()

    def _said(self) -> Outcome | None:
        """Believe the child's own last word, whatever happened to it afterwards."""
        if isinstance(self._final, DoneEvent):
            return Outcome(Ending.MADE, self._results)
        if isinstance(self._final, FailureEvent):
            said = self._final
            output = self._child.output if said.retry else ""
            return _failure(said.code, _with_output(said.message, output), retry=said.retry)
        if isinstance(self._final, HeldBackEvent):
            wanted = self._final
            return Outcome(
                Ending.RELEASED,
                reason=wanted.reason,
                held=GPU_MEMORY,
                needs_bytes=wanted.needs_bytes,
            )
        return None

    def _crash(self) -> Outcome:
        how = describe_exit(self._child.close())
        message = f"the worker ended without a word, at {self._lease.doing!r}: {how}"
        error = _with_output(message, self._child.output)
        return _failure(WorkerCrashed.code, error, retry=True)


def _failure(code: str, error: str, *, retry: bool) -> Outcome:
    return Outcome(Ending.FAILED, code=code, error=error, retry=retry)


def _with_output(message: str, output: str) -> str:
    return f"{message}; its last output:\n{output}" if output else message
