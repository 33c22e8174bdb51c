"""Values to protobuf bytes, and the daemon's answers back to values.

The requests' decoder is stateful and lives in ``stream``.
"""

import math
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sidecar.errors import MalformedMessage
from sidecar.features import FeatureKind, Scope, Slice, View
from sidecar.wire.frames import FrameKind, Place, encode_frame
from sidecar.wire.messages import (
    Acknowledgement,
    Hello,
    HookReport,
    OutgoingBatch,
    Refusal,
    RegisterLayer,
    Steering,
    Welcome,
)
from sidecar.wire.sparse import encode_sparse
from sidecar.wire.v1 import ingest_pb2 as pb

_Parsed = TypeVar("_Parsed", bound=Message)

KIND_TO_WIRE = {kind: pb.FeatureKind.Value(f"FEATURE_KIND_{kind.name}") for kind in FeatureKind}
"""Wire value of every kind; a kind without one fails at import."""

VIEW_TO_WIRE = {view: pb.View.Value(f"VIEW_{view.name}") for view in View}
"""Wire value of every view."""

SCOPE_TO_WIRE = {scope: pb.Scope.Value(f"SCOPE_{scope.name}") for scope in Scope}
"""Wire value of every scope."""

DTYPE_TO_WIRE = {"f32": pb.DTYPE_F32, "f16": pb.DTYPE_F16, "bf16": pb.DTYPE_BF16}
"""Wire value of every dtype."""


Sendable = Hello | RegisterLayer | OutgoingBatch | HookReport
"""What a client sends."""


def encode_request(value: Sendable) -> bytes:
    """Return the bytes of one ``StreamRequest``, payloads included.

    Nothing is checked: the daemon refuses what breaks the rules.
    """
    return _request(value, inline=True).SerializeToString()


def encode_request_frame(value: Sendable, place: Place | None = None) -> list[bytes | memoryview]:
    """Return the pieces of one ``StreamRequest`` as a frame; payloads are aliased, not copied.

    Nothing is checked, as in ``encode_request``.

    Args:
        value: What to send.
        place: Knows which payloads lie in a ring, as in ``encode_frame``.
    """
    payload = [item.payload for item in value.tensors] if isinstance(value, OutgoingBatch) else ()
    message = _request(value, inline=False).SerializeToString()
    return encode_frame(FrameKind.REQUEST, message, payload, place)


def _request(value: Sendable, *, inline: bool) -> pb.StreamRequest:
    if isinstance(value, OutgoingBatch):
        request = pb.StreamRequest()
        _fill(request.batch, value, inline=inline)
        return request
    if isinstance(value, Hello):
        return pb.StreamRequest(hello=_hello(value))
    if isinstance(value, RegisterLayer):
        return pb.StreamRequest(register_layer=_register(value))
    return pb.StreamRequest(report=_report(value))


def _hello(value: Hello) -> pb.Hello:
    capture = pb.Capture(
        server=value.capture.server,
        dtype=value.capture.dtype,
        compiled=value.capture.compiled,
        tap=value.capture.tap,
    )
    return pb.Hello(
        model=value.model,
        revision=value.revision,
        capture=capture,
        client_id=value.client_id,
        client_version=value.client_version,
    )


def _register(value: RegisterLayer) -> pb.RegisterLayer:
    return pb.RegisterLayer(
        layer_id=value.layer_id,
        layer=value.layer.layer,
        kind=KIND_TO_WIRE[value.layer.kind],
        view=VIEW_TO_WIRE[value.layer.view],
        scope=SCOPE_TO_WIRE[value.layer.scope],
        width=value.width,
        sparse=value.sparse,
    )


def _report(value: HookReport) -> pb.HookReport:
    return pb.HookReport(
        forwards=value.forwards,
        sampled_forwards=value.sampled_forwards,
        batches_sent=value.batches_sent,
        dropped=value.dropped,
        errors=value.errors,
        hook_seconds=value.hook_seconds,
        forward_seconds=value.forward_seconds,
        sampling_rate=value.sampling_rate,
        governed_forwards=value.governed_forwards,
        overhead_ratio=value.overhead_ratio,
    )


