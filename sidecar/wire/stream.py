"""The daemon's view of one ingest stream: untrusted bytes in, checked values out."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import (
    InvalidName,
    LayerConflict,
    LimitReached,
    MalformedMessage,
    MessageTooLarge,
    PayloadMismatch,
    ShapeMismatch,
    SidecarError,
    UnregisteredLayer,
    UnregisteredStream,
    UnsupportedDtype,
)
from sidecar.features import (
    NAME_LIMIT,
    WEIGHT_LIMIT,
    Capture,
    FeatureKind,
    LayerKey,
    LayerSample,
    Request,
    Scope,
    Slice,
    SparseSample,
    check_name,
    default_view,
)
from sidecar.wire.codec import (
    DTYPE_TO_WIRE,
    KIND_TO_WIRE,
    SCOPE_TO_WIRE,
    VIEW_TO_WIRE,
    check_rate,
    parse,
)
from sidecar.wire.frames import padding
from sidecar.wire.messages import REQUEST_LIMIT, Batch, Hello, HookReport, RegisterLayer
from sidecar.wire.sparse import decode_sparse
from sidecar.wire.tensors import ITEM_BYTES, read_tensor
from sidecar.wire.v1 import ingest_pb2 as pb

SPARSE_WIDTH_LIMIT = 1 << 20
"""Most latents of one sparse layer: the widest dictionaries there are have a million."""

DROP_REASON_LIMIT = 32
"""Most distinct drop reasons in one report; each becomes a label value of a metric."""

_NOTHING = memoryview(b"")

_NO_SLICE = Slice()

_KINDS = {number: kind for kind, number in KIND_TO_WIRE.items()}
_VIEWS = {number: view for view, number in VIEW_TO_WIRE.items()}
_SCOPES = {number: scope for scope, number in SCOPE_TO_WIRE.items()}
_DTYPES = {number: dtype for dtype, number in DTYPE_TO_WIRE.items()}


class StreamDecoder:
    """Decodes the messages of one stream and remembers what the stream has announced.

    Whatever bytes come in, only a value or a ``SidecarError`` comes out; a refused message changes
    nothing that was announced before. Memory is bounded by ``layer_limit`` registrations.

    Args:
        width_limit: Most features of one layer.
        message_limit_bytes: Largest message that is parsed at all.
        layer_limit: Most layers one stream may register.

    Attributes:
        hello: What the stream said of itself; None before.
    """

    def __init__(
        self,
        width_limit: int = 262_144,
        *,
        message_limit_bytes: int = 4 << 20,
        layer_limit: int = 4096,
    ) -> None:
        self.hello: Hello | None = None
        self._width_limit = width_limit
        self._message_limit_bytes = message_limit_bytes
        self._layer_limit = layer_limit
        self._layers: dict[int, RegisterLayer] = {}
        self._ids: dict[LayerKey, int] = {}
        self._sequence = 0
        self._layout = (0, 1)
        self._index = _regular(0, 1)

    @property
    def layers(self) -> Mapping[int, RegisterLayer]:
        """The registered layers by id, as a read-only view."""
        return MappingProxyType(self._layers)

    def decode(
        self, data: bytes, attached: memoryview = _NOTHING
    ) -> Hello | RegisterLayer | Batch | HookReport:
        """Read and check one ``StreamRequest``.

        Args:
            data: The message as received.
            attached: What followed it in its frame: the bytes of the tensors whose ``payload`` is
                empty, as ``sidecar.wire.frames`` lays them out.

        Returns:
            The value it holds. Arrays of a batch are read-only and alias ``attached`` where it holds
            them, so they are valid only as long as that is.

        Raises:
            MessageTooLarge: The message is above the limit; it was not parsed.
            MalformedMessage: It is no such message, has no body or enum value this version knows,
                or numbers out of range.
            UnregisteredStream: The hello is still to come.
            UnregisteredLayer: A tensor names an id that was not registered.
            UnsupportedDtype: A tensor's dtype is none of f32, f16, bf16.
            ShapeMismatch: A tensor's shape does not fit its layer or the requests.
            PayloadMismatch: A payload's length does not fit its shape, or ``attached`` holds more
                than the tensors.
            InvalidName: A name, label or id is too long or holds other characters.
            LayerConflict: A layer or id is registered again as something else.
            LimitReached: The stream registers more layers than it may.
            Each carries the batch's number in ``sequence``, where it could be read.
        """
        size = len(data) + attached.nbytes
        if size > self._message_limit_bytes:
            raise MessageTooLarge(
                f"message of {size} bytes: send at most {self._message_limit_bytes}"
            )
        request = parse(pb.StreamRequest, data)
        body = request.WhichOneof("body")
        if body is None:
            raise MalformedMessage("the request has no body this version knows")
        if body != "batch" and attached.nbytes:
            raise MalformedMessage(f"{attached.nbytes} bytes of payload follow a {body}")
        if body == "hello":
            return self._decode_hello(request.hello)
        if body == "register_layer":
            return self._decode_register(request.register_layer)
        if body == "report":
            self._announced()
            return _decode_report(request.report)
        try:
            return self._decode_batch(request.batch, _Attachment(attached), size)
        except SidecarError as error:
            error.sequence = request.batch.sequence
            # A refused number is used: its client waits for what comes after it.
            self._sequence = max(self._sequence, error.sequence)
            raise

    def _announced(self) -> Hello:
        if self.hello is None:
            raise UnregisteredStream("the stream has sent no hello yet: send it first")
        return self.hello

    def _decode_hello(self, message: pb.Hello) -> Hello:
        if self.hello is not None:
            raise MalformedMessage("a second hello: open a new stream to announce something else")
        capture = Capture(
            server=_check_text("capture.server", message.capture.server),
            dtype=_check_text("capture.dtype", message.capture.dtype),
            compiled=message.capture.compiled,
            tap=_check_text("capture.tap", message.capture.tap),
        )
        self.hello = Hello(
            model=check_name("model", message.model),
            revision=check_name("revision", message.revision),
            capture=capture,
            client_id=_check_text("client_id", message.client_id),
            client_version=_check_text("client_version", message.client_version),
        )
        return self.hello

    def _decode_register(self, message: pb.RegisterLayer) -> RegisterLayer:
        hello = self._announced()
        kind = _KINDS.get(message.kind)
        view = _VIEWS.get(message.view)
        scope = _SCOPES.get(message.scope)
        if kind is None or (view is None and message.view) or (scope is None and message.scope):
            raise MalformedMessage(
                f"layer {message.layer[:80]!r}: kind {message.kind}, view {message.view} or scope "
                f"{message.scope} is unknown to this version"
            )
        key = LayerKey(
            hello.model,
            hello.revision,
            message.layer,
            kind,
            view or default_view(kind),
            scope or Scope.ALL,
        )
        if message.sparse and kind is not FeatureKind.LATENT:
            raise MalformedMessage(f"layer {key.layer} is sparse and of kind {kind}: use latent")
        limit = SPARSE_WIDTH_LIMIT if message.sparse else self._width_limit
        if not 1 <= message.width <= limit:
            raise ShapeMismatch(f"layer {key.layer} has width {message.width}: use 1 to {limit}")
        return self._remember(RegisterLayer(message.layer_id, key, message.width, message.sparse))

    def _remember(self, new: RegisterLayer) -> RegisterLayer:
        known = self._layers.get(new.layer_id)
        if known == new:
            return known
        if known is not None or new.layer in self._ids:
            old = known or self._layers[self._ids[new.layer]]
            raise LayerConflict(
                f"layer id {new.layer_id} as {new.layer.layer} of width {new.width}, but this "
                f"stream has id {old.layer_id} as {old.layer.layer} of width {old.width}"
            )
        if len(self._layers) >= self._layer_limit:
            raise LimitReached(f"the stream has {self._layer_limit} layers: it may have no more")
        self._layers[new.layer_id] = new
        self._ids[new.layer] = new.layer_id
        return new

    def _decode_batch(
        self, message: pb.ActivationBatch, attachment: "_Attachment", size: int
    ) -> Batch:
        self._announced()
        if message.sequence <= self._sequence:
            raise MalformedMessage(
                f"batch number {message.sequence} after {self._sequence}: numbers must grow"
            )
        requests = _decode_requests(message)
        index = self._decode_index(message, len(requests), size)
        seen: set[int] = set()
        samples: list[LayerSample | SparseSample] = []
        payload_bytes = 0
        for sparse in message.sparse:
            registered = self._named(sparse.layer_id, seen)
            sample, sample_bytes = decode_sparse(sparse, registered, index, requests)
            payload_bytes += sample_bytes
            samples.append(sample)
        for tensor in message.tensors:
            registered = self._named(tensor.layer_id, seen)
            values = self._decode_tensor(tensor, registered, attachment)
            payload_bytes += values.nbytes
            samples.append(LayerSample(registered.layer, values, index, requests))
        attachment.check_empty()
        report = _decode_report(message.report) if message.HasField("report") else None
        self._sequence = message.sequence
        return Batch(message.sequence, tuple(samples), requests, report, payload_bytes)

    def _decode_index(
        self, message: pb.ActivationBatch, requests: int, size: int
    ) -> NDArray[np.int32]:
        """Return the rows' requests, after checking that every tensor has exactly these rows."""
        if message.request_index:
            index = _irregular(message, requests)
        else:
            layout = (requests, message.rows_per_request or 1)
            # A row takes at least two bytes: what claims more than there are must not take memory.
            if math.prod(layout) > size:
                raise ShapeMismatch(
                    f"rows_per_request is {layout[1]} for {requests} requests, but the whole message "
                    f"has only {size} bytes"
                )
            if layout != self._layout:
                self._layout, self._index = layout, _regular(*layout)
            index = self._index
        for tensor in message.tensors:
            shape = tensor.shape
            # Other shapes than (rows, width) are refused with the tensor.
            if len(shape) == 2 and shape[0] != index.size:  # noqa: PLR2004
                raise ShapeMismatch(
                    f"layer id {tensor.layer_id} has {shape[0]} rows, but the batch says whose "
                    f"{index.size} rows are"
                )
        return index

    def _named(self, layer_id: int, seen: set[int]) -> RegisterLayer:
        """Return the layer that a tensor names, and note that the batch has it."""
        if layer_id in seen:
            raise MalformedMessage(f"layer id {layer_id} is in the batch twice")
        seen.add(layer_id)
        registered = self._layers.get(layer_id)
        if registered is None:
            raise UnregisteredLayer(f"layer id {layer_id} was not registered on this stream")
        return registered

    def _decode_tensor(
        self, tensor: pb.LayerTensor, registered: RegisterLayer, attachment: "_Attachment"
    ) -> NDArray[Any]:
        if registered.sparse:
            raise MalformedMessage(
                f"layer {registered.layer.layer} was registered as sparse: send its rows so"
            )
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise UnsupportedDtype(
                f"layer {registered.layer.layer}: dtype number {tensor.dtype} is none of "
                f"{', '.join(ITEM_BYTES)}"
            )
        shape = tuple(tensor.shape)
        # Read once: every access to a bytes field copies it.
        payload = tensor.payload or attachment.take(dtype, shape)
        values = read_tensor(payload, dtype, shape)
        if shape[1] != registered.width:
            raise ShapeMismatch(
                f"layer {registered.layer.layer}: tensor is {shape[1]} wide, but was registered "
                f"with {registered.width}"
            )
        return values


