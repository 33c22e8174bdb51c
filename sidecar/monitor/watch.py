"""The flagged features of one layer: their thresholds, their detector, and what they say."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import (
    Detector,
    Direction,
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
from sidecar.features import FeatureKey, LayerKey, Slice
from sidecar.monitor.cautions import caution_of_rate
from sidecar.monitor.conditions import WatchedConditions
from sidecar.monitor.drift import WatchedDrift
from sidecar.monitor.limits import Limits
from sidecar.monitor.own_rates import OwnRates, in_own_way, plain
from sidecar.monitor.views import Event, FeatureStatus, Flag
from sidecar.stats import Distribution, Expectation, SparseDistribution, WindowCounts

NO_LONGER = "no longer watched for it"
OTHERWISE = "watched otherwise from now on: it is counted anew"
BASELINE_GONE = "what it was compared with is gone"
_TELLING = (State.PENDING, State.FIRING, State.RESOLVED)  # states whose end somebody waits for
_SHORT = (
    "its baseline is too short to judge it: so few requests were measured that they may exceed more often "
    "than can be told from a spike; have a longer one learned with sidecar baseline relearn"
)
_LEARNED_SO = (
    "; if its traffic was unusual while this was learned, have the baseline of the layer learned anew with "
    "sidecar baseline relearn"
)


@dataclass(slots=True)
class LayerWatch:
    """The watched features of one layer and their detector.

    Every array is aligned with ``indices``.

    Attributes:
        layer: Which layer.
        indices: Watched features in increasing order, shape ``(n,)``.
        keys: Their keys: the same objects for as long as the same features are watched.
        flags: Why each is watched.
        quantile: Of the baseline, beyond which ``spikes`` counted.
        spikes: The detector's state.
        limits: Beyond which values each exceeds, and how often it does in the baseline.
        last: Largest value in the last window that had samples, shape ``(n,)``.
        counted: Requests compared, those that exceeded, and times it began to fire since the daemon
            started, shape ``(3, n)``.
        sampled: Requests sampled in each of the newest windows, shape ``(windows, n)``, whether or not
            there was a threshold to compare them with.
        reasons: Words of each feature's last transition.
        conditions: What is certain of each feature.
        drift: How far each hour of a feature is from its baseline.
        own: What was measured for flags on another side, on a slice, or at another quantile.
    """

    layer: LayerKey
    indices: NDArray[np.int64]
    keys: list[FeatureKey]
    flags: list[Flag]
    quantile: float
    spikes: SpikeState
    limits: Limits
    last: NDArray[np.float64]
    counted: NDArray[np.int64]
    sampled: NDArray[np.int64]
    reasons: list[str] = field(default_factory=list)
    conditions: WatchedConditions = field(default_factory=WatchedConditions.empty)
    drift: WatchedDrift = field(default_factory=WatchedDrift.empty)
    own: OwnRates = field(default_factory=OwnRates)

    @classmethod
    def empty(cls, layer: LayerKey, policy: SpikePolicy, now: float) -> Self:
        """Return a watch over no feature."""
        indices, counted = np.empty(0, np.int64), np.zeros((3, 0), np.int64)
        sampled = np.zeros((1, 0), np.int64)
        spikes = initial(0, policy, now)
        limits, quantile = Limits.none(0), policy.quantile
        return cls(layer, indices, [], [], quantile, spikes, limits, np.empty(0), counted, sampled)

    def watches(self, flags: Mapping[int, Flag], policy: SpikePolicy) -> bool:
        """Whether exactly the features of ``flags`` are watched, and exactly so."""
        mine = dict(zip(self.indices.tolist(), self.flags, strict=True))
        return mine == flags and self.quantile == policy.quantile

    def rewatch(
        self, flags: Mapping[int, Flag], policy: SpikePolicy, now: float
    ) -> tuple[Event, ...]:
        """Watch exactly the features of ``flags``; return what no longer holds because of that.

        A feature keeps what each detector knows of it where that was counted as it will be: for the
        spike test beyond the same quantile, in the same direction, on the same slice. Conditions and
        drift are of all traffic and of both sides. A detector that is no longer asked for forgets.
        """
        ended = tuple(self._ended(flags, policy, now))
        indices = np.array(sorted(flags), dtype=np.int64)
        place = {int(index): at for at, index in enumerate(self.indices)}
        keep = np.array([place.get(int(index), -1) for index in indices], dtype=np.int64)
        spikes, conditions, drift = (
            np.array(
                [
                    at if at >= 0 and self._goes_on(one, at, flags[int(index)], policy) else -1
                    for at, index in zip(keep.tolist(), indices, strict=True)
                ],
                np.int64,
            )
            for one in (Detector.SPIKE, Detector.CONDITIONS, Detector.DRIFT)
        )
        self.spikes = self.spikes.resized(spikes, policy, now)
        self.conditions.rewatch(conditions)
        self.drift.rewatch(drift)
        self.last = np.append(self.last, np.nan)[keep]
        self.counted = np.pad(self.counted, ((0, 0), (0, 1)))[:, keep]
        self.sampled = np.pad(self.sampled, ((0, 0), (0, 1)))[:, keep]
        self.limits = Limits.none(len(indices))
        self.reasons = [self.reasons[at] if at >= 0 else "" for at in spikes]
        self._name(indices)
        self.flags = [flags[int(index)] for index in indices]
        self.quantile = policy.quantile
        return ended

    def _goes_on(self, detector: Detector, at: int, flag: Flag, policy: SpikePolicy) -> bool:
        """Whether what a detector knows of a feature is what it would know under another flag."""
        if detector not in flag.detectors:
            return False
        mine = self.flags[at]
        return detector is not Detector.SPIKE or (
            (mine.direction, mine.traffic, self.quantile)
            == (flag.direction, flag.traffic, policy.quantile)
        )

    def _ended(self, flags: Mapping[int, Flag], policy: SpikePolicy, now: float) -> Iterator[Event]:
        """Yield what holds of features and will not be known under other flags."""
        holding = self.conditions.holding()
        for at, key in enumerate(self.keys):
            flag = flags.get(key.index, Flag(detectors=()))
            gone = [one for one in Detector if not self._goes_on(one, at, flag, policy)]
            words = {one: OTHERWISE if one in flag.detectors else NO_LONGER for one in gone}
            state = self.spikes.state(at)
            if Detector.SPIKE in gone and state in _TELLING:
                reason = f"{words[Detector.SPIKE]} (was {state})"
                yield Event(now, "feature_unknown", str(key), reason)
            for condition in holding[at] if Detector.CONDITIONS in gone else ():
                reason = f"no longer {condition}: {NO_LONGER}"
                yield Event(now, "feature_condition", str(key), reason)
            if Detector.DRIFT in gone and self.drift.memory.drifting[at]:
                yield Event(now, "feature_settled", str(key), NO_LONGER)

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

    def by_traffic(self) -> Iterator[tuple[Slice, NDArray[np.int64]]]:
        """Yield each slice that flags are restricted to, with the places of its features."""
        for traffic in dict.fromkeys(flag.traffic for flag in self.flags):
            yield traffic, np.array([i for i, f in enumerate(self.flags) if f.traffic == traffic])

    @property
    def spiking(self) -> int:
        """How many features fire."""
        return int((self.spikes.codes == State.FIRING.code).sum())

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """What people are told a feature is compared with, shape ``(n,)``; NaN without a baseline."""
        return self.limits.shown

    @property
    def baseline_rates(self) -> NDArray[np.float64]:
        """Rate that is granted because of the baseline, shape ``(n,)``; NaN without one."""
        return self.limits.rates

    @property
    def baseline_shares(self) -> NDArray[np.float64]:
        """Share of baseline requests that exceed, shape ``(n,)``; NaN where there is no rate either."""
        return np.where(np.isnan(self.limits.rates), np.nan, self.limits.shares)

    def forget_baseline(self) -> None:
        """Drop the thresholds: until a new baseline is there, nothing can be said."""
        self.limits = Limits.none(len(self.indices))
        self.conditions.forget_baseline()
        self.drift.forget_baseline()

    def use_baseline(
        self,
        watched: Distribution | SparseDistribution,
        expected: Expectation | None,
        policy: SpikePolicy,
    ) -> None:
        """Take thresholds and rates from the frozen baseline of the watched features.

        Args:
            watched: The baseline of the watched features.
            expected: What was measured of the whole layer; None: nothing was.
            policy: When a feature counts as spiking.
        """
        missing = self.unplaced(expected, policy.quantile)
        self.place(watched.select(missing), missing, policy.quantile)
        self.limits = Limits.of(watched, expected, self.indices, self.flags, policy, self.own)
        self.conditions.use_baseline(watched)
        self.drift.use_baseline(watched)

    def unplaced(self, expected: Expectation | None, quantile: float) -> NDArray[np.int64]:
        """Return the places of flags that need thresholds of their own, and have none yet."""
        own = in_own_way(self.flags, expected, quantile)
        return self.own.unplaced(self.indices, self.flags, own, quantile)

    def place(
        self,
        baseline: Distribution | SparseDistribution,
        places: NDArray[np.int64],
        quantile: float,
    ) -> None:
        """Give the flags at some places thresholds of their own; ``baseline`` is of these alone."""
        flags = [self.flags[at] for at in places.tolist()]
        self.own.place(baseline, self.indices[places], flags, quantile)

    def learning(self, expected: Expectation | None, quantile: float) -> Limits:
        """Return what requests are compared with while a baseline learns how many exceed."""
        placed = expected is not None and expected.level == quantile
        thresholds = expected.thresholds if expected is not None and placed else None
        return self.limits.learning(self.indices, self.flags, thresholds, self.own, quantile)

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
        recent = [*self.sampled, counts.watched_requests]
        self.sampled = np.stack(recent[-policy.short_windows :])
        found = self._step(counts.watched_requests, counts.exceedances, policy, now, flagged)
        known = np.isfinite(self.thresholds)
        fired = [one.index for one in found if one.after is State.FIRING]
        self.counted[0] += np.where(known, counts.watched_requests, 0)
        self.counted[1] += np.where(known, counts.exceedances, 0)
        self.counted[2] += np.bincount(fired, minlength=len(known))
        return found

    def lose_baseline(self, policy: SpikePolicy, now: float, flagged: int) -> tuple[Event, ...]:
        """Drop the baseline and all that was counted against it; return what no longer holds."""
        before = self.conditions.holding()
        drifted = np.flatnonzero(self.drift.memory.drifting)
        self.forget_baseline()
        self.own.forget()
        self.conditions.lose_baseline()
        self.drift.lose_baseline()
        nothing = np.zeros(len(self.indices), np.int64)
        ended = list(self.told(self._step(nothing, nothing, policy, now, flagged)))
        for key, were, are in zip(self.keys, before, self.conditions.holding(), strict=True):
            for condition in (one for one in were if one not in are):
                words = f"no longer {condition}: {BASELINE_GONE}"
                ended.append(Event(now, "feature_condition", str(key), words))
        ended += [
            Event(now, "feature_settled", str(self.keys[at]), BASELINE_GONE) for at in drifted
        ]
        return tuple(ended)

    def told(self, changes: Iterable[Transition]) -> Iterator[Event]:
        """Yield the audit entries of changes of state."""
        for change in changes:
            subject = str(self.keys[change.index])
            yield Event(change.at, f"feature_{change.after}", subject, change.reason)

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
            baseline_share=np.where(known, self.baseline_shares, np.nan),
            factor=self._factors(policy),
            judged=self.tested,
            directions=[flag.direction for flag in self.flags],
        )
        self.spikes, found = step(self.spikes, seen, policy, now, flagged=flagged)
        transitions = tuple(map(self._said, found))
        for transition in transitions:
            self.reasons[transition.index] = transition.reason
        return transitions

    def _said(self, change: Transition) -> Transition:
        """Return a change in its own words where it is for want of a flag's own rate."""
        learning = self._learning(change.index) if change.after is State.UNKNOWN else ""
        return replace(change, reason=f"{learning} (was {change.before})") if learning else change

    def _learning(self, at: int) -> str:
        """Return in words why a flag with thresholds has no rate yet; empty: it has one."""
        if np.isfinite(self.baseline_rates[at]) or not np.isfinite(self.thresholds[at]):
            return ""
        if self.limits.short[at]:
            return _SHORT
        return self.own.words(int(self.indices[at]), self.flags[at], self.quantile)

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
        judged, short, level = rates(self.spikes)
        # While there is no threshold nothing is judged, and yet its requests are sampled.
        requests = np.where(known, judged, self.sampled.sum(axis=0))
        factors = self._factors(policy)
        tolerated = tolerated_rate(self.baseline_rates, level, factors, policy.baseline_factor)
        before = (
            self.spikes.since,
            requests,
            short,
            self.baseline_shares,
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
        how = (
            [""] * len(self.keys),
            [str(flag.direction) for flag in self.flags],
            [str(flag.traffic) for flag in self.flags],
        )
        told = (
            *self.counted.tolist(),
            self.limits.low.tolist(),
            self.conditions.least.tolist(),
            self._cautions(),
        )
        rest = (explanations, *spiking, certain, *drifting, *how, *told)
        return list(map(FeatureStatus, *named, *first, *rest))

    def _cautions(self) -> list[str]:
        """Return what speaks against the rate of each feature, in words; few have such."""
        found = [""] * len(self.keys)
        for at in np.flatnonzero(self.limits.doubtful & self.tested).tolist():
            share, explained = float(self.limits.shares[at]), self.limits.explained
            found[at] = caution_of_rate(share, explained, self.flags[at].traffic)
        return found

    def _explanation(self, at: int, state: State, policy: SpikePolicy) -> str:
        if state is not State.UNKNOWN:
            return self.reasons[at] or "Within its baseline."
        judged = Detector.SPIKE in self.flags[at].detectors
        learning = self._learning(at)
        if judged and learning:
            return learning[:1].upper() + learning[1:] + "."
        known = float(self.baseline_rates[at]), float(self.baseline_shares[at])
        direction = self.flags[at].direction
        closed = blindness(*known, policy, judged=judged, direction=direction)
        if closed and judged and not plain([self.flags[at]])[0]:
            closed += _LEARNED_SO
        return closed or self.reasons[at] or "Not sampled: nothing can be said."

    def to_dict(self) -> dict[str, Any]:
        """Return the watch as JSON-able values; of the flags what was counted under them.

        Names, severities and owners are kept elsewhere.
        """
        return {
            "indices": self.indices.tolist(),
            "flags": [_how(flag) for flag in self.flags],
            "quantile": self.quantile,
            "spikes": self.spikes.to_dict(),
            "last": [None if math.isnan(x) else x for x in self.last.tolist()],
            "reasons": self.reasons,
            "conditions": self.conditions.to_dict(),
            "drift": self.drift.to_dict(),
            "own": self.own.to_list(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take detector state back from ``to_dict`` of a watch over the same layer.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError, TypeError, ValueError and
                InvalidName say.
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
        # Snapshots of the first releases hold none: their flags learn them again.
        self.own.restore(saved.get("own", ()))
        parts = (self.spikes, self.reasons, self.conditions.memory, self.drift.memory)
        lengths = {len(part) for part in (*parts, saved.get("flags", self.reasons))}
        if {self.indices.shape, self.last.shape} | {(length,) for length in lengths} != {(n,)}:
            raise CorruptState(f"the watch over {self.layer} has parts of different lengths")
        if n and (self.indices[0] < 0 or np.any(np.diff(self.indices) <= 0)):
            raise CorruptState(f"the watch over {self.layer} has its features in disorder")
        self._name(self.indices)
        # Snapshots of earlier builds do not say: then it is taken for the usual.
        self.flags = [_flag(how) for how in saved["flags"]] if "flags" in saved else [Flag()] * n
        self.quantile = float(saved.get("quantile", self.quantile))
        self.counted = np.zeros((3, n), np.int64)
        self.sampled = np.zeros((1, n), np.int64)
        self.forget_baseline()


def _how(flag: Flag) -> dict[str, Any]:
    """Return what a flag says of counting, as JSON-able values."""
    return {
        "direction": str(flag.direction),
        "slice": dict(flag.traffic.pairs),
        "detectors": [str(one) for one in flag.detectors],
    }


def _flag(how: Mapping[str, Any]) -> Flag:
    """Return a flag without a name that counts as ``_how`` says.

    Raises:
        KeyError: It is not what ``_how`` returns; so may TypeError, ValueError and InvalidName say.
    """
    return Flag(
        direction=Direction(how["direction"]),
        traffic=Slice.of(dict(how["slice"])),
        detectors=tuple(Detector(one) for one in how["detectors"]),
    )
