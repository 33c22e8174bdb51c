"""Slow drift: how far an hour's distribution is from the baseline's and from yesterday's same hour.

A ticket and not a page: distances of distributions are noisy under bursts and blind for spikes, so they
are compared hour by hour, with what the first hours after the baseline were apart from it.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.saved import plain, real, whole
from sidecar.errors import CorruptState, ShapeMismatch

_VERSION = 1

BINS = 32
"""Bins of equal shares of the baseline: enough for a shift of a tenth of a standard deviation to show."""

HOURS = 24
"""Hours that are remembered: yesterday's same one is the oldest of them."""

_HOUR_SECONDS = 3600.0
_MOST = np.iinfo(np.uint32).max
_COUNTS = ("learned", "above", "below")
_DISTANCES = ("js", "wasserstein", "js_yesterday", "usual_js", "usual_wasserstein")


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """When a feature counts as drifting.

    Attributes:
        least_values: Values an hour needs; with fewer the distance is mostly chance (0.08 at 1,000).
        js_floor: Jensen-Shannon distance that is never drift.
        wasserstein_floor: Wasserstein distance that is never drift, in standard deviations.
        learning_hours: Hours after the baseline that only show how far apart ordinary hours are.
        margin: Times the greatest distance of those from which an hour is too far.
        clear_ratio: Share of that below which an hour is near again.
        hours: Hours in a row that are too far, or near again, before it counts.
    """

    least_values: int = 1000
    js_floor: float = 0.1
    wasserstein_floor: float = 0.1
    learning_hours: int = 24
    margin: float = 1.5
    clear_ratio: float = 0.8
    hours: int = 2


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The baselines of ``n`` features, in bins of equal shares.

    Attributes:
        edges: Least value of each bin but the first, never decreasing, shape ``(n, 31)``; infinite
            where there is no such bin.
        counts: The baseline's values in each bin, shape ``(n, 32)``; 0 without a baseline.
        values: Where the values of each bin are, never decreasing, shape ``(n, 32)``.
        sigma: Standard deviation of the baseline, shape ``(n,)``; NaN without one.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    values: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @classmethod
    def of(cls, baseline: "Places", sigma: NDArray[np.float64]) -> Self:
        """Divide baselines into bins, which begin where a place of the baseline does.

        Args:
            baseline: What the baselines hold.
            sigma: Their standard deviations, shape ``(n,)``.
        """
        n = len(sigma)
        order = np.lexsort((baseline.low, baseline.features))
        features, low, counts = (
            each[order] for each in (baseline.features, baseline.low, baseline.counts)
        )
        before = np.cumsum(counts) - counts
        first = np.searchsorted(features, features)  # of each place the first one of its feature
        # Places that begin at the same value, as a zero and its neighbour do, cannot be divided.
        again = (np.diff(features, prepend=-1) == 0) & (np.diff(low, prepend=np.nan) == 0)
        before = before[np.maximum.accumulate(np.where(again, 0, np.arange(len(low))))]
        share = (before - before[first]) / np.bincount(features, counts, n)[features]
        wanted = np.minimum((share * BINS).astype(np.int64), BINS - 1)
        # Places are in order of feature and bin, so the first one of each is found by bisection.
        key = np.arange(n)[:, None] * BINS + np.arange(1, BINS)  # (n, 31)
        at = np.searchsorted(features * BINS + wanted, key)
        none = at >= np.searchsorted(features, np.arange(n), side="right")[:, None]
        edges = np.where(none, np.inf, np.append(low, np.inf)[at])
        return cls._filled(edges, baseline, sigma)

    @classmethod
    def _filled(
        cls, edges: NDArray[np.float64], baseline: "Places", sigma: NDArray[np.float64]
    ) -> Self:
        middle = baseline.middles()
        bins = _bins(edges, baseline.features, middle)
        held = _summed(baseline.features, bins, baseline.counts, len(edges))
        sums = _summed(baseline.features, bins, baseline.counts * middle, len(edges))
        values = np.where(held > 0, sums / np.maximum(held, 1), np.inf)
        values = np.where(held > 0, values, values.min(axis=1, keepdims=True))
        values[held.sum(axis=1) == 0] = np.nan
        # A bin without values lies where the one before it does: then it adds no distance.
        return cls(edges, held.astype(np.int64), np.maximum.accumulate(values, axis=1), sigma)

    def occupancy(self, window: "Places") -> NDArray[np.int64]:
        """Return how many values of a window are in each bin, shape ``(n, 32)``.

        Complexity:
            Five look-ups a place.
        """
        bins = _bins(self.edges, window.features, window.middles())
        return _summed(window.features, bins, window.counts, len(self.edges)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where the values of many features are, as one flat list.

    Attributes:
        features: Which feature, shape ``(k,)``.
        low: Least value there, shape ``(k,)``.
        high: Greatest value there, shape ``(k,)``.
        counts: How many values, shape ``(k,)``.
    """

    features: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]

    def middles(self) -> NDArray[np.float64]:
        """Return the middle of each place, shape ``(k,)``."""
        return self.low + (self.high - self.low) / 2


def _bins(
    edges: NDArray[np.float64], features: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the bin of each value: how many edges are not above it, by bisection."""
    found = np.zeros(len(values), np.int64)
    step = BINS // 2
    while step:
        found += step * (edges[features, found + step - 1] <= values)
        step //= 2
    return found


def _summed(
    features: NDArray[np.int64], bins: NDArray[np.int64], weights: NDArray[Any], n: int
) -> NDArray[np.float64]:
    """Return the sum of the weights in each bin, shape ``(n, 32)``; whole ones exact to 2**53."""
    flat = np.bincount(features * BINS + bins, weights, n * BINS)
    return flat.astype(np.float64).reshape(n, BINS)


@dataclass(frozen=True, slots=True)
class DriftChange:
    """One feature that began or ceased to drift.

    Attributes:
        index: Which of the features.
        drifting: Whether it began.
        at: Unix seconds.
        reason: Why, in words, with the numbers.
    """

    index: int
    drifting: bool
    at: float
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class DriftMemory:
    """What is remembered of ``n`` features.

    Attributes:
        hour: The open hour, in hours since 1970; -1: none yet.
        stamps: Which hours ``ring`` holds, shape ``(24,)``; -1: none.
        open: Values in each bin in the open hour, shape ``(n, 32)``, uint32.
        ring: The same of the last closed hours, hour ``h`` at ``h % 24``, shape ``(24, n, 32)``.
        learned: Hours that have shown what is usual, shape ``(n,)``.
        above: Hours in a row that were too far, shape ``(n,)``.
        below: Hours in a row that were near, shape ``(n,)``.
        js: Jensen-Shannon distance of the newest closed hour from the baseline, from 0 to 1, shape
            ``(n,)``; NaN where the hour had too few values, or there is no baseline.
        wasserstein: Its Wasserstein distance from the baseline in standard deviations, likewise.
        js_yesterday: Its Jensen-Shannon distance from the same hour of the day before, likewise.
        usual_js: Greatest ``js`` of the hours that were learned, shape ``(n,)``.
        usual_wasserstein: Greatest ``wasserstein`` of those.
        drifting: Whether it drifts, shape ``(n,)``.
    """

    hour: int
    stamps: NDArray[np.int64]
    open: NDArray[np.uint32]
    ring: NDArray[np.uint32]
    learned: NDArray[np.int64]
    above: NDArray[np.int64]
    below: NDArray[np.int64]
    js: NDArray[np.float64]
    wasserstein: NDArray[np.float64]
    js_yesterday: NDArray[np.float64]
    usual_js: NDArray[np.float64]
    usual_wasserstein: NDArray[np.float64]
    drifting: NDArray[np.bool_]

    @classmethod
    def initial(cls, n: int) -> Self:
        """Return the memory of ``n`` features of which nothing was seen."""
        return cls(
            hour=-1,
            stamps=np.full(HOURS, -1, np.int64),
            open=np.zeros((n, BINS), np.uint32),
            ring=np.zeros((HOURS, n, BINS), np.uint32),
            drifting=np.zeros(n, np.bool_),
            **_nothing(n),
        )

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.drifting)

    def resized(self, keep: NDArray[np.int64]) -> Self:
        """Return the memory of another set of features.

        Args:
            keep: For each feature of the new set its place in the old one, or -1 where it is new.

        Raises:
            ShapeMismatch: A place is not in the old set.
        """
        keep = np.asarray(keep, np.int64)
        if len(keep) and not -1 <= keep.min() <= keep.max() < len(self):
            raise ShapeMismatch(f"places {keep.min()} to {keep.max()} of {len(self)} features")
        fresh = self.initial(1)
        axes = {"ring": 1} | dict.fromkeys(("open", "drifting", *_COUNTS, *_DISTANCES), 0)
        joined: dict[str, Any] = {}
        for name, axis in axes.items():
            both = np.concatenate([getattr(self, name), getattr(fresh, name)], axis)
            joined[name] = both.take(keep, axis, mode="wrap")  # -1 is the fresh one
        return replace(self, **joined)

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as JSON-able values for ``from_dict``; the counts are compressed."""
        return {
            "version": _VERSION,
            "hour": self.hour,
            "stamps": plain(self.stamps),
            "drifting": plain(self.drifting),
            **{name: plain(getattr(self, name)) for name in (*_COUNTS, *_DISTANCES)},
            **{name: _packed(getattr(self, name)) for name in ("open", "ring")},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return what ``to_dict`` saw.

        Raises:
            CorruptState: It is another version, or not what ``to_dict`` returns.
        """
        try:
            if saved["version"] != _VERSION:
                raise CorruptState(f"drift of version {saved['version']!r}, need {_VERSION}")
            n = len(saved["drifting"])
            found = cls(
                hour=int(saved["hour"]),
                stamps=whole(saved["stamps"], HOURS),
                open=_unpacked(saved["open"], (n, BINS)),
                ring=_unpacked(saved["ring"], (HOURS, n, BINS)),
                drifting=np.array([bool(one) for one in saved["drifting"]], np.bool_),
                **{name: whole(saved[name], n) for name in _COUNTS},
                **{name: real(saved[name], n) for name in _DISTANCES},
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            binascii.Error,
            zlib.error,
        ) as error:
            raise CorruptState(f"drift cannot be read back: {error!r}") from error
        shapes = {getattr(found, name).shape for name in (*_COUNTS, *_DISTANCES)}
        if shapes != {(n,)} or found.stamps.shape != (HOURS,):
            raise CorruptState(f"drift of {n} features has arrays of other shapes")
        return found


