"""How often a policy fires on traffic in which nothing happened, by resampling the recorded traffic.

Blocks of consecutive windows keep whatever makes traffic bursty. The policy is run over every block
anew, with the windows before it to learn the level from, and blocks are then drawn with replacement,
the same times for all features, which so keep what they have in common.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import SpikePolicy
from sidecar.replay.running import Counts, Lanes, raised, warm_windows
from sidecar.replay.traffic import Stretch

BLOCK_SECONDS = 3600.0
"""Length of a block; longer where bursts are."""

BURSTS_PER_BLOCK = 10.0
"""A block is at least so many bursts long, so that cutting one in two is rare."""

LEAST_BLOCKS = 4
"""A recording is cut into at least so many, or is too short to say anything of its variety."""

OVERLAP = 6
"""A block begins at every so-manieth part of one."""

REPLICATES = 2000

_CONFIDENCE = 0.95
_SECONDS_PER_DAY = 86_400.0
_WIDTH = 40_000  # features of all blocks that are stepped at once: bounds the memory


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """What is to be expected if nothing that was recorded was worth a page.

    Attributes:
        factor: The policy's minimum factor; NaN where flags have their own.
        per_feature_day: Expected alarms of one feature in a day.
        low: Lower end of the 95 % interval of that.
        high: Upper end.
        alarms: Alarms in the recording, each window counted once.
        clumps: Of these, alarms that are farther apart than a burst lasts: those of one cause are one.
        feature_days: Feature-days of the recording in which an alarm could be raised.
        resampled_feature_days: Feature-days drawn from it.
        blocks: Different blocks.
        block_windows: Windows in each.
        flagged: Features tested over all layers.
    """

    factor: float
    per_feature_day: float
    low: float
    high: float
    alarms: int
    clumps: int
    feature_days: float
    resampled_feature_days: float
    blocks: int
    block_windows: int
    flagged: int

    def per_1000_days(self, rate: float) -> float:
        """Return what a rate of one feature is for all flagged ones in 1,000 days."""
        return 1000.0 * rate * self.flagged


@dataclass(frozen=True, slots=True)
class Cut:
    """How stretches are cut into blocks.

    Attributes:
        warm: Windows before a block from which the level is learned.
        block: Windows in a block, a multiple of ``OVERLAP``.
        apart: Windows between two alarms from which on they have two causes.
    """

    warm: int
    block: int
    apart: int = 6

    @classmethod
    def of(cls, parts: Sequence[Stretch], policy: SpikePolicy, burst_windows: float) -> "Cut":
        """Return how to cut; blocks of a short recording are shorter."""
        longest = max((len(part.at) for part in parts), default=0)
        seconds = parts[0].window_seconds if parts else 1.0
        warm = warm_windows(policy)
        bursts = 0.0 if math.isnan(burst_windows) else BURSTS_PER_BLOCK * burst_windows
        wanted = max(math.ceil(BLOCK_SECONDS / seconds), math.ceil(bursts), warm)
        block = min(wanted, (longest - warm) // LEAST_BLOCKS) // OVERLAP * OVERLAP
        least = policy.clear_windows
        return cls(
            warm,
            block,
            least if math.isnan(burst_windows) else max(least, math.ceil(burst_windows)),
        )

    @property
    def least(self) -> int:
        """Windows that a stretch needs to have blocks."""
        return self.warm + self.block

    @property
    def possible(self) -> bool:
        """Whether blocks are long enough to raise an alarm in, and to let it end."""
        return self.block >= self.warm


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What the policy does with the blocks of one stretch.

    Attributes:
        alarms: Alarms in each block, shape ``(blocks,)``.
        days: Feature-days in which one could be raised, shape ``(blocks,)``.
        times: Unix seconds of every alarm in those that cover the stretch once.
    """

    alarms: NDArray[np.float64]
    days: NDArray[np.float64]
    times: NDArray[np.float64]


def false_alarms(
    parts: Sequence[Stretch],
    cut: Cut,
    rng: np.random.Generator,
    *,
    factor: float | None = None,
    replicates: int = REPLICATES,
) -> FalseAlarms:
    """Return how often a policy fires on such traffic, if all of it is as it should be.

    The interval is that of the resampled rates, widened to what the number of alarms that were really
    seen allows: without one, up to 3.7 over the recorded feature-days, for a rate of which so much
    shows nothing in one of forty recordings.

    Args:
        parts: Stretches that are long enough for ``cut``, at least one.
        cut: How to cut them.
        rng: Draws the blocks.
        factor: Another minimum factor for every feature; None: that of the policy.
        replicates: Recordings drawn.
    """
    outcomes = [_played(part, *_terms(part, factor), cut) for part in parts]
    times = np.sort(np.concatenate([one.times for one in outcomes]))
    days = sum(float(one.days[::OVERLAP].sum()) for one in outcomes)
    rates, drawn = _resampled(parts, outcomes, cut, rng, replicates)
    clumps = int((np.diff(times, prepend=-math.inf) > cut.apart * parts[0].window_seconds).sum())
    each = len(times) / clumps if clumps else 1.0
    tail = (1.0 - _CONFIDENCE) / 2.0
    low, high = np.quantile(rates, [tail, 1.0 - tail]) if len(rates) else (0.0, 0.0)
    summed = sum(float(one.days.sum()) for one in outcomes)
    return FalseAlarms(
        factor=_common(parts) if factor is None else factor,
        per_feature_day=sum(float(one.alarms.sum()) for one in outcomes) / summed
        if summed
        else 0.0,
        low=min(float(low), _ratio(poisson_low(clumps, tail) * each, days)),
        high=max(float(high), _ratio(poisson_high(clumps, tail) * each, days)),
        alarms=len(times),
        clumps=clumps,
        feature_days=days,
        resampled_feature_days=drawn,
        blocks=sum(len(one.alarms) for one in outcomes),
        block_windows=cut.block,
        flagged=max(part.flagged for part in parts),
    )


