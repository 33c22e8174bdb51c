import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import SidecarError
from sidecar.features import FeatureKind, LayerKey, Request, Slice, View
from sidecar.wire import (
    Batch,
    Hello,
    HookReport,
    OutgoingBatch,
    OutgoingTensor,
    RegisterLayer,
    StreamDecoder,
    encode_request,
)
from sidecar.wire.v1 import ingest_pb2 as pb

pytestmark = pytest.mark.unit

WIDTH = 4
LAYER = LayerKey("m", "r", "layer.1", FeatureKind.NEURON, View.RAW)
VALUES = Hello | RegisterLayer | Batch | HookReport


def valid_messages() -> list[bytes]:
    """Return one good message of each sort, in the order of a stream."""
    rows = np.arange(3 * WIDTH, dtype="<f4").tobytes()
    report = HookReport(3, 2, 1, {"queue_full": 4}, 5, 0.1, 0.2, 0.3)
    requests = (Request("a", Slice.of({"k": "v"}), 2.0), Request("b"))
    batch = OutgoingBatch(
        1,
        (OutgoingTensor(1, "f32", (3, WIDTH), rows),),
        requests,
        np.array([0, 0, 1]),
        report,
    )
    return [
        encode_request(v) for v in (Hello("m", "r"), RegisterLayer(1, LAYER, WIDTH), batch, report)
    ]


def ready() -> StreamDecoder:
    """Return a decoder in the middle of its stream."""
    stream = StreamDecoder(width_limit=64, message_limit_bytes=1 << 16, layer_limit=8)
    for data in valid_messages()[:2]:
        stream.decode(data)
    return stream


def check(stream: StreamDecoder, data: bytes) -> None:
    """Decode, and insist on a sound value or an error of our own."""
    try:
        value = stream.decode(data)
    except SidecarError:
        return
    assert isinstance(value, VALUES)
    if isinstance(value, Batch):
        for sample in value.samples:
            assert sample.values.dtype == np.float32
            assert sample.values.shape == (sample.request_index.size, WIDTH)
            assert np.all(sample.request_index < len(value.requests))
        assert all(request.weight >= 1.0 for request in value.requests)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid message with some bytes changed, removed, inserted, or cut off."""
    data = bytearray(draw(st.sampled_from(valid_messages())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["flip", "delete", "insert", "cut", "double"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "delete":
            del data[at : at + draw(st.integers(1, 8))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif how == "cut":
            del data[at:]
        else:
            data += data[at:]
    return bytes(data)


numbers = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
enums = st.one_of(st.integers(0, 8), st.integers(-(2**31), 2**31 - 1))
texts = st.text(st.characters(codec="utf-8"), max_size=8)
tensors = st.builds(
    lambda layer_id, dtype, shape, payload: pb.LayerTensor(
        layer_id=layer_id, dtype=dtype, shape=shape, payload=payload
    ),
    st.integers(0, 2),
    enums,
    st.lists(st.one_of(st.sampled_from([1, 2, WIDTH]), numbers), max_size=4),
    st.one_of(st.sampled_from([bytes(16), bytes(32), bytes(8)]), st.binary(max_size=40)),
)
requests = st.builds(
    lambda i, s, w: pb.SampledRequest(id=i, slice=s, weight=w),
    texts,
    st.integers(0, 3),
    st.floats(width=32),
)
slices = st.builds(lambda p: pb.TrafficSlice(pairs=p), st.dictionaries(texts, texts, max_size=3))
batches = st.builds(
    lambda n, t, r, i, s, each: pb.StreamRequest(
        batch=pb.ActivationBatch(
            sequence=n, tensors=t, requests=r, request_index=i, slices=s, rows_per_request=each
        )
    ),
    numbers,
    st.lists(tensors, max_size=3),
    st.lists(requests, max_size=4),
    st.lists(st.integers(0, 4), max_size=4),
    st.lists(slices, max_size=2),
    st.sampled_from([0, 0, 1, 2, 2**32 - 1]),
)
registers = st.builds(
    lambda i, n, k, v, s, w: pb.StreamRequest(
        register_layer=pb.RegisterLayer(layer_id=i, layer=n, kind=k, view=v, scope=s, width=w)
    ),
    numbers,
    st.one_of(texts, st.just("layer.1")),
    enums,
    enums,
    enums,
    numbers,
)


@settings(max_examples=400)
@given(st.lists(damaged(), min_size=1, max_size=4))
def test_damaged_messages_only_raise_our_errors(stream_data: list[bytes]) -> None:
    """Whatever happens to the bytes on the way, the daemon sees a value or a SidecarError."""
    stream = ready()

    for data in stream_data:
        check(stream, data)


@settings(max_examples=300)
@given(st.lists(st.one_of(batches, registers), min_size=1, max_size=4))
def test_well_formed_lies_only_raise_our_errors(messages: list[pb.StreamRequest]) -> None:
    """Messages that parse but contradict themselves are refused, never crash the decoder."""
    stream = ready()

    for message in messages:
        check(stream, message.SerializeToString())


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_only_raise_our_errors(data: bytes) -> None:
    """Random bytes are refused, before and after the hello."""
    check(StreamDecoder(), data)
    check(ready(), data)


def test_every_truncation_of_every_message_is_handled() -> None:
    """A message cut anywhere gives a value or one of our errors."""
    for data in valid_messages():
        for length in range(len(data)):
            check(ready(), data[:length])
