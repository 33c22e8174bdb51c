from typing import Any

import numpy as np
import pytest

from sidecar import errors
from sidecar.features import (
    Capture,
    FeatureKind,
    LayerKey,
    Request,
    Scope,
    Slice,
    View,
)
from sidecar.wire import (
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

HELLO = Hello(
    "lite0", "3fa1", Capture("server 1.0", "float32", compiled=True, tap="torch"), "host-7", "0.1.0"
)
LAYER = LayerKey("lite0", "3fa1", "_blocks.14", FeatureKind.CHANNEL, View.MAX)
REPORT = HookReport(10, 5, 4, {"queue_full": 1}, 2, 0.5, 10.0, 0.25, 3, 0.01)


def decoder(width: int = 3, **limits: int) -> StreamDecoder:
    """Return a decoder that has seen a hello and one layer."""
    stream = StreamDecoder(**limits)
    stream.decode(encode_request(HELLO))
    stream.decode(encode_request(RegisterLayer(1, LAYER, width)))
    return stream


def tensor(rows: int = 2, width: int = 3) -> OutgoingTensor:
    """Return a tensor of ones."""
    return OutgoingTensor(1, "f32", (rows, width), np.ones(rows * width, "<f4").tobytes())


def message(**changes: Any) -> bytes:
    """Return a valid batch message of two rows, with some fields of it changed."""
    batch = pb.ActivationBatch(
        sequence=1,
        tensors=[pb.LayerTensor(layer_id=1, dtype=1, shape=(2, 3), payload=bytes(24))],
        requests=[pb.SampledRequest(id="a"), pb.SampledRequest(id="b")],
    )
    for name, value in changes.items():
        batch.ClearField(name)
        if isinstance(value, list):
            getattr(batch, name).extend(value)
        else:
            setattr(batch, name, value)
    return pb.StreamRequest(batch=batch).SerializeToString()


def test_a_hello_survives_the_wire() -> None:
    """What a sender says of itself arrives as it was said."""
    assert StreamDecoder().decode(encode_request(HELLO)) == HELLO


@pytest.mark.parametrize("kind", FeatureKind)
@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("scope", Scope)
def test_every_sort_of_layer_survives_the_wire(kind: FeatureKind, view: View, scope: Scope) -> None:
    """Every kind, view and scope has a wire value of its own."""
    stream = StreamDecoder()
    stream.decode(encode_request(HELLO))
    expected = RegisterLayer(7, LayerKey("lite0", "3fa1", "x", kind, view, scope), 12)

    assert expected == stream.decode(encode_request(expected))
    assert {7: expected} == dict(stream.layers)


def test_a_batch_survives_the_wire() -> None:
    """Rows, requests, slices, weights and the report arrive as they were sent."""
    values = np.array([[1, np.nan, 3], [np.inf, 5, -6], [7, 8, 9]], np.float32)
    requests = (
        Request("r-1", Slice.of({"route": "/v1", "canary": "no"}), 4.0),
        Request("", Slice(), 1.0),
    )
    sent = OutgoingBatch(
        5,
        (OutgoingTensor(1, "f32", (3, 3), memoryview(values.tobytes())),),
        requests,
        np.array([0, 0, 1]),
        REPORT,
    )

    batch = decoder().decode(encode_request(sent))

    (sample,) = batch.samples
    assert (5, 36, REPORT, requests) == (
        batch.sequence,
        batch.payload_bytes,
        batch.report,
        batch.requests,
    )
    assert sample.layer == LAYER
    assert np.array_equal(values, sample.values, equal_nan=True)
    assert [0, 0, 1] == sample.request_index.tolist()
    assert sample.request_index.dtype == np.int32


def test_rows_without_an_index_belong_to_the_request_of_their_number() -> None:
    """An empty request_index means row i is request i, and a weight of 0 reads as 1."""
    batch = decoder().decode(message())

    assert [0, 1] == batch.samples[0].request_index.tolist()
    assert [1.0, 1.0] == [request.weight for request in batch.requests]


def test_requests_with_equally_many_rows_need_no_index() -> None:
    """One number says whose rows they are, and one layout after another is understood."""
    stream = decoder()
    found = []
    for sequence, rows in enumerate((3, 3, 1, 2), start=1):
        tensor = OutgoingTensor(1, "f32", (2 * rows, 3), bytes(24 * rows))
        sent = OutgoingBatch(
            sequence, (tensor,), (Request("a"), Request("b")), rows_per_request=rows
        )
        found.append(stream.decode(encode_request(sent)).samples[0].request_index)

    expected = [[0] * rows + [1] * rows for rows in (3, 3, 1, 2)]
    assert expected == [index.tolist() for index in found]
    assert {np.dtype(np.int32)} == {index.dtype for index in found}


def test_a_layout_that_is_shared_cannot_be_written_to() -> None:
    """Batches of one layout have one index, which nobody may change for the others."""
    index = decoder().decode(message()).samples[0].request_index

    with pytest.raises(ValueError, match="read-only"):
        index[0] = 1


def test_a_claim_of_many_rows_takes_no_memory() -> None:
    """A number in a few bytes must not make the daemon build an index of gigabytes."""
    tensor = pb.LayerTensor(layer_id=1, dtype=1, shape=(2**32 - 2, 3))
    claim = message(tensors=[tensor], rows_per_request=2**31 - 1)

    with pytest.raises(errors.ShapeMismatch, match="rows_per_request"):
        decoder().decode(claim)


def test_views_and_scopes_left_out_have_their_defaults() -> None:
    """A client that names neither view nor scope gets the kind's."""
    stream = StreamDecoder()
    stream.decode(encode_request(HELLO))
    register = pb.RegisterLayer(layer_id=1, layer="l", kind=pb.FEATURE_KIND_HEAD, width=4)

    registered = stream.decode(pb.StreamRequest(register_layer=register).SerializeToString())

    assert (View.MEAN, Scope.ALL) == (registered.layer.view, registered.layer.scope)


def test_reports_need_no_batch() -> None:
    """A hook that samples nothing still reports."""
    assert decoder().decode(encode_request(REPORT)) == REPORT


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"tensors": [pb.LayerTensor(layer_id=2, dtype=1, shape=(2, 3), payload=bytes(24))]},
            errors.UnregisteredLayer,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=0, shape=(2, 3), payload=bytes(24))]},
            errors.UnsupportedDtype,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=77, shape=(2, 3), payload=bytes(24))]},
            errors.UnsupportedDtype,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(2, 3), payload=bytes(23))]},
            errors.PayloadMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=2, shape=(2, 3), payload=bytes(24))]},
            errors.PayloadMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(6,), payload=bytes(24))]},
            errors.ShapeMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(1, 2, 3), payload=bytes(24))]},
            errors.ShapeMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(2, 4), payload=bytes(32))]},
            errors.ShapeMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(3, 3), payload=bytes(36))]},
            errors.ShapeMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(2**32 - 1, 3), payload=b"")]},
            errors.ShapeMismatch,
        ),
        (
            {"tensors": [pb.LayerTensor(layer_id=1, dtype=1, shape=(2, 3), payload=bytes(24))] * 2},
            errors.MalformedMessage,
        ),
        ({"request_index": [0, 2]}, errors.MalformedMessage),
        ({"request_index": [1, 0]}, errors.MalformedMessage),
        ({"request_index": [0]}, errors.ShapeMismatch),
        ({"rows_per_request": 2}, errors.ShapeMismatch),
        ({"rows_per_request": 2**32 - 1}, errors.ShapeMismatch),
        ({"rows_per_request": 1, "request_index": [0, 1]}, errors.MalformedMessage),
        ({"requests": []}, errors.ShapeMismatch),
        ({"requests": [pb.SampledRequest(weight=0.5)] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(weight=float("nan"))] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(weight=float("inf"))] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(weight=-1)] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(weight=2**20 + 1)] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(slice=1)] * 2}, errors.MalformedMessage),
        ({"requests": [pb.SampledRequest(id="a b")] * 2}, errors.InvalidName),
        ({"requests": [pb.SampledRequest(id="x" * 201)] * 2}, errors.InvalidName),
        ({"requests": [pb.SampledRequest(id="\n")] * 2}, errors.InvalidName),
        ({"slices": [pb.TrafficSlice(pairs={"k": "v" * 300})]}, errors.InvalidName),
        ({"slices": [pb.TrafficSlice(pairs={"k{}": "v"})]}, errors.InvalidName),
        ({"slices": [pb.TrafficSlice(pairs={f"k{n}": "v" for n in range(9)})]}, errors.InvalidName),
        ({"slices": [pb.TrafficSlice()] * 3}, errors.MalformedMessage),
        ({"sequence": 0}, errors.MalformedMessage),
    ],
)
def test_a_broken_batch_is_refused_and_changes_nothing(
    changes: dict[str, Any], error: type[errors.SidecarError]
) -> None:
    """Each lie gets its own error; the same stream goes on with the next good batch."""
    stream = decoder()

    with pytest.raises(error) as caught:
        stream.decode(message(**changes))

    assert changes.get("sequence", 1) == caught.value.sequence
    assert stream.decode(message(sequence=2)).sequence == 2


