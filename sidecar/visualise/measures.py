"""The measures of how far a picture can be believed, each a number that a person can check.

Arrays in, numbers out: nothing here runs a network. "Generic" are pictures that were made for no
unit, see ``generic.py``; what units do on those is the yardstick of everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FLOOR_RATIO = 1e-6
"""Of the layer's typical spread: a unit that generic pictures do not move is not measured in units of
nothing."""

_OWN_WAY = 0.25
"""Mean cosine from which on the photographs of a unit are taken to have a way in common."""

_FEWEST_WAYS = 2
"""Photographs, to be compared with each other."""

_USED = 4.0
"""Times as much or as little as on photographs, beyond which a waypoint is another way: 42 sound units were
between 0.7 and 2.1."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the units of a layer do on generic pictures.

    Attributes:
        middle: Median, shape ``(width,)``.
        spread: Standard deviation, never below a millionth of the layer's median one.
    """

    middle: Floats
    spread: Floats

    @classmethod
    def of(cls, values: Floats) -> "Yardstick":
        """Take it from values of shape ``(pictures, width)``."""
        spread = values.std(0)  # (width,)
        floor = max(float(np.median(spread)) * _FLOOR_RATIO, float(np.finfo(np.float32).tiny))
        return cls(np.median(values, 0), np.maximum(spread, floor))

    def __call__(self, values: Floats) -> Floats:
        """Return values in standard deviations from the median, the same shape."""
        return (values - self.middle) / self.spread


def rise(own: float, generic: Floats) -> float:
    """How far above the best generic picture the unit is, in standard deviations of those.

    Args:
        own: The target on its own picture.
        generic: The target on generic pictures, shape ``(pictures,)``.
    """
    spread = float(Yardstick.of(generic[:, None]).spread[0])
    return (own - float(generic.max())) / spread


def stirred(moved: float, generic: Floats) -> float:
    """How far the optimiser moved the unit from the random start, in generic standard deviations."""
    return moved / float(Yardstick.of(generic[:, None]).spread[0])


def kept(after: float, own: float, generic: Floats) -> float:
    """How much of the rise above generic pictures is left after a change of the picture.

    Returns:
        A ratio: 1 if nothing is lost, 0 if the changed picture is no better than a generic one.
    """
    middle = float(np.median(generic))
    return (after - middle) / (own - middle) if own != middle else 0.0


def selectivity(own: float, mine: Floats, units: Floats, generic: Floats, index: int) -> float:
    """Which place the target has among the units of its layer, on its own picture.

    Every unit is measured in the standard deviations that it has on generic pictures.

    Args:
        own: The target on its own picture.
        mine: The target on generic pictures, shape ``(pictures,)``.
        units: Every unit on the target's picture, shape ``(width,)``.
        generic: Every unit on generic pictures, shape ``(pictures, width)``.
        index: The target's unit, which is not compared with itself.

    Returns:
        The share of the layer's other units that the picture excites more: 0 is the first place.
    """
    place = Yardstick.of(mine[:, None])(np.array([own]))[0]
    others = np.delete(Yardstick.of(generic)(units), index)
    return float((others > place).mean()) if others.size else 0.0


def similarity(one: Floats, other: Floats) -> float:
    """Return the cosine of two feature vectors of shape ``(channels,)``; 0 if one is nothing."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0


def agreement(mine: Floats, others: Floats, generic: Floats) -> float:
    """How much more alike a unit's pictures from several seeds are than pictures of different units.

    Features are measured in their generic spread and seen from halfway between the unit's pictures and
    the others, so that what every synthetic picture has in common counts on neither side.

    Args:
        mine: Features of the unit's pictures, a row a seed, shape ``(seeds, channels)``.
        others: Features of pictures of other units, shape ``(pictures, channels)``.
        generic: Features of generic pictures, same channels.

    Returns:
        The mean cosine of the unit's pictures with each other, less their mean cosine with the others:
        0 if the unit's pictures are no more alike than those of any units, at most 2.
    """
    spread = Yardstick.of(generic).spread
    mine, others = mine / spread, others / spread
    middle = (mine.mean(0) + others.mean(0)) / 2
    mine, others = mine - middle, others - middle
    same = [similarity(a, b) for n, a in enumerate(mine) for b in mine[:n]]
    crossed = [similarity(a, b) for a in mine for b in others]
    return float(np.mean(same) - np.mean(crossed))


def preference(mine: Floats, others: Floats) -> float:
    """How often one of the unit's own pictures excites it more than a picture of another unit.

    Args:
        mine: The target on its own pictures, shape ``(seeds,)``.
        others: The target on pictures of other units, shape ``(pictures,)``.

    Returns:
        A share of all pairs: 0.5 if the unit does not tell them apart.
    """
    return float((mine[:, None] > others).mean())


def path_agreement(picture: Sequence[Floats], natural: Sequence[Floats]) -> float | None:
    """How far a picture reaches the unit by the way through the network that photographs take.

    A way is, at each waypoint, what every channel there counts for the unit: its gradient. For a picture
    and a photograph that take the same one the cosine is near that of two photographs, which is what it
    is held against. A channel that counts much less on one than on the other, or much more, is another
    way too, whatever the angle.

    Args:
        picture: Of one picture at each waypoint, shapes ``(1, channels)``.
        natural: Of the photographs that excite the unit most, shapes ``(photographs, channels)``.

    Returns:
        The sum of the cosines with the photographs over that of the photographs with each other: 1 if the
        picture is as like a photograph as another photograph is, 0 if it has nothing in common with them.
        Only waypoints count at which the photographs have a way in common; None: there is none.

    Source:
        After Geirhos, Zimmermann, Bilodeau, Brendel and Kim 2023, "Don't trust your eyes: on the
        (un)reliability of feature visualizations", section 3, where activations are correlated.
    """
    along, usual = 0.0, 0.0
    for own, photographs in zip(picture, natural, strict=True):
        lengths = np.linalg.norm(photographs, axis=1)
        middle = float(np.median(lengths))
        if len(photographs) < _FEWEST_WAYS or middle == 0:
            continue
        pairs = [similarity(a, b) for n, a in enumerate(photographs) for b in photographs[:n]]
        if np.mean(pairs) < _OWN_WAY:
            continue
        used = float(np.linalg.norm(own[0])) / middle
        part = min(1.0, _USED * used, _USED / used) if used else 0.0
        along += part * float(np.mean([similarity(own[0], one) for one in photographs]))
        usual += float(np.mean(pairs))
    return along / usual if usual else None


def softmax(logits: Floats) -> Floats:
    """Return probabilities of the last axis."""
    grown: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    chances: Floats = grown / grown.sum(-1, keepdims=True)
    return chances


def mean_of_best(values: Sequence[float], count: int) -> float:
    """Return the mean of the greatest ``count`` values."""
    return float(np.mean(sorted(values)[-count:]))
