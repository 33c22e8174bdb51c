"""The recipe of a search without gradients."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, number


@dataclass(frozen=True, slots=True)
class Search(Recipe):
    """A picture that drives a unit, of a model that only runs forward.

    Attributes:
        generations: How often the search distribution is moved.
        population: Pictures that are tried each time.
        frequencies: Highest frequency that is searched, in waves across the picture; their number
            grows with its square.
        sigma: Standard deviation of the first pictures' coefficients.
        canvas: Side of the picture in pixels.
        decay: Exponent of the 1/f amplitude scaling.
        zoom_min: Smallest side of a crop as a ratio of the canvas.
        zoom_max: Largest side.
        rotation_degrees: Largest rotation either way.
        noise: Standard deviation of the pixel noise.
    """

    method: ClassVar[str] = "search"
    version: ClassVar[int] = 1

    generations: int = number(200, 1, 10_000)
    population: int = number(32, 4, 1024)
    frequencies: int = number(6, 1, 32)
    sigma: float = number(0.5, 1e-3, 10.0)
    canvas: int = number(224, 32, 2048)
    decay: float = number(1.1, 0.0, 4.0)
    zoom_min: float = number(0.6, 0.05, 1.0)
    zoom_max: float = number(1.0, 0.05, 1.0)
    rotation_degrees: float = number(10.0, 0.0, 180.0)
    noise: float = number(0.05, 0.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse values no picture can be found with, naming the first one."""
        Recipe.__post_init__(self)
        if self.zoom_min > self.zoom_max:
            raise UnsupportedTarget(
                f"recipe.zoom_min {self.zoom_min} is above zoom_max {self.zoom_max}: swap them"
            )
        if 2 * self.frequencies >= self.canvas:
            raise UnsupportedTarget(
                f"recipe.frequencies {self.frequencies} needs a canvas above {2 * self.frequencies}, and "
                f"it is {self.canvas}: lower frequencies"
            )
