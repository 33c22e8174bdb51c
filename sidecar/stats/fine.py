"""Finer bins of watched features, and their last windows."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Batch
from sidecar.stats.binning import Binning, Grid
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, put_counters, take_counters, typed
from sidecar.stats.kernels import Kernels
from sidecar.stats.tally import Tally


@dataclass(frozen=True, slots=True, eq=False)
class WatchedWindow:
    """One closed window of the features that were watched in it.

    Attributes:
        indices: Which features, shape ``(n,)``.
        distribution: Theirs, in the same order. Fewer rows than the window's if what is watched
            changed within it.
        closed: Unix seconds at which the window ended.
    """

    indices: NDArray[np.int64]
    distribution: Distribution
    closed: float


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    indices: NDArray[np.int64]
    grid: Grid
    tally: Tally
    closed: float


class Fine:
    """The watched features of one layer on finer bins: the open window, and a ring of closed ones.

    Args:
        grid: Where the layer's features lie; their centres are these features' too.
        binning: How finely.
        windows: Closed windows kept.
    """

    def __init__(self, grid: Grid, binning: Binning, windows: int) -> None:
        self._layer = Grid(binning, grid.centre, grid.exponent)
        self._closed: deque[_Window] = deque(maxlen=windows)
        self.watch(np.empty(0, np.int64))

    @property
    def indices(self) -> NDArray[np.int64]:
        """The features watched now."""
        return self._open.indices

    def watch(self, indices: NDArray[np.int64]) -> None:
        """Watch these features from now on; what the open window has seen of others is dropped."""
        grid = self._layer.select(indices)
        self._open = _Window(indices, grid, Tally.empty(len(indices), grid.binning.bins), 0.0)

    def absorb(self, batch: Batch, kernels: Kernels) -> None:
        """Count rows of the whole layer."""
        if len(self.indices):
            kernels.absorb(self._open.tally, batch.columns(self.indices), self._open.grid)

    def window(self) -> Distribution:
        """Return the open window, in the order of ``indices``, as an immutable copy."""
        return self._open.tally.distribution(self._open.grid)

    def close(self, now: float) -> None:
        """End the window and keep it, if anything is watched."""
        opened = self._open
        if len(opened.indices):
            self._closed.append(_Window(opened.indices, opened.grid, opened.tally, now))
            self.watch(opened.indices)

    def windows(self) -> tuple[WatchedWindow, ...]:
        """Return the closed windows, oldest first."""
        return tuple(
            WatchedWindow(one.indices, one.tally.distribution(one.grid), one.closed)
            for one in self._closed
        )

    def put(self, arrays: Arrays, prefix: str) -> list[dict[str, Any]]:
        """Add the arrays of all windows under ``prefix``, the open one last."""
        saved = []
        for number, one in enumerate((*self._closed, self._open)):
            arrays[f"{prefix}{number}.indices"] = one.indices
            span = put_counters(arrays, f"{prefix}{number}.", one.tally)
            saved.append({"closed": one.closed, "span": span})
        return saved

    def take(self, arrays: Arrays, prefix: str, saved: list[dict[str, Any]]) -> None:
        """Become what ``put`` saw; of more closed windows than are kept, the newest.

        Raises:
            ValueError: The arrays do not fit together; so may KeyError and TypeError.
        """
        width, bins = len(self._layer.centre), self._layer.binning.bins
        for number, entry in enumerate(saved):
            indices = typed(arrays[f"{prefix}{number}.indices"], np.int64)
            if indices.ndim != 1 or (
                len(indices) and not 0 <= indices.min() <= indices.max() < width
            ):
                raise ValueError(f"{prefix}{number}.indices {indices} of {width} features")
            at = f"{prefix}{number}."
            tally = take_counters(arrays, at, entry["span"], len(indices), bins)
            grid = self._layer.select(indices)
            self._open = _Window(indices, grid, tally, float(entry["closed"]))
            if number + 1 < len(saved):
                self._closed.append(self._open)
