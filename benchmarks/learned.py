"""The spike test where thresholds and rates are learned as a daemon learns them by default.

The first half of a baseline is drawn value by value and kept in a real bank, which places thresholds on
it. The second half counts the requests that pass them, and the test is held to what follows from that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.detectors import (
    PATIENCE,
    POLICY,
    SETTLED,
    WINDOWS_A_DAY,
    SpikeTest,
    first_alarms,
)
from sidecar.config import StatisticsConfig
from sidecar.detect import SpikePolicy
from sidecar.features import LayerKey, LayerSample
from sidecar.monitor.banks import new_banks
from sidecar.monitor.limits import Limits
from sidecar.monitor.own_rates import OwnRates
from sidecar.monitor.views import Flag
from sidecar.stats import NUMPY, Distribution, Expectation, Kernels, Period
from sidecar.testing import Counted, Injection, Marginal, Scenario, Traffic

REQUESTS = (8, 16, 32, 64, 256)
ROWS = (1, 16)
"""Sampled rows a request: one, as of a layer that is reduced over positions, or several."""

_STATISTICS = StatisticsConfig()
_LAYER = LayerKey("simulated", "0" * 64, "layer")
_ENDLESS = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What a baseline of the default length says of ordinary traffic.

    Attributes:
        scenario: Of that traffic.
        seed: Everything drawn follows from it.
        policy: Its quantile is that of the thresholds.
        thresholds: Of each feature, shape ``(n,)``.
        rates: What the spike test is held to, shape ``(n,)``.
        shares: Share of requests that exceeded, shape ``(n,)``.
        windows: Windows that the baseline took.
    """

    scenario: Scenario
    seed: int
    policy: SpikePolicy
    thresholds: NDArray[np.float64]
    rates: NDArray[np.float64]
    shares: NDArray[np.float64]
    windows: int

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        features: int,
        seed: int,
        kernels: Kernels = NUMPY,
        policy: SpikePolicy = POLICY,
    ) -> Self:
        """Learn a baseline from traffic."""
        traffic = Traffic(scenario, features, level=policy.quantile, seed=seed)
        drawn = traffic.values(_ENDLESS, Marginal.NORMAL)
        learned, expected, first = _placed(drawn, features, kernels, policy.quantile)
        placed = expected.thresholds.astype(np.float64)
        traffic = Traffic(scenario, features, level=policy.quantile, seed=seed, thresholds=placed)
        rest = islice(traffic.counts(_ENDLESS), first, None)
        expected = _counted(rest, expected)
        limits = Limits.of(
            learned, expected, np.arange(features), [Flag()] * features, policy, OwnRates()
        )
        windows = first + expected.windows
        return cls(scenario, seed, policy, placed, limits.rates, limits.shares, windows)

    def alarms(self, windows: int, injections: Sequence[Injection] = ()) -> Iterable[np.ndarray]:
        """Yield, for each window after the baseline's, which features the spike test fires on."""
        traffic = Traffic(
            self.scenario,
            len(self.rates),
            level=self.policy.quantile,
            seed=self.seed,
            injections=[one.during(one.first + self.windows, one.windows) for one in injections],
            thresholds=self.thresholds,
        )
        test = SpikeTest(self.shares, self.policy, rate=self.rates)
        for one in islice(traffic.counts(self.windows + windows), self.windows, None):
            yield test(one.requests, one.exceedances)


def learned_alarms(
    scenario: Scenario, features: int, days: float, seed: int, kernels: Kernels = NUMPY
) -> float:
    """Return alarms a feature and day, on traffic without a spike."""
    learned = Learned.of(scenario, features, seed, kernels)
    alarms = sum(int(now.sum()) for now in learned.alarms(round(days * WINDOWS_A_DAY)))
    return alarms / (features * days)


def learned_delays(
    scenario: Scenario, spike: Injection, features: int, seed: int, kernels: Kernels = NUMPY
) -> np.ndarray:
    """Return windows until the spike test fires, shape ``(features,)``; infinite where it does not."""
    learned = Learned.of(scenario, features, seed, kernels)
    found = learned.alarms(SETTLED + PATIENCE, [spike.during(SETTLED)])
    return first_alarms(found, features)


def _placed(
    drawn: Iterable[NDArray[np.float32]], features: int, kernels: Kernels, quantile: float
) -> tuple[Distribution, Expectation, int]:
    """Return what a bank has learned of the first half, its thresholds, and the windows it took."""
    bank, _ = new_banks(_STATISTICS)
    bank.use(kernels)
    bank.register(_LAYER, features)
    requests = 0
    for number, window in enumerate(drawn, 1):
        many, rows, _ = window.shape
        index = np.repeat(np.arange(many, dtype=np.int32), rows)
        bank.update(LayerSample(_LAYER, window.reshape(-1, features), index, ()), 0.0)
        bank.close(_LAYER, 0.0)
        requests += many
        if _enough(requests, number):
            break
    bank.place_thresholds(_LAYER, quantile)
    expected = bank.expectation(_LAYER)
    if expected is None:
        raise AssertionError("thresholds were placed a line above")
    return bank.snapshot(_LAYER, Period.BASELINE), expected, number


def _counted(windows: Iterable[Counted], expected: Expectation) -> Expectation:
    """Return what the second half says."""
    for one in windows:
        expected = expected.plus(one.exceedances, one.requests)
        if _enough(expected.requests, expected.windows):
            break
    return expected


def _enough(requests: int, windows: int) -> bool:
    """Return whether this is half of what a baseline needs by default."""
    seconds = windows * _STATISTICS.window_seconds
    least = _STATISTICS.baseline_min_requests, _STATISTICS.baseline_min_seconds
    return 2 * requests >= least[0] and 2 * seconds >= least[1]
