"""The recipe of a comparison with another revision."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, number, word


@dataclass(frozen=True, slots=True)
class Comparison(Recipe):
    """Whether another model still looks for what a unit looks for.

    Attributes:
        other: Name of the configured model that is compared with the targets'.
        dataset: Name of the configured dataset on which both are run.
        layer: The other model's layer; empty: of the same name, else the most similar one.
        steps: Optimiser steps of each portrait; 0: no portraits, only the dataset.
        canvas: Side of a portrait in pixels.
    """

    method: ClassVar[str] = "comparison"
    version: ClassVar[int] = 1

    other: str = word()
    dataset: str = word()
    layer: str = word()
    steps: int = number(64, 0, 10_000)
    canvas: int = number(160, 32, 2048)

    def __post_init__(self) -> None:
        """Refuse values nothing can be compared with, naming the first one."""
        Recipe.__post_init__(self)
        for name in ("other", "dataset"):
            if not getattr(self, name):
                raise UnsupportedTarget(f"recipe.{name} is empty: name a configured one")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is in the dataset, and the other model."""
        return (f"dataset:{self.dataset}", f"model:{self.other}")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The one dataset."""
        return (self.dataset,)

    @property
    def models(self) -> tuple[str, ...]:
        """The other model."""
        return (self.other,)
