"""The node-local lane: ingest streams as frames on unix sockets, one reader thread a connection."""

import contextlib
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from sidecar.errors import (
    BrokenFrame,
    ConfigError,
    LimitReached,
    MalformedMessage,
    SidecarError,
)
from sidecar.ingest.pool import BufferPool
from sidecar.ingest.ring import RING_BYTES, RingEnd
from sidecar.ingest.sockets import SCHEME, clear_stale, share, why
from sidecar.ingest.stream import STEER_SECONDS, Destination, Stream
from sidecar.wire import FrameKind, FrameReader, Refusal, check_peer, encode_response_frame

POOL_SHARE = 4
"""The pool keeps up to this part of ``ingest.queue_bytes`` for reuse."""

BACKLOG = 64
"""Connections that may wait to be accepted; a hook beyond them tries again."""

PATIENCE_SECONDS = 30.0
"""Longest time a frame may take to arrive: a peer that stops in the middle holds a thread."""

LOG_SECONDS = 60.0
"""Least time between two log lines about the same peer and reason: hooks come back again and again."""

JOIN_SECONDS = 5.0
"""Longest wait for the threads at a stop; they are only ever a lock or a batch away from their end."""

REST_MILLISECONDS = 2
"""Silence after which a peer is taken to have sent what it has: it then waits for acknowledgements at
most this long, and one that sends steadily does not cost one for each batch."""

UNSENT_LIMIT_BYTES = 65_536
"""Answers kept for a peer that does not read; beyond it they wait in the stream, which leaves out old
ones."""

