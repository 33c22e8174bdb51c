"""Requests that killed their worker again and again, and are refused for a while.

An alert asks for the same portrait whenever it fires; without this a model that crashes would be
loaded, and would crash, as often. What is refused is named by its content key, without typical ranges:
a new baseline is no cure.
"""

import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sidecar.errors import CorruptState, JobQuarantined, UnknownJob
from sidecar.jobs.protocol import JobRequest
from sidecar.jobs.spec import decode_request
from sidecar.recipes import content_key
from sidecar.store import Database

_REASON_LIMIT = 500  # characters of a crash that are told again with every refusal
_LEAST_PREFIX = 8  # digits of a content key that name it


def quarantine_keys(request: JobRequest) -> tuple[str, ...]:
    """Return what names the targets of a request, each with its recipe; as many as targets."""
    return tuple(content_key(target, request.recipe) for target in request.targets)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One picture that is not tried again before a time.

    Attributes:
        content_key: sha256 of what was asked for.
        job_id: The job that killed its worker in every attempt.
        feature: Text form of what it was to show; empty where the job is not known any more.
        reason: The first line of what the worker said last.
        until: Unix seconds.
    """

    content_key: str
    job_id: str
    feature: str
    reason: str
    until: float


class Quarantine:
    """The refused content keys in the daemon's database; safe to use from several threads."""

    def __init__(self, database: Database, seconds: float) -> None:
        """Refuse what is added for so many seconds; 0 refuses nothing."""
        self._database = database
        self._seconds = seconds
        self._counting = threading.Lock()
        self._total = 0

    @property
    def total(self) -> int:
        """Jobs quarantined since this object was made."""
        with self._counting:
            return self._total

    def refuse(self, keys: Iterable[str], now: float) -> None:
        """Return where none of the keys is quarantined.

        Raises:
            JobQuarantined: One is; the message says since which job, why and until when.
        """
        wanted = sorted(set(keys))
        marks = ", ".join("?" * len(wanted))
        rows = self._database.query(
            f"SELECT * FROM quarantine WHERE content_key IN ({marks}) AND until > ? LIMIT 1",  # noqa: S608 - question marks
            (*wanted, now),
        )
        for row in rows:
            until = datetime.fromtimestamp(row["until"], UTC).isoformat(timespec="seconds")
            raise JobQuarantined(
                f"this killed its worker in every attempt of job {row['job']} ({row['reason']}) and "
                f"is refused until {until}: mend the model, then run 'sidecar job release "
                f"{row['content_key']}'"
            )

    def add(
        self, cursor: sqlite3.Cursor, job_id: str, keys: Sequence[str], reason: str, now: float
    ) -> None:
        """Refuse keys from now on, in the caller's transaction."""
        if not self._seconds:
            return
        first = reason.strip().partition("\n")[0][:_REASON_LIMIT]
        cursor.execute("DELETE FROM quarantine WHERE until <= ?", (now,))
        cursor.executemany(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
            [(key, job_id, first, now + self._seconds) for key in keys],
        )
        with self._counting:
            self._total += 1

    def held(self, now: float, limit: int) -> Sequence[Quarantined]:
        """Return what is refused, the longest first, at most ``limit``."""
        rows = self._database.query(
            "SELECT q.*, j.request FROM quarantine AS q LEFT JOIN jobs AS j ON j.id = q.job "
            "WHERE q.until > ? ORDER BY q.until DESC, q.content_key LIMIT ?",
            (now, max(0, limit)),
        )
        features: dict[str, Mapping[str, str]] = {
            row["job"]: _features(row["request"]) for row in rows
        }
        return tuple(
            Quarantined(
                content_key=row["content_key"],
                job_id=row["job"],
                feature=features[row["job"]].get(row["content_key"], ""),
                reason=row["reason"],
                until=row["until"],
            )
            for row in rows
        )

    def lift(self, name: str) -> int:
        """Refuse no longer what a content key, its first 8 digits or more, or a job's id names.

        Returns:
            How many keys were let go.

        Raises:
            UnknownJob: Nothing of that name is quarantined.
        """
        prefix = name if len(name) >= _LEAST_PREFIX and name.isalnum() else ""
        with self._database.transaction() as cursor:
            cursor.execute(
                "DELETE FROM quarantine WHERE job = ? OR (? <> '' AND content_key GLOB ? || '*')",
                (name, prefix, prefix),
            )
            lifted = cursor.rowcount
        if not lifted:
            raise UnknownJob(
                f"nothing named {name[:80]!r} is quarantined: give a job's id, or a content key as the "
                "refusal names it"
            )
        return lifted


def _features(request: str | None) -> Mapping[str, str]:
    """Return what a job's targets show, by content key; nothing of a job that is gone or damaged."""
    if request is None:
        return {}
    try:
        found = decode_request(request)
    except CorruptState:
        return {}
    keys = quarantine_keys(found)
    return {key: str(one.feature) for key, one in zip(keys, found.targets, strict=True)}
