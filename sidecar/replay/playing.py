"""Runs a policy over recorded windows: the detector's own step, window after window."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import (
    Observation,
    SpikeState,
    State,
    Transition,
    evidence,
    initial,
    rates,
    step,
    tolerated_rate,
)
from sidecar.features import FeatureKey, LayerKey
from sidecar.replay.policies import Policy
from sidecar.store import Subject, WindowRecord

GAP_WINDOWS = 1.5
"""Windows are late by what a tick takes; from so many lengths on one is missing."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One time a feature fires, from its page to its end.

    Attributes:
        feature: Which feature.
        start: Unix seconds of the window that raised it.
        end: Unix seconds at which it resolved, or the feature became unknown for good; NaN while it
            was still firing at the end of the recording.
        evidence_log10: Evidence that raised it, as a power of ten; none is gathered while it is held.
        threshold_log10: Evidence that it took.
        peak_rate: Greatest share of exceeding requests in one of its windows.
        reason: Why it was raised, in words.
    """

    feature: FeatureKey
    start: float
    end: float
    evidence_log10: float
    threshold_log10: float
    peak_rate: float
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of a layer of which nothing is recorded.

    Attributes:
        start: Unix seconds of the last window before it.
        end: Unix seconds of the first window after it.
    """

    start: float
    end: float


