"""Nightly audits: their pages, their reports, and the same for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from sidecar.audits import Audits, AuditStatus, Night
from sidecar.errors import InvalidInput, UnknownAudit
from sidecar.web import serialise, trend
from sidecar.web.api import read_json
from sidecar.web.console import Console
from sidecar.web.filters import LIST_LIMIT, text, whole
from sidecar.web.security import read_form
from sidecar.web.serialise import Json

REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
)
"""Policy of a report: nothing in it runs, and nothing is fetched; its style and pictures are inside."""

CHECK_TITLES = {
    "complete": "Jobs",
    "comparison": "Comparison",
    "counts": "Against the night before",
    "reproduced": "Portraits made again",
    "verdict": "Trust in portraits",
    "verified": "Stored pictures",
    "revision": "What is served",
    "live": "Flagged features",
}
"""What the checks of a night are called."""

NOTICES = {
    "started": "A night was started. Its jobs wait for their turn, as audits do; this page shows how it stands.",
    "accepted": "Taken for the new normal. The alert ends with the next night that passes: run one now, or wait.",
}

_NIGHTS_SHOWN = 60  # in the list; the API has all that are kept
_NOTE_LIMIT = 200  # characters; the daemon checks it again, for every way in
_BODY_LIMIT_BYTES = 4 << 10  # of an acceptance: a note
_RECENT = 14  # marks in the list of audits
_MEDIA = {"html": "text/html; charset=utf-8", "json": "application/json"}


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture of the nights, for wide and for narrow screens.

    Attributes:
        title: What it shows.
        keys: Class and words of each part of a bar.
        wide: SVG element for 720 px and more.
        narrow: SVG element for a telephone.
    """

    title: str
    keys: tuple[tuple[str, str], ...]
    wide: Markup
    narrow: Markup


def audit_list(request: Request) -> Response:
    """``/audits``: every audit, how it stands, and when it runs next."""
    console = Console.of(request)
    found = _statuses(request)
    return console.page(
        "audits.html",
        audits=found,
        recent={one.name: tuple(reversed(one.nights[:_RECENT])) for one in found},
        live=any(one.running for one in found),
        notice="",
    )


def audit(request: Request) -> Response:
    """``/audits/{name}``: what its newest night came to, or the one asked for, and the trend."""
    console, status = Console.of(request), _status(request)
    wanted = request.query_params.get("night", "")
    shown = _audits(request).night(status.name, wanted) if wanted else status.last
    return console.page(
        "audit.html",
        audit=status,
        shown=shown,
        before=_before(status, shown),
        titles=CHECK_TITLES,
        charts=charts(status.nights),
        nights=status.nights[:_NIGHTS_SHOWN],
        more=max(0, len(status.nights) - _NIGHTS_SHOWN),
        note_limit=_NOTE_LIMIT,
        notice=NOTICES.get(request.query_params.get("done", ""), ""),
    )


def _before(status: AuditStatus, shown: Night | None) -> Night | None:
    """Return the judged night before ``shown`` that was compared with something."""
    if shown is None:
        return None
    older = (one for one in status.nights if one.id < shown.id and one.counts)
    return next(older, None)


def charts(nights: Sequence[Night]) -> list[Chart]:
    """Return pictures of the nights, newest first; none where there is no trend to see."""
    found = []
    units, checks = trend.of_units(nights), trend.of_checks(nights)
    if units:
        keys = (("moved", "moved"), ("lost", "lost"))
        found.append(_chart("Units that are not the same", keys, units))
    if checks:
        found.append(_chart("Failed checks", (("checks", "failed checks"),), checks))
    return found


def _chart(title: str, keys: tuple[tuple[str, str], ...], bars: Sequence[trend.Bar]) -> Chart:
    narrow = trend.draw(bars, title, shape="narrow")
    return Chart(title, keys, trend.draw(bars, title), narrow)


def night(request: Request) -> Response:
    """``/audits/{name}/{night}``: its report, or what is known of a night without one."""
    console, found = Console.of(request), _night(request)
    if found.report:
        return console.redirect(found.report)
    return console.redirect(f"/audits/{found.audit}?night={found.id}")


