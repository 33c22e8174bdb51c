"""One ingest stream, whatever carries it: decodes, admits, acknowledges, steers."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.config import IngestConfig, SidecarConfig
from sidecar.errors import SidecarError, UnknownModel, UnregisteredStream
from sidecar.ingest.accounting import Ledger
from sidecar.ingest.pipeline import Pipeline
from sidecar.monitor import Monitor
from sidecar.wire import (
    Acknowledgement,
    Answer,
    Batch,
    Hello,
    HookReport,
    Refusal,
    RegisterLayer,
    Steering,
    StreamDecoder,
    Welcome,
)

STEER_SECONDS = 1.0
"""How often a transport asks for answers unasked, to learn of another sampling rate."""

ACKNOWLEDGE_SHARE = 8
"""Part of its credit that a busy stream has to have used before it is acknowledged; one that rests is
at once."""

ANSWER_LIMIT = 1024
"""Answers waiting for a client that does not read; beyond it the oldest are left out."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What every stream of a daemon leads to.

    Attributes:
        config: Models that may be watched, and the bounds of a stream.
        monitor: Where layers are registered.
        pipeline: Where batches go.
        ledger: Where everything is counted.
        clock: Returns Unix seconds.
    """

    config: SidecarConfig
    monitor: Monitor
    pipeline: Pipeline
    ledger: Ledger
    clock: Callable[[], float]

    @property
    def limits(self) -> IngestConfig:
        """The bounds of a stream."""
        return self.config.ingest


def _nothing() -> None:
    pass


class Stream:
    """The state of one stream.

    One thread at a time takes messages in; answers may be fetched by another, and are caused by the
    writer thread too.

    Args:
        destination: Where it leads.
        wake: Called from any thread when there are answers to fetch; must not wait.
        ring_bytes: Largest ring of shared memory that the transport takes; 0: none.
    """

    def __init__(
        self, destination: Destination, wake: Callable[[], None], ring_bytes: int = 0
    ) -> None:
        self._to, self._wake, self._ring_bytes = destination, wake, ring_bytes
        limits = destination.limits
        self._decoder = StreamDecoder(
            limits.width_limit, message_limit_bytes=limits.message_limit_bytes
        )
        self._hello: Hello | None = None
        self._lock = threading.Lock()
        self._answers: deque[Answer] = deque(maxlen=ANSWER_LIMIT)
        self._order = _InOrder()
        self._acknowledged = 0
        self._finished_bytes = 0
        self._resting = True
        self._woken = False
        self._rate = destination.ledger.sampling_rate

    def take(
        self,
        data: bytes,
        attached: memoryview | None = None,
        release: Callable[[], None] = _nothing,
    ) -> None:
        """Take one message in, or refuse and count it; may wait for the writer to end a batch.

        Args:
            data: The message.
            attached: The payload that followed it in its frame.
            release: Called once, from any thread, when nothing looks at ``attached`` any more.
        """
        message = self.decode(data, attached)
        if message is None or not self.admit(message, release):
            release()

    def decode(
        self, data: bytes, attached: memoryview | None = None
    ) -> Hello | RegisterLayer | Batch | HookReport | None:
        """Read one message; None after refusing it."""
        try:
            if attached is None:
                return self._decoder.decode(data)
            return self._decoder.decode(data, attached)
        except SidecarError as error:
            self.refuse(error, error.sequence)
        return None

    def admit(
        self,
        message: Hello | RegisterLayer | Batch | HookReport,
        release: Callable[[], None] = _nothing,
    ) -> bool:
        """Let a message have its effect, or refuse it.

        Args:
            message: What ``decode`` returned.
            release: Called from the writer thread when a batch is done with.

        Returns:
            Whether ``release`` will be called.
        """
        try:
            return self._admit(message, release)
        except SidecarError as error:
            self.refuse(error, message.sequence if isinstance(message, Batch) else 0)
        return False

    def _admit(
        self, message: Hello | RegisterLayer | Batch | HookReport, release: Callable[[], None]
    ) -> bool:
        if isinstance(message, Hello):
            self._welcome(message)
            return False
        hello = self._hello
        if hello is None:
            raise UnregisteredStream("the hello of this stream was refused: open a new one")
        match message:
            case RegisterLayer():
                self._to.monitor.register(
                    message.layer,
                    message.width,
                    hello.capture,
                    self._to.clock(),
                    sparse=message.sparse,
                )
            case HookReport():
                self._report(hello, message)
            case Batch():
                self._report(hello, message.report)
                return self._offer(message, release)
        return False

    def _offer(self, batch: Batch, release: Callable[[], None]) -> bool:
        sequence, size = batch.sequence, batch.payload_bytes

        def done() -> None:
            release()
            self._finish(sequence, size)

        # Begun first: the writer may be done with it before ``offer`` returns.
        with self._lock:
            self._order.begin(sequence)
        try:
            self._to.pipeline.offer(batch, done)
        except SidecarError as error:
            self.refuse(error, sequence, begun=True)
            return False
        return True

    def _report(self, hello: Hello, report: HookReport | None) -> None:
        if report is not None:
            # A process that serves two models has two sinks, each with books of its own.
            client = f"{hello.client_id} {hello.model}@{hello.revision}"
            self._to.ledger.report(client, report)

    def _welcome(self, hello: Hello) -> None:
        config, limits = self._to.config, self._to.limits
        if config.model(hello.model) is None:
            known = ", ".join(model.name for model in config.models) or "none"
            raise UnknownModel(
                f"model {hello.model!r} is not configured (models: {known}): add it under models"
            )
        self._rate = self._to.ledger.sampling_rate
        self._hello = hello
        welcome = Welcome(
            limits.credit_bytes, limits.message_limit_bytes, self._rate, self._ring_bytes
        )
        with self._lock:
            self._answers.append(welcome)
        self._wake()

    def refuse(self, error: SidecarError, sequence: int = 0, *, begun: bool = False) -> None:
        """Count a message that was turned away, and tell the client.

        Args:
            error: Why.
            sequence: Number of the batch; 0: unknown, or no batch.
            begun: Whether the number was taken in before. One that merely comes again belongs to
                another batch, which may still wait.
        """
        self._to.ledger.refuse(error.reason)
        refusal = Refusal(sequence, error.code, error.reason, error.message)
        with self._lock:
            self._answers.append(refusal)
            if begun or self._order.begin(sequence):
                self._order.finish(sequence)
        self._wake()

    def _finish(self, sequence: int, size: int) -> None:
        """Called from the writer thread when a batch left the queue."""
        with self._lock:
            self._order.finish(sequence)
            self._finished_bytes += size
            used = self._finished_bytes * ACKNOWLEDGE_SHARE >= self._to.limits.credit_bytes
            due = (used or self._resting) and self._acknowledgement_due()
        if due:
            self._wake()

    def busy(self) -> None:
        """Say that more messages are at hand: acknowledgements may wait until they are worth it."""
        self._resting = False

    def rest(self) -> None:
        """Say that no message is at hand: from now on every batch is acknowledged when it is done."""
        with self._lock:
            self._resting = True
            due = self._acknowledgement_due()
        if due:
            self._wake()

    def _acknowledgement_due(self) -> bool:
        """Say whether to wake the transport: once for all batches finished since it last asked."""
        due = self._order.done > self._acknowledged and not self._woken
        self._woken |= due
        return due

    def answers(self) -> list[Answer]:
        """Return what is to be sent now, each answer once.

        Refusals come before the acknowledgement that settles the same batch. Of acknowledgements and
        steering only the newest is there, if it changed since the last call.
        """
        with self._lock:
            due = list(self._answers)
            self._answers.clear()
            self._woken = False
            if self._order.done > self._acknowledged:
                self._acknowledged = self._order.done
                self._finished_bytes = 0
                due.append(Acknowledgement(self._acknowledged, self._to.limits.credit_bytes))
        rate = self._to.ledger.sampling_rate
        if self._hello and rate != self._rate:
            reason = "overload" if rate < self._rate else "recovered"
            self._rate = rate
            due.append(Steering(rate, reason))
        return due


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
