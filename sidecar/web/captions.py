"""Reads the manifest of a portrait for what belongs under the picture."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.errors import SidecarError
from sidecar.jobs import Portrait
from sidecar.web.backend import Backend

_MANIFEST_LIMIT_BYTES = 4 << 20  # a manifest has the loss of every step; more than this is none

_MEASURES_LIMIT = 32  # twice as many as there are

_REAL_LIMIT = 1e300  # JSON knows no bounds; a whole number of a thousand digits is no activation


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of how far a portrait can be believed.

    Attributes:
        name: Of the measure.
        value: In ``unit``.
        unit: What it counts.
        meaning: What it says, in words.
        decides: Whether it has a part in the verdict.
    """

    name: str
    value: float
    unit: str
    meaning: str
    decides: bool


@dataclass(frozen=True, slots=True)
class Caption:
    """What is said about a portrait; None where the manifest does not say it.

    Attributes:
        portrait: The picture it is about.
        method: How it was made.
        activation: What the feature gives for the whole picture.
        augmented: The mean over fresh augmentations of the picture.
        spread: Their standard deviation.
        percentile: Share of live values at or below ``activation``, 0 to 100.
        live_maximum: Greatest live value then.
        live_count: Live values it was compared with.
        live_window: The window they are of.
        seed: Seed of the run.
        steps: Optimiser steps.
        duration_seconds: Time it took.
        device: Where it ran.
        code_version: The version of the sidecar that made it.
        verified: Whether the weights were proved to be those of the feature's revision.
        measures: How far it can be believed, measure by measure.
        not_assessed: Why there is no verdict.
    """

    portrait: Portrait
    method: str | None = None
    activation: float | None = None
    augmented: float | None = None
    spread: float | None = None
    percentile: float | None = None
    live_maximum: float | None = None
    live_count: int | None = None
    live_window: str | None = None
    seed: int | None = None
    steps: int | None = None
    duration_seconds: float | None = None
    device: str | None = None
    code_version: str | None = None
    verified: bool | None = None
    measures: tuple[Measured, ...] = ()
    not_assessed: str | None = None


def caption(backend: Backend, portrait: Portrait) -> Caption:
    """Return what is known about a portrait; a missing or broken manifest leaves it bare."""
    try:
        path, _ = backend.artifact(portrait.manifest_digest)
        return parse(portrait, _read(path))
    except (SidecarError, OSError, ValueError):
        return Caption(portrait)


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        body = file.read(_MANIFEST_LIMIT_BYTES + 1)
    if len(body) > _MANIFEST_LIMIT_BYTES:
        raise ValueError("the manifest is too large to be one")
    return json.loads(body)


def parse(portrait: Portrait, manifest: Any) -> Caption:
    """Pick the caption out of a manifest; what is missing or of a wrong type stays None."""
    whole = _mapping(manifest)
    names = ("method", "activation", "live", "recipe", "device", "code", "model")
    parts = {name: _mapping(whole.get(name)) for name in names}
    verified = parts["model"].get("digest_verified")
    return Caption(
        portrait=portrait,
        method=_text(parts["method"].get("name")),
        activation=_real(parts["activation"].get("plain")),
        augmented=_real(parts["activation"].get("augmented")),
        spread=_real(parts["activation"].get("augmented_spread")),
        percentile=_real(parts["live"].get("percentile")),
        live_maximum=_real(parts["live"].get("maximum")),
        live_count=_integer(parts["live"].get("count")),
        live_window=_text(parts["live"].get("window")),
        seed=_integer(parts["recipe"].get("seed")),
        steps=_integer(parts["recipe"].get("steps")),
        duration_seconds=_real(whole.get("duration_seconds")),
        device=_text(parts["device"].get("type")),
        code_version=_text(parts["code"].get("sidecar")),
        verified=verified if isinstance(verified, bool) else None,
        measures=tuple(_measures(_mapping(_mapping(whole.get("reliability")).get("measures")))),
        not_assessed=_text(_mapping(whole.get("findings")).get("not_assessed")),
    )


def _measures(found: dict[str, Any]) -> Iterator[Measured]:
    for name, one in list(found.items())[:_MEASURES_LIMIT]:
        part = _mapping(one)
        value, meaning = _real(part.get("value")), _text(part.get("meaning"))
        if value is not None and meaning is not None:
            unit = _text(part.get("unit")) or ""
            yield Measured(name[:80], value, unit, meaning, part.get("decides") is True)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _REAL_LIMIT:
        return None
    return None if math.isnan(value) else float(value)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