class _Attachment:
    """Hands out what follows a batch in its frame, tensor by tensor."""

    def __init__(self, attached: memoryview) -> None:
        self._left = attached

    def take(self, dtype: str, shape: tuple[int, ...]) -> memoryview:
        """Return the bytes of the next tensor; fewer, or none, where the frame ends before."""
        wanted = math.prod(shape) * ITEM_BYTES[dtype]
        taken = self._left[:wanted]
        self._left = self._left[wanted + len(padding(wanted)) :]
        return taken

    def check_empty(self) -> None:
        if self._left.nbytes:
            raise PayloadMismatch(f"{self._left.nbytes} bytes follow the batch's last tensor")


def _decode_requests(message: pb.ActivationBatch) -> tuple[Request, ...]:
    count = len(message.requests)
    if count > REQUEST_LIMIT or len(message.slices) > count:
        raise MalformedMessage(
            f"the batch has {count} requests and {len(message.slices)} slices: use at most "
            f"{REQUEST_LIMIT} requests, and no more slices than requests"
        )
    slices = [_NO_SLICE]
    if message.slices:
        slices += [Slice.of(dict(item.pairs)) for item in message.slices]
    return tuple([_decode_request(item, slices) for item in message.requests])


def _decode_request(message: pb.SampledRequest, slices: list[Slice]) -> Request:
    if message.slice >= len(slices):
        raise MalformedMessage(
            f"a request names slice {message.slice}, but the batch has {len(slices) - 1}"
        )
    weight = message.weight or 1.0
    if not 1.0 <= weight <= WEIGHT_LIMIT:  # false for NaN too
        raise MalformedMessage(
            f"a request has weight {weight}: use a number from 1 to {WEIGHT_LIMIT}"
        )
    return Request(_check_id(message.id), slices[message.slice], weight)