def _ratio(count: float, days: float) -> float:
    return count / days if days else math.inf


def _common(parts: Sequence[Stretch]) -> float:
    factors = {float(one) for part in parts for one in part.terms.factor}
    return factors.pop() if len(factors) == 1 else math.nan


def _terms(part: Stretch, factor: float | None) -> tuple[SpikePolicy, NDArray[np.float64]]:
    spike, factors = part.terms.spike, part.terms.factor
    if factor is None:
        return spike, factors
    return replace(spike, factor=factor), np.full_like(factors, factor)


def _starts(windows: int, cut: Cut) -> NDArray[np.int64]:
    """Return the first window of each block, its warm-up included."""
    stride = max(1, cut.block // OVERLAP)
    return np.arange(0, windows - cut.least + 1, stride, dtype=np.int64)


def _played(part: Stretch, spike: SpikePolicy, factors: NDArray[np.float64], cut: Cut) -> _Outcome:
    n = part.compared.shape[1]
    starts = _starts(len(part.at), cut)
    alarms, days, times = [], [], []
    together = max(1, _WIDTH // max(n, 1) // OVERLAP) * OVERLAP
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        found, sampled = _run(part, spike, factors, some, cut)
        alarms.append(found.sum(axis=(0, 2)))
        days.append(sampled.sum(axis=(0, 2)) * part.window_seconds / _SECONDS_PER_DAY)
        offset, block, _ = np.nonzero(found[:, ::OVERLAP])
        times.append(part.at[some[::OVERLAP][block] + cut.warm + offset])
    return _Outcome(
        np.concatenate(alarms).astype(np.float64), np.concatenate(days), np.concatenate(times)
    )


def _run(
    part: Stretch,
    spike: SpikePolicy,
    factors: NDArray[np.float64],
    starts: NDArray[np.int64],
    cut: Cut,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Run the policy over blocks side by side.

    Returns:
        Whether each feature raised an alarm in each window of each block, shape
        ``(windows, blocks, n)``, and whether it could have.
    """
    shape = (len(starts), part.compared.shape[1])
    lanes = Lanes(
        spike=spike,
        flagged=part.flagged,
        baseline_rate=np.tile(part.terms.baseline_rate, len(starts)),
        baseline_share=np.tile(part.terms.baseline_share, len(starts)),
        factor=np.tile(factors, len(starts)),
        judged=np.tile(part.terms.judged, len(starts)),
    )

    def window(number: int) -> Counts:
        return part.compared[starts + number].ravel(), part.exceedances[starts + number].ravel()

    found = raised(lanes, window, cut.warm, cut.block).reshape(cut.block, *shape)
    counted = starts[None, :] + cut.warm + np.arange(cut.block)[:, None]  # (windows, blocks)
    return found, (part.compared[counted] > 0) & part.terms.judged


def _resampled(
    parts: Sequence[Stretch],
    outcomes: Sequence[_Outcome],
    cut: Cut,
    rng: np.random.Generator,
    replicates: int,
) -> tuple[NDArray[np.float64], float]:
    """Return the rate of each drawn recording, and the feature-days of all of them."""
    pieces = [max(1, math.ceil((len(part.at) - cut.warm) / cut.block)) for part in parts]
    # The same times for all: features of one traffic burst together.
    times = rng.random((replicates, max(pieces)))
    alarms, days = np.zeros(replicates), np.zeros(replicates)
    for outcome, count in zip(outcomes, pieces, strict=True):
        drawn = (times[:, :count] * len(outcome.alarms)).astype(np.int64)
        alarms += outcome.alarms[drawn].sum(axis=1)
        days += outcome.days[drawn].sum(axis=1)
    there = days > 0
    return alarms[there] / days[there], float(days.sum())


def poisson_high(count: int, tail: float) -> float:
    """Return the mean of which so few or fewer are seen with chance ``tail``.

    Example:
        >>> round(poisson_high(0, 0.025), 2), round(poisson_high(10, 0.025), 1)
        (3.69, 18.4)
    """
    return _bisected(lambda mean: _at_most(count, mean) - tail, 4.0 * count + 20.0)


def poisson_low(count: int, tail: float) -> float:
    """Return the mean of which so many or more are seen with chance ``tail``; 0 for none.

    Example:
        >>> poisson_low(0, 0.025), round(poisson_low(10, 0.025), 1)
        (0.0, 4.8)
    """
    if not count:
        return 0.0
    return _bisected(lambda mean: tail - (1.0 - _at_most(count - 1, mean)), float(count))


def _at_most(count: int, mean: float) -> float:
    if mean <= 0:
        return 1.0
    return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


def _bisected(falling: Callable[[float], float], top: float) -> float:
    """Return where a falling function is 0 between 0 and ``top``."""
    low, high = 0.0, top
    for _ in range(60):  # far beyond the precision of a float
        middle = (low + high) / 2.0
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
