"""Sheets: several pictures that belong to one target, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.recipes import Maximisation, Target


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        target: What it is of, whose own weights are those below.
        facet: The how-manyth of its target's facets; chooses its random numbers.
        weights: Of the target's unit and its terms, in their order.
    """

    target: Target
    facet: int
    weights: tuple[float, ...]


def tiles_of(target: Target, recipe: Maximisation) -> list[Tile]:
    """Return the pictures of a target's sheet: its facets, its stops between two units, or itself."""
    if recipe.stops == 1:
        return [Tile(target, facet, weights_of(target)) for facet in range(recipe.facets)]
    (term,) = target.terms
    ways = [stop / (recipe.stops - 1) for stop in range(recipe.stops)]
    return [Tile(target, 0, (1 - way, way * term.weight)) for way in ways]


def weights_of(target: Target) -> tuple[float, ...]:
    """Return how much a target's unit and each of its terms count."""
    return (1.0, *(term.weight for term in target.terms))


def lay_out(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put pictures of one size side by side, shape ``(height, n * width, 3)``."""
    return np.concatenate(pictures, axis=1)
