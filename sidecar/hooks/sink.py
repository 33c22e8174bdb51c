"""Where hooks put batches: a bounded queue and, from the first sample on, one sender thread."""

import atexit
import os
import random
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from sidecar.errors import InvalidInput, SidecarError
from sidecar.features import NAME_LIMIT
from sidecar.hooks.account import Account, Drop
from sidecar.hooks.batch import Batch
from sidecar.hooks.breaker import Breaker
from sidecar.hooks.queue import ByteQueue
from sidecar.hooks.session import Registry, Session, Timing
from sidecar.wire import Hello, HookReport

FORK_SECONDS = 5.0
"""Longest time a fork waits for the transport to be loaded; that takes a tenth of it."""

EXIT_SECONDS = 2.0
"""Longest time an exiting server waits for its last batches."""

LET_GO_SECONDS = 1.0
"""Longest time that is then waited for the sender thread, whose stream has been cancelled: milliseconds,
where nothing is wrong."""

PROVEN_SECONDS = 5.0
"""Life of an idle stream after which its end does not count as one more failure in a row."""


class Sink(Protocol):
    """What hooks need of the other side; nothing here blocks or raises after start-up."""

    @property
    def account(self) -> Account:
        """The books of the process."""

    @property
    def limit_bytes(self) -> int:
        """Largest batch that can be taken at all."""

    @property
    def sampling_rate(self) -> float:
        """The announced rate, or what the daemon asks for where that is less; 0 to 1."""

    @property
    def accepting(self) -> bool:
        """Whether copying is worth while: false while the circuit breaker is open."""

    def announce(self, hello: Hello, sampling_rate: float) -> None:
        """Say whose activations will come, and what share of forward passes at most.

        Raises:
            InvalidInput: Another model or capture was announced before.
        """

    def offer(self, batch: Batch) -> bool:
        """Take a batch, or drop it and count why; return whether it was taken."""

    def report(self) -> HookReport:
        """Return the books as they travel to the daemon."""

    @property
    def refusals(self) -> Mapping[str, int]:
        """Messages the daemon refused, and connections refused to it, by error code."""

    def close(self, timeout_seconds: float = EXIT_SECONDS) -> bool:
        """Send what is queued, at most this long; return whether all of it was handed over."""


