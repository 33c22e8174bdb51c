"""The one SQLite file of the daemon: transactions, migrations, and errors that people can act on."""

import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from sidecar.errors import CorruptState, DiskFull, StorageError
from sidecar.store.files import set_aside, storage_errors

_log = structlog.get_logger(__name__)

_WAL_LIMIT_BYTES = 64 << 20  # the log shrinks back to this after a burst; 64 MiB is hours of events
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# SQLite reports only ENOSPC as FULL; a quota (EDQUOT) and a file-size limit (EFBIG) arrive as a
# failed write, of which the errno is not handed on.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})
_OWN_TABLES = (
    """CREATE TABLE IF NOT EXISTS migrations
        (component TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS made
        (name TEXT PRIMARY KEY, definition TEXT NOT NULL) WITHOUT ROWID""",
)
_USER_VERSION_MASK = 0x7FFFFFFF  # the header field is a signed 32-bit number
_PRIMARY = 0xFF  # the low byte of an extended result code is the primary one


class Database:
    """A SQLite file in WAL mode with one connection a thread.

    A committed transaction is on the disk (``synchronous=FULL``): it survives kill -9 and a power
    cut. A file that is found damaged when it is opened, be it its pages or its schema, is renamed
    to ``<name>.corrupt-<n>``, counted, and a fresh one started.

    Attributes:
        path: The file.
        quarantined: Damaged files set aside when this one was opened, 0 or 1.
    """

    def __init__(self, path: Path, *, busy_seconds: float = 10.0) -> None:
        """Open the file, making it and its folder where they are missing.

        Args:
            path: The file.
            busy_seconds: How long a transaction waits for another process's.

        Raises:
            DiskFull: There is no room to create it.
            StorageError: It cannot be opened for writing.
        """
        self.path = path
        self.quarantined = 0
        self._busy_seconds = busy_seconds
        self._local = threading.local()
        self._guard = threading.Lock()
        self._open: dict[threading.Thread, sqlite3.Connection] = {}
        self._closed = False
        with storage_errors(f"create {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._check()
        except CorruptState as error:
            self._quarantine(str(error))
            self._check()

    def _check(self) -> None:
        """Raise CorruptState unless the pages and the schema are those that were written."""
        try:
            found = self.query("PRAGMA quick_check(1)")[0][0]
            with self._mapped():
                whole = _schema_is_whole(self._connection().cursor())
        except StorageError as error:
            # The statements above are right, so a complaint about them is one about the file.
            if getattr(error.__cause__, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
                raise CorruptState(error.message) from error
            raise
        if found != "ok":
            raise CorruptState(f"{self.path}: {found}")
        if not whole:
            raise CorruptState(f"{self.path}: the tables are not those that were made")

    def _quarantine(self, problem: str) -> None:
        self._drop_connections()
        with storage_errors(f"set {self.path} aside"):
            kept = set_aside(self.path)
            # A log that belongs to the damaged file must not be replayed into the fresh one.
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(f"{kept}{suffix}")
        self.quarantined += 1
        _log.error("database_quarantined", path=str(self.path), kept=str(kept), problem=problem)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """Run a block as one transaction that is on the disk when the block ends without an error.

        The write lock is taken at once, so a block never fails half-way because another process
        wrote. Blocks do not nest.

        Raises:
            DiskFull: The disk is full; nothing of the block was written.
            StorageError: The file cannot be read or written, or stays locked.
            CorruptState: SQLite finds the file damaged; the next start sets it aside.
            sqlite3.IntegrityError: The block broke a constraint; nothing was written.
        """
        with self._mapped():
            connection = self._connection()
            cursor = connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after a full disk.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise
            finally:
                cursor.close()

    def query(
        self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[sqlite3.Row]:
        """Return all rows of a statement that only reads.

        Raises:
            StorageError: As ``transaction``.
        """
        with self._mapped():
            return self._connection().execute(statement, parameters).fetchall()

    def migrate(self, component: str, statements: Sequence[str]) -> None:
        """Bring one component's tables up to date, in one transaction.

        Args:
            component: Who owns the tables.
            statements: Every statement there ever was, oldest first; a release only appends.
                Those already run are skipped.

        Raises:
            StorageError: The file was written by a newer release.
        """
        with self.transaction() as cursor:
            before = _schema(cursor)
            for table in _OWN_TABLES:
                cursor.execute(table)
            cursor.execute("SELECT version FROM migrations WHERE component = ?", (component,))
            row = cursor.fetchone()
            done = int(row["version"]) if row else 0
            if done > len(statements):
                raise StorageError(
                    f"{self.path}: {component} tables are of version {done}, this release knows "
                    f"{len(statements)}: start the newer release, or move the file away"
                )
            for statement in statements[done:]:
                cursor.execute(statement)
            values = (component, len(statements))
            cursor.execute("INSERT OR REPLACE INTO migrations VALUES (?, ?)", values)
            _record(cursor, before)

    def close(self) -> None:
        """Close every thread's connection; later calls raise ``StorageError``."""
        self._closed = True
        self._drop_connections()

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise StorageError(f"{self.path} is closed: the daemon is stopping")
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect()
        return found

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._busy_seconds,
            isolation_level=None,  # transactions begin where the code says so
            check_same_thread=False,  # close() closes the connections of threads that are gone
        )
        connection.row_factory = sqlite3.Row
        # A damaged text column must not make a whole row unreadable.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # What expired must not lie in the file's free pages: it may have been a request id.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except BaseException:
            connection.close()
            raise
        with self._guard:
            for thread in [thread for thread in self._open if not thread.is_alive()]:
                self._open.pop(thread).close()
            self._open[threading.current_thread()] = connection
        return connection

    def _drop_connections(self) -> None:
        with self._guard:
            for connection in self._open.values():
                connection.close()
            self._open.clear()
            self._local = threading.local()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn SQLite's complaints about the disk into ours; those about our SQL pass."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except UnicodeDecodeError as error:
            # Python decodes SQLite's own message, which quotes the damaged page.
            raise CorruptState(f"{self.path} holds garbage; restart the daemon") from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code in _FULL:
                raise DiskFull(
                    f"cannot write {self.path}: {error}; make room on the disk"
                ) from error
            if code & _PRIMARY in _DAMAGED:
                raise CorruptState(
                    f"{self.path}: {error}; restart the daemon, it sets the file aside"
                ) from error
            raise StorageError(f"cannot use {self.path}: {error}") from error


def _schema(cursor: sqlite3.Cursor) -> dict[str, str]:
    """Return the definition of every table, index and trigger by name."""
    rows = cursor.execute("SELECT name, coalesce(sql, '') FROM sqlite_master ORDER BY name")
    return {row[0]: row[1] for row in rows.fetchall()}


def _record(cursor: sqlite3.Cursor, before: Mapping[str, str]) -> None:
    """Write down what a migration made, and a checksum over all such notes.

    SQLite has no checksums: a flipped bit in a column's name would fail every start from then on.
    Only our own definitions are noted, so an index that an operator adds by hand does no harm.
    """
    after = _schema(cursor)
    made = sorted(after.items() - before.items())
    cursor.executemany("INSERT OR REPLACE INTO made VALUES (?, ?)", made)
    cursor.executemany("DELETE FROM made WHERE name = ?", [(n,) for n in before.keys() - after])
    cursor.execute(f"PRAGMA user_version = {_checksum(cursor)}")


def _schema_is_whole(cursor: sqlite3.Cursor) -> bool:
    actual = _schema(cursor)
    expected = cursor.execute("PRAGMA user_version").fetchone()[0]
    if not actual or expected == 0:
        return not actual and expected == 0  # a fresh file has neither tables nor a checksum
    made = cursor.execute("SELECT name, definition FROM made").fetchall()
    return _checksum(cursor) == expected and all(actual.get(n) == d for n, d in made)


def _checksum(cursor: sqlite3.Cursor) -> int:
    rows = cursor.execute("SELECT name, definition FROM made ORDER BY name").fetchall()
    rows += cursor.execute("SELECT component, version FROM migrations ORDER BY component")
    text = "\0".join(str(value) for row in rows for value in row)
    return (zlib.crc32(text.encode("utf-8", "replace")) & _USER_VERSION_MASK) or 1
