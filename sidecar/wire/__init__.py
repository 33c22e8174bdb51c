"""What hooks and daemon say to each other.

Promises: whatever bytes arrive, ``StreamDecoder``, ``FrameReader`` and ``decode_response`` give a
checked value or raise a ``SidecarError``; a payload is read in place, in the dtype it was sent in; no
protobuf type leaves this room. Runs on protobuf 5.26 to 7.x.

One codec serves two transports. Over gRPC a message holds everything; over a unix socket a message
travels in a frame and a batch's payload follows it (``encode_request_frame``, ``FrameReader``).

The names are many because the messages are: values here are plain frozen dataclasses, and the
functions are ``encode_request``, ``encode_response``, ``decode_response``, their forms for frames, and
``check_peer``.
"""

from sidecar.wire.codec import (
    Answer,
    Sendable,
    decode_response,
    encode_request,
    encode_request_frame,
    encode_response,
    encode_response_frame,
)
from sidecar.wire.frames import (
    PAYLOAD_ALIGNMENT,
    Frame,
    FrameKind,
    FrameReader,
    Lease,
    decode_ring_frame,
    encode_ring_frame,
)
from sidecar.wire.messages import (
    METHOD,
    REQUEST_LIMIT,
    SERVICE,
    Acknowledgement,
    Batch,
    Hello,
    HookReport,
    OutgoingBatch,
    OutgoingSparse,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    Steering,
    Welcome,
)
from sidecar.wire.peers import check_peer
from sidecar.wire.stream import SPARSE_WIDTH_LIMIT, StreamDecoder

__all__ = [
    "METHOD",
    "PAYLOAD_ALIGNMENT",
    "REQUEST_LIMIT",
    "SERVICE",
    "SPARSE_WIDTH_LIMIT",
    "Acknowledgement",
    "Answer",
    "Batch",
    "Frame",
    "FrameKind",
    "FrameReader",
    "Hello",
    "HookReport",
    "Lease",
    "OutgoingBatch",
    "OutgoingSparse",
    "OutgoingTensor",
    "Refusal",
    "RegisterLayer",
    "Sendable",
    "Steering",
    "StreamDecoder",
    "Welcome",
    "check_peer",
    "decode_response",
    "decode_ring_frame",
    "encode_request",
    "encode_request_frame",
    "encode_response",
    "encode_response_frame",
    "encode_ring_frame",
]
