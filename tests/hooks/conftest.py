"""A real ingest server, tiny models, and a sink that keeps what it is offered."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.errors import InvalidInput, SidecarError
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request, View
from sidecar.hooks.account import Account
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.pack import groups, split
from sidecar.wire import (
    METHOD,
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
    StreamDecoder,
    Welcome,
    encode_request,
    encode_response,
)

DEADLINE_SECONDS = 20.0


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], None]:
    """Return a function that waits until a condition holds, and fails after the deadline."""
    pause = threading.Event()

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            pause.wait(0.005)

    return wait


@dataclass
class Received:
    """What one stream has sent."""

    hello: Hello | None = None
    registered: list[RegisterLayer] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    reports: list[HookReport] = field(default_factory=list)
    refused: list[SidecarError] = field(default_factory=list)


class IngestServer:
    """A small real daemon end: decodes, welcomes, acknowledges, steers.

    Runs in a thread of its own, so that killing it is abrupt for the client.
    """

    def __init__(self, address: str, welcome: Welcome, *, acknowledges: bool = True) -> None:
        self.address = address
        self.welcome: Welcome | None = welcome
        self.acknowledges = acknowledges
        self.streams: list[Received] = []
        self._contexts: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "IngestServer":
        """Listen; returns when connections are taken."""
        self._thread.start()
        assert self._started.wait(DEADLINE_SECONDS)
        return self

    def kill(self) -> None:
        """Break every stream off and stop listening."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE_SECONDS)

    def steer(self, rate: float) -> None:
        """Ask every open stream for another sampling rate."""
        payload = encode_response(Steering(rate, "test"))
        for context in self._contexts:
            asyncio.run_coroutine_threadsafe(context.write(payload), self._loop).result(5)

    @property
    def batches(self) -> list[Batch]:
        """The batches of all streams."""
        return [batch for stream in self.streams for batch in stream.batches]

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        server.add_insecure_port(self.address)
        await server.start()
        self._started.set()
        await self._stop.wait()
        await server.stop(None)

    async def _stream(self, messages: Any, context: Any) -> None:
        received = Received()
        decoder = StreamDecoder()
        self.streams.append(received)
        self._contexts.append(context)
        try:
            async for data in messages:
                answer = self._take(received, decoder, data)
                if answer is not None:
                    await context.write(encode_response(answer))
        finally:
            self._contexts.remove(context)

    def _take(self, received: Received, decoder: StreamDecoder, data: bytes) -> Any:
        try:
            value = decoder.decode(data)
        except SidecarError as error:
            received.refused.append(error)
            return Refusal(error.sequence, error.code, error.reason, error.message)
        if isinstance(value, Hello):
            received.hello = value
            return self.welcome
        if isinstance(value, RegisterLayer):
            received.registered.append(value)
        elif isinstance(value, HookReport):
            received.reports.append(value)
        else:
            received.batches.append(value)
            if self.acknowledges:
                return Acknowledgement(value.sequence, 8 << 20)
        return None


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., IngestServer]]:
    """Return a function that starts an ingest server; the socket is the same for all of a test."""
    servers = []

    def start(
        credit_bytes: int = 8 << 20,
        message_limit_bytes: int = 4 << 20,
        sampling_rate: float = 1.0,
        *,
        acknowledges: bool = True,
        welcomes: bool = True,
    ) -> IngestServer:
        welcome = Welcome(credit_bytes, message_limit_bytes, sampling_rate)
        server = IngestServer(f"unix://{tmp_path}/in.sock", welcome, acknowledges=acknowledges)
        if not welcomes:
            server.welcome = None
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.kill()


