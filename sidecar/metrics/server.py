"""Serves ``/metrics``, health and runbooks from threads of its own, so that they answer under overload."""

import gzip
import json
import socket
import socketserver
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

from sidecar.errors import ConfigError
from sidecar.metrics.collector import Collector
from sidecar.metrics.documents import render_runbook
from sidecar.metrics.exposition import Exposition

# Prometheus, two probes and a curious person are four; more than this is a fault or an attack.
_CONNECTION_LIMIT = 32

# Longest wait for a byte to come or go. Prometheus' own scrape timeout is 10 s by default.
_IDLE_SECONDS = 5.0

# Compression pays from about one network packet on.
_COMPRESS_FROM_BYTES = 1400

Reasons = Callable[[], Sequence[str]]
"""Returns why something is not well, in words; nothing when it is. Called from server threads."""


class MetricsServer:
    """An HTTP server for machines: Prometheus, probes and runbook links.

    Paths: ``/metrics`` (text, OpenMetrics or protobuf by ``Accept``, gzip by ``Accept-Encoding``, a
    selection by ``name[]``), ``/livez`` and ``/readyz`` (JSON with reasons; 503 when there are any) and
    ``/runbooks/<alert>``. A client that stalls is cut off after 5 s; when 32 connections are open,
    the oldest gives way to the newest, so that stalling clients cannot keep a scrape out.

    Args:
        address: ``host:port`` or ``[ipv6]:port``; port 0 picks a free one.
        collector: What ``/metrics`` shows, beside the process's own memory, CPU and descriptors.
        live: Why the process should be restarted; nothing when it should not.
        ready: Why the daemon cannot take samples; nothing when it can.

    Raises:
        ConfigError: The address is in use or not of this machine.
    """

    def __init__(
        self, address: str, collector: Collector, *, live: Reasons = tuple, ready: Reasons = tuple
    ) -> None:
        host, _, port = address.rpartition(":")
        try:
            target = (host.strip("[]"), int(port))
            self._server = _Server(target, Exposition(collector), live, ready)
        except OSError as error:
            raise ConfigError(
                f"listen.metrics {address}: {error.strerror or error}; "
                "choose a free port of this machine, or 0 for any"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="sidecar-metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address as people and Prometheus write it, without a path."""
        host = str(self._server.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Start to answer; the port was bound, and connections queued, since construction."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, cut what is open and free the port. May be called without ``start``."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _CONNECTION_LIMIT

    def __init__(
        self, address: tuple[str, int], exposition: Exposition, live: Reasons, ready: Reasons
    ) -> None:
        self.exposition = exposition
        self.live = live
        self.ready = ready
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        self._lock = threading.Lock()
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, _Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to a thread; when too many are open, the oldest is cut off."""
        with self._lock:
            self._open[id(request)] = request
            crowded = len(self._open) > _CONNECTION_LIMIT
            oldest = self._open.popitem(last=False)[1] if crowded else None
        if oldest is not None:
            _cut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        with self._lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Free the port and cut what is open."""
        super().server_close()
        with self._lock:
            still_open = list(self._open.values())
        for connection in still_open:
            _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away in mid-answer is no event of ours."""


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the connection's own thread was faster


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    media_type: str
    body: bytes


class _Exchange(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "sidecar"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._send(self._route())

    def do_HEAD(self) -> None:
        self._send(self._route())

    def _refuse(self) -> None:
        # The body of the request is not read, so nothing more can come over this connection.
        self.close_connection = True
        text = f"{self.command} is not allowed here: use GET\n"
        self._send(_plain(HTTPStatus.METHOD_NOT_ALLOWED, text), Allow="GET, HEAD")

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Answer every other method, which ``http.server`` looks up as ``do_<METHOD>``."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _route(self) -> _Answer:
        path, _, query = self.path.partition("?")
        if path == "/metrics":
            return self._metrics(query)
        if path == "/livez":
            return _health(self.server.live)
        if path == "/readyz":
            return _health(self.server.ready)
        runbook = render_runbook(path.removeprefix("/runbooks/"))
        if path.startswith("/runbooks/") and runbook:
            return _plain(HTTPStatus.OK, runbook)
        known = "/metrics, /livez, /readyz or /runbooks/<alert>"
        return _plain(HTTPStatus.NOT_FOUND, f"nothing is here: use {known}\n")

    def _metrics(self, query: str) -> _Answer:
        accept, names = self.headers.get("Accept", ""), parse_qs(query).get("name[]", ())
        try:
            found = self.server.exposition.answer(accept, names)
            return _Answer(HTTPStatus.OK, found.media_type, found.body)
        except Exception as error:  # noqa: BLE001 - the scraper is told; a cut connection says nothing
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"the scrape failed: {error!r}\n")

    def _send(self, answer: _Answer, **headers: str) -> None:
        body = answer.body
        self.send_response(answer.status)
        if len(body) >= _COMPRESS_FROM_BYTES and _takes_gzip(self.headers):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Vary", "Accept, Accept-Encoding")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: scrapes and probes come every few seconds for ever."""


def _takes_gzip(headers: Message) -> bool:
    """Whether ``Accept-Encoding`` names gzip without refusing it by ``q=0``."""
    for item in headers.get("Accept-Encoding", "").split(","):
        name, _, quality = item.strip().partition(";")
        if name.strip().lower() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _health(check: Reasons) -> _Answer:
    try:
        reasons = list(check())
    except Exception as error:  # noqa: BLE001 - a probe must be answered, whatever broke
        reasons = [f"the check itself failed: {error}"]
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    body = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
    return _Answer(status, "application/json", json.dumps(body).encode() + b"\n")


def _plain(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", text.encode())
