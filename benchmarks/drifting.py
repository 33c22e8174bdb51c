"""Slow drift on simulated traffic: how many tickets are false, and after how many hours one is true."""

from itertools import islice
from typing import Any

import numpy as np

from benchmarks.detectors import WINDOWS_A_DAY
from sidecar.detect import DriftMemory, DriftPolicy, Places, Reference, drift_step
from sidecar.testing import Injection, Marginal, Scenario, Traffic

HOUR = 360
"""Windows."""

POLICY = DriftPolicy()

SMALL: dict[str, Any] = {"requests": 8, "tokens": 4}
"""Of a window: 11,520 values an hour. More would make hours more alike, and the test easier."""

FINE = 512
"""Places of equal shares that a baseline is told in, as the bank tells its bins."""


def ticket_hours(
    scenario: Scenario, features: int, days: float, seed: int, shift: float = 0.0
) -> np.ndarray:
    """Return when each feature first drifted, in hours after the learning; infinite where it did not.

    The baseline is the first day; the hours that show what is usual are the second one. A shift, in
    standard deviations of a value, begins after that.

    Returns:
        Shape ``(features,)``.
    """
    judged = 2 * WINDOWS_A_DAY
    injections = [Injection.shift(shift).during(judged)] if shift else []
    traffic = Traffic(scenario, features, seed=seed, injections=injections)
    windows = traffic.values(judged + round(days * WINDOWS_A_DAY) + 1, Marginal.NORMAL)
    flat = (values.reshape(-1, features) for values in windows)
    reference = _reference(np.concatenate(list(islice(flat, WINDOWS_A_DAY))))
    memory, found = DriftMemory.initial(features), np.full(features, np.inf)
    for number, values in enumerate(flat):
        memory, changes = drift_step(
            memory, _binned(reference, values), reference, POLICY, 10.0 * number
        )
        for change in changes:
            if change.drifting and np.isinf(found[change.index]):
                found[change.index] = (WINDOWS_A_DAY + number - judged) / HOUR
    return found


def _reference(values: np.ndarray) -> Reference:
    """Return the reference of a baseline's values, shape ``(k, n)``."""
    n = values.shape[1]
    edges = np.quantile(values, np.linspace(0, 1, FINE + 1), axis=0).T  # (n, FINE + 1)
    counts = np.full((n, FINE), len(values) // FINE, np.int64)
    features = np.repeat(np.arange(n), FINE)
    places = Places(features, edges[:, :-1].ravel(), edges[:, 1:].ravel(), counts.ravel())
    return Reference.of(places, values.std(axis=0))


def _binned(reference: Reference, values: np.ndarray) -> np.ndarray:
    """Return how many values of a window are in each bin, shape ``(n, 32)``."""
    rows, n = values.shape
    features, flat = np.tile(np.arange(n), rows), values.ravel().astype(np.float64)
    return reference.occupancy(Places(features, flat, flat, np.ones(rows * n, np.int64)))
