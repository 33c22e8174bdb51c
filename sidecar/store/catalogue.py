"""What people decided and what happened: flags, the audit log, and the layers ever seen."""

from dataclasses import dataclass

from sidecar.features import Capture, FeatureKind, LayerKey, Scope, View
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
    """CREATE TABLE layers (
        model TEXT NOT NULL,
        revision TEXT NOT NULL,
        layer TEXT NOT NULL,
        kind TEXT NOT NULL,
        view TEXT NOT NULL,
        scope TEXT NOT NULL,
        width INTEGER NOT NULL CHECK (width > 0),
        server TEXT NOT NULL,
        dtype TEXT NOT NULL,
        compiled INTEGER NOT NULL,
        tap TEXT NOT NULL,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        PRIMARY KEY (model, revision, layer, kind, view, scope)
    ) WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class StoredFlag:
    """A flag as somebody set it.

    Attributes:
        selector: Text form of the feature selector.
        name: What people call the feature; may be empty.
        severity: ``info``, ``warning`` or ``critical``.
        owner: Who is told; may be empty.
    """

    selector: str
    name: str
    severity: str
    owner: str


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


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer some hook registered once.

    Attributes:
        key: Which layer.
        width: Features in it.
        capture: How it was measured the last time.
        first_seen: Unix seconds of its first registration.
        last_seen: Unix seconds of its newest.
    """

    key: LayerKey
    width: int
    capture: Capture
    first_seen: float
    last_seen: float


class Catalogue:
    """Flags, audit events and layers in the daemon's database; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        """Make the tables where they are missing.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        database.migrate("catalogue", _TABLES)

    def set_flag(self, selector: str, name: str, severity: str, owner: str) -> None:
        """Flag what a selector names, replacing the flag of the same selector.

        Raises:
            StorageError: The database cannot be written.
            sqlite3.IntegrityError: The severity is none of info, warning, critical.
        """
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO flags (selector, name, severity, owner) VALUES (?, ?, ?, ?)",
                (selector, name, severity, owner),
            )

    def remove_flag(self, selector: str) -> bool:
        """Remove a flag; returns whether there was one."""
        with self._database.transaction() as cursor:
            return cursor.execute("DELETE FROM flags WHERE selector = ?", (selector,)).rowcount > 0

    def flags(self) -> tuple[StoredFlag, ...]:
        """Return every flag, sorted by selector."""
        rows = self._database.query(
            "SELECT selector, name, severity, owner FROM flags ORDER BY selector"
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

    def record_layer(self, layer: LayerKey, width: int, capture: Capture, at: float) -> None:
        """Note that a hook registered a layer; keeps when it was first seen."""
        key = (layer.model, layer.revision, layer.layer, layer.kind, layer.view, layer.scope)
        how = (width, capture.server, capture.dtype, capture.compiled, capture.tap)
        with self._database.transaction() as cursor:
            cursor.execute(
                """INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET width = excluded.width, server = excluded.server,
                    dtype = excluded.dtype, compiled = excluded.compiled, tap = excluded.tap,
                    last_seen = MAX(last_seen, excluded.last_seen)""",
                (*key, *how, at, at),
            )

    def layers(self) -> tuple[StoredLayer, ...]:
        """Return every layer ever registered, sorted by its key."""
        rows = self._database.query(
            "SELECT * FROM layers ORDER BY model, revision, layer, kind, view, scope"
        )
        return tuple(
            StoredLayer(
                LayerKey(
                    row["model"],
                    row["revision"],
                    row["layer"],
                    FeatureKind(row["kind"]),
                    View(row["view"]),
                    Scope(row["scope"]),
                ),
                row["width"],
                Capture(row["server"], row["dtype"], bool(row["compiled"]), row["tap"]),
                row["first_seen"],
                row["last_seen"],
            )
            for row in rows
        )