@pytest.mark.parametrize(
    "report",
    [
        pb.HookReport(hook_seconds=float("nan")),
        pb.HookReport(forward_seconds=-1.0),
        pb.HookReport(sampling_rate=1.5),
        pb.HookReport(overhead_ratio=float("inf")),
        pb.HookReport(dropped={f"reason{n}": 1 for n in range(33)}),
        pb.HookReport(dropped={"bad reason": 1}),
    ],
)
def test_reports_that_would_break_metrics_are_refused(report: pb.HookReport) -> None:
    """Numbers are finite and in range, and drop reasons are few and fit for labels."""
    with pytest.raises(errors.InvalidInput):
        decoder().decode(pb.StreamRequest(report=report).SerializeToString())


@pytest.mark.parametrize(
    "register",
    [
        pb.RegisterLayer(layer_id=2, layer="l", width=3),
        pb.RegisterLayer(layer_id=2, layer="l", kind=99, width=3),
        pb.RegisterLayer(layer_id=2, layer="l", kind=1, view=99, width=3),
        pb.RegisterLayer(layer_id=2, layer="l", kind=1, scope=99, width=3),
        pb.RegisterLayer(layer_id=2, layer="l", kind=1, width=0),
        pb.RegisterLayer(layer_id=2, layer="l", kind=1, width=101),
        pb.RegisterLayer(layer_id=2, layer="", kind=1, width=3),
        pb.RegisterLayer(layer_id=2, layer="a/b", kind=1, width=3),
    ],
)
def test_layers_this_version_cannot_keep_are_refused(register: pb.RegisterLayer) -> None:
    """Unknown enum values, bad names and widths out of range are refused, never guessed at."""
    with pytest.raises(errors.InvalidInput):
        decoder(width_limit=100).decode(
            pb.StreamRequest(register_layer=register).SerializeToString()
        )


