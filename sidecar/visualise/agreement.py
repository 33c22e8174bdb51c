"""How far the units of two layers agree on the same images, and what to call that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UnsupportedTarget

LEAST_IMAGES = 32
"""Below it, the best of a thousand unrelated units correlates at .6 by chance."""

SAME = 0.9
"""Least correlation of a unit that is the same. Static INT8 quantisation of EfficientNet-Lite0 leaves
the median unit of every block above it, see ``docs/comparing.md``."""

RELATED = 0.5
"""Least correlation of a unit that has anything to do with another: a quarter of its variance."""

CHANCE = 1e-3
"""Probability that the best of all unrelated units passes for related."""

_SHIFT_LIMIT = 0.5
"""Change of the median, in the first model's standard deviations, above which values have moved."""

_SCALE_LIMIT = 1.5
"""Ratio of the standard deviations above which values have moved."""


_LISTED = 64
"""Units of each fate that a summary names."""


class Fate(StrEnum):
    """What became of a unit."""

    SAME = "same"
    MOVED = "moved"
    LOST = "lost"
    NEW = "new"


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Two layers of ``n`` and ``m`` units on the same images.

    Attributes:
        own: Correlation of each unit with the other layer's unit of the same index, shape ``(n,)``;
            NaN where there is none or one of the two is constant.
        best: The other layer's most correlated unit, shape ``(n,)``.
        best_value: Its correlation, shape ``(n,)``; NaN where the unit, or all of theirs, are constant.
        shift: Change of the median from a unit to its partner, in the unit's standard deviations.
        scale: Standard deviation of the partner over the unit's own.
        constant: Whether a unit has one value on all images, shape ``(n,)``.
        limit: Correlation above which units are related.
        claimed: Greatest correlation of each of the other layer's units with any, shape ``(m,)``.
    """

    own: NDArray[np.float64]
    best: NDArray[np.int64]
    best_value: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: NDArray[np.float64]
    constant: NDArray[np.bool_]
    limit: float
    claimed: NDArray[np.float64]

    @property
    def partner(self) -> NDArray[np.int64]:
        """Whom each unit is compared with: the same index where that is related, else the best."""
        n = np.arange(len(self.own))
        return np.where(self.own >= self.limit, n, self.best)

    def fates(self) -> list[Fate]:
        """Return what became of each unit of the first layer."""
        return [self.fate(unit)[0] for unit in range(len(self.own))]

    def new(self) -> NDArray[np.int64]:
        """Return the other layer's units that are related to none of the first."""
        return np.flatnonzero(~(self.claimed >= self.limit))

    def fate(self, unit: int) -> tuple[Fate, str]:
        """Return what became of a unit of the first layer, and why, with the numbers."""
        own, best = float(self.own[unit]), float(self.best_value[unit])
        if self.constant[unit]:
            return self._constant(unit)
        if math.isnan(best):
            return Fate.LOST, "every unit there is constant on these images"
        if not (own >= self.limit or best >= self.limit):
            return Fate.LOST, (
                f"no unit there correlates above {self.limit:.2f}: its own index {_shown(own)}, the best, "
                f"{self.best[unit]}, {best:.2f}"
            )
        if own >= self.limit:
            return self._at_home(unit, own)
        return Fate.MOVED, (
            f"unit {self.best[unit]} there does it now, correlation {best:.2f}; its own index has "
            f"{_shown(own)}"
        )

    def _at_home(self, unit: int, own: float) -> tuple[Fate, str]:
        shift, scale = float(self.shift[unit]), float(self.scale[unit])
        if own < SAME:
            return Fate.MOVED, (
                f"the same unit answers to partly other images: correlation {own:.2f}, below {SAME}"
            )
        if abs(shift) > _SHIFT_LIMIT or not 1 / _SCALE_LIMIT <= scale <= _SCALE_LIMIT:
            return Fate.MOVED, (
                f"the same images drive it, correlation {own:.2f}, at other values: median moved by "
                f"{shift:.2f} standard deviations, spread times {scale:.2f}"
            )
        return Fate.SAME, f"correlation {own:.2f} with the unit of the same index"

    def _constant(self, unit: int) -> tuple[Fate, str]:
        if self.scale[unit] > 0:
            return Fate.MOVED, "it is constant on these images here, and not there"
        return Fate.SAME, "it is constant on these images in both"


def _shown(correlation: float) -> str:
    return "none" if math.isnan(correlation) else f"{correlation:.2f}"


