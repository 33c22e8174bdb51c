"""Evidence records on the disk: bounded in bytes, gone when they expire."""

import secrets
from pathlib import Path

from sidecar.errors import StorageError
from sidecar.store.database import Database
from sidecar.store.files import storage_errors, sync_folder, write_synced

ROW_BYTES = 256
"""Charged for a record beside its text: its other columns, and its places in two indices."""

KEY_BYTES = 32
"""Length of the secret of hashed request ids; as long as the hash."""

_TABLES = (
    """CREATE TABLE evidence (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        feature TEXT NOT NULL,
        at REAL NOT NULL,
        exposure INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        body TEXT NOT NULL
    )""",
    "CREATE INDEX evidence_by_feature ON evidence (feature, sequence)",
)


class EvidenceStore:
    """Records by feature, the newest first; safe to use from several threads."""

    def __init__(self, database: Database, limit_bytes: int) -> None:
        """Make the table where it is missing.

        Args:
            database: The daemon's.
            limit_bytes: Most bytes of records; beyond it the oldest go.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database, self._limit_bytes = database, limit_bytes
        database.migrate("evidence", _TABLES)

    def add(self, record_id: str, feature: str, at: float, exposure: int, body: str) -> None:
        """Keep a record, replacing one of the same id; the oldest beyond the limit go.

        Args:
            record_id: Its name.
            feature: Text form of the feature it is about.
            at: Unix seconds, from which its age counts.
            exposure: How much it says of a person; see ``forget``.
            body: Everything else.

        Raises:
            StorageError: It cannot be written.
        """
        size = ROW_BYTES + len(body.encode())
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM evidence WHERE id = ?", (record_id,))
            cursor.execute(
                "INSERT INTO evidence (id, feature, at, exposure, bytes, body) VALUES (?,?,?,?,?,?)",
                (record_id, feature, at, exposure, size, body),
            )
            cursor.execute(
                "DELETE FROM evidence WHERE sequence IN (SELECT sequence FROM (SELECT sequence, "
                "sum(bytes) OVER (ORDER BY sequence DESC) AS total FROM evidence) WHERE total > ?)",
                (self._limit_bytes,),
            )

    def of(self, feature: str, since: float, limit: int) -> tuple[str, ...]:
        """Return the bodies of a feature's newest records, newest first, none older than ``since``."""
        rows = self._database.query(
            "SELECT body FROM evidence WHERE feature = ? AND at >= ? ORDER BY sequence DESC LIMIT ?",
            (feature, since, max(0, limit)),
        )
        return tuple(row[0] for row in rows)

    def newest(self, since: float) -> dict[str, str]:
        """Return the id of the newest record of each feature that has one not older than ``since``."""
        rows = self._database.query(
            "SELECT feature, id FROM evidence WHERE at >= ? ORDER BY sequence", (since,)
        )
        return {row[0]: row[1] for row in rows}

    def expire(self, before: float) -> int:
        """Delete the records from before a time; return how many there were."""
        return self._delete("at < ?", before)

    def forget(self, exposure: int) -> int:
        """Delete the records that say more of a person than this; return how many there were."""
        return self._delete("exposure > ?", exposure)

    def _delete(self, condition: str, value: float) -> int:
        # Asked first: a write for nothing every minute would keep a disk from resting.
        statement = f"SELECT count(*) FROM evidence WHERE {condition}"  # noqa: S608 - a constant
        if not self._database.query(statement, (value,))[0][0]:
            return 0
        with self._database.transaction() as cursor:
            return int(cursor.execute(f"DELETE FROM evidence WHERE {condition}", (value,)).rowcount)  # noqa: S608 - a constant

    @property
    def used_bytes(self) -> int:
        """Bytes of all records."""
        return int(self._database.query("SELECT coalesce(sum(bytes), 0) FROM evidence")[0][0])


def secret_key(path: Path) -> bytes:
    """Return the secret in a file, drawing one where there is none.

    A file of another length is drawn anew: with half a secret ids could be guessed back.

    Raises:
        StorageError: It can be neither read nor written.
    """
    with storage_errors(f"read or create {path}"):
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            found = b""
        if len(found) == KEY_BYTES:
            return found
        path.unlink(missing_ok=True)
        try:
            write_synced(path, [secrets.token_bytes(KEY_BYTES)])
            sync_folder(path.parent)
        except FileExistsError as error:
            raise StorageError(f"{path} appeared meanwhile: is another daemon starting?") from error
        return path.read_bytes()