def _nothing(n: int) -> dict[str, Any]:
    counts = {name: np.zeros(n, np.int64) for name in _COUNTS}
    return counts | {name: np.full(n, np.nan) for name in _DISTANCES}


def _packed(counts: NDArray[np.uint32]) -> str:
    raw = np.ascontiguousarray(counts, "<u4").tobytes()
    return base64.b64encode(zlib.compress(raw, 1)).decode()


def _unpacked(text: str, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Return the counts; a file cannot make this larger than the counts it must hold."""
    size = 4 * int(np.prod(shape))
    raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes of counts, need {size}")
    return np.frombuffer(raw, "<u4").astype(np.uint32).reshape(shape)


def drift_step(
    memory: DriftMemory,
    occupancy: NDArray[np.int64],
    reference: Reference,
    policy: DriftPolicy,
    now: float,
) -> tuple[DriftMemory, tuple[DriftChange, ...]]:
    """Take in one closed window; where it is the first one of an hour, judge the hour before.

    An hour is too far when its Jensen-Shannon or its Wasserstein distance from the baseline is above
    ``margin`` times the greatest of the ``learning_hours`` after the baseline, and above the floor.
    ``hours`` such hours in a row make a feature drift; as many in a row with both distances below
    ``clear_ratio`` of that end it. The distance from yesterday's same hour says whether it is new. Hours
    with fewer than ``least_values`` are not judged, and break nothing. A clock that is put back ends the
    hour; no hour is compared with one that was not 24 hours before it.

    Args:
        memory: As returned by the last call, or ``DriftMemory.initial``.
        occupancy: Values of the window in the reference's bins, shape ``(n, 32)``.
        reference: The baselines of the same features. Others need a new memory.
        policy: When a feature counts as drifting.
        now: Unix seconds of the window's end.

    Returns:
        The new memory and what began or ended, in the order of the features; ``memory`` is not changed.

    Raises:
        ShapeMismatch: The window or the reference is of another number of features.
    """
    shapes = (occupancy.shape, reference.counts.shape)
    if shapes != ((len(memory), BINS),) * 2:
        raise ShapeMismatch(
            f"a window of {shapes[0]} and a reference of {shapes[1]} bins, need "
            f"({len(memory)}, {BINS}): resize the memory first"
        )
    hour = int(now // _HOUR_SECONDS)
    changes: tuple[DriftChange, ...] = ()
    if memory.hour not in (hour, -1):
        memory, changes = _judged(memory, reference, policy, now)
    counted = np.minimum(memory.open.astype(np.int64) + occupancy, _MOST).astype(np.uint32)
    return replace(memory, hour=hour, open=counted), changes


def _judged(
    memory: DriftMemory, reference: Reference, policy: DriftPolicy, now: float
) -> tuple[DriftMemory, tuple[DriftChange, ...]]:
    """Close the open hour: compare it, and put it into the ring."""
    slot = memory.hour % HOURS
    counts = np.where(_enough(memory.open, policy)[:, None], memory.open, 0)
    js = js_distance(counts, reference.counts)
    far = wasserstein_distance(counts, reference)
    known = memory.stamps[slot] == memory.hour - HOURS
    before = np.where(_enough(memory.ring[slot], policy)[:, None] & known, memory.ring[slot], 0)
    judged = ~np.isnan(js)
    learning = judged & (memory.learned < policy.learning_hours)
    ready = judged & ~learning
    js_limit, far_limit = limits(memory, policy)
    above = ready & ((js > js_limit) | (far > far_limit))
    # A constant baseline has no standard deviation: then only the other distance counts.
    near = ready & (js < policy.clear_ratio * js_limit) & ~(far >= policy.clear_ratio * far_limit)
    above_run = np.where(ready, np.where(above, memory.above + 1, 0), memory.above)
    below_run = np.where(ready, np.where(near, memory.below + 1, 0), memory.below)
    drifting = np.where(memory.drifting, below_run < policy.hours, above_run >= policy.hours)
    ring, stamps = memory.ring.copy(), memory.stamps.copy()
    ring[slot], stamps[slot] = memory.open, memory.hour
    after = DriftMemory(
        hour=memory.hour,
        stamps=stamps,
        open=np.zeros_like(memory.open),
        ring=ring,
        learned=memory.learned + learning,
        above=above_run,
        below=below_run,
        js=js,
        wasserstein=far,
        js_yesterday=js_distance(counts, before),
        usual_js=np.where(learning, np.fmax(memory.usual_js, js), memory.usual_js),
        usual_wasserstein=np.where(
            learning, np.fmax(memory.usual_wasserstein, far), memory.usual_wasserstein
        ),
        drifting=drifting,
    )
    changed = np.flatnonzero(drifting != memory.drifting)
    return after, tuple(_told(int(i), after, policy, now) for i in changed)


def _enough(counts: NDArray[np.uint32], policy: DriftPolicy) -> NDArray[np.bool_]:
    return np.asarray(counts.sum(axis=1, dtype=np.int64) >= policy.least_values)


def limits(
    memory: DriftMemory, policy: DriftPolicy
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two distances from which an hour is too far, shape ``(n,)`` each."""
    return (
        np.fmax(policy.js_floor, policy.margin * memory.usual_js),
        np.fmax(policy.wasserstein_floor, policy.margin * memory.usual_wasserstein),
    )


def js_distance(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Jensen-Shannon distance of two histograms, from 0 (equal) to 1 (nothing in common).

    Args:
        one: Counts, shape ``(n, bins)``.
        other: Counts in the same bins.

    Returns:
        Shape ``(n,)``: the root of the divergence to base 2; NaN where either is empty.

    Source:
        Endres and Schindelin 2003, "A new metric for probability distributions".
    """
    p, q = _shares(one), _shares(other)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log2(x / middle), 0.0) for x in (p, q)]
    divergence = np.clip((terms[0] + terms[1]).sum(axis=1) / 2, 0.0, 1.0)
    empty = np.isnan(p[:, 0]) | np.isnan(q[:, 0])
    return np.where(empty, np.nan, np.sqrt(divergence))


def wasserstein_distance(counts: NDArray[Any], reference: Reference) -> NDArray[np.float64]:
    """Return how far values moved on average, in standard deviations of the baseline.

    Values beyond the baseline's bins count as being in the outermost, so great moves count as less.

    Args:
        counts: Values in the reference's bins, shape ``(n, 32)``.
        reference: The baseline.

    Returns:
        Shape ``(n,)``; NaN where either is empty, or the baseline is constant.
    """
    apart = np.abs(np.cumsum(_shares(counts) - _shares(reference.counts), axis=1))  # (n, bins)
    steps = np.diff(reference.values, axis=1)  # (n, bins - 1)
    with np.errstate(invalid="ignore"):
        moved = (apart[:, :-1] * steps).sum(axis=1)
    return np.asarray(moved / np.where(reference.sigma > 0, reference.sigma, np.nan))


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    total = counts.sum(axis=1, dtype=np.float64)
    return np.asarray(counts / np.where(total > 0, total, np.nan)[:, None])


def _told(index: int, after: DriftMemory, policy: DriftPolicy, now: float) -> DriftChange:
    js_limit, far_limit = (float(limit[index]) for limit in limits(after, policy))
    began = bool(after.drifting[index])
    yesterday = float(after.js_yesterday[index])
    newly = f", {yesterday:.2g} from the same hour yesterday" if math.isfinite(yesterday) else ""
    reason = (
        f"for {policy.hours} hours {'too far from' if began else 'near'} the baseline: "
        f"Jensen-Shannon distance {after.js[index]:.2g} (too far from {js_limit:.2g} on){newly}; "
        f"moved by {after.wasserstein[index]:.2g} standard deviations ({far_limit:.2g})"
    )
    return DriftChange(index, began, now, reason)
