"""The recipe of attribution: which pixels of an image make a unit active."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import choice, number, word
from sidecar.recipes.subject import OfImage


@dataclass(frozen=True, slots=True)
class Attribution(OfImage):
    """Which pixels of an image make a unit active, by one technique or by all three.

    Attributes:
        technique: ``integrated_gradients``, ``grad_cam``, ``occlusion`` or ``all``.
        layer: Layer at which Grad-CAM looks; empty: the unit's own.
        baseline: What stands for the absence of the image: a blurred copy, grey or black.
        steps: Points on the way from the baseline, for integrated gradients.
        window: Side of the square that occlusion covers, in pixels of the model's input.
        stride: How far it is moved each time.
        curve: Points of the deletion and insertion curves.
        randomise: Whether a network of shuffled weights is asked too: a map that stays the same
            says nothing about what was learned.
        tile: Side of one image on the sheet in pixels.
    """

    method: ClassVar[str] = "attribution"
    version: ClassVar[int] = 1
    random: ClassVar[bool] = False
    """The seed moves crops and shuffles that are measured, never the maps."""

    technique: str = choice("all", "integrated_gradients", "grad_cam", "occlusion")
    layer: str = word()
    baseline: str = choice("blur", "grey", "black")
    steps: int = number(64, 4, 1024)
    window: int = number(32, 1, 512)
    stride: int = number(16, 1, 512)
    curve: int = number(20, 4, 200)
    randomise: str = choice("no", "yes")
    tile: int = number(224, 32, 512)

    def __post_init__(self) -> None:
        """Refuse values no map can be made with, naming the first one."""
        OfImage.__post_init__(self)
        if self.stride > self.window:
            raise UnsupportedTarget(
                f"recipe.stride {self.stride} is above window {self.window}: pixels between the windows "
                "would never be covered; use at most the window"
            )

    @property
    def techniques(self) -> tuple[str, ...]:
        """The techniques that are asked for, in the order of the sheet."""
        every = ("integrated_gradients", "grad_cam", "occlusion")
        return every if self.technique == "all" else (self.technique,)
