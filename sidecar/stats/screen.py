"""How often requests pass a threshold of every feature, and how often they should."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Batch
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.kernels import Kernels

_PLACED = 2048
"""Features whose thresholds are read off at a time: some 16 MB of temporaries at 4 mantissa bits."""

_MOST = 1 << 62
"""Requests or windows beyond which a count is no count."""


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """How often requests of ordinary traffic passed each feature's threshold.

    The thresholds come from the first part of the baseline and the counts from the rest of it, so
    that neither the number of rows in a request, nor their likeness, nor what a bounded sample does
    not show of a tail has to be guessed.

    Attributes:
        level: Of the baseline quantile at which the thresholds lie, from 0 to 1.
        thresholds: One for each feature, shape ``(width,)``, float32; NaN, which nothing passes,
            where the feature had no finite value by then.
        exceedances: Requests with a row above it, shape ``(width,)``, int64.
        requests: Requests that were compared.
        windows: Windows they came in, those without a request left out; 0 where the baseline froze
            before a window was measured.
        squares: Sum over those windows of the square of the window's exceedances over its requests,
            shape ``(width,)``, float64.
        bound: The rate if the rows of a request were independent of each other, see
            ``Bank.baseline_rate``: the rate of all features while ``windows`` is 0.
    """

    level: float
    thresholds: NDArray[np.float32]
    exceedances: NDArray[np.int64]
    requests: int
    windows: int
    squares: NDArray[np.float64]
    bound: float

    @classmethod
    def unmeasured(
        cls, level: float, thresholds: NDArray[np.float32], bound: float
    ) -> "Expectation":
        """Return the expectation before any window was measured."""
        width = len(thresholds)
        none = np.zeros(width, np.int64), np.zeros(width)
        return cls(level, _kept(thresholds), _kept(none[0]), 0, 0, _kept(none[1]), bound)

    @property
    def rate(self) -> NDArray[np.float64]:
        """Share of requests that pass, shape ``(width,)``, never 0: ``(sum Y + 1/2) / (sum R + 1)``."""
        if not self.windows:
            return np.full(len(self.thresholds), self.bound)
        return np.asarray((self.exceedances + 0.5) / (self.requests + 1.0), np.float64)

    @property
    def dispersion(self) -> NDArray[np.float64]:
        """Variance of a window's exceedances over that of independent requests, shape ``(width,)``.

        Pearson's estimate over the measured windows, at least 1; 1 where fewer than two were measured,
        or where no request or every one passed.
        """
        ones = np.ones(len(self.thresholds))
        if self.windows <= 1:
            return ones
        share = self.exceedances / self.requests
        spread = share * (1.0 - share) * (self.windows - 1)
        # Over windows, sum (Y - pR)**2 / R is sum Y**2 / R - p * sum Y at the p that fits best.
        excess = self.squares - share * self.exceedances
        return np.maximum(np.divide(excess, spread, out=ones, where=spread > 0), 1.0)

    def plus(self, exceedances: NDArray[np.int64], requests: int) -> "Expectation":
        """Return the expectation with one more window, of at least one request."""
        squares = self.squares + exceedances.astype(np.float64) ** 2 / requests
        return replace(
            self,
            exceedances=_kept(self.exceedances + exceedances),
            requests=self.requests + requests,
            windows=self.windows + 1,
            squares=_kept(squares),
        )


class Screen:
    """Every feature of one layer against its threshold: the open window, and what to expect of one."""

    def __init__(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self._restart()

    def _restart(self) -> None:
        self._exceedances = np.zeros(len(self.expectation.thresholds), np.int64)
        self._requests = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        expected = self.expectation
        arrays = expected.thresholds, expected.exceedances, expected.squares, self._exceedances
        return sum(array.nbytes for array in arrays)

    def absorb(self, batch: Batch, kernels: Kernels) -> None:
        """Count the requests of a batch, each once whatever it stands for."""
        kernels.screen(batch.values, batch.starts, self.expectation.thresholds, self._exceedances)
        self._requests += batch.requests

    def close(self, *, learning: bool) -> tuple[NDArray[np.int64], int]:
        """Return the window's exceedances and requests, and begin the next.

        Args:
            learning: Whether the window is part of what is expected of the next ones.
        """
        found, requests = self._exceedances, self._requests
        if learning and requests:
            self.expectation = self.expectation.plus(found, requests)
        self._restart()
        return found, requests

    def put(self, arrays: Arrays, prefix: str) -> dict[str, Any]:
        """Add all arrays under ``prefix``; return the plain values."""
        arrays[prefix + "window"] = self._exceedances.copy()
        return {
            "window_requests": self._requests,
            **put_expectation(self.expectation, arrays, prefix),
        }

    @classmethod
    def take(cls, arrays: Arrays, prefix: str, saved: Mapping[str, Any], width: int) -> "Screen":
        """Return what ``put`` saw.

        Raises:
            ValueError: The parts do not fit together; so may KeyError and TypeError.
        """
        screen = cls(take_expectation(arrays, prefix, saved, width))
        screen._requests = _whole(saved["window_requests"])
        found = _counts(arrays[prefix + "window"], width, screen._requests)
        screen._exceedances = found.copy()
        return screen


def placed(
    learned: Callable[[NDArray[np.int64]], Distribution], width: int, level: float, bound: float
) -> Expectation:
    """Return thresholds at a quantile of what was learned, and nothing measured yet.

    Args:
        learned: Returns what was learned of some features.
        width: How many there are.
        level: Of the quantile, from 0 to 1.
        bound: See ``Expectation``.

    Complexity:
        O(width * bins); temporaries of ``(_PLACED, bins)`` int64.
    """
    parts = [
        learned(np.arange(first, min(first + _PLACED, width))).threshold(level)
        for first in range(0, width, _PLACED)
    ]
    return Expectation.unmeasured(level, np.concatenate(parts).astype(np.float32), bound)


def put_expectation(expected: Expectation, arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Add the arrays of an expectation under ``prefix``; return its plain values."""
    for name in ("thresholds", "exceedances", "squares"):
        arrays[prefix + name] = getattr(expected, name)
    return {name: getattr(expected, name) for name in ("level", "requests", "windows", "bound")}