class MemorySink:
    """A sink that keeps the batches it is offered, decoded as the daemon would decode them."""

    def __init__(self, limit_bytes: int = 8 << 20) -> None:
        self.account = Account()
        self.limit_bytes = limit_bytes
        self.sampling_rate = 1.0
        self.accepting = True
        self.refusals: dict[str, int] = {}
        self.hello: Hello | None = None
        self.offered: list[ForwardBatch] = []
        self.samples: list[list[LayerSample]] = []

    def announce(self, hello: Hello, sampling_rate: float) -> None:
        """Keep the hello."""
        if self.hello not in (None, hello):
            raise InvalidInput("taken")
        self.hello = hello
        self.sampling_rate = sampling_rate

    def offer(self, batch: ForwardBatch) -> bool:
        """Keep the batch."""
        self.account.offer()
        self.offered.append(batch)
        self.samples.append(as_decoded(batch))
        batch.release()
        self.account.sent()
        return True

    def report(self) -> HookReport:
        """Return the books."""
        return self.account.report(self.sampling_rate)

    def close(self, timeout_seconds: float = 0.0) -> bool:
        """Do nothing."""
        return timeout_seconds >= 0.0

    def last(self) -> dict[str, LayerSample]:
        """Return the samples of the newest forward pass by layer."""
        return {sample.layer.layer: sample for sample in self.samples[-1]}


def as_decoded(batch: ForwardBatch, limit_bytes: int = 4 << 20) -> list[LayerSample]:
    """Send a batch through the wire's own encoder and decoder, in messages of limited size."""
    decoder = StreamDecoder(message_limit_bytes=limit_bytes)
    samples: list[LayerSample] = []
    numbers: dict[LayerKey, int] = {}
    sequence = 0
    for group in groups(batch, batch.stage()):
        for part in split(group, limit_bytes):
            sequence += 1
            tensors = []
            rows_count = len(part.requests) * part.rows_per_request
            for rows in part.rows:
                if decoder.hello is None:
                    decoder.decode(encode_request(Hello(rows.layer.model, rows.layer.revision)))
                number = numbers.setdefault(rows.layer, len(numbers))
                decoder.decode(encode_request(RegisterLayer(number, rows.layer, rows.width)))
                shape = (rows_count, rows.width)
                tensors.append(OutgoingTensor(number, rows.dtype, shape, rows.payload))
            outgoing = OutgoingBatch(sequence, tuple(tensors), part.requests, part.request_index)
            value = decoder.decode(encode_request(outgoing))
            assert isinstance(value, Batch)
            samples += value.samples
    return samples


@pytest.fixture
def memory_sink() -> MemorySink:
    """A sink that keeps what it is offered."""
    return MemorySink()


@pytest.fixture
def new_memory_sink() -> type[MemorySink]:
    """The class of the sink, for tests that need more than one or another limit."""
    return MemorySink


@pytest.fixture
def decode() -> Callable[..., list[LayerSample]]:
    """The way of a batch through encoder and decoder."""
    return as_decoded


@pytest.fixture
def tapped() -> Callable[..., TappedRows]:
    """Return a function that makes rows of increasing numbers."""

    def make(
        layer: str = "layer",
        items: int = 2,
        rows_per_item: int = 1,
        width: int = 3,
        dtype: str = "f32",
        *,
        named: bool = False,
        start: int = 0,
    ) -> TappedRows:
        count = items * rows_per_item * width
        values = np.arange(start, start + count, dtype="<f4" if dtype == "f32" else "<f2")
        key = LayerKey("tiny", "rev", layer, FeatureKind.NEURON, View.RAW)
        payload = memoryview(values.tobytes())
        return TappedRows(key, dtype, items, rows_per_item, width, payload, named)

    return make


@pytest.fixture
def forward_batch(tapped: Callable[..., TappedRows]) -> Callable[..., ForwardBatch]:
    """Return a function that makes a batch of the given rows."""

    def make(
        *rows: TappedRows,
        requests: tuple[Request, ...] = (),
        weight: float = 1.0,
        release: Callable[[], None] = lambda: None,
        held_bytes: int = 0,
    ) -> ForwardBatch:
        found = rows or (tapped(),)
        held = held_bytes or sum(row.payload.nbytes for row in found)
        return ForwardBatch(lambda: found, requests, weight, held, release)

    return make


@pytest.fixture
def conserved() -> Callable[[Any], bool]:
    """Return a function that checks a sink's books: every batch offered is accounted for once."""

    def check(sink: Any) -> bool:
        report = sink.report()
        settled = report.batches_sent + sum(report.dropped.values())
        return bool(sink.account.offered == settled + sink.pending)

    return check