def agreement(first: NDArray[np.float64], second: NDArray[np.float64]) -> Agreement:
    """Compare two layers unit by unit.

    Args:
        first: Values of ``n`` units on the images, shape ``(images, n)``.
        second: Values of ``m`` units on the same images, shape ``(images, m)``.

    Raises:
        UnsupportedTarget: There are fewer than ``LEAST_IMAGES`` images.

    Complexity:
        One product of matrices, ``n * m * images``.

    Source:
        Li et al. 2015, "Convergent learning: do different neural networks learn the same
        representations?", on matching by correlation.
    """
    images, n = first.shape
    if images < LEAST_IMAGES:
        raise UnsupportedTarget(
            f"{images} images are too few to compare units on: use at least {LEAST_IMAGES}"
        )
    matrix = correlations(first, second)
    known = np.where(np.isnan(matrix), -np.inf, matrix)
    best = known.argmax(1)
    best_value = np.where(np.isnan(matrix).all(1), np.nan, known.max(1))
    own = np.full(n, np.nan)
    shared = min(n, second.shape[1])
    own[:shared] = matrix[np.arange(shared), np.arange(shared)]
    limit = max(RELATED, chance_limit(images, second.shape[1]))
    partner = np.where(own >= limit, np.arange(n), best)
    # Where everything is constant there is no partner but the same index.
    partner = np.where(np.isnan(best_value), np.minimum(np.arange(n), second.shape[1] - 1), partner)
    spread, other = first.std(0), second.std(0)[partner]
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = (np.median(second, 0)[partner] - np.median(first, 0)) / spread
        scale = np.where(spread > 0, other / spread, np.where(other > 0, np.inf, np.nan))
    scale = np.where(np.isinf(scale), np.finfo(np.float64).max, scale)
    constant = spread <= _rounding(first)
    return Agreement(own, best, best_value, shift, scale, constant, limit, known.max(0))


def correlations(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's correlation of every unit with every other, shape ``(n, m)``.

    Rows and columns of constant units are NaN.
    """
    sides = []
    for values in (first, second):
        centred = values - values.mean(0)
        length = np.sqrt((centred**2).sum(0))
        floor = _rounding(values) * math.sqrt(len(values))
        with np.errstate(divide="ignore", invalid="ignore"):
            sides.append(np.where(length > floor, centred / length, np.nan))
    with np.errstate(invalid="ignore"):
        product: NDArray[np.float64] = sides[0].T @ sides[1]
    return product.clip(-1.0, 1.0)


def _rounding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spread that rounding to float32 leaves a constant, shape ``(n,)``."""
    found: NDArray[np.float64] = np.abs(values).max(0, initial=0.0) * 1e-7
    return found


def chance_limit(images: int, units: int) -> float:
    """Return the correlation that the best of so many unrelated units passes once in a thousand.

    By Fisher's transformation, for normal values.
    """
    quantile = NormalDist().inv_cdf(1.0 - CHANCE / max(units, 1))
    return math.tanh(quantile / math.sqrt(images - 3))


def similarity(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return linear CKA of two layers on the same images: 1 where one is a rotation of the other.

    Source:
        Kornblith et al. 2019, "Similarity of neural network representations revisited".
    """
    a, b = first - first.mean(0), second - second.mean(0)
    cross = float(((a.T @ b) ** 2).sum())
    own = math.sqrt(float(((a.T @ a) ** 2).sum()) * float(((b.T @ b) ** 2).sum()))
    return cross / own if own else 0.0


def summary(found: Agreement) -> dict[str, object]:
    """Return a layer in numbers: how many units have each fate, and which changed first."""
    fates = found.fates()
    counts = {fate.value: fates.count(fate) for fate in (Fate.SAME, Fate.MOVED, Fate.LOST)}
    new = found.new()
    listed = {
        fate.value: [unit for unit, one in enumerate(fates) if one is fate][:_LISTED]
        for fate in (Fate.MOVED, Fate.LOST)
    }
    return {
        "units": len(fates),
        "counts": counts | {Fate.NEW.value: len(new)},
        "listed": listed | {Fate.NEW.value: new[:_LISTED].tolist()},
        "median_correlation": _median(found.own),
        "median_best_correlation": _median(found.best_value),
        "limit": found.limit,
    }


def _median(values: NDArray[np.float64] | Sequence[float]) -> float | None:
    known = np.asarray(values)[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None
