"""Sessions over the node-local lane: frames on a unix socket, without grpc."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from sidecar.hooks.session import Session
from sidecar.wire import FrameKind, FrameReader, check_peer, encode_request_frame

ANSWER_LIMIT_BYTES = 65_536
"""Answers are small; a large one is not from the daemon."""

SEND_BUFFER_BYTES = 1 << 20
"""Asked of the kernel, which grants what ``net.core.wmem_max`` allows: fewer, longer turns between
sender and reader."""

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
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        session.bind(lambda: _hang_up(connection), connection.close)
        with connection:
            _bound_waits(connection, send_seconds)
            connection.connect(path)
            # After the connection: a folder that changes hands in between has a new owner to trust.
            check_peer(connection, (*peer_uids, Path(path).parent.stat().st_uid))
            _converse(connection, session)

    return dial


def _bound_waits(connection: socket.socket, seconds: float) -> None:
    """Limit connecting and sending, but not waiting for answers, which a silent stream may do."""
    whole = int(seconds)
    limit = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _converse(connection: socket.socket, session: Session) -> None:
    """Send what the session says while a thread reads the answers; returns when both have ended."""
    reader = threading.Thread(
        target=_listen, args=(connection, session), name="sidecar-answers", daemon=True
    )
    reader.start()
    try:
        for message in session:
            send(connection, encode_request_frame(message))
        # The daemon reads to the end, answers, and hangs up.
        connection.shutdown(socket.SHUT_WR)
    except BaseException:
        session.end()
        raise
    finally:
        reader.join()


def _listen(connection: socket.socket, session: Session) -> None:
    """Feed the daemon's answers to the session; its end is the session's."""
    frames = FrameReader(
        connection.recv_into, kind=FrameKind.RESPONSE, limit_bytes=ANSWER_LIMIT_BYTES
    )
    try:
        while (frame := frames.read()) is not None:
            session.receive(frame.message)
    except Exception:  # noqa: BLE001 - in the server's process nothing may be raised or printed
        session.misunderstood()
    session.end()


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
