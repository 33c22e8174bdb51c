"""The values that travel between hooks and daemon, free of protobuf.

Everything a decoder hands out has been checked; everything an encoder takes is trusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sidecar.features import Capture, LayerKey, LayerSample, Request, SparseSample

SERVICE = "sidecar.wire.v1.IngestService"
"""Full name of the gRPC service, for handlers that take and give raw bytes."""

METHOD = "Stream"
"""Name of its bidirectional method; a client calls ``/{SERVICE}/{METHOD}``."""

REQUEST_LIMIT = 8192
"""Most requests in one batch: reading them takes a tenth of a second, in which no other is served."""

REQUEST_BYTES = 256
"""What a request takes in memory, whatever little it took on the wire."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a stream: who sends, and how it measures.

    Attributes:
        model: Registry name of the model.
        revision: sha256 of its weights.
        capture: How its layers are measured.
        client_id: Names the sending process, stable over reconnects.
        client_version: Version of the hook package.
    """

    model: str
    revision: str
    capture: Capture = field(default_factory=Capture)
    client_id: str = ""
    client_version: str = ""


@dataclass(frozen=True, slots=True)
class RegisterLayer:
    """Announces a layer; later batches of the stream name it by ``layer_id``.

    Attributes:
        layer_id: Small integer chosen by the sender.
        layer: What the id stands for; its model and revision are those of the hello.
        width: Features of the layer.
        sparse: Whether its rows come as what is not zero in them.
    """

    layer_id: int
    layer: LayerKey
    width: int
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class HookReport:
    """The hook's own account since the start of its process; every counter only grows.

    Attributes:
        forwards: Forward passes seen.
        sampled_forwards: Forward passes whose rows were copied.
        batches_sent: Batches handed to the transport.
        dropped: Batches lost on the hook's side, by reason.
        errors: Exceptions caught inside hooks.
        hook_seconds: Time spent in hooks that copied.
        forward_seconds: Time spent in forward passes, hooks included.
        sampling_rate: Share of the traffic's requests sampled now, 0 to 1.
        governed_forwards: Forward passes during which the hook's own governor held the rate down.
        overhead_ratio: Hooks' share of forward time over the governor's newest stretch.
    """

    forwards: int = 0
    sampled_forwards: int = 0
    batches_sent: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    errors: int = 0
    hook_seconds: float = 0.0
    forward_seconds: float = 0.0
    sampling_rate: float = 0.0
    governed_forwards: int = 0
    overhead_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class OutgoingTensor:
    """Rows of one layer as the sender holds them.

    Attributes:
        layer_id: A registered id.
        dtype: ``f32``, ``f16`` or ``bf16``.
        shape: ``(rows, width)``.
        payload: Little-endian, C order, ``rows * width`` values.
    """

    layer_id: int
    dtype: str
    shape: tuple[int, int]
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class OutgoingSparse:
    """Rows of one sparse layer as the sender holds them; what is not listed is zero.

    Attributes:
        layer_id: The id of a layer registered as sparse.
        dtype: ``f32``, ``f16`` or ``bf16``.
        row_splits: Row ``i`` has the entries from ``row_splits[i]`` to ``row_splits[i + 1]``, shape
            ``(rows + 1,)``.
        latents: The latent of each entry, increasing within a row, shape ``(nnz,)``.
        values: Little-endian, ``nnz`` values.
    """

    layer_id: int
    dtype: str
    row_splits: NDArray[np.integer]
    latents: NDArray[np.integer]
    values: bytes | memoryview


@dataclass(frozen=True, slots=True)
class OutgoingBatch:
    """The rows of one forward pass, ready to be encoded.

    Attributes:
        sequence: Strictly increasing in a stream, from 1.
        tensors: One for each layer, all of the same number of rows.
        requests: The requests the rows belong to.
        request_index: For each row the index of its request, shape ``(rows,)``, never decreasing;
            None: every request has ``rows_per_request`` of them.
        report: The hook's account, or None.
        sparse: One for each sparse layer, of the same rows as the tensors.
        rows_per_request: Rows of each request, next to each other, where there is no
            ``request_index``.
    """

    sequence: int
    tensors: tuple[OutgoingTensor, ...]
    requests: tuple[Request, ...]
    request_index: NDArray[np.integer] | None = None
    report: HookReport | None = None
    sparse: tuple[OutgoingSparse, ...] = ()
    rows_per_request: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the daemon sees it, checked and resolved.

    Attributes:
        sequence: Number to acknowledge.
        samples: One for each layer; layers are distinct. Their values may alias the buffer that the
            batch arrived in: copy what is kept longer than the batch.
        requests: The requests the rows belong to.
        report: The hook's account, or None.
        payload_bytes: Bytes of all payloads as sent; what the sender's credit is charged with.
    """

    sequence: int
    samples: tuple[LayerSample | SparseSample, ...]
    requests: tuple[Request, ...]
    report: HookReport | None
    payload_bytes: int

    @property
    def held_bytes(self) -> int:
        """Bytes it takes while it waits: what the ingest queue is charged with."""
        return self.payload_bytes + REQUEST_BYTES * len(self.requests)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon's answer to a hello.

    Attributes:
        credit_bytes: Payload the client may have unacknowledged.
        message_limit_bytes: Largest request the daemon reads.
        sampling_rate: Share of forward passes to sample, 0 to 1.
        ring_bytes: Largest ring of shared memory the client may hand over for payloads; 0: none.
    """

    credit_bytes: int
    message_limit_bytes: int
    sampling_rate: float = 1.0
    ring_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Every batch up to and including ``sequence`` has been accepted or refused.

    Attributes:
        sequence: Number of the newest settled batch.
        credit_bytes: Payload the client may have unacknowledged from now on.
    """

    sequence: int
    credit_bytes: int


@dataclass(frozen=True, slots=True)
class Steering:
    """The daemon asks for another sampling rate.

    Attributes:
        sampling_rate: Share of forward passes to sample, 0 to 1; 0 stops sampling.
        reason: Why, in words.
    """

    sampling_rate: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One message was refused; the stream goes on.

    Attributes:
        sequence: Number of the refused batch; 0 where it was no batch.
        code: Stable error code, such as ``SC202``.
        reason: Label under which the refusal is counted.
        detail: What is wrong and what to do, in words.
    """

    sequence: int
    code: str
    reason: str
    detail: str = ""
