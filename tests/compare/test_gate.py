"""What breaks a gate, and how a gate is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.compare import Rule, parse_rules
from sidecar.errors import InvalidInput

pytestmark = pytest.mark.unit

COUNTS = {"same": 90, "moved": 8, "lost": 2, "new": 3}

rules = st.builds(Rule, st.sampled_from(["moved", "lost", "new"]), st.integers(0, 999).map(float))


@given(rule=rules)
def test_a_rule_is_read_as_it_is_written(rule: Rule) -> None:
    """Its text form is the one people write."""
    assert (rule,) == parse_rules(str(rule))


def test_limits_are_counts_or_shares_and_nothing_where_none_is_said() -> None:
    """A fate alone forbids it."""
    found = parse_rules("lost, moved=5%,new=10")

    assert (Rule("lost"), Rule("moved", 0.05, share=True), Rule("new", 10.0)) == found
    assert () == parse_rules("")


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("lost", "2 of 100 units lost (2.0%), allowed: 0"),
        ("lost=2", ""),
        ("lost=1", "2 of 100 units lost (2.0%), allowed: 1"),
        ("moved=8%", ""),
        ("moved=7.5%", "8 of 100 units moved (8.0%), allowed: 7.5 %"),
        ("new=3", ""),
    ],
)
def test_a_layer_breaks_a_rule_by_more_than_its_limit(text: str, broken: str) -> None:
    """Exactly the limit is allowed."""
    (rule,) = parse_rules(text)

    assert broken == rule.broken(COUNTS, 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("same", "fate 'same' is unknown: use one of moved, lost, new"),
        ("lost=few", "limit 'few' of lost is neither a whole number nor a percentage"),
        ("lost=1.5", "neither a whole number"),
        ("moved=120%", "limit 120% of moved is out of range"),
        ("moved=nan%", "limit nan% of moved is out of range"),
        ("lost=-1", "limit -1 of lost is out of range"),
        ("lost,lost=3", "lost is there twice"),
    ],
)
def test_what_is_no_rule_is_refused_in_words(text: str, words: str) -> None:
    """The fate, the limit and the repetition are each named."""
    with pytest.raises(InvalidInput, match=words):
        parse_rules(text)
