"""The JSON API, version 1."""

import json
from contextlib import suppress
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from sidecar.errors import InvalidInput, InvalidName, NotFound
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobRequest, Priority
from sidecar.recipes import Target, recipe_like
from sidecar.web import serialise
from sidecar.web.console import Console
from sidecar.web.filters import LIST_LIMIT, one_of, picture, state, text, whole, window
from sidecar.web.security import read_body
from sidecar.web.serialise import Json

BODY_LIMIT_BYTES = 256 << 10
"""Largest job request."""

ARTIFACTS_LIMIT = 199
"""Most pictures in one answer: with the one that tells of a next page, as many as the daemon gives."""

VERDICTS = ("trusted", "weak", "unreliable")
"""How far a picture can be believed."""

_TARGET_LIMIT = 64
_LAST_MOMENT = 1e11  # the year 5138; and no NaN
_JOB_KEYS = frozenset(
    {"features", "recipe", "idempotency_key", "time_limit_seconds", "priority", "deadline"}
)
_EVIDENCE_LIMIT = 50
_OFFSET_LIMIT = 1 << 40


def features(request: Request) -> Response:
    """``GET /api/v1/features``: one page of features, and how many there are in all."""
    console, params = Console.of(request), request.query_params
    offset = whole(params, "offset", 0, 0, _OFFSET_LIMIT)
    limit = whole(params, "limit", 100, 0, LIST_LIMIT)
    found, total = console.backend.features(
        model=text(params, "model"),
        revision=text(params, "revision"),
        layer=text(params, "layer"),
        flagged_only=one_of(params, "flagged", ("false", "true")) == "true",
        state=state(params),
        query=text(params, "q"),
        offset=offset,
        limit=limit,
    )
    shifted = _shifted(console)
    items = [
        serialise.feature(one, console.base, shifted=one.key.layer in shifted) for one in found
    ]
    unmatched = [serialise.unmatched(one) for one in console.backend.explained_flags()]
    answer = {"features": items, "total": total, "offset": offset, "limit": limit}
    return Json({**answer, "unmatched_flags": unmatched})


def _shifted(console: Console) -> set[LayerKey]:
    return {layer.key for layer in console.backend.layers() if layer.shifted}


def feature(request: Request) -> Response:
    """``GET /api/v1/features/{feature}``: one feature, with its portraits."""
    console = Console.of(request)
    key = console.backend.resolve(request.path_params["feature"])
    status, shifted = console.backend.feature(key), key.layer in _shifted(console)
    answer = serialise.feature(status, console.base, shifted=shifted)
    answer["portraits"] = [
        {
            "picture": f"{console.base}/api/v1/artifacts/{one.picture_digest}",
            "manifest": f"{console.base}/api/v1/artifacts/{one.manifest_digest}",
            "content_key": one.content_key,
            "created": one.created,
            "verdict": one.verdict,
            "reasons": one.reasons.splitlines(),
        }
        for one in console.backend.portraits(key)
    ]
    return Json(answer)


def distribution(request: Request) -> Response:
    """``GET /api/v1/features/{feature}/distribution?window=current|baseline|history``."""
    console = Console.of(request)
    wanted = window(request.query_params)
    key = console.backend.resolve(request.path_params["feature"])
    return Json(serialise.distribution(console.backend.distribution(key, wanted)))


def evidence(request: Request) -> Response:
    """``GET /api/v1/features/{feature}/evidence``: why it fired, the newest record first."""
    console, params = Console.of(request), request.query_params
    limit = whole(params, "limit", 10, 1, _EVIDENCE_LIMIT)
    key = console.backend.resolve(request.path_params["feature"])
    found = [serialise.evidence(one) for one in console.backend.evidence(key, limit)]
    page = f"{console.base}/f/{key.path}/evidence"
    return Json({"key": str(key), "page": page, "evidence": found})


def layers(request: Request) -> Response:
    """``GET /api/v1/layers``: every layer that was ever registered."""
    console = Console.of(request)
    return Json(
        {"layers": [serialise.layer(one, console.base) for one in console.backend.layers()]}
    )


def baselines(request: Request) -> Response:
    """``GET /api/v1/baselines``: the stored versions of baselines, newest first."""
    params = request.query_params
    found = Console.of(request).backend.baselines(
        text(params, "model"), text(params, "revision"), text(params, "layer")
    )
    return Json({"baselines": [serialise.baseline(one) for one in found]})


def jobs(request: Request) -> Response:
    """``GET /api/v1/jobs``: the newest jobs, newest first, of one feature or of all."""
    console, params = Console.of(request), request.query_params
    limit = whole(params, "limit", 50, 1, LIST_LIMIT)
    named = params.get("feature", "")
    key = console.backend.resolve(named) if named else None
    found = console.backend.jobs(key, limit, text(params, "before"))
    return Json({"jobs": [serialise.job(one, console.base) for one in found]})


def job(request: Request) -> Response:
    """``GET /api/v1/jobs/{id}``: how one job stands."""
    console = Console.of(request)
    return Json(serialise.job(console.backend.job(request.path_params["job_id"]), console.base))


