import socket
import threading
from typing import Any

import httpx
import pytest

from sidecar.errors import ConfigError
from sidecar.web import WebServer, create_app

pytestmark = pytest.mark.service


def test_a_port_in_use_is_a_configuration_error(server: WebServer, backend: Any) -> None:
    """Start-up names the address and what to do."""
    app = create_app(backend, console_url="http://localhost")
    second = WebServer(app, "127.0.0.1", server.port)

    with pytest.raises(ConfigError, match=rf"listen.web: cannot listen on 127.0.0.1:{server.port}"):
        second.start()


def test_an_address_that_is_not_ours_is_a_configuration_error(backend: Any) -> None:
    """A name that does not resolve, or an address of another machine, is told at start."""
    app = create_app(backend, console_url="http://localhost")
    for host in ("no-such-host.invalid", "192.0.2.1"):
        with pytest.raises(ConfigError, match=r"listen\.web"):
            WebServer(app, host, 0).start()


def test_the_port_is_free_again_after_stop(backend: Any) -> None:
    """Stopping closes the socket and ends the thread."""
    app = create_app(backend, console_url="http://localhost")
    server = WebServer(app, "127.0.0.1", 0)
    server.start()
    port = server.port
    answer = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
    server.stop()

    assert 200 == answer.status_code
    assert not [t for t in threading.enumerate() if t.name == "sidecar-web"]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_server_that_never_started_can_be_stopped(backend: Any) -> None:
    """The daemon stops everything when one part fails to start."""
    app = create_app(backend, console_url="http://localhost")
    server = WebServer(app, "127.0.0.1", 0)
    server.stop()

    assert 0 == server.port


def test_broken_http_leaves_the_server_alive(server: WebServer, client: httpx.Client) -> None:
    """Garbage on the socket costs that connection only."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")
        connection.recv(1000)

    assert 200 == client.get("/").status_code
