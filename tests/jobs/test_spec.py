"""What runner and child say to each other survives the pipe, and nonsense does not."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import CorruptState
from sidecar.features import FeatureKey
from sidecar.jobs import JobRequest, LiveContext
from sidecar.jobs.spec import (
    DoneEvent,
    Event,
    FailureEvent,
    JobSpec,
    ModelSpec,
    PreviewEvent,
    ProgressEvent,
    ResultEvent,
    decode_event,
    decode_request,
    decode_spec,
    encode_event,
    encode_request,
    encode_spec,
)
from sidecar.recipes import Maximisation, Target

pytestmark = pytest.mark.unit

TARGETS = (
    Target(FeatureKey.parse("m@r/_blocks.2/channel/3")),
    Target(FeatureKey.parse("m@r/_blocks.2/neuron/7;abs"), (2, 5)),
)

events = st.one_of(
    st.builds(ProgressEvent, st.integers(), st.integers(), st.text()),
    st.builds(PreviewEvent, st.text()),
    st.builds(ResultEvent, st.integers(), st.text(), st.text()),
    st.builds(DoneEvent),
    st.builds(FailureEvent, st.text(), st.text(), st.booleans()),
)


@given(event=events)
def test_an_event_is_one_line_and_comes_back(event: Event) -> None:
    """Whatever text is in it, line ends included."""
    line = encode_event(event)

    assert 1 == line.count(b"\n")
    assert event == decode_event(line)


@given(line=st.binary())
def test_other_bytes_are_no_event(line: bytes) -> None:
    """Random bytes are an error in words, never another exception."""
    with pytest.raises(CorruptState):
        decode_event(line)


@pytest.mark.parametrize(
    "document",
    [
        [],
        7,
        None,
        {},
        {"event": "dance"},
        {"event": []},
        {"event": "done", "more": 1},
        {"event": "progress", "step": 1, "steps": 2},
        {"event": "progress", "step": "1", "steps": 2, "message": ""},
        {"event": "progress", "step": True, "steps": 2, "message": ""},
        {"event": "progress", "step": 1.5, "steps": 2, "message": ""},
        {"event": "failure", "code": "SC1", "message": None, "retry": False},
    ],
)
def test_events_of_another_shape_are_refused(document: object) -> None:
    """Unknown names, missing and extra values, and other types."""
    with pytest.raises(CorruptState):
        decode_event(json.dumps(document).encode())


def spec(**live: LiveContext) -> JobSpec:
    """Return a specification with everything in it."""
    model = ModelSpec("m", "a.b:c", "/w.pt", 224, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    recipe = Maximisation(steps=3, seed=2**63 - 1)
    return JobSpec("id", 2, "alert", 42, TARGETS, recipe, model, "cuda:1", live)


def test_a_specification_comes_back() -> None:
    """Targets, recipe, model and device are as they were."""
    assert spec() == decode_spec(encode_spec(spec()))


def test_a_live_distribution_comes_back() -> None:
    """Arrays keep their values and types, NaN included, and the digest of the ranges."""
    low = np.array([0.1, np.nan, -3.0e38], np.float32)
    live = LiveContext(
        np.array([0.5, 0.9]),
        np.array([1.0, np.nan]),
        7,
        math.nan,
        2.5,
        "history",
        1.0,
        2.0,
        low,
        low,
    )

    found = decode_spec(encode_spec(spec(x=live))).live["x"]

    assert found.typical_low is not None
    assert np.float32 == found.typical_low.dtype
    np.testing.assert_array_equal(low, found.typical_low)
    np.testing.assert_array_equal(live.values, found.values)
    assert live.typical_digest == found.typical_digest != ""
    assert math.isnan(found.minimum)
    assert (7, 2.5, "history", 2.0) == (found.count, found.maximum, found.window, found.ended)


def test_without_ranges_there_is_no_digest() -> None:
    """One end alone is none."""
    low = np.zeros(2, np.float32)

    assert "" == LiveContext(low, low, 1, 0.0, 1.0, "w", typical_low=low).typical_digest


@given(line=st.binary())
def test_other_bytes_are_no_specification(line: bytes) -> None:
    """The child refuses random bytes in words."""
    with pytest.raises(CorruptState):
        decode_spec(line)


@given(
    seed=st.integers(0, 2**63 - 1),
    origin=st.text(max_size=20),
    limit=st.floats(0, 1e9),
    steps=st.integers(1, 10_000),
)
def test_a_request_comes_back(seed: int, origin: str, limit: float, steps: int) -> None:
    """Through the job table and back."""
    request = JobRequest(TARGETS, Maximisation(seed=seed, steps=steps), origin, "key", limit)

    assert request == decode_request(encode_request(request))


@given(text=st.text())
def test_other_text_is_no_request(text: str) -> None:
    """A damaged row is an error in words."""
    with pytest.raises(CorruptState):
        decode_request(text)
