"""The screen: which of all the features of a layer exceed too often in one window.

One test a feature and window, and a bound on the share of false ones among those it names. It is not
a pager: bursts of like traffic move many features at once, so what it finds is counted for the
layer, and ``LayerScreen`` decides when that count is worth a word.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.chance import least_log_overdispersed_tail, log_overdispersed_tail
from sidecar.errors import InvalidInput, ShapeMismatch

_LEAST_EXCESS = 1e-4
"""Dispersion above 1 that every feature is given: the negative binomial needs some, and so little
changes no chance by a thousandth."""


@dataclass(frozen=True, slots=True)
class ScreenPolicy:
    """When features, and a layer of them, count as shifted.

    Attributes:
        false_discoveries: Bound on the expected share of false ones among the significant features of
            a window.
        factor: A feature counts only when its rate is so many times its baseline's: with many
            requests, small differences are significant and tell nothing.
        baseline_windows: Windows a dispersion must have been measured over; with fewer nothing is judged.
        layer_ratio: A window is loud when more than this share of its features is significant.
        layer_minimum: And at least so many.
        pending_windows: Loud windows in a row that make the layer fire: 5 minutes by default. Bursts that
            all features share are over by then, or nearly so.
        clear_ratio: A window is calm when at most this share of its features is significant.
        clear_windows: Calm windows in a row after which a firing layer resolves.
        resolved_windows: Windows a layer stays resolved.
        unsampled_windows: Windows in a row without a judged feature after which nothing is known.
    """

    false_discoveries: float = 0.05
    factor: float = 2.0
    baseline_windows: int = 360
    layer_ratio: float = 0.05
    layer_minimum: int = 5
    pending_windows: int = 30
    clear_ratio: float = 0.025
    clear_windows: int = 6
    resolved_windows: int = 6
    unsampled_windows: int = 6


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What the baseline says of the windows of ``n`` features.

    Attributes:
        rate: Share of requests that exceed, shape ``(n,)``; NaN: there is no baseline.
        dispersion: Variance of a window's count over that of independent requests, shape ``(n,)``;
            below 1 counts as 1; NaN: it was never measured.
        requests: Requests of a typical window of the baseline, above 0. Bursts multiply the rate, so
            the greater a window is, the more its count varies.
        windows: Over how many windows that was measured.
    """

    rate: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    requests: float
    windows: int


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """What one window says of ``n`` features.

    Attributes:
        log_p: Natural logarithm of the chance of so many exceeding requests or more, shape ``(n,)``;
            NaN where it was not computed: the feature could not have become significant.
        log_q: Natural logarithm of the least bound on false discoveries under which the feature would
            still be significant, shape ``(n,)``; NaN where it is not significant.
        significant: Shape ``(n,)``.
        judged: How many features had requests and an expectation.
    """

    log_p: NDArray[np.float64]
    log_q: NDArray[np.float64]
    significant: NDArray[np.bool_]
    judged: int


def screen(
    exceedances: NDArray[np.int64], requests: int, expected: Expected, policy: ScreenPolicy
) -> Screened:
    """Test every feature of one closed window.

    A count is compared with a negative binomial distribution of the baseline's rate and dispersion,
    and the significant ones are chosen by the step-up procedure over all judged features: of those
    named, a share of at most ``false_discoveries`` is expected to be false, when the windows of the
    baseline varied as this one does and features depend on each other positively or not at all.

    Args:
        exceedances: Requests that exceed, shape ``(n,)``.
        requests: Requests of the window.
        expected: Of the same features.
        policy: How sure, and how much.

    Raises:
        ShapeMismatch: The expectation is of another number of features.
        InvalidInput: A count is negative or above ``requests``, or the typical window is empty.

    Complexity:
        O(n) with a small constant: a tail costs 100 times a comparison, and is computed only for
        features that could become significant at all.

    Source:
        Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    _check(exceedances, requests, expected)
    known = np.isfinite(expected.dispersion) & (expected.rate > 0) & (expected.rate < 1)
    measured = requests > 0 and expected.windows >= policy.baseline_windows
    judged = int(known.sum()) if measured else 0
    log_p = np.full(len(exceedances), np.nan)
    significant = np.zeros(len(exceedances), np.bool_)
    loud = known & (exceedances >= np.maximum(1, requests * _loud(expected.rate, policy.factor)))
    places = np.flatnonzero(loud) if judged else np.empty(0, np.int64)
    # A count's first term is below its tail, and no tail above the share of features that are left
    # can be significant: dropping those lowers the share again.
    level = policy.false_discoveries / max(judged, 1)
    counts, mean, size = _parts(exceedances, requests, expected, places)
    least = least_log_overdispersed_tail(counts, mean, size)
    while len(places) and not (possible := least <= np.log(level * len(places))).all():
        places, least = places[possible], least[possible]
    counts, mean, size = _parts(exceedances, requests, expected, places)
    log_p[places] = log_overdispersed_tail(counts, mean, size)
    significant[places] = _step_up(log_p[places], level)
    log_q = np.full(len(exceedances), np.nan)
    log_q[significant] = _adjusted(log_p[significant], judged)
    return Screened(log_p, log_q, significant, judged)


def _check(exceedances: NDArray[np.int64], requests: int, expected: Expected) -> None:
    n = len(exceedances)
    if expected.rate.shape != (n,) or expected.dispersion.shape != (n,):
        raise ShapeMismatch(
            f"{n} counts, but an expectation of {len(expected.rate)} rates and "
            f"{len(expected.dispersion)} dispersions"
        )
    if not expected.requests > 0:
        raise InvalidInput(f"a typical window has {expected.requests!r} requests: need more than 0")
    if n and not 0 <= exceedances.min() <= exceedances.max() <= requests:
        raise InvalidInput(
            f"a window of {requests} requests has from {exceedances.min()} to {exceedances.max()} "
            "exceedances"
        )


def _loud(rate: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Return the rate that counts as ``factor`` times the baseline's.

    Where that is no rate, the share of requests that do *not* exceed must be so many times smaller.
    """
    return np.minimum(factor * rate, 1 - (1 - rate) / factor)


def _parts(
    exceedances: NDArray[np.int64], requests: int, expected: Expected, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the counts at some places, with mean and size of their negative binomials."""
    rate, dispersion = expected.rate[places], expected.dispersion[places]
    size = expected.requests * rate / np.maximum(dispersion - 1, _LEAST_EXCESS)
    return exceedances[places], requests * rate, size


def _step_up(log_p: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Return which p-values the step-up procedure rejects; ``level`` is that of the least of them."""
    ordered = np.sort(log_p)
    kept = np.flatnonzero(ordered <= np.log(level * np.arange(1, len(log_p) + 1)))
    return log_p <= ordered[kept[-1]] if len(kept) else np.zeros(len(log_p), np.bool_)


def _adjusted(log_p: NDArray[np.float64], judged: int) -> NDArray[np.float64]:
    """Return the logarithms of the q-values of all features that are significant together.

    A q-value is the least ``p * judged / rank`` from the feature's own rank on. Ranks beyond the
    significant ones cannot have a lesser one, or they would be significant too.
    """
    order = np.argsort(log_p)
    scaled = log_p[order] + np.log(judged / np.arange(1, len(log_p) + 1))
    found = np.empty_like(scaled)
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return found