_TOLD_LIMIT = 256
_TIMEVAL = struct.Struct("@ll")
_NEVER_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class LaneServer:
    """Serves hooks of this machine on the configured sockets.

    Threads: one that accepts, and tells idle streams of another sampling rate; one for each
    connection, at most ``ingest.stream_limit``, which reads. Answers are written by whoever causes
    them, without waiting: they stay behind while a peer does not read.

    Memory: the pool, and one payload for each connection beside what the ingest queue holds; rings of at
    most ``ingest.ring_bytes`` together are mapped, which the hooks' processes are charged with, but for holes
    that a hook leaves in them: those fill when they are read, on the daemon's account.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing listens before ``start``."""
        self._to = destination
        self._patience_seconds = patience_seconds
        self._pool = BufferPool(destination.limits.queue_bytes // POOL_SHARE)
        self._listeners: dict[Path, socket.socket] = {}
        self._lock = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._journal = _Journal(monotonic)
        self._stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._run, name="sidecar-lane", daemon=True)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens."""
        return tuple(f"{SCHEME}{path}" for path in self._listeners)

    @property
    def alive(self) -> bool:
        """Whether new connections are taken, where any are expected."""
        return self._acceptor.is_alive() or not self._listeners

    def start(self) -> None:
        """Listen on every address.

        Raises:
            ConfigError: One of them is taken or cannot be made; the message names all of those.
        """
        problems = []
        for address in self._to.config.listen.lane:
            try:
                self._listen(Path(address.removeprefix(SCHEME)))
            except (OSError, ConfigError) as error:
                problems.append(f"listen.lane {address}: {why(error)}: free it or choose another")
        if problems:
            self.stop()
            raise ConfigError("\n".join(problems))
        if self._listeners:
            self._acceptor.start()

    def _listen(self, path: Path) -> None:
        clear_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            # Before anybody can connect: the mode that bind gave it may be wider.
            share(path)
            listener.listen(BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
        except BaseException:
            listener.close()
            raise
        self._listeners[path] = listener

    def stop(self) -> None:
        """Turn new connections away, end those there are, remove the sockets; again does nothing."""
        self._stopping.set()
        for listener in self._listeners.values():
            listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        if self._acceptor.is_alive():
            self._acceptor.join(JOIN_SECONDS)
        for path, listener in self._listeners.items():
            listener.close()
            path.unlink(missing_ok=True)
        self._listeners.clear()
        with self._lock:
            open_ = dict(self._connections)
        for connection in open_:
            connection.hang_up()
        for reader in open_.values():
            reader.join(JOIN_SECONDS)

    # -- accepting ----------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners.values():
                selector.register(listener, selectors.EVENT_READ, listener)
            while not self._stopping.is_set():
                try:
                    self._turn(selector)
                except Exception as error:  # noqa: BLE001 - rule 1: nothing may end this thread
                    self._journal.note("lane_failed", error=repr(error))
                    self._stopping.wait(STEER_SECONDS)

    def _turn(self, selector: selectors.BaseSelector) -> None:
        """Accept who waits, or wait a while; then let every stream say what has not been said."""
        for key, _ in selector.select(STEER_SECONDS):
            if not self._stopping.is_set():
                self._accept(key.data)
        with self._lock:
            open_ = list(self._connections)
        for connection in open_:
            connection.flush()

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError as error:  # out of descriptors: trying again at once would help nobody
            self._journal.note("lane_accept_failed", error=str(error))
            self._stopping.wait(STEER_SECONDS)
            return
        try:
            self._admit(accepted)
        except SidecarError as error:
            self._turn_away(accepted, error)
        except BaseException:
            accepted.close()
            raise

    def _admit(self, accepted: socket.socket) -> None:
        """Start a reader for a new connection.

        Raises:
            ForbiddenPeer: Its user is not allowed.
            LimitReached: There are as many streams as may be, or no thread for it.
        """
        uid = check_peer(accepted, self._to.config.listen.lane_uids)
        with self._lock:
            rings = sum(one.ring_bytes for one in self._connections)
        left = self._to.limits.ring_bytes - rings
        connection = _Connection(
            accepted, self._to, self._pool, self._patience_seconds, max(min(left, RING_BYTES), 0)
        )
        limit = self._to.limits.stream_limit
        if not self._to.ledger.open_stream(limit):
            raise LimitReached(f"{limit} streams are open: raise ingest.stream_limit")
        reader = threading.Thread(
            target=self._serve, args=(connection, uid), name="sidecar-lane-reader", daemon=True
        )
        with self._lock:
            self._connections[connection] = reader
        try:
            reader.start()
        except RuntimeError as error:
            self._forget(connection)
            raise LimitReached(f"no thread for another stream: {error}") from error

    def _turn_away(self, accepted: socket.socket, error: SidecarError) -> None:
        self._to.ledger.refuse(error.reason)
        self._journal.note("lane_peer_refused", reason=error.reason, error=error.message)
        refusal = Refusal(0, error.code, error.reason, error.message)
        with contextlib.suppress(OSError), accepted:
            accepted.send(encode_response_frame(refusal), _NEVER_WAIT)

    # -- one connection -----------------------------------------------------------------------

    def _serve(self, connection: "_Connection", uid: int) -> None:
        """Read a connection to its end; runs in a thread of its own."""
        try:
            connection.read()
        except BrokenFrame as error:
            self._journal.note("lane_stream_broken", uid=uid, reason=error.reason, error=str(error))
        except Exception as error:  # noqa: BLE001 - one stream must not print over the log
            self._journal.note("lane_stream_broken", uid=uid, reason="internal", error=repr(error))
        finally:
            self._forget(connection)

    def _forget(self, connection: "_Connection") -> None:
        connection.close()
        with self._lock:
            del self._connections[connection]
        self._to.ledger.close_stream()


class _Connection:
    """One peer: its socket and its stream."""

    def __init__(
        self,
        accepted: socket.socket,
        destination: Destination,
        pool: BufferPool,
        patience_seconds: float,
        ring_bytes: int,
    ) -> None:
        self._socket = accepted
        self.ring_bytes = ring_bytes
        self._ring = RingEnd(ring_bytes)
        self._stream = Stream(destination, self.flush, ring_bytes)
        # Held while the socket is written to or closed: a number that is closed is given to the
        # next connection at once.
        self._sending = threading.Lock()
        self._open = True
        self._unsent = b""
        accepted.setblocking(True)  # noqa: FBT003 - the socket's own signature
        self._arrival = select.poll()
        self._arrival.register(accepted, select.POLLIN)
        whole = int(patience_seconds)
        patience = _TIMEVAL.pack(whole, int((patience_seconds - whole) * 1e6))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self._frames = FrameReader(
            self._receive,
            # As many bytes as are asked for in one turn: the interpreter's lock changes hands once.
            fill=lambda view: accepted.recv_into(view, 0, socket.MSG_WAITALL),
            kind=FrameKind.REQUEST,
            limit_bytes=destination.limits.message_limit_bytes,
            lease=pool.lease,
            fetch=self._fetch,
            patience_seconds=patience_seconds,
        )

    def read(self) -> None:
        """Take frames in until the peer ends the stream.

        Raises:
            BrokenFrame: The rest of the stream cannot be read; counted, and told to the peer.
        """
        take_all(self._frames, self._stream, self._attach)
        self.flush()

    def _attach(self, message: bytes) -> None:
        self._ring.attach(message)
        self.flush()

    def _fetch(self, offset: int, view: memoryview) -> None:
        self._ring.fetch(offset, view)
        if self._ring.due:
            self._send(self._ring.news)

    def _receive(self, view: memoryview) -> int:
        """Take what has arrived; where nothing does for a while, let the stream know and wait."""
        self._stream.busy()
        if not self._arrival.poll(REST_MILLISECONDS):
            self._stream.rest()
            if self._ring.owes:
                self._send(self._ring.news)
        size = self._ring.receive(self._socket, view)
        if self._ring.surplus:
            self._refuse_surplus()
        return size

    def _refuse_surplus(self) -> None:
        surplus, self._ring.surplus = self._ring.surplus, 0
        self._stream.refuse(
            MalformedMessage(f"{surplus} descriptors that nobody asked for: send one with a ring")
        )

    def flush(self) -> None:
        """Send what the stream has to say, as far as the peer takes it; from any thread."""
        self._send(self._due)

    def _due(self) -> bytes:
        return b"".join([*map(encode_response_frame, self._stream.answers()), self._ring.news()])

    def _send(self, due: Callable[[], bytes]) -> None:
        with self._sending, contextlib.suppress(OSError):  # the reader finds out why
            while self._open:
                if len(self._unsent) < UNSENT_LIMIT_BYTES:
                    self._unsent += due()
                if not self._unsent:
                    return
                self._unsent = self._unsent[self._socket.send(self._unsent, _NEVER_WAIT) :]

    def hang_up(self) -> None:
        """End the connection; its reader returns."""
        with self._sending, contextlib.suppress(OSError):
            if self._open:
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        with self._sending:
            self._open = False
            self._socket.close()
        # Without the lock: closing what a peer has sent may take as long as the peer likes, where it is a file
        # of a file system of its own; the acceptor must not wait for that.
        self._ring.close()


def take_all(frames: FrameReader, stream: Stream, attach: Callable[[bytes], None]) -> None:
    """Lead every frame into a stream, to the end of both.

    Args:
        frames: Where they come from.
        stream: Takes requests in.
        attach: Takes the message of a frame about the ring; may raise MalformedMessage.

    Raises:
        BrokenFrame: The rest cannot be read; the stream has refused and counted that already.
    """
    while True:
        try:
            frame = frames.read()
            if frame is not None and frame.kind is FrameKind.RING:
                frame.release()
                attach(frame.message)
                continue
        except SidecarError as error:
            stream.refuse(error)
            if isinstance(error, BrokenFrame):
                raise
            continue
        if frame is None:
            return
        stream.take(frame.message, frame.payload, frame.release)


class _Journal:
    """Logs an event about the same thing at most once in ``LOG_SECONDS``."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, object, object], float] = {}

    def note(self, event: str, **values: object) -> None:
        key = (event, values.get("reason"), values.get("uid"))
        now = self._monotonic()
        with self._lock:
            if now - self._noted.get(key, -LOG_SECONDS) < LOG_SECONDS:
                return
            if len(self._noted) >= _TOLD_LIMIT:
                self._noted.clear()
            self._noted[key] = now
        structlog.get_logger().warning(event, **values)
