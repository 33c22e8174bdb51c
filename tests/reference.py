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


def overdispersed_log_tail(successes: int, mean: float, size: float) -> float:
    """Return the logarithm of P(X >= successes) of a negative binomial, summed term by term."""
    log_q, log_rest = math.log(mean / (mean + size)), math.log(size / (mean + size))
    first, terms, k = -math.inf, [1.0], successes
    first = math.lgamma(k + size) - math.lgamma(size) - math.lgamma(k + 1)
    while terms[-1] > 1e-20 * sum(terms) or k < mean:
        terms.append(terms[-1] * math.exp(log_q) * (k + size) / (k + 1))
        k += 1
    return first + successes * log_q + size * log_rest + math.log(math.fsum(terms))


def step_up(chances: Sequence[float], share: float) -> list[bool]:
    """Return which of the chances are rejected: the most for which the greatest is small enough."""
    ordered = sorted(chances)
    kept = [p for i, p in enumerate(ordered, 1) if p <= share * i / len(ordered)]
    return [p <= max(kept, default=-1.0) for p in chances]


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
    waiting: list[float] = field(default_factory=list)
    level: float | None = None
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    onset: float | None = None
    calm: int = 0
    resolved: int = 0
    unsampled: int = 10**9

    def step(
        self,
        requests: int,
        exceedances: int,
        baseline: float,
        share: float,
        flagged: int,
        factor: float = 4.0,
    ) -> str:
        """Take in one window and return the state; ``baseline`` is the rate granted for its ``share``."""
        self.unsampled = 0 if requests else self.unsampled + 1
        before = self.state
        if math.isnan(baseline):
            self.windows, self.waiting, self.level = [], [], None
        elif requests:
            self.windows = [*self.windows, (requests, exceedances)][-self.policy.short_windows :]
            tolerated = self._tolerated(baseline, share, factor)
            self.waiting.append(min(exceedances / requests, 3 * tolerated))
        if self.unsampled >= self.policy.unsampled_windows:
            self.state, self.windows = "unknown", []
        if math.isnan(baseline) or self.policy.baseline_factor * baseline > 0.5:
            self.state, self.sums, self.onset = "unknown", [0.0] * 5, None
        elif requests:
            self._judge(requests, exceedances, baseline, tolerated, flagged)
        if self.state != before:
            self.calm = self.resolved = 0
        return self.state

    def _tolerated(self, baseline: float, share: float, factor: float) -> float:
        self.level = min(2 * share, 1.0) if self.level is None else self.level
        if len(self.waiting) >= self.policy.lag_windows:
            weight = 1 / self.policy.level_windows
            self.level = (1 - weight) * self.level + weight * self.waiting.pop(0)
        return min(0.5, max(self.policy.baseline_factor * max(baseline, 1e-4), factor * self.level))

    def _judge(
        self, requests: int, exceedances: int, baseline: float, tolerated: float, flagged: int
    ) -> None:
        """Grow the evidence where no alarm is held, and move on."""
        policy, alarm = self.policy, 10 ** self.policy.threshold_log10(flagged)
        total = self.evidence()
        if self.onset is None:
            for at, multiple in enumerate((1.5, 2, 3, 5, 10)):
                q = min(0.95, multiple * tolerated)
                hits, misses = q / tolerated, (1 - q) / (1 - tolerated)
                ratio = hits**exceedances * misses ** (requests - exceedances)
                self.sums[at] = (1 + self.sums[at]) * ratio
            total = self.evidence()
        self.calm = self.calm + 1 if self._is_calm(baseline) else 0
        self.resolved += 1
        if self.onset is not None and self.state == "unknown":
            self.state = "resolved" if self.calm else "firing"
        elif self.onset is not None:
            self.state = "resolved" if self.calm >= policy.clear_windows else "firing"
        elif 1 + total >= alarm:
            self.state, self.onset, self.sums = "firing", self.level, [0.0] * 5
        elif self.state == "resolved":
            self.state = "normal" if self.resolved >= policy.resolved_windows else "resolved"
        else:
            self.state = "pending" if 1 + total >= alarm**0.5 else "normal"
        if self.state == "resolved":
            self.onset = None

    def evidence(self) -> float:
        """Return the mean of the sums."""
        return math.fsum(self.sums) / 5

    def _is_calm(self, baseline: float) -> bool:
        requests, exceedances = (sum(column) for column in zip(*self.windows, strict=True))
        usual = max(baseline, self.onset or 0.0, 1e-4)
        return exceedances / requests < min(self.policy.clear_factor * usual, 0.5)


@dataclass
class Conditions:
    """The certain conditions of one feature, one window at a time, in plain Python."""

    ages: dict[str, int] = field(default_factory=dict)
    zeros: int = 0
    stuck: int = 0
    top: int = 0
    value: float = math.nan
    reported: list[float] = field(default_factory=list)

    def step(self, **seen: float) -> list[str]:
        """Take in one window and return the conditions that hold."""
        requests, rows = int(seen["requests"]), seen["rows"]
        if requests and rows:
            finite = seen["nonfinite"] == 0
            self.zeros = self.zeros + requests if finite and seen["zeros"] == rows else 0
            self.top = self.top + requests if finite and seen["minimum"] >= seen["most"] else 0
            self._stick(seen, requests, finite=finite)
            found = {
                "never_seen": self._never_seen(seen),
                "nonfinite": not finite,
                "silent": self.zeros >= self._needed(seen["nonzero"]),
                "saturated": max(self.stuck, self.top) >= self._needed(seen["varying"]),
            }
            self.ages = {c: 0 if now else self.ages.get(c, 99) + 1 for c, now in found.items()}
            if self.ages["never_seen"] < 6:
                self.reported += [
                    x for x in (seen["minimum"], seen["maximum"]) if not math.isnan(x)
                ]
        return [condition for condition, age in self.ages.items() if age < 6]

    def _stick(self, seen: dict[str, float], requests: int, *, finite: bool) -> None:
        constant = finite and seen["minimum"] == seen["maximum"] != 0
        if not constant or seen["maximum"] != self.value:
            self.stuck = 0
        self.value = seen["maximum"] if constant else math.nan
        self.stuck += requests if constant else 0

    def _never_seen(self, seen: dict[str, float]) -> bool:
        held = self.ages.get("never_seen", 99) < 6
        known = [] if held else self.reported
        least, most = min([seen["least"], *known]), max([seen["most"], *known])
        width = most - least
        above = seen["maximum"] > most + width or (most > 0 and seen["maximum"] > 2 * most)
        below = seen["minimum"] < least - width or (least < 0 and seen["minimum"] < 2 * least)
        return above or below

    def _needed(self, ratio: float) -> float:
        if not ratio:
            return math.inf
        return 64 if ratio == 1 else max(64, math.ceil(math.log(1e-9) / math.log1p(-ratio)))


def js_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance to base 2 of two histograms."""
    if not sum(one) or not sum(other):
        return math.nan
    total = 0.0
    for a, b in zip(one, other, strict=True):
        p, q = a / sum(one), b / sum(other)
        total += sum(x * math.log2(2 * x / (p + q)) for x in (p, q) if x)
    return math.sqrt(max(total / 2, 0.0))


def wasserstein(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the mean distance between two samples of equal size when each is put in order."""
    return math.fsum(abs(a - b) for a, b in zip(sorted(one), sorted(other), strict=True)) / len(one)


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
