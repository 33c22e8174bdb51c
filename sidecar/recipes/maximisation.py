"""The recipe of activation maximisation."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, choice, number


@dataclass(frozen=True, slots=True)
class Maximisation(Recipe):
    """How an activation-maximisation picture is made.

    The defaults are the recipe whose pictures a sibling network, which the optimiser never saw,
    recognises best at one crop a step (mean p over the best 3 of 26 views .76 on EfficientNet-Lite1,
    against .28 for Lucent's defaults); see ``docs/portraits.md``.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Step size of Adam in what is optimised.
        canvas: Side of the square picture in pixels.
        parametrisation: What is optimised: the picture's Fourier spectrum, its pixels, or (``maco``)
            only the phases of a spectrum whose magnitudes are those of photographs.
        colours: Whether colours are mixed from axes that are independent in photographs.
        decay: Exponent of the 1/f amplitude scaling of the Fourier parametrisation.
        objective: What is made large of a ``direction``: its dot product with the layer's output, or
            the cosine of the angle between them.
        transforms: How the network is shown the picture: random zoomed crops, or the whole picture
            shifted, scaled and turned a little.
        crops: Views the network sees a step.
        coarse: Ratio of the steps, from the first on, in which it sees them at five sevenths of its
            input's side, for half the cost. A neuron, which has a position, and a model that takes one
            size alone have no such steps.
        zoom_min: Smallest side of a crop as a ratio of the canvas.
        zoom_max: Largest side of a crop as a ratio of the canvas.
        centre_sigma: Standard deviation of a crop's centre, as a ratio of half the canvas.
        jitter: Largest shift of the whole picture, as a ratio of the canvas.
        scale: Largest change of the whole picture's scale either way, as a ratio.
        rotation_degrees: Largest rotation either way.
        noise: Standard deviation of the pixel noise, in units of the full 0 to 1 range.
        total_variation: Weight of the total-variation prior.
        l2: Weight of the prior that keeps colours near grey.
        typical_range: Weight of the prior that keeps the layer's other units within the range they
            have on live traffic; 0 switches it off. Needs a baseline of the layer.
        facets: Pictures of the unit on one sheet, each pushed to be unlike the others.
        diversity: How strongly, as a ratio of the activation that may be given up for it.
        stops: Pictures on one sheet that go from the target's unit to its only term by steps of
            their weights; 1: no such sheet.
        plateau: Stop before ``steps`` once the mean activation of 32 steps is above that of the 32
            before by less than this ratio; 0 never does.
    """

    method: ClassVar[str] = "activation_maximisation"
    version: ClassVar[int] = 2

    steps: int = number(128, 1, 10_000)
    learning_rate: float = number(0.05, 1e-6, 10.0)
    canvas: int = number(256, 32, 2048)
    parametrisation: str = choice("fourier", "pixel", "maco")
    colours: str = choice("decorrelated", "plain")
    decay: float = number(1.1, 0.0, 4.0)
    objective: str = choice("dot", "cosine")
    transforms: str = choice("crops", "jitter")
    crops: int = number(1, 1, 64)
    coarse: float = number(0.0, 0.0, 1.0)
    zoom_min: float = number(0.4, 0.05, 1.0)
    zoom_max: float = number(1.0, 0.05, 1.0)
    centre_sigma: float = number(0.3, 0.0, 10.0)
    jitter: float = number(0.06, 0.0, 0.5)
    scale: float = number(0.1, 0.0, 0.5)
    rotation_degrees: float = number(10.0, 0.0, 180.0)
    noise: float = number(0.1, 0.0, 1.0)
    total_variation: float = number(0.0, 0.0, 1e6)
    l2: float = number(0.0, 0.0, 1e6)
    typical_range: float = number(0.0, 0.0, 1e6)
    facets: int = number(1, 1, 8)
    diversity: float = number(0.5, 0.0, 1e3)
    stops: int = number(1, 1, 8)
    plateau: float = number(0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        Recipe.__post_init__(self)
        if self.zoom_min > self.zoom_max:
            raise UnsupportedTarget(
                f"recipe.zoom_min {self.zoom_min} is above zoom_max {self.zoom_max}: swap them"
            )
        if self.facets > 1 and self.stops > 1:
            raise UnsupportedTarget(
                f"recipe.facets {self.facets} and stops {self.stops}: a sheet shows one of them, set the "
                "other to 1"
            )

    @property
    def tiles(self) -> int:
        """Pictures on one sheet."""
        return max(self.facets, self.stops)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The typical ranges, where the prior looks at them."""
        return ("typical",) if self.typical_range else ()
