"""Who is at the other end of a unix socket, as the kernel knows it."""

import os
import socket
import struct
from collections.abc import Collection

from sidecar.errors import ForbiddenPeer

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

ROOT_UID = 0
"""May read everybody's memory anyway, so turning it away protects nothing."""


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process that connected or listens at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def check_peer(connection: socket.socket, also: Collection[int] = ()) -> int:
    """Return the peer's user id if it may be spoken with: this process's own, root, or one named.

    Args:
        connection: A connected unix socket.
        also: Further user ids that are allowed.

    Raises:
        ForbiddenPeer: The peer runs as somebody else.
    """
    uid = peer_uid(connection)
    if uid not in (os.geteuid(), ROOT_UID, *also):
        raise ForbiddenPeer(
            f"the peer runs as uid {uid}: name it in listen.lane_uids, or in connect(peer_uids=...)"
        )
    return uid
