"""Evidence that requests exceed more often than is tolerated: an e-detector, in logarithms.

Source:
    Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric framework for sequential change
    detection": a Shiryaev-Roberts sum of e-processes reaches a bound B after at least B steps in the
    mean, for any dependence, while the null hypothesis holds.
"""

import math

import numpy as np
from numpy.typing import NDArray

MULTIPLES = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Alternatives, as multiples of the tolerated rate; the evidence is their mean, so none is chosen."""

_TOP_RATE = 0.95
"""Greatest alternative: at 1 a single request that does not exceed would wipe out all evidence."""

_TOLERATED_TOP = 0.5
"""Greatest tolerated rate: twice as often must still be possible."""

_LEAST_RATE = 1e-4
"""No baseline says less of a rate: a baseline freezes after some 10,000 requests."""

_WINSOR = 3.0
"""Most a window teaches the level, in tolerated rates: a spike must not teach it at once."""

_TEN = math.log(10.0)


def tolerated_rate(
    baseline: NDArray[np.float64],
    level: NDArray[np.float64],
    factor: NDArray[np.float64],
    baseline_factor: float,
) -> NDArray[np.float64]:
    """Return the chance of exceeding that is tolerated; NaN without a baseline.

    It is at least ``baseline_factor * 1e-4`` and at most 1/2. A level of NaN does not count.
    """
    rate = np.fmax(baseline_factor * np.maximum(baseline, _LEAST_RATE), factor * level)
    return np.where(np.isnan(baseline), np.nan, np.minimum(_TOLERATED_TOP, rate))


def beyond_judging(baseline: NDArray[np.float64], baseline_factor: float) -> NDArray[np.bool_]:
    """Whether a feature exceeds so often in the baseline that no rate above it can be tolerated."""
    return baseline_factor * baseline > _TOLERATED_TOP


def grown(
    evidence: NDArray[np.float64],
    requests: NDArray[np.int64],
    exceedances: NDArray[np.int64],
    tolerated: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the evidence after one more window.

    Args:
        evidence: Natural logarithm of 1 + S of each alternative, shape ``(5, n)``; 0: none yet.
        requests: Shape ``(n,)``.
        exceedances: Shape ``(n,)``.
        tolerated: Shape ``(n,)``; more than 0 and at most 1/2.

    Returns:
        The same logarithm of ``S = (1 + S before) * likelihood ratio``, shape ``(5, n)``. Logarithms
        neither overflow nor underflow, whatever the number of requests.
    """
    multiples = np.array(MULTIPLES)[:, None]  # (5, 1)
    alternative = np.minimum(_TOP_RATE, multiples * tolerated)
    ratio = exceedances * np.log(alternative / tolerated)
    ratio = ratio + (requests - exceedances) * (np.log1p(-alternative) - np.log1p(-tolerated))
    return np.asarray(np.logaddexp(0.0, evidence + ratio))


def in_tens(evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log10 of 1 + the mean of S over the alternatives, shape ``(n,)``, at least 0."""
    joined = np.logaddexp.reduce(evidence, axis=0) - math.log(len(MULTIPLES))
    return np.asarray(np.maximum(joined, 0.0) / _TEN)  # rounding may leave a trace below 0


def winsorised(
    requests: NDArray[np.int64],
    exceedances: NDArray[np.int64],
    tolerated: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the rate of a window as the level will learn it, shape ``(n,)``; NaN unsampled."""
    share = np.where(requests > 0, exceedances, np.nan) / np.maximum(requests, 1)
    return np.minimum(share, _WINSOR * tolerated)
