"""The recipe of a caricature."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import number
from sidecar.recipes.subject import OfImage


@dataclass(frozen=True, slots=True)
class Caricature(OfImage):
    """What a layer keeps of an image, exaggerated.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Step size of Adam in the decorrelated spectrum.
        canvas: Side of the picture in pixels.
        decay: Exponent of the 1/f amplitude scaling.
        cosine_power: How much the direction counts beside the length: 0 counts the length alone.
        zoom_min: Smallest side of a crop as a ratio of the canvas.
        zoom_max: Largest side.
        rotation_degrees: Largest rotation either way.
        noise: Standard deviation of the pixel noise.
    """

    method: ClassVar[str] = "caricature"
    version: ClassVar[int] = 1

    steps: int = number(128, 1, 10_000)
    learning_rate: float = number(0.05, 1e-6, 10.0)
    canvas: int = number(224, 32, 2048)
    decay: float = number(1.1, 0.0, 4.0)
    cosine_power: float = number(1.0, 0.0, 8.0)
    zoom_min: float = number(0.6, 0.05, 1.0)
    zoom_max: float = number(1.0, 0.05, 1.0)
    rotation_degrees: float = number(5.0, 0.0, 180.0)
    noise: float = number(0.05, 0.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        OfImage.__post_init__(self)
        if self.zoom_min > self.zoom_max:
            raise UnsupportedTarget(
                f"recipe.zoom_min {self.zoom_min} is above zoom_max {self.zoom_max}: swap them"
            )
