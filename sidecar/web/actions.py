"""The forms of the pages; every one is a plain POST that ends in a redirect."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from sidecar.detect import Detector
from sidecar.errors import InvalidInput
from sidecar.features import check_name
from sidecar.jobs import JobRequest
from sidecar.monitor import COMMON_FACTOR, Flag, Watching
from sidecar.recipes import Target, recipe_like
from sidecar.web.console import Console
from sidecar.web.security import read_form
from sidecar.web.wording import short_path

SEVERITIES = ("info", "warning", "critical")
"""What a flag's severity may be."""

_TEXT_LIMIT = 80
_FORM_RECIPE = ("steps", "canvas", "seed")  # what the form offers; the API takes every value


async def flag(request: Request) -> Response:
    """Watch a feature, or change how."""
    console, fields = await _form(request)
    wanted = Flag(
        name=_text(fields, "name"),
        severity=_severity(fields.get("severity", "warning")),
        owner=_text(fields, "owner"),
    )
    watching = _watching(fields)

    def act() -> str:
        key = console.backend.resolve(request.path_params["feature"])
        console.backend.flag(key, wanted, watching)
        return short_path(key)

    return console.redirect(f"/f/{await run_in_threadpool(act)}?done=flagged")


async def unflag(request: Request) -> Response:
    """Watch a feature no longer."""
    console, _ = await _form(request)

    def act() -> str:
        key = console.backend.resolve(request.path_params["feature"])
        console.backend.unflag(key)
        return short_path(key)

    return console.redirect(f"/f/{await run_in_threadpool(act)}?done=unflagged")


async def make_portrait(request: Request) -> Response:
    """Queue a portrait and show its job; sending the same form twice is one job."""
    console, fields = await _form(request)
    values = {name: _whole(fields, name) for name in _FORM_RECIPE if fields.get(name)}

    def act() -> str:
        key = console.backend.resolve(request.path_params["feature"])
        recipe = recipe_like(console.backend.default_recipe(), values)
        form_key = fields.get("form_key", "")[:_TEXT_LIMIT]
        wanted = JobRequest(
            (Target(key),), recipe, "console", f"console:{form_key}" if form_key else ""
        )
        return console.backend.submit(wanted).id

    return console.redirect(f"/jobs/{await run_in_threadpool(act)}")


async def cancel(request: Request) -> Response:
    """Stop a job."""
    console, _ = await _form(request)
    job = await run_in_threadpool(console.backend.cancel, request.path_params["job_id"])
    return console.redirect(f"/jobs/{job.id}?done=cancelling")


async def release(request: Request) -> Response:
    """Let run again what a job is quarantined for."""
    console, _ = await _form(request)
    job_id = request.path_params["job_id"]
    await run_in_threadpool(console.backend.release_quarantine, job_id)
    return console.redirect("/jobs?done=released")


async def freeze(request: Request) -> Response:
    """Take what was learned so far as a layer's baseline."""
    console, fields = await _form(request)
    await run_in_threadpool(console.backend.freeze, *_layer(fields))
    return console.redirect("/layers?done=frozen")


async def reset(request: Request) -> Response:
    """Learn a layer's baseline anew."""
    console, fields = await _form(request)
    await run_in_threadpool(console.backend.reset, *_layer(fields), fields.get("reason", ""))
    return console.redirect("/layers?done=reset")


async def _form(request: Request) -> tuple[Console, dict[str, str]]:
    console = Console.of(request)
    return console, await read_form(request, console.gate)


def _layer(fields: dict[str, str]) -> tuple[str, str, str]:
    """Return model, revision and layer: an empty one would mean all, which no form asks for."""
    model, revision, layer = (
        check_name(name, fields.get(name, "")) for name in ("model", "revision", "layer")
    )
    return model, revision, layer


def _text(fields: dict[str, str], name: str) -> str:
    value = fields.get(name, "")
    if len(value) > _TEXT_LIMIT or not value.isprintable():
        raise InvalidInput(f"{name} must be at most {_TEXT_LIMIT} printable characters")
    return value


def _watching(fields: dict[str, str]) -> Watching:
    """Return how a form has a feature watched: all of it, or nothing where it does not ask."""
    if "direction" not in fields:
        return Watching()
    detectors = [name for name in Detector if f"detector-{name}" in fields]
    if not detectors:
        raise InvalidInput("detectors: choose at least one, or stop watching the feature")
    text = fields.get("factor", "").strip()
    try:
        factor = float(text) if text else COMMON_FACTOR
    except ValueError as error:
        raise InvalidInput(f"factor {text[:40]!r}: use a number above 1, or nothing") from error
    return Watching.of(factor, fields["direction"], fields.get("slice", ""), detectors)


def _severity(value: str) -> str:
    if value not in SEVERITIES:
        raise InvalidInput(f"severity {value[:40]!r}: use one of {', '.join(SEVERITIES)}")
    return value


def _whole(fields: dict[str, str], name: str) -> int:
    value = fields[name]
    if not (value.isascii() and value.isdigit() and len(value) < 20):  # noqa: PLR2004 - below 2**63
        raise InvalidInput(f"{name} {value[:40]!r} is not a whole number")
    return int(value)
