"""Every activation of the watched features since the daemon started, in Prometheus' two forms."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor.exponential import (
    Cells,
    coarsened,
    finest_schema,
    gathered,
    no_cells,
    spread,
    swallowed,
)
from sidecar.monitor.views import LayerActivations
from sidecar.stats import Distribution, Occupied

FALLBACK_BOUNDS = (-100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0)
"""Bucket bounds of a feature without a baseline: nothing is known of its scale."""

BOUND_LIMIT = 20
"""Most bucket bounds of one feature, +Inf not counted."""

_BODY = np.array([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999])
"""Quantile levels at which bounds are placed."""

_ABOVE = np.array([1.5, 2.0, 3.0, 5.0, 10.0])
"""Bounds for what the baseline never saw, as multiples of the top quantile's distance from the
median: a spike must be seen to be far out, not only out."""

_BELOW = np.array([2.0])
"""The same on the other side, where nobody is paged."""

_NO_WIDTH = 1e-300
"""Stands for the width of a bin that has none; smaller than any distance of float32 values."""

_T = TypeVar("_T", bound=np.generic)

_ZERO_OCTAVES = 2
"""Octaves by which the zero bucket is wider than the near-zero bin: up to a sixteenth of a
feature's scale, below which finer buckets would say nothing and cost half as much as all others."""


