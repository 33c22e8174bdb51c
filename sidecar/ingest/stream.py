"""One ingest stream: decodes, admits, acknowledges, steers."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from sidecar.config import IngestConfig, SidecarConfig
from sidecar.errors import LimitReached, SidecarError, UnknownModel, UnregisteredStream
from sidecar.ingest.accounting import Ledger
from sidecar.ingest.pipeline import Pipeline
from sidecar.monitor import Monitor
from sidecar.wire import (
    Acknowledgement,
    Batch,
    Hello,
    HookReport,
    Refusal,
    RegisterLayer,
    Steering,
    StreamDecoder,
    Welcome,
    encode_response,
)

STEER_SECONDS = 1.0
"""How often a stream looks whether the sampling rate changed."""

RESPONSE_LIMIT = 1024
"""Responses waiting for a client that does not read; beyond it refusals are left out."""

Response = Acknowledgement | Refusal | Steering | Welcome


class _Nudge:
    """Wakes the sender, which then says what is due."""


_NUDGE = _Nudge()


class IngestStreams:
    """Serves ``IngestService.Stream``; one instance a daemon."""

    def __init__(
        self,
        config: SidecarConfig,
        monitor: Monitor,
        pipeline: Pipeline,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        """Prepare to serve streams into ``pipeline``."""
        self._config, self._monitor = config, monitor
        self._pipeline, self._ledger, self._clock = pipeline, ledger, clock
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
        limit = self._config.ingest.stream_limit
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping")
        if not self._ledger.open_stream(limit):
            error = LimitReached(f"{limit} streams are open: raise ingest.stream_limit")
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        stream = _Stream(self._config, self._monitor, self._pipeline, self._ledger, self._clock)
        reader = asyncio.create_task(stream.read(requests))
        self._readers.add(reader)
        reader.add_done_callback(self._ended)
        try:
            async for response in stream.responses():
                yield response
        finally:
            reader.cancel()
            self._ledger.close_stream()

    def _ended(self, reader: "asyncio.Task[None]") -> None:
        self._readers.discard(reader)
        if not reader.cancelled() and (error := reader.exception()) and not self._closing:
            structlog.get_logger().warning("stream_broken", error=repr(error))


class _Stream:
    """The state of one stream; lives on the event loop."""

    def __init__(
        self,
        config: SidecarConfig,
        monitor: Monitor,
        pipeline: Pipeline,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._limits = config, config.ingest
        self._monitor, self._pipeline, self._ledger, self._clock = monitor, pipeline, ledger, clock
        self._decoder = StreamDecoder(
            self._limits.width_limit, message_limit_bytes=self._limits.message_limit_bytes
        )
        self._hello: Hello | None = None
        self._out: asyncio.Queue[Response | _Nudge | None] = asyncio.Queue(RESPONSE_LIMIT)
        self._loop = asyncio.get_running_loop()
        self._order = _InOrder()
        self._sent = 0
        self._rate = ledger.sampling_rate

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Take in everything the client sends; ends with the stream."""
        try:
            async for payload in requests:
                await self._take(payload)
        finally:
            self._put(None)

    async def responses(self) -> AsyncIterator[bytes]:
        """Yield what is to be sent until ``read`` has ended and everything was sent."""
        ended = False
        while not ended:
            found = await self._waiting()
            ended = None in found
            # Refusals before the acknowledgement that settles the same batch.
            for response in [*found, *self._due()]:
                if response is not None and not isinstance(response, _Nudge):
                    yield encode_response(response)

    async def _waiting(self) -> list[Response | _Nudge | None]:
        """Return everything in the queue, after waiting a while for there to be something."""
        found: list[Response | _Nudge | None] = []
        with contextlib.suppress(TimeoutError):
            found.append(await asyncio.wait_for(self._out.get(), STEER_SECONDS))
        while not self._out.empty():
            found.append(self._out.get_nowait())
        return found

    def _due(self) -> list[Response]:
        """Return the newest acknowledgement and steering, if either changed since it was sent."""
        due: list[Response] = []
        if self._order.done > self._sent:
            self._sent = self._order.done
            due.append(Acknowledgement(self._sent, self._limits.credit_bytes))
        rate = self._ledger.sampling_rate
        if self._hello and rate != self._rate:
            reason = "overload" if rate < self._rate else "recovered"
            self._rate = rate
            due.append(Steering(rate, reason))
        return due

    def _put(self, response: Response | _Nudge | None) -> None:
        if self._out.full():
            self._out.get_nowait()
        self._out.put_nowait(response)

    async def _take(self, payload: bytes) -> None:
        try:
            message = self._decoder.decode(payload)
        except SidecarError as error:
            self._refuse(error, error.sequence)
            return
        try:
            await self._admit(message)
        except SidecarError as error:
            self._refuse(error, message.sequence if isinstance(message, Batch) else 0)

    async def _admit(self, message: Hello | RegisterLayer | Batch | HookReport) -> None:
        if isinstance(message, Hello):
            self._welcome(message)
            return
        hello = self._hello
        if hello is None:
            raise UnregisteredStream("the hello of this stream was refused: open a new one")
        match message:
            case RegisterLayer():
                # Off the event loop: it may have to wait until the writer has ended a batch.
                await asyncio.to_thread(
                    self._monitor.register,
                    message.layer,
                    message.width,
                    hello.capture,
                    self._clock(),
                )
            case HookReport():
                self._report(hello, message)
            case Batch():
                self._report(hello, message.report)
                sequence = message.sequence
                self._pipeline.offer(message, lambda: self._done(sequence))
                self._order.begin(sequence)

    def _report(self, hello: Hello, report: HookReport | None) -> None:
        if report is not None:
            # A process that serves two models has two sinks, each with books of its own.
            client = f"{hello.client_id} {hello.model}@{hello.revision}"
            self._ledger.report(client, report)

    def _welcome(self, hello: Hello) -> None:
        if self._config.model(hello.model) is None:
            known = ", ".join(model.name for model in self._config.models) or "none"
            raise UnknownModel(
                f"model {hello.model!r} is not configured (models: {known}): add it under models"
            )
        self._hello = hello
        self._rate = self._ledger.sampling_rate
        limits = self._limits
        self._put(Welcome(limits.credit_bytes, limits.message_limit_bytes, self._rate))

    def _refuse(self, error: SidecarError, sequence: int) -> None:
        self._ledger.refuse(error.reason)
        self._put(Refusal(sequence, error.code, error.reason, error.message))
        if self._order.begin(sequence):
            self._finish(sequence)

    def _done(self, sequence: int) -> None:
        """Called from the writer thread when a batch left the queue."""
        with contextlib.suppress(RuntimeError):  # the loop is gone at shutdown: nobody listens
            self._loop.call_soon_threadsafe(self._finish, sequence)

    def _finish(self, sequence: int) -> None:
        quiet = self._order.done == self._sent
        self._order.finish(sequence)
        if quiet and self._order.done > self._sent:
            # One wake-up for all batches finished since: the acknowledgement names the newest.
            self._put(_NUDGE)


class _InOrder:
    """The greatest number up to which everything begun has finished, whatever the order."""

    def __init__(self) -> None:
        self.done = 0
        self._newest = 0
        self._begun: deque[int] = deque()
        self._finished: set[int] = set()

    def begin(self, number: int) -> bool:
        """Take in the next number; say whether it is one: numbers grow from 1 on.

        A number that comes again, on a batch that is refused for it, must not be waited for twice.
        """
        grows = number > self._newest
        if grows:
            self._newest = number
            self._begun.append(number)
        return grows

    def finish(self, number: int) -> None:
        self._finished.add(number)
        while self._begun and self._begun[0] in self._finished:
            self.done = self._begun.popleft()
            self._finished.discard(self.done)


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
