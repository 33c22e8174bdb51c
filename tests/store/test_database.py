"""The database survives crashes, damage, full disks and many threads."""

import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sidecar
from sidecar.errors import DiskFull, StorageError
from sidecar.store import Catalogue, Database

pytestmark = pytest.mark.service

ROOT = Path(sidecar.__file__).parents[1]
TABLES = ("CREATE TABLE notes (word TEXT UNIQUE NOT NULL)",)


def open_notes(path: Path) -> Database:
    """Return a database with a table of notes."""
    database = Database(path)
    database.migrate("notes", TABLES)
    return database


def words(database: Database) -> list[str]:
    """Return all notes in order."""
    return [row["word"] for row in database.query("SELECT word FROM notes ORDER BY rowid")]


def add(database: Database, word: str) -> None:
    """Write one note."""
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO notes VALUES (?)", (word,))


def test_a_commit_is_there_for_the_next_process(tmp_path: Path) -> None:
    """What a transaction wrote is read by another object over the same file."""
    database = open_notes(tmp_path / "deep" / "s.db")
    add(database, "kept")

    other = open_notes(tmp_path / "deep" / "s.db")

    assert ["kept"] == words(other)
    assert "wal" == other.query("PRAGMA journal_mode")[0][0]
    assert 2 == other.query("PRAGMA synchronous")[0][0]


def test_an_error_rolls_everything_back(tmp_path: Path) -> None:
    """Nothing of a block that raises is written, and the next block works."""
    database = open_notes(tmp_path / "s.db")

    with pytest.raises(sqlite3.IntegrityError), database.transaction() as cursor:
        cursor.executemany("INSERT INTO notes VALUES (?)", [("lost",), ("lost",)])
    add(database, "kept")

    assert ["kept"] == words(database)


def test_a_broken_constraint_is_a_bug_not_a_disk_error(tmp_path: Path) -> None:
    """A constraint that fails is passed on as SQLite's own error."""
    database = open_notes(tmp_path / "s.db")
    add(database, "once")

    with pytest.raises(sqlite3.IntegrityError):
        add(database, "once")


def test_migrations_run_once_each(tmp_path: Path) -> None:
    """A release that appends a statement runs only that one."""
    open_notes(tmp_path / "s.db").close()

    database = Database(tmp_path / "s.db")
    database.migrate("notes", (*TABLES, "INSERT INTO notes VALUES ('second')"))
    database.migrate("notes", (*TABLES, "INSERT INTO notes VALUES ('second')"))

    assert ["second"] == words(database)
    assert 0 == database.quarantined


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Where the second of three statements is wrong, the first is undone."""
    database = Database(tmp_path / "s.db")

    with pytest.raises(StorageError):
        database.migrate("notes", (*TABLES, "CREATE NONSENSE", "SELECT 1"))

    assert [] == database.query("SELECT name FROM sqlite_master")


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    """A downgrade is refused in words, and the file is left as it is."""
    database = open_notes(tmp_path / "s.db")
    add(database, "kept")

    with pytest.raises(StorageError, match="start the newer release"):
        database.migrate("notes", ())

    assert ["kept"] == words(open_notes(tmp_path / "s.db"))


def test_an_index_added_by_hand_does_no_harm(tmp_path: Path) -> None:
    """What an operator adds beside our tables is no damage, and a later migration keeps to that."""
    database = open_notes(tmp_path / "s.db")
    add(database, "kept")
    with database.transaction() as cursor:
        cursor.execute("CREATE INDEX by_hand ON notes (word DESC)")
    database.close()
    reopened = Database(tmp_path / "s.db")
    reopened.migrate("notes", (*TABLES, "CREATE TABLE more (x)"))
    with reopened.transaction() as cursor:
        cursor.execute("DROP INDEX by_hand")
    reopened.close()

    again = Database(tmp_path / "s.db")

    assert ["kept"] == words(again)
    assert 0 == again.quarantined


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """Garbage is renamed and counted, and a fresh database works at once."""
    path = tmp_path / "s.db"
    path.write_bytes(content)

    database = open_notes(path)
    add(database, "fresh")

    assert 1 == database.quarantined
    assert ["fresh"] == words(database)
    assert content == (tmp_path / "s.db.corrupt-1").read_bytes()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_never_stops_a_start(tmp_path: Path, seed: int) -> None:
    """Overwritten bytes, pages or ends of the file: the next start has a database that works."""
    rng = random.Random(seed)  # noqa: S311 - a repeatable fault, not a secret
    path = tmp_path / "s.db"
    database = Database(path)
    catalogue = Catalogue(database)
    with database.transaction() as cursor:
        cursor.executemany(
            "INSERT INTO events (at, what, subject, detail) VALUES (?, 'x', ?, ?)",
            [(number, f"s{number % 7}", "d" * 60) for number in range(300)],
        )
    database.close()
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content)) if seed % 2 else rng.randrange(4096 * 3)
    length = rng.choice([1, 20, 4096, len(content)])
    if seed % 5 == 0:
        del content[start:]
    else:
        content[start : start + length] = rng.randbytes(min(length, len(content) - start))
    path.write_bytes(content)

    opened = Database(path)
    catalogue = Catalogue(opened)
    catalogue.add_event(1.0, "after", "all", "")

    assert "after" == catalogue.events("all")[0].what
    assert opened.quarantined == len(list(tmp_path.glob("*.corrupt-?")))


def test_a_damaged_file_is_mended_from_its_log(tmp_path: Path) -> None:
    """A crash that tore the file but left a whole log beside it loses nothing."""
    path = tmp_path / "s.db"
    database = open_notes(path)
    add(database, "old")
    log = (tmp_path / "s.db-wal").read_bytes()
    database.close()
    path.write_bytes(b"garbage" * 1000)
    (tmp_path / "s.db-wal").write_bytes(log)

    mended = open_notes(path)

    assert ["old"] == words(mended)
    assert 0 == mended.quarantined


def test_a_full_database_is_disk_full_and_recovers(tmp_path: Path) -> None:
    """SQLite's own FULL becomes DiskFull; nothing is half there, and room makes it work again."""
    database = open_notes(tmp_path / "s.db")
    add(database, "kept")
    database.query("PRAGMA max_page_count = 8")

    with pytest.raises(DiskFull):
        add(database, "x" * 100_000)
    database.query("PRAGMA max_page_count = 100000")
    add(database, "y" * 100_000)

    assert ["kept", "y" * 100_000] == words(database)


