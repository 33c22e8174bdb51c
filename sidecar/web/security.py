"""What stands between a page of somebody else and this console.

The console has no log-in of its own: whoever reaches it may use it, and it listens on loopback
only. The attacks left are those a reader's own browser can be made to carry: a foreign page that
resolves its name to 127.0.0.1 (answered by checking the Host header), a foreign form (Origin,
Sec-Fetch-Site and a token), and script smuggled into a name (escaping, and a policy that runs none).
"""

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import ForbiddenHost, ForbiddenOrigin, InvalidInput, MessageTooLarge

POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
"""Nothing from another host, nothing inline."""

FORM_LIMIT_BYTES = 16 << 10
"""Largest form: a handful of short fields."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    # Not no-referrer: browsers would then send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Gate:
    """Decides which requests are the reader's own.

    Attributes:
        console_url: How people reach the console; its host is trusted beside loopback.
        token: The secret that this daemon's own forms carry; another one after each start.
    """

    console_url: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def check_host(self, headers: Headers) -> None:
        """Refuse names that are neither loopback's nor the console's.

        Raises:
            ForbiddenHost: The Host header names something else.
        """
        host = _hostname(headers.get("host", ""))
        if host and (host == _hostname(urlsplit(self.console_url).netloc) or _is_loopback(host)):
            return
        raise ForbiddenHost(
            f"host {host[:80]!r} is not this console's: open it by the address in "
            "alerts.console_url, or set that to the name you use"
        )

    def check_origin(self, headers: Headers) -> None:
        """Refuse what a page of another site sent; a client that is no browser says nothing.

        Raises:
            ForbiddenOrigin: ``Origin`` or ``Sec-Fetch-Site`` names another site.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        mine = {headers.get("host", ""), urlsplit(self.console_url).netloc}
        foreign = origin is not None and urlsplit(origin).netloc not in mine
        if foreign or site not in (None, "same-origin", "none"):
            raise ForbiddenOrigin(
                f"this came from a page of another site ({origin or site}): use the console's own "
                "pages, or the API without a browser"
            )

    def check_token(self, candidate: str) -> None:
        """Refuse forms this daemon did not make.

        Raises:
            ForbiddenOrigin: The token is missing or another daemon's.
        """
        if not hmac.compare_digest(candidate.encode(), self.token.encode()):
            raise ForbiddenOrigin(
                "the form is older than the daemon, or not from it: reload the page and try again"
            )


def _hostname(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_body(request: Request, limit: int) -> bytes:
    """Return the request's body.

    Raises:
        MessageTooLarge: It has more than ``limit`` bytes; no more than that is ever held.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise MessageTooLarge(f"body has more than {limit} bytes: send less")
    return bytes(body)


async def read_form(request: Request, gate: Gate) -> dict[str, str]:
    """Return the fields of one of this daemon's own forms, the last of each name.

    Raises:
        ForbiddenOrigin: Another site sent it, or its token is wrong.
        InvalidInput: It is no URL-encoded form.
        MessageTooLarge: It is larger than ``FORM_LIMIT_BYTES``.
    """
    gate.check_origin(request.headers)
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != _FORM:
        raise InvalidInput(f"content-type must be {_FORM}")
    body = await read_body(request, FORM_LIMIT_BYTES)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=64)
    except ValueError as error:
        raise InvalidInput("the form cannot be read: send it URL-encoded") from error
    fields = {name: value.strip() for name, value in pairs}
    gate.check_token(fields.get("token", ""))
    return fields


Refuse = Callable[[Request, Exception], Awaitable[ASGIApp]]
"""Makes the answer to a request that went wrong."""


class Guard:
    """Outermost middleware: checks the host, adds the headers, and answers whatever breaks inside."""

    def __init__(self, app: ASGIApp, *, gate: Gate, base: str, refuse: Refuse) -> None:
        """Wrap ``app``; ``base`` is the path in front of every link, empty or ``/prefix``."""
        self._app = app
        self._gate = gate
        self._base = base
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._gate.check_host(Headers(scope=scope))
            await self._app(self._rooted(scope), receive, send_guarded)
        except Exception as error:
            if started:
                raise
            answer = await self._refuse(Request(scope, receive), error)
            await answer(scope, receive, send_guarded)

    def _rooted(self, scope: Scope) -> Scope:
        """Drop the prefix that a reverse proxy may or may not have dropped already."""
        path = scope["path"]
        if self._base and (path == self._base or path.startswith(f"{self._base}/")):
            return {**scope, "path": path[len(self._base) :] or "/"}
        return scope
