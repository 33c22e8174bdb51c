"""The client: its rate, its phases, and what it makes of refusals and a server that is away."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from demo.photos import Photo
from demo.traffic import Phase, Traffic
from sidecar.testing import wait_until

pytestmark = pytest.mark.service

DEADLINE = 30.0


class Server(ThreadingHTTPServer):
    """Answers every request with the status that is set, and counts."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.status = 200
        self.arrivals: list[float] = []
        self.bodies: set[bytes] = set()
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Read the body and answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.arrivals.append(time.monotonic())
            self.server.bodies.add(body)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[Server, str]]:
    """Run a server in a thread; yield it and its address."""
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_address[1]}/classify"
        finally:
            server.shutdown()
            thread.join(DEADLINE)


def _photo(name: str, shade: int) -> Photo:
    noise = np.random.default_rng(shade).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Photo(name, Image.fromarray(noise))


def _traffic(url: str, rate: float = 200.0, cat_share: float = 0.5) -> Traffic:
    return Traffic(url, [_photo("a", 1)], [_photo("cat", 2)], rate=rate, cat_share=cat_share)


def test_requests_come_at_the_rate_asked_for() -> None:
    """Forty requests at 40 a second take a second, not less; a busy machine may take longer."""
    with serving() as (server, url), _traffic(url, rate=40.0) as traffic:
        wait_until(lambda: traffic.tally.answered >= 41, DEADLINE)
        took = server.arrivals[40] - server.arrivals[0]

    assert took > 0.9
    assert traffic.tally.latency_seconds > 0


def test_no_two_requests_are_the_same() -> None:
    """One photograph gives as many different pictures as there are requests."""
    with serving() as (server, url), _traffic(url) as traffic:
        wait_until(lambda: traffic.tally.answered >= 30, DEADLINE)

    assert len(server.arrivals) == len(server.bodies)


def test_cats_come_in_the_second_phase_only() -> None:
    """Everyday traffic has no cat; afterwards their share is the one asked for."""
    with serving() as (_, url), _traffic(url, cat_share=1.0) as traffic:
        wait_until(lambda: traffic.tally.answered >= 20, DEADLINE)
        before = traffic.tally
        traffic.enter(Phase.CATS)
        wait_until(lambda: traffic.tally.cats >= 20, DEADLINE)
        traffic.enter(Phase.EVERYDAY)
        after = traffic.tally

    assert 0 == before.cats
    # Four connections had one drawn request each when the phase changed.
    assert after.answered - before.answered - after.cats <= 8


def test_refusals_are_counted_apart() -> None:
    """503 is the server shedding load, anything else that is no 200 is a failure."""
    with serving() as (server, url), _traffic(url) as traffic:
        server.status = 503
        wait_until(lambda: traffic.tally.refused >= 5, DEADLINE)
        server.status = 500
        wait_until(lambda: traffic.tally.failed >= 5, DEADLINE)
        tally = traffic.tally

    assert tally.sent == tally.answered + tally.refused + tally.failed


def test_a_server_that_comes_back_is_found_again() -> None:
    """While the server is away requests fail; once it is back they are answered."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with _traffic(f"http://127.0.0.1:{port}/classify") as traffic:
        wait_until(lambda: traffic.tally.failed >= 4, DEADLINE)
        with serving(port):
            wait_until(lambda: traffic.tally.answered >= 10, DEADLINE)

    assert traffic.tally.failed >= 4


def test_closing_ends_every_thread() -> None:
    """After the block no client thread is left."""
    with serving() as (_, url):
        with _traffic(url) as traffic:
            wait_until(lambda: traffic.tally.answered >= 1, DEADLINE)
        left = [thread.name for thread in threading.enumerate() if "client-" in thread.name]

    assert [] == left
