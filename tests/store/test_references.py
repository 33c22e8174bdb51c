"""What is referred to stays, for as long as its owner says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.store import (
    ArtifactStore,
    BaselineStore,
    Database,
    OwnerKind,
    References,
    pack_baseline,
)
from tests.store.test_baselines import FACTS

pytestmark = pytest.mark.service


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    found = Database(tmp_path / "state.sqlite3")
    yield found
    found.close()


def test_an_owner_holds_and_lets_go(database: Database) -> None:
    """All of one owner's, or some; another owner's reference to the same stays."""
    references = References(database)
    references.hold(OwnerKind.REPORT, "weekly", ("a", "b"), 1.0, "for the board")
    references.hold(OwnerKind.PIN, "operator", ("b", "c"), 2.0)

    assert {"a", "b", "c"} == references.digests()
    assert ["for the board"] * 2 == [one.note for one in references.of(OwnerKind.REPORT)]
    assert 1 == references.release(OwnerKind.PIN, "operator", ("c", "nothing"))
    assert 2 == references.release(OwnerKind.REPORT, "weekly")
    assert 0 == references.release(OwnerKind.REPORT, "weekly")
    assert {"b"} == References(database).digests()


def test_others_are_counted_in_at_every_look(database: Database) -> None:
    """What somebody else knows better is asked for each time."""
    references, known = References(database), {"x"}
    references.also(lambda: known)

    assert {"x"} == references.digests()
    known.add("y")
    assert {"x", "y"} == references.digests()


def test_a_baseline_refers_to_its_file_while_it_is_listed(
    database: Database, tmp_path: Path
) -> None:
    """By whatever way it is listed or forgotten; what an earlier release listed counts too."""
    artifacts = ArtifactStore(tmp_path / "artifacts", 1 << 20)
    store = BaselineStore(database, artifacts)
    stored = store.add(pack_baseline(FACTS, b"statistics"), "learned", 5.0)
    references = References(database)

    assert {stored.digest} == references.digests()
    assert [(OwnerKind.BASELINE, str(stored.facts.layer))] == [
        (one.kind, one.owner) for one in references.of()
    ]
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM baselines")
    assert set() == references.digests()


def test_baselines_of_an_earlier_release_are_taken_over(database: Database, tmp_path: Path) -> None:
    """A database with baselines and no references opens, and keeps what it had."""
    from sidecar.store import baselines  # noqa: PLC0415 - to write what the release before wrote

    database.migrate("baselines", baselines._TABLES[:2])  # noqa: SLF001 - as above
    with database.transaction() as cursor:
        cursor.execute(
            "INSERT INTO baselines (digest, layer, facts, origin, stored) "
            "VALUES ('d', 'm@r/l/channel', '{}', 'learned', 7.0)"
        )

    BaselineStore(database, ArtifactStore(tmp_path / "artifacts", 1 << 20))

    assert [("d", "m@r/l/channel", 7.0)] == [
        (one.digest, one.owner, one.since) for one in References(database).of()
    ]