def _fill(message: pb.ActivationBatch, value: OutgoingBatch, *, inline: bool) -> None:
    """Write a batch where it belongs: building it elsewhere and handing it over takes twice as long."""
    message.sequence = value.sequence
    # Not in place: a payload assigned to a tensor that lies in the batch already took gRPC's sender
    # 1.5 ms of system time a MiB instead of 0.3.
    message.tensors.extend(
        pb.LayerTensor(
            layer_id=tensor.layer_id,
            dtype=DTYPE_TO_WIRE[tensor.dtype],
            shape=tensor.shape,
            payload=bytes(tensor.payload) if inline else b"",
        )
        for tensor in value.tensors
    )
    for item in value.sparse:
        message.sparse.append(encode_sparse(item, DTYPE_TO_WIRE[item.dtype]))
    slices: dict[Slice, int] = {}
    for request in value.requests:
        sampled = message.requests.add()
        sampled.id = request.id
        sampled.weight = request.weight
        if request.traffic.pairs:  # the empty slice is 0 on the wire and not listed
            sampled.slice = slices.setdefault(request.traffic, len(slices) + 1)
    for traffic in slices:
        message.slices.add(pairs=dict(traffic.pairs))
    if value.request_index is None:
        message.rows_per_request = value.rows_per_request
    else:
        message.request_index.extend(value.request_index.tolist())
    if value.report is not None:
        message.report.CopyFrom(_report(value.report))


Answer = Welcome | Acknowledgement | Steering | Refusal
"""What the daemon answers."""


def encode_response_frame(value: Answer) -> bytes:
    """Return one ``StreamResponse`` as a frame."""
    return b"".join(encode_frame(FrameKind.RESPONSE, encode_response(value)))


def encode_response(value: Answer) -> bytes:
    """Return the bytes of one ``StreamResponse``."""
    response = pb.StreamResponse()
    if isinstance(value, Welcome):
        response.welcome.credit_bytes = value.credit_bytes
        response.welcome.message_limit_bytes = value.message_limit_bytes
        response.welcome.sampling_rate = value.sampling_rate
        response.welcome.ring_bytes = value.ring_bytes
    elif isinstance(value, Acknowledgement):
        response.acknowledgement.sequence = value.sequence
        response.acknowledgement.credit_bytes = value.credit_bytes
    elif isinstance(value, Steering):
        # Set even when 0, which is the kill switch: an unset body would say nothing at all.
        response.steering.SetInParent()
        response.steering.sampling_rate = value.sampling_rate
        response.steering.reason = value.reason
    else:
        response.refusal.SetInParent()
        response.refusal.sequence = value.sequence
        response.refusal.code = value.code
        response.refusal.reason = value.reason
        response.refusal.detail = value.detail
    return response.SerializeToString()


def decode_response(data: bytes) -> Answer:
    """Read one ``StreamResponse``.

    Raises:
        MalformedMessage: The bytes are no such message, its kind is unknown to this version, or a
            sampling rate is not a number from 0 to 1.
    """
    response = parse(pb.StreamResponse, data)
    body = response.WhichOneof("body")
    if body == "welcome":
        welcome = response.welcome
        return Welcome(
            welcome.credit_bytes,
            welcome.message_limit_bytes,
            check_rate(welcome.sampling_rate),
            welcome.ring_bytes,
        )
    if body == "acknowledgement":
        settled = response.acknowledgement
        return Acknowledgement(settled.sequence, settled.credit_bytes)
    if body == "steering":
        return Steering(check_rate(response.steering.sampling_rate), response.steering.reason)
    if body == "refusal":
        refusal = response.refusal
        return Refusal(refusal.sequence, refusal.code, refusal.reason, refusal.detail)
    raise MalformedMessage("the response has no body this version knows: update the hooks")


def parse(message: type[_Parsed], data: bytes) -> _Parsed:
    """Read protobuf bytes.

    Raises:
        MalformedMessage: They are no message of this type.
    """
    try:
        return message.FromString(data)
    except (DecodeError, ValueError) as error:  # the pure-Python runtime raises ValueError too
        raise MalformedMessage(
            f"{len(data)} bytes are no {message.DESCRIPTOR.name}: {error}"
        ) from error


def check_rate(rate: float) -> float:
    """Return a sampling rate that is a number from 0 to 1.

    Raises:
        MalformedMessage: It is not.
    """
    if not (math.isfinite(rate) and 0.0 <= rate <= 1.0):
        raise MalformedMessage(f"sampling rate {rate} is outside 0 to 1")
    return rate
