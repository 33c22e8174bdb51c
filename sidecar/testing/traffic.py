"""Simulated traffic of known hardness: what a detector says on it can be counted, not hoped.

A token's activation is a Gaussian number with three parts: the mix of traffic in its window, which
drifts as a first-order autoregressive process; an effect that all tokens of a request share; and
noise. ``Marginal`` turns it into a value. Given the first two parts tokens are independent, so how
many requests of a window exceed a quantile is a binomial count with a chance that can be computed:
``counts`` draws it exactly, without any token. ``values`` draws every token, slowly; both go through
the same windows for the same seed.

Source: the Gaussian copula with a request effect (a random-effects probit model); exact integration
over the request effect.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InvalidInput
from sidecar.testing.marginals import NORMAL, Marginal

_NODES = np.linspace(-8.0, 8.0, 161)
"""Where the request effect is integrated: for a Gaussian the trapezoid rule at this step is exact to
the last digits."""

_STEP = 0.01
"""Of the table over the window's mix; a chance read between two points is off by at most 2e-5 of it."""

_REACH = 7.0
"""Standard deviations of the window's mix that the table covers: one window in 4e11 is beyond."""

_FLOOR = 1e-300
"""Least chance that is kept as a logarithm; never met in a count."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """How requests depend on each other.

    Attributes:
        name: Shown in tables.
        correlation: Share of a token's variance that its request shares (intra-class correlation).
        memory: Correlation of the traffic mix of a window with that of the one before.
        drift: Standard deviation of the traffic mix, in units of a token's within a window; 0: the
            mix never changes.
        size_spread: Standard deviation of the logarithm of the number of requests; 0: always equal.
        requests: Requests a window, on average.
        tokens: Sampled tokens a request.
        shared: Share of the mix's variance that all features have in common.
    """

    name: str
    correlation: float = 0.0
    memory: float = 0.0
    drift: float = 0.0
    size_spread: float = 0.0
    requests: int = 64
    tokens: int = 16
    shared: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no scenario.

        Raises:
            InvalidInput: A number is out of its range.
        """
        for name, most in (("correlation", 0.999), ("memory", 0.9999), ("shared", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InvalidInput(f"{name} is {value!r}: use a number from 0 to {most:g}")
        for name in ("drift", "size_spread"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InvalidInput(f"{name} is {value!r}: use a finite number of at least 0")
        for name in ("requests", "tokens"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}: use at least 1")

    def of(self, requests: int) -> "Scenario":
        """Return the scenario with another number of requests a window."""
        return replace(self, requests=requests)

    @property
    def spread(self) -> float:
        """Standard deviation of a token over all windows."""
        return math.hypot(1.0, self.drift)


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("A"),
        Scenario("B", correlation=0.3),
        Scenario("C", correlation=0.3, memory=0.95, drift=0.15),
        Scenario("D", correlation=0.3, memory=0.95, drift=0.15, size_spread=0.5),
        Scenario("E", correlation=0.3, memory=0.99, drift=0.3, size_spread=0.5),
    )
}
"""From easy to hard: independent tokens (A), tokens that depend on their request (B), a traffic mix
that drifts over minutes (C), windows of unequal size as well (D), strong bursts of a quarter of an hour (E)."""


class Kind(StrEnum):
    """What an injection does to a token."""

    RAISED = "raised"
    SILENT = "silent"
    NONFINITE = "nonfinite"


@dataclass(frozen=True, slots=True)
class Injection:
    """Something that happens to some features for a while, from the first window on if not told otherwise.

    Attributes:
        kind: What happens to a token that is hit.
        share: Chance of a request to be hit.
        tokens: Chance of a token of such a request to be hit.
        height: What raises a token, in its standard deviations; for ``RAISED``.
        first: First window, counted from 0.
        windows: For how many; ``None``: to the end.
        features: Which; ``None``: all.
    """

    kind: Kind
    share: float = 1.0
    tokens: float = 1.0
    height: float = 0.0
    first: int = 0
    windows: int | None = None
    features: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot happen.

        Raises:
            InvalidInput: A share is none, or the first window is before the start.
        """
        for name in ("share", "tokens"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}: use a number from 0 to 1")
        if not math.isfinite(self.height):
            raise InvalidInput(f"height is {self.height!r}: use a finite number")
        if self.first < 0 or (self.windows is not None and self.windows < 1):
            raise InvalidInput(
                f"first is {self.first} and windows {self.windows}: use at least 0 and at least 1"
            )

    @classmethod
    def spike(cls, share: float, height: float = 4.0, tokens: float = 1.0) -> "Injection":
        """Return a spike: in a share of requests tokens are ``height`` standard deviations higher."""
        return cls(Kind.RAISED, share=share, height=height, tokens=tokens)

    @classmethod
    def shift(cls, height: float) -> "Injection":
        """Return a shift: every token is ``height`` standard deviations higher."""
        return cls(Kind.RAISED, height=height)

    @classmethod
    def silence(cls) -> "Injection":
        """Return a dead feature: every token is exactly zero."""
        return cls(Kind.SILENT)

    @classmethod
    def nonfinite(cls, share: float, tokens: float = 1.0) -> "Injection":
        """Return a share of requests in which tokens are NaN."""
        return cls(Kind.NONFINITE, share=share, tokens=tokens)

    def during(self, first: int, windows: int | None = None) -> "Injection":
        """Return the same from another window on, for so many windows."""
        return replace(self, first=first, windows=windows)

    def on(self, features: Sequence[int]) -> "Injection":
        """Return the same for some features only."""
        return replace(self, features=tuple(features))

    def active(self, window: int) -> bool:
        """Return whether it happens in a window."""
        return self.first <= window and (self.windows is None or window < self.first + self.windows)


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """One window, counted.

    Attributes:
        requests: Requests; the same for every feature.
        exceedances: Those with a token beyond the quantile, shape ``(n,)``, int64.
    """

    requests: int
    exceedances: NDArray[np.int64]


class Traffic:
    """Traffic of ``n`` features, which can be gone through again and again.

    Example:
        >>> spike = Injection.spike(share=1.0, height=9.0).during(first=1).on([2])
        >>> traffic = Traffic(SCENARIOS["B"], 3, seed=1, injections=[spike])
        >>> _, second = traffic.counts(2)
        >>> second.requests, int(second.exceedances[2])
        (64, 64)
    """

    def __init__(
        self,
        scenario: Scenario,
        features: int,
        *,
        level: float = 0.999,
        seed: int = 0,
        injections: Sequence[Injection] = (),
        thresholds: NDArray[np.float64] | None = None,
    ) -> None:
        """Describe the traffic; nothing is drawn yet.

        Args:
            scenario: How requests depend on each other.
            features: How many, ``n``.
            level: The quantile, over all traffic without injections, that a token exceeds.
            seed: Everything drawn follows from it; the windows' sizes and mix are the same for
                ``counts`` and ``values``.
            injections: What happens on top. No feature may have two at once.
            thresholds: What a token of each feature exceeds instead, as a value of ``Marginal.NORMAL``,
                shape ``(n,)``: that quantile as somebody has estimated it. Only ``counts`` looks at it.

        Raises:
            InvalidInput: The level is no quantile, a feature does not exist, two injections meet, or
                there is not one finite threshold a feature.
        """
        if not 0 < level < 1:
            raise InvalidInput(f"level is {level!r}: use a quantile between 0 and 1")
        if features < 1:
            raise InvalidInput(f"features is {features!r}: use at least 1")
        self.scenario, self.features, self.level, self.seed = scenario, features, level, seed
        self.injections = tuple(injections)
        _check(self.injections, features)
        self._beyond = _beyond(thresholds, features, level) * scenario.spread
        further = float(np.abs(self._beyond).max())
        self._base = _chances(scenario, level, 0.0, 0.0, further)
        self._hit = [
            _chances(scenario, level, each.tokens, each.height if _raises(each) else None, further)
            for each in self.injections
        ]

    def counts(self, windows: int) -> Iterator[Counted]:
        """Yield windows from the first on, each with exceeding requests of all features.

        The counts are drawn from their exact distribution, but for 2e-5 of the chance of a request
        to exceed, which is read from a table.

        Complexity:
            0.05 to 0.2 us a feature and window: 1,000 days of a feature take one or two seconds.
        """
        rng = self._stream(2)
        for window, (requests, mix) in enumerate(self._mixes(windows)):
            mix -= self._beyond  # noqa: PLW2901 - a higher threshold is as far from less of the mix
            chance = self._base(mix)
            for injection, hit in zip(self.injections, self._hit, strict=True):
                if injection.active(window):
                    where = _places(injection)
                    chance[where] += injection.share * (hit(mix[where]) - chance[where])
            yield Counted(requests, rng.binomial(requests, chance))

    def values(self, windows: int, marginal: Marginal) -> Iterator[NDArray[np.float32]]:
        """Yield windows from the first on, token by token: shape ``(requests, tokens, n)``.

        A token exceeds when its value is above ``marginal.quantile(level)``.

        Complexity:
            12 to 25 ns a token, of ``T3`` 80.
        """
        rng = self._stream(3)
        scenario = self.scenario
        for window, (requests, mix) in enumerate(self._mixes(windows)):
            shape = (requests, scenario.tokens, self.features)
            tokens = rng.standard_normal(shape)
            tokens *= math.sqrt(1 - scenario.correlation)
            effect = rng.standard_normal((requests, 1, self.features))
            tokens += math.sqrt(scenario.correlation) * effect + mix
            tokens /= scenario.spread
            struck = [
                (each, _places(each), _struck(each, rng, shape))
                for each in self.injections
                if each.active(window)
            ]
            for injection, where, hit in struck:
                if _raises(injection):
                    tokens[..., where] += injection.height * hit
            found = marginal.of(tokens)
            for injection, where, hit in struck:
                if not _raises(injection):
                    instead = 0.0 if injection.kind is Kind.SILENT else np.nan
                    found[..., where] = np.where(hit, instead, found[..., where])
            yield found.astype(np.float32)

    def _mixes(self, windows: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield the number of requests and the traffic mix, shape ``(n,)``, of each window."""
        scenario = self.scenario
        sizes, own = self._stream(0), self._stream(1)
        step = math.sqrt(1 - scenario.memory**2)
        parts = np.sqrt([1 - scenario.shared, scenario.shared])
        mix = own.standard_normal(self.features + 1)  # the last is what all have in common
        for _ in range(windows):
            if scenario.drift:
                yield self._size(sizes), scenario.drift * (parts[0] * mix[:-1] + parts[1] * mix[-1])
                mix = scenario.memory * mix + step * own.standard_normal(len(mix))
            else:
                yield self._size(sizes), np.zeros(self.features)

    def _size(self, rng: np.random.Generator) -> int:
        scenario = self.scenario
        if not scenario.size_spread:
            return scenario.requests
        away = scenario.size_spread * rng.standard_normal() - scenario.size_spread**2 / 2
        return max(1, round(scenario.requests * math.exp(away)))

    def _stream(self, number: int) -> np.random.Generator:
        """Return one of the independent random streams of the seed."""
        return np.random.default_rng(np.random.SeedSequence(self.seed).spawn(4)[number])


def _check(injections: Sequence[Injection], features: int) -> None:
    """Refuse features that do not exist, and injections that meet."""
    until = [math.inf if i.windows is None else i.first + i.windows for i in injections]
    for number, each in enumerate(injections):
        if each.features is not None and not all(0 <= j < features for j in each.features):
            raise InvalidInput(f"an injection names features {each.features} of {features}")
        for other in range(number):
            mine, theirs = each.features, injections[other].features
            apart = mine is not None and theirs is not None and not {*mine} & {*theirs}
            later = each.first >= until[other] or injections[other].first >= until[number]
            if not (apart or later):
                raise InvalidInput(f"injections {other} and {number} meet: part them in time")


def _beyond(
    thresholds: NDArray[np.float64] | None, features: int, level: float
) -> NDArray[np.float64]:
    """Return how much higher than the quantile each threshold is, shape ``(n,)``."""
    if thresholds is None:
        return np.zeros(features)
    if np.shape(thresholds) != (features,) or not np.isfinite(thresholds).all():
        raise InvalidInput(
            f"thresholds of shape {np.shape(thresholds)}: give {features} finite numbers"
        )
    return np.asarray(thresholds - NORMAL.inv_cdf(level), np.float64)


def _raises(injection: Injection) -> bool:
    return injection.kind is Kind.RAISED


def _places(injection: Injection) -> NDArray[np.int64] | slice:
    return slice(None) if injection.features is None else np.array(injection.features, np.int64)


def _struck(
    injection: Injection, rng: np.random.Generator, shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Return which tokens an injection hits: of some requests, some."""
    requests, tokens, features = shape
    n = features if injection.features is None else len(injection.features)
    request = rng.random((requests, 1, n)) < injection.share
    token = rng.random((requests, tokens, n)) < injection.tokens
    return np.asarray(request & token)


Chance = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _chances(
    scenario: Scenario, level: float, tokens: float, height: float | None, further: float
) -> Chance:
    """Return what gives, for the mix of a window, the chance of a request to exceed the level.

    Each token of it is hit with chance ``tokens``, and then higher by ``height``; ``None``: it never
    exceeds. The mix may be ``further`` away than it ever is.
    """
    reach = _REACH * scenario.drift + further
    points = np.linspace(-reach, reach, 2 * math.ceil(reach / _STEP) + 1)
    own = math.sqrt(1 - scenario.correlation)
    effect = math.sqrt(scenario.correlation) * _NODES
    threshold = NORMAL.inv_cdf(level) * scenario.spread
    away = (threshold - points[:, None] - effect) / own  # (points, nodes)
    exceeds = (1 - tokens) * _upper(away)
    if height is not None:
        exceeds += tokens * _upper(away - height * scenario.spread / own)
    # One of the tokens, given the request effect; log1p and expm1 keep tiny chances exact.
    any_ = -np.expm1(scenario.tokens * np.log1p(-np.minimum(exceeds, 1 - 2.0**-53)))
    weights = np.exp(-(_NODES**2) / 2)
    log_chance = np.log(np.maximum(any_ @ (weights / weights.sum()), _FLOOR))
    return lambda mix: np.exp(np.interp(mix, points, log_chance))


def _upper(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chance that a standard normal number exceeds each of ``x``."""
    scaled = (x / math.sqrt(2.0)).ravel().tolist()
    return 0.5 * np.array([math.erfc(each) for each in scaled]).reshape(x.shape)
