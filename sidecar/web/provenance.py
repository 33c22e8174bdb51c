"""The page that says where a picture comes from, and whether that holds."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sidecar.errors import NotFound, SidecarError
from sidecar.features import FeatureKey
from sidecar.jobs import parse_manifest
from sidecar.web import serialise, wording
from sidecar.web.backend import Backend
from sidecar.web.console import Console
from sidecar.web.filters import digest
from sidecar.web.serialise import Json

CHECKS = {
    "content": "Manifest's content",
    "manifest": "Manifest",
    "schema": "Manifest's schema",
    "picture": "Picture's content",
    "texts": "Picture's texts",
    "content_key": "Content key",
    "inputs": "Inputs",
}
"""What the checks of a verification are called."""

_SECTIONS = (
    ("What it shows", ("feature", "layer", "kind", "unit", "view", "scope", "position")),
    ("The model", ("model", "weights_file", "input")),
    ("How it was made", ("method", "recipe", "seed", "inputs", "typical_digest", "content_key")),
    ("With what", ("code", "device")),
    ("What came of it", ("activation", "live", "reliability", "picture")),
    ("Why and when", ("job", "parents", "reproduces", "started", "duration_seconds", "timings")),
)
"""Keys of the manifest by what they answer; what is left over stands in the file."""

_NONE = "none"


def page(request: Request) -> Response:
    """``/artifacts/{digest}``: the manifest in words, and what came of checking it now."""
    console = Console.of(request)
    pictures, name = console.backend.provenance, digest(request.path_params["digest"])
    found = pictures.find(name)
    facts = _facts(console.backend, found.manifest_digest)
    key = FeatureKey.parse(found.feature)
    return console.page(
        "provenance.html",
        found=found,
        key=key,
        name=_name(console.backend, key),
        verified=pictures.verify(name),
        checks=CHECKS,
        references=pictures.references(found),
        sections=sections(facts),
        command=wording.command("sidecar", "artifact", "reproduce", found.picture_digest),
        notice="",
    )


def verification(request: Request) -> Response:
    """``GET /api/v1/artifacts/{digest}/verification``: what came of checking a picture now."""
    console, name = Console.of(request), digest(request.path_params["digest"])
    return Json(serialise.verification(console.backend.provenance.verify(name)))


def _name(backend: Backend, key: FeatureKey) -> str:
    try:
        flag = backend.feature(key).flag
    except NotFound:  # a picture may outlive the layer it was about
        flag = None
    unit = wording.unit_name(key, tuple(backend.labels(key.layer.model)))
    return (flag.name if flag else "") or unit


def _facts(backend: Backend, manifest: str) -> Mapping[str, Any]:
    """Return the manifest; nothing where it cannot be read, which the verification then says."""
    try:
        path, _ = backend.artifact(manifest)
        return parse_manifest(path.read_bytes())
    except (SidecarError, OSError):
        return {}


def sections(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titles with the names and words of a manifest's values, nested ones flat."""
    found = []
    for title, keys in _SECTIONS:
        lines = [line for key in keys if key in facts for line in _lines(key, facts[key])]
        if lines:
            found.append((title, lines))
    return found


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [line for key, inner in value.items() for line in _lines(f"{name} {key}", inner)]
    words = _NONE if value in (None, "", [], {}) else _words(value)
    return [(name.replace("_", " "), words)]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
