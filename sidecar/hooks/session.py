"""The client's side of one ingest stream, without any I/O.

A transport iterates over a session for the messages to send, encodes them its own way, and feeds the
session what it receives. It may receive in a thread of its own, or let the session ask it to.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from sidecar.errors import MalformedMessage
from sidecar.features import FeatureKind, LayerKey
from sidecar.hooks.account import Account, Drop
from sidecar.hooks.batch import Batch, Lend, lends_nothing
from sidecar.hooks.pack import Group, Rows, SparseRows, groups, split
from sidecar.hooks.queue import ByteQueue
from sidecar.wire import (
    Acknowledgement,
    Hello,
    HookReport,
    OutgoingBatch,
    Refusal,
    RegisterLayer,
    Sendable,
    Steering,
    Welcome,
    decode_response,
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a session is, in seconds.

    Attributes:
        welcome: Longest wait for the answer to the hello.
        report: Longest time without a report to the daemon.
        stall: Longest wait for an acknowledgement; a daemon that is silent for longer is taken for
            dead. Also stands in for TCP's own quarter of an hour when a host loses power.
        stale: Age at which a queued batch is no longer worth sending: older rows would be counted
            in a window they do not belong to.
    """

    welcome: float = 5.0
    report: float = 10.0
    stall: float = 30.0
    stale: float = 30.0


class Registry:
    """Numbers a sender's layers; the numbers are the same on every stream of the process."""

    def __init__(self) -> None:
        self._known: dict[LayerKey, RegisterLayer] = {}

    def announce(self, layer: LayerKey, width: int) -> RegisterLayer:
        """Return the layer's registration, numbering it when it is new.

        Raises:
            ValueError: It is known with another width; sending would be refused.
        """
        known = self._known.get(layer)
        if known is None:
            sparse = layer.kind is FeatureKind.LATENT
            known = RegisterLayer(len(self._known), layer, width, sparse)
            self._known[layer] = known
        if known.width != width:
            raise ValueError(f"layer {layer.layer} was {known.width} wide and is now {width}")
        return known

    def all(self) -> tuple[RegisterLayer, ...]:
        """Return every registration so far."""
        return tuple(self._known.values())


LISTEN_SECONDS = 0.25
"""How often a session asks for answers, where no thread receives them: how late it may learn of another
sampling rate, or that the daemon is gone. One that is short of credit asks at once."""

REPORT_SECONDS = 0.1
"""Least time between two reports in batches: a busy stream needs no account of itself with each, and
Prometheus asks a hundred times less often."""


BURST_BYTES = 4 << 20
"""Most payload of one burst. What Python does for a batch of 1 MiB, both ends together, takes 50 us by
itself, and took over 100 us between copies of a MiB, which empty the caches, and wake-ups."""

BURST_MESSAGES = 64
"""Messages after which a burst takes no further batch: small ones must not hold up the first."""

BURST_SHARE = 4
"""Part of the queue's bytes that a burst may take: its batches hold their room until all are sent."""


def _nothing() -> None:
    pass


