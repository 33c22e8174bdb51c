"""Slow drift of one layer's flagged features, hour by hour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import (
    Detector,
    DriftChange,
    DriftMemory,
    DriftPolicy,
    Places,
    Reference,
    drift_step,
)
from sidecar.monitor.views import Flag
from sidecar.stats import Distribution, SparseDistribution, WindowCounts

_POLICY = DriftPolicy()


@dataclass(slots=True)
class WatchedDrift:
    """How far ``n`` watched features are from their baselines, and what of them is compared.

    Attributes:
        memory: What is remembered between windows; it lies in the bins of the baseline.
        reference: The frozen baselines; None without them, or for sparse layers.
    """

    memory: DriftMemory
    reference: Reference | None = None

    @classmethod
    def empty(cls) -> Self:
        """Return that of no feature."""
        return cls(DriftMemory.initial(0))

    def rewatch(self, keep: NDArray[np.int64]) -> None:
        """Become that of another set of features, see ``DriftMemory.resized``."""
        self.memory = self.memory.resized(keep)
        self.reference = None

    def forget_baseline(self) -> None:
        """Compare with nothing until the baseline is there."""
        self.reference = None

    def lose_baseline(self) -> None:
        """Forget everything: counts in the bins of one baseline mean nothing in another's."""
        self.memory, self.reference = DriftMemory.initial(len(self.memory)), None

    def use_baseline(self, watched: Distribution | SparseDistribution) -> None:
        """Divide the frozen baselines of the features into bins."""
        if isinstance(watched, Distribution):  # latents have octaves, too coarse to show a drift
            self.reference = Reference.of(_places(watched), np.sqrt(watched.variance))

    def observe(
        self, counts: WindowCounts, flags: Sequence[Flag], now: float
    ) -> tuple[DriftChange, ...]:
        """Take in one closed window of the features and return what began or ended."""
        if counts.watched is None or self.reference is None:
            return ()
        asked = np.array([Detector.DRIFT in flag.detectors for flag in flags], np.bool_)
        found = self.reference.occupancy(_places(counts.watched)) * asked[:, None]
        self.memory, changes = drift_step(self.memory, found, self.reference, _POLICY, now)
        return changes

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Return both distances, that from yesterday, and whether it drifts, shape ``(n,)`` each."""
        memory = self.memory
        return memory.js, memory.wasserstein, memory.js_yesterday, memory.drifting

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as JSON-able values; the reference is that of the baseline."""
        return self.memory.to_dict()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the memory back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns.
        """
        self.memory, self.reference = DriftMemory.from_dict(saved), None


def _places(found: Distribution) -> Places:
    held = found.occupied()
    return Places(held.features, held.low, held.high, held.counts)
