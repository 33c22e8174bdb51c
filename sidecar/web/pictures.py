"""Pictures by stable address: artifacts, a feature's newest portrait, a running job's preview."""

import hashlib
import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from sidecar.errors import NotFound, UnknownArtifact
from sidecar.features import FeatureKey
from sidecar.web.backend import Backend
from sidecar.web.console import Console
from sidecar.web.filters import digest

_SHOWN = frozenset({"image/png", "image/webp", "application/json", "text/plain"})
_SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""Policy of artifacts: whatever the bytes are, nothing in them runs or fetches."""

_ABSENT, _RENDERING = "portrait-absent.png", "portrait-rendering.png"
_UNRELIABLE = "portrait-unreliable.png"


def artifact(request: Request) -> Response:
    """``/api/v1/artifacts/{digest}``: the same bytes for ever, so cached for ever."""
    name = digest(request.path_params["digest"])
    return _file(request, name, "public, max-age=31536000, immutable")


def _file(request: Request, name: str, caching: str) -> Response:
    path, media_type = Console.of(request).backend.artifact(name)
    headers = {
        "etag": f'"{name}"',
        "cache-control": caching,
        "content-security-policy": _SANDBOX,
        "cross-origin-resource-policy": "cross-origin",  # dashboards show pictures from here
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    shown = media_type in _SHOWN
    return FileResponse(
        path,
        media_type=media_type if shown else "application/octet-stream",
        headers=headers if shown else {**headers, "content-disposition": "attachment"},
        stat_result=_stat(path, name),
    )


def _stat(path: Path, name: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UnknownArtifact(f"artifact {name} was removed from the store") from error


def portrait(request: Request) -> Response:
    """``/f/{feature}/portrait.png``: the newest portrait, or a card that says why there is none.

    Alerts carry this address before the picture exists, so a well-formed one always answers with
    a picture. ``x-sidecar-portrait`` says which: ``ready``, ``rendering``, ``absent`` or
    ``unreliable``. Dashboards and chat programs show it without a caption, so an unreliable picture
    is shown here only on demand, with ``?unreliable=show``.
    """
    console = Console.of(request)
    text = request.path_params["feature"]
    try:
        key = console.backend.resolve(text)
        found = console.backend.portraits(key)
    except NotFound:
        FeatureKey.parse(text)  # refuses what is no feature key at all
        return _card(console, _ABSENT, "absent")
    for one in found:
        bare = request.query_params.get("unreliable") == "show"
        if one.verdict == "unreliable" and not bare:
            return _card(console, _UNRELIABLE, "unreliable")
        try:
            answer = _file(request, one.picture_digest, "no-cache")
        except UnknownArtifact:
            continue  # the store makes room by dropping old pictures
        answer.headers["x-sidecar-portrait"] = "ready"
        answer.headers["x-sidecar-portrait-verdict"] = one.verdict or "unknown"
        return answer
    if _is_rendering(console.backend, key):
        return _card(console, _RENDERING, "rendering")
    return _card(console, _ABSENT, "absent")


def _is_rendering(backend: Backend, key: FeatureKey) -> bool:
    return any(not job.state.ended for job in backend.jobs(key, 5))


def _card(console: Console, name: str, meaning: str) -> Response:
    headers = {
        "cache-control": "no-store",  # the picture may be there in a moment
        "cross-origin-resource-policy": "cross-origin",
        "x-sidecar-portrait": meaning,
    }
    return Response(console.static[name].body, media_type="image/png", headers=headers)


def preview(request: Request) -> Response:
    """``/api/v1/jobs/{id}/preview.png``: the newest intermediate picture; a card before the first."""
    console = Console.of(request)
    job_id = request.path_params["job_id"]
    console.backend.job(job_id)  # refuses unknown jobs
    body = console.backend.preview(job_id)
    if body is None:
        return _card(console, _RENDERING, "rendering")
    headers = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
        "content-security-policy": _SANDBOX,
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="image/png", headers=headers)