@dataclass(slots=True)
class Extent:
    """What there is of one layer.

    Attributes:
        windows: Recorded windows.
        sampled: Those with a request.
        seconds: Seconds that they cover.
        first: Unix seconds of the end of the first.
        last: Of the last.
        features: Features that were flagged at some time.
        gaps: Where windows are missing.
        backward: Windows that end before the one before them: a clock that was put back, or
            recordings of several daemons.
    """

    windows: int = 0
    sampled: int = 0
    seconds: float = 0.0
    first: float = math.nan
    last: float = math.nan
    features: set[int] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)
    backward: int = 0

    def add(self, window: WindowRecord) -> None:
        """Count a window."""
        length = window.subject.window_seconds
        if self.windows:
            away = window.at - self.last
            if away > GAP_WINDOWS * length:
                self.gaps.append(Gap(self.last, window.at))
            self.backward += away <= 0
        else:
            self.first = window.at
        self.windows += 1
        self.sampled += window.requests > 0
        self.seconds += length
        self.last = window.at
        self.features.update(window.subject.indices.tolist())


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state of one feature.

    Attributes:
        feature: Which feature.
        transition: What the detector says of it.
    """

    feature: FeatureKey
    transition: Transition


@dataclass(frozen=True, slots=True)
class Playback:
    """What a policy does with a recording.

    Attributes:
        policy: Its name.
        alarms: Every alarm, by its start.
        changes: Every change of state, in the order of the windows.
        notes: What should be known of it, in words.
    """

    policy: str
    alarms: tuple[Alarm, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class Trace:
    """One feature window by window, for a plot.

    Attributes:
        at: Unix seconds of each window's end.
        follows: Whether the window before it is there too, or one is missing in between.
        rate: Share of exceeding requests; NaN without requests.
        tolerated: Rate that the policy tolerates; NaN without a baseline.
        baseline: Share that exceeds in the baseline; NaN without one.
        evidence: Evidence, as a power of ten; 0 while an alarm is held.
    """

    at: list[float] = field(default_factory=list)
    follows: list[bool] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    tolerated: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """An alarm that has not ended."""

    change: Transition
    peak: float
    unknown_at: float = math.nan


class _Line:
    """One layer under one policy."""

    def __init__(self, subject: Subject, policy: Policy, now: float) -> None:
        self._policy = policy
        self.subject, self.terms = subject, policy.put_to(subject)
        self.state: SpikeState = initial(len(subject), self.terms.spike, now)
        self.open: dict[int, _Open] = {}  # by index in the layer

    def become(self, subject: Subject, now: float) -> None:
        """Go on with other flags, or another baseline: features that stay keep their state."""
        places = {index: at for at, index in enumerate(self.subject.indices.tolist())}
        keep = np.array([places.get(i, -1) for i in subject.indices.tolist()], np.int64)
        self.subject, self.terms = subject, self._policy.put_to(subject)
        self.state = self.state.resized(keep, self.terms.spike, now)

    def play(self, window: WindowRecord) -> list[Change]:
        """Take in one window and return what changed."""
        found: list[Change] = []
        before, after = self.subject.baseline, window.subject.baseline
        if window.subject is not self.subject:
            if before and after and before != after:
                # Learned anew within the window: what was counted went with the old one.
                nothing = np.zeros(len(self.subject), np.int64)
                unknown = np.full(len(nothing), np.nan)
                found += self._step(nothing, nothing, unknown, window)
            self.become(window.subject, window.at)
        terms = self.terms
        found += self._step(window.compared, terms.exceedances(window), terms.baseline_rate, window)
        return found

    def _step(
        self,
        requests: NDArray[np.int64],
        exceedances: NDArray[np.int64],
        baseline_rate: NDArray[np.float64],
        window: WindowRecord,
    ) -> list[Change]:
        seen = Observation(
            requests=requests,
            exceedances=exceedances,
            baseline_rate=baseline_rate,
            baseline_share=self.terms.baseline_share,
            factor=self.terms.factor,
            judged=self.terms.judged,
            directions=self.terms.directions,
        )
        self.state, changes = step(
            self.state, seen, self.terms.spike, window.at, flagged=window.flagged
        )
        layer, indices = self.subject.layer, self.subject.indices
        return [Change(layer.feature(int(indices[one.index])), one) for one in changes]


class Player:
    """Plays windows under one policy, in the order in which they are given."""

    def __init__(self, policy: Policy, follow: Iterable[FeatureKey] = ()) -> None:
        """Start with nothing known of any layer.

        Args:
            policy: Which policy.
            follow: Features to keep a trace of.
        """
        self._policy = policy
        self._lines: dict[LayerKey, _Line] = {}
        self._alarms: list[Alarm] = []
        self._changes: list[Change] = []
        self._notes: dict[str, None] = {}
        self.traces: Mapping[FeatureKey, Trace] = {key: Trace() for key in follow}

    def play(self, window: WindowRecord) -> None:
        """Take in one window."""
        subject = window.subject
        line = self._lines.get(subject.layer)
        if line is None:
            line = self._lines[subject.layer] = _Line(subject, self._policy, window.at)
            self._note(line)
        known = line.subject
        for change in line.play(window):
            self._changes.append(change)
            self._follow_alarm(line, change.feature.index, change.transition)
        if line.subject is not known:
            self._note(line)
            for index in set(line.open) - set(subject.indices.tolist()):
                self._end(line, index, window.at)  # no longer flagged
        self._raise_peaks(line, window)
        for key in [key for key in self.traces if key.layer == subject.layer]:
            _extend(self.traces[key], key.index, line, window)

    def _note(self, line: _Line) -> None:
        note = line.terms.note(line.subject, self._policy.spike.quantile)
        if note and np.isfinite(line.subject.thresholds).any():
            self._notes[note] = None

    def _follow_alarm(self, line: _Line, index: int, change: Transition) -> None:
        mine = line.open.get(index)
        if change.after is State.FIRING and mine is None:
            line.open[index] = _Open(change, 0.0)
        elif mine is None:
            return
        elif change.after is State.FIRING:
            mine.unknown_at = math.nan  # sampled again, and still held
        elif change.after is State.UNKNOWN:
            mine.unknown_at = change.at
        else:
            ended = change.at if math.isnan(mine.unknown_at) else mine.unknown_at
            self._end(line, index, ended)

    def _end(self, line: _Line, index: int, at: float) -> None:
        ended = line.open.pop(index)
        change = ended.change
        self._alarms.append(
            Alarm(
                feature=line.subject.layer.feature(index),
                start=change.at,
                end=at,
                evidence_log10=change.evidence_log10,
                threshold_log10=change.threshold_log10,
                peak_rate=ended.peak,
                reason=change.reason,
            )
        )

    def _raise_peaks(self, line: _Line, window: WindowRecord) -> None:
        if not line.open:
            return
        counts = line.terms.exceedances(window)
        for at, index in enumerate(line.subject.indices.tolist()):
            mine = line.open.get(index)
            if mine is not None and window.compared[at]:
                mine.peak = max(mine.peak, float(counts[at] / window.compared[at]))

    def finish(self) -> Playback:
        """Return what was found; alarms that have not ended have no end."""
        for line in self._lines.values():
            for index in list(line.open):
                self._end(line, index, line.open[index].unknown_at)
        ordered = sorted(self._alarms, key=lambda alarm: (alarm.start, alarm.feature))
        return Playback(self._policy.name, tuple(ordered), tuple(self._changes), tuple(self._notes))


def _extend(trace: Trace, index: int, line: _Line, window: WindowRecord) -> None:
    places = np.flatnonzero(line.subject.indices == index)
    if not len(places):
        return
    at, terms = int(places[0]), line.terms
    requests = int(window.compared[at])
    level = rates(line.state)[2]
    tolerated = tolerated_rate(
        terms.baseline_rate, level, terms.factor, terms.spike.baseline_factor
    )
    away = window.at - trace.at[-1] if trace.at else math.inf
    trace.follows.append(away <= GAP_WINDOWS * window.subject.window_seconds)
    trace.at.append(window.at)
    trace.rate.append(int(terms.exceedances(window)[at]) / requests if requests else math.nan)
    trace.tolerated.append(float(tolerated[at]))
    trace.baseline.append(float(terms.baseline_share[at]))
    trace.evidence.append(float(evidence(line.state)[at]))


def measure(windows: Iterable[WindowRecord]) -> dict[LayerKey, Extent]:
    """Return what there is of each layer."""
    found: dict[LayerKey, Extent] = {}
    for window in windows:
        found.setdefault(window.subject.layer, Extent()).add(window)
    return found


def play(windows: Iterable[WindowRecord], policy: Policy) -> Playback:
    """Return what a policy does with windows."""
    player = Player(policy)
    for window in windows:
        player.play(window)
    return player.finish()


def under(policy: Policy, factor: float) -> Policy:
    """Return the policy with another minimum factor for every feature."""
    flags = {key: flag.model_copy(update={"factor": factor}) for key, flag in policy.flags.items()}
    return replace(policy, spike=replace(policy.spike, factor=factor), flags=flags)
