"""Which features a night pictures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.audits.priority import Candidate, Reason, choose

pytestmark = pytest.mark.unit

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        feature=st.integers(0, 40).map("a/channel/{}".format),
        flagged=st.booleans(),
        fired=st.booleans(),
        strange=st.booleans(),
        pictured_at=st.floats(0, 100),
    ),
    unique_by=lambda one: one.feature,
    max_size=30,
)


def test_what_fired_comes_before_what_drifts_and_that_before_the_rest() -> None:
    """Then the flag pictured longest ago, one never pictured before all; what nobody flagged is last."""
    found = choose(
        [
            Candidate("a/channel/1", pictured_at=50),
            Candidate("a/channel/2", pictured_at=20),
            Candidate("a/channel/3"),
            Candidate("a/channel/4", flagged=False),
            Candidate("a/channel/5", flagged=False, strange=True),
            Candidate("a/channel/6", fired=True, strange=True, pictured_at=99),
        ],
        10,
    )

    assert ["6", "5", "3", "2", "1", "4"] == [one.feature[-1] for one in found]
    assert [Reason.FIRED, Reason.STRANGE, *[Reason.FLAGGED] * 3, Reason.FILLER] == [
        one.reason for one in found
    ]


@given(CANDIDATES, st.integers(1, 40))
def test_as_many_are_taken_as_there_is_room_for_each_once(
    candidates: list[Candidate], limit: int
) -> None:
    """And nothing urgent is left out for what is not, beyond the half that is kept for turns."""
    found = choose(candidates, limit)

    assert min(limit, len(candidates)) == len(found)
    assert len(found) == len({one.feature for one in found})
    urgent = sum(one.fired or one.strange for one in candidates)
    taken = sum(one.reason <= Reason.STRANGE for one in found)
    assert taken >= min(urgent, limit - limit // 2)


@given(
    flags=st.integers(1, 25),
    limit=st.integers(2, 12),
    firing=st.sets(st.integers(0, 24)),
    strangers=st.integers(0, 12),
)
def test_every_flag_has_its_turn(flags: int, limit: int, firing: set[int], strangers: int) -> None:
    """Within ceil(n / limit) nights where nothing is urgent; whatever fires, with half of the places."""
    pictured: dict[str, float] = {}
    names = [f"a/channel/{number}" for number in range(flags)]
    strange = [Candidate(f"b/channel/{n}", flagged=False, strange=True) for n in range(strangers)]
    urgent = bool(strangers or any(n < flags for n in firing))
    nights = math.ceil(flags / (limit // 2 if urgent else limit))

    for night in range(1, nights + 1):
        candidates = [
            Candidate(name, fired=number in firing, pictured_at=pictured.get(name, 0.0))
            for number, name in enumerate(names)
        ]
        for one in choose([*candidates, *strange], limit):
            pictured[one.feature] = float(night)

    assert set(names) <= pictured.keys()
