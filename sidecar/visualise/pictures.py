"""What a visualisation takes and gives: ranges, costs, progress and finished pictures."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from sidecar.errors import ShapeMismatch, UnsupportedTarget
from sidecar.features import LayerKey
from sidecar.recipes import Recipe, Side, Target, content_key

_PREFIX = "sidecar."

_PIXEL_LIMIT = 1 << 26
"""Of an image that is read: 200 MB as RGB."""


@dataclass(frozen=True, slots=True)
class TypicalRange:
    """Between which activations the units of some layers usually stay on live traffic.

    Attributes:
        low: For the text form of a layer key, the lower end for every unit, shape ``(width,)``, in
            the view of that key. NaN: nothing is known about the unit, it is left alone.
        high: The upper ends, the same keys and shapes.
    """

    low: Mapping[str, NDArray[np.float32]]
    high: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        """Refuse ends that do not belong together."""
        if self.low.keys() != self.high.keys():
            odd = sorted(self.low.keys() ^ self.high.keys())
            raise ShapeMismatch(f"typical range: {odd} have only one end; give low and high")
        for layer, low in self.low.items():
            high = self.high[layer]
            if low.ndim != 1 or low.shape != high.shape:
                raise ShapeMismatch(
                    f"typical range of {layer}: low {low.shape} and high {high.shape} must both be "
                    "(width,)"
                )

    def digest(self, layer: LayerKey) -> str:
        """Return the sha256 of one layer's range for ``recipes.content_key``; empty if unknown."""
        name = str(layer)
        if name not in self.low:
            return ""
        ends = (self.low[name], self.high[name])
        return hashlib.sha256(b"".join(np.asarray(e, "<f4").tobytes() for e in ends)).hexdigest()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request will take, known before any of it is done.

    Attributes:
        forwards: Images the network sees, most of them forward and backward.
        seconds_estimate: Expected wall time on this device; None where it was not measured.
        bytes_estimate: Memory for activations and gradients beyond the model itself.
    """

    forwards: int
    seconds_estimate: float | None
    bytes_estimate: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is.

    Attributes:
        step: Optimiser steps done, over all batches of the request; never decreases.
        steps: Optimiser steps in all.
        activations: One value a target in the order of the request, in the view of its layer key, as
            seen through the random crops of the last step; NaN for targets not begun.
        preview: The pictures of the current batch side by side, shape ``(height, width, 3)``.
        shown: Which targets, as indices into the request, ``preview`` shows from left to right.
    """

    step: int
    steps: int
    activations: tuple[float, ...]
    preview: NDArray[np.uint8]
    shown: tuple[int, ...]

    def png(self) -> bytes:
        """Return ``preview`` as a PNG."""
        return encode_png(self.preview, {})


@dataclass(frozen=True, slots=True)
class Picture:
    """What one unit looks for, and how strongly this picture drives it.

    All activations are in the view of the target's layer key, so they compare with the unit's live
    distribution.

    Attributes:
        target: What it is a picture of.
        recipe: How it was made.
        model_digest: sha256 of the weights it was made with.
        inputs: Digests of what else it depends on, by the names of ``Recipe.inputs``; ``typical`` is
            the sha256 of the typical ranges.
        image: RGB, shape ``(canvas, canvas, 3)``; what the numbers below were measured on. A sheet of
            several pictures is as much wider, and the numbers are its first one's; the others' are
            in ``findings["tiles"]``.
        activation: Of the whole picture, resized to the network's input.
        activation_augmented: Mean over 16 fresh augmentations of the recipe.
        activation_augmented_spread: Their standard deviation.
        first_activation: Of the random start, measured as ``activation``.
        history: Activation at each step, as seen through that step's random crops.
        findings: What the method has to say beside that, as JSON-able values; goes into the manifest.
    """

    target: Target
    recipe: Recipe
    model_digest: str
    inputs: Mapping[str, str]
    image: NDArray[np.uint8]
    activation: float
    activation_augmented: float
    activation_augmented_spread: float
    first_activation: float
    history: tuple[float, ...]
    findings: Mapping[str, Any] = field(default_factory=dict)

    def png(self, more: Mapping[str, str] = MappingProxyType({})) -> bytes:
        """Return the picture as a PNG that says where it comes from.

        Equal pictures give equal bytes: there is no clock in it. The text chunks are those of
        ``provenance``, and ``more``, such as the verdict.
        """
        further = {_PREFIX + name: text for name, text in more.items()}
        return encode_png(self.image, {**self.provenance(), **further})

    def provenance(self) -> dict[str, str]:
        """Return the text chunks of the PNG: method, target, model, recipe, seed, activations."""
        position = self.target.position
        facts = {
            "method": f"{self.recipe.method}/{self.recipe.version}",
            "feature": str(self.target.feature),
            "side": "" if self.target.side is Side.POSITIVE else str(self.target.side),
            "terms": " ".join(f"{term.weight:+g}*{term.feature}" for term in self.target.terms),
            "position": "" if position is None else f"{position[0]},{position[1]}",
            "model_digest": self.model_digest,
            "recipe": json.dumps(self.recipe.values(), sort_keys=True),
            "seed": str(self.recipe.seed),
            "typical_digest": self.inputs.get("typical", ""),
            "content_key": content_key(self.target, self.recipe, self.inputs),
            "activation": repr(self.activation),
            "activation_augmented": repr(self.activation_augmented),
        }
        chunks = {_PREFIX + name: text for name, text in facts.items() if text}
        # "Software" and "Title" are registered PNG keywords that image viewers show.
        return {"Software": "feature-sidecar", "Title": str(self.target.feature), **chunks}


def with_cost(picture: Picture, cost: Cost, forwards: int, seconds: float) -> Picture:
    """Return the picture with what its request took beside what was predicted, in its findings.

    Args:
        picture: One of a request, whose passes are shared.
        cost: What its plan predicted.
        forwards: Images that went forward through the network for the whole request.
        seconds: How long that took.
    """
    taken = {
        "forwards": forwards,
        "forwards_planned": cost.forwards,
        "seconds": seconds,
        "seconds_planned": cost.seconds_estimate,
    }
    return replace(picture, findings={**picture.findings, "cost": taken})


def encode_png(image: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """Return an RGB image as a PNG with text chunks; equal arguments give equal bytes.

    Args:
        image: Shape ``(height, width, 3)``.
        texts: Keyword to text; Latin-1 goes to tEXt, anything else to iTXt.
    """
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    out = io.BytesIO()
    Image.fromarray(image, mode=None).save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return a picture as RGB, shape ``(height, width, 3)``; what is transparent lies on white.

    Raises:
        UnsupportedTarget: The file is no picture, or larger than 64 million pixels.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")) as opened:
            if opened.width * opened.height > _PIXEL_LIMIT:
                raise UnsupportedTarget(
                    f"image {path.name} has {opened.width} x {opened.height} pixels: use at most "
                    f"{_PIXEL_LIMIT}"
                )
            layered = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnsupportedTarget(f"image {path.name} cannot be read: {error}") from error
    ground = Image.new("RGBA", layered.size, "white")
    return np.asarray(Image.alpha_composite(ground, layered).convert("RGB"))