def quarantine(request: Request) -> Response:
    """``GET /api/v1/quarantine``: what is refused for killing its worker, and until when."""
    console = Console.of(request)
    found = console.backend.quarantined()
    return Json({"quarantine": [serialise.quarantined(one, console.base) for one in found]})


def artifacts(request: Request) -> Response:
    """``GET /api/v1/artifacts``: the made pictures, newest first, page by page.

    ``next`` is the ``before`` of the next page, null on the last.
    """
    console, params = Console.of(request), request.query_params
    limit = whole(params, "limit", 50, 1, ARTIFACTS_LIMIT)
    named = text(params, "feature")
    found = console.backend.provenance.list(
        feature=_pictured(console, named) if named else "",
        model=text(params, "model"),
        revision=text(params, "revision"),
        method=text(params, "method"),
        verdict=one_of(params, "verdict", ("", *VERDICTS)),
        job_id=text(params, "job"),
        limit=limit + 1,  # one more tells whether there is a next page
        before=picture(params, "before"),
    )
    page = found[:limit]
    rest = page[-1].manifest_digest if len(found) > limit else None
    return Json({"artifacts": [serialise.made(one, console.base) for one in page], "next": rest})


def _pictured(console: Console, named: str) -> str:
    """Return a feature's text form; pictures may outlive the layer they were about."""
    try:
        return str(console.backend.resolve(named))
    except NotFound:
        with suppress(InvalidName):
            return str(FeatureKey.parse(named))
        raise


async def submit(request: Request) -> Response:
    """``POST /api/v1/jobs``: queue a job.

    The body is ``{"features": [...], "recipe": {...}, "priority": "interactive", "deadline": null,
    "idempotency_key": "", "time_limit_seconds": 0}``; all but ``features`` may be left out.
    """
    console = Console.of(request)
    console.gate.check_origin(request.headers)
    asked = await read_json(request, BODY_LIMIT_BYTES)

    def act() -> dict[str, Any]:
        return serialise.job(console.backend.submit(_job_request(console, asked)), console.base)

    answer = await run_in_threadpool(act)
    return Json(answer, 202, location=answer["page"])


async def cancel(request: Request) -> Response:
    """``POST /api/v1/jobs/{id}/cancel``: stop a job."""
    console = Console.of(request)
    console.gate.check_origin(request.headers)
    found = await run_in_threadpool(console.backend.cancel, request.path_params["job_id"])
    return Json(serialise.job(found, console.base))


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Raises:
        InvalidInput: It is sent as something else than JSON, or is no JSON object.
        MessageTooLarge: It has more than ``limit`` bytes.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # what a foreign form cannot send without being asked first
        raise InvalidInput(f"content-type {kind[:80]!r} is not application/json")
    body = await read_body(request, limit)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"body is a JSON {type(value).__name__}, need an object")
    return value


def _job_request(console: Console, asked: dict[str, Any]) -> JobRequest:
    unknown = set(asked) - _JOB_KEYS
    if unknown:
        raise InvalidInput(f"job has unknown keys: {', '.join(sorted(unknown))[:200]}")
    named = _typed(asked, "features", list, [])
    if not 1 <= len(named) <= _TARGET_LIMIT or not all(isinstance(one, str) for one in named):
        raise InvalidInput(f"features must be a list of 1 to {_TARGET_LIMIT} feature keys")
    recipe = recipe_like(console.backend.default_recipe(), _typed(asked, "recipe", dict, {}))
    limit = asked.get("time_limit_seconds", 0)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < 1e9:  # noqa: PLR2004 - finite
        raise InvalidInput("time_limit_seconds must be a number of at least 0")
    key = _typed(asked, "idempotency_key", str, "")
    if len(key) > 200:  # noqa: PLR2004 - as long as a name
        raise InvalidInput("idempotency_key has more than 200 characters")
    keys: list[FeatureKey] = [console.backend.resolve(one) for one in named]
    return JobRequest(
        tuple(Target(one) for one in keys),
        recipe,
        "api",
        key,
        float(limit),
        deadline=_deadline(asked.get("deadline")),
        asked_priority=_priority(_typed(asked, "priority", str, "")),
    )


def _priority(name: str) -> Priority | None:
    try:
        return Priority(name) if name else None
    except ValueError as error:
        raise InvalidInput(
            f"priority {name[:40]!r}: use one of {', '.join(Priority)}, or leave it out"
        ) from error


def _deadline(value: Any) -> float:
    """Return unix seconds of a number or an ISO 8601 text with its zone; 0 for None."""
    if value is None:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < _LAST_MOMENT:
            raise InvalidInput(f"deadline {value} is no time: give unix seconds, or ISO 8601")
        return float(value)
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"deadline {str(value)[:40]!r}: give unix seconds, or ISO 8601 with a zone"
        ) from error
    if moment.tzinfo is None:
        raise InvalidInput(f"deadline {value!r} has no time zone: add one, such as Z or +02:00")
    return moment.timestamp()


def _typed(asked: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = asked.get(name, default)
    if not isinstance(value, kind):
        raise InvalidInput(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    return value
