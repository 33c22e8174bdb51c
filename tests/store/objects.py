"""A small object store over real HTTP, with the fsspec file system that speaks to it.

It stands for S3 where s3fs cannot be installed beside the pinned packages: a server of its own, objects
by key, whole or not there, and outages at will.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem


class ObjectServer(ThreadingHTTPServer):
    """Keeps objects in memory; while ``broken`` is positive, that many requests are answered 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.broken = 0
        self.denied = False
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The URL of a prefix in it."""
        return f"objects://127.0.0.1:{self.server_port}/bucket/prefix"


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _refused(self) -> bool:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.denied:
            self._answer(403, b"denied")
        elif self.server.broken > 0:
            self.server.broken -= 1
            self._answer(503, b"try later")
        else:
            return False
        return True

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def _key(self) -> str:
        return unquote(self.path)

    def do_PUT(self) -> None:
        """Store an object once all of it is here."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if not self._refused():
            self.server.objects[self._key] = (body, time.time())
            self._answer(200)

    def do_GET(self) -> None:
        """Return an object, or below a key that ends in a slash a list of them."""
        if self._refused():
            return
        key, objects = self._key, self.server.objects
        if key.endswith("/"):
            found = {k: (len(b), at) for k, (b, at) in objects.items() if k.startswith(key)}
            self._answer(200, json.dumps(found).encode())
        elif key in objects:
            self._answer(200, objects[key][0])
        else:
            self._answer(404)

    def do_DELETE(self) -> None:
        """Remove an object."""
        if not self._refused():
            self._answer(200 if self.server.objects.pop(self._key, None) else 404)


class ObjectFileSystem(AbstractFileSystem):
    """What ``RemoteShelf`` asks of a file system, over HTTP."""

    protocol = "objects"
    cachable = False

    def _ask(self, method: str, path: str, body: bytes | None = None, end: str = "") -> bytes:
        host, _, key = self._strip_protocol(path).partition("/")
        connection = HTTPConnection(host, timeout=5)
        try:
            connection.request(method, "/" + quote(key) + end, body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status == 404:
            raise FileNotFoundError(path)
        if answer.status == 403:
            raise PermissionError("denied")
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {content.decode()}")
        return content

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
        """Return the facts of every object below a path."""
        host = self._strip_protocol(path).partition("/")[0]
        found = json.loads(self._ask("GET", path, end="/"))
        return {f"{host}{k}": {"size": s, "LastModified": at} for k, (s, at) in found.items()}

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        """Return an object."""
        return self._ask("GET", path)

    def pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        """Write an object."""
        self._ask("PUT", path, value)

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self._ask("DELETE", path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there are no folders."""


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run a server for the length of a ``with`` block; ``objects://`` URLs lead to it."""
    fsspec.register_implementation("objects", ObjectFileSystem, clobber=True)
    server = ObjectServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
