"""Shapes of activations: what a standard normal number becomes in a feature of each kind."""

import math
from enum import StrEnum
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NORMAL = NormalDist()

RELU_ZEROS = 0.9
"""Share of zeros of a ReLU unit: the usual order in trained convolutional and MLP layers."""

SPARSE_ZEROS = 0.999
"""Share of zeros of a latent of a sparse autoencoder: a few dozen active ones of tens of thousands."""

LOGNORMAL_SIGMA = 1.5
SPARSE_SIGMA = 1.0

_T3_REACH = 12.0
"""Standard deviations up to which the table of the t distribution goes; beyond it stays flat."""

_T3_POINTS = 4801
"""An odd number, so that zero is one of them."""

_SERIES_BELOW = 0.02
"""Below it ``arctan(a) - a / (1 + a * a)`` cancels to noise, and five terms are exact to 1e-14."""


class Marginal(StrEnum):
    """Distribution of a feature's values over all traffic.

    Each is a rising function of a standard normal number, so a value is beyond the quantile of a
    level exactly when that number is: counts of exceedances are the same for all of them.
    ``RELU`` is zero below its 90 % quantile and ``SPARSE`` below its 99.9 % quantile; at lower levels
    than those, every non-zero value exceeds.
    """

    NORMAL = "normal"
    T3 = "t3"
    LOGNORMAL = "lognormal"
    RELU = "relu"
    SPARSE = "sparse"

    def of(self, normal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values that standard normal numbers become, of the same shape."""
        match self:
            case Marginal.NORMAL:
                return normal
            case Marginal.T3:
                return np.interp(normal, *_t3_table())
            case Marginal.LOGNORMAL:
                return np.exp(LOGNORMAL_SIGMA * normal)
            case Marginal.RELU:
                return np.maximum(normal - NORMAL.inv_cdf(RELU_ZEROS), 0.0)
            case Marginal.SPARSE:
                above = normal - NORMAL.inv_cdf(SPARSE_ZEROS)
                # Lognormal from the edge upwards: an active latent is never merely a little active.
                return np.where(above > 0, np.exp(SPARSE_SIGMA * np.maximum(above, 0.0)), 0.0)

    def quantile(self, level: float) -> float:
        """Return the value that a share of ``level`` of the values does not exceed."""
        return float(self.of(np.array([NORMAL.inv_cdf(level)]))[0])


@lru_cache(maxsize=1)
def _t3_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return standard normal numbers, rising, and Student's t with 3 degrees of equal rank."""
    most = _t3_of(0.5 * math.erfc(_T3_REACH / math.sqrt(2.0)))
    # Even steps of the logarithm suit a tail that falls as a power.
    right = np.sinh(np.linspace(0.0, np.arcsinh(most), _T3_POINTS // 2 + 1))
    ranks = np.array([-NORMAL.inv_cdf(tail) for tail in _t3_tail(right)])
    return np.concatenate([-ranks[:0:-1], ranks]), np.concatenate([-right[:0:-1], right])


def _t3_tail(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chance that Student's t with 3 degrees of freedom exceeds numbers of at least 0."""
    with np.errstate(divide="ignore"):
        a = np.sqrt(3.0) / x
    small = np.minimum(a, _SERIES_BELOW)
    series = small**3 * (2 / 3 - small**2 * (4 / 5 - small**2 * (6 / 7 - small**2 * 8 / 9)))
    # arctan(a) - a / (1 + a**2), written so that x = 0 is no division by zero.
    exact = np.arctan(a) - np.sqrt(3.0) * x / (x * x + 3.0)
    return np.asarray(np.where(a < _SERIES_BELOW, series, exact) / np.pi)


def _t3_of(tail: float) -> float:
    """Return the number that t with 3 degrees exceeds with a tiny chance: its tail is a power."""
    return float(np.sqrt(3.0) * (2.0 / (3.0 * np.pi * tail)) ** (1 / 3))
