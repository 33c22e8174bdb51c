"""The recipe of dataset examples."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, number, word


@dataclass(frozen=True, slots=True)
class Examples(Recipe):
    """Which images of a dataset drive a unit: the strongest, and some from each band below.

    Attributes:
        dataset: Name of a configured dataset.
        top: Images that drive the unit most.
        bands: Bands of equal share into which the rest is cut by activation; 0: only the strongest.
        per_band: Images shown of each band, evenly spread over it.
        tile: Side of one image on the sheet in pixels.
    """

    method: ClassVar[str] = "dataset_examples"
    version: ClassVar[int] = 1
    random: ClassVar[bool] = False

    dataset: str = word()
    top: int = number(6, 1, 64)
    bands: int = number(3, 0, 16)
    per_band: int = number(3, 1, 64)
    tile: int = number(128, 32, 512)

    def __post_init__(self) -> None:
        """Refuse values no sheet can be made with, naming the first one."""
        Recipe.__post_init__(self)
        if not self.dataset:
            raise UnsupportedTarget("recipe.dataset is empty: name one under datasets")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is in the dataset."""
        return (f"dataset:{self.dataset}",)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The one dataset."""
        return (self.dataset,)
