"""Everything counted of a layer on one placement of its bins: windows, baseline, history."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Batch
from sidecar.stats.binning import Binning, Grid
from sidecar.stats.budget import Detail
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, put_counters, take_counters, take_grid
from sidecar.stats.kernels import Kernels
from sidecar.stats.tally import Tally, summed


class Period(StrEnum):
    """Which stretch of time a snapshot covers."""

    CURRENT = "current"
    """The open window and the last closed one; of a screened layer the newest of the two alone."""

    BASELINE = "baseline"
    """What is, or would be if it froze now, the baseline."""

    HISTORY = "history"
    """The closed windows of the last one to two history lengths; of a screened layer nothing."""


_LASTING = ("last", "present", "past")
"""Stores that only layers of full detail have, beside ``open`` and ``baseline``."""


class Epoch:
    """What was counted of one layer between two placements of its bins.

    Closed windows go to the baseline until it freezes, and at full detail to the history, which is two
    generations: when the present one is as old as ``history_seconds`` it becomes the past one, and
    the past one is forgotten. A screened layer keeps only its newest window, until the next has rows.
    """

    def __init__(self, grid: Grid, history_seconds: float, detail: Detail) -> None:
        self.grid = grid
        self.frozen = False
        self._open = self._empty()
        self._over = False  # whether what ``_open`` holds has been closed
        self._baseline = self._empty()
        kept = _LASTING if detail is Detail.FULL else ()
        self._kept = {name: self._empty() for name in kept}
        self._present_since = math.nan
        self._history_seconds = history_seconds

    @classmethod
    def adopting(
        cls, grid: Grid, baseline: Tally, *, history_seconds: float, detail: Detail
    ) -> "Epoch":
        """Return an epoch that has seen nothing, with a frozen baseline counted elsewhere."""
        epoch = cls(grid, history_seconds, detail)
        epoch._baseline, epoch.frozen = baseline, True
        return epoch

    @property
    def baseline(self) -> Tally:
        """The closed windows of the baseline, and all of it once it is frozen."""
        return self._baseline

    @property
    def open(self) -> Tally:
        """The open window."""
        return Tally.empty(0, self.grid.binning.bins) if self._over else self._open

    @property
    def nbytes(self) -> int:
        """Bytes of all stores."""
        return sum(tally.nbytes for tally in self._stores().values())

    def absorb(self, batch: Batch, kernels: Kernels) -> None:
        """Count new rows in the open window."""
        if self._over:
            self._open, self._over = self._empty(), False
        kernels.absorb(self._open, batch, self.grid)

    def close(self, now: float) -> None:
        """End the open window and start an empty one."""
        if not self.frozen and not self._over:
            self._baseline.add(self._open)
        if not self._kept:
            self._over = True
            return
        self._turn_history(now)
        self._kept["present"].add(self._open)
        self._kept["last"], self._open = self._open, self._empty()

    def freeze(self) -> None:
        """End the baseline with what was counted up to now, the open window included."""
        if not self.frozen:
            if not self._over:
                self._baseline.add(self._open)
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
            return (self._kept["last"], self._open) if self._kept else (self._open,)
        if period is Period.HISTORY:
            return (self._kept["past"], self._kept["present"]) if self._kept else (self._empty(),)
        learning = not self.frozen and not self._over
        return (self._baseline, self._open) if learning else (self._baseline,)

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
        self._kept["past"] = self._kept["present"] if turns == 1 else self._empty()
        self._kept["present"] = self._empty()
        self._present_since = since + turns * self._history_seconds

    def _empty(self) -> Tally:
        return Tally.empty(len(self.grid.centre), self.grid.binning.bins)

    def put(self, arrays: Arrays, prefix: str) -> dict[str, Any]:
        """Add all arrays under ``prefix``; return the plain values. Empty stores cost nothing."""
        arrays[prefix + "centre"] = self.grid.centre
        arrays[prefix + "exponent"] = self.grid.exponent
        stores = self._stores()
        return {
            "frozen": self.frozen,
            "over": self._over,
            "present_since": None if math.isnan(self._present_since) else self._present_since,
            "stores": {
                name: put_counters(arrays, f"{prefix}{name}.", tally)
                for name, tally in stores.items()
                if tally.rows
            },
        }

    @classmethod
    def take(
        cls,
        arrays: Arrays,
        prefix: str,
        saved: Mapping[str, Any],
        *,
        width: int,
        binning: Binning,
        history_seconds: float,
        detail: Detail,
    ) -> "Epoch":
        """Return what ``put`` saw.

        Args:
            arrays: As filled by ``put``.
            prefix: As given to ``put``.
            saved: What ``put`` returned.
            width: Features.
            binning: How finely they were counted.
            history_seconds: Length of a history generation.
            detail: How much is kept.

        Raises:
            ValueError: The arrays do not fit together; so may KeyError and TypeError.
        """
        epoch = cls(take_grid(arrays, prefix, binning, width), history_seconds, detail)
        found = {
            name: take_counters(arrays, f"{prefix}{name}.", span, width, binning.bins)
            for name, span in saved["stores"].items()
        }
        epoch._open = found.pop("open", epoch._open)
        epoch._baseline = found.pop("baseline", epoch._baseline)
        if unknown := set(found) - set(epoch._kept):
            raise ValueError(f"{prefix}: a {detail} layer has no {sorted(unknown)}")
        epoch._kept.update(found)
        epoch.frozen, epoch._over = bool(saved["frozen"]), bool(saved["over"])
        since = saved["present_since"]
        epoch._present_since = math.nan if since is None else float(since)
        return epoch

    def _stores(self) -> dict[str, Tally]:
        return {"open": self._open, "baseline": self._baseline, **self._kept}
