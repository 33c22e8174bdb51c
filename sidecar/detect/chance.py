"""How improbable a count is: the exact upper tail of the binomial distribution, in logarithms."""

import math

import numpy as np
from numpy.typing import NDArray

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
"""Of the asymptotic series of log gamma; at 10 and above the rest is below 1e-13."""

_STIRLING_FROM = 10
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)

_TINY = 1e-300
"""Stands in for a zero denominator of the continued fraction (Lentz)."""

_ENOUGH = 1e-13
"""Relative change at which the continued fraction has converged."""

_MOST_TERMS = 100_000
"""Terms after which it is taken as it is; the count grows as the root of the number of requests."""


def log_tail(
    successes: NDArray[np.int64], trials: NDArray[np.int64], rate: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the natural logarithm of the chance of so many successes or more.

    Args:
        successes: Shape ``(n,)``, from 0 to ``trials``.
        trials: Shape ``(n,)``.
        rate: Chance of one success, shape ``(n,)``; NaN gives NaN.

    Returns:
        Shape ``(n,)``, at most 0; ``-inf`` where it cannot happen. Relative error of the chance below
        1e-8 up to a million trials.

    Complexity:
        O(sqrt(trials)) vectorised terms near the mean, a few dozen far from it.

    Source:
        P(X >= k) = I_p(k, n - k + 1), the regularised incomplete beta function, by its continued
        fraction: Abramowitz and Stegun 26.5.8, evaluated by the modified Lentz method.
    """
    answer = np.where(np.isnan(rate), np.nan, 0.0)  # no success at all is certain
    answer[(successes > 0) & (rate <= 0)] = -np.inf
    open_ = (successes > 0) & (rate > 0) & (rate < 1)
    k, n, p = successes[open_].astype(np.float64), trials[open_].astype(np.float64), rate[open_]
    a, b = k, n - k + 1
    # The fraction converges fast on the far side of the mean; take the complement on the near one.
    far = p < (a + 1) / (a + b + 2)
    x = np.where(far, p, 1 - p)
    log_x = np.where(far, np.log(p), np.log1p(-p))
    log_y = np.where(far, np.log1p(-p), np.log(p))
    a, b = np.where(far, a, b), np.where(far, b, a)
    front = a * log_x + b * log_y + _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) - np.log(a)
    tail = np.minimum(front + np.log(_fraction(a, b, x)), 0.0)
    with np.errstate(divide="ignore"):
        complement = np.log(-np.expm1(tail))
    answer[open_] = np.where(far, tail, complement)
    return answer


def _log_gamma(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log gamma of numbers of at least 1."""
    shift = np.zeros_like(z)
    grown = z.copy()
    # gamma(z + 1) = z * gamma(z) carries small arguments up to where the series is exact enough.
    for _ in range(_STIRLING_FROM):
        small = grown < _STIRLING_FROM
        shift = np.where(small, shift + np.log(grown), shift)
        grown = np.where(small, grown + 1, grown)
    series = sum(c / grown ** (2 * i + 1) for i, c in enumerate(_STIRLING))
    return (grown - 0.5) * np.log(grown) - grown + _HALF_LOG_TAU + series - shift


def _fraction(
    a: NDArray[np.float64], b: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the continued fraction of the incomplete beta function."""
    c = np.ones_like(x)
    d = 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = np.ones_like(x)
        for term in (even, odd):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            change = change * d * c
            value = value * d * c
        if np.all(np.abs(change - 1) < _ENOUGH):
            break
    return value


def _nonzero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(values) < _TINY, _TINY, values)