def place_bounds(
    quantile: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return bucket bounds for each feature: readable numbers near quantiles of its baseline, and 0.

    Each is rounded to two digits of its distance from the median, so they depend on the baseline
    alone and are the same for as long as it is.

    Args:
        quantile: Of the baseline, as ``Distribution.quantile``.

    Returns:
        Shape ``(F, BOUND_LIMIT + 1)``, increasing, the rest of a row and its last bound +Inf.
    """
    quantiles = quantile(np.concatenate((_BODY, [0.5])))  # (F, levels + 1)
    middle = quantiles[:, -1:]
    body = quantiles[:, :-1]
    above = middle + (body[:, -1:] - middle) * _ABOVE
    below = middle + (body[:, :1] - middle) * _BELOW
    places = np.hstack((body, above, below))
    rounded = _readable(places - middle, middle)
    return np.array([_row(bounds) for bounds in rounded]).reshape(-1, BOUND_LIMIT + 1)


def fallback_bounds(features: int) -> NDArray[np.float64]:
    """Return ``FALLBACK_BOUNDS`` for each of so many features, in the form of ``place_bounds``."""
    return np.tile(_row(np.array(FALLBACK_BOUNDS)), (features, 1))


def _readable(distance: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round ``middle + distance`` to a decimal step of 1 to 10 % of the distance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 1.0 - np.floor(np.log10(np.abs(distance)))
    digits = np.where(np.isfinite(digits), digits, np.nan)
    # At the median itself the finest step of the others is fine enough.
    finest = np.fmax.reduce(digits, axis=1)
    digits = np.where(np.isnan(digits), np.nan_to_num(finest, nan=6.0)[:, None], digits)
    exact = middle + distance
    return np.array(
        [
            [
                round(x, int(d)) if np.isfinite(x) else np.inf
                for x, d in zip(row, places, strict=True)
            ]
            for row, places in zip(exact.tolist(), digits.tolist(), strict=True)
        ]
    ).reshape(exact.shape)


def _row(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    chosen = np.unique(np.append(bounds[np.isfinite(bounds)], 0.0) + 0.0)  # + 0.0: -0.0 is 0.0
    return np.concatenate((chosen, np.full(BOUND_LIMIT + 1 - len(chosen), np.inf)))


def _none_below() -> NDArray[np.int64]:
    return np.zeros((0, BOUND_LIMIT + 1), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Reach:
    """The least and greatest magnitudes seen beyond the zero bucket; shape ``(2, n)``: +, -."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def none(cls, features: int) -> "_Reach":
        return cls(np.full((2, features), np.inf), np.zeros((2, features)))

    def select(self, keep: NDArray[np.int64]) -> "_Reach":
        return _Reach(_kept(self.low.T, keep, np.inf).T, _kept(self.high.T, keep, 0.0).T)

    def extended(self, seen: Occupied) -> "_Reach":
        low, high = self.low.copy(), self.high.copy()
        for side, (near, far) in enumerate(((seen.low, seen.high), (-seen.high, -seen.low))):
            beyond = far > 0
            owners = seen.features[beyond]
            np.minimum.at(low[side], owners, near[beyond])
            np.maximum.at(high[side], owners, far[beyond])
        return _Reach(low, high)

    def octaves(self, zero: NDArray[np.int64]) -> NDArray[np.float64]:
        border = np.exp2(zero.astype(np.float64))
        low, high = np.maximum(self.low, border), np.maximum(self.high, border)
        with np.errstate(invalid="ignore", divide="ignore"):
            each: NDArray[np.float64] = np.where(high > low, np.log2(high / low), 0.0)
        return np.asarray(each.sum(axis=0), np.float64)


@dataclass(slots=True, eq=False)
class Activations:
    """What one layer's watched features did since they are watched, growing window by window.

    Arrays are replaced, never changed, so that readers may keep them. Every array is aligned with
    ``keys``. A feature's state is at most ``exponential.BUCKET_LIMIT`` buckets of 24 bytes above
    schema 0, and 500 bytes beside.
    """

    keys: tuple[FeatureKey, ...] = ()
    bounds: NDArray[np.float64] = field(default_factory=lambda: fallback_bounds(0))
    _count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    _zero: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _schema: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _reach: _Reach = field(default_factory=lambda: _Reach.none(0))
    _cells: Cells = field(default_factory=no_cells)
    _below: NDArray[np.int64] = field(default_factory=_none_below)

    def follow(
        self, layer: LayerKey, indices: NDArray[np.int64], bounds: NDArray[np.float64]
    ) -> None:
        """Watch exactly these features; those watched before go on, with the same bounds or others.

        Buckets whose bounds change start at zero, which Prometheus reads as a restarted counter.

        Args:
            layer: Whose features.
            indices: Which, shape ``(n,)``.
            bounds: As from ``place_bounds``, shape ``(n, BOUND_LIMIT + 1)``.
        """
        before = {key.index: place for place, key in enumerate(self.keys)}
        keep = np.array([before.get(index, -1) for index in indices.tolist()], np.int64)
        same = (keep >= 0) & (_kept(self.bounds, keep, np.nan) == bounds).all(axis=1)
        self._below = np.where(same[:, None], _kept(self._below, keep, 0), 0)
        self._count, self._sum = _kept(self._count, keep, 0), _kept(self._sum, keep, 0.0)
        self._zero, self._schema = _kept(self._zero, keep, 0), _kept(self._schema, keep, 0)
        self._reach = self._reach.select(keep)
        now_at = np.full(len(self.keys), -1, np.int64)
        now_at[keep[keep >= 0]] = np.flatnonzero(keep >= 0)
        owner = now_at[self._cells.features]
        stays = owner >= 0
        self._cells = gathered(owner[stays], self._cells.ranks[stays], self._cells.counts[stays])
        if not (len(keep) == len(before) and np.array_equal(keep, np.arange(len(keep)))):
            self.keys = tuple(layer.feature(index) for index in indices.tolist())
        if not same.all() or bounds.shape != self.bounds.shape:
            self.bounds = bounds

    def add(self, window: Distribution) -> None:
        """Count a closed window of exactly the watched features.

        Complexity:
            A few dozen vector operations over the window's occupied bins and all buckets.
        """
        if not window.rows or not len(self.keys):
            return
        # A new placement of the bins may not make the zero bucket smaller: its values are not known.
        placed = window.exponent.astype(np.int64) + _ZERO_OCTAVES
        zero = np.where(self._count > 0, np.maximum(self._zero, placed), placed)
        seen = window.occupied()
        reach = self._reach.extended(seen)
        finest = finest_schema(reach.octaves(zero))
        before = np.where(self._count > 0, self._schema, finest)
        schema = np.minimum(before, finest)
        grown = np.where(self._count > 0, (zero - self._zero) << before, 0)
        old = coarsened(swallowed(self._cells, grown), before - schema)
        new = spread(seen, zero, schema)
        self._cells = gathered(
            np.concatenate((old.features, new.features)),
            np.concatenate((old.ranks, new.ranks)),
            np.concatenate((old.counts, new.counts)),
        )
        self._zero, self._schema, self._reach = zero, schema, reach
        self._count = self._count + window.count
        self._sum = self._sum + window.sums + window.centre.astype(np.float64) * window.count
        self._below = self._below + _at_or_below(seen, self.bounds)

    def view(self, layer: LayerKey) -> LayerActivations:
        """Return what was counted so far; nothing of it changes afterwards."""
        return LayerActivations(
            layer=layer,
            keys=self.keys,
            count=self._count,
            sum=self._sum,
            schema=self._schema,
            zero_exponent=self._zero,
            bucket_features=self._cells.features,
            bucket_ranks=self._cells.ranks,
            bucket_counts=self._cells.counts,
            bounds=self.bounds,
            below=self._below,
        )


def _at_or_below(seen: Occupied, bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many values are at or below each bound, in proportion within a bin; as ``bounds``."""
    found = np.zeros(bounds.shape, np.int64)
    if not len(seen.counts):
        return found
    limits = bounds[seen.features]  # (k, BOUND_LIMIT + 1)
    width = np.maximum(seen.high - seen.low, _NO_WIDTH)[:, None]
    with np.errstate(over="ignore"):
        # What is added puts a bin without width at or below a bound at the same place.
        share = (limits - seen.low[:, None] + _NO_WIDTH) / width
    np.clip(share, 0.0, 1.0, out=share)
    share *= seen.counts[:, None]
    np.rint(share, out=share)
    starts = np.flatnonzero(np.diff(seen.features, prepend=-1))
    # Sums of whole numbers, exact in float64.
    found[seen.features[starts]] = np.add.reduceat(share, starts, axis=0).astype(np.int64)
    return found


def _kept(values: NDArray[_T], keep: NDArray[np.int64], new: float) -> NDArray[_T]:
    """Return the rows at ``keep``, and ``new`` where that is -1."""
    found: NDArray[Any] = np.full((len(keep), *values.shape[1:]), new, values.dtype)
    found[keep >= 0] = values[keep[keep >= 0]]
    return found
