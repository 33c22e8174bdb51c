"""Our detectors on simulated traffic, whose every alarm is known to be true or false.

False alarms are told per feature and day, delays in windows of 10 s; a delay of 1 is an alarm at the
end of the first window with a spike.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from sidecar.detect import (
    ConditionMemory,
    Expected,
    Extremes,
    LayerScreen,
    Observation,
    ScreenPolicy,
    SpikePolicy,
    State,
    conditions,
    initial,
    layer_step,
    screen,
    step,
)
from sidecar.testing import Counted, Injection, Scenario, Traffic

WINDOWS_A_DAY = 8640

BASELINE = 360
"""An hour of windows: the shortest baseline one would page on."""

SETTLED = 120
"""Windows between the baseline and a spike: the recent level has long forgotten the baseline."""

PATIENCE = 120
"""Windows after which a spike counts as missed: 20 minutes."""

SCREEN_BASELINE = 2000
"""Windows of the screen's: it compares with variances, which take longer to learn than rates."""

POLICY, SCREEN = SpikePolicy(), ScreenPolicy()


class SpikeTest:
    """The spike test over ``n`` features whose baseline is known, each as if it were flagged alone."""

    def __init__(
        self, share: np.ndarray, policy: SpikePolicy = POLICY, *, rate: np.ndarray | None = None
    ) -> None:
        """Take the share of requests that exceed in the baseline, and the rate granted for it.

        Args:
            share: Shape ``(n,)``.
            policy: When a feature counts as spiking.
            rate: Shape ``(n,)``; None: the share itself, as if that were known for certain.
        """
        self._share, self._rate, self._policy = share, share if rate is None else rate, policy
        self._state = initial(len(share), policy, 0.0)
        self._factor, self._judged = (
            np.full(len(share), policy.factor),
            np.ones(len(share), np.bool_),
        )

    def __call__(self, requests: int, exceedances: np.ndarray) -> np.ndarray:
        """Take in a window; return which features fire in it, shape ``(n,)``."""
        counts = np.full(len(exceedances), requests)
        seen = Observation(counts, exceedances, self._rate, self._share, self._factor, self._judged)
        self._state, changes = step(self._state, seen, self._policy, 0.0, flagged=1)
        fired = np.zeros(len(exceedances), np.bool_)
        fired[[change.index for change in changes if change.after is State.FIRING]] = True
        return fired


class ConditionTest:
    """The certain conditions of ``n`` features that are never zero, once their baseline is known."""

    def __init__(self, least: np.ndarray, most: np.ndarray) -> None:
        """Take the least and the greatest value of the baseline, shape ``(n,)`` each."""
        self._least, self._most = least.astype(np.float64), most.astype(np.float64)
        self._memory = ConditionMemory.initial(len(least))

    def __call__(self, requests: int, ordered: np.ndarray) -> np.ndarray:
        """Take in rising values, shape ``(n, values)``; return for which something began."""
        n, rows = ordered.shape
        zeros, ones = np.zeros(n, np.int64), np.ones(n)
        window = Extremes(
            requests=np.full(n, requests),
            rows=np.full(n, rows),
            zeros=zeros,
            nonfinite=zeros,
            minimum=ordered[:, 0].astype(np.float64),
            maximum=ordered[:, -1].astype(np.float64),
            baseline_minimum=self._least,
            baseline_maximum=self._most,
            baseline_nonzero_ratio=ones,
            baseline_varying_ratio=ones,
        )
        self._memory, changes = conditions(self._memory, window, 0.0)
        began = np.zeros(n, np.bool_)
        began[[change.index for change in changes if change.holds]] = True
        return began


def fired(traffic: Traffic, windows: int, policy: SpikePolicy = POLICY) -> Iterator[np.ndarray]:
    """Yield, for each window after the baseline's, which features the spike test fires on."""
    found = traffic.counts(BASELINE + windows)
    exceeding, requests = np.zeros(traffic.features), 0
    for window in islice(found, BASELINE):
        exceeding += window.exceedances
        requests += window.requests
    test = SpikeTest(baseline_rate(exceeding, requests), policy)
    for window in found:
        yield test(window.requests, window.exceedances)


