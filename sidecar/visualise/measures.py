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


def path_agreement(
    picture: Sequence[Floats], natural: Sequence[Floats], responses: Floats, top: int
) -> Floats:
    """How far the picture takes the same way through the network as natural examples do.

    The way of a unit at a waypoint is the difference between its natural examples, the photographs that
    excite it most, and all other photographs, in units of their spread. It is asked how far along it the
    picture lies. Unlike a correlation this does not take a faint likeness for a likeness.

    Args:
        picture: Features of one picture at each waypoint, shapes ``(1, channels)``.
        natural: The same of photographs, shapes ``(photographs, channels)``.
        responses: How strongly each photograph shows what was asked for, shape ``(photographs,)``.
        top: How many of them are its natural examples.

    Returns:
        Two rows, shape ``(2, waypoints)``: how far along the way the picture is, 0 as other photographs
        are and 1 as the examples are; and how often an example is more like another example than like
        another photograph, for only where that is near 1 do they have a way.

    Source:
        After Geirhos, Zimmermann, Bilodeau, Brendel and Kim 2023, "Don't trust your eyes: on the
        (un)reliability of feature visualizations", section 3, where correlations are averaged.
    """
    order = np.argsort(responses)[::-1]
    best, rest = order[:top], order[top:]
    found = []
    for own, photographs in zip(picture, natural, strict=True):
        yardstick = Yardstick.of(photographs)
        scaled = yardstick(photographs)
        usual = scaled[rest].mean(0)
        way = scaled[best].mean(0) - usual
        length = max(float(way @ way), float(np.finfo(np.float64).tiny))
        together = [_leaning(scaled[n], scaled[best[best != n]], scaled[rest]) for n in best]
        along = float((yardstick(own[0]) - usual) @ way) / length
        found.append((along, float(np.mean(together))))
    return np.array(found).reshape(-1, 2).T


def _leaning(one: Floats, best: Floats, rest: Floats) -> float:
    near, far = (np.array([similarity(one, other) for other in group]) for group in (best, rest))
    return preference(near, far)


def softmax(logits: Floats) -> Floats:
    """Return probabilities of the last axis."""
    grown: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    chances: Floats = grown / grown.sum(-1, keepdims=True)
    return chances


def mean_of_best(values: Sequence[float], count: int) -> float:
    """Return the mean of the greatest ``count`` values."""
    return float(np.mean(sorted(values)[-count:]))
