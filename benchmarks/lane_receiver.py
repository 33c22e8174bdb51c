"""The receiving process of ``benchmarks.lane``: one transport, and nothing done with the values.

    python -m benchmarks.lane_receiver KIND SOCKET

Prints ``ready``; then, for each number on standard input, waits until so many batches have arrived in
all and prints the CPU seconds of the whole process so far.
"""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from sidecar.config import SidecarConfig
from sidecar.errors import QueueFull
from sidecar.ingest import Destination, LaneServer, Ledger
from sidecar.ingest.rpc import IngestStreams, limits_of
from sidecar.monitor import Monitor
from sidecar.wire import METHOD, SERVICE, Batch

CREDIT_BYTES = 1 << 30
"""So much that the sender never has to drop; the socket alone slows it down."""

BATCH_BYTES = 1 << 20
"""As the senders have it."""

DEADLINE_SECONDS = 120.0


class _Counted:
    """How many batches have arrived."""

    def __init__(self) -> None:
        self._reached = threading.Condition()
        self._count = self._wanted = 0

    def add(self) -> None:
        with self._reached:
            self._count += 1
            if self._count == self._wanted:
                self._reached.notify_all()

    def wait(self, count: int) -> None:
        """Wait until so many have arrived; nobody is woken before."""
        with self._reached:
            self._wanted = count
            if not self._reached.wait_for(lambda: self._count >= count, DEADLINE_SECONDS):
                raise TimeoutError(f"{self._count} of {count} batches have arrived")


class _Release:
    """A pipeline that keeps the books and gives every batch back at once."""

    def __init__(self, ledger: Ledger, counted: _Counted) -> None:
        self._ledger, self._counted = ledger, counted

    def offer(self, batch: Batch, done: Callable[[], None]) -> None:
        """Count the batch in and out."""
        if not self._ledger.accept(batch.payload_bytes, batch.held_bytes):
            raise QueueFull("one batch at a time always fits")
        self._ledger.finish(batch.held_bytes)
        done()
        self._counted.add()


@contextmanager
def _ours(kind: str, path: str, counted: _Counted) -> Iterator[None]:
    """Our own server: the real streams and decoder, over frames or gRPC."""
    config = SidecarConfig.model_validate(
        {
            "listen": {"lane": [f"unix://{path}"] if kind == "lane" else []},
            "models": [{"name": "bench"}],
            "ingest": {"credit_bytes": CREDIT_BYTES},
        }
    )
    ledger = Ledger(queue_limit_bytes=config.ingest.queue_bytes, sampling_rate=1.0)
    monitor = Monitor(config.statistics, config.spike, now=0.0)
    pipeline: Any = _Release(ledger, counted)
    destination = Destination(config, monitor, pipeline, ledger, time.time)
    if kind == "lane":
        server = LaneServer(destination)
        server.start()
        yield
        server.stop()
        return
    streams = IngestStreams(destination)
    method = grpc.stream_stream_rpc_method_handler(streams.serve)
    options = limits_of(config.ingest)
    with _aio_server(SERVICE, METHOD, method, path, options=options):
        yield


@contextmanager
def _grpcio_raw(path: str, counted: _Counted) -> Iterator[None]:
    """Grpcio with no message at all: bytes in, nothing out."""

    async def take(requests: Any, _: Any) -> bytes:
        async for _payload in requests:
            counted.add()
        return b""

    method = grpc.stream_unary_rpc_method_handler(take)
    with _aio_server("Raw", "Put", method, path, options=[]):
        yield


@contextmanager
def _aio_server(
    service: str, name: str, method: Any, path: str, *, options: list[tuple[str, int]]
) -> Iterator[None]:
    loop, up = asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server(options=options)
        handlers = grpc.method_handlers_generic_handler(service, {name: method})
        server.add_generic_rpc_handlers((handlers,))
        server.add_insecure_port(f"unix://{path}")
        await server.start()
        up.set()
        await server.wait_for_termination()

    threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True).start()
    up.wait(DEADLINE_SECONDS)
    yield


@contextmanager
def _flight(path: str, counted: _Counted) -> Iterator[None]:
    """Arrow Flight's do_put, which is gRPC in C++ with its own zero-copy serialisation."""
    from pyarrow import flight  # noqa: PLC0415 - of the bench extra, and heavy

    class _Server(flight.FlightServerBase):
        def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            del context, descriptor, writer
            for _chunk in reader:
                counted.add()

    server = _Server(f"grpc+unix://{path}")
    threading.Thread(target=server.serve, daemon=True).start()
    yield


@contextmanager
def _socket(path: str, counted: _Counted) -> Iterator[None]:
    """A bare unix socket that is read into one buffer: the least this way can cost."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def read() -> None:
        connection, _ = listener.accept()
        buffer = bytearray(BATCH_BYTES)
        while connection.recv_into(buffer, BATCH_BYTES, socket.MSG_WAITALL):
            counted.add()

    threading.Thread(target=read, daemon=True).start()
    yield


def main(kind: str, path: str) -> None:
    """Serve until standard input ends."""
    counted = _Counted()
    servers = {"grpcio": _grpcio_raw, "flight": _flight, "socket": _socket}
    server = servers[kind](path, counted) if kind in servers else _ours(kind, path, counted)
    with server:
        print("ready", flush=True)
        for line in sys.stdin:
            counted.wait(int(line))
            print(time.process_time(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