class QueuedSink:
    """A sink whose sender thread dials the daemon again and again.

    The thread starts with the first batch, survives the daemon's death and is replaced in a forked
    child, which starts with an empty queue and books of its own. Memory: ``queue_bytes`` of batches.

    Args:
        load: Imports what ``dial`` needs, once in the sender thread. A fork waits for it: a child
            born in the middle of an import would find the module's lock held for ever.
        dial: Runs a session over a fresh connection until it is over; may raise.
        queue_bytes: Bytes of batches that may wait.
        timing: How patient sessions are.
        rng: Source of the reconnects' jitter.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        load: Callable[[], object],
        dial: Callable[[Session], None],
        *,
        queue_bytes: int,
        timing: Timing,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._dial = dial
        self._timing = timing
        self._rng = rng
        self._clock = clock
        self._held = False
        self._hello: Hello | None = None
        self._ceiling = 1.0
        self._account = Account()
        self._queue = ByteQueue(queue_bytes, self._account)
        self._start_afresh()
        _call_around_forks(weakref.ref(self))
        # A weak reference: the exit hook must not keep a sink alive that nobody uses.
        atexit.register(_close_at_exit, weakref.ref(self))

    def _start_afresh(self) -> None:
        """Set up what a forked child must not share with its parent."""
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._loaded = False
        self._registry = Registry()
        self._breaker = Breaker(self._rng)
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._closing = threading.Event()
        self._steered = 1.0
        self.sampling_rate = self._ceiling
        self._refused: Counter[str] = Counter()

    def before_fork(self) -> None:
        """Wait until the sender thread is in no import; called by the interpreter."""
        self._held = self._loading.acquire(timeout=FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on as before; called by the interpreter."""
        if self._held:
            self._loading.release()

    def after_fork_in_child(self) -> None:
        """Start afresh, with nothing of the parent's; called by the interpreter."""
        # The parent's session, thread and channel are abandoned, not closed: their locks may be
        # held by threads that do not exist here. Keeping the reference keeps finalisers away.
        if self._session is not None:
            self._session.abandon()
        self._inherited = (self._session, self._thread, self._lock)
        self._account.reset()
        self._queue.reset()
        self._start_afresh()

    @property
    def account(self) -> Account:
        """The books of the process."""
        return self._account

    @property
    def limit_bytes(self) -> int:
        """Largest batch that can be taken at all."""
        return self._queue.limit_bytes

    @property
    def pending(self) -> int:
        """Batches that are neither sent nor dropped yet."""
        return self._queue.pending

    @property
    def connected(self) -> bool:
        """Whether a stream is up and welcomed."""
        session = self._session
        return session is not None and session.welcomed_at is not None and not session.ended

    @property
    def accepting(self) -> bool:
        """Whether copying is worth while: false while the circuit breaker is open."""
        return not self._breaker.open or self.connected

    @property
    def refusals(self) -> Mapping[str, int]:
        """Messages the daemon refused, and connections we refused, by error code, since the start."""
        session = self._session
        return self._refused + Counter(session.refusals if session else {})

    def announce(self, hello: Hello, sampling_rate: float) -> None:
        """Say whose activations will come, and what share of forward passes at most.

        Raises:
            InvalidInput: Another model or capture was announced before; a stream speaks for one.
        """
        with self._lock:
            if self._hello is not None and self._hello != hello:
                raise InvalidInput(
                    f"this sink already sends for model {self._hello.model}: "
                    f"connect() another one for {hello.model}"
                )
            self._hello = hello
            self._ceiling = sampling_rate
            self.sampling_rate = min(self._ceiling, self._steered)

    def offer(self, batch: Batch) -> bool:
        """Take a batch, or drop it and count why; never waits and never raises."""
        if self._breaker.open and not self.connected:
            self._account.refuse(Drop.BREAKER_OPEN)
            batch.release()
            return False
        taken = self._queue.offer(batch, self._clock(), self._when_full)
        if taken and self._thread is None:
            self._start()
        return taken

    def _when_full(self) -> Drop:
        # A queue that fills while nobody empties it means something else than a slow daemon.
        return Drop.QUEUE_FULL if self.connected else Drop.DISCONNECTED

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="sidecar-sender", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can start: the limit is reached, or Python is exiting
                self._queue.clear(Drop.SHUTDOWN)
                return
            self._thread = thread

    def report(self) -> HookReport:
        """Return the books as they travel to the daemon."""
        return self._account.report(self.sampling_rate)

    def close(self, timeout_seconds: float = EXIT_SECONDS) -> bool:
        """Send what is queued, at most this long; later offers are dropped as ``shutdown``.

        A stream that is cut off then has up to ``LET_GO_SECONDS`` more to end.

        Returns:
            Whether everything queued was handed to the transport; what was not is counted.
        """
        deadline = self._clock() + timeout_seconds
        self._queue.close()
        self._closing.set()
        self._join(deadline)
        left = self._queue.pending
        self._queue.clear(Drop.SHUTDOWN)
        session = self._session
        if session is not None:
            session.end()
            # A thread that is inside grpc when the interpreter ends aborts the whole process.
            self._join(self._clock() + LET_GO_SECONDS)
        return left == 0

    def _join(self, deadline: float) -> None:
        if self._thread is not None:
            self._thread.join(max(deadline - self._clock(), 0.0))

    def _run(self) -> None:
        """Keep one stream up until the sink is closed."""
        closing = self._closing
        while True:
            self._stream()
            # What could be sent before closing was; nobody waits for another attempt.
            if closing.is_set():
                return
            wait_seconds = self._breaker.failed()
            if self._breaker.open:
                self._queue.clear(Drop.BREAKER_OPEN)
            if closing.wait(wait_seconds):
                return

    def _stream(self) -> None:
        """Run one stream from hello to end and judge it."""
        session = self._new_session()
        self._session = session
        # Whatever the transport raises, from a refused connection to a missing library, means the
        # same here: this attempt is over. What we raise ourselves is told, as a refusal is.
        try:
            self._ensure_loaded()
            self._dial(session)
        except SidecarError as error:
            self._refused[error.code] += 1
        except Exception:  # noqa: BLE001, S110 - as above
            pass
        session.finish()
        self._refused.update(session.refusals)
        self._session = None
        lived = 0.0 if session.welcomed_at is None else self._clock() - session.welcomed_at
        if session.proven or lived >= PROVEN_SECONDS:
            self._breaker.succeeded()

    def _ensure_loaded(self) -> None:
        if not self._loaded:
            with self._loading:
                self._load()
            self._loaded = True

    def _new_session(self) -> Session:
        hello = self._hello or Hello("unnamed", "unknown")
        return Session(
            replace(hello, client_id=_client_id()),
            self._registry,
            self._queue,
            self._account,
            clock=self._clock,
            timing=self._timing,
            rate=lambda: self.sampling_rate,
            on_rate=self._steer,
        )

    def _steer(self, rate: float) -> None:
        self._steered = rate
        # Worked out here and not where it is read, which is in every forward pass.
        self.sampling_rate = min(self._ceiling, rate)


def _client_id() -> str:
    """Name this process: the same over reconnects, another in every forked child."""
    host = "".join(c if "!" <= c <= "~" else "_" for c in socket.gethostname())
    return f"{host[: NAME_LIMIT - 12]}-{os.getpid()}"


def _call_around_forks(reference: "weakref.ref[QueuedSink]") -> None:
    """Tell a sink of forks for as long as it lives; such handlers cannot be unregistered."""

    def tell(what: Callable[[QueuedSink], None]) -> Callable[[], None]:
        def handler() -> None:
            sink = reference()
            if sink is not None:
                what(sink)

        return handler

    os.register_at_fork(
        before=tell(QueuedSink.before_fork),
        after_in_parent=tell(QueuedSink.after_fork_in_parent),
        after_in_child=tell(QueuedSink.after_fork_in_child),
    )


def _close_at_exit(reference: "weakref.ref[QueuedSink]") -> None:
    sink = reference()
    if sink is not None:
        sink.close(EXIT_SECONDS)
