"""Unix socket files: made, shared with a group, and cleared away after a daemon that was killed."""

import os
import socket
import stat
from pathlib import Path

from sidecar.errors import ConfigError

SCHEME = "unix://"
"""Begins the address of a unix socket; the absolute path follows."""

SOCKET_MODE = 0o660
"""Connecting needs leave to write: its owner's and its group's, which is how a pod shares one."""


def path_of(address: str) -> Path | None:
    """Return the path in an address ``unix:///path``; None for another kind of address."""
    return Path(address.removeprefix(SCHEME)) if address.startswith(SCHEME) else None


def share(path: Path) -> None:
    """Let the group of a socket file connect, and nobody else.

    Raises:
        OSError: Its mode cannot be changed.
    """
    path.chmod(SOCKET_MODE)


def clear_stale(path: Path) -> None:
    """Make the folder, and remove a socket that nobody listens on; refuse to touch anything else.

    Raises:
        ConfigError: The path is no socket, or somebody listens on it.
        OSError: The folder cannot be made or changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError("the file there is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise ConfigError("another daemon listens on it")


def why(error: Exception) -> str:
    """Return in words why an address cannot be listened on."""
    if isinstance(error, ConfigError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # All that grpc says is that it could not bind.
    return "it is in use, or not an address of this machine"
