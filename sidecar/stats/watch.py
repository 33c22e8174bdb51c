"""Counts, request by request, how often watched features pass their thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ShapeMismatch, UnknownFeature
from sidecar.features import Values
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.kernels import Kernels

_SAVED: Mapping[str, type[np.generic]] = {
    "indices": np.int64,
    "thresholds": np.float32,
    "exceedances": np.int64,
    "requests": np.int64,
    "maximum": np.float32,
}


@dataclass(frozen=True, slots=True, eq=False)
class WindowCounts:
    """What one closed window of a layer held.

    Attributes:
        requests: Requests sampled.
        rows: Rows sampled; each counts once, whatever it stands for.
        nonfinite: NaN and infinite values of all the layer's features, as many as they stand for.
        indices: The watched features, shape ``(n,)``.
        exceedances: Requests with a row above the watched feature's threshold, shape ``(n,)``.
        watched_requests: Requests that were compared with that threshold, shape ``(n,)``: fewer
            than ``requests`` where it was set within the window.
        maximum: Greatest finite value of each watched feature, shape ``(n,)``; NaN without one.
        watched: Distribution of the watched features in the window, in the order of ``indices``: in
            finer bins where these saw all of it, else in the layer's own; None before the layer's
            bins are placed and where nothing is watched.
    """

    requests: int
    rows: int
    nonfinite: int
    indices: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    watched_requests: NDArray[np.int64]
    maximum: NDArray[np.float32]
    watched: Distribution | None = None


class Watch:
    """The watched features of one layer and their counts in the open window."""

    def __init__(self) -> None:
        self.indices = np.empty(0, np.int64)
        self.thresholds = np.empty(0, np.float32)
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        n = len(self.indices)
        self.exceedances = np.zeros(n, np.int64)
        self.requests = np.zeros(n, np.int64)
        self.maximum = np.full(n, np.nan, np.float32)

    def set(self, indices: NDArray[np.int64], thresholds: NDArray[np.float32], width: int) -> None:
        """Watch exactly these features; one with an unchanged threshold keeps its counts.

        Raises:
            ShapeMismatch: There are not as many thresholds as indices.
            UnknownFeature: The layer has no such feature.
        """
        wanted = np.array(indices, np.int64)
        limits = np.array(thresholds, np.float32)
        if wanted.ndim != 1 or wanted.shape != limits.shape:
            raise ShapeMismatch(f"{wanted.shape} features and {limits.shape} thresholds to watch")
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < width:
            raise UnknownFeature(f"features {wanted.min()} to {wanted.max()}: use 0 to {width - 1}")
        places = {pair: at for at, pair in enumerate(_pairs(self.indices, self.thresholds))}
        old = np.array([places.get(pair, -1) for pair in _pairs(wanted, limits)], np.int64)
        kept = old >= 0
        exceedances, requests, maximum = self.exceedances, self.requests, self.maximum
        self.indices, self.thresholds = wanted, limits
        self.restart()
        self.exceedances[kept] = exceedances[old[kept]]
        self.requests[kept] = requests[old[kept]]
        self.maximum[kept] = maximum[old[kept]]

    def absorb(self, values: Values, starts: NDArray[np.int64], kernels: Kernels) -> None:
        """Count new rows.

        A request exceeds when any of its rows is above the threshold; an infinity is, a NaN is not.

        Args:
            values: Shape ``(rows, width)``, at least one row.
            starts: The first row of each request, shape ``(requests,)``.
            kernels: What counts.
        """
        if not len(self.indices):
            return
        found = self.exceedances[:, None]  # (n, 1), a view: one threshold a feature
        kernels.exceed(values, starts, self.indices, self.thresholds[:, None], found, self.maximum)
        self.requests += len(starts)
        self.maximum += np.float32(0)  # whichever zero came first, the greatest is +0.0

    def close(
        self, requests: int, rows: int, nonfinite: int, watched: Distribution | None
    ) -> WindowCounts:
        """Return the window's counts and begin a new one."""
        counts = WindowCounts(
            requests=requests,
            rows=rows,
            nonfinite=nonfinite,
            indices=self.indices.copy(),
            exceedances=self.exceedances,
            watched_requests=self.requests,
            maximum=self.maximum,
            watched=watched,
        )
        self.restart()
        return counts

    def put(self, arrays: Arrays, prefix: str) -> None:
        """Add all arrays under ``prefix``."""
        for name in _SAVED:
            arrays[prefix + name] = getattr(self, name).copy()

    def take(self, arrays: Arrays, prefix: str, width: int) -> None:
        """Become what ``put`` saw.

        Raises:
            ValueError: The arrays do not fit together; KeyError: one is missing.
            UnknownFeature: A watched feature is not below ``width``.
        """
        found = {name: typed(arrays[prefix + name], kind) for name, kind in _SAVED.items()}
        self.set(found["indices"], found["thresholds"], width)
        for name in ("exceedances", "requests", "maximum"):
            if found[name].shape != self.indices.shape:
                raise ValueError(f"{prefix}{name} has shape {found[name].shape}")
            setattr(self, name, found[name].copy())


def _pairs(indices: NDArray[np.int64], thresholds: NDArray[np.float32]) -> list[tuple[int, float]]:
    return list(zip(indices.tolist(), thresholds.tolist(), strict=True))
