"""Who makes way for whom."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.jobs.scheduling import Turn, who_makes_way

pytestmark = pytest.mark.unit


def running(sequence: int, rank: int, model: str = "m") -> Turn:
    """Return a running job."""
    return Turn(f"r{sequence}", model, rank, True, sequence)  # noqa: FBT003 - as documented


def waiting(sequence: int, rank: int = 0, model: str = "m") -> Turn:
    """Return a waiting job."""
    return Turn(f"w{sequence}", model, rank, False, sequence)  # noqa: FBT003 - as documented


def asked(*turns: Turn, slots: int = 1, **limits: int) -> dict[str, str]:
    """Ask, in the order of turns."""
    ordered = sorted(turns, key=lambda turn: (turn.rank, turn.sequence))
    return dict(who_makes_way(ordered, slots, limits))


def test_a_person_takes_the_slot_of_an_audit() -> None:
    """No slot is free: the audit makes way."""
    assert {"r1": "w2"} == asked(running(1, 2), waiting(2))


def test_nobody_makes_way_while_a_slot_is_free() -> None:
    """One of two slots is free."""
    assert {} == asked(running(1, 2), waiting(2), slots=2)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_audits_make_way(rank: int) -> None:
    """People's and alerts' jobs run to their end."""
    assert {} == asked(running(1, rank), waiting(2))


@pytest.mark.parametrize("rank", [1, 2])
def test_only_people_are_made_way_for(rank: int) -> None:
    """An alert waits its turn, and so does an audit."""
    assert {} == asked(running(1, 2), waiting(2, rank))


def test_one_audit_makes_way_for_one_job_the_last_submitted_first() -> None:
    """Two of three audits go for two people."""
    turns = [running(n, 2, f"m{n}") for n in (1, 2, 3)]

    found = asked(*turns, waiting(4, model="x"), waiting(5, model="x"), slots=3)

    assert {"r3": "w4", "r2": "w5"} == found


def test_where_the_model_is_full_its_own_audit_makes_way() -> None:
    """Slots are free, but the model may have one job: only ending that one helps."""
    turns = [running(1, 2, "a"), running(2, 2, "b")]

    assert {"r1": "w3"} == asked(*turns, waiting(3, model="a"), slots=4, a=1, b=1)


def test_a_model_full_of_people_costs_no_audit() -> None:
    """Another model's audit would not help."""
    turns = [running(1, 0, "a"), running(2, 2, "b")]

    assert {} == asked(*turns, waiting(3, model="a"), slots=2, a=1)


@given(
    jobs=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.booleans()), max_size=12),
    slots=st.integers(1, 4),
    limit=st.integers(1, 3),
)
def test_ways_are_few_and_lead_somewhere(
    jobs: list[tuple[str, int, bool]], slots: int, limit: int
) -> None:
    """Each that makes way is a running audit, for a different person's job, which can then start."""
    turns = [
        Turn(str(n), model, rank, is_running, n) for n, (model, rank, is_running) in enumerate(jobs)
    ]
    turns.sort(key=lambda turn: (turn.rank, turn.sequence))
    by_id = {turn.id: turn for turn in turns}

    found = who_makes_way(turns, slots, {"a": limit})

    assert len(set(found.values())) == len(found)
    for audit, person in found.items():
        assert by_id[audit].running
        assert by_id[audit].rank == 2
        assert not by_id[person].running
        assert by_id[person].rank == 0
    left = Counter(turn.model for turn in turns if turn.running and turn.id not in found)
    if found:
        assert left["a"] < limit or all(by_id[person].model != "a" for person in found.values())
