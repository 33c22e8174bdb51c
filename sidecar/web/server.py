"""Runs the console in a thread of its own."""

import contextlib
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from sidecar.errors import ConfigError
from sidecar.web.console import Console

_START_SECONDS = 10.0
_DRAIN_SECONDS = 2
_CONNECTIONS = 512  # beyond it uvicorn answers 503: a console has readers, not crowds


class WebServer:
    """Serves an application on one address until stopped.

    The server has its own event loop in its own thread; nothing of it runs in the caller's.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        """Prepare; nothing listens before ``start``.

        Args:
            app: What ``create_app`` made.
            host: Name or address to listen on.
            port: 0 picks a free one.
        """
        self._app = app
        self._address = (host.strip("[]"), port)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody is believed about who they are
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        self._server = uvicorn.Server(config)

    def start(self) -> None:
        """Listen, and return when requests are answered.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        self._socket = _listen(*self._address)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="sidecar-web", daemon=True
        )
        self._thread.start()
        deadline = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            deadline.wait(0.01)
        self.stop()
        raise ConfigError(f"listen.web: the console did not start within {_START_SECONDS:g} s")

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before ``start``."""
        return self._socket.getsockname()[1] if self._socket else 0

    def stop(self) -> None:
        """End open streams, let running answers finish for a moment, and close the port."""
        console: Console = self._app.state.console
        console.stopping.set()
        self._server.should_exit = True
        if self._thread:
            self._thread.join(_DRAIN_SECONDS + _START_SECONDS)
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"listen.web: {host}:{port}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"listen.web: cannot listen on {host}:{port}: {error.strerror or error}: stop what "
            "holds the port, or name another one"
        ) from error
    return listener
