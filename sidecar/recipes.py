"""What a picture is asked for: targets, recipes and the content key that names the answer.

These values cross from the console and the alert webhook through the job queue to the worker, so
they know nothing of torch. Equal requests have equal content keys; an answer once made is found
again by its key.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from sidecar.errors import UnsupportedTarget
from sidecar.features import FeatureKey, FeatureKind

METHOD = "activation_maximisation"
"""The one method there is so far."""

METHOD_VERSION = 1
"""Raised whenever the method's pictures change; part of every content key, so old answers age out."""

PICTURE_KINDS = frozenset({FeatureKind.CHANNEL, FeatureKind.NEURON, FeatureKind.LOGIT})
"""Kinds of unit that activation maximisation of an image model applies to."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an activation-maximisation picture is made.

    The defaults are the recipe whose pictures a sibling network, which the optimiser never saw,
    recognises best at one crop a step (mean p over the best 3 of 26 views .76 on EfficientNet-Lite1,
    against .28 for Lucent's defaults); see ``docs/portraits.md``.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Step size of Adam in the decorrelated spectrum.
        canvas: Side of the square picture in pixels.
        decay: Exponent of the 1/f amplitude scaling of the Fourier parametrisation.
        crops: Random zoomed crops the network sees a step.
        zoom_min: Smallest side of a crop as a ratio of the canvas.
        zoom_max: Largest side of a crop as a ratio of the canvas.
        centre_sigma: Standard deviation of a crop's centre, as a ratio of half the canvas.
        rotation_degrees: Largest rotation either way.
        noise: Standard deviation of the pixel noise, in units of the full 0 to 1 range.
        total_variation: Weight of the total-variation prior.
        typical_range: Weight of the prior that keeps the layer's other units within the range they
            have on live traffic; 0 switches it off. Needs a baseline of the layer.
        seed: Seed of the start and of every augmentation.
    """

    steps: int = 128
    learning_rate: float = 0.05
    canvas: int = 256
    decay: float = 1.1
    crops: int = 1
    zoom_min: float = 0.4
    zoom_max: float = 1.0
    centre_sigma: float = 0.3
    rotation_degrees: float = 10.0
    noise: float = 0.1
    total_variation: float = 0.0
    typical_range: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UnsupportedTarget(f"recipe.{name} {value!r} is not a number")
            if not low <= value <= high:
                raise UnsupportedTarget(f"recipe.{name} {value} is outside {low} to {high}")
        if self.zoom_min > self.zoom_max:
            raise UnsupportedTarget(
                f"recipe.zoom_min {self.zoom_min} is above zoom_max {self.zoom_max}: swap them"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from named values; what is not named keeps its default.

        Raises:
            UnsupportedTarget: A name is unknown, or a value has the wrong type or range.
        """
        known = {item.name: item.type for item in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise UnsupportedTarget(
                    f"recipe.{name} is unknown: use one of {', '.join(sorted(known))}"
                )
            if known[name] is int and not isinstance(value, int):
                raise UnsupportedTarget(f"recipe.{name} {value!r} is not a whole number")
        return cls(**values)


# Upper limits keep one job's time and memory within reach of the default time limit on a CPU.
_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, 10_000),
    ("learning_rate", 1e-6, 10.0),
    ("canvas", 32, 2048),
    ("decay", 0.0, 4.0),
    ("crops", 1, 64),
    ("zoom_min", 0.05, 1.0),
    ("zoom_max", 0.05, 1.0),
    ("centre_sigma", 0.0, 10.0),
    ("rotation_degrees", 0.0, 180.0),
    ("noise", 0.0, 1.0),
    ("total_variation", 0.0, 1e6),
    ("typical_range", 0.0, 1e6),
    ("seed", 0, 2**63 - 1),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What one picture is of.

    Attributes:
        feature: The unit.
        position: ``(row, column)`` in the layer's spatial grid for a neuron; None for its centre,
            and for channels and logits.
    """

    feature: FeatureKey
    position: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse units that this method makes no picture of."""
        kind = self.feature.layer.kind
        if kind not in PICTURE_KINDS:
            wanted = ", ".join(sorted(PICTURE_KINDS))
            raise UnsupportedTarget(f"no picture of a {kind} can be made yet: use one of {wanted}")
        if self.position is not None and kind is not FeatureKind.NEURON:
            raise UnsupportedTarget(f"a position applies to neurons, not to a {kind}: leave it out")


def content_key(target: Target, recipe: Recipe, typical_digest: str = "") -> str:
    """Return the sha256 that names the answer to a request.

    Args:
        target: What the picture is of; its revision is the model digest.
        recipe: How it is made.
        typical_digest: sha256 of the typical ranges used, where the recipe uses them.

    Returns:
        64 hexadecimal digits, equal for equal requests on any machine.
    """
    request = {
        "method": METHOD,
        "method_version": METHOD_VERSION,
        "feature": str(target.feature),
        "position": target.position,
        "recipe": asdict(recipe),
        "typical": typical_digest if recipe.typical_range else "",
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
