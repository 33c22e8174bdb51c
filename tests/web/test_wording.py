import math
import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.detect import Condition, Detector, State
from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor import FeatureStatus, Flag
from sidecar.web import wording

pytestmark = pytest.mark.unit

KEY = FeatureKey(LayerKey("lite0", "ab" * 32, "_blocks.14"), 33)


def status(state: State, *, now: float = 0.08, usual: float = 0.001, threshold: float = 4.7) -> Any:
    """Return a flagged feature in some state."""
    flag = Flag("stripes")
    return FeatureStatus(KEY, flag, state, 1.0, 640, now, usual, threshold, 9.0, "")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_is_short_and_reads_back(value: float) -> None:
    """Whatever was measured, the text has few characters and is within three digits of it."""
    text = wording.number(value)

    assert len(text) <= 11
    if abs(value) < 1e308:  # beyond it three digits round up to infinity
        read = float(text.replace("\u2212", "-").replace(",", ""))
        assert math.isclose(read, value, rel_tol=6e-3, abs_tol=1e-320)


@given(st.floats(0, 1))
def test_a_share_never_reads_as_all_or_nothing_unless_it_is(ratio: float) -> None:
    """Rounding turns neither a rare event into none nor nearly all into all."""
    text = wording.percent(ratio)

    assert (text == "0 %") == (ratio == 0)
    assert (text == "100 %") == (ratio == 1)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_never_reads_as_a_smaller_one(first: float, second: float) -> None:
    """Percentages keep the order of the shares they stand for."""
    low, high = sorted((first, second))
    values = [float(wording.percent(r).strip("<> %")) for r in (low, high)]

    assert values[0] <= values[1] or wording.percent(high).startswith(">")


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_any_age_has_words(at: float, now: float) -> None:
    """A clock that jumped makes an odd age, not an error."""
    assert wording.age(at, now)
    assert wording.moment(at)
    assert wording.iso(at).endswith("Z")


@given(st.text(max_size=40))
def test_a_command_line_survives_the_shell(word: str) -> None:
    """What is pasted arrives as one argument."""
    assert ["sidecar", word] == shlex.split(wording.command("sidecar", word))


def test_the_verdict_of_a_firing_feature_names_the_numbers() -> None:
    """A reader learns how much, of how many, against what."""
    text = wording.verdict(status(State.FIRING))

    assert "8 % of the last 640 requests exceed 4.7, against 0.1 %" in text
    assert text.endswith("80 times as often.")


def test_without_a_baseline_no_verdict_is_claimed() -> None:
    """NaN for a threshold is told as what it is."""
    text = wording.verdict(status(State.NORMAL, threshold=math.nan))

    assert text.startswith("No baseline yet")


def test_a_normal_feature_is_not_called_more_frequent() -> None:
    """A wobble within the baseline is not dressed up as a factor."""
    assert "times as often" not in wording.verdict(status(State.NORMAL, now=0.0016))


def test_what_is_certain_leads_the_verdict_and_the_headline() -> None:
    """A stuck feature is no normal one, whatever its rate of exceedances."""
    stuck = replace(status(State.NORMAL), conditions=("saturated",), drifting=True)

    assert ("saturated", "drifting") == wording.concerns(stuck)
    assert "saturated, drifting" == wording.headline(stuck)
    assert wording.verdict(stuck).startswith("Saturated: it gives the same value")
    assert "drifts away from its baseline. Does not spike: 8 %" in wording.verdict(stuck)
    assert "firing, silent" == wording.headline(
        replace(status(State.FIRING), conditions=("silent",))
    )


def test_the_verdict_tells_the_side_a_feature_is_watched_on() -> None:
    """Requests below a lower threshold did not exceed it upwards."""
    calm = replace(status(State.NORMAL, now=0.344), low_threshold=-2.0)
    below = replace(calm, direction="below", threshold=0.709, low_threshold=0.709)

    assert "requests were below 0.709, against" in wording.verdict(below)
    assert "requests were above 4.7 or below \u22122," in wording.verdict(
        replace(calm, direction="both")
    )
    assert math.isnan(wording.upper(below))
    assert "above 4.7" == wording.beyond(calm)