def latest(request: Request) -> Response:
    """``/audits/{name}/latest``: the newest report, or the audit's page before there is one."""
    console, status = Console.of(request), _status(request)
    newest = next((one.report for one in status.nights if one.report), None)
    return console.redirect(newest or f"/audits/{status.name}")


def report(request: Request) -> Response:
    """``/audits/{name}/{night}/report.html`` and ``.json``: the report as it was written."""
    form: Literal["html", "json"] = "json" if request.url.path.endswith(".json") else "html"
    name, night_id = request.path_params["name"], request.path_params["night"]
    body = _audits(request).report(name, night_id, form)
    # A night is judged once, and its report never changes; but it may be dropped.
    headers = {"content-security-policy": REPORT_POLICY, "cache-control": "private, max-age=3600"}
    return Response(body, media_type=_MEDIA[form], headers=headers)


async def run(request: Request) -> Response:
    """Start a night now, or show the one that runs."""
    console = Console.of(request)
    await read_form(request, console.gate)
    name = request.path_params["name"]
    await run_in_threadpool(_audits(request).start, name, "console")
    return console.redirect(f"/audits/{name}?done=started")


async def accept(request: Request) -> Response:
    """Take what a night found for the new normal."""
    console = Console.of(request)
    fields = await read_form(request, console.gate)
    name, night_id = request.path_params["name"], request.path_params["night"]
    await run_in_threadpool(_audits(request).accept, name, night_id, fields.get("note", ""))
    return console.redirect(f"/audits/{name}?done=accepted")


def listed(request: Request) -> Response:
    """``GET /api/v1/audits``: every audit with its newest night."""
    base = Console.of(request).base
    return Json({"audits": [serialise.audit(one, base) for one in _statuses(request)]})


def described(request: Request) -> Response:
    """``GET /api/v1/audits/{name}``: one audit with its nights, newest first, page by page."""
    base, status, params = Console.of(request).base, _status(request), request.query_params
    limit, before = whole(params, "limit", 100, 1, LIST_LIMIT), text(params, "before")
    nights = [one for one in status.nights if not before or one.id < before][:limit]
    found = [serialise.night(one, base) for one in nights]
    return Json({**serialise.audit(status, base), "nights": found, "total": len(status.nights)})


def night_described(request: Request) -> Response:
    """``GET /api/v1/audits/{name}/nights/{night}``: one night with its checks."""
    return Json(serialise.night(_night(request), Console.of(request).base))


async def started(request: Request) -> Response:
    """``POST /api/v1/audits/{name}/run``: start a night now, or say which one runs."""
    console = Console.of(request)
    console.gate.check_origin(request.headers)
    found = await run_in_threadpool(_audits(request).start, request.path_params["name"], "api")
    answer = serialise.night(found, console.base)
    return Json(answer, 202, location=f"{console.base}/audits/{found.audit}")


async def accepted(request: Request) -> Response:
    """``POST /api/v1/audits/{name}/nights/{night}/accept``: take a night for the new normal.

    The body is ``{"note": "who and why"}``.
    """
    console = Console.of(request)
    console.gate.check_origin(request.headers)
    asked = await read_json(request, _BODY_LIMIT_BYTES)
    note = asked.get("note")
    if set(asked) != {"note"} or not isinstance(note, str):
        raise InvalidInput('the body must be {"note": "who accepts it and why"}')
    name, night_id = request.path_params["name"], request.path_params["night"]
    found = await run_in_threadpool(_audits(request).accept, name, night_id, note)
    return Json(serialise.night(found, console.base))


def _audits(request: Request) -> Audits:
    found: Audits | None = request.app.state.audits
    if found is None:
        raise UnknownAudit("no audit is configured: name one under audits")
    return found


def _statuses(request: Request) -> Sequence[AuditStatus]:
    found: Audits | None = request.app.state.audits
    return found.statuses() if found is not None else ()


def _status(request: Request) -> AuditStatus:
    return _audits(request).status(request.path_params["name"])


def _night(request: Request) -> Night:
    return _audits(request).night(request.path_params["name"], request.path_params["night"])
