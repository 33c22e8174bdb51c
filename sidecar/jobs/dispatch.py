"""Keeps the turns: which jobs may start, which running ones make way, which waited too long."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from sidecar.config import JobsConfig
from sidecar.jobs.protocol import Job, Priority
from sidecar.jobs.queue import JobQueue
from sidecar.jobs.scheduling import who_makes_way
from sidecar.jobs.windows import next_opening, windows_open

_log = structlog.get_logger(__name__)

_TURN_SECONDS = 0.2  # how soon a person's job finds an audit in its way
_ERROR_SECONDS = 1.0  # pause after a broken disk
_WINDOW_SECONDS = 1.0  # windows open and close on whole minutes and last seconds


class Dispatcher:
    """Looks at the queue a few times a second, from a thread of its own.

    No error of the disk ends it; while the database cannot be read, nobody makes way.
    """

    def __init__(
        self,
        queue: JobQueue,
        config: JobsConfig,
        clock: Callable[[], float],
        *,
        pressed: Callable[[], str] = lambda: "",
        held: Callable[[], str] = lambda: "",
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            queue: Whose turns.
            config: Slots and windows.
            clock: Unix seconds.
            pressed: Says why audits, or all, must leave the machine to others now; empty: they need not.
            held: Says for which job audits must leave the GPU now; empty: for none.
            tidy: Called with every look, to remove what ended jobs left.
        """
        self._queue, self._config, self._clock = queue, config, clock
        self._pressed, self._held, self._tidy = pressed, held, tidy
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._making_way: Mapping[str, str] = {}
        self._window: tuple[float, bool] = (float("-inf"), False)

    def start(self) -> None:
        """Begin to look."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, name="job-dispatcher", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Look no more; wait at most ``timeout`` seconds for the last look's end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(max(0.0, timeout))

    @property
    def alive(self) -> bool:
        """Whether it looks; for the liveness probe."""
        return self._thread is not None and self._thread.is_alive()

    def makes_way(self, job_id: str) -> str:
        """Return for what a running job must make way; empty: it need not."""
        return self._making_way.get(job_id, "")

    def why_no_audits(self) -> str:
        """Return why audits may not run now; empty where they may."""
        if not self._in_window():
            opens = next_opening(self._config.audit_windows, self._clock())
            moment = datetime.fromtimestamp(opens, UTC).isoformat(timespec="minutes")
            return f"audits run in jobs.audit_windows alone, the next opens at {moment}"
        return self._pressed() or self._held()

    def why_nobody(self) -> str:
        """Return why no job at all may run now; empty where they may."""
        limit = self._config.yield_to
        return self._pressed() if limit is not None and limit.whom == "all" else ""

    def _in_window(self) -> bool:
        now = self._clock()
        checked, found = self._window
        if not checked <= now < checked + _WINDOW_SECONDS:
            found = windows_open(self._config.audit_windows, now)
            self._window = (now, found)
        return found

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
                self._stopping.wait(_TURN_SECONDS)
            except Exception:  # noqa: BLE001 - whatever fails, turns must be kept again
                _log.exception("job_turns_failed")
                self._making_way = {}
                self._stopping.wait(_ERROR_SECONDS)

    def look(self) -> None:
        """Take one look: fail what waited too long, and say who makes way.

        Raises:
            StorageError: The database cannot be read or written.
        """
        now = self._clock()
        self._queue.fail_overdue(now, self._why_waiting)
        turns = self._queue.turns(now)
        running = [turn for turn in turns if turn.running]
        audits = [turn for turn in running if turn.rank == Priority.AUDIT.rank]
        reason = self.why_no_audits() if audits else ""
        if running and (pressed := self.why_nobody()):
            self._making_way = dict.fromkeys((turn.id for turn in running), pressed)
        elif reason:
            self._making_way = dict.fromkeys((turn.id for turn in audits), reason)
        else:
            found = who_makes_way(turns, self._config.concurrency, self._queue.model_limits)
            self._making_way = {
                audit: f"it made way for job {waiting}" for audit, waiting in found.items()
            }
        self._tidy()

    def _why_waiting(self, job: Job) -> str:
        """Say what keeps a job from starting."""
        if job.attempts or job.message:
            said = f", after {job.attempts} attempts" if job.attempts else ""
            return f"{job.message or 'it waited for its next attempt'}{said}"
        no_audits = self.why_no_audits() if job.request.priority is Priority.AUDIT else ""
        if no_audits:
            return no_audits
        turns = self._queue.turns(self._clock())
        running = Counter(turn.model for turn in turns if turn.running)
        limit = self._queue.model_limits.get(job.request.model)
        if limit is not None and running[job.request.model] >= limit:
            return (
                f"{running[job.request.model]} jobs of {job.request.model} were running, as many as "
                "models.jobs allows"
            )
        waiting = [turn.id for turn in turns if not turn.running]
        ahead = waiting.index(job.id) if job.id in waiting else len(waiting)
        return (
            f"{running.total()} jobs were running, of jobs.concurrency {self._config.concurrency}, and "
            f"{ahead} waited whose turn came before"
        )