def test_a_flag_without_the_spike_test_leaves_nothing_unknown() -> None:
    """What is not asked for is not said to lack requests."""
    flag = Flag("stripes", detectors=(Detector.CONDITIONS, Detector.DRIFT))
    found = replace(
        status(State.UNKNOWN), flag=flag, explanation="its flag does not ask for the spike test"
    )

    assert wording.UNJUDGED == wording.headline(found)
    assert "asks for conditions and drift alone." in wording.verdict(found)
    assert not wording.happened(found)
    assert "silent" == wording.headline(replace(found, conditions=("silent",)))


def test_an_unknown_feature_says_why_once() -> None:
    """The reason of now stands in the sentence, and not below it as one of then."""
    found = replace(status(State.UNKNOWN), explanation="too many beyond: raise spike.quantile")

    assert wording.verdict(found).endswith("now: too many beyond: raise spike.quantile.")
    assert not wording.happened(found)
    assert "because" == wording.happened(replace(status(State.NORMAL), explanation="because"))


def test_every_condition_has_words_of_its_own() -> None:
    """A condition that the detector learns to tell is not shown by its bare name."""
    for name in Condition:
        found = replace(status(State.NORMAL), conditions=(name.value,))

        assert not wording.verdict(found).lower().startswith(f"{name.value.replace('_', ' ')}. ")


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("now", [math.nan, 0.0, 1.0])
@pytest.mark.parametrize("usual", [math.nan, 0.0, 0.5])
def test_every_state_has_a_sentence(state: State, now: float, usual: float) -> None:
    """No mixture of unknown numbers breaks the page."""
    assert wording.verdict(status(state, now=now, usual=usual)).endswith(".")


def test_a_short_key_leads_back_to_its_feature() -> None:
    """Only the revision is cut, and the rest still parses."""
    short = FeatureKey.parse(wording.short_key(KEY))

    assert ("_blocks.14", 33) == (short.layer.layer, short.index)
    assert KEY.layer.revision.startswith(short.layer.revision)
    assert 12 == len(short.layer.revision)


def test_a_revision_inside_the_layer_name_is_left_alone() -> None:
    """Cutting the revision touches the revision only."""
    digest = "abcdefabcdefabcd" * 4
    key = FeatureKey(LayerKey("m", digest, digest), 1)

    assert f"m@abcdefabcdef/{digest}/channel/1" == wording.short_key(key)


def test_a_revision_that_people_named_is_shown_whole() -> None:
    """Two names that begin alike stay two."""
    key = FeatureKey(LayerKey("m", "production-2026-11", "conv"), 1)

    assert "m@production-2026-11/conv/channel/1" == wording.short_key(key)


def test_a_picture_beyond_all_live_values_says_so() -> None:
    """A synthetic picture far above the observed maximum is told as usual, with the factor."""
    text = wording.reached(61.0, 100.0, 6.1, 12_000, "baseline")

    assert "10\u00d7 the greatest of 12,000 live values (baseline), which is 6.1" in text


def test_a_picture_above_a_negative_maximum_has_no_factor() -> None:
    """A ratio to a negative number would be nonsense."""
    assert ", above the greatest" in wording.reached(1.0, 100.0, -2.0, 10, "")


@pytest.mark.parametrize("method", ["dataset_examples", "attribution", "comparison"])
def test_sheets_of_images_are_not_called_computed(method: str) -> None:
    """What shows photographs must not say that it shows none."""
    assert "not a photograph" not in wording.made(method)
    assert wording.stamp(method, None) == "With images"
    assert wording.stamp(method, "unreliable") == "With images, unreliable"


@pytest.mark.parametrize("method", ["activation_maximisation", "deep_dream", None])
def test_computed_pictures_are_called_so(method: str | None) -> None:
    """Also where the manifest does not say how it was made."""
    assert "not a photograph" in wording.made(method)
    assert wording.stamp(method, "trusted") == "Synthetic"
