"""The catalogue keeps flags and events."""

import sqlite3
from pathlib import Path

import pytest

from sidecar.store import Catalogue, Database, catalogue
from sidecar.store.catalogue import StoredEvent, StoredFlag

pytestmark = pytest.mark.service


@pytest.fixture
def stored(tmp_path: Path) -> Catalogue:
    """Return a catalogue over a fresh database."""
    return Catalogue(Database(tmp_path / "s.db"))


def test_a_flag_replaces_that_of_the_same_selector(stored: Catalogue) -> None:
    """Setting a flag again changes it; flags come sorted by selector."""
    stored.set_flag("m/b/channel/2", "beak", "warning", "ann")
    stored.set_flag("m/a/channel/1", "", "info", "")
    stored.set_flag("m/b/channel/2", "bill", "critical", "bob")

    expected = (
        StoredFlag("m/a/channel/1", "", "info", ""),
        StoredFlag("m/b/channel/2", "bill", "critical", "bob"),
    )
    assert expected == stored.flags()


def test_removing_a_flag_says_whether_there_was_one(stored: Catalogue) -> None:
    """The first removal finds it, the second does not."""
    stored.set_flag("m/a/channel/1", "", "info", "")

    assert (True, False) == (
        stored.remove_flag("m/a/channel/1"),
        stored.remove_flag("m/a/channel/1"),
    )
    assert () == stored.flags()


def test_an_unknown_severity_is_refused(stored: Catalogue) -> None:
    """The table itself refuses what is no severity."""
    with pytest.raises(sqlite3.IntegrityError):
        stored.set_flag("m/a/channel/1", "", "loud", "")


def test_events_come_newest_first(stored: Catalogue) -> None:
    """All events, those of one subject, and no more than asked for."""
    for number in range(5):
        stored.add_event(float(number), "feature_firing", f"s{number % 2}", f"rate {number}")

    assert [4.0, 3.0] == [event.at for event in stored.events(limit=2)]
    assert (StoredEvent(3.0, "feature_firing", "s1", "rate 3"),) == stored.events("s1", limit=1)
    assert () == stored.events(limit=0) == stored.events(limit=-1)


def test_the_audit_log_is_bounded(stored: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest events go."""
    monkeypatch.setattr("sidecar.store.catalogue.EVENT_LIMIT", 10)

    for number in range(25):
        stored.add_event(float(number), "x", "s", "")

    assert list(range(24, 14, -1)) == [int(event.at) for event in stored.events()]
    assert 10 == catalogue.EVENT_LIMIT


def test_text_is_data(stored: Catalogue) -> None:
    """Quotes, NULs and any script come back as they were."""
    text = "'; DROP TABLE events; -- \0 \u2603 \U0001f600"

    stored.add_event(1.0, "x", text, text)

    assert text == stored.events(text)[0].detail


def test_flags_of_an_earlier_release_say_nothing_of_how_they_are_watched(tmp_path: Path) -> None:
    """Its table had no column for that."""
    database = Database(tmp_path / "s.db")
    database.migrate("catalogue", catalogue._TABLES[:3])  # noqa: SLF001 - those of then
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO flags VALUES ('m/a/channel/1', 'n', 'info', 'o')")

    stored = Catalogue(database)
    stored.set_flag("m/a/channel/2", "", "info", "", "text")

    assert ("", "text") == tuple(one.watched for one in stored.flags())


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """A second catalogue over the same file reads what the first wrote."""
    first = Catalogue(Database(tmp_path / "s.db"))
    first.set_flag("m/a/channel/1", "n", "info", "o")
    first.add_event(1.0, "x", "s", "d")

    second = Catalogue(Database(tmp_path / "s.db"))

    assert (first.flags(), first.events()) == (second.flags(), second.events())
