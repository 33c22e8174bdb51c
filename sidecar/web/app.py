"""Puts the console together: routes, guards, and the answer to whatever goes wrong."""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.audits import Audits
from sidecar.errors import ConfigError, MessageTooLarge, SidecarError
from sidecar.web import (
    actions,
    alerts,
    api,
    audits,
    evidence,
    live,
    pages,
    pictures,
    provenance,
    serialise,
)
from sidecar.web.backend import Backend
from sidecar.web.console import Console
from sidecar.web.security import Guard
from sidecar.web.serialise import Json

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "CANCELLED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP status of a gRPC status; 500 of all others."""

_RETRY_SECONDS = "5"
_NO_PAGE = {
    404: ("There is no such page.", "Start from the list of features."),
    405: ("This address does not take that method.", "Use the console's own links and forms."),
}


def create_app(
    backend: Backend,
    *,
    console_url: str,
    clock: Callable[[], float] = time.time,
    audits: Audits | None = None,
) -> Starlette:
    """Return the console as an ASGI application.

    Args:
        backend: The daemon.
        console_url: How people reach the console, such as ``https://ops.example/sidecar``; its host
            is accepted beside loopback's names, and its path is put in front of every link.
        clock: Returns unix seconds now.
        audits: What is looked at every night; None: nothing.

    Raises:
        ConfigError: ``console_url`` is no http or https URL.
    """
    parts = urlsplit(console_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"alerts.console_url {console_url!r} is not http://host or https://host")
    console = Console.create(backend, console_url, clock)
    guard = Middleware(Guard, gate=console.gate, base=console.base, refuse=refuse)
    app = Starlette(
        routes=_routes(console),
        middleware=[guard],
        exception_handlers={SidecarError: refuse, HTTPException: refuse},
    )
    app.state.console, app.state.audits = console, audits
    return app


def _routes(console: Console) -> list[Route]:
    post = ["POST"]
    return [
        Route("/", pages.feature_list),
        Route("/layers", pages.layers),
        Route("/layers/freeze", actions.freeze, methods=post),
        Route("/layers/reset", actions.reset, methods=post),
        Route("/jobs", pages.job_list),
        Route("/jobs/{job_id}", pages.job),
        Route("/jobs/{job_id}/cancel", actions.cancel, methods=post),
        Route("/jobs/{job_id}/release", actions.release, methods=post),
        Route("/audits", audits.audit_list),
        Route("/audits/{name}", audits.audit),
        Route("/audits/{name}/run", audits.run, methods=post),
        Route("/audits/{name}/latest", audits.latest),
        Route("/audits/{name}/{night}", audits.night),
        Route("/audits/{name}/{night}/accept", audits.accept, methods=post),
        Route("/audits/{name}/{night}/report.html", audits.report),
        Route("/audits/{name}/{night}/report.json", audits.report),
        Route("/f/{feature:path}/portrait.png", pictures.portrait),
        Route("/f/{feature:path}/portrait", actions.make_portrait, methods=post),
        Route("/f/{feature:path}/flag", actions.flag, methods=post),
        Route("/f/{feature:path}/unflag", actions.unflag, methods=post),
        Route("/f/{feature:path}/evidence", evidence.page),
        Route("/f/{feature:path}", pages.feature),
        Route("/artifacts/{digest}", provenance.page),
        Route("/static/{name}", console.static.answer),
        Route("/api/v1/layers", api.layers),
        Route("/api/v1/baselines", api.baselines),
        Route("/api/v1/features", api.features),
        Route("/api/v1/features/{feature:path}/distribution", api.distribution),
        Route("/api/v1/features/{feature:path}/evidence", api.evidence),
        Route("/api/v1/features/{feature:path}", api.feature),
        Route("/api/v1/jobs", api.jobs),
        Route("/api/v1/jobs", api.submit, methods=post),
        Route("/api/v1/jobs/{job_id}", api.job),
        Route("/api/v1/jobs/{job_id}/cancel", api.cancel, methods=post),
        Route("/api/v1/jobs/{job_id}/events", live.job_events),
        Route("/api/v1/jobs/{job_id}/preview.png", pictures.preview),
        Route("/api/v1/quarantine", api.quarantine),
        Route("/api/v1/artifacts", api.artifacts),
        Route("/api/v1/artifacts/{digest}", pictures.artifact),
        Route("/api/v1/artifacts/{digest}/verification", provenance.verification),
        Route("/api/v1/audits", audits.listed),
        Route("/api/v1/audits/{name}", audits.described),
        Route("/api/v1/audits/{name}/nights/{night}", audits.night_described),
        Route("/api/v1/audits/{name}/nights/{night}/accept", audits.accepted, methods=post),
        Route("/api/v1/audits/{name}/run", audits.started, methods=post),
        Route("/api/v1/alertmanager", alerts.alertmanager, methods=post),
    ]


async def refuse(request: Request, error: Exception) -> Response:
    """Answer what went wrong: as JSON under ``/api/``, as a page elsewhere."""
    if isinstance(error, SidecarError):
        status, code, message = status_of(error), error.code, error.message
    elif isinstance(error, HTTPException):
        status, code = error.status_code, f"HTTP{error.status_code}"
        message = " ".join(_NO_PAGE.get(status, (str(error.detail), "")))
    else:
        # Not the reader's to see: the log has it, with its trace.
        structlog.get_logger().error("request_failed", path=request.url.path, exc_info=error)
        status, code, message = 500, "SC000", "The console failed; the daemon's log says why."
    headers = {"retry-after": _RETRY_SECONDS} if status in (429, 503) else {}
    if "/api/" in request.scope["path"]:
        return Json(serialise.error(code, message), status, **headers)
    answer = Console.of(request).page(
        "error.html", status, code=code, message=message, status=status, notice=""
    )
    answer.headers.update(headers)
    return answer


def status_of(error: SidecarError) -> int:
    """Return the HTTP status that says the same as the error's gRPC status."""
    return 413 if isinstance(error, MessageTooLarge) else HTTP_STATUS.get(error.grpc_status, 500)
