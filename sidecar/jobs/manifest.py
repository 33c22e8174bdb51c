"""The manifest of a picture: everything needed to trace it and to make it again.

Schema 2, a JSON object without NaN or infinities (they are null). ``manifest-2.schema.json`` beside
this file says the same for machines; ``manifest-1.schema.json`` is what earlier releases wrote, which
stays readable.

===================  ============================================================================
``schema``           2; raised when a key changes its meaning
``feature``          text form of the feature key; ``layer``, ``kind``, ``unit``, ``view``, ``scope``
                     and ``position`` (row and column, or null) are its parts; ``side`` and ``terms``
                     (feature and weight) say what of it is shown
``model``            ``name``, ``digest`` (sha256 of the weights), ``digest_verified`` (whether the
                     feature's revision is that digest), ``factory``
``weights_file``     ``name`` and ``sha256`` of the file, or null where the factory has its own
``input``            ``size``, ``mean``, ``std`` of the images the model takes
``method``           ``name`` and ``version``
``recipe``           every value by name; ``seed`` again at the top
``inputs``           what was given beside model and recipe: ``kind`` (``artifact``, ``dataset``,
                     ``directions``, ``model`` or ``typical_range``), ``name`` and ``digest`` of each
``typical_digest``   sha256 of the typical ranges used, or empty
``content_key``      sha256 of the request; equal requests have equal keys
``code``             versions of ``sidecar``, its ``commit``, ``python``, ``torch``, ``numpy``,
                     ``pillow``, ``safetensors``, ``onnxruntime``; null: not installed or unknown
``device``           where it ran: ``type``, ``name``, ``threads``, ``cuda`` (``runtime``, ``cudnn``,
                     ``capability``, ``peak_bytes`` of tensors, or null) and ``flags``, the switches of determinism
``sandbox``          ``mode``, what was ``applied`` (``landlock``, ``seccomp``, ``capabilities``,
                     ``limits``), and what was ``missing``, by name and why
``activation``       ``plain`` (the whole picture, resized to the network's input), ``augmented``
                     (mean over fresh augmentations of the recipe), ``augmented_spread`` (their
                     standard deviation), ``start`` (the random start, seen whole), all in ``view``
``history``          ``step`` and ``activation`` lists of at most 64 points, as seen through the crops
``live``             the plain activation beside live traffic, see ``live_facts``, or null
``findings``         what the method has to say beside that, by name
``reliability``      how far the picture can be believed, see below, or null: nobody measured it
``picture``          ``sha256``, ``bytes``, ``width``, ``height``, ``media_type``
``job``              ``id``, ``attempt``, ``origin``
``parents``          ``alert`` (``fingerprint`` and ``started``, or null) and ``evidence``, the id of
                     the record that says why the feature fired, or null
``reproduces``       sha256 of the manifest whose picture was made again, or null
``started``          when the attempt began, ISO 8601 UTC; ``duration_seconds`` since then
``timings``          ``load_seconds``, ``plan_seconds``, ``optimise_seconds``, ``measure_seconds``,
                     ``reliability_seconds`` of the attempt, which its pictures share
===================  ============================================================================

``reliability`` is ``{"verdict": "trusted" | "weak" | "unreliable", "reasons": [sentence, ...],
"measures": {name: {"value": number, "unit": text, "meaning": text, "decides": bool}}}``. Reasons are
empty where it is trusted; a measure that could not be taken is absent; one that does not ``decide`` is
told and has no part in the verdict.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.jobs.protocol import Cause
from sidecar.jobs.spec import LiveContext

SCHEMA = 2
"""Version of the manifest."""

VERDICTS = frozenset({"trusted", "weak", "unreliable"})
"""How far a picture can be believed, in one word."""

_REASONS_LIMIT = 4096
"""Characters: a dozen sentences."""

HISTORY_LIMIT = 64
"""Points of the optimisation's course that are kept: more than a sparkline shows."""