def baseline_rate(exceeding: np.ndarray, requests: int) -> np.ndarray:
    """Return the rate that so many exceeding requests tell; never 0."""
    return (exceeding + 0.5) / (requests + 1)


def false_alarms(
    scenario: Scenario, features: int, days: float, seed: int, policy: SpikePolicy = POLICY
) -> float:
    """Return alarms of the spike test a feature and day, on traffic without a spike."""
    traffic = Traffic(scenario, features, level=policy.quantile, seed=seed)
    alarms = sum(int(now.sum()) for now in fired(traffic, round(days * WINDOWS_A_DAY), policy))
    return alarms / (features * days)


def delays(
    scenario: Scenario, spike: Injection, features: int, seed: int, policy: SpikePolicy = POLICY
) -> np.ndarray:
    """Return windows until the spike test fires, shape ``(features,)``; infinite where it does not."""
    injected = spike.during(BASELINE + SETTLED)
    traffic = Traffic(scenario, features, level=policy.quantile, seed=seed, injections=[injected])
    return first_alarms(fired(traffic, SETTLED + PATIENCE, policy), features)


def first_alarms(alarmed: Iterable[np.ndarray], features: int) -> np.ndarray:
    """Return in which window after ``SETTLED`` each feature alarmed first, from 1; infinite: in none."""
    found = np.full(features, np.inf)
    for number, now in enumerate(islice(alarmed, SETTLED, None), 1):
        found[now & np.isinf(found)] = number
    return found


def median_delay(found: np.ndarray) -> float:
    """Return the median of delays; one window more than the patience where most were missed."""
    return min(float(np.median(found)), PATIENCE + 1.0)


def screened(
    scenario: Scenario, injections: Sequence[Injection], features: int, windows: int, seed: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield, for each window after the baseline's, the significant features and how many were judged."""
    traffic = Traffic(scenario, features, seed=seed, injections=injections)
    found = traffic.counts(SCREEN_BASELINE + windows)
    expected = expectation(islice(found, SCREEN_BASELINE), features)
    for window in found:
        seen = screen(window.exceedances, window.requests, expected, SCREEN)
        yield seen.significant, seen.judged


def expectation(windows: Iterable[Counted], features: int) -> Expected:
    """Return what the windows of a baseline say: rate, Pearson dispersion, a typical window."""
    total, squares, requests, number = np.zeros(features), np.zeros(features), 0, 0
    for window in windows:
        total += window.exceedances
        squares += window.exceedances**2 / window.requests
        requests, number = requests + window.requests, number + 1
    rate = baseline_rate(total, requests)
    dispersion = (squares - total**2 / requests) / (rate * (number - 1))
    return Expected(rate, dispersion, requests / number, number)


def errors(
    scenario: Scenario, features: int, true: int, windows: int, seed: int
) -> tuple[float, float, float]:
    """Measure the screen with a spike in a fifth of the requests of some features.

    Returns:
        False share of the findings of a window with spikes, found share of the spikes, and share of
        windows without spikes that have a finding.
    """
    spike = Injection.spike(0.2).during(SCREEN_BASELINE + windows).on(range(true))
    found = [named for named, _ in screened(scenario, [spike], features, 2 * windows, seed)]
    quiet, spiked = np.array(found[:windows]), np.array(found[windows:])
    named = np.maximum(spiked.sum(axis=1), 1)
    false = float((spiked[:, true:].sum(axis=1) / named).mean())
    return false, float(spiked[:, :true].mean()), float(quiet.any(axis=1).mean())


def layer_alarms(
    scenario: Scenario, injections: Sequence[Injection], features: int, windows: int, seed: int
) -> Sequence[int]:
    """Return in which windows after the baseline's a layer fires, from 1."""
    layer, alarms = LayerScreen(), []
    found = screened(scenario, injections, features, windows, seed)
    for number, (significant, judged) in enumerate(found, 1):
        layer, change = layer_step(layer, int(significant.sum()), judged, SCREEN, 0.0)
        if change and change.after is State.FIRING:
            alarms.append(number)
    return alarms
