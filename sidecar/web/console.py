"""What every page and call of the console shares."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from sidecar.errors import LimitReached
from sidecar.web import gauge, trend, wording
from sidecar.web.backend import Backend
from sidecar.web.security import Gate
from sidecar.web.static_files import StaticFiles

STREAM_LIMIT = 64
"""Most live streams at once; each holds a thread while it waits for its job to change."""

_WORDS = (
    "age",
    "compact",
    "count",
    "day",
    "duration",
    "iso",
    "moment",
    "number",
    "percent",
    "times",
    "until",
)


class Streams:
    """Counts the live streams, so that readers who forget their tabs cannot use up the threads."""

    def __init__(self, limit: int) -> None:
        """Allow ``limit`` streams at once."""
        self._limit = limit
        self._open = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Take a place.

        Raises:
            LimitReached: All places are taken.
        """
        with self._lock:
            if self._open >= self._limit:
                raise LimitReached(f"{self._limit} live streams are open: close some or reload")
            self._open += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._open -= 1


@dataclass(frozen=True, slots=True)
class Console:
    """The shared state of one application.

    Attributes:
        backend: The daemon.
        url: How people reach the console, without a slash at the end.
        clock: Returns unix seconds now.
        gate: Decides which requests are the reader's own.
        static: The console's own files.
        templates: Compiled on first use.
        streams: Live streams open now.
        stopping: Set when the server is about to stop; live streams then end.
    """

    backend: Backend
    url: str
    clock: Callable[[], float]
    gate: Gate
    static: StaticFiles
    templates: Environment
    streams: Streams = field(default_factory=lambda: Streams(STREAM_LIMIT))
    stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def create(cls, backend: Backend, url: str, clock: Callable[[], float]) -> "Console":
        """Read templates and files from the package."""
        url = url.rstrip("/")
        static = StaticFiles.of_package()
        templates = Environment(
            loader=PackageLoader("sidecar.web"),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        base = urlsplit(url).path
        templates.filters.update({name: getattr(wording, name) for name in _WORDS})
        templates.tests["finite"] = math.isfinite
        templates.filters["segment"] = lambda text: quote(str(text), safe="")
        templates.filters["chance"] = wording.chance
        templates.filters["path"] = wording.short_path
        templates.filters["short"] = wording.short_key
        templates.globals.update(
            static=lambda name: base + static.link(name),
            link=lambda path, **query: base + path + _query(query),
            gauge=gauge.draw,
            strip=trend.strip,
            reached=wording.reached,
            made=wording.made,
            stamp=wording.stamp,
            beyond=wording.beyond,
            extreme=wording.extreme,
            concerns=wording.concerns,
            headline=wording.headline,
            judged=wording.judged,
            unjudged=wording.UNJUDGED,
        )
        return cls(backend, url, clock, Gate(url), static, templates)

    @classmethod
    def of(cls, request: Request) -> "Console":
        """Return the console whose application got this request."""
        console: Console = request.app.state.console
        return console

    @property
    def base(self) -> str:
        """The path in front of every link; empty unless the console lives under a prefix."""
        return urlsplit(self.url).path

    def page(self, template: str, status_code: int = 200, /, **values: Any) -> HTMLResponse:
        """Render a template; pages say how things are now and are not cached."""
        text = self.templates.get_template(template).render(
            now=self.clock(),
            token=self.gate.token,
            version=self.backend.version,
            console_url=self.url,
            **values,
        )
        return HTMLResponse(text, status_code, {"cache-control": "no-store"})

    def redirect(self, path: str) -> RedirectResponse:
        """Send the reader on to a page of the console after a form."""
        return RedirectResponse(self.base + path, status_code=303)


def _query(query: Mapping[str, Any]) -> str:
    """Return the query of a link without its empty values."""
    pairs = {name: value for name, value in query.items() if value not in ("", None, False)}
    return f"?{urlencode(pairs)}" if pairs else ""
