from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import errors
from sidecar.features import FeatureKind, LayerKey, Request, SparseSample
from sidecar.wire import (
    Batch,
    Hello,
    OutgoingBatch,
    OutgoingSparse,
    OutgoingTensor,
    RegisterLayer,
    StreamDecoder,
    encode_request,
)
from sidecar.wire.v1 import ingest_pb2 as pb

pytestmark = pytest.mark.unit

SAE = LayerKey("m", "r", "sae", FeatureKind.LATENT)
DENSE = LayerKey("m", "r", "fc", FeatureKind.LATENT)
WIDTH = 1 << 20
SPLITS, LATENTS = np.array([0, 2, 2, 3]), np.array([7, WIDTH - 1, 0])
VALUES = np.array([0.5, 1.5, 3.0], np.float32)


def decoder() -> StreamDecoder:
    """Return a decoder that has seen a sparse layer 1 and a dense layer 2 of three features."""
    stream = StreamDecoder()
    for value in (
        Hello("m", "r"),
        RegisterLayer(1, SAE, WIDTH, sparse=True),
        RegisterLayer(2, DENSE, 3),
    ):
        stream.decode(encode_request(value))
    return stream


def batch(dtype: str = "f32", values: bytes = VALUES.tobytes()) -> bytes:
    """Return a batch of three rows of the sparse layer and of the dense one."""
    tensor = OutgoingTensor(2, "f32", (3, 3), bytes(36))
    sparse = OutgoingSparse(1, dtype, SPLITS, LATENTS, values)
    requests = tuple(Request(name) for name in "abc")
    return encode_request(OutgoingBatch(1, (tensor,), requests, sparse=(sparse,)))


def message(number: int = 5, **changes: Any) -> bytes:
    """Return a valid batch of three sparse rows, with some fields of the tensor changed."""
    tensor = pb.SparseLayerTensor(
        layer_id=1,
        dtype=pb.DTYPE_F32,
        row_splits=SPLITS.astype("<u4").tobytes(),
        latents=LATENTS.astype("<u4").tobytes(),
        values=VALUES.tobytes(),
    )
    for name, value in changes.items():
        setattr(tensor, name, value)
    requests = [pb.SampledRequest(id=name) for name in "abc"]
    body = pb.ActivationBatch(sequence=number, requests=requests, sparse=[tensor])
    return pb.StreamRequest(batch=body).SerializeToString()


def numbers(*values: int) -> bytes:
    """Return numbers as they are on the wire."""
    return np.array(values, "<u4").tobytes()


