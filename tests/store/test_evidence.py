"""Evidence on the disk: within its bytes, gone in time, and gone for good."""

import stat
from pathlib import Path

import pytest

from sidecar.errors import StorageError
from sidecar.store import Database, EvidenceStore, secret_key
from sidecar.store.evidence import KEY_BYTES, ROW_BYTES

pytestmark = pytest.mark.service


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "s.db"


@pytest.fixture
def stored(path: Path) -> EvidenceStore:
    """Return a store of ten records of a hundred characters over a fresh database."""
    return EvidenceStore(Database(path), 10 * (ROW_BYTES + 100))


def fill(stored: EvidenceStore, count: int, feature: str = "m@r/a/channel/1") -> None:
    """Add records, one a second."""
    for number in range(count):
        stored.add(f"{feature}-{number}", feature, float(number), 3, f"{number}".ljust(100, "."))


def test_the_newest_record_of_a_feature_comes_first(stored: EvidenceStore) -> None:
    """Of one feature, none older than asked, no more than asked."""
    fill(stored, 3)
    fill(stored, 2, "m@r/a/channel/2")

    bodies = stored.of("m@r/a/channel/1", 1.0, 9)
    assert ["2", "1"] == [body.rstrip(".") for body in bodies]
    assert bodies[:1] == stored.of("m@r/a/channel/1", 0.0, 1)
    assert () == stored.of("m@r/a/channel/1", 0.0, -1)
    assert {"m@r/a/channel/1": "m@r/a/channel/1-2", "m@r/a/channel/2": "m@r/a/channel/2-1"} == (
        stored.newest(0.0)
    )
    assert {"m@r/a/channel/1": "m@r/a/channel/1-2"} == stored.newest(2.0)


def test_records_stay_within_their_bytes_and_the_oldest_go(stored: EvidenceStore) -> None:
    """However many are added; one that alone is too large is not kept at all."""
    fill(stored, 25)

    assert 10 * (ROW_BYTES + 100) == stored.used_bytes
    assert list(range(24, 14, -1)) == [
        int(body.rstrip(".")) for body in stored.of("m@r/a/channel/1", 0.0, 99)
    ]
    stored.add("huge", "m@r/a/channel/1", 99.0, 3, "x" * 10_000)
    assert 0 == stored.used_bytes


def test_the_same_record_again_is_one(stored: EvidenceStore) -> None:
    """A write that is repeated after a crash doubles nothing."""
    for _ in range(2):
        stored.add("one", "f", 1.0, 3, "body")

    assert ("body",) == stored.of("f", 0.0, 9)


def test_what_expires_is_nowhere_in_the_file(path: Path) -> None:
    """Deleted ids are overwritten, not merely unlinked: they may be of a person."""
    database = Database(path)
    stored = EvidenceStore(database, 1 << 20)
    for number in range(50):
        stored.add(f"r{number}", "f", float(number), 3, f"request-of-somebody-{number} " * 20)
    database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes().count(b"request-of-somebody")
    gone = stored.expire(100.0)
    again = stored.expire(100.0)
    database.query("PRAGMA wal_checkpoint(TRUNCATE)")

    assert (50, 0) == (gone, again)
    assert before > 900
    assert 0 == path.read_bytes().count(b"request-of-somebody")


def test_records_that_say_too_much_are_forgotten(stored: EvidenceStore) -> None:
    """Those up to what is allowed stay."""
    for exposure in range(4):
        stored.add(f"r{exposure}", "f", 1.0, exposure, f"{exposure}")

    assert 2 == stored.forget(1)
    assert ("1", "0") == stored.of("f", 0.0, 9)
    assert 0 == stored.forget(3)


def test_records_are_there_after_a_restart(path: Path) -> None:
    """What was answered is on the disk."""
    fill(EvidenceStore(Database(path), 10_000), 1)

    assert 1 == len(EvidenceStore(Database(path), 10_000).of("m@r/a/channel/1", 0.0, 9))


def test_the_secret_is_drawn_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    """The same for ever in one folder, another in another."""
    one, two = tmp_path / "one.key", tmp_path / "two.key"
    first = secret_key(one)

    assert first == secret_key(one)
    assert KEY_BYTES == len(first)
    assert first != secret_key(two)
    assert 0o600 == stat.S_IMODE(one.stat().st_mode)


def test_a_damaged_secret_is_drawn_anew_and_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    """Half a secret protects nobody; what cannot be mended names the path."""
    path = tmp_path / "evidence.key"
    path.write_bytes(b"short")

    assert KEY_BYTES == len(secret_key(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"evidence\.key"):
        secret_key(path)
