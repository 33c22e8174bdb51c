"""How recorded traffic behaves: whether rows of a request and requests of a minute exceed together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.features import LayerKey
from sidecar.replay.policies import Policy, Terms
from sidecar.store import Subject, WindowRecord

FEATURES = 200
"""Most features of a layer that are measured, evenly spread over the flagged ones."""

SHORT_LAG, SLOW_LAG = 1, 30
"""Windows apart: the next one, and five minutes at the usual length."""

_LEAST_EXCEEDANCES = 20
"""Of a feature with fewer nothing can be said of how they are spread."""

_FADED = 0.05
"""Correlation below which a burst is over."""

_LONGEST_BURST = 720
"""Windows: two hours at the usual length; slower changes are drift."""

_STANDARD_ERRORS = 3.0
"""A dispersion is beyond chance from so many on."""

Incident = tuple[float, float]
"""Unix seconds from and to which something really happened."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Windows of one layer that are about the same thing.

    Attributes:
        layer: Which layer.
        terms: The policy put to its ``n`` measured features.
        baseline: What the baseline was: requests, seconds.
        flagged: Features tested over all layers.
        of: Flagged features of the layer, of which ``n`` are measured.
        at: Unix seconds of each window's end, shape ``(T,)``.
        requests: Requests of the layer, shape ``(T,)``.
        rows: Rows of the layer, shape ``(T,)``.
        compared: Requests compared, shape ``(T, n)``.
        exceedances: Those beyond the used level, shape ``(T, n)``.
        beyond: Rows beyond the recorded threshold, shape ``(T, n)``.
        own: Requests beyond the recorded threshold, shape ``(T, n)``.
    """

    layer: LayerKey
    terms: Terms
    baseline: tuple[int, float]
    flagged: int
    of: int
    at: NDArray[np.float64]
    requests: NDArray[np.int64]
    rows: NDArray[np.int64]
    compared: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    beyond: NDArray[np.int64]
    own: NDArray[np.int64]

    @property
    def window_seconds(self) -> float:
        """Length of a window."""
        return self.terms.spike.window_seconds


def stretches(
    windows: Iterable[WindowRecord], policy: Policy, incidents: Sequence[Incident] = ()
) -> list[Stretch]:
    """Return the windows with a baseline as stretches, those of incidents left out.

    A stretch ends where the flags, the baseline or the capture change. A gap does not end it: the
    detector goes on after one, too.
    """
    found: list[_Draft] = []
    latest: dict[LayerKey, _Draft] = {}
    for window in windows:
        subject = window.subject
        if not np.isfinite(subject.baseline_rate).any():
            continue
        if any(start <= window.at <= end for start, end in incidents):
            continue
        draft = latest.get(subject.layer)
        if draft is None or not draft.takes(subject):
            draft = latest[subject.layer] = _Draft(subject, policy)
            found.append(draft)
        draft.add(window)
    return [draft.finished() for draft in found]


class _Draft:
    """A stretch that is being collected."""

    def __init__(self, subject: Subject, policy: Policy) -> None:
        n = len(subject)
        step = max(1, math.ceil(n / FEATURES))
        known = np.isfinite(subject.baseline_rate)
        self._places = np.flatnonzero(known)[::step]
        self._subject = subject
        self._terms = policy.put_to(subject)
        self._scalars: list[tuple[float, int, int, int]] = []
        self._columns: dict[str, list[NDArray[np.int64]]] = {
            name: [] for name in ("compared", "exceedances", "beyond", "own")
        }

    def takes(self, subject: Subject) -> bool:
        """Whether a subject's windows belong here."""
        mine = self._subject
        if subject is mine:
            return True
        same = (mine.baseline, mine.capture, mine.quantile, mine.window_seconds)
        theirs = (subject.baseline, subject.capture, subject.quantile, subject.window_seconds)
        return same == theirs and np.array_equal(mine.indices, subject.indices)

    def add(self, window: WindowRecord) -> None:
        """Take in a window."""
        self._scalars.append((window.at, window.requests, window.rows, window.flagged))
        for name, values in (
            ("compared", window.compared),
            ("exceedances", self._terms.exceedances(window)),
            ("beyond", window.rows_beyond),
            ("own", window.exceedances),
        ):
            self._columns[name].append(values[self._places].astype(np.int64))

    def finished(self) -> Stretch:
        """Return what was collected."""
        at, requests, rows, flagged = zip(*self._scalars, strict=True)
        columns = {name: np.array(values) for name, values in self._columns.items()}
        subject = self._subject
        return Stretch(
            layer=subject.layer,
            terms=self._terms.select(self._places),
            baseline=(subject.baseline_requests, subject.baseline_seconds),
            flagged=max(flagged),
            of=len(subject),
            at=np.array(at),
            requests=np.array(requests, np.int64),
            rows=np.array(rows, np.int64),
            **columns,
        )


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What was measured of a layer, or of all together; NaN where it cannot be said.

    Attributes:
        features: Features measured.
        windows: Windows, of each layer the sum of its stretches.
        days: Days that they cover.
        requests_per_window: Mean of the sampled windows.
        rows_per_request: Mean.
        beyond_per_request: Mean rows beyond the threshold of a request that exceeds.
        design_effect: Variance of the number of rows beyond, over what independent rows would have.
        dispersion: Variance of the exceeding requests of a window over the binomial one, mean over the
            features; 1: requests are independent.
        worst_dispersion: That of the feature where it is greatest.
        variation: Standard deviation of the true rate over its mean, chance taken out.
        next_window: Correlation of the true rate with that of the next window.
        five_minutes: Correlation with that of ``SLOW_LAG`` windows later.
        burst_windows: Windows for which a burst lasts: the sum of all such correlations; 1: none.
        baseline_requests: Requests of the baseline.
        baseline_seconds: Seconds it covers.
        baseline_error: Standard error of a baseline rate over the rate, median of the features.
        rate_ratio: Recorded rate over the baseline's, median of the features.
        rate: Share of requests that exceed, median of the features.
    """

    features: int
    windows: int
    days: float
    requests_per_window: float
    rows_per_request: float
    beyond_per_request: float
    design_effect: float
    dispersion: float
    worst_dispersion: float
    variation: float
    next_window: float
    five_minutes: float
    burst_windows: float
    baseline_requests: int
    baseline_seconds: float
    baseline_error: float
    rate_ratio: float
    rate: float


def behaviour(parts: Sequence[Stretch]) -> Behaviour:
    """Measure stretches together, at least one."""
    beyond, design = _clustering(parts)
    spread = _spread(parts)
    sampled = sum(int((part.requests > 0).sum()) for part in parts)
    requests = sum(int(part.requests.sum()) for part in parts)
    rates, ratios = _rates(parts)
    shortest = min(parts, key=lambda part: part.baseline[1])
    return Behaviour(
        features=len({(p.layer, i) for p in parts for i in range(p.compared.shape[1])}),
        windows=sum(len(part.at) for part in parts),
        days=sum(len(part.at) * part.window_seconds for part in parts) / 86_400.0,
        requests_per_window=requests / sampled if sampled else math.nan,
        rows_per_request=_ratio(sum(int(part.rows.sum()) for part in parts), requests),
        beyond_per_request=beyond,
        design_effect=design,
        dispersion=spread.dispersion,
        worst_dispersion=spread.worst,
        variation=spread.variation,
        next_window=spread.next_window,
        five_minutes=spread.five_minutes,
        burst_windows=spread.burst_windows,
        baseline_requests=shortest.baseline[0],
        baseline_seconds=shortest.baseline[1],
        baseline_error=_baseline_error(shortest, spread),
        rate_ratio=float(np.median(ratios)) if len(ratios) else math.nan,
        rate=float(np.median(rates)) if len(rates) else math.nan,
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _clustering(parts: Sequence[Stretch]) -> tuple[float, float]:
    """Return the mean rows beyond of an exceeding request, and the design effect of counting rows.

    The sum over ``Y`` exceeding requests of their numbers of rows, of mean ``m`` and variance ``s``
    each, has mean ``m Y`` and variance ``s Y``. Counting rows as if they were independent takes a
    variance of ``m`` for what has ``m**2 + s``.
    """
    rows = np.concatenate([part.beyond.ravel() for part in parts]).astype(np.float64)
    requests = np.concatenate([part.own.ravel() for part in parts]).astype(np.float64)
    there = (requests > 0) & (rows > 0)  # sparse layers count no rows
    if not there.any():
        return math.nan, math.nan
    total = requests[there].sum()
    mean = rows[there].sum() / total
    variance = float(((rows[there] - mean * requests[there]) ** 2).sum()) / total
    return float(mean), float(mean + variance / mean)


@dataclass(frozen=True, slots=True)
class _Spread:
    """How the exceeding requests are spread over the windows."""

    dispersion: float
    worst: float
    variation: float
    next_window: float
    five_minutes: float
    burst_windows: float


def _spread(parts: Sequence[Stretch]) -> _Spread:
    found = [one for part in parts for one in _centred(part)]
    if not found:
        return _Spread(*[math.nan] * 6)
    weights = np.array([len(one.excess) for one in found], np.float64)
    dispersions = np.array([one.dispersion for one in found])
    mean = float(np.average(dispersions, weights=weights))
    variance = sum(one.variance for one in found) / len(found)
    beyond_chance = mean - 1.0 > _STANDARD_ERRORS * math.sqrt(2.0 / weights.sum())
    if not beyond_chance or variance <= 0:
        worst = float(dispersions.max())
        return _Spread(mean, worst, math.sqrt(max(variance, 0.0)), math.nan, math.nan, 1.0)

    def correlation(lag: int) -> float:
        shares = [one.covariance(lag) for one in found if len(one.excess) > lag]
        # Both are estimates, and their ratio may come out above 1.
        return min(1.0, float(sum(shares) / len(found) / variance)) if shares else 0.0

    burst, shortest = 1.0, min(len(one.excess) for one in found)
    for lag in range(1, min(_LONGEST_BURST, shortest // 4)):
        share = correlation(lag)
        if share < _FADED:
            break
        burst += 2.0 * share
    return _Spread(
        dispersion=mean,
        worst=float(dispersions.max()),
        variation=math.sqrt(variance),
        next_window=correlation(SHORT_LAG),
        five_minutes=correlation(SLOW_LAG),
        burst_windows=burst,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Centred:
    """One feature: by how much each window's count is off its mean.

    Attributes:
        excess: Count minus requests times the mean rate, shape ``(T,)``.
        requests: Shape ``(T,)``.
        rate: The mean rate.
    """

    excess: NDArray[np.float64]
    requests: NDArray[np.float64]
    rate: float

    @property
    def dispersion(self) -> float:
        """Pearson's: the mean square over the binomial variance."""
        usual = self.requests * self.rate * (1.0 - self.rate)
        return float((self.excess**2 / usual).sum() / max(len(usual) - 1, 1))

    @property
    def variance(self) -> float:
        """Of the true rate, over its squared mean: what is left when chance is taken out."""
        chance = self.requests * self.rate * (1.0 - self.rate)
        squares = self.requests * (self.requests - 1.0)
        return float((self.excess**2 - chance).sum() / squares.sum()) / self.rate**2

    def covariance(self, lag: int) -> float:
        """Of the true rates of windows so far apart, over the squared mean; chance has none."""
        pairs = self.requests[:-lag] * self.requests[lag:]
        return float((self.excess[:-lag] * self.excess[lag:]).sum() / pairs.sum()) / self.rate**2


