"""The nights of all audits in the daemon's database: every step is one transaction."""

import sqlite3
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from sidecar.audits.facts import (
    Facts,
    Plan,
    decode_checks,
    decode_facts,
    decode_plan,
    encode,
    encode_checks,
)
from sidecar.audits.status import Check, Night, NightState
from sidecar.errors import CorruptState
from sidecar.store import Database

_TABLES = (
    # Since when an audit is due by its schedule: what was due before is not made up for.
    """CREATE TABLE audits (
        name TEXT PRIMARY KEY,
        schedule TEXT NOT NULL,
        since REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE audit_nights (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        audit TEXT NOT NULL,
        id TEXT NOT NULL,
        due REAL NOT NULL,
        scheduled INTEGER NOT NULL CHECK (scheduled IN (0, 1)),
        actor TEXT NOT NULL,
        started REAL NOT NULL,
        ended REAL,
        state TEXT NOT NULL DEFAULT 'running'
            CHECK (state IN ('running', 'passed', 'regressed', 'failed')),
        plan TEXT NOT NULL,
        checks TEXT NOT NULL DEFAULT '[]',
        facts TEXT NOT NULL DEFAULT '',
        page TEXT NOT NULL DEFAULT '',
        data TEXT NOT NULL DEFAULT '',
        bytes INTEGER NOT NULL DEFAULT 0,
        accepted TEXT NOT NULL DEFAULT '',
        CHECK ((state = 'running') = (ended IS NULL)),
        UNIQUE (audit, id)
    )""",
    # One night of an audit at a time, and each due time once.
    "CREATE UNIQUE INDEX audit_nights_running ON audit_nights (audit) WHERE state = 'running'",
    "CREATE UNIQUE INDEX audit_nights_due ON audit_nights (audit, due) WHERE scheduled",
    """CREATE TRIGGER audit_nights_judged_once BEFORE UPDATE OF state, checks, facts ON audit_nights
        WHEN OLD.state <> 'running'
        BEGIN SELECT RAISE(ABORT, 'a judged night does not change'); END""",
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One night as it is written down.

    Attributes:
        night: What others are told.
        due: Unix seconds at which it was due.
        scheduled: Whether its time had come, or somebody asked.
        plan: What it does.
        facts: What it found; nothing while it runs.
        page: sha256 of its HTML report; empty: there is none.
        data: sha256 of its JSON report.
        report_bytes: Bytes of both.
        accepted: Why somebody took its findings for the new normal; empty: nobody did.
    """

    night: Night
    due: float
    scheduled: bool
    plan: Plan
    facts: Facts = field(default_factory=Facts)
    page: str = ""
    data: str = ""
    report_bytes: int = 0
    accepted: str = ""


def night_id(due: float) -> str:
    """Return the name of the night that was due at a time: ``YYYYmmddTHHMMSSZ``, UTC."""
    return f"{datetime.fromtimestamp(due, UTC):%Y%m%dT%H%M%SZ}"


class AuditBook:
    """Nights by audit; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        """Make the tables where they are missing.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        database.migrate("audits", _TABLES)

    def since(self, audit: str, schedule: str, now: float) -> float:
        """Return since when an audit is due by its schedule; from now on where that is new.

        A time in the future was written by a clock that went wrong: it becomes now.
        """
        with self._database.transaction() as cursor:
            cursor.execute("SELECT schedule, since FROM audits WHERE name = ?", (audit,))
            row = cursor.fetchone()
            if row is not None and row["schedule"] == schedule and row["since"] <= now:
                return float(row["since"])
            cursor.execute("INSERT OR REPLACE INTO audits VALUES (?, ?, ?)", (audit, schedule, now))
        return now

    def begin(self, audit: str, due: float, now: float, *, actor: str, scheduled: bool) -> bool:
        """Begin a night; False where one runs, or that one was there already."""
        try:
            with self._database.transaction() as cursor:
                cursor.execute(
                    "INSERT INTO audit_nights (audit, id, due, scheduled, actor, started, plan) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (audit, night_id(due), due, scheduled, actor, now, encode(Plan())),
                )
        except sqlite3.IntegrityError:
            return False
        return True

    def plan(self, entry: Entry, plan: Plan) -> Entry:
        """Write down what a running night does from now on, and return it with that."""
        with self._database.transaction() as cursor:
            cursor.execute(
                "UPDATE audit_nights SET plan = ? WHERE audit = ? AND id = ? AND state = 'running'",
                (encode(plan), entry.night.audit, entry.night.id),
            )
        return replace(entry, plan=plan)

    def judge(
        self,
        entry: Entry,
        state: NightState,
        checks: tuple[Check, ...],
        facts: Facts,
        now: float,
        *,
        page: str,
        data: str,
        report_bytes: int,
    ) -> bool:
        """End a night with what it came to; False where that was done already."""
        with self._database.transaction() as cursor:
            return (
                cursor.execute(
                    "UPDATE audit_nights SET state = ?, ended = ?, checks = ?, facts = ?, page = ?, data = ?, "
                    "bytes = ? WHERE audit = ? AND id = ? AND state = 'running'",
                    (
                        state.value,
                        now,
                        encode_checks(checks),
                        encode(facts),
                        page,
                        data,
                        report_bytes,
                        entry.night.audit,
                        entry.night.id,
                    ),
                ).rowcount
                > 0
            )

    def accept(self, audit: str, night: str, note: str) -> bool:
        """Take what a judged night found for the new normal; False where there is no such night."""
        with self._database.transaction() as cursor:
            return (
                cursor.execute(
                    "UPDATE audit_nights SET accepted = ? WHERE audit = ? AND id = ? AND state <> 'running'",
                    (note, audit, night),
                ).rowcount
                > 0
            )

    def remove(self, audit: str, night: str) -> None:
        """Forget a night."""
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM audit_nights WHERE audit = ? AND id = ?", (audit, night))

    def entries(self) -> tuple[Entry, ...]:
        """Return every night of every audit, the newest first; one that the disk damaged is forgotten."""
        found = []
        for row in self._database.query("SELECT * FROM audit_nights ORDER BY sequence DESC"):
            try:
                found.append(_entry(row))
            except CorruptState as error:
                audit, night = row["audit"], row["id"]
                _log.warning("audit_night_unreadable", audit=audit, night=night, error=str(error))
                # A running one that nobody can read would keep all later nights from beginning.
                self.remove(audit, night)
        return tuple(found)


def _entry(row: sqlite3.Row) -> Entry:
    facts = decode_facts(row["facts"]) if row["facts"] else Facts()
    plan = decode_plan(row["plan"])
    audit, name = row["audit"], row["id"]
    night = Night(
        audit=audit,
        id=name,
        started_at=row["started"],
        ended_at=row["ended"],
        state=NightState(row["state"]),
        checks=decode_checks(row["checks"]),
        counts=facts.counts,
        features=len(plan.chosen or ()),
        report=f"/audits/{audit}/{name}/report.html" if row["page"] else None,
        actor=row["actor"],
    )
    return Entry(
        night=night,
        due=row["due"],
        scheduled=bool(row["scheduled"]),
        plan=plan,
        facts=facts,
        page=row["page"],
        data=row["data"],
        report_bytes=row["bytes"],
        accepted=row["accepted"],
    )