class Session(Iterator[Sendable]):
    """One stream: hello, registrations, batches within the daemon's credit, and reports.

    The payload of a message is valid until the next message or burst is asked for: then its batch
    counts as sent, and its memory goes back. Never raises into the transport, which would log it in the
    server's process; what goes wrong is counted.

    Args:
        hello: Sent first.
        registry: Layers numbered so far; all of them are registered anew on every stream.
        queue: Where batches come from.
        account: Where errors are counted and reports come from.
        clock: Seconds, never going back.
        timing: How patient the session is.
        rate: Returns the sampling rate to report.
        on_rate: Told the daemon's sampling rate.

    Attributes:
        proven: Whether the daemon has acknowledged anything.
        welcomed_at: When the welcome came; None before.
        refusals: Messages the daemon refused, by error code.
    """

    def __init__(
        self,
        hello: Hello,
        registry: Registry,
        queue: ByteQueue,
        account: Account,
        *,
        clock: Callable[[], float],
        timing: Timing,
        rate: Callable[[], float],
        on_rate: Callable[[float], None],
    ) -> None:
        self.proven = False
        self.welcomed_at: float | None = None
        self._refusals: Counter[str] = Counter()
        self._hello = hello
        self._registry = registry
        self._queue = queue
        self._account = account
        self._clock = clock
        self._timing = timing
        self._rate = rate
        self._on_rate = on_rate
        self._outbox: deque[Sendable] = deque([hello])
        self._announced: set[int] = set()
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._cancel: Callable[[], object] = _nothing
        self._abandon: Callable[[], object] = _nothing
        self._listen: Callable[[float], object] | None = None
        self._lend: Lend = lends_nothing
        self._in_hand: list[Batch] = []
        self._burst_bytes = min(BURST_BYTES, queue.limit_bytes // BURST_SHARE)
        self._finished = False
        self._welcome: Welcome | None = None
        self._greeted = False
        self._credit_bytes = 0
        self._unsettled: deque[tuple[int, int, float]] = deque()  # number, bytes, when sent
        self._unsettled_bytes = 0
        self._sequence = 0
        # The first batch has a report, so that the daemon knows what was sent to it and what was not.
        self._reported_at = clock() - REPORT_SECONDS
        self._report_owed = False
        self._hear_at = clock()

    @property
    def refusals(self) -> Mapping[str, int]:
        """Messages the daemon refused, by error code, as a copy."""
        with self._lock:
            return dict(self._refusals)

    @property
    def ring_bytes(self) -> int:
        """Largest ring that the daemon takes; 0 before its welcome."""
        return self._welcome.ring_bytes if self._welcome else 0

    @property
    def ended(self) -> bool:
        """Whether the stream is over."""
        return self._ended.is_set()

    def bind(
        self,
        cancel: Callable[[], object],
        *,
        abandon: Callable[[], object] = _nothing,
        listen: Callable[[float], object] | None = None,
        lend: Lend = lends_nothing,
    ) -> None:
        """Tell the session what it runs on.

        Args:
            cancel: Ends the call, from any thread.
            abandon: Lets go of it in a forked child, without a word to the daemon: the call is the
                parent's.
            listen: Waits at most so many seconds for an answer, and hands over all there are; None:
                the transport receives in a thread of its own.
            lend: Lends memory that the daemon reads too, for rows of the next burst.
        """
        self._cancel, self._abandon, self._listen, self._lend = cancel, abandon, listen, lend
        if self.ended:
            cancel()

    def abandon(self) -> None:
        """Let go of the parent's connection in a forked child; takes no lock."""
        self._abandon()

    def end(self) -> None:
        """End the stream, from any thread; waiting transports return at once."""
        self._ended.set()
        self._answered.set()
        self._queue.wake()
        self._cancel()

    def __iter__(self) -> Self:
        """Return the session itself; there is one stream of messages."""
        return self

    def finish(self) -> None:
        """End the stream for good; a batch that was not sent whole is lost."""
        self.end()
        with self._lock:
            self._finished = True
        self._settle(Drop.DISCONNECTED)

    def _settle(self, reason: Drop | None) -> None:
        """Count the batches in hand, and give their memory back."""
        with self._lock:
            batches, self._in_hand = self._in_hand, []
        for batch in batches:
            self._queue.settle(batch, reason)

    def _hold(self, batch: Batch) -> bool:
        """Take a batch in hand; not after ``finish``, as nobody would ask for the next message."""
        with self._lock:
            if not self._finished:
                self._in_hand.append(batch)
                return True
        self._queue.settle(batch, Drop.DISCONNECTED)
        return False

    def bursts(self) -> Iterator[list[Sendable]]:
        """Iterate over the messages in bursts: what is at hand is sent together.

        Only the first message of a burst is waited for. A burst that the connection breaks in counts
        as lost, with all its batches.
        """
        for first in self:
            burst = [first, *self._outbox]
            self._outbox.clear()
            self._fill(burst)
            yield burst

    def _fill(self, burst: list[Sendable]) -> None:
        """Add the batches that wait, as long as there is room and credit for all of them."""
        with self._lock:
            left = self._burst_bytes - sum([batch.held_bytes for batch in self._in_hand])
        while len(burst) < BURST_MESSAGES and self._has_credit(left):
            taken = self._queue.take_ready(left, self._ended.is_set)
            if taken is None:
                return
            left -= taken[1].held_bytes
            self._send(*taken)
            burst += self._outbox
            self._outbox.clear()

    def __next__(self) -> Sendable:
        """Wait for the next message to send.

        Raises:
            StopIteration: The stream is over, or the queue is closed and drained.
        """
        try:
            message = self._next()
        except Exception:  # noqa: BLE001 - grpc would print the traceback in the server's log
            self._account.error()
            self.end()
            message = None
        if message is None:
            raise StopIteration
        return message

    def _next(self) -> Sendable | None:
        if not self._outbox:
            self._settle(None)
        if not self._greeted and not self._outbox:
            self._greeted = True
            if not self._wait_welcome():
                self.end()
        while not self._outbox and self._turn():
            pass
        return self._outbox.popleft() if self._outbox else None

    def _turn(self) -> bool:
        """Wait for something to send and put it into the outbox; return whether to go on."""
        if self.ended:
            return False
        now = self._clock()
        stalls_at = self._stalls_at(now)
        if now >= stalls_at:
            self.end()
            return False
        taken = self._take(now, stalls_at)
        if taken is not None:
            self._send(*taken)
        elif not self.ended and self._report_due():
            self._outbox.append(self._report())
        elif self._queue.closed:
            return False
        return True

    def _take(self, now: float, stalls_at: float) -> tuple[float, Batch] | None:
        """Wait for a batch until something else is due; hear what has come in meanwhile."""
        patience = min(self._report_at(), stalls_at) - now
        if self._listen is not None:
            patience = min(patience, LISTEN_SECONDS)
        taken = self._queue.take(max(patience, 0.001), self._ended.is_set)
        if taken is None or now >= self._hear_at:
            self._hear()
            self._hear_at = now + LISTEN_SECONDS
        return taken

    def _hear(self) -> None:
        """Take in what answers there are, where no thread does; a broken connection ends the stream."""
        if self._listen is None:
            return
        try:
            self._listen(0.0)
        except Exception:  # noqa: BLE001 - whatever it is, nothing more can be read
            self._account.error()
            self.end()

    def _wait_welcome(self) -> bool:
        """Wait for the daemon's limits, then announce every layer known so far."""
        if self._listen is None:
            self._answered.wait(self._timing.welcome)
        else:
            self._listen(self._timing.welcome)  # the first answer is the welcome, or a refusal
        if self.ended or self._welcome is None:
            return False
        for registration in self._registry.all():
            self._announce(registration)
        return True

    def _announce(self, registration: RegisterLayer) -> None:
        if registration.layer_id not in self._announced:
            self._announced.add(registration.layer_id)
            self._outbox.append(registration)

    def _stalls_at(self, now: float) -> float:
        """Return when the oldest batch will have waited too long for its acknowledgement."""
        with self._lock:
            oldest = self._unsettled[0][2] if self._unsettled else now
        return oldest + self._timing.stall

    def _report_at(self) -> float:
        """Return when a report is due even if there is no batch."""
        wait_seconds = self._timing.report
        if self._report_owed:
            wait_seconds = min(wait_seconds, REPORT_SECONDS)
        return self._reported_at + wait_seconds

    def _report_due(self) -> bool:
        last = self._queue.closed and self._report_owed
        return last or self._clock() >= self._report_at()

    def _report(self) -> HookReport:
        self._reported_at, self._report_owed = self._clock(), False
        return self._account.report(self._rate())

    def _report_with(self, now: float) -> HookReport | None:
        """Return the report of a batch; none if the last is so fresh that this one can wait."""
        if now - self._reported_at >= REPORT_SECONDS:
            return self._report()
        self._report_owed = True
        return None

    def _send(self, offered_at: float, batch: Batch) -> None:
        """Put a batch's messages into the outbox and keep it in hand, or drop it whole."""
        if not self._hold(batch):
            return
        reason: Drop | None = Drop.ERROR
        try:
            reason = self._pack(offered_at, batch)
        except Exception:  # noqa: BLE001 - one bad batch must not end the stream
            self._account.error()
        if reason is not None and self._let_go():
            self._queue.settle(batch, reason)

    def _let_go(self) -> bool:
        """Take the newest batch out of the hand; false where ``finish`` has settled it already."""
        with self._lock:
            held = bool(self._in_hand)
            if held:
                self._in_hand.pop()
            return held

    def _pack(self, offered_at: float, batch: Batch) -> Drop | None:
        if self._clock() - offered_at > self._timing.stale:
            return Drop.DISCONNECTED
        staged = batch.stage(self._lend)
        if not staged:
            return Drop.ERROR
        limit = self._welcome.message_limit_bytes if self._welcome else 0
        try:
            parts = [part for group in groups(batch, staged) for part in split(group, limit)]
        except ValueError:
            return Drop.TOO_LARGE
        size = sum(part.payload_bytes for part in parts)
        if self._welcome and size > self._welcome.credit_bytes:
            return Drop.TOO_LARGE  # whatever is acknowledged: fewer samples would not help
        if not self._spend(size):
            return Drop.NO_CREDIT
        self._outbox.extend(self._messages(parts))
        return None

    def _spend(self, size: int) -> bool:
        """Say whether there is credit for so much; ask for acknowledgements before denying it."""
        if self._has_credit(size):
            return True
        self._hear()
        return self._has_credit(size)

    def _has_credit(self, size: int) -> bool:
        with self._lock:
            return self._unsettled_bytes + size <= self._credit_bytes

    def _messages(self, parts: Iterable[Group]) -> list[OutgoingBatch]:
        """Make all messages of a batch, or none: its memory goes back at once if one cannot be made."""
        before = self._sequence
        try:
            return [self._message(part) for part in parts]
        except Exception:
            with self._lock:
                while self._unsettled and self._unsettled[-1][0] > before:
                    self._unsettled_bytes -= self._unsettled.pop()[1]
            self._sequence = before
            self._report_owed = True  # it may have gone into a message that is not sent
            raise

    def _message(self, group: Group) -> OutgoingBatch:
        tensors, sparse = group.outgoing(self._number)
        self._sequence += 1
        now, size = self._clock(), group.payload_bytes
        with self._lock:
            self._unsettled.append((self._sequence, size, now))
            self._unsettled_bytes += size
        return OutgoingBatch(
            sequence=self._sequence,
            tensors=tensors,
            requests=group.requests,
            rows_per_request=group.rows_per_request,
            report=self._report_with(now),
            sparse=sparse,
        )

    def _number(self, rows: Rows | SparseRows) -> int:
        """Return the number of a layer, which is announced before."""
        registration = self._registry.announce(rows.layer, rows.width)
        self._announce(registration)
        return registration.layer_id

    def receive(self, data: bytes) -> None:
        """Take one message of the daemon; what cannot be read is counted and passed over."""
        try:
            response = decode_response(data)
        except MalformedMessage:
            self._account.error()
            return
        if isinstance(response, Welcome):
            self._on_welcome(response)
        elif isinstance(response, Acknowledgement):
            self._on_acknowledgement(response)
        elif isinstance(response, Steering):
            self._on_rate(response.sampling_rate)
        else:
            self._on_refusal(response)

    def _on_welcome(self, welcome: Welcome) -> None:
        with self._lock:
            self._credit_bytes = welcome.credit_bytes
            self._welcome = welcome
            self.welcomed_at = self._clock()
        self._on_rate(welcome.sampling_rate)
        self._answered.set()

    def _on_acknowledgement(self, settled: Acknowledgement) -> None:
        with self._lock:
            self._credit_bytes = settled.credit_bytes
            while self._unsettled and self._unsettled[0][0] <= settled.sequence:
                self._unsettled_bytes -= self._unsettled.popleft()[1]
            self.proven = True

    def _on_refusal(self, refusal: Refusal) -> None:
        with self._lock:
            self._refusals[refusal.code] += 1
            # A refused batch needs no acknowledgement to give its credit back.
            for entry in [e for e in self._unsettled if e[0] == refusal.sequence]:
                self._unsettled.remove(entry)
                self._unsettled_bytes -= entry[1]
            greeted = self._welcome is not None
        if not greeted:
            self.end()