def test_a_sparse_registration_survives_the_wire() -> None:
    """A dictionary of a million latents is wider than any dense layer may be."""
    wanted = RegisterLayer(1, SAE, WIDTH, sparse=True)

    assert wanted == decoder().layers[1]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("f32", VALUES),
        ("f16", VALUES.astype("<f2")),
        ("bf16", (VALUES.view("<u4") >> 16).astype("<u2")),
    ],
)
def test_sparse_rows_survive_the_wire(dtype: str, values: np.ndarray) -> None:
    """Rows, latents and values arrive as sent, beside dense ones, and are charged for."""
    found = decoder().decode(batch(dtype, values.tobytes()))

    assert isinstance(found, Batch)
    sparse, dense = found.samples
    assert isinstance(sparse, SparseSample)
    assert (SAE, WIDTH, DENSE) == (sparse.layer, sparse.width, dense.layer)
    assert SPLITS.tolist() == sparse.row_splits.tolist()
    assert LATENTS.tolist() == sparse.latents.tolist()
    assert values.tolist() == sparse.values.tolist()
    assert [0, 1, 2] == sparse.request_index.tolist()
    assert 4 * 4 + 3 * 4 + values.nbytes + 36 == found.payload_bytes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layer_id": 9}, errors.UnregisteredLayer),
        ({"layer_id": 2}, errors.MalformedMessage),
        ({"dtype": 0}, errors.UnsupportedDtype),
        ({"values": bytes(8)}, errors.PayloadMismatch),
        ({"values": bytes(13)}, errors.PayloadMismatch),
        ({"latents": bytes(11)}, errors.PayloadMismatch),
        ({"latents": numbers(7, 8)}, errors.PayloadMismatch),
        ({"latents": numbers(7, 7, 0)}, errors.MalformedMessage),
        ({"latents": numbers(8, 7, 0)}, errors.MalformedMessage),
        ({"latents": numbers(7, WIDTH, 0)}, errors.ShapeMismatch),
        ({"latents": numbers(7, 2**32 - 1, 0)}, errors.ShapeMismatch),
        ({"row_splits": b""}, errors.ShapeMismatch),
        ({"row_splits": numbers(0, 2, 3)}, errors.ShapeMismatch),
        ({"row_splits": numbers(0, 2, 2, 3, 3)}, errors.ShapeMismatch),
        ({"row_splits": numbers(0, 2, 1, 3)}, errors.MalformedMessage),
        ({"row_splits": numbers(1, 2, 2, 3)}, errors.MalformedMessage),
        ({"row_splits": numbers(0, 2, 2, 2)}, errors.MalformedMessage),
        ({"row_splits": numbers(0, 2, 2, 2**32 - 1)}, errors.MalformedMessage),
        ({"row_splits": bytes(15)}, errors.ShapeMismatch),
    ],
)
def test_sparse_rows_that_lie_are_refused(changes: Any, error: type[errors.SidecarError]) -> None:
    """Lengths, order, range and dtype are checked, and the refusal names the batch."""
    stream = decoder()

    with pytest.raises(error) as refusal:
        stream.decode(message(**changes))

    assert 5 == refusal.value.sequence
    assert isinstance(stream.decode(message(number=6)), Batch)


def test_a_sparse_layer_is_of_latents_and_bounded() -> None:
    """Another kind, or more latents than any dictionary has, is refused."""
    stream = StreamDecoder()
    stream.decode(encode_request(Hello("m", "r")))
    channels = LayerKey("m", "r", "conv", FeatureKind.CHANNEL)

    with pytest.raises(errors.MalformedMessage, match="use latent"):
        stream.decode(encode_request(RegisterLayer(1, channels, 4, sparse=True)))
    with pytest.raises(errors.ShapeMismatch, match=str(WIDTH)):
        stream.decode(encode_request(RegisterLayer(1, SAE, WIDTH + 1, sparse=True)))


def test_a_sparse_layer_takes_no_dense_rows() -> None:
    """A layer is one or the other."""
    tensor = OutgoingTensor(1, "f32", (1, 3), bytes(12))

    with pytest.raises(errors.MalformedMessage, match="as sparse"):
        decoder().decode(encode_request(OutgoingBatch(1, (tensor,), (Request(),))))


def test_a_layer_is_in_a_batch_once() -> None:
    """Two tensors of one layer would count its requests twice."""
    sparse = OutgoingSparse(1, "f32", SPLITS, LATENTS, VALUES.tobytes())
    twice = OutgoingBatch(1, (), tuple(Request() for _ in range(3)), sparse=(sparse, sparse))

    with pytest.raises(errors.MalformedMessage, match="twice"):
        decoder().decode(encode_request(twice))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_sparse_batches_are_sound_or_refused(data: st.DataObject) -> None:
    """Whatever bytes come, a sample that is let through is safe to count with."""
    payload = bytearray(batch())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(payload), len(payload) // 2]))

    try:
        found = decoder().decode(bytes(payload[:cut]))
    except errors.SidecarError:
        return

    for sample in found.samples if isinstance(found, Batch) else ():
        if isinstance(sample, SparseSample):
            assert sample.latents.max(initial=0) < sample.width == WIDTH
            assert len(sample.latents) == len(sample.values) == sample.row_splits[-1]
            assert len(sample.request_index) + 1 == len(sample.row_splits)
