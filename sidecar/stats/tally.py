"""Counters that grow: the mutable side of a distribution."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Batch
from sidecar.stats.binning import Grid
from sidecar.stats.distribution import Distribution, count_type
from sidecar.stats.moments import add_wide

_T = TypeVar("_T", bound=np.generic)

_COUNTERS: tuple[np.dtype[np.unsignedinteger[Any]], ...] = (
    np.dtype(np.uint16),
    np.dtype(np.uint32),
    np.dtype(np.uint64),
)
"""Narrow counters are fastest and smallest; they widen before a bin could overflow."""

_PER_FEATURE = (
    "sums",
    "squares_high",
    "squares_low",
    "minimum",
    "maximum",
    "zeros",
    "counts",
)


@dataclass(slots=True, eq=False)
class Tally:
    """What was counted of many features on one grid, growing in place.

    Attributes are those of ``Distribution``, except that ``counts`` and ``zeros`` are of the narrowest
    unsigned type that no number of ``rows`` rows can overflow, that a feature without a finite value
    has a minimum of infinity and a maximum of minus infinity, and that the counters of what is not
    finite, ``odd``, come to be with the first such value: most layers never need them.

    Complexity:
        ``2 * bins + 34`` bytes a feature up to 65,535 rows, ``4 * bins + 36`` up to 2**32 - 1: 2,100
        at 4 mantissa bits and 16 octaves. Another 16 once something was not finite.
    """

    rows: int
    sampled: int
    requests: int
    started: float
    ended: float
    sums: NDArray[np.int64]
    squares_high: NDArray[np.int64]
    squares_low: NDArray[np.uint64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    zeros: NDArray[np.unsignedinteger[Any]]
    counts: NDArray[np.unsignedinteger[Any]]
    odd: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls, width: int, bins: int) -> "Tally":
        """Return counters of ``width`` features that have seen nothing."""
        return cls(
            rows=0,
            sampled=0,
            requests=0,
            started=0.0,
            ended=0.0,
            sums=np.zeros(width, np.int64),
            squares_high=np.zeros(width, np.int64),
            squares_low=np.zeros(width, np.uint64),
            minimum=np.full(width, np.inf, np.float32),
            maximum=np.full(width, -np.inf, np.float32),
            zeros=np.zeros(width, _COUNTERS[0]),
            counts=np.zeros((width, bins), _COUNTERS[0]),
        )

    @classmethod
    def of(cls, distribution: Distribution) -> "Tally":
        """Return the counters of a distribution, which may share its memory."""
        odd = np.stack((distribution.nans, distribution.infinities))
        absent = np.isnan(distribution.minimum)
        return cls(
            rows=distribution.rows,
            sampled=distribution.sampled,
            requests=distribution.requests,
            started=distribution.started,
            ended=distribution.ended,
            sums=distribution.unit_sums,
            squares_high=distribution.unit_squares_high,
            squares_low=distribution.unit_squares_low,
            minimum=np.where(absent, np.float32(np.inf), distribution.minimum),
            maximum=np.where(absent, np.float32(-np.inf), distribution.maximum),
            zeros=distribution.zeros.astype(distribution.counts.dtype),
            counts=distribution.counts,
            odd=odd if odd.any() else None,
        )

    def select(self, features: NDArray[np.int64]) -> "Tally":
        """Return a copy of what was counted of some features, in the order of ``features``."""
        chosen = {name: getattr(self, name)[features] for name in _PER_FEATURE}
        odd = None if self.odd is None else self.odd[:, features]
        return replace(self, **chosen, odd=odd)

    @property
    def nans(self) -> NDArray[np.int64]:
        """NaN values of each feature, shape ``(width,)``."""
        return np.zeros(len(self.sums), np.int64) if self.odd is None else self.odd[0]

    @property
    def infinities(self) -> NDArray[np.int64]:
        """Infinite values of each feature, shape ``(width,)``."""
        return np.zeros(len(self.sums), np.int64) if self.odd is None else self.odd[1]

    @property
    def nonfinite(self) -> int:
        """NaN and infinite values of all features together."""
        return 0 if self.odd is None else int(self.odd.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        odd = 0 if self.odd is None else self.odd.nbytes
        return odd + sum(int(getattr(self, name).nbytes) for name in _PER_FEATURE)

    def saw(self, batch: Batch) -> None:
        """Note that the values of a batch have been counted."""
        self.rows += batch.rows
        self.sampled += batch.sampled
        self.requests += batch.requests
        self._extend(batch.at, batch.at)
        # Which zero is the least depends on the order of rows; as an extreme both are +0.0.
        self.minimum += np.float32(0)
        self.maximum += np.float32(0)

    def add_nonfinite(
        self, nans: NDArray[np.int64], infinities: NDArray[np.int64], columns: slice
    ) -> None:
        """Count values that are not finite."""
        if self.odd is None:
            self.odd = np.zeros((2, len(self.sums)), np.int64)
        self.odd[:, columns] += nans, infinities

    def add(self, other: "Tally") -> None:
        """Count what another tally on the same grid has counted."""
        if not other.rows:
            return
        self.reserve(self.rows + other.rows)
        for name in ("sums", "rows", "sampled", "requests"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.squares_high, self.squares_low = add_wide(
            self.squares_high, self.squares_low, other.squares_high, other.squares_low
        )
        np.minimum(self.minimum, other.minimum, out=self.minimum)
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        for name in ("counts", "zeros"):
            into = getattr(self, name)
            np.add(into, getattr(other, name), out=into, casting="unsafe")
        if other.odd is not None:
            self.add_nonfinite(other.odd[0], other.odd[1], slice(None))
        self._extend(other.started, other.ended)

    def distribution(self, grid: Grid) -> Distribution:
        """Return an immutable copy."""
        return Distribution(
            binning=grid.binning,
            centre=grid.centre,
            exponent=grid.exponent,
            rows=self.rows,
            sampled=self.sampled,
            requests=self.requests,
            unit_sums=_frozen(self.sums),
            unit_squares_high=_frozen(self.squares_high),
            unit_squares_low=_frozen(self.squares_low),
            minimum=_frozen(np.where(np.isposinf(self.minimum), np.float32(np.nan), self.minimum)),
            maximum=_frozen(np.where(np.isneginf(self.maximum), np.float32(np.nan), self.maximum)),
            zeros=_frozen(self.zeros.astype(np.int64)),
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
            self.counts, self.zeros = self.counts.astype(wide), self.zeros.astype(wide)

    def _extend(self, started: float, ended: float) -> None:
        self.started = min(self.started, started) if self.started else started
        self.ended = max(self.ended, ended)


def summed(*tallies: Tally) -> Tally:
    """Return a new tally of all that was counted in tallies on one grid."""
    total = Tally.empty(*tallies[0].counts.shape)
    for tally in tallies:
        total.add(tally)
    return total


def _frozen(array: NDArray[_T]) -> NDArray[_T]:
    copy = array.copy()
    copy.setflags(write=False)
    return copy