def _irregular(message: pb.ActivationBatch, requests: int) -> NDArray[np.int32]:
    """Return the rows' requests as the batch lists them."""
    if message.rows_per_request:
        raise MalformedMessage("request_index and rows_per_request: use one of them")
    given = np.fromiter(message.request_index, np.int64, len(message.request_index))  # (rows,)
    if given[-1] >= requests or bool((given[1:] < given[:-1]).any()):
        raise MalformedMessage(
            f"request_index decreases or goes beyond the batch's {requests} requests"
        )
    return given.astype(np.int32)


def _regular(requests: int, rows: int) -> NDArray[np.int32]:
    """Return the rows' requests where each has ``rows`` of them; shared, so it is read-only."""
    index = np.repeat(np.arange(requests, dtype=np.int32), rows)  # (requests * rows,)
    index.flags.writeable = False
    return index


def _decode_report(message: pb.HookReport) -> HookReport:
    if len(message.dropped) > DROP_REASON_LIMIT:
        raise MalformedMessage(
            f"the report has {len(message.dropped)} drop reasons: use at most {DROP_REASON_LIMIT}"
        )
    floats = (message.hook_seconds, message.forward_seconds, message.overhead_ratio)
    if not all(math.isfinite(value) and value >= 0.0 for value in floats):
        raise MalformedMessage(
            f"the report's hook_seconds, forward_seconds and overhead_ratio {floats} are not finite "
            "and at least 0"
        )
    return HookReport(
        forwards=message.forwards,
        sampled_forwards=message.sampled_forwards,
        batches_sent=message.batches_sent,
        dropped={check_name("drop reason", key): n for key, n in message.dropped.items()},
        errors=message.errors,
        hook_seconds=message.hook_seconds,
        forward_seconds=message.forward_seconds,
        sampling_rate=check_rate(message.sampling_rate),
        governed_forwards=message.governed_forwards,
        overhead_ratio=message.overhead_ratio,
    )


def _check_text(field: str, value: str) -> str:
    """Return free text that is safe in logs: empty, or short printable ASCII."""
    if len(value) > NAME_LIMIT or not (value.isascii() and (value.isprintable() or not value)):
        raise InvalidName(f"{field} {value[:80]!r}: use at most {NAME_LIMIT} printable characters")
    return value


def _check_id(value: str) -> str:
    """Return a request id: as free text, but without spaces."""
    if " " in value:
        raise InvalidName(f"request id {value[:80]!r} holds a space")
    return _check_text("request id", value)