def encode_manifest(facts: Mapping[str, Any]) -> bytes:
    """Return a manifest as indented JSON with sorted keys; NaN and infinities become null."""
    text = json.dumps(_strict(facts), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"


def read_verdict(path: Path) -> tuple[str, str]:
    """Return the verdict of a manifest's file, and its reasons, a sentence a line.

    Both are empty where it has none: a manifest is what a child wrote, so nothing in it is relied on.
    """
    try:
        found = json.loads(path.read_bytes())["reliability"]
        verdict, reasons = found["verdict"], [str(reason) for reason in found["reasons"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
    lines = "\n".join(" ".join(reason.split()) for reason in reasons)
    return (verdict, lines[:_REASONS_LIMIT]) if verdict in VERDICTS else ("", "")


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parents(cause: Cause) -> dict[str, Any]:
    """Return what led to a picture: the alert and the evidence, null where there is none."""
    alert = {"fingerprint": cause.alert, "started": iso_time(cause.alert_started)}
    return {"alert": alert if cause.alert else None, "evidence": cause.evidence or None}


def artifact_inputs(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sha256 of every artifact that a picture was made from."""
    given = facts.get("inputs")
    ones = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return tuple(str(one.get("digest")) for one in ones if one.get("kind") == "artifact")


def thin_history(history: Sequence[float]) -> dict[str, list[float]]:
    """Return at most ``HISTORY_LIMIT`` evenly spread points, the first and the last among them.

    Returns:
        ``step``, counted from 1, and ``activation``, of equal length.
    """
    count = min(len(history), HISTORY_LIMIT)
    kept = np.linspace(0, max(0, len(history) - 1), count).round().astype(int).tolist()
    return {"step": [index + 1 for index in kept], "activation": [history[i] for i in kept]}


def live_facts(live: LiveContext, activation: float) -> dict[str, Any]:
    """Put a picture's activation beside what live traffic causes.

    Synthetic pictures drive a unit far beyond what it ever sees; that is normal, and said.

    Args:
        live: The unit's live distribution, in the same view as ``activation``.
        activation: Of the whole picture.

    Returns:
        ``percentile`` (0 to 100, interpolated in the quantile table, or null without values),
        ``ratio_to_max`` (null unless the maximum is positive), ``position`` in words, ``count``,
        ``minimum``, ``maximum``, ``window``, ``started``, ``ended``.
    """
    rank = _rank(live, activation)
    return {
        "percentile": None if rank is None else 100.0 * rank,
        "ratio_to_max": activation / live.maximum if live.maximum > 0 else None,
        "position": _position(live, activation, rank),
        "count": live.count,
        "minimum": live.minimum,
        "maximum": live.maximum,
        "window": live.window,
        "started": iso_time(live.started),
        "ended": iso_time(live.ended),
    }


def _rank(live: LiveContext, activation: float) -> float | None:
    """Return the share of live values at or below an activation, between 0 and 1."""
    known = np.isfinite(live.values)
    if live.count == 0 or not math.isfinite(activation) or not known.any():
        return None
    if activation >= live.maximum:
        return 1.0
    if activation < live.minimum:
        return 0.0
    values = np.concatenate(([live.minimum], live.values[known], [live.maximum]))
    values = np.maximum.accumulate(values)
    levels = np.concatenate(([0.0], live.levels[known], [1.0]))
    # A stretch of equal values, often zeros, ranks at its upper end: they are "at or below".
    right = int(np.searchsorted(values, activation, side="right"))
    if right == len(values):
        return 1.0
    width = values[right] - values[right - 1]
    share = (activation - values[right - 1]) / width
    return float(levels[right - 1] + share * (levels[right] - levels[right - 1]))


def _position(live: LiveContext, activation: float, rank: float | None) -> str:
    if rank is None:
        return "no live values to compare with"
    if activation > live.maximum:
        return "above the observed maximum"
    if activation < live.minimum:
        return "below the observed minimum"
    return "within the observed range"


def iso_time(seconds: float) -> str | None:
    """Return unix seconds as ISO 8601 in UTC; None for 0, which stands for never."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
