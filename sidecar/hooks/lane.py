"""Sessions over the node-local lane: frames on a unix socket, without grpc."""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from sidecar.errors import SidecarError
from sidecar.hooks.ring import RING_BYTES, Ring
from sidecar.hooks.session import Session
from sidecar.wire import (
    FrameKind,
    FrameReader,
    Sendable,
    check_peer,
    decode_ring_frame,
    encode_request_frame,
    encode_ring_frame,
)

ANSWER_LIMIT_BYTES = 65_536
"""Answers are small; a large one is not from the daemon."""

SEND_BUFFER_BYTES = 512 << 10
"""Room asked for in the kernel, which grants less where net.core.wmem_max is less. Sender and daemon
then wake each other once a MiB, not five times; with more, what one has written has left the cache
when the other reads it."""

LEAST_RING_BYTES = 128 << 10
"""Fewest bytes of a batch's rows that are staged in the ring. Of 256 KiB both ends together took 107 us
through it and 128 through the socket, of 128 KiB 78 and 86, of 64 KiB the same, of 32 KiB 89 and 73."""

RING_SECONDS = 0.02
"""Longest wait for room in the ring; then rows go through the socket, which waits as it must."""

_INT = struct.Struct("@i")
_PIECES = 512  # to one call; the kernel takes at most 1024
_TIMEVAL = struct.Struct("@ll")


def dialler(
    path: str, *, send_seconds: float, peer_uids: Collection[int] = ()
) -> Callable[[Session], None]:
    """Return a function that runs a session on a fresh connection until it is over.

    Args:
        path: Of the daemon's socket.
        send_seconds: Longest wait for a daemon that takes nothing off the socket.
        peer_uids: Users the daemon may run as, beside this process's own, root, and the owner of
            the socket's folder, who decides what is in it.
    """

    def dial(session: Session) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            answers = _Answers(connection, session)
            outlet = _Outlet(connection, session, answers)
            session.bind(
                partial(_hang_up, connection),
                abandon=outlet.abandon,
                listen=answers.listen,
                lend=outlet.lend,
            )
            _bound_waits(connection, send_seconds)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection.connect(path)
            # After the connection: a folder that changes hands in between has a new owner to trust.
            check_peer(connection, (*peer_uids, Path(path).parent.stat().st_uid))
            try:
                for burst in session.bursts():
                    outlet.send(burst)
            except OSError:
                answers.listen(0.0)  # a daemon that hung up may have said why
                raise
            finally:
                outlet.close()
            _say_goodbye(connection, session)

    return dial


def _bound_waits(connection: socket.socket, seconds: float) -> None:
    """Limit how long connecting, sending, and the rest of an answer that has begun may take."""
    whole = int(seconds)
    limit = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


class _Answers:
    """Hands the daemon's answers to a session, whose stream ends when the daemon hangs up.

    There is no thread for it: each answer would wake one, and take the interpreter from the model. One
    system call tells whether there is anything.
    """

    def __init__(self, connection: socket.socket, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._arrived = bytearray()
        self._frames = FrameReader(
            self._receive, kind=FrameKind.RESPONSE, limit_bytes=ANSWER_LIMIT_BYTES
        )
        self.fetched: int | None = None  # payloads the daemon took out of the ring; None: no ring

    def listen(self, seconds: float) -> None:
        """Wait at most so many seconds for an answer, and hand over all there are."""
        if seconds > 0.0:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            poll.poll(1000.0 * seconds)
        try:
            data = self._connection.recv(ANSWER_LIMIT_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            self._session.end()
        self._arrived += data
        while (self._arrived or self._frames.begun) and (frame := self._frames.read()) is not None:
            if frame.kind is FrameKind.RING:
                self.fetched = decode_ring_frame(frame.message)
            else:
                self._session.receive(frame.message)

    def _receive(self, view: memoryview) -> int:
        """Give out what has arrived; the rest of a frame that was cut in two is waited for."""
        if not self._arrived:
            return self._connection.recv_into(view)
        size = min(len(view), len(self._arrived))
        view[:size] = self._arrived[:size]
        del self._arrived[:size]
        return size


class _Outlet:
    """Sends bursts, and lends a ring to stage their rows in where the daemon takes one."""

    def __init__(self, connection: socket.socket, session: Session, answers: _Answers) -> None:
        self._connection = connection
        self._session = session
        self._answers = answers
        self._ring: Ring | None = None
        self._ring_tried = False

    def send(self, burst: list[Sendable]) -> None:
        """Send every message; payloads that lie in the ring stay there.

        Raises:
            OSError: As ``send`` does.
        """
        place = self._ring.place if self._ring else None
        send(
            self._connection, [piece for one in burst for piece in encode_request_frame(one, place)]
        )
        if self._ring:
            self._ring.end_burst()

    def lend(self, size: int) -> memoryview | None:
        """Lend memory of the ring for rows of the next burst; None: they are few, or there is no room.

        Waits a little for room where the daemon is about to make some.
        """
        if size < LEAST_RING_BYTES or not (ring := self._usable()):
            return None
        ring.fetched(self._answers.fetched or 0)
        deadline = time.monotonic() + RING_SECONDS
        while (lent := ring.lend(size)) is None and ring.busy and not self._session.ended:
            if (left := deadline - time.monotonic()) <= 0.0:
                break
            try:
                self._answers.listen(left)
            except (OSError, SidecarError):  # nothing more can be read
                self._session.end()
            ring.fetched(self._answers.fetched or 0)
        return lent

    def _usable(self) -> Ring | None:
        """Return the ring once the daemon has mapped it; hand one over before."""
        if not self._ring_tried and self._session.ring_bytes:
            self._ring_tried = True
            self._share()
        return self._ring if self._answers.fetched is not None else None

    def _share(self) -> None:
        try:
            ring = Ring(min(RING_BYTES, self._session.ring_bytes))
        except (OSError, AttributeError):  # no memory, or no such thing: the socket serves
            return
        self._ring = ring
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(ring.descriptor))
        with contextlib.suppress(OSError):  # the next burst finds out
            self._connection.sendmsg([encode_ring_frame(ring.size)], [rights], socket.MSG_NOSIGNAL)
        ring.shared()

    def abandon(self) -> None:
        """Let go of the parent's connection and ring in a forked child."""
        self._connection.close()
        self.close()

    def close(self) -> None:
        """Give the ring back."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()


def _say_goodbye(connection: socket.socket, session: Session) -> None:
    """Tell the daemon that nothing more comes, and wait until it has read all that did."""
    if not session.ended:
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(ANSWER_LIMIT_BYTES):
            pass


def send(connection: socket.socket, pieces: list[bytes | memoryview]) -> None:
    """Send every byte of all pieces.

    Raises:
        OSError: The connection broke; BlockingIOError: nothing was taken for too long.
    """
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while left:
        sent = connection.sendmsg(left[:_PIECES], (), socket.MSG_NOSIGNAL)
        while sent and sent >= left[0].nbytes:
            sent -= left.pop(0).nbytes
        if sent:
            left[0] = left[0][sent:]


def _hang_up(connection: socket.socket) -> None:
    """Wake whoever waits on a connection, and tell the other side."""
    with contextlib.suppress(OSError):  # never connected, or closed already
        connection.shutdown(socket.SHUT_RDWR)
