"""The console's own style sheet, script and pictures, read once from the package."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from sidecar.errors import UnknownArtifact

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file.

    Attributes:
        body: Its bytes.
        media_type: What they are.
        version: Start of their sha256; part of every link, so a link never shows old bytes.
    """

    body: bytes
    media_type: str
    version: str


class StaticFiles:
    """All static files, in memory: a name is looked up in a table, never on the disk."""

    def __init__(self, found: Mapping[str, StaticFile]) -> None:
        """Serve exactly ``found``."""
        self._files = dict(found)

    @classmethod
    def of_package(cls) -> "StaticFiles":
        """Read the files that ship with the console."""
        found = {}
        for item in files("sidecar.web").joinpath("static").iterdir():
            media_type = _TYPES.get(item.name.rpartition(".")[2])
            if media_type:
                body = item.read_bytes()
                version = hashlib.sha256(body).hexdigest()[:12]
                found[item.name] = StaticFile(body, media_type, version)
        return cls(found)

    def __getitem__(self, name: str) -> StaticFile:
        """Return a file.

        Raises:
            UnknownArtifact: The console has no such file.
        """
        try:
            return self._files[name]
        except KeyError:
            raise UnknownArtifact(f"the console has no file {name[:80]!r}") from None

    def link(self, name: str) -> str:
        """Return the path of a file with its version."""
        return f"/static/{name}?v={self[name].version}"

    def answer(self, request: Request) -> Response:
        """Serve a file; for ever under its version, else with a check on each use."""
        found = self[request.path_params["name"]]
        exact = request.query_params.get("v") == found.version
        tag = f'"{found.version}"'
        headers = {"etag": tag, "cache-control": _YEAR if exact else "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(found.body, media_type=found.media_type, headers=headers)
