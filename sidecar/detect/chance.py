"""How improbable a count is: exact upper tails of the binomial and negative binomial, in logarithms."""

import math
from typing import Any

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
    answer[open_] = _log_beta(k, n - k + 1, p, 1 - p)
    return answer


def log_overdispersed_tail(
    successes: NDArray[np.int64], mean: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the natural logarithm of the chance of so many successes or more, of a bursty count.

    The count is Poisson with a rate that is itself drawn from a gamma distribution: a negative
    binomial of this mean and variance ``mean + mean**2 / size``.

    Args:
        successes: At least 1, shape ``(n,)``.
        mean: Above 0, shape ``(n,)``.
        size: Above 0, shape ``(n,)``; the greater, the closer to a Poisson count.

    Returns:
        Shape ``(n,)``, at most 0. Relative error of the chance below 1e-8 up to a size of a million.

    Source:
        P(X >= k) = I_q(k, size) with q = mean / (mean + size), as for ``log_tail``.
    """
    whole = mean + size
    return _log_beta(successes.astype(np.float64), size, mean / whole, size / whole)


def least_log_overdispersed_tail(
    successes: NDArray[np.int64], mean: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a number that ``log_overdispersed_tail`` is never below, at a tenth of its cost.

    It is the chance of exactly so many successes: the first term of the tail.
    """
    whole = mean + size
    return _log_front(successes.astype(np.float64), size, mean / whole, size / whole)


def _log_beta(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    x: NDArray[np.float64],
    rest: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the logarithm of the regularised incomplete beta function; ``rest`` is ``1 - x``."""
    # The fraction converges fast on the far side of the mean; take the complement on the near one.
    far = x < (a + 1) / (a + b + 2)
    a, b = np.where(far, a, b), np.where(far, b, a)
    x, rest = np.where(far, x, rest), np.where(far, rest, x)
    tail = np.minimum(_log_front(a, b, x, rest) + np.log(_fraction(a, b, x)), 0.0)
    with np.errstate(divide="ignore"):
        complement = np.log(-np.expm1(tail))
    return np.where(far, tail, complement)


def _log_front(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    x: NDArray[np.float64],
    rest: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the logarithm of the first term of the incomplete beta function's series."""
    log_beta = _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)
    return a * np.log(x) + b * np.log(rest) - log_beta - np.log(a)


def _log_gamma(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log gamma of numbers above 0."""
    # gamma(z + 1) = z * gamma(z) carries small arguments up to where the series is exact enough.
    small = z < _STIRLING_FROM
    least = np.where(small, z, 1.0)
    product = least.copy()
    for step in range(1, _STIRLING_FROM):
        product *= least + step
    grown = np.where(small, z + _STIRLING_FROM, z)
    inverse = 1 / grown
    square = inverse * inverse
    series = np.zeros_like(grown)
    for coefficient in reversed(_STIRLING):
        series = series * square + coefficient
    whole = (grown - 0.5) * np.log(grown) - grown + _HALF_LOG_TAU + series * inverse
    return np.where(small, whole - np.log(product), whole)


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


_DOUBT_DEVIATIONS = 6.361
"""Standard deviations beyond which a normal variable lies with a chance of 1e-10, see ``greatest_rate``."""


def greatest_rate(
    exceedances: NDArray[Any], requests: int | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the greatest rate that a count is still compatible with, but for a chance of 1e-10.

    A rate that was measured on a handful of exceeding requests may be several times too low, and whoever
    tolerates a multiple of it is wrong as often as that happens, whatever the traffic does later. The
    chance is what a pager can afford: were a thousand features flagged, and did one whose bound is wrong
    ring in every window of 10 s, then 1e-10 a feature would still be less than one alarm of them all in
    1,000 days.

    Args:
        exceedances: Requests that exceeded, shape ``(n,)``.
        requests: Requests looked at, of all features or of each.

    Returns:
        At most 1, shape ``(n,)``; for a count of 0 some 27 requests in all.

    Source:
        Garwood's interval of a Poisson mean by the approximation of Wilson and Hilferty 1931: never
        below, and above by 18 % for a count of 0, 4 % for 5 and less for more.
    """
    shape = np.asarray(exceedances, np.float64) + 1.0
    cube = 1.0 - 1.0 / (9.0 * shape) + _DOUBT_DEVIATIONS / (3.0 * np.sqrt(shape))
    return np.asarray(np.minimum(shape * cube**3 / np.maximum(requests, 1), 1.0))


def measured_share(
    exceedances: NDArray[Any], requests: int | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the share of requests that exceeded, never 0: ``(Y + 1/2) / (R + 1)``, shape ``(n,)``."""
    return np.asarray((exceedances + 0.5) / (np.asarray(requests) + 1.0), np.float64)


def measured_rate(
    exceedances: NDArray[Any], requests: int | NDArray[np.int64], baseline_factor: float
) -> NDArray[np.float64]:
    """Return the rate that a baseline's counts are taken for.

    Args:
        exceedances: Requests that exceeded, shape ``(n,)``.
        requests: Requests looked at, of all features or of each.
        baseline_factor: Of the rate that will be tolerated.

    Returns:
        The share that exceeded; where that is too little to be sure within
        ``baseline_factor``, so much that what will be tolerated is the ``greatest_rate``. Shape
        ``(n,)``, above 0 and at most 1.
    """
    granted = greatest_rate(exceedances, requests) / baseline_factor
    return np.maximum(measured_share(exceedances, requests), granted)
