"""What hooks and daemon say to each other.

Promises: whatever bytes arrive, ``StreamDecoder`` and ``decode_response`` give a checked value or
raise a ``SidecarError``; f16 and bf16 payloads are widened exactly; no protobuf type leaves this
room. Runs on protobuf 5.26 to 7.x.

The names are many because the messages are: values here are plain frozen dataclasses, and the
functions are ``encode_request``, ``encode_response``, ``decode_response`` and ``to_float32``.
"""

from sidecar.wire.codec import decode_response, encode_request, encode_response
from sidecar.wire.messages import (
    METHOD,
    REQUEST_LIMIT,
    SERVICE,
    Acknowledgement,
    Batch,
    Hello,
    HookReport,
    OutgoingBatch,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    Steering,
    Welcome,
)
from sidecar.wire.stream import StreamDecoder
from sidecar.wire.tensors import to_float32

__all__ = [
    "METHOD",
    "REQUEST_LIMIT",
    "SERVICE",
    "Acknowledgement",
    "Batch",
    "Hello",
    "HookReport",
    "OutgoingBatch",
    "OutgoingTensor",
    "Refusal",
    "RegisterLayer",
    "Steering",
    "StreamDecoder",
    "Welcome",
    "decode_response",
    "encode_request",
    "encode_response",
    "to_float32",
]
