"""Alertmanager's webhook: a firing alert on a feature asks for its portrait."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from sidecar.errors import InvalidInput, Overloaded, SidecarError, StorageError
from sidecar.jobs import Job
from sidecar.web.api import read_json
from sidecar.web.backend import Backend
from sidecar.web.console import Console
from sidecar.web.serialise import Json

VERSION = "4"
"""The version of the webhook's body; the only one Alertmanager has sent since 0.6."""

BODY_LIMIT_BYTES = 1 << 20
"""Largest notification: some hundreds of alerts."""

ALERT_LIMIT = 256
"""Most alerts of one notification that are acted on."""

_NEEDED = ("model", "revision", "layer", "kind", "feature")


async def alertmanager(request: Request) -> Response:
    """``POST /api/v1/alertmanager``: take a notification, version 4.

    The answer tells what became of each alert: ``submitted``, ``ignored`` or ``deferred``. It is
    200 also where alerts are ignored, so that Alertmanager does not send them again and again; it
    is 503 where one could not be taken *now*, because sending that again does help, and repeating
    the others changes nothing.
    """
    console = Console.of(request)
    console.gate.check_origin(request.headers)
    body = await read_json(request, BODY_LIMIT_BYTES)
    alerts = _alerts(body)
    results = await run_in_threadpool(_take, console.backend, alerts)
    tally = {
        name: sum(result["result"] == name for result in results)
        for name in ("submitted", "ignored", "deferred")
    }
    structlog.get_logger().info("alerts_received", received=len(alerts), **tally)
    answer = {"received": len(alerts), **tally, "alerts": results}
    return Json(answer, 503 if tally["deferred"] else 200)


def _alerts(body: Mapping[str, Any]) -> list[Any]:
    if body.get("version") != VERSION:
        raise InvalidInput(f"version {str(body.get('version'))[:40]!r}: need {VERSION!r}")
    alerts = body.get("alerts")
    if not isinstance(alerts, list):
        raise InvalidInput(f"alerts must be a list, not {type(alerts).__name__}")
    return alerts


def _take(backend: Backend, alerts: list[Any]) -> list[dict[str, Any]]:
    taken = [_take_one(backend, alert) for alert in alerts[:ALERT_LIMIT]]
    beyond = {"result": "ignored", "reason": f"more than {ALERT_LIMIT} alerts at once"}
    return taken + [dict(beyond) for _ in alerts[ALERT_LIMIT:]]


def _take_one(backend: Backend, alert: Any) -> dict[str, Any]:
    fingerprint = ""
    try:
        fingerprint, started, labels, annotations = _read(alert)
        if alert.get("status") != "firing":
            return _ignored(fingerprint, "", "it is not firing")
        missing = [name for name in _NEEDED if not labels.get(name)]
        if missing:
            return _ignored(fingerprint, "", f"no labels {', '.join(missing)}: about no feature")
        job = backend.alert_fired(fingerprint, started, labels, annotations)
    except (Overloaded, StorageError) as error:
        return {**_ignored(fingerprint, error.code, error.message), "result": "deferred"}
    except SidecarError as error:
        return _ignored(fingerprint, error.code, error.message)
    if job is None:
        return _ignored(fingerprint, "", "no portrait is made of this feature")
    answer = {"fingerprint": fingerprint, "result": "submitted", "job": job.id}
    return {**answer, **_believed(backend, job)}


def _believed(backend: Backend, job: Job) -> dict[str, Any]:
    """Say how far the newest portrait there is can be believed; nothing where there is none."""
    newest = next(iter(backend.portraits(job.request.targets[0].feature)), None)
    if newest is None:
        return {}
    return {"verdict": newest.verdict, "reasons": newest.reasons.splitlines()}


def _ignored(fingerprint: str, code: str, reason: str) -> dict[str, Any]:
    return {"fingerprint": fingerprint, "result": "ignored", "code": code, "reason": reason}


def _read(alert: Any) -> tuple[str, float, dict[str, str], dict[str, str]]:
    """Return fingerprint, start, labels and annotations of an alert.

    Raises:
        InvalidInput: One of them is missing or has the wrong type.
    """
    if not isinstance(alert, dict):
        raise InvalidInput(f"alert is a JSON {type(alert).__name__}, need an object")
    fingerprint = alert.get("fingerprint")
    if not isinstance(fingerprint, str) or not 1 <= len(fingerprint) <= 64:  # noqa: PLR2004 - 16 today
        raise InvalidInput("alert has no fingerprint of 1 to 64 characters")
    labels, annotations = _texts(alert, "labels"), _texts(alert, "annotations")
    return fingerprint, _time(alert.get("startsAt")), labels, annotations


def _texts(alert: Mapping[str, Any], name: str) -> dict[str, str]:
    found = alert.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise InvalidInput(f"alert's {name} must be an object of texts")
    return found


def _time(value: Any) -> float:
    try:
        moment = datetime.fromisoformat(value)
        at = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"alert's startsAt {str(value)[:60]!r} is no RFC 3339 time") from error
    if not math.isfinite(at):
        raise InvalidInput(f"alert's startsAt {str(value)[:60]!r} is out of range")
    return at
