"""The certain conditions of one layer's flagged features: never seen, not finite, silent, saturated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import (
    Condition,
    ConditionChange,
    ConditionMemory,
    Detector,
    Extremes,
    conditions,
)
from sidecar.monitor.views import Flag
from sidecar.stats import Distribution, SparseDistribution, WindowCounts

LEAST_ROWS = 5_000
"""Rows of a baseline from which its extremes say what is unusual: the next row is beyond those of n rows
with a chance of one in n, and far beyond them where tails are heavy."""

_FACTS = 4  # rows of ``facts``


@dataclass(slots=True)
class WatchedConditions:
    """What is certain of ``n`` watched features, and what of their baselines it is compared with.

    Attributes:
        memory: What is remembered between windows.
        facts: Of the frozen baselines the least value, the greatest, the share of values that are not
            zero, and of those that are surely not the commonest; shape ``(4, n)``, NaN without one.
        least: Least value of the newest window that had samples, of the features with a low threshold,
            shape ``(n,)``; NaN of others, and before there was one.
    """

    memory: ConditionMemory
    facts: NDArray[np.float64]
    least: NDArray[np.float64]

    @classmethod
    def empty(cls) -> Self:
        """Return those of no feature."""
        return cls(ConditionMemory.initial(0), np.empty((_FACTS, 0)), np.empty(0))

    def rewatch(self, keep: NDArray[np.int64]) -> None:
        """Become those of another set of features, see ``ConditionMemory.resized``."""
        self.memory = self.memory.resized(keep)
        self.least = np.append(self.least, np.nan)[keep]
        self.forget_baseline()

    def forget_baseline(self) -> None:
        """Drop the facts: until there is a new baseline only what is not finite can be told."""
        self.facts = np.full((_FACTS, len(self.memory)), np.nan)

    def lose_baseline(self) -> None:
        """Forget what was told against the old one: a record is news again."""
        self.least = np.full(len(self.memory), np.nan)
        self.memory = self.memory.without_baseline()
        self.forget_baseline()

    def use_baseline(self, watched: Distribution | SparseDistribution) -> None:
        """Take the facts of a frozen baseline of the features."""
        count = np.where(watched.count > 0, watched.count, np.nan)
        range_known = watched.sampled >= LEAST_ROWS
        commonest = watched.counts.max(axis=1).astype(np.float64)
        self.facts = np.stack(
            [
                np.where(range_known, watched.minimum, np.nan),
                np.where(range_known, watched.maximum, np.nan),
                1.0 - watched.zeros / count,
                1.0 - commonest / count,  # of a bin, so of any value in it
            ]
        )

    def observe(
        self, counts: WindowCounts, flags: Sequence[Flag], now: float
    ) -> tuple[ConditionChange, ...]:
        """Take in one closed window of the features and return what began or ended."""
        self.least = np.where(np.isfinite(counts.minimum), counts.minimum, self.least)
        window = counts.watched
        if window is None:  # a warm-up, a sparse layer, or nothing watched
            return ()
        asked = np.array([Detector.CONDITIONS in flag.detectors for flag in flags], np.bool_)
        least, most, nonzero, varying = self.facts
        seen = Extremes(
            requests=np.where(asked, counts.requests, 0),
            rows=np.full(len(flags), window.rows, np.int64),
            zeros=window.zeros,
            nonfinite=window.nans + window.infinities,
            minimum=window.minimum.astype(np.float64),
            maximum=window.maximum.astype(np.float64),
            baseline_minimum=least,
            baseline_maximum=most,
            baseline_nonzero_ratio=nonzero,
            baseline_varying_ratio=varying,
        )
        self.memory, changes = conditions(self.memory, seen, now)
        return changes

    def holding(self) -> list[tuple[Condition, ...]]:
        """Return the conditions that hold for each feature."""
        return self.memory.holding()

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as JSON-able values; facts are those of the baseline."""
        return self.memory.to_dict()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the memory back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns.
        """
        self.memory = ConditionMemory.from_dict(saved)
        self.least = np.full(len(self.memory), np.nan)
        self.forget_baseline()
