"""The recipe of activation maximisation."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, number


@dataclass(frozen=True, slots=True)
class Maximisation(Recipe):
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
    """

    method: ClassVar[str] = "activation_maximisation"
    version: ClassVar[int] = 1

    steps: int = number(128, 1, 10_000)
    learning_rate: float = number(0.05, 1e-6, 10.0)
    canvas: int = number(256, 32, 2048)
    decay: float = number(1.1, 0.0, 4.0)
    crops: int = number(1, 1, 64)
    zoom_min: float = number(0.4, 0.05, 1.0)
    zoom_max: float = number(1.0, 0.05, 1.0)
    centre_sigma: float = number(0.3, 0.0, 10.0)
    rotation_degrees: float = number(10.0, 0.0, 180.0)
    noise: float = number(0.1, 0.0, 1.0)
    total_variation: float = number(0.0, 0.0, 1e6)
    typical_range: float = number(0.0, 0.0, 1e6)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        Recipe.__post_init__(self)
        if self.zoom_min > self.zoom_max:
            raise UnsupportedTarget(
                f"recipe.zoom_min {self.zoom_min} is above zoom_max {self.zoom_max}: swap them"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The typical ranges, where the prior looks at them."""
        return ("typical",) if self.typical_range else ()
