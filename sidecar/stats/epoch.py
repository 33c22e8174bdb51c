"""Everything counted of a layer on one placement of its bins: windows, baseline, history."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Batch
from sidecar.stats.binning import Grid
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, put_counters, take_counters, typed
from sidecar.stats.kernels import Kernels
from sidecar.stats.tally import Tally, summed


class Period(StrEnum):
    """Which stretch of time a snapshot covers."""

    CURRENT = "current"
    """The open window and the last closed one."""

    BASELINE = "baseline"
    """What is, or would be if it froze now, the baseline."""

    HISTORY = "history"
    """The closed windows of the last one to two history lengths."""


_STORES = ("open", "last", "baseline", "present", "past")


class Epoch:
    """What was counted of one layer between two placements of its bins.

    Closed windows go to the baseline until it freezes, and always to the history, which is two
    generations: when the present one is as old as ``history_seconds`` it becomes the past one, and
    the past one is forgotten.
    """

    def __init__(self, grid: Grid, history_seconds: float) -> None:
        self.grid = grid
        self.frozen = False
        self.open = self._empty()
        self._last = self._empty()
        self.baseline = self._empty()
        self._present = self._empty()
        self._past = self._empty()
        self._present_since = math.nan
        self._history_seconds = history_seconds

    def absorb(self, batch: Batch, kernels: Kernels) -> None:
        """Count new rows in the open window."""
        kernels.absorb(self.open, batch, self.grid)

    def close(self, now: float) -> None:
        """End the open window and start an empty one."""
        self._turn_history(now)
        self._present.add(self.open)
        if not self.frozen:
            self.baseline.add(self.open)
        self._last, self.open = self.open, self._empty()

    def freeze(self) -> None:
        """End the baseline with what was counted up to now, the open window included."""
        if not self.frozen:
            self.baseline.add(self.open)
            self.frozen = True

    def snapshot(self, period: Period, features: NDArray[np.int64] | None = None) -> Distribution:
        """Return an immutable copy of what was counted over a period, of all or some features."""
        grid, stores = self.grid, self._counted(period)
        if features is not None:
            grid, stores = grid.select(features), tuple(one.select(features) for one in stores)
        found = stores[0] if len(stores) == 1 else summed(*stores)
        return found.distribution(grid)

    def window(self, features: NDArray[np.int64]) -> Distribution:
        """Return an immutable copy of what the open window has of some features."""
        return self.open.select(features).distribution(self.grid.select(features))

    def _counted(self, period: Period) -> tuple[Tally, ...]:
        if period is Period.CURRENT:
            return self._last, self.open
        if period is Period.HISTORY:
            return self._past, self._present
        return (self.baseline,) if self.frozen else (self.baseline, self.open)

    def learned(self) -> tuple[int, int]:
        """Return the baseline's sampled rows and requests, the open window's while it still learns."""
        stores = self._counted(Period.BASELINE)
        return sum(one.sampled for one in stores), sum(one.requests for one in stores)

    def _turn_history(self, now: float) -> None:
        since = self._present_since
        if math.isnan(since) or now < since:  # first window, or the clock was put back
            self._present_since = now
            return
        turns = math.floor((now - since) / self._history_seconds)
        if not turns:
            return
        # After a silence of two lengths or more even the present generation is too old.
        self._past = self._present if turns == 1 else self._empty()
        self._present = self._empty()
        self._present_since = since + turns * self._history_seconds

    def _empty(self) -> Tally:
        return Tally.empty(len(self.grid.centre), self.grid.binning.bins)

    def put(self, arrays: Arrays, prefix: str) -> dict[str, Any]:
        """Add all arrays under ``prefix``; return the plain values. Empty stores cost nothing."""
        arrays[prefix + "centre"] = self.grid.centre
        arrays[prefix + "exponent"] = self.grid.exponent
        stores = dict(zip(_STORES, self._stores(), strict=True))
        return {
            "frozen": self.frozen,
            "present_since": None if math.isnan(self._present_since) else self._present_since,
            "stores": {
                name: put_counters(arrays, f"{prefix}{name}.", tally)
                for name, tally in stores.items()
                if tally.rows
            },
        }

    @classmethod
    def take(
        cls, arrays: Arrays, prefix: str, saved: Mapping[str, Any], like: Grid, seconds: float
    ) -> "Epoch":
        """Return what ``put`` saw.

        Args:
            arrays: As filled by ``put``.
            prefix: As given to ``put``.
            saved: What ``put`` returned.
            like: Any grid of as many features and the same binning.
            seconds: Length of a history generation.

        Raises:
            ValueError: The arrays do not fit together; so may KeyError and TypeError.
        """
        centre = typed(arrays[prefix + "centre"], np.float32)
        exponent = typed(arrays[prefix + "exponent"], np.int32)
        if not centre.shape == exponent.shape == like.centre.shape:
            raise ValueError(f"{prefix}centre has shape {centre.shape}, need {like.centre.shape}")
        epoch = cls(Grid(like.binning, centre, exponent), seconds)
        width, bins = len(centre), like.binning.bins
        epoch.open, epoch._last, epoch.baseline, epoch._present, epoch._past = (
            take_counters(arrays, f"{prefix}{name}.", saved["stores"][name], width, bins)
            if name in saved["stores"]
            else epoch._empty()
            for name in _STORES
        )
        epoch.frozen = bool(saved["frozen"])
        since = saved["present_since"]
        epoch._present_since = math.nan if since is None else float(since)
        return epoch

    def _stores(self) -> tuple[Tally, ...]:
        return self.open, self._last, self.baseline, self._present, self._past
