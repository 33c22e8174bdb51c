"""Slow drift of one layer's flagged features, hour by hour."""

import zlib
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
from sidecar.errors import CorruptState
from sidecar.monitor.views import Flag
from sidecar.stats import Distribution, SparseDistribution, WindowCounts

_POLICY = DriftPolicy()


@dataclass(slots=True)
class WatchedDrift:
    """How far ``n`` watched features are from their baselines, and what of them is compared.

    Attributes:
        memory: What is remembered between windows; it lies in the bins of the baseline.
        marks: Of the bins that each feature's memory lies in, shape ``(n,)``; 0: in none yet.
        reference: The frozen baselines; None without them, or for sparse layers.
    """

    memory: DriftMemory
    marks: NDArray[np.int64]
    reference: Reference | None = None

    @classmethod
    def empty(cls) -> Self:
        """Return that of no feature."""
        return cls(DriftMemory.initial(0), np.zeros(0, np.int64))

    def rewatch(self, keep: NDArray[np.int64]) -> None:
        """Become that of another set of features, see ``DriftMemory.resized``."""
        self.memory = self.memory.resized(keep)
        self.marks = np.append(self.marks, 0)[keep]
        self.reference = None

    def forget_baseline(self) -> None:
        """Compare with nothing until the baseline is there."""
        self.reference = None

    def lose_baseline(self) -> None:
        """Forget everything."""
        self.rewatch(np.full(len(self.memory), -1))

    def use_baseline(self, watched: Distribution | SparseDistribution) -> None:
        """Divide the frozen baselines of the features into bins.

        Counts in the bins of another baseline mean nothing in these: such features start anew.
        """
        if not isinstance(watched, Distribution):  # octaves are too coarse to show a drift
            return
        reference = Reference.of(_places(watched), np.sqrt(watched.variance))
        marks = np.array([zlib.crc32(row.tobytes()) for row in reference.edges], np.int64)
        places = np.arange(len(marks))
        self.rewatch(np.where(marks == self.marks, places, -1))
        self.marks, self.reference = marks, reference

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
        return {"memory": self.memory.to_dict(), "marks": self.marks.tolist()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the memory back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError, TypeError and
                ValueError say.
        """
        self.memory, self.reference = DriftMemory.from_dict(saved["memory"]), None
        self.marks = np.array(saved["marks"], np.int64)
        if self.marks.shape != (len(self.memory),):
            raise CorruptState(f"drift of {len(self.memory)} features in {len(self.marks)} bins")


def _places(found: Distribution) -> Places:
    held = found.occupied()
    return Places(held.features, held.low, held.high, held.counts)
