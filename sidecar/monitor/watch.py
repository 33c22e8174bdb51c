"""The flagged features of one layer: their thresholds, their detector, and what they say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import (
    Detector,
    Observation,
    SpikePolicy,
    SpikeState,
    State,
    Transition,
    blindness,
    evidence,
    initial,
    rates,
    step,
    tolerated_rate,
)
from sidecar.errors import CorruptState
from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor.conditions import WatchedConditions
from sidecar.monitor.drift import WatchedDrift
from sidecar.monitor.views import FeatureStatus, Flag
from sidecar.stats import Distribution, Expectation, SparseDistribution, WindowCounts


@dataclass(slots=True)
class LayerWatch:
    """The watched features of one layer and their detector.

    Every array is aligned with ``indices``.

    Attributes:
        layer: Which layer.
        indices: Watched features in increasing order, shape ``(n,)``.
        keys: Their keys: the same objects for as long as the same features are watched.
        flags: Why each is watched.
        spikes: The detector's state.
        thresholds: Baseline quantiles of the spike test, shape ``(n,)``; NaN without a baseline.
        baseline_rates: Share of baseline requests above them, shape ``(n,)``; NaN without one.
        last: Largest value in the last window that had samples, shape ``(n,)``.
        reasons: Words of each feature's last transition.
        conditions: What is certain of each feature.
        drift: How far each hour of a feature is from its baseline.
    """

    layer: LayerKey
    indices: NDArray[np.int64]
    keys: list[FeatureKey]
    flags: list[Flag]
    spikes: SpikeState
    thresholds: NDArray[np.float64]
    baseline_rates: NDArray[np.float64]
    last: NDArray[np.float64]
    reasons: list[str] = field(default_factory=list)
    conditions: WatchedConditions = field(default_factory=WatchedConditions.empty)
    drift: WatchedDrift = field(default_factory=WatchedDrift.empty)

    @classmethod
    def empty(cls, layer: LayerKey, policy: SpikePolicy, now: float) -> Self:
        """Return a watch over no feature."""
        nothing = np.empty(0)
        indices = np.empty(0, np.int64)
        return cls(layer, indices, [], [], initial(0, policy, now), nothing, nothing, nothing)

    def rewatch(self, flags: Mapping[int, Flag], policy: SpikePolicy, now: float) -> None:
        """Watch exactly the features of ``flags``; those watched before keep their state."""
        indices = np.array(sorted(flags), dtype=np.int64)
        position = {int(index): i for i, index in enumerate(self.indices)}
        keep = np.array([position.get(int(index), -1) for index in indices], dtype=np.int64)
        self.spikes = self.spikes.resized(keep, policy, now)
        self.conditions.rewatch(keep)
        self.drift.rewatch(keep)
        self.thresholds, self.baseline_rates, self.last = (
            np.where(keep < 0, np.nan, np.append(values, np.nan)[keep])
            for values in (self.thresholds, self.baseline_rates, self.last)
        )
        self.reasons = [self.reasons[i] if i >= 0 else "" for i in keep]
        self._name(indices)
        self.flags = [flags[int(index)] for index in indices]

    def _name(self, indices: NDArray[np.int64]) -> None:
        known = {key.index: key for key in self.keys}
        self.indices = indices
        self.keys = [known.get(i) or self.layer.feature(i) for i in indices.tolist()]

    @property
    def tested(self) -> NDArray[np.bool_]:
        """Whether each feature's flag asks for the spike test, shape ``(n,)``."""
        return np.array([Detector.SPIKE in flag.detectors for flag in self.flags], np.bool_)

    def _factors(self, policy: SpikePolicy) -> NDArray[np.float64]:
        """Return each feature's least factor over its recent level, shape ``(n,)``."""
        return np.array([flag.factor or policy.factor for flag in self.flags], np.float64)

    def forget_baseline(self) -> None:
        """Drop the thresholds: until a new baseline is there, nothing can be said."""
        self.thresholds = np.full(len(self.indices), np.nan)
        self.baseline_rates = np.full(len(self.indices), np.nan)
        self.conditions.forget_baseline()
        self.drift.forget_baseline()

    def use_baseline(self, watched: Distribution | SparseDistribution, quantile: float) -> None:
        """Take thresholds and rates from the frozen baseline of the watched features."""
        self.thresholds = watched.threshold(quantile)
        self.conditions.use_baseline(watched)
        self.drift.use_baseline(watched)
        # A bounded sample cannot show rates below about one over its size: do not believe 0.
        row_rate = np.maximum(watched.exceedance(self.thresholds), 1.0 / (watched.sampled + 1))
        # Only rows that were sampled are compared, whatever they stand for.
        rows_per_request = max(1.0, watched.sampled / max(watched.requests, 1))
        self.baseline_rates = 1.0 - (1.0 - row_rate) ** rows_per_request

    def use_expectation(self, expected: Expectation, quantile: float) -> None:
        """Take thresholds and rates that were measured, instead of those from ``use_baseline``.

        Where the baseline froze before a window was measured, or was measured at another quantile, and
        for features that had no threshold then, what was derived stays: a rate that is right for one
        row a request, and an upper bound for more.
        """
        if expected.level != quantile or not expected.windows:
            return
        measured = expected.thresholds[self.indices].astype(np.float64)
        known = np.isfinite(measured)
        self.thresholds = np.where(known, measured, self.thresholds)
        self.baseline_rates = np.where(known, expected.rate[self.indices], self.baseline_rates)

    def limits(self, expected: Expectation | None, quantile: float) -> NDArray[np.float32]:
        """Return what requests are compared with, shape ``(n,)``; infinity where there is nothing yet.

        In the second half of a baseline these are the thresholds that it will have.
        """
        limits = self.thresholds
        if expected is not None and expected.level == quantile:
            placed = expected.thresholds[self.indices]
            limits = np.where(np.isfinite(limits), limits, placed)
        return np.where(np.isfinite(limits), limits, np.inf).astype(np.float32)

    def observe(
        self, counts: WindowCounts, policy: SpikePolicy, now: float, flagged: int
    ) -> tuple[Transition, ...]:
        """Take in one closed window and return what changed.

        Args:
            counts: The window, of the same features.
            policy: The spike test's settings.
            now: Unix seconds of the window's end.
            flagged: Features that are tested in all layers.
        """
        self.last = np.where(np.isfinite(counts.maximum), counts.maximum, self.last)
        return self._step(counts.watched_requests, counts.exceedances, policy, now, flagged)

    def lose_baseline(
        self, policy: SpikePolicy, now: float, flagged: int
    ) -> tuple[Transition, ...]:
        """Drop the baseline and all that was counted against it; return what changed by that."""
        self.forget_baseline()
        self.drift.lose_baseline()
        nothing = np.zeros(len(self.indices), np.int64)
        return self._step(nothing, nothing, policy, now, flagged)

    def _step(
        self,
        requests: NDArray[np.int64],
        exceedances: NDArray[np.int64],
        policy: SpikePolicy,
        now: float,
        flagged: int,
    ) -> tuple[Transition, ...]:
        known = np.isfinite(self.thresholds)
        seen = Observation(
            # Only requests that were compared with the threshold are evidence of anything.
            requests=np.where(known, requests, 0),
            exceedances=np.where(known, exceedances, 0),
            baseline_rate=np.where(known, self.baseline_rates, np.nan),
            factor=self._factors(policy),
            judged=self.tested,
        )
        self.spikes, transitions = step(self.spikes, seen, policy, now, flagged=flagged)
        for transition in transitions:
            self.reasons[transition.index] = transition.reason
        return transitions

    def statuses(self, policy: SpikePolicy, learning: str, flagged: int) -> Sequence[FeatureStatus]:
        """Return how each watched feature stands.

        Args:
            policy: The spike test's settings.
            learning: Words said of a feature without a baseline.
            flagged: Features that are tested in all layers.
        """
        states = self.spikes.states()
        known = np.isfinite(self.thresholds)
        explanations = [
            self._explanation(at, state, policy) if ready else learning
            for at, (state, ready) in enumerate(zip(states, known.tolist(), strict=True))
        ]
        requests, short, level = rates(self.spikes)
        factors = self._factors(policy)
        tolerated = tolerated_rate(self.baseline_rates, level, factors, policy.baseline_factor)
        before = (
            self.spikes.since,
            requests,
            short,
            level,
            self.baseline_rates,
            self.thresholds,
            self.last,
        )
        after = (
            np.where(known, evidence(self.spikes), np.nan),
            np.where(known, policy.threshold_log10(flagged), np.nan),
            level,
            tolerated,
        )
        certain = [tuple(map(str, found)) for found in self.conditions.holding()]
        # Whole columns at once: a scrape reads a thousand of these.
        first, spiking, drifting = (
            [column.tolist() for column in columns]
            for columns in (before, after, self.drift.columns())
        )
        named = (self.keys, self.flags, states)
        rest = (explanations, *spiking, certain, *drifting)
        return list(map(FeatureStatus, *named, *first, *rest))

    def _explanation(self, at: int, state: State, policy: SpikePolicy) -> str:
        if state is not State.UNKNOWN:
            return self.reasons[at] or "Within its baseline."
        judged = Detector.SPIKE in self.flags[at].detectors
        closed = blindness(float(self.baseline_rates[at]), policy, judged=judged)
        return closed or self.reasons[at] or "Not sampled: nothing can be said."

    def to_dict(self) -> dict[str, Any]:
        """Return the watch as JSON-able values; flags are kept elsewhere."""
        return {
            "indices": self.indices.tolist(),
            "spikes": self.spikes.to_dict(),
            "last": [None if math.isnan(x) else x for x in self.last.tolist()],
            "reasons": self.reasons,
            "conditions": self.conditions.to_dict(),
            "drift": self.drift.to_dict(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take detector state back from ``to_dict`` of a watch over the same layer.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError, TypeError and
                ValueError say.
        """
        self.indices = np.array(saved["indices"], dtype=np.int64)
        n = len(self.indices)
        self.spikes = SpikeState.from_dict(saved["spikes"])
        self.last = np.array(
            [math.nan if x is None else x for x in saved["last"]], dtype=np.float64
        )
        self.reasons = [str(reason) for reason in saved["reasons"]]
        self.conditions.restore(saved["conditions"])
        self.drift.restore(saved["drift"])
        parts = (self.spikes, self.reasons, self.conditions.memory, self.drift.memory)
        lengths = {len(part) for part in parts}
        if {self.indices.shape, self.last.shape} | {(length,) for length in lengths} != {(n,)}:
            raise CorruptState(f"the watch over {self.layer} has parts of different lengths")
        if n and (self.indices[0] < 0 or np.any(np.diff(self.indices) <= 0)):
            raise CorruptState(f"the watch over {self.layer} has its features in disorder")
        self._name(self.indices)
        self.flags = [Flag()] * n
        self.forget_baseline()