FULL_DISK = """
import resource, sys
from pathlib import Path
from sidecar.errors import DiskFull
from sidecar.store import Database

database = Database(Path(sys.argv[1]))
database.migrate("notes", ("CREATE TABLE notes (word TEXT UNIQUE NOT NULL)",))
with database.transaction() as cursor:
    cursor.execute("INSERT INTO notes VALUES ('kept')")
soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO notes VALUES (?)", ("x" * 1_000_000,))
except DiskFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
with database.transaction() as cursor:
    cursor.execute("INSERT INTO notes VALUES ('later')")
"""


def test_a_file_size_limit_is_disk_full(tmp_path: Path) -> None:
    """A write the kernel refuses raises DiskFull; earlier and later writes are there."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "s.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    database = open_notes(tmp_path / "s.db")
    assert done.stdout.startswith(DiskFull.code)
    assert ["kept", "later"] == words(database)
    assert "ok" == database.query("PRAGMA integrity_check")[0][0]


KILLED = """
import sys
from pathlib import Path
from sidecar.store import Database

database = Database(Path(sys.argv[1]))
database.migrate("notes", ("CREATE TABLE notes (word TEXT UNIQUE NOT NULL)",))
number = database.query("SELECT COUNT(*) FROM notes")[0][0]
while True:
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO notes VALUES (?)", (f"a{number}",))
        cursor.execute("INSERT INTO notes VALUES (?)", (f"b{number}",))
    print(number, flush=True)
    number += 2
"""


def test_kill_9_keeps_every_answered_transaction_whole(tmp_path: Path) -> None:
    """After kill -9 all answered transactions are there, and no half of one."""
    path = tmp_path / "s.db"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        answered = [process.stdout.readline() for _ in range(10)]
        process.kill()
        answered += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()

        database = open_notes(path)
        found = words(database)
        database.close()

        assert int(answered[-1]) + 2 <= len(found) <= int(answered[-1]) + 4
        assert 0 == len(found) % 2
        assert 0 == database.quarantined


def test_many_threads_write_without_loss(tmp_path: Path) -> None:
    """Eight threads write 25 notes each; all 200 are there."""
    database = open_notes(tmp_path / "s.db")

    def write(owner: int) -> None:
        for number in range(25):
            add(database, f"{owner}-{number}")

    threads = [threading.Thread(target=write, args=(owner,)) for owner in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 200 == len(words(database))


def test_connections_of_ended_threads_are_closed(tmp_path: Path) -> None:
    """A daemon whose threads come and go holds no growing number of open files."""
    database = open_notes(tmp_path / "s.db")
    for _ in range(20):
        thread = threading.Thread(target=words, args=(database,))
        thread.start()
        thread.join()

    held = [link for link in Path("/proc/self/fd").iterdir() if _points_to(link, tmp_path / "s.db")]

    assert len(held) <= 3


def _points_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except OSError:
        return False


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    """Using it after close is a StorageError, not a crash."""
    database = open_notes(tmp_path / "s.db")
    database.close()

    with pytest.raises(StorageError, match="closed"):
        words(database)


def test_a_lock_held_too_long_is_a_storage_error(tmp_path: Path) -> None:
    """Another process that keeps the write lock makes a transaction fail in words."""
    open_notes(tmp_path / "s.db").close()
    impatient = Database(tmp_path / "s.db", busy_seconds=0.05)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StorageError, match="locked"):
        add(impatient, "never")

    other.close()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file where the folder should be is named in the message."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match="file"):
        Database(tmp_path / "file" / "s.db")
