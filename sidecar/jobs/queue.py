"""The durable job queue: every decision about a job is one transaction in the daemon's database."""

import json
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import astuple
from enum import Enum
from typing import Any

from sidecar.errors import (
    CorruptState,
    DeadlineMissed,
    InvalidInput,
    JobCancelled,
    JobFinished,
    JobQueueFull,
    UnknownJob,
    UnsupportedTarget,
    WorkerCrashed,
)
from sidecar.jobs import schema
from sidecar.jobs.protocol import Job, JobRequest, JobState, Portrait
from sidecar.jobs.quarantine import Quarantine, quarantine_keys
from sidecar.jobs.scheduling import Turn
from sidecar.jobs.spec import decode_request, encode_request
from sidecar.store import Database

HISTORY_LIMIT = 10_000
"""Jobs kept after they ended, the newest; about 10 MB. Their pictures stay in the store."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_SECONDS = 0.5  # how soon a watcher sees what another process wrote
_LONGEST_PAUSE_SECONDS = 60.0  # before another attempt; a job of twenty would else wait for days
_WORDS_LIMIT = 8192  # characters of one message or error; a worker's last lines fit


class Standing(Enum):
    """How an owner stands to a job it claimed."""

    OURS = "ours"
    CANCELLING = "cancelling"
    LOST = "lost"


class JobQueue:
    """Jobs in a SQLite table whose constraints and triggers refuse whatever is no legal step.

    An owner holds a job by a lease that it renews; whoever lets it lapse, by crash or by silence,
    loses the job to the next that asks. Only the owner of the running attempt can end it, so a job
    is completed exactly once. Safe to use from several threads and processes.
    """

    def __init__(
        self,
        database: Database,
        *,
        queue_limit: int,
        lease_seconds: float,
        attempt_limit: int,
        retry_seconds: float = 1.0,
        quarantine_seconds: float = 0.0,
        model_limits: Mapping[str, int] | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Make the tables where they are missing.

        Args:
            database: The daemon's.
            queue_limit: Most waiting jobs.
            lease_seconds: Silence after which a running job is given to another.
            attempt_limit: Starts after which a job that kills its worker is failed.
            retry_seconds: Pause before the second attempt; doubles with each further one, up to a
                minute.
            quarantine_seconds: How long a job that killed its worker in every attempt is refused.
            model_limits: Most jobs of a model at once, by its name; a model not named has no limit.
            entropy: Source of the random half of a job's id.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        self._queue_limit = queue_limit
        self._attempt_limit = attempt_limit
        self._retry_seconds = retry_seconds
        self._entropy = entropy
        self.model_limits = dict(model_limits or {})
        self.quarantine = Quarantine(database, quarantine_seconds)
        self._changed = threading.Condition()
        self.lease_seconds = lease_seconds
        database.migrate("jobs", schema.TABLES)

    @property
    def database(self) -> Database:
        """The database that the jobs are in."""
        return self._database

    def submit(self, request: JobRequest, now: float) -> Job:
        """Accept a job; it is on the disk when this returns.

        A request whose non-empty idempotency key was seen before returns the job of then, whatever
        became of it.

        Raises:
            UnsupportedTarget: No targets, targets of different models or revisions, or a time
                limit that is no number of seconds.
            InvalidInput: The deadline has passed, or is no time.
            JobQuarantined: The same killed its worker in every attempt not long ago.
            JobQueueFull: ``queue_limit`` jobs are waiting.
            DiskFull: It cannot be stored.
        """
        _check(request)
        key = request.idempotency_key or None
        with self._database.transaction() as cursor:
            cursor.execute("SELECT * FROM jobs WHERE idempotency_key = ?", (key,))
            known = cursor.fetchone()
            if known is not None:
                return self._job(known)
            _check_deadline(request.deadline, now)
            self.quarantine.refuse(quarantine_keys(request), now)
            self._refuse_full(cursor)
            cursor.execute(schema.PRUNE, {"kept": HISTORY_LIMIT})
            job_id, text = _ulid(now, self._entropy(10)), encode_request(request)
            cursor.execute(
                "INSERT INTO jobs (id, idempotency_key, request, created, priority, deadline, model) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (job_id, key, text, now, request.priority.rank, request.deadline, request.model),
            )
            job = self._job(cursor.fetchall()[0])
        self._announce()
        return job

    def _refuse_full(self, cursor: sqlite3.Cursor) -> None:
        cursor.execute("SELECT COUNT(*) FROM jobs WHERE state = 'queued'")
        waiting = cursor.fetchone()[0]
        if waiting >= self._queue_limit:
            raise JobQueueFull(
                f"{waiting} jobs are waiting, the limit is {self._queue_limit}: try again later"
            )

    def get(self, job_id: str) -> Job:
        """Return a job as it stands now.

        Raises:
            UnknownJob: There is none of this id.
        """
        return self._job(self._row(job_id))

    def list(self, limit: int, before_id: str | None = None) -> tuple[Job, ...]:
        """Return jobs, the newest submitted first.

        Args:
            limit: Most jobs returned.
            before_id: Only jobs submitted before this one; for the next page.

        Raises:
            UnknownJob: There is no job ``before_id``.
        """
        before = self._row(before_id)["sequence"] if before_id else 1 << 62
        rows = self._database.query(
            "SELECT * FROM jobs WHERE sequence < ? ORDER BY sequence DESC LIMIT ?",
            (before, max(0, limit)),
        )
        return tuple(self._job(row) for row in rows)

    def claim(self, owner: str, now: float, *, audits: bool = True) -> Job | None:
        """Take the waiting job whose turn it is, and hold it for ``lease_seconds``.

        Strictly by priority, then by submission; jobs of models that have as many running as they
        may are passed over. Jobs whose lease has lapsed are put back first; those that used up their
        attempts fail as ``WorkerCrashed``.

        Args:
            owner: Who takes it; different for everyone who could run a job at the same time.
            now: Unix seconds.
            audits: Whether audits may start.

        Returns:
            The job, running, or None where nothing waits that may start.
        """
        # Idle runners ask often: only look, and take the write lock only when there is something.
        values = {"now": now, "audits": audits, "limits": json.dumps(self.model_limits)}
        if not self._database.query(schema.CLAIMABLE, values)[0][0]:
            return None
        values |= {"owner": owner, "lease_until": now + self.lease_seconds}
        with self._database.transaction() as cursor:
            self._expire(cursor, now)
            cursor.execute(schema.CLAIM, values)
            rows = cursor.fetchall()
        self._announce()
        return self._job(rows[0]) if rows else None

    def turns(self, now: float) -> Sequence[Turn]:
        """Return the jobs that run or could, in the order of their turns."""
        rows = self._database.query(schema.TURNS, {"now": now})
        return [
            Turn(row["id"], row["model"], row["priority"], bool(row["running"]), row["sequence"])
            for row in rows
        ]

    def fail_overdue(self, now: float, why: Callable[[Job], str]) -> int:
        """Fail the waiting jobs whose deadline has passed, as ``DeadlineMissed``.

        Args:
            now: Unix seconds.
            why: Says what a job was waiting for.

        Returns:
            How many there were.
        """
        overdue = [self._job(row) for row in self._database.query(schema.OVERDUE, {"now": now})]
        for job in overdue:
            error = f"waited {now - job.created:.0f} s, until its deadline: {why(job)}"
            values = {"id": job.id, "now": now, "code": DeadlineMissed.code, "error": _tail(error)}
            self._write(schema.MISS, values)
        return len(overdue)

    def heartbeat(
        self,
        job_id: str,
        owner: str,
        now: float,
        step: int = 0,
        steps: int = 0,
        message: str = "",
        preview_version: int = 0,
    ) -> bool:
        """Renew the lease and note how far the job is; steps never go back.

        Returns:
            False where the owner must stop: it lost the lease, or somebody cancelled the job.
        """
        values = {
            "id": job_id,
            "owner": owner,
            "lease_until": now + self.lease_seconds,
            "step": max(0, step),
            "steps": max(0, steps),
            "message": message[:_WORDS_LIMIT],
            "preview_version": preview_version,
        }
        rows = self._write(schema.HEARTBEAT, values)
        return bool(rows) and not rows[0]["cancel_wanted"]

    def standing(self, job_id: str, owner: str) -> Standing:
        """Say whether an owner still holds a job; costs one read."""
        rows = self._database.query(
            "SELECT cancel_wanted FROM jobs WHERE id = ? AND owner = ? AND state = 'running'",
            (job_id, owner),
        )
        if not rows:
            return Standing.LOST
        return Standing.CANCELLING if rows[0][0] else Standing.OURS

    def complete(
        self,
        job_id: str,
        owner: str,
        portraits: Sequence[Portrait],
        from_cache: bool,
        now: float,
        *,
        remember: bool = True,
    ) -> bool:
        """Record the job as done, with what it made, in one transaction.

        Args:
            job_id: Which job.
            owner: Who ran it.
            portraits: What it made.
            from_cache: Whether everything was there before.
            now: Unix seconds.
            remember: Whether equal requests are answered with it from now on.

        Returns:
            False where the owner does not hold the job any more; then nothing was recorded.
        """
        values = {"id": job_id, "owner": owner, "now": now, "from_cache": from_cache}
        with self._database.transaction() as cursor:
            cursor.execute(schema.COMPLETE, values)
            rows = cursor.fetchall()
            if rows:
                _insert_portraits(cursor, rows[0]["sequence"], portraits, remember=remember)
        self._announce()
        return bool(rows)

    def fail(
        self,
        job_id: str,
        owner: str,
        code: str,
        error: str,
        now: float,
        *,
        retry: bool,
        poison: bool = True,
    ) -> bool:
        """Record that an attempt failed.

        Args:
            job_id: Which job.
            owner: Who ran it.
            code: Stable code of what went wrong; that of ``JobCancelled`` ends it as cancelled.
            error: What went wrong and what to do.
            now: Unix seconds.
            retry: Whether to try again while attempts are left and nobody wants it cancelled.
            poison: Whether the same is refused for a while once they are used up.

        Returns:
            False where the owner does not hold the job any more; then nothing was recorded.
        """
        values = {"id": job_id, "owner": owner, "now": now, "forgiven": 0}
        with self._database.transaction() as cursor:
            held = _held(cursor, job_id, owner)
            if held is None:
                return False
            attempts = held["attempts"]
            if code == JobCancelled.code or held["cancel_wanted"]:
                cursor.execute(schema.END_CANCELLED, values)
            elif retry and attempts < self._attempt_limit:
                message = f"waiting for attempt {attempts + 1}: {error}"[:_WORDS_LIMIT]
                pause = min(self._retry_seconds * 2 ** (attempts - 1), _LONGEST_PAUSE_SECONDS)
                later = now + pause
                cursor.execute(schema.REQUEUE, {**values, "not_before": later, "message": message})
            else:
                cursor.execute(schema.FAIL, {**values, "code": code, "error": _tail(error)})
                if retry and poison:
                    self._quarantine(cursor, job_id, held["request"], error, now)
        self._announce()
        return True

    def release(
        self,
        job_id: str,
        owner: str,
        now: float,
        reason: str = "the daemon stopped",
        pause: float = 0.0,
    ) -> bool:
        """Put a running job back without counting the attempt, because it must make way.

        One that somebody cancelled in the meantime ends as cancelled.

        Args:
            job_id: Which job.
            owner: Who ran it.
            now: Unix seconds.
            reason: For what it makes way, or waits.
            pause: Seconds until it may be claimed again.

        Returns:
            False where the owner does not hold the job any more.
        """
        values = {"id": job_id, "owner": owner, "now": now, "forgiven": 1}
        values["not_before"] = now + pause
        with self._database.transaction() as cursor:
            held = _held(cursor, job_id, owner)
            if held is None:
                return False
            if held["cancel_wanted"]:
                cursor.execute(schema.END_CANCELLED, values)
            else:
                message = f"waiting again: {reason}"[:_WORDS_LIMIT]
                cursor.execute(schema.REQUEUE, {**values, "message": message})
        self._announce()
        return True

    def cancel(self, job_id: str, now: float) -> Job:
        """Cancel a job: at once while it waits, within some seconds while it runs.

        Cancelling twice does no more than once. A job that finishes in the very moment stays done.

        Returns:
            The job: cancelled, or still running and about to be stopped.

        Raises:
            UnknownJob: There is none of this id.
            JobFinished: It is done or has failed.
        """
        with self._database.transaction() as cursor:
            cursor.execute(schema.END_CANCELLED, {"id": job_id, "now": now, "owner": ""})
            cursor.execute(schema.ASK_CANCEL, {"id": job_id})
        self._announce()
        job = self.get(job_id)
        if job.state in (JobState.DONE, JobState.FAILED):
            raise JobFinished(f"job {job_id} has ended as {job.state}: there is nothing to cancel")
        return job

    def recover(self, is_dead: Callable[[str], bool], now: float) -> int:
        """Put back at once the jobs of owners that are known to be dead.

        Args:
            is_dead: Whether an owner can never come back.
            now: Unix seconds.

        Returns:
            How many jobs were taken from dead owners.
        """
        rows = self._database.query("SELECT id, owner FROM jobs WHERE state = 'running'")
        orphans = [row["id"] for row in rows if is_dead(row["owner"])]
        if orphans:
            with self._database.transaction() as cursor:
                cursor.executemany(
                    "UPDATE jobs SET lease_until = 0 WHERE id = ? AND state = 'running'",
                    [(orphan,) for orphan in orphans],
                )
                self._expire(cursor, now)
            self._announce()
        return len(orphans)

    def counts(self) -> Mapping[JobState, int]:
        """Return the number of jobs in every state, zeros included."""
        rows = self._database.query("SELECT state, COUNT(*) FROM jobs GROUP BY state")
        found = {state: count for state, count in rows}  # noqa: C416 - rows are no pairs
        return {state: found.get(state.value, 0) for state in JobState}

    def portraits(self, feature: str, limit: int) -> tuple[Portrait, ...]:
        """Return the finished pictures of a feature, given in text form, newest first."""
        rows = self._database.query(schema.PORTRAITS_OF, (feature, max(0, limit)))
        return tuple(Portrait(*row) for row in rows)

    def portrait(self, content_key: str) -> Portrait | None:
        """Return the answer to an equal request made before, or None."""
        rows = self._database.query(schema.PORTRAIT, (content_key,))
        return Portrait(*rows[0]) if rows else None

    def kept_digests(self) -> AbstractSet[str]:
        """Return the artifacts that must not be collected: those of every feature's newest answer."""
        rows = self._database.query(schema.KEPT)
        return {digest for row in rows for digest in row}

    def forget(self, digests: Iterable[str]) -> None:
        """Drop the answers whose artifacts are gone, so that equal requests make them anew."""
        pairs = [(digest, digest) for digest in digests]
        if pairs:
            with self._database.transaction() as cursor:
                cursor.executemany(
                    "DELETE FROM portraits WHERE picture_digest = ? OR manifest_digest = ?", pairs
                )

    def version(self, job_id: str) -> int:
        """Return a number that grows with every change of a job.

        Raises:
            UnknownJob: There is none of this id.
        """
        return int(self._row(job_id)["version"])

    def wait_change(self, job_id: str, seen: int, timeout: float) -> int:
        """Block until a job's version differs from ``seen``, at most ``timeout`` seconds.

        Returns:
            The version now; equal to ``seen`` where nothing happened.

        Raises:
            UnknownJob: There is none of this id.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                version = self.version(job_id)
                left = deadline - time.monotonic()
                if version != seen or left <= 0:
                    return version
                self._changed.wait(min(left, _LOOK_SECONDS))

    def wait_any(self, timeout: float) -> None:
        """Block until this process changes any job, at most ``timeout`` seconds."""
        with self._changed:
            self._changed.wait(timeout)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._announce()

    def _write(self, statement: str, values: Mapping[str, Any]) -> Sequence[sqlite3.Row]:
        with self._database.transaction() as cursor:
            # Rows are fetched before the commit: SQLite ends the statement only then.
            rows = cursor.execute(statement, values).fetchall()
        self._announce()
        return rows

    def _expire(self, cursor: sqlite3.Cursor, now: float) -> None:
        values = {"now": now, "code": WorkerCrashed.code, "attempt_limit": self._attempt_limit}
        for statement in schema.EXPIRE:
            for row in cursor.execute(statement, values).fetchall():
                self._quarantine(cursor, row["id"], row["request"], row["error"], now)

    def _quarantine(
        self, cursor: sqlite3.Cursor, job_id: str, text: str, reason: str, now: float
    ) -> None:
        with suppress(CorruptState):  # a damaged request is asked for by nobody again
            keys = quarantine_keys(decode_request(text))
            self.quarantine.add(cursor, job_id, keys, reason, now)

    def _announce(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _row(self, job_id: str) -> sqlite3.Row:
        rows = self._database.query("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise UnknownJob(f"no job {job_id[:80]!r}: it never was, or ended too long ago")
        return rows[0]

    def _job(self, row: sqlite3.Row) -> Job:
        error_code, error = row["error_code"], row["error"]
        try:
            request = decode_request(row["request"])
        except CorruptState as damage:
            # One damaged row must not hide all the others from a list.
            request = JobRequest(targets=())
            error_code, error = damage.code, damage.message
        return Job(
            id=row["id"],
            request=request,
            state=JobState(row["state"]),
            step=row["step"],
            steps=row["steps"],
            message=row["message"],
            error_code=error_code,
            error=error,
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
            attempts=row["attempts"],
            portraits=self._made(row["sequence"]) if row["state"] == "done" else (),
            from_cache=bool(row["from_cache"]),
            preview_version=row["preview_version"],
        )

    def _made(self, sequence: int) -> tuple[Portrait, ...]:
        rows = self._database.query(schema.PORTRAITS_MADE, (sequence,))
        return tuple(Portrait(*row) for row in rows)


def _check(request: JobRequest) -> None:
    if not request.targets:
        raise UnsupportedTarget("the job names no targets: name at least one feature")
    if not 0 <= request.time_limit_seconds < math.inf:
        raise UnsupportedTarget(
            f"time_limit_seconds {request.time_limit_seconds} makes no sense: give seconds, or 0"
        )
    models = sorted(
        {f"{t.feature.layer.model}@{t.feature.layer.revision}" for t in request.targets}
    )
    if len(models) > 1:
        raise UnsupportedTarget(
            f"a job is about one revision of one model, found {', '.join(models)}: submit one each"
        )


def _check_deadline(deadline: float, now: float) -> None:
    if not 0 <= deadline < math.inf:
        raise InvalidInput(f"deadline {deadline} is no time: give unix seconds, or 0 for none")
    if 0 < deadline <= now:
        raise InvalidInput(
            f"deadline {deadline:.0f} passed {now - deadline:.0f} s ago: give a later one, or none"
        )


def _held(cursor: sqlite3.Cursor, job_id: str, owner: str) -> sqlite3.Row | None:
    cursor.execute(
        "SELECT attempts, cancel_wanted, request FROM jobs "
        "WHERE id = ? AND owner = ? AND state = 'running'",
        (job_id, owner),
    )
    row: sqlite3.Row | None = cursor.fetchone()
    return row


def _insert_portraits(
    cursor: sqlite3.Cursor, sequence: int, portraits: Sequence[Portrait], *, remember: bool
) -> None:
    rows = [(sequence, position, *astuple(p)) for position, p in enumerate(portraits)]
    cursor.executemany(schema.ADD_MADE, rows)
    if remember:
        cursor.executemany(schema.ADD_PORTRAIT, [astuple(p) for p in portraits])


def _ulid(now: float, entropy: bytes) -> str:
    """Return 26 characters that sort by time: 48 bits of milliseconds, then 80 random ones.

    Source:
        The ULID specification, https://github.com/ulid/spec.
    """
    number = (int(now * 1000) & (2**48 - 1)) << 80 | int.from_bytes(entropy)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def _tail(text: str) -> str:
    """Keep the end of a long error: a traceback says what happened in its last line."""
    return text if len(text) <= _WORDS_LIMIT else "…" + text[1 - _WORDS_LIMIT :]
