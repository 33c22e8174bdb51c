"""The kernels in numpy: what serves until the compiled ones are ready, and their reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.features import Values
from sidecar.stats.batch import decoded
from sidecar.stats.binning import Grid
from sidecar.stats.moments import add_wide, scaling, summed
from sidecar.stats.tally import Tally

_BLOCK_ROWS = 256
"""Rows taken at a time. Tiles that are tall and narrow are slow: a stride of whole rows defeats the
cache, measured 4.4 ns a value at 256 rows and 512 columns against 13.8 at 1,024 and 16."""

_TILE_VALUES = 1 << 17
"""Values of one tile: temporaries stay at about 6 MB, within reach of a core's cache."""

_SCREEN_VALUES = 1 << 20
"""Values that are compared with thresholds at a time."""

_LEAST_COLUMNS = 256
"""Features of those at least: narrower strips of a tall batch defeat the cache."""


def count(tally: Tally, values: Values, copies: NDArray[np.int64], grid: Grid) -> None:
    """See ``Kernels.count``.

    Complexity:
        One pass; temporaries of ``_TILE_VALUES`` values, whatever the batch.
    """
    for rows, columns in _tiles(*values.shape):
        tile = _Tile.of(values[rows, columns], copies[rows], grid.part(columns))
        tile.add_moments(tally, columns)
        tile.add_bins(tally, columns)


def moments(tally: Tally, values: Values, copies: NDArray[np.int64], grid: Grid) -> None:
    """See ``Kernels.moments``."""
    for rows, columns in _tiles(*values.shape):
        _Tile.of(values[rows, columns], copies[rows], grid.part(columns)).add_moments(
            tally, columns
        )


def exceed(
    values: Values,
    starts: NDArray[np.int64],
    indices: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    exceedances: NDArray[np.int64],
    maximum: NDArray[np.float32],
) -> None:
    """See ``Kernels.exceed``."""
    seen = decoded(values.take(indices, axis=1))  # (rows, n)
    largest = np.fmax.reduceat(seen, starts, axis=0)  # (requests, n); NaN where there is only NaN
    exceedances += (largest[:, :, None] > thresholds).sum(axis=0)  # (n, k)
    finite = np.where(np.isfinite(seen), seen, np.float32(np.nan))
    np.fmax(maximum, np.fmax.reduce(finite, axis=0), out=maximum)


def screen(
    values: Values,
    starts: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    exceedances: NDArray[np.int64],
) -> None:
    """See ``Kernels.screen``.

    Complexity:
        One pass; temporaries of 5 bytes for each of ``_SCREEN_VALUES`` values, or of 256 features of
        a batch of more rows.
    """
    rows, width = values.shape
    lengths = np.diff(starts, append=rows)
    order = np.argsort(-lengths, kind="stable")  # the longest requests first
    first, lengths = starts[order], lengths[order]
    # How many requests have an i-th row: ``reduceat`` would take six times as long.
    having = np.searchsorted(-lengths, -np.arange(1, lengths[0]))
    step = max(_LEAST_COLUMNS, _SCREEN_VALUES // rows)
    for left in range(0, width, step):
        columns = slice(left, left + step)
        above = decoded(values[:, columns]) > thresholds[columns]
        passed = above[first]  # (requests, columns)
        for i, requests in enumerate(having.tolist(), start=1):
            passed[:requests] |= above[first[:requests] + i]
        exceedances[columns] += np.count_nonzero(passed, axis=0)


def _tiles(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, rows, _BLOCK_ROWS):
        height = min(_BLOCK_ROWS, rows - top)
        step = max(1, _TILE_VALUES // height)
        for left in range(0, width, step):
            yield slice(top, top + height), slice(left, min(left + step, width))


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Some rows of some features; ``finite`` says which values are, or is None where all are."""

    values: NDArray[np.float32]
    copies: NDArray[np.int64]
    grid: Grid
    finite: NDArray[np.bool_] | None

    @classmethod
    def of(cls, values: Values, copies: NDArray[np.int64], grid: Grid) -> "_Tile":
        tile = decoded(values)
        # A sum is finite only where all its terms are; infinities and signalling NaNs would warn.
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(tile.sum(axis=0)).all()
        finite = np.isfinite(tile) if suspect else None
        return cls(tile, copies, grid, None if finite is None or finite.all() else finite)

    def add_moments(self, tally: Tally, columns: slice) -> None:
        """Add sums, squares, extremes and the counters of what is not finite."""
        away = self.grid.away(self.values)
        least = most = self.values
        if self.finite is not None:
            away = np.where(self.finite, away, np.float32(0))
            least = np.where(self.finite, self.values, np.float32(np.inf))
            most = np.where(self.finite, self.values, np.float32(-np.inf))
            odd = self._total(np.isnan(self.values)), self._total(np.isinf(self.values))
            tally.add_nonfinite(*odd, columns)
        sums, high, low = summed(away, scaling(self.grid.exponent), self.copies)
        tally.sums[columns] += sums
        tally.squares_high[columns], tally.squares_low[columns] = add_wide(
            tally.squares_high[columns], tally.squares_low[columns], high, low
        )
        lowest, highest = tally.minimum[columns], tally.maximum[columns]  # views
        np.minimum(lowest, least.min(axis=0), out=lowest)
        np.maximum(highest, most.max(axis=0), out=highest)

    def add_bins(self, tally: Tally, columns: slice) -> None:
        """Add zeros, and finite values to their bins."""
        tally.zeros[columns] += self._total(self.values == 0).astype(tally.zeros.dtype)
        first = np.arange(len(self.grid.centre), dtype=np.int64) * self.grid.binning.bins
        bins = self.grid.index(self.values) + first  # places in a flattened (columns, bins)
        counters = tally.counts[columns].reshape(-1)  # a view: whole rows of a contiguous array
        chosen = np.broadcast_to(True, bins.shape) if self.finite is None else self.finite  # noqa: FBT003
        times: Any = counters.dtype.type(1)
        if len(self.copies):
            times = np.broadcast_to(self.copies[:, None], bins.shape)[chosen].astype(counters.dtype)
        # Faster than bincount at every height: it needs no array of all bins for each tile.
        np.add.at(counters, bins.reshape(-1) if self.finite is None else bins[chosen], times)

    def _total(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many rows of traffic are chosen in each column."""
        if not len(self.copies):
            return np.asarray(np.count_nonzero(chosen, axis=0), np.int64)
        return np.asarray(np.where(chosen, self.copies[:, None], 0).sum(axis=0), np.int64)
