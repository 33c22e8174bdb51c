"""Counters that grow: the mutable side of a distribution, and the one pass over new values."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.binning import Grid
from sidecar.stats.distribution import Distribution, count_type

_T = TypeVar("_T", bound=np.generic)

_BLOCK_ROWS = 256
"""Rows taken at a time. Tiles that are tall and narrow are slow: a stride of whole rows defeats the
cache, measured 4.4 ns a value at 256 rows and 512 columns against 13.8 at 1,024 and 16."""

_TILE_VALUES = 1 << 17
"""Values of one tile: temporaries stay at about 3 MB, within reach of a core's cache."""

_COUNTERS: tuple[np.dtype[np.unsignedinteger[Any]], ...] = (
    np.dtype(np.uint16),
    np.dtype(np.uint32),
    np.dtype(np.uint64),
)
"""Narrow counters are fastest and smallest; they widen before a bin could overflow."""

_PER_FEATURE = (
    "sums",
    "squares",
    "minimum",
    "maximum",
    "zeros",
    "nans",
    "infinities",
    "counts",
)


@dataclass(slots=True, eq=False)
class Tally:
    """What was counted of many features on one grid, growing in place.

    Attributes are those of ``Distribution``; ``counts`` is the narrowest unsigned type that no
    number of ``rows`` rows can overflow.
    """

    rows: int
    requests: int
    started: float
    ended: float
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    zeros: NDArray[np.int64]
    nans: NDArray[np.int64]
    infinities: NDArray[np.int64]
    counts: NDArray[np.unsignedinteger[Any]]

    @classmethod
    def empty(cls, width: int, bins: int) -> "Tally":
        """Return counters of ``width`` features that have seen nothing."""
        return cls(
            rows=0,
            requests=0,
            started=0.0,
            ended=0.0,
            sums=np.zeros(width),
            squares=np.zeros(width),
            minimum=np.full(width, np.nan, np.float32),
            maximum=np.full(width, np.nan, np.float32),
            zeros=np.zeros(width, np.int64),
            nans=np.zeros(width, np.int64),
            infinities=np.zeros(width, np.int64),
            counts=np.zeros((width, bins), _COUNTERS[0]),
        )

    def select(self, features: NDArray[np.int64]) -> "Tally":
        """Return a copy of what was counted of some features, in the order of ``features``."""
        chosen = {name: getattr(self, name)[features] for name in _PER_FEATURE}
        return replace(self, **chosen)

    @property
    def nonfinite(self) -> int:
        """NaN and infinite values of all features together."""
        return int(self.nans.sum() + self.infinities.sum())

    def absorb(self, values: NDArray[np.float32], requests: int, grid: Grid, now: float) -> None:
        """Count new values.

        Args:
            values: Shape ``(rows, features)``, at least one row.
            requests: Requests the rows belong to.
            grid: The bins, the same at every call.
            now: Unix seconds.

        Complexity:
            One pass; temporaries of ``_TILE_VALUES`` values, whatever the batch.
        """
        self.reserve(self.rows + len(values))
        for rows, columns in _tiles(*values.shape):
            _absorb_tile(self, values[rows, columns], grid, columns)
        self.rows += len(values)
        self.requests += requests
        self._extend(now, now)

    def add(self, other: "Tally") -> None:
        """Count what another tally on the same grid has counted."""
        if not other.rows:
            return
        self.reserve(self.rows + other.rows)
        for name in ("sums", "squares", "zeros", "nans", "infinities", "rows", "requests"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.minimum = np.fmin(self.minimum, other.minimum)
        self.maximum = np.fmax(self.maximum, other.maximum)
        np.add(self.counts, other.counts, out=self.counts, casting="unsafe")
        self._extend(other.started, other.ended)

    def distribution(self, grid: Grid) -> Distribution:
        """Return an immutable copy."""
        return Distribution(
            binning=grid.binning,
            centre=grid.centre,
            exponent=grid.exponent,
            rows=self.rows,
            requests=self.requests,
            sums=_frozen(self.sums),
            squares=_frozen(self.squares),
            minimum=_frozen(self.minimum),
            maximum=_frozen(self.maximum),
            zeros=_frozen(self.zeros),
            nans=_frozen(self.nans),
            infinities=_frozen(self.infinities),
            counts=_frozen(self.counts.astype(count_type(self.rows))),
            started=self.started,
            ended=self.ended,
        )

    def reserve(self, rows: int) -> None:
        """Widen the counters where ``rows`` equal values could overflow one."""
        if rows > np.iinfo(self.counts.dtype).max:
            wide = next(kind for kind in _COUNTERS if rows <= np.iinfo(kind).max)
            self.counts = self.counts.astype(wide)

    def _extend(self, started: float, ended: float) -> None:
        self.started = min(self.started, started) if self.started else started
        self.ended = max(self.ended, ended)


def summed(*tallies: Tally) -> Tally:
    """Return a new tally of all that was counted in tallies on one grid."""
    total = Tally.empty(*tallies[0].counts.shape)
    for tally in tallies:
        total.add(tally)
    return total


def _tiles(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, rows, _BLOCK_ROWS):
        height = min(_BLOCK_ROWS, rows - top)
        step = max(1, _TILE_VALUES // height)
        for left in range(0, width, step):
            yield slice(top, top + height), slice(left, min(left + step, width))


def _absorb_tile(tally: Tally, values: NDArray[np.float32], grid: Grid, columns: slice) -> None:
    """Count one tile of values, shape ``(rows, columns)``."""
    part = Grid(grid.binning, grid.centre[columns], grid.exponent[columns])
    # Exact, and cannot overflow; infinities and signalling NaNs would warn here.
    with np.errstate(invalid="ignore"):
        away = np.subtract(values, part.centre, dtype=np.float64)
        sums = away.sum(axis=0)
    bins = _flat_bins(values, part)
    # A sum of float32s cannot overflow float64: it is finite exactly when every value is.
    if np.isfinite(sums).all():
        least, most = values.min(axis=0), values.max(axis=0)
        zeros = len(values) - np.count_nonzero(values, axis=0)
    else:
        finite = np.isfinite(values)
        away = np.where(finite, away, 0.0)
        sums = away.sum(axis=0)
        bins = bins[finite]
        known = np.where(finite, values, np.float32(np.nan))
        least, most = np.fmin.reduce(known, axis=0), np.fmax.reduce(known, axis=0)
        zeros = np.count_nonzero(known == 0, axis=0)
        tally.nans[columns] += np.count_nonzero(np.isnan(values), axis=0)
        tally.infinities[columns] += np.count_nonzero(np.isinf(values), axis=0)
    tally.sums[columns] += sums
    tally.squares[columns] += np.einsum("rf,rf->f", away, away)
    tally.minimum[columns] = np.fmin(tally.minimum[columns], least)
    tally.maximum[columns] = np.fmax(tally.maximum[columns], most)
    tally.zeros[columns] += zeros
    counters = tally.counts[columns].reshape(-1)  # a view: whole rows of a contiguous array
    # Faster than bincount at every height: it needs no array of all bins for each tile.
    np.add.at(counters, bins.reshape(-1), counters.dtype.type(1))


def _flat_bins(values: NDArray[np.float32], grid: Grid) -> NDArray[np.int64]:
    """Return each value's place in a flattened ``(features, bins)`` array."""
    first = np.arange(len(grid.centre), dtype=np.int64) * grid.binning.bins
    return grid.index(values) + first  # (rows, features)


def _frozen(array: NDArray[_T]) -> NDArray[_T]:
    copy = array.copy()
    copy.setflags(write=False)
    return copy
