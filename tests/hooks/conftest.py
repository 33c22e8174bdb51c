"""A real ingest server, tiny models, and a sink that keeps what it is offered."""

import asyncio
import contextlib
import socket
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
from sidecar.hooks.account import Account, Drop
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.pack import Rows, SparseRows, groups, split
from sidecar.wire import (
    METHOD,
    SERVICE,
    Acknowledgement,
    Batch,
    FrameKind,
    FrameReader,
    Hello,
    HookReport,
    OutgoingBatch,
    Refusal,
    RegisterLayer,
    Steering,
    StreamDecoder,
    Welcome,
    encode_request,
    encode_response,
    encode_response_frame,
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
    ended: bool = False


class IngestServer:
    """A small real daemon end: decodes, welcomes, acknowledges, steers; what carries it is a subclass's.

    Runs in threads of its own, so that killing it is abrupt for the client.
    """

    def __init__(self, path: Path, welcome: Welcome | None, *, acknowledges: bool) -> None:
        self.path = path
        self.welcome = welcome
        self.acknowledges = acknowledges
        self.streams: list[Received] = []

    @property
    def batches(self) -> list[Batch]:
        """The batches of all streams."""
        return [batch for stream in self.streams for batch in stream.batches]

    def take(self, received: Received, decode: Callable[[], Any]) -> Any:
        """Take one message; return the answer, or None."""
        try:
            value = decode()
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


class GrpcIngestServer(IngestServer):
    """Over gRPC, on a unix socket."""

    def __init__(self, path: Path, welcome: Welcome | None, *, acknowledges: bool) -> None:
        super().__init__(path, welcome, acknowledges=acknowledges)
        self.address = f"grpc+unix://{path}"
        self._contexts: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._writing = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "GrpcIngestServer":
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
            asyncio.run_coroutine_threadsafe(self._write(context, payload), self._loop).result(5)

    async def _write(self, context: Any, payload: bytes) -> None:
        # gRPC takes one write at a time, and answers and steering come from two tasks.
        async with self._writing:
            await context.write(payload)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        server.add_insecure_port(f"unix://{self.path}")
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
                answer = self.take(received, lambda data=data: decoder.decode(data))
                if answer is not None:
                    await self._write(context, encode_response(answer))
        finally:
            self._contexts.remove(context)


class LaneIngestServer(IngestServer):
    """As frames on a unix socket."""

    def __init__(self, path: Path, welcome: Welcome | None, *, acknowledges: bool) -> None:
        super().__init__(path, welcome, acknowledges=acknowledges)
        self.address = f"unix://{path}"
        self._connections: list[socket.socket] = []
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def start(self) -> "LaneIngestServer":
        """Take connections."""
        self._threads[0].start()
        return self

    def kill(self) -> None:
        """Break every connection off and stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE_SECONDS)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)

    def steer(self, rate: float) -> None:
        """Ask every open stream for another sampling rate."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(encode_response_frame(Steering(rate, "test")))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._stream, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _stream(self, connection: socket.socket) -> None:
        received = Received()
        decoder = StreamDecoder()
        self.streams.append(received)
        limit = 8 << 20
        frames = FrameReader(connection.recv_into, kind=FrameKind.REQUEST, limit_bytes=limit)
        with connection, contextlib.suppress(OSError, SidecarError):
            while (frame := frames.read()) is not None:
                answer = self.take(
                    received, lambda frame=frame: decoder.decode(frame.message, frame.payload)
                )
                if answer is not None:
                    connection.sendall(encode_response_frame(answer))
        received.ended = True


SERVERS = {"lane": LaneIngestServer, "grpc": GrpcIngestServer}


@pytest.fixture(params=sorted(SERVERS))
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the stream; every test of the hooks' side runs over both."""
    return str(request.param)


@pytest.fixture
def serve(tmp_path: Path, transport: str) -> Iterator[Callable[..., Any]]:
    """Return a function that starts an ingest server; the socket is the same for all of a test."""
    servers = []

    def start(
        credit_bytes: int = 8 << 20,
        message_limit_bytes: int = 4 << 20,
        sampling_rate: float = 1.0,
        *,
        acknowledges: bool = True,
        welcomes: bool = True,
    ) -> Any:
        welcome = Welcome(credit_bytes, message_limit_bytes, sampling_rate) if welcomes else None
        server = SERVERS[transport](tmp_path / "in.sock", welcome, acknowledges=acknowledges)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def url(tmp_path: Path, transport: str) -> str:
    """Where the server is, or will be."""
    scheme = {"lane": "unix", "grpc": "grpc+unix"}[transport]
    return f"{scheme}://{tmp_path}/in.sock"


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
        samples = as_decoded(batch)
        batch.release()
        if not samples:  # as a session does
            self.account.drop(Drop.ERROR)
            return True
        self.offered.append(batch)
        self.samples.append(samples)
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


def as_decoded(batch: ForwardBatch, limit_bytes: int = 4 << 20) -> list[Any]:
    """Send a batch through the wire's own encoder and decoder, in messages of limited size."""
    decoder = StreamDecoder(message_limit_bytes=limit_bytes)
    samples: list[Any] = []
    numbers: dict[LayerKey, int] = {}
    sequence = 0
    for group in groups(batch, batch.stage()):
        for part in split(group, limit_bytes):
            sequence += 1

            def number(rows: Rows | SparseRows) -> int:
                if decoder.hello is None:
                    decoder.decode(encode_request(Hello(rows.layer.model, rows.layer.revision)))
                found = numbers.setdefault(rows.layer, len(numbers))
                sparse = isinstance(rows, SparseRows)
                decoder.decode(encode_request(RegisterLayer(found, rows.layer, rows.width, sparse)))
                return found

            tensors, sparse = part.outgoing(number)
            outgoing = OutgoingBatch(
                sequence,
                tensors,
                part.requests,
                sparse=sparse,
                rows_per_request=part.rows_per_request,
            )
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
        weight: float = 1.0,
    ) -> TappedRows:
        count = items * rows_per_item * width
        values = np.arange(start, start + count, dtype="<f4" if dtype == "f32" else "<f2")
        key = LayerKey("tiny", "rev", layer, FeatureKind.NEURON, View.RAW)
        payload = memoryview(values.tobytes())
        return TappedRows(key, dtype, items, rows_per_item, width, payload, named, weight)

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
