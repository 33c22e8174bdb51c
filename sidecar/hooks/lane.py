"""Sessions over the node-local lane: frames on a unix socket, without grpc."""

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from sidecar.hooks.session import Session
from sidecar.wire import FrameKind, FrameReader, check_peer, encode_request_frame

ANSWER_LIMIT_BYTES = 65_536
"""Answers are small; a large one is not from the daemon."""

SEND_BUFFER_BYTES = 512 << 10
"""Room asked for in the kernel, which grants less where net.core.wmem_max is less. Sender and daemon
then wake each other once a MiB, not five times; with more, what one has written has left the cache
when the other reads it."""

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
            session.bind(
                partial(_hang_up, connection), abandon=connection.close, listen=answers.listen
            )
            _bound_waits(connection, send_seconds)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection.connect(path)
            # After the connection: a folder that changes hands in between has a new owner to trust.
            check_peer(connection, (*peer_uids, Path(path).parent.stat().st_uid))
            try:
                for burst in session.bursts():
                    pieces = [piece for one in burst for piece in encode_request_frame(one)]
                    send(connection, pieces)
            except OSError:
                answers.listen(0.0)  # a daemon that hung up may have said why
                raise
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
            self._session.receive(frame.message)

    def _receive(self, view: memoryview) -> int:
        """Give out what has arrived; the rest of a frame that was cut in two is waited for."""
        if not self._arrived:
            return self._connection.recv_into(view)
        size = min(len(view), len(self._arrived))
        view[:size] = self._arrived[:size]
        del self._arrived[:size]
        return size


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
