"""What checks make of what was found."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.audits import Check, NightState, Outcome
from sidecar.audits.checks import (
    Earlier,
    Gate,
    JobEnd,
    Reference,
    Repeat,
    Served,
    comparison,
    complete,
    counts,
    listed,
    live,
    reproduced,
    revision,
    state_of,
    verdict,
    verified,
)
from sidecar.audits.facts import (
    Facts,
    LayerCounts,
    Plan,
    Portrayed,
    decode_checks,
    decode_facts,
    decode_plan,
    encode,
    encode_checks,
)
from sidecar.audits.priority import Chosen, Reason

pytestmark = pytest.mark.unit

DIGEST, OTHER = "a" * 64, "b" * 64
PASSED, FAILED, IMPOSSIBLE = Outcome.PASSED, Outcome.FAILED, Outcome.IMPOSSIBLE


def facts(moved: int = 0, lost: int = 0, verdict: str = "", dataset: str = "d") -> Facts:
    """Return the findings of one layer of a hundred, and of one portrait."""
    layer = LayerCounts(
        "x/channel", 100, {"same": 100 - moved - lost, "moved": moved, "lost": lost, "new": lost}
    )
    portrait = Portrayed("x/channel/1", "key", "picture", "manifest", verdict)
    return Facts(DIGEST, OTHER, dataset, (layer,), (portrait,))


@pytest.mark.parametrize(
    ("before", "now", "outcome", "value", "words"),
    [
        (facts(), facts(), PASSED, 0.0, "No layer has more units moved or lost than on n1."),
        (
            facts(moved=5),
            facts(moved=6),
            PASSED,
            0.01,
            "than on n1, but for 1.00% of its units at most.",
        ),
        (facts(moved=5), facts(moved=7), FAILED, 0.02, "x/channel has 7 of 100 units moved, had 5"),
        (facts(lost=5), facts(lost=2), PASSED, 0.0, "than on n1."),
        (facts(moved=9), facts(lost=9), FAILED, 0.09, "has 9 of 100 units lost, had 0"),
        (facts(), facts(lost=9, dataset="e"), IMPOSSIBLE, None, "The images are not those of n1"),
        (Facts(), facts(lost=9), IMPOSSIBLE, None, "this is the first"),
        (facts(), Facts(), IMPOSSIBLE, None, "Nothing was compared"),
    ],
)
def test_more_units_than_the_night_before_are_a_regression(
    before: Facts, now: Facts, outcome: Outcome, value: float | None, words: str
) -> None:
    """By more than the tolerance, each fate for itself; other images say nothing."""
    found = counts(now, Reference("n1", before), 0.01)

    assert (outcome, value) == (found.outcome, found.value)
    assert words in found.reason


@pytest.mark.parametrize(
    ("then", "now", "outcome"),
    [
        ("trusted", "trusted", PASSED),
        ("trusted", "weak", FAILED),
        ("trusted", "unreliable", FAILED),
        ("weak", "unreliable", PASSED),
        ("weak", "trusted", PASSED),
        ("", "weak", IMPOSSIBLE),
        ("trusted", "", IMPOSSIBLE),
    ],
)
def test_trust_that_is_lost_is_a_regression(then: str, now: str, outcome: Outcome) -> None:
    """Only trust: what was weak before is no news."""
    earlier = {"x/channel/1": Earlier("n1", facts(verdict=then).portraits[0])}

    assert outcome == verdict(facts(verdict=now), earlier).outcome


def test_trust_is_not_held_against_that_of_the_other_side() -> None:
    """A flag that watches the low side from now on has another portrait, which nobody has judged before."""
    (was,), (now,) = facts(verdict="trusted").portraits, facts(verdict="weak").portraits
    low = facts(verdict="weak")
    low = replace(low, portraits=(replace(now, negative=True),))

    assert IMPOSSIBLE == verdict(low, {was.feature: Earlier("n1", was)}).outcome


def test_a_portrait_that_comes_out_otherwise_fails() -> None:
    """One that could not be made says nothing, and is named."""
    same = Repeat("x/channel/1", "n1", "identical", 0.0, "p")
    close = replace(same, verdict="equal within 1/255", max_difference=1 / 255)
    other = replace(same, verdict="different", max_difference=40 / 255)
    gone = Repeat("x/channel/2", "n1", problem="it is gone")

    assert (PASSED, 1 / 255) == (
        reproduced([same, close], 3).outcome,
        reproduced([same, close], 3).value,
    )
    assert "3 portraits answered from the store prove nothing" in reproduced([same], 3).reason
    assert FAILED == reproduced([same, other], 0).outcome
    assert "differs from n1 by up to 40/255" in reproduced([other], 0).reason
    assert IMPOSSIBLE == reproduced([gone], 0).outcome
    assert "it is gone" in reproduced([gone], 0).reason


@pytest.mark.parametrize(
    ("digest", "served", "outcome", "words"),
    [
        (DIGEST, (DIGEST,), PASSED, "Revision aaaaaaaaaaaa is served"),
        (DIGEST, (OTHER,), FAILED, "audited was aaaaaaaaaaaa, but served is: bbbbbbbbbbbb"),
        (DIGEST, (DIGEST, OTHER), FAILED, "bbbbbbbbbbbb"),
        (DIGEST, ("release-7",), IMPOSSIBLE, "'release-7', which is no digest"),
        (DIGEST, (), IMPOSSIBLE, "No hook"),
        ("", (DIGEST,), IMPOSSIBLE, "No job could tell"),
    ],
)
def test_another_revision_than_the_audited_one_fails(
    digest: str, served: tuple[str, ...], outcome: Outcome, words: str
) -> None:
    """Where hooks say by digest what is served."""
    found = revision(digest, Served(served, 1))

    assert outcome == found.outcome
    assert words in found.reason


def test_a_revision_that_was_served_long_ago_says_nothing() -> None:
    """Nobody knows what is served now."""
    found = revision(DIGEST, Served((OTHER,), 1, lately=False))

    assert IMPOSSIBLE == found.outcome
    assert "No hook has sampled this model for a day" in found.reason


def test_a_flag_that_is_not_watched_or_drifts_fails() -> None:
    """The feature and what is the matter are named; without hooks or flags nothing can be said."""
    bad = live(Served((DIGEST,), 3, (("x/channel/1", "drifts"),)))

    assert (FAILED, 1.0) == (bad.outcome, bad.value)
    assert "1 of 3 flagged features: x/channel/1 drifts." == bad.reason
    assert PASSED == live(Served((DIGEST,), 3)).outcome
    assert [IMPOSSIBLE] * 2 == [live(one).outcome for one in (Served(), Served((DIGEST,), 0))]


def test_gates_and_artifacts_and_jobs() -> None:
    """What is broken, damaged or not done fails and is named; what is not there cannot be checked."""
    done, bad = JobEnd("compare-0", "1", "done"), JobEnd("portraits-0", "2", "failed", "SC804 late")

    assert IMPOSSIBLE == comparison("", None).outcome
    assert IMPOSSIBLE == comparison("b", None).outcome
    assert IMPOSSIBLE == comparison("b", Gate("", (), cached=False)).outcome
    assert PASSED == comparison("b", Gate("lost=0", (), cached=True)).outcome
    assert FAILED == comparison("b", Gate("lost=0", ("x: 1 of 2",), cached=False)).outcome
    assert IMPOSSIBLE == verified([]).outcome
    assert FAILED == verified([("a", ""), ("b" * 64, "content: other bytes")]).outcome
    assert PASSED == complete([done]).outcome
    assert "portraits-0 failed (SC804 late)" in complete([done, bad]).reason
    assert NightState.PASSED == state_of([complete([done])], [done])
    assert NightState.REGRESSED == state_of([complete([done, bad])], [done, bad])
    assert NightState.FAILED == state_of([], [bad])
    assert NightState.FAILED == state_of([], [])


@given(st.lists(st.text(min_size=1, max_size=5), max_size=12))
def test_a_list_in_words_names_few_and_counts_the_rest(items: list[str]) -> None:
    """None is lost without being counted."""
    text = listed(items)

    assert text.endswith(f"and {len(items) - 5} more") == (len(items) > 5)


def test_what_is_written_down_comes_back() -> None:
    """Plans, findings and checks, from their JSON."""
    chosen = (Chosen("x/channel/1", Reason.FIRED, negative=True),)
    plan = Plan("r", DIGEST, chosen, {"x": "m"}, jobs={"a": "b"})
    checks = (Check("counts", FAILED, 0.5, 0.01, "why"), Check("live", IMPOSSIBLE, None, None, ""))

    assert plan == decode_plan(encode(plan))
    assert Plan() == decode_plan(encode(Plan()))
    assert facts(moved=3) == decode_facts(encode(facts(moved=3)))
    assert checks == decode_checks(encode_checks(checks))
