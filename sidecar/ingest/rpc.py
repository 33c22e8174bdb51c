"""Ingest streams over gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from sidecar.config import IngestConfig
from sidecar.errors import LimitReached
from sidecar.ingest.stream import STEER_SECONDS, Destination, Stream
from sidecar.wire import RegisterLayer, encode_response


class IngestStreams:
    """Serves ``IngestService.Stream``; one instance a daemon."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._readers: set[asyncio.Task[None]] = set()
        self._closing = False

    def close(self) -> None:
        """End every stream and turn new ones away; hooks never end theirs by themselves."""
        self._closing = True
        for reader in self._readers:
            reader.cancel()

    async def serve(
        self, requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[bytes]:
        """Read raw requests until the client ends the stream; yield raw responses."""
        limit = self._to.limits.stream_limit
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping")
        if not self._to.ledger.open_stream(limit):
            error = LimitReached(f"{limit} streams are open: raise ingest.stream_limit")
            self._to.ledger.refuse(error.reason)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        waker = _Waker()
        stream = Stream(self._to, waker.wake)
        reader = asyncio.create_task(_read(stream, requests))
        self._readers.add(reader)
        reader.add_done_callback(self._ended)
        reader.add_done_callback(lambda _: waker.wake())
        try:
            while not reader.done():
                await waker.wait(STEER_SECONDS)
                for answer in stream.answers():
                    yield encode_response(answer)
            for answer in stream.answers():
                yield encode_response(answer)
        finally:
            reader.cancel()
            self._to.ledger.close_stream()

    def _ended(self, reader: "asyncio.Task[None]") -> None:
        self._readers.discard(reader)
        if not reader.cancelled() and (error := reader.exception()) and not self._closing:
            structlog.get_logger().warning("stream_broken", error=repr(error))


async def _read(stream: Stream, requests: AsyncIterator[bytes]) -> None:
    """Take in everything the client sends."""
    async for payload in requests:
        message = stream.decode(payload)
        if isinstance(message, RegisterLayer):
            # Off the event loop: it may have to wait until the writer has ended a batch.
            await asyncio.to_thread(stream.admit, message)
        elif message is not None:
            stream.admit(message)


class _Waker:
    """An event of the running loop that any thread may set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone at shutdown: nobody listens
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()


def limits_of(config: IngestConfig) -> list[tuple[str, int]]:
    """Return the gRPC channel options that bound what a client may do.

    gRPC's own limit is above ours, so that an oversized message is refused and counted by name. One
    over gRPC's limit ends its stream with RESOURCE_EXHAUSTED before anything of it reaches us.
    """
    return [
        ("grpc.max_receive_message_length", 4 * config.message_limit_bytes),
        ("grpc.so_reuseport", 0),  # two daemons on one port would silently split the traffic
        ("grpc.server_handshake_timeout_ms", 5000),
    ]
