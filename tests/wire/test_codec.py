import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import MalformedMessage, SidecarError
from sidecar.wire import (
    Acknowledgement,
    Refusal,
    Steering,
    Welcome,
    decode_response,
    encode_response,
)
from sidecar.wire.v1 import ingest_pb2 as pb

pytestmark = pytest.mark.unit

Response = Welcome | Acknowledgement | Steering | Refusal

counts = st.integers(0, 2**64 - 1)
rates = st.floats(0.0, 1.0)
responses = st.one_of(
    st.builds(Welcome, counts, counts, rates),
    st.builds(Acknowledgement, counts, counts),
    st.builds(Steering, rates, st.text(st.characters(codec="utf-8"))),
    st.builds(Refusal, counts, *[st.text(st.characters(codec="utf-8"))] * 3),
)


@given(responses)
def test_every_answer_survives_the_wire(value: Response) -> None:
    """What the daemon says is what the hooks hear, the kill switch's rate of 0 included."""
    assert value == decode_response(encode_response(value))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    """No bytes make the hooks' decoder raise anything but the sidecar's own errors."""
    try:
        value = decode_response(data)
    except SidecarError:
        return
    assert isinstance(value, Response)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    """A hook never follows a rate outside 0 to 1."""
    steering = pb.StreamResponse(steering=pb.Steering(sampling_rate=rate))

    with pytest.raises(MalformedMessage):
        decode_response(steering.SerializeToString())


def test_an_answer_of_a_later_version_is_refused() -> None:
    """A body this version does not know is an error, not a crash."""
    with pytest.raises(MalformedMessage):
        decode_response(b"\x7a\x02hi")