def test_registering_again_is_idempotent_but_never_changes_a_layer() -> None:
    """Equal registrations pass; another width, name or id for the same thing is a conflict."""
    stream = decoder()
    other = LayerKey("lite0", "3fa1", "_blocks.15")

    assert stream.decode(encode_request(RegisterLayer(1, LAYER, 3))).width == 3
    for conflict in (
        RegisterLayer(1, LAYER, 4),
        RegisterLayer(1, other, 3),
        RegisterLayer(2, LAYER, 3),
    ):
        with pytest.raises(errors.LayerConflict):
            stream.decode(encode_request(conflict))
    assert list(stream.layers) == [1]


def test_a_stream_registers_a_bounded_number_of_layers() -> None:
    """A client cannot grow the decoder without end."""
    stream = decoder(layer_limit=1)

    with pytest.raises(errors.LimitReached):
        stream.decode(encode_request(RegisterLayer(2, LayerKey("lite0", "3fa1", "x"), 3)))


@pytest.mark.parametrize(
    "value",
    [RegisterLayer(1, LAYER, 3), REPORT, OutgoingBatch(1, (tensor(),), (Request(), Request()))],
)
def test_everything_else_comes_after_the_hello(value: Any) -> None:
    """A stream that has not said who it is can announce and send nothing."""
    with pytest.raises(errors.UnregisteredStream):
        StreamDecoder().decode(encode_request(value))


def test_a_second_hello_is_refused() -> None:
    """One stream speaks for one model revision."""
    with pytest.raises(errors.MalformedMessage):
        decoder().decode(encode_request(HELLO))


def test_batch_numbers_grow() -> None:
    """A replayed or reordered batch is refused."""
    stream = decoder()
    stream.decode(message(sequence=7))

    for old in (7, 3):
        with pytest.raises(errors.MalformedMessage):
            stream.decode(message(sequence=old))
    assert stream.decode(message(sequence=8)).sequence == 8


def test_the_number_of_a_refused_batch_is_used() -> None:
    """Else what follows a refused 2**63 would be taken in and never be acknowledged."""
    stream = decoder()
    with pytest.raises(errors.MalformedMessage):
        stream.decode(message(sequence=2**63, slices=[pb.TrafficSlice()] * 3))

    with pytest.raises(errors.MalformedMessage, match="numbers must grow"):
        stream.decode(message(sequence=1))


def test_large_messages_are_not_even_parsed() -> None:
    """The limit is checked on the raw bytes."""
    with pytest.raises(errors.MessageTooLarge):
        StreamDecoder(message_limit_bytes=100).decode(bytes(101))


@pytest.mark.parametrize(
    "data", [b"", b"\xff", pb.StreamRequest().SerializeToString(), b"\x0a\x03\x0a\x01\xff"]
)
def test_bytes_that_say_nothing_are_refused(data: bytes) -> None:
    """Empty messages, garbage and invalid UTF-8 are malformed."""
    with pytest.raises(errors.MalformedMessage):
        StreamDecoder().decode(data)


def test_a_body_of_a_later_version_is_refused() -> None:
    """A field number from the future is an error, not a crash."""
    with pytest.raises(errors.MalformedMessage):
        decoder().decode(b"\x7a\x02hi")  # field 15
