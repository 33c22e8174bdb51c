import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.detect import Detector, Direction
from sidecar.errors import InvalidInput
from sidecar.features import Slice
from sidecar.monitor import COMMON_FACTOR, Flag, Watching

pytestmark = pytest.mark.unit

WATCHINGS = st.builds(
    Watching,
    st.none() | st.just(COMMON_FACTOR) | st.floats(1.001, 100),
    st.none() | st.sampled_from(Direction),
    st.none() | st.sampled_from([Slice(), Slice.of({"route": "/eu", "tenant": "a"})]),
    st.none() | st.sampled_from([(Detector.SPIKE,), tuple(Detector)]),
)
FLAGS = st.builds(
    Flag,
    factor=st.none() | st.floats(1.001, 100),
    direction=st.sampled_from(Direction),
    detectors=st.sampled_from([(Detector.SPIKE,), tuple(Detector)]),
)


@given(watching=WATCHINGS)
def test_what_is_stored_comes_back(watching: Watching) -> None:
    """And what says nothing is stored as nothing."""
    assert watching == Watching.decode(watching.encode())
    assert (watching == Watching()) is (watching.encode() == "")
    assert (watching == Watching()) is (str(watching) == "")


@given(watching=WATCHINGS, common=FLAGS)
def test_what_is_so_anyway_need_not_be_said(watching: Watching, common: Flag) -> None:
    """The feature is watched the same, and follows the configuration in the rest."""
    kept = watching.beside(common)

    assert watching.over(common) == kept.over(common)
    assert Watching() == kept.beside(kept.over(common))


@given(earlier=WATCHINGS, later=WATCHINGS, common=FLAGS)
def test_the_later_word_counts(earlier: Watching, later: Watching, common: Flag) -> None:
    """Whatever it leaves out is as the earlier one has it."""
    assert later.over(earlier.over(common)) == later.after(earlier).over(common)


def test_words_become_values() -> None:
    """As people write them on a command line or in a form."""
    found = Watching.of(2.5, "both", "tenant=a, route=/eu", ["drift", "spike"])

    assert (2.5, Direction.BOTH) == (found.factor, found.direction)
    assert Slice.of({"route": "/eu", "tenant": "a"}) == found.traffic
    assert (Detector.SPIKE, Detector.DRIFT) == found.detectors
    assert "factor 2.5, both, on route=/eu,tenant=a, for spike and drift" == str(found)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"factor": 1.0}, "factor 1: use a number above 1"),
        ({"factor": math.nan}, "factor nan"),
        ({"factor": math.inf}, "factor inf"),
        ({"direction": "up"}, "direction 'up': use one of above, below, both"),
        ({"traffic": "eu"}, "slice 'eu': use key=value pairs"),
        ({"traffic": "a=1,a=2"}, "a is there twice"),
        ({"traffic": "a="}, "slice a=''"),
        ({"detectors": ["spikes"]}, "detector 'spikes': use any of spike"),
        ({"detectors": ["spike", "spike"]}, "name each once"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(given_: dict[str, Any], named: str) -> None:
    """With what may be used instead."""
    with pytest.raises(InvalidInput, match=named):
        Watching.of(**given_)


@pytest.mark.parametrize("text", ["[]", "{", '{"factor": "x"}', '{"detectors": 3}', '{"slice": 1}'])
def test_damaged_text_is_refused(text: str) -> None:
    """Whoever reads it passes the row over."""
    with pytest.raises(InvalidInput):
        Watching.decode(text)