def take_expectation(
    arrays: Arrays, prefix: str, saved: Mapping[str, Any], width: int
) -> Expectation:
    """Return the expectation that ``put_expectation`` was given.

    Raises:
        ValueError: The parts do not fit together; so may KeyError and TypeError.
    """
    level, bound = float(saved["level"]), float(saved["bound"])
    requests, windows = _whole(saved["requests"]), _whole(saved["windows"])
    thresholds = typed(arrays[prefix + "thresholds"], np.float32)
    squares = typed(arrays[prefix + "squares"], np.float64)
    if {thresholds.shape, squares.shape} != {(width,)}:
        raise ValueError(f"{prefix}thresholds have shape {thresholds.shape}, need ({width},)")
    if not (0.0 <= level <= 1.0 and 0.0 <= bound <= 1.0) or windows > requests:
        raise ValueError(f"{prefix}level {level}, bound {bound}, {windows} windows, {requests}")
    if not np.isfinite(squares).all() or squares.min(initial=math.inf) < 0:
        raise ValueError(f"{prefix}squares are not sums of squares")
    found = _counts(arrays[prefix + "exceedances"], width, requests)
    return Expectation(
        level, _kept(thresholds), _kept(found), requests, windows, _kept(squares), bound
    )


def _counts(array: NDArray[Any], width: int, most: int) -> NDArray[np.int64]:
    found = typed(array, np.int64)
    if found.shape != (width,) or not 0 <= found.min(initial=0) <= found.max(initial=0) <= most:
        raise ValueError(f"exceedances of {width} features and {most} requests: {found}")
    return found


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number <= _MOST:
        raise ValueError(f"{number!r} is not a count")
    return number


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that is shared from now on, and so must not be written to."""
    array.setflags(write=False)
    return array
