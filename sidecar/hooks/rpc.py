"""Sessions over gRPC, for daemons on other machines and clients behind proxies."""

from collections.abc import Callable

from sidecar.hooks.session import Session
from sidecar.wire import METHOD, SERVICE, encode_request

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


def load() -> None:
    """Import what is left of grpc: its first channel imports more of it."""
    import grpc  # noqa: PLC0415 - importing the hooks alone loads no grpc

    grpc.insecure_channel("unix:///nowhere").close()


def dialler(address: str, *, secure: bool) -> Callable[[Session], None]:
    """Return a function that runs a session on a fresh gRPC stream until it is over.

    Args:
        address: ``host:port`` or ``unix:///path``.
        secure: Whether to speak TLS, and to trust whom this machine trusts.
    """

    def dial(session: Session) -> None:
        import grpc  # noqa: PLC0415 - as in ``load``, which has run before

        if secure:
            trusted = grpc.ssl_channel_credentials()
            channel = grpc.secure_channel(address, trusted, options=_CHANNEL_OPTIONS)
        else:
            channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        try:
            stream = channel.stream_stream(f"/{SERVICE}/{METHOD}", encode_request, None)
            call = stream(session)
            session.bind(call.cancel)
            for response in call:
                session.receive(response)
        finally:
            channel.close()

    return dial