def _centred(part: Stretch) -> Iterator[_Centred]:
    """Yield the features of a stretch of which something can be said."""
    for column in range(part.compared.shape[1]):
        sampled = part.compared[:, column] > 1
        requests = part.compared[sampled, column].astype(np.float64)
        counts = part.exceedances[sampled, column].astype(np.float64)
        if counts.sum() < _LEAST_EXCEEDANCES or counts.sum() >= requests.sum():
            continue
        rate = float(counts.sum() / requests.sum())
        yield _Centred(counts - requests * rate, requests, rate)


def _rates(parts: Sequence[Stretch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each feature's rate, and that over the baseline's."""
    rates, ratios = [], []
    for part in parts:
        requests = part.compared.sum(axis=0)
        there = requests > 0
        rate = (part.exceedances.sum(axis=0)[there] + 0.5) / (requests[there] + 1.0)
        rates.append(rate)
        ratios.append(rate / np.maximum(part.terms.baseline_share[there], 1e-9))
    return np.concatenate(rates), np.concatenate(ratios)


def _baseline_error(part: Stretch, spread: _Spread) -> float:
    """Return the relative standard error of a baseline's rate: chance, and bursts that hit it or not."""
    requests, seconds = part.baseline
    rates = part.terms.baseline_share[part.terms.baseline_share > 0]
    windows = seconds / part.window_seconds
    if not requests or not len(rates) or windows <= 0 or math.isnan(spread.variation):
        return math.nan
    rate = float(np.median(rates))
    bursts = spread.variation**2 * spread.burst_windows / windows
    return math.sqrt((1.0 - rate) / (requests * rate) + bursts)


def baseline_windows(one: Behaviour, error: float) -> float:
    """Return the windows that a baseline takes until its rates are known to a relative error."""
    chance = (1.0 - one.rate) / (one.requests_per_window * one.rate)
    bursts = 0.0 if math.isnan(one.variation) else one.variation**2 * one.burst_windows
    return (chance + bursts) / error**2
