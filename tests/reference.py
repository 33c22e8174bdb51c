"""Naive twins of the fast paths: slow, short, and right by inspection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sidecar.detect import SpikePolicy


def quantile(values: Sequence[float], level: float) -> float:
    """Return the ``ceil(level * n)``-th smallest value."""
    ordered = sorted(values)
    return ordered[max(math.ceil(level * len(ordered)) - 1, 0)]


def bin_of(value: float, centre: float, exponent: int, bits: int, octaves: int) -> int:
    """Return the log-linear bin of one finite value, from the definition."""
    with np.errstate(over="ignore"):
        away = float(np.float32(value) - np.float32(centre))
    half = octaves * 2**bits + 2
    if away >= 0:
        return half + _step(away, exponent, bits, octaves)
    # Bins are closed below, so on the negative side an edge belongs to the bin nearer the centre.
    nearer = float(np.nextafter(np.float32(-away), np.float32(0)))
    return half - 1 - _step(nearer, exponent, bits, octaves)


def _step(size: float, exponent: int, bits: int, octaves: int) -> int:
    if size < 2.0**exponent:
        return 0
    if size >= 2.0 ** (exponent + octaves):
        return octaves * 2**bits + 1
    mantissa, power = math.frexp(size)  # mantissa from 0.5 to 1
    return 1 + (power - 1 - exponent) * 2**bits + int((2 * mantissa - 1) * 2**bits)


def moments(values: Sequence[float]) -> tuple[int, float, float]:
    """Return the number, mean and population variance of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0, math.nan, math.nan
    mean = math.fsum(finite) / len(finite)
    return len(finite), mean, math.fsum((x - mean) ** 2 for x in finite) / len(finite)


def unit_moments(values: Sequence[float], centre: float, exponent: int) -> tuple[int, int]:
    """Return the sums of finite distances and of their squares, in units of a 256th near-zero width."""
    unit = 2.0 ** max(exponent - 8, -126)
    with np.errstate(over="ignore"):
        away = [float(np.float32(x) - np.float32(centre)) for x in values if math.isfinite(x)]
    whole = [round(max(-(2.0**28), min(x / unit, 2.0**28))) for x in away]
    return sum(whole), sum(number**2 for number in whole)


def request_exceedances(values: Sequence[float], requests: Sequence[int], threshold: float) -> int:
    """Return how many requests have a value above the threshold."""
    return len({request for x, request in zip(values, requests, strict=True) if x > threshold})


@lru_cache
def binomial_log_tail(successes: int, trials: int, rate: float) -> float:
    """Return the logarithm of P(X >= successes), summed in whole numbers over one denominator."""
    a, b = rate.as_integer_ratio()
    total = sum(
        math.comb(trials, i) * a**i * (b - a) ** (trials - i) for i in range(successes, trials + 1)
    )
    return math.log(total) - trials * math.log(b) if total else -math.inf


@dataclass
class SpikeMachine:
    """The spike test of one feature, one window at a time, in plain Python."""

    policy: SpikePolicy
    state: str = "unknown"
    windows: list[tuple[int, int]] = field(default_factory=list)
    suspect: int = 0
    calm: int = 0
    resolved: int = 0
    unsampled: int = 10**9

    def step(self, requests: int, exceedances: int, baseline: float) -> str:
        """Take in one window and return the state."""
        policy = self.policy
        self.unsampled = 0 if requests else self.unsampled + 1
        self.windows.append((requests, exceedances))
        if math.isnan(baseline):
            self.windows = []
        if math.isnan(baseline) or self.unsampled >= policy.unsampled_windows:
            self.state, self.suspect, self.calm = "unknown", 0, 0
            return self.state
        if requests:
            self.suspect = self.suspect + 1 if self._is_suspect(baseline) else 0
            self.calm = self.calm + 1 if self._is_calm(baseline) else 0
        is_suspect = bool(requests) and self.suspect > 0
        before, self.state = self.state, self._next(is_suspect, bool(requests))
        if before != self.state:
            self.calm = self.resolved = 0
        return self.state

    def _next(self, is_suspect: bool, sampled: bool) -> str:
        policy = self.policy
        if self.state == "firing":
            return "resolved" if self.calm >= policy.clear_windows else "firing"
        if self.state == "resolved":
            self.resolved += 1
            if is_suspect:
                return "firing"
            return "normal" if self.resolved >= policy.resolved_windows else "resolved"
        if self.state == "pending" and not sampled:
            return "pending"
        if self.state == "pending" and self.suspect > policy.pending_windows:
            return "firing"
        return "pending" if is_suspect else "normal"

    def _rate(self, windows: int) -> tuple[int, int, float]:
        kept = self.windows[-windows:]
        requests, exceedances = sum(r for r, _ in kept), sum(e for _, e in kept)
        return requests, exceedances, exceedances / requests if requests else math.nan

    def _is_suspect(self, baseline: float) -> bool:
        policy = self.policy
        requests, exceedances, short = self._rate(policy.short_windows)
        _, _, long = self._rate(policy.long_windows)
        _, _, newest = self._rate(1)
        return (
            newest >= required(baseline, policy.clear_factor)
            and short >= required(baseline, policy.factor)
            and long >= required(baseline, policy.long_factor)
            and exceedances >= policy.min_exceedances
            and binomial_log_tail(exceedances, requests, baseline)
            <= math.log(policy.false_alarm_probability)
        )

    def _is_calm(self, baseline: float) -> bool:
        _, exceedances, short = self._rate(self.policy.short_windows)
        low = not exceedances or short < required(baseline, self.policy.clear_factor)
        return low and not self._is_suspect(baseline)


def required(baseline: float, factor: float) -> float:
    """Return the rate that counts as ``factor`` times the baseline's."""
    return min(factor * baseline, 1 - (1 - baseline) / factor)


def sparse_counts(
    column: Sequence[float], exponent: int, octaves: int = 19
) -> tuple[int, int, int, int, float, list[int]]:
    """Return zeros, invalid values, sum, sum of squares, maximum and octave counts of one latent.

    The sums are whole numbers of the units in which sparse records count.
    """
    valid = [x for x in column if 0 < x < 2.0 ** (exponent + 25)]
    zeros = sum(x == 0 for x in column)
    total = sum(round(x * 2.0 ** (12 - exponent)) for x in valid)
    squares = sum(round(x * x * 2.0 ** (12 - 2 * exponent)) for x in valid)
    bins = [0] * (octaves + 2)
    for x in valid:
        bins[min(max(math.frexp(x)[1] - exponent, 0), octaves + 1)] += 1
    return (
        zeros,
        len(column) - zeros - len(valid),
        total,
        squares,
        max(valid, default=0.0),
        bins,
    )
