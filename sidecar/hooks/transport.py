"""Sessions over gRPC, and the addresses they go to."""

import importlib
import random
import re
from collections.abc import Callable

from sidecar.errors import InvalidInput
from sidecar.hooks.session import Session, Timing
from sidecar.hooks.sink import QueuedSink
from sidecar.wire import METHOD, SERVICE

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9_.\-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_PORT_LIMIT = 65535

_CHANNEL_OPTIONS = (
    # The sidecar is local or in the cluster: a proxy from the environment is never meant for it.
    ("grpc.enable_http_proxy", 0),
    # Every attempt gets its own connection, so grpc's hidden back-off never adds to ours.
    ("grpc.use_local_subchannel_pool", 1),
    # Answers are small; a large one is not from the daemon.
    ("grpc.max_receive_message_length", 1 << 20),
    # The daemon's own limit, told in its welcome, decides what is sent.
    ("grpc.max_send_message_length", -1),
)


def connect(
    url: str,
    *,
    queue_bytes: int = 8 << 20,
    timing: Timing | None = None,
    rng: random.Random | None = None,
) -> QueuedSink:
    """Make a sink that sends to a daemon; nothing is dialled before the first sample.

    Args:
        url: ``unix:///path``, ``grpc://host:port`` or ``host:port``.
        queue_bytes: Bytes of batches that may wait for the sender.
        timing: How patient the streams are; None: the defaults.
        rng: Source of the reconnects' jitter; None: seeded by the operating system.

    Raises:
        InvalidInput: The address has another form, or grpcio is not installed.
    """
    try:
        # Here, at the server's start, and not with the first sample: it holds the interpreter for a
        # tenth of a second. Without a channel there is nothing yet that a fork could break.
        importlib.import_module("grpc")
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "grpcio is not installed: pip install 'feature-sidecar[hooks]'"
        ) from error
    if queue_bytes < 1:
        raise InvalidInput(f"queue_bytes {queue_bytes} must be at least 1")
    return QueuedSink(
        load,
        dialler(target(url)),
        queue_bytes=queue_bytes,
        timing=timing or Timing(),
        rng=rng or random.Random(),  # noqa: S311 - jitter, not secrets
    )


def target(url: str) -> str:
    """Return what grpc dials for an address.

    Raises:
        InvalidInput: The address is none of the three forms.

    Example:
        >>> target("grpc://localhost:50061"), target("unix:///run/sidecar.sock")
        ('localhost:50061', 'unix:///run/sidecar.sock')
    """
    if url.startswith("unix:///") and len(url) > len("unix:///"):
        return url
    address = url.removeprefix("grpc://")
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 1 <= int(match[1]) <= _PORT_LIMIT:
        raise InvalidInput(f"address {url!r}: use unix:///path, grpc://host:port or host:port")
    return address


def load() -> None:
    """Import what is left of grpc: its first channel imports more of it."""
    import grpc  # noqa: PLC0415 - importing the hooks alone loads no grpc

    grpc.insecure_channel("unix:///nowhere").close()


def dialler(address: str) -> Callable[[Session], None]:
    """Return a function that runs a session on a fresh gRPC stream until it is over."""

    def dial(session: Session) -> None:
        import grpc  # noqa: PLC0415 - as in ``load``, which has run before

        channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        try:
            # No serialisers: the session speaks bytes, which spares a copy each way.
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}", None, None)(session)
            session.bind(call.cancel)
            for response in call:
                session.receive(response)
        finally:
            channel.close()

    return dial
