"""Where hooks send: the address decides over what."""

import importlib
import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Self

from sidecar.errors import InvalidInput
from sidecar.hooks import lane, rpc
from sidecar.hooks.session import Session, Timing
from sidecar.hooks.sink import QueuedSink

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9_.\-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_PORT_LIMIT = 65535

PATH_LIMIT_BYTES = 107
"""Longest path of a unix socket on Linux."""

_FORMS = "unix:///path, grpc://host:port, grpcs://host:port, grpc+unix:///path or host:port"


@dataclass(frozen=True, slots=True)
class Address:
    """A daemon's address, understood.

    Attributes:
        over: ``lane``; ``grpc``; or ``grpcs``, which is gRPC over TLS.
        target: The socket's path for the lane; what grpc dials otherwise.
    """

    over: Literal["lane", "grpc", "grpcs"]
    target: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read an address.

        Raises:
            InvalidInput: It has none of the five forms.

        Example:
            >>> Address.parse("unix:///run/sidecar.sock")
            Address(over='lane', target='/run/sidecar.sock')
            >>> Address.parse("grpcs://sidecar.example:443").target
            'sidecar.example:443'
        """
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "grpc", url
        if scheme in ("unix", "grpc+unix"):
            _check_path(url, rest)
            return cls("lane", rest) if scheme == "unix" else cls("grpc", f"unix://{rest}")
        match = _HOST_PORT.fullmatch(rest)
        if scheme not in ("grpc", "grpcs") or not match or not 1 <= int(match[1]) <= _PORT_LIMIT:
            raise InvalidInput(f"address {url!r}: use {_FORMS}")
        return cls("grpcs" if scheme == "grpcs" else "grpc", rest)


def _check_path(url: str, path: str) -> None:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidInput(f"address {url!r}: use {_FORMS}")
    if len(path.encode()) > PATH_LIMIT_BYTES:
        raise InvalidInput(f"address {url!r}: a socket's path has at most {PATH_LIMIT_BYTES} bytes")


def connect(
    url: str,
    *,
    queue_bytes: int = 8 << 20,
    timing: Timing | None = None,
    rng: random.Random | None = None,
    peer_uids: Collection[int] = (),
) -> QueuedSink:
    """Make a sink that sends to a daemon; nothing is dialled before the first sample.

    Args:
        url: ``unix:///path`` for the daemon's lane on the same machine, which needs no grpcio;
            ``grpc://host:port`` or ``host:port`` for gRPC, ``grpc+unix:///path`` for gRPC over a unix
            socket, ``grpcs://host:port`` for gRPC over TLS, where a proxy ends it.
        queue_bytes: Bytes of batches that may wait for the sender.
        timing: How patient the streams are; None: the defaults.
        rng: Source of the reconnects' jitter; None: seeded by the operating system.
        peer_uids: Users the daemon at the end of a lane may run as, beside this process's own,
            root, and the owner of the socket's folder.

    Raises:
        InvalidInput: The address has another form, or it needs grpcio and that is not installed.
    """
    address = Address.parse(url)
    if queue_bytes < 1:
        raise InvalidInput(f"queue_bytes {queue_bytes} must be at least 1")
    patience = timing or Timing()
    load, dial = _ends(address, patience, peer_uids)
    return QueuedSink(
        load,
        dial,
        queue_bytes=queue_bytes,
        timing=patience,
        rng=rng or random.Random(),  # noqa: S311 - jitter, not secrets
    )


def _ends(
    address: Address, timing: Timing, peer_uids: Collection[int]
) -> tuple[Callable[[], object], Callable[[Session], None]]:
    """Return what must be loaded before the first session, and what runs one."""
    if address.over == "lane":
        return _nothing, lane.dialler(
            address.target, send_seconds=timing.stall, peer_uids=tuple(peer_uids)
        )
    try:
        # Here, at the server's start, and not with the first sample: it holds the interpreter for a
        # tenth of a second. Without a channel there is nothing yet that a fork could break.
        importlib.import_module("grpc")
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"grpcio is not installed, and {address.target} needs it: "
            "pip install 'feature-sidecar[hooks]', or use the lane at unix:///path"
        ) from error
    return rpc.load, rpc.dialler(address.target, secure=address.over == "grpcs")


def _nothing() -> None:
    pass
