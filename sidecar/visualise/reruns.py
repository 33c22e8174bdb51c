"""The same request again, shorter and with other seeds: does the unit give the same picture twice?

What is made depends on the target and the recipe alone, never on the target's company, so that a
picture gets the same report whatever else its job makes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import NonFiniteActivation, SilentFeature
from sidecar.features import FeatureKey
from sidecar.recipes import Maximisation, Recipe, Target
from sidecar.visualise.directions import vectors_of
from sidecar.visualise.generic import generic_pictures
from sidecar.visualise.looking import Look
from sidecar.visualise.measures import Yardstick
from sidecar.visualise.method import AnyMethod, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.units import Site

RIVALS = 3
"""Other units of the layer whose pictures a unit's are compared with."""

_FEWEST_STEPS = 12
"""Below this the pictures of all units are still the same grey cloud."""

_MOST_STEPS = 32
"""Beyond this a picture's place among those of other units hardly moves."""

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reruns:
    """Further pictures for one target.

    Attributes:
        own: Pictures of the target, one a seed; fewer where another seed stirred nothing.
        rivals: Pictures of other units of its layer.
    """

    own: tuple[Image, ...]
    rivals: tuple[Image, ...]


def rerun_steps(recipe: Recipe, seeds: int, share: float) -> int:
    """Return how many optimiser steps each further picture gets; 0 where none are made.

    Only single ascents are made again: the pictures of a sheet are pushed apart or mixed on purpose, and
    a dream or a search has no steps that could be fewer.

    Args:
        recipe: Of the request.
        seeds: Further seeds.
        share: Of the request's steps that the further pictures of one target may take together; it
            is exceeded where they would get fewer than 12 each.
    """
    if not seeds or not isinstance(recipe, Maximisation) or recipe.tiles > 1:
        return 0
    fair = int(share * recipe.steps / (seeds + RIVALS))
    return min(max(fair, _FEWEST_STEPS), _MOST_STEPS, recipe.steps)


class Rerunner:
    """Makes the further pictures of one layer's targets."""

    def __init__(
        self,
        method: AnyMethod,
        model: ImageModel,
        recipe: Recipe,
        materials: Materials,
        cancelled: Callable[[], bool],
    ) -> None:
        """Take what the request was made with; the recipe is the shortened one."""
        self._method = method
        self._model = model
        self._recipe = recipe
        self._materials = materials
        self._cancelled = cancelled

    def __call__(self, targets: Sequence[Target], seeds: int, site: Site) -> list[Reruns]:
        """Make ``seeds`` further pictures of every target, and of units beside them.

        Raises:
            JobCancelled: ``cancelled`` said so.
        """
        rounds = [self._make(targets, seed) for seed in range(1, seeds + 1)]
        rivals = self._rivals(targets, site)
        beside = dict(zip(rivals, self._make(rivals, 1), strict=True)) if rivals else {}
        found = []
        for number, target in enumerate(targets):
            others = [one for one in rivals if one.feature != target.feature][:RIVALS]
            found.append(
                Reruns(
                    _present([images[number] for images in rounds]),
                    _present([beside[one] for one in others]),
                )
            )
        return found

    def _make(self, targets: Sequence[Target], seed: int) -> list[Image | None]:
        recipe = replace(self._recipe, seed=(self._recipe.seed + seed) % (1 << 62))
        try:
            made = self._method.run(
                self._model, targets, recipe, self._materials, cancelled=self._cancelled
            )
        except (SilentFeature, NonFiniteActivation):
            if len(targets) == 1:
                return [None]
            # One silent unit stops a whole batch: the others are tried without it.
            return [self._make([target], seed)[0] for target in targets]
        return [picture.image for picture in made]

    def _rivals(self, targets: Sequence[Target], site: Site) -> list[Target]:
        """The units that generic pictures move most, for none of them is dead."""
        vectors = vectors_of(targets[0].feature.layer, site, self._materials)
        look = Look(self._model, targets[0], site, vectors)
        seen = look(generic_pictures(self._model.input_size))
        lively = np.argsort(-Yardstick.of(seen.units).spread, kind="stable")[: RIVALS + 1]
        layer, position = targets[0].feature.layer, targets[0].position
        pool = [Target(FeatureKey(layer, int(index)), position) for index in lively]
        one = targets[0].feature
        return [r for r in pool if r.feature != one][:RIVALS] if len(targets) == 1 else pool


def _present(images: Sequence[Image | None]) -> tuple[Image, ...]:
    return tuple(image for image in images if image is not None)
