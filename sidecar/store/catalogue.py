"""What people decided and what happened: flags and the audit log."""

from dataclasses import dataclass

from sidecar.store.database import Database

EVENT_LIMIT = 100_000
"""Audit events kept, the newest; about 20 MB, or three years at a hundred events a day."""

_TABLES = (
    """CREATE TABLE flags (
        selector TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
        owner TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        what TEXT NOT NULL,
        subject TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX events_by_subject ON events (subject, sequence)",
    "ALTER TABLE flags ADD COLUMN watched TEXT NOT NULL DEFAULT ''",
)


@dataclass(frozen=True, slots=True)
class StoredFlag:
    """A flag as somebody set it.

    Attributes:
        selector: Text form of the feature selector.
        name: What people call the feature; may be empty.
        severity: ``info``, ``warning`` or ``critical``.
        owner: Who is told; may be empty.
        watched: How it is watched, as text of whoever flagged it; empty: nothing was said.
    """

    selector: str
    name: str
    severity: str
    owner: str
    watched: str = ""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One entry of the audit log.

    Attributes:
        at: Unix seconds.
        what: Constant snake_case name.
        subject: Text form of the feature or layer key.
        detail: The numbers that made it, in words.
    """

    at: float
    what: str
    subject: str
    detail: str


class Catalogue:
    """Flags and audit events in the daemon's database; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        """Make the tables where they are missing.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        database.migrate("catalogue", _TABLES)

    def set_flag(
        self, selector: str, name: str, severity: str, owner: str, watched: str = ""
    ) -> None:
        """Flag what a selector names, replacing the flag of the same selector.

        Raises:
            StorageError: The database cannot be written.
            sqlite3.IntegrityError: The severity is none of info, warning, critical.
        """
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO flags (selector, name, severity, owner, watched) "
                "VALUES (?, ?, ?, ?, ?)",
                (selector, name, severity, owner, watched),
            )

    def remove_flag(self, selector: str) -> bool:
        """Remove a flag; returns whether there was one."""
        with self._database.transaction() as cursor:
            return cursor.execute("DELETE FROM flags WHERE selector = ?", (selector,)).rowcount > 0

    def flags(self) -> tuple[StoredFlag, ...]:
        """Return every flag, sorted by selector."""
        rows = self._database.query(
            "SELECT selector, name, severity, owner, watched FROM flags ORDER BY selector"
        )
        return tuple(StoredFlag(*row) for row in rows)

    def add_event(self, at: float, what: str, subject: str, detail: str) -> None:
        """Append to the audit log; the oldest beyond ``EVENT_LIMIT`` go."""
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO events (at, what, subject, detail) VALUES (?, ?, ?, ?)",
                (at, what, subject, detail),
            )
            cursor.execute(
                "DELETE FROM events WHERE sequence <= ?", ((cursor.lastrowid or 0) - EVENT_LIMIT,)
            )

    def events(self, subject: str | None = None, limit: int = 100) -> tuple[StoredEvent, ...]:
        """Return the newest events first, of one subject or of all."""
        where, values = ("", ()) if subject is None else ("WHERE subject = ?", (subject,))
        rows = self._database.query(
            f"SELECT at, what, subject, detail FROM events {where} ORDER BY sequence DESC LIMIT ?",  # noqa: S608 - one of two constants
            (*values, max(0, limit)),
        )
        return tuple(StoredEvent(*row) for row in rows)
