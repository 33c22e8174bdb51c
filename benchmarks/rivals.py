"""Detectors one would use instead, at their common defaults, all on the same drawn windows.

Each is shown the baseline's windows, then window after window, and says which features it alarms on.
They are given what they ask for: the window's mean in units of the baseline, or all of its values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from river import drift

MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: standard deviation over median absolute deviation."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One window of ``n`` features.

    Attributes:
        mean: Of all values, shape ``(n,)``.
        ordered: All values, rising, shape ``(n, values)``.
    """

    mean: np.ndarray
    ordered: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Drawn":
        """Return a window of values of shape ``(requests, tokens, n)``."""
        flat = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
        return cls(flat.mean(axis=1, dtype=np.float64), np.sort(flat, axis=1))


PSI_LIMIT = 0.25
"""From there on practitioners call a population shifted."""


class Rival(Protocol):
    """A detector of many features."""

    def __call__(self, window: Drawn) -> NDArray[Any]:
        """Take in a window; return which features alarm in it, shape ``(n,)``."""


def robust_z(baseline: Sequence[Drawn]) -> Rival:
    """Return: the mean is more than 3.5 robust standard deviations from the median of means.

    Source: Iglewicz and Hoaglin 1993, "How to detect and handle outliers".
    """
    means = np.array([window.mean for window in baseline])
    middle = np.median(means, axis=0)
    sigma = MAD_TO_SIGMA * np.median(np.abs(means - middle), axis=0)
    return _onsets(lambda window: np.abs(window.mean - middle) > 3.5 * sigma)


def ewma(baseline: Sequence[Drawn]) -> Rival:
    """Return: an exponentially weighted mean leaves its control limits; lambda 0.2, L 3.

    Source: NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.4.
    """
    standard, weight = _standard(baseline), 0.2
    limit = 3.0 * np.sqrt(weight / (2 - weight))
    level = np.zeros(len(baseline[0].mean))

    def work(window: Drawn) -> NDArray[Any]:
        level[:] += weight * (standard(window) - level)
        return np.abs(level) > limit

    return _onsets(work)


def cusum(baseline: Sequence[Drawn]) -> Rival:
    """Return: a two-sided cumulative sum passes its bound and starts over; k 0.5, h 5.

    Source: NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.3.
    """
    standard, slack, bound = _standard(baseline), 0.5, 5.0
    sums = np.zeros((2, len(baseline[0].mean)))

    def work(window: Drawn) -> NDArray[Any]:
        away = standard(window)
        sums[:] = np.maximum(0.0, sums + np.array([away, -away]) - slack)
        alarm: NDArray[Any] = np.any(sums > bound, axis=0)
        sums[:, alarm] = 0.0
        return alarm

    return work


def psi(baseline: Sequence[Drawn]) -> Rival:
    """Return: the population stability index over the baseline's deciles is above 0.25.

    Source: the rule of thumb of credit scoring; Siddiqi 2006, "Credit risk scorecards".
    """
    edges = np.quantile(_together(baseline), np.arange(1, 10) / 10, axis=1).T  # (n, 9)

    def work(window: Drawn) -> NDArray[Any]:
        pairs = zip(window.ordered, edges, strict=True)
        below = np.array([np.searchsorted(values, edge) for values, edge in pairs])
        total = window.ordered.shape[1]
        counts = np.diff(below, axis=1, prepend=0, append=total)
        share = np.maximum(counts / total, 1e-4)
        return ((share - 0.1) * np.log(share / 0.1)).sum(axis=1) > PSI_LIMIT

    return _onsets(work)


def kolmogorov_smirnov(baseline: Sequence[Drawn]) -> Rival:
    """Return: the two-sample test against 10,000 values of the baseline has p below 0.05.

    Source: the default of Alibi Detect's ``KSDrift`` and of Evidently for numbers.
    """
    rng = np.random.default_rng(0)
    reference = np.sort(rng.permuted(_together(baseline), axis=1)[:, :10_000], axis=1)
    size = reference.shape[1]

    def work(window: Drawn) -> NDArray[Any]:
        total = window.ordered.shape[1]
        limit = 1.358 * np.sqrt((total + size) / (total * size))  # asymptotic, of p = 0.05
        steps = np.arange(total + 1) / total
        pairs = zip(reference, window.ordered, strict=True)
        rank = np.array([np.searchsorted(known, values) for known, values in pairs]) / size
        apart = np.maximum((rank - steps[:-1]).max(axis=1), (steps[1:] - rank).max(axis=1))
        return apart > limit

    return _onsets(work)


def adwin(baseline: Sequence[Drawn]) -> Rival:
    """Return: river's ADWIN finds a change of the standardised mean; delta 0.002."""
    return _river(baseline, drift.ADWIN)


def page_hinkley(baseline: Sequence[Drawn]) -> Rival:
    """Return: river's Page-Hinkley does; delta 0.005, threshold 50, alpha 0.9999, both sides."""
    return _river(baseline, drift.PageHinkley)


RIVALS: dict[str, tuple[str, Callable[[Sequence[Drawn]], Rival]]] = {
    "robust_z": ("robust z of window means, 3.5", robust_z),
    "ewma": ("EWMA of window means, lambda 0.2, L 3", ewma),
    "cusum": ("CUSUM of window means, k 0.5, h 5", cusum),
    "psi": ("PSI over deciles, above 0.25", psi),
    "ks": ("Kolmogorov-Smirnov, p below 0.05", kolmogorov_smirnov),
    "adwin": ("river ADWIN of window means, delta 0.002", adwin),
    "page_hinkley": ("river PageHinkley of window means, defaults", page_hinkley),
}
"""Rivals by name: a label that tells the settings, and what makes one from the baseline's windows."""


def _river(baseline: Sequence[Drawn], kind: Callable[[], Any]) -> Rival:
    standard = _standard(baseline)
    detectors = [kind() for _ in baseline[0].mean]
    for window in baseline:
        _update(detectors, standard(window))
    return lambda window: _update(detectors, standard(window))


def _update(detectors: Sequence[Any], values: NDArray[Any]) -> NDArray[Any]:
    for detector, value in zip(detectors, values.tolist(), strict=True):
        detector.update(value)
    return np.array([detector.drift_detected for detector in detectors])


def _standard(baseline: Sequence[Drawn]) -> Callable[[Drawn], NDArray[Any]]:
    """Return what gives a window's mean in standard deviations of the baseline's means."""
    means = np.array([window.mean for window in baseline])
    middle, sigma = means.mean(axis=0), means.std(axis=0)
    return lambda window: (window.mean - middle) / sigma


def _together(baseline: Sequence[Drawn]) -> NDArray[Any]:
    return np.concatenate([window.ordered for window in baseline], axis=1)


def _onsets(alarmed: Callable[[Drawn], NDArray[Any]]) -> Rival:
    """Return a rival that alarms where a window is alarming and the one before it was not."""
    before: NDArray[Any] = np.zeros(1, np.bool_)

    def work(window: Drawn) -> NDArray[Any]:
        nonlocal before
        now = alarmed(window)
        onset = now & ~before
        before = now
        return onset

    return work
