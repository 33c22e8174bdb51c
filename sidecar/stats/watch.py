"""Counts, request by request, how often watched features pass their thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ShapeMismatch, UnknownFeature
from sidecar.features import Slice, Values
from sidecar.stats.batch import Batch, decoded
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.kernels import Kernels

_EVERYWHERE = Slice()

_SAVED: Mapping[str, type[np.generic]] = {
    "indices": np.int64,
    "thresholds": np.float32,
    "exceedances": np.int64,
    "requests": np.int64,
    "maximum": np.float32,
}
"""What snapshots have always held of a watch."""


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """What to count of some features of a layer, request by request.

    Attributes:
        indices: Which features, shape ``(n,)``; one may be there twice, on different traffic.
        high: A request exceeds when any of its rows is above, shape ``(n,)``; infinity or NaN: none
            is, and an infinite value is above every finite threshold.
        low: Or when any is below, shape ``(n,)``; minus infinity or NaN: none is.
        traffic: The requests that are looked at: those whose slice has all these pairs, ``n`` of
            them; an empty slice, or no slices at all: every request.
        levels: Further thresholds, counted for themselves, shape ``(n, k)``: a request passes one when
            any of its rows is above.

    Raises:
        ShapeMismatch: The parts are not of one length.
    """

    indices: NDArray[np.int64]
    high: NDArray[np.float32]
    low: NDArray[np.float32]
    traffic: tuple[Slice, ...]
    levels: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        shape = np.shape(self.indices)
        if (
            len(shape) != 1
            or not shape == np.shape(self.high) == np.shape(self.low)
            or np.shape(self.levels)[:-1] != shape
            or len(self.traffic) not in (0, *shape)
        ):
            raise ShapeMismatch(
                f"{shape} features to watch, and {np.shape(self.high)} high and "
                f"{np.shape(self.low)} low thresholds, levels {np.shape(self.levels)} and "
                f"{len(self.traffic)} slices: give one of each to a feature"
            )

    @classmethod
    def above(cls, indices: NDArray[np.int64], high: NDArray[np.float32]) -> Self:
        """Return the usual watch: on all traffic, over one threshold a feature.

        Raises:
            ShapeMismatch: There are not as many thresholds as features.
        """
        n = np.shape(indices)
        return cls(
            indices, high, np.full(n, -np.inf, np.float32), (), np.empty((*n, 0), np.float32)
        )


@dataclass(frozen=True, slots=True, eq=False)
class WindowCounts:
    """What one closed window of a layer held.

    Attributes:
        requests: Requests sampled.
        rows: Rows sampled; each counts once, whatever it stands for.
        nonfinite: NaN and infinite values of all the layer's features, as many as they stand for.
        indices: The watched features, shape ``(n,)``.
        exceedances: Requests with a row beyond the watched feature's threshold, shape ``(n,)``.
        watched_requests: Requests that were compared with that threshold, shape ``(n,)``: fewer
            than ``requests`` where it was set within the window, or where only a slice is watched.
        maximum: Greatest finite value of each watched feature in these, shape ``(n,)``; NaN without
            one.
        minimum: Least finite value likewise, of the features that have a low threshold; NaN of others.
        watched: Distribution of the watched features in the window, in the order of ``indices`` and
            of all traffic: in finer bins where these saw all of it, else in the layer's own; None
            before the layer's bins are placed and where nothing is watched.
        level_exceedances: Requests above each further threshold, shape ``(n, k)``.
        screened: Requests above the threshold of every feature, shape ``(width,)``, int64; None where
            there are no thresholds yet, and always of a sparse layer.
        screened_requests: Requests that were compared with those: fewer than ``requests`` where they
            were placed within the window.
    """

    requests: int
    rows: int
    nonfinite: int
    indices: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    watched_requests: NDArray[np.int64]
    maximum: NDArray[np.float32]
    minimum: NDArray[np.float32]
    watched: Distribution | None = None
    level_exceedances: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    screened: NDArray[np.int64] | None = None
    screened_requests: int = 0


class Watch:
    """The watched features of one layer and their counts in the open window."""

    def __init__(self) -> None:
        self._become(Watched.above(np.empty(0, np.int64), np.empty(0, np.float32)))

    def _become(self, watched: Watched) -> None:
        self.indices = np.array(watched.indices, np.int64)
        self.low = np.array(watched.low, np.float32)
        # The threshold of exceedances, then the further ones.
        self.limits = np.column_stack((watched.high, watched.levels)).astype(np.float32)
        self.traffic = tuple(watched.traffic) or (_EVERYWHERE,) * len(self.indices)
        self._groups = {
            wanted: np.flatnonzero([one == wanted for one in self.traffic])
            for wanted in dict.fromkeys(self.traffic)
        }
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        n = len(self.indices)
        self.passed = np.zeros(self.limits.shape, np.int64)
        self.requests = np.zeros(n, np.int64)
        self.maximum = np.full(n, np.nan, np.float32)
        self.minimum = np.full(n, np.nan, np.float32)

    @property
    def sliced(self) -> bool:
        """Whether it matters which traffic a request belongs to."""
        return any(wanted.pairs for wanted in self._groups)

    def set(self, watched: Watched, width: int) -> None:
        """Watch exactly these features; one that was watched in the same way keeps its counts.

        Raises:
            UnknownFeature: The layer has no such feature.
        """
        wanted = np.asarray(watched.indices, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < width:
            raise UnknownFeature(f"features {wanted.min()} to {wanted.max()}: use 0 to {width - 1}")
        places = {way: at for at, way in enumerate(self._ways())}
        passed, requests = self.passed, self.requests
        maximum, minimum = self.maximum, self.minimum
        self._become(watched)
        old = np.array([places.get(way, -1) for way in self._ways()], np.int64)
        kept = old >= 0
        if kept.any():
            self.passed[kept] = passed[old[kept]]
            self.requests[kept] = requests[old[kept]]
            self.maximum[kept] = maximum[old[kept]]
            self.minimum[kept] = minimum[old[kept]]

    def _ways(self) -> list[tuple[object, ...]]:
        """Return for each watched feature all that its counts depend on."""
        limits = [tuple(row) for row in self.limits.tolist()]
        return list(
            zip(self.indices.tolist(), self.low.tolist(), self.traffic, limits, strict=True)
        )

    def absorb(self, batch: Batch, traffic: Sequence[Slice], kernels: Kernels) -> None:
        """Count new rows.

        Args:
            batch: At least one row of the whole layer.
            traffic: The slice of each request; looked at only where ``sliced``.
            kernels: What counts.
        """
        for wanted, at in self._groups.items():
            values, starts, columns = batch.values, batch.starts, self.indices[at]
            if wanted.pairs:
                values, starts = _belonging(batch, traffic, wanted, columns)
                columns = np.arange(len(at))
            if len(starts):
                self._count(at, values, starts, columns, kernels)

    def _count(
        self,
        at: NDArray[np.int64],
        values: Values,
        starts: NDArray[np.int64],
        columns: NDArray[np.int64],
        kernels: Kernels,
    ) -> None:
        """Count rows of the features watched at the places ``at``, which are these ``columns``."""
        limits, low = self.limits[at], self.low[at]
        found, most = np.zeros(limits.shape, np.int64), np.full(len(at), np.nan, np.float32)
        kernels.exceed(values, starts, columns, limits, found, most)
        below = np.flatnonzero(low > -np.inf)
        if len(below):
            seen = decoded(values.take(columns[below], axis=1))  # (rows, below)
            found[below, 0] += _only_below(seen, starts, low[below], limits[below, 0])
            least = np.fmin.reduce(np.where(np.isfinite(seen), seen, np.nan), axis=0)
            # Whichever zero came first, as below.
            self.minimum[at[below]] = np.fmin(self.minimum[at[below]], least) + np.float32(0)
        self.passed[at] += found
        self.requests[at] += len(starts)
        # Whichever zero came first, the greatest is +0.0.
        self.maximum[at] = np.fmax(self.maximum[at], most) + np.float32(0)

    def close(
        self, requests: int, rows: int, nonfinite: int, watched: Distribution | None
    ) -> WindowCounts:
        """Return the window's counts and begin a new one."""
        counts = WindowCounts(
            requests=requests,
            rows=rows,
            nonfinite=nonfinite,
            indices=self.indices.copy(),
            exceedances=self.passed[:, 0].copy(),
            watched_requests=self.requests,
            maximum=self.maximum,
            minimum=self.minimum,
            watched=watched,
            level_exceedances=self.passed[:, 1:].copy(),
        )
        self.restart()
        return counts

    def put(self, arrays: Arrays, prefix: str) -> list[list[list[str]]]:
        """Add all arrays under ``prefix``; return the pairs of every slice."""
        held: Arrays = {
            "indices": self.indices,
            "thresholds": self.limits[:, 0],
            "exceedances": self.passed[:, 0],
            "requests": self.requests,
            "maximum": self.maximum,
            "minimum": self.minimum,
            "low": self.low,
            "levels": self.limits[:, 1:],
            "level_exceedances": self.passed[:, 1:],
        }
        arrays.update({prefix + name: array.copy() for name, array in held.items()})
        return [[list(pair) for pair in one.pairs] for one in self.traffic] if self.sliced else []

    def take(self, arrays: Arrays, prefix: str, slices: Sequence[Any], width: int) -> None:
        """Become what ``put`` saw; what older snapshots lack is as ``Watched.above`` has it.

        Raises:
            ValueError: The arrays do not fit together; KeyError: one is missing.
            ShapeMismatch: Likewise.
            UnknownFeature: A watched feature is not below ``width``.
        """
        found = {name: typed(arrays[prefix + name], kind) for name, kind in _SAVED.items()}
        plain = Watched.above(found["indices"], found["thresholds"])
        low, levels = (
            typed(arrays.get(prefix + name, getattr(plain, name)), np.float32)
            for name in ("low", "levels")
        )
        traffic = tuple(Slice.of(dict(pairs)) for pairs in slices)
        self.set(Watched(plain.indices, plain.high, low, traffic, levels), width)
        nothing = np.zeros(levels.shape, np.int64)
        further = typed(arrays.get(prefix + "level_exceedances", nothing), np.int64)
        minimum = typed(
            arrays.get(prefix + "minimum", np.full(len(plain.indices), np.nan, np.float32)),
            np.float32,
        )
        counts = (found["exceedances"], found["requests"], found["maximum"], minimum)
        if {one.shape for one in counts} != {self.indices.shape} or further.shape != levels.shape:
            raise ValueError(f"{prefix}counts of {len(self.indices)} watched features: {counts}")
        self.passed = np.column_stack((found["exceedances"], further))
        self.requests, self.maximum = found["requests"].copy(), found["maximum"].copy()
        self.minimum = minimum.copy()


def _belonging(
    batch: Batch, traffic: Sequence[Slice], wanted: Slice, columns: NDArray[np.int64]
) -> tuple[Values, NDArray[np.int64]]:
    """Return the rows of requests of some traffic, of some features, and where requests begin."""
    chosen = np.array([one.contains(wanted) for one in traffic], np.bool_)  # (requests,)
    lengths = np.diff(batch.starts, append=batch.sampled)
    rows = np.flatnonzero(np.repeat(chosen, lengths))
    return (
        batch.values.take(columns, axis=1).take(rows, axis=0),
        np.cumsum(lengths[chosen]) - lengths[chosen],
    )


def _only_below(
    seen: NDArray[np.float32],
    starts: NDArray[np.int64],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Count the requests with a row below ``low`` and none above ``high``, of each of ``n`` features.

    Args:
        seen: Their values, shape ``(rows, n)``.
        starts: Where requests begin.
        low: Their thresholds, shape ``(n,)``.
        high: Likewise.
    """
    least, most = (pick.reduceat(seen, starts, axis=0) for pick in (np.fmin, np.fmax))
    return np.asarray(np.count_nonzero((least < low) & ~(most > high), axis=0), np.int64)
