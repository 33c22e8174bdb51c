"""The single pictures that a result consists of: one, or those of a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.recipes import Side, Target, Term
from sidecar.visualise.pictures import Picture

_TURNED = {Side.POSITIVE: Side.NEGATIVE, Side.NEGATIVE: Side.POSITIVE}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One picture of a result, and what it alone was made for.

    Attributes:
        image: RGB, shape ``(side, side, 3)``.
        target: What it is of; between two units of a sheet of stops, both as far as they count there.
        moved: How far the result's own unit went up from the start; of another target's part it is
            no measure of that, and None.
    """

    image: NDArray[np.uint8]
    target: Target
    moved: float | None


def parts_of(picture: Picture) -> list[Part]:
    """Return the pictures of a sheet from left to right, or the one there is."""
    tiles = picture.findings.get("tiles")
    if not tiles:
        alone = picture.activation - picture.first_activation
        return [Part(picture.image, picture.target, alone)]
    asked = picture.target
    found = []
    for tile in tiles:
        left, top, side = tile["x"], tile["y"], tile["side"]
        image = picture.image[top : top + side, left : left + side]
        target = _aimed_at(asked, tile["weights"])
        own = target.feature == asked.feature and target.terms in ((), asked.terms)
        moved = tile["activation"] - tile["start"] if own else None
        found.append(Part(np.ascontiguousarray(image), target, moved))
    return found


def _aimed_at(target: Target, weights: Sequence[float]) -> Target:
    """Return what is excited most where a target's unit and terms count so much.

    Every measure is a ratio, so it does not matter how long the weights are together.
    """
    own, *others = weights
    if own == 0:  # the end of a sheet of stops, which has one term
        (term,) = target.terms
        side = target.side if others[0] > 0 else _TURNED[target.side]
        return Target(term.feature, target.position, side)
    terms = zip(target.terms, others, strict=True)
    kept = tuple(Term(term.feature, weight / own) for term, weight in terms if weight)
    return replace(target, terms=kept)
