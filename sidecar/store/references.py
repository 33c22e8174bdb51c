"""Who refers to which artifact: what is referred to is never collected."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from sidecar.store.database import Database

_TABLES = (
    """CREATE TABLE artifact_references (
        digest TEXT NOT NULL,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL,
        note TEXT NOT NULL,
        since REAL NOT NULL,
        PRIMARY KEY (digest, kind, owner)
    ) WITHOUT ROWID""",
    "CREATE INDEX artifact_references_by_owner ON artifact_references (kind, owner)",
)


class OwnerKind(StrEnum):
    """What may refer to an artifact."""

    REPORT = "report"
    BASELINE = "baseline"
    ALERT = "alert"
    INPUT = "input"
    PIN = "pin"


@dataclass(frozen=True, slots=True)
class Reference:
    """One reason for which an artifact stays.

    Attributes:
        digest: sha256 of the artifact.
        kind: What refers to it.
        owner: Which one: a layer, an alert, a manifest; who pinned it.
        note: Why, in words; may be empty.
        since: Unix seconds.
    """

    digest: str
    kind: str
    owner: str
    note: str
    since: float


class References:
    """References by owner; safe to use from several threads.

    An owner takes hold of artifacts before it promises them to anybody, and lets go of all of them at
    once when it ends.
    """

    def __init__(self, database: Database) -> None:
        """Make the table where it is missing.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        self._counted: list[Callable[[], AbstractSet[str]]] = []
        database.migrate("artifact_references", _TABLES)

    def hold(
        self, kind: OwnerKind, owner: str, digests: Iterable[str], now: float, note: str = ""
    ) -> None:
        """Keep artifacts for an owner, beside those that it holds already.

        Args:
            kind: What the owner is.
            owner: Which one.
            digests: sha256 of the artifacts; they need not be there yet.
            now: Unix seconds.
            note: Why, for people.
        """
        rows = [(digest, kind.value, owner, note, now) for digest in digests]
        with self._database.transaction() as cursor:
            cursor.executemany(
                "INSERT OR REPLACE INTO artifact_references (digest, kind, owner, note, since) "
                "VALUES (?, ?, ?, ?, ?)",
                rows,
            )

    def release(self, kind: OwnerKind, owner: str, digests: Iterable[str] | None = None) -> int:
        """Let go of some of an owner's artifacts, or of all; return how many it held."""
        with self._database.transaction() as cursor:
            if digests is None:
                return cursor.execute(
                    "DELETE FROM artifact_references WHERE kind = ? AND owner = ?",
                    (kind.value, owner),
                ).rowcount
            return cursor.executemany(
                "DELETE FROM artifact_references WHERE kind = ? AND owner = ? AND digest = ?",
                [(kind.value, owner, digest) for digest in digests],
            ).rowcount

    def of(self, kind: OwnerKind | None = None) -> tuple[Reference, ...]:
        """Return every reference of one kind of owner or of all, the oldest first."""
        rows = self._database.query(
            "SELECT digest, kind, owner, note, since FROM artifact_references "
            "WHERE ? = '' OR kind = ? ORDER BY since, digest",
            (kind or "", kind or ""),
        )
        return tuple(Reference(*row) for row in rows)

    def also(self, digests: Callable[[], AbstractSet[str]]) -> None:
        """Count in what somebody keeps who knows it better than a table would, at every look."""
        self._counted.append(digests)

    def digests(self) -> AbstractSet[str]:
        """Return all artifacts that must not be collected."""
        rows = self._database.query("SELECT DISTINCT digest FROM artifact_references")
        return {row[0] for row in rows}.union(*(count() for count in self._counted))
