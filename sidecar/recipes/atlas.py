"""The recipe of an activation atlas."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, choice, number, word


@dataclass(frozen=True, slots=True)
class Atlas(Recipe):
    """What a layer tells apart in a dataset: its activations laid out on a map, each cell drawn.

    Attributes:
        dataset: Name of a configured dataset.
        positions: Random positions of each image whose activations are taken.
        grid: Cells along a side of the map.
        layout: How activations are laid out: by their two principal components, or by UMAP.
        least: Activations below which a cell stays empty.
        steps: Optimiser steps of each cell's picture.
        learning_rate: Step size of Adam in the decorrelated spectrum.
        canvas: Side of a cell's picture in pixels.
        decay: Exponent of the 1/f amplitude scaling.
    """

    method: ClassVar[str] = "atlas"
    version: ClassVar[int] = 2

    dataset: str = word()
    positions: int = number(4, 1, 64)
    grid: int = number(8, 2, 24)
    layout: str = choice("pca", "umap")
    least: int = number(3, 1, 10_000)
    steps: int = number(64, 1, 2000)
    learning_rate: float = number(0.05, 1e-6, 10.0)
    canvas: int = number(96, 32, 256)
    decay: float = number(1.1, 0.0, 4.0)

    def __post_init__(self) -> None:
        """Refuse values no map can be made with, naming the first one."""
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
