"""Statistics, flags and detectors under one lock."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import structlog

from sidecar.config import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.detect import ScreenPolicy, SpikePolicy, Transition
from sidecar.errors import (
    BaselineNotReady,
    LayerConflict,
    LimitReached,
    UnknownFeature,
    UnknownLayer,
    UnknownModel,
)
from sidecar.features import (
    Capture,
    FeatureKey,
    FeatureSelector,
    LayerKey,
    LayerSample,
    SparseSample,
    revision_matches,
)
from sidecar.monitor.activations import fallback_bounds, place_bounds
from sidecar.monitor.banks import new_banks, pack, unpack
from sidecar.monitor.describe import describe, unwatched
from sidecar.monitor.evidence import EvidenceBook, EvidenceCounts
from sidecar.monitor.layer import MonitoredLayer
from sidecar.monitor.record import EvidenceRecord
from sidecar.monitor.screening import Screening
from sidecar.monitor.views import (
    Anomaly,
    Event,
    FeatureDistribution,
    FeatureStatus,
    Flag,
    LayerActivations,
    LayerStatus,
    Window,
)
from sidecar.monitor.watch import BASELINE_GONE, LayerWatch
from sidecar.monitor.windows import Levels, record_of, subject_of
from sidecar.stats import (
    Bank,
    Kernels,
    Memory,
    Period,
    SparseBank,
    SparseKernels,
    WatchedWindow,
    WindowCounts,
)
from sidecar.store import BaselineFacts, Subject, WindowRecord

TYPICAL_LEVELS = np.array([0.01, 0.999])
"""The range of activations called typical: what all but the rarest live rows stay within."""

_PLACING = 0.5
"""Share of a baseline after which thresholds are placed; the rest measures how often they are passed.
The values that placed a threshold cannot say that: of those it is passed by as few as it was made for."""

_PERIODS = {
    Window.CURRENT: Period.CURRENT,
    Window.BASELINE: Period.BASELINE,
    Window.HISTORY: Period.HISTORY,
}
DIGEST_SHOWN = 12
"""Hexadecimal digits of a digest that people see."""


class Monitor:
    """Every feature's distribution, flag and state.

    All methods may be called from any thread; each holds the lock for one layer's arithmetic at
    most. ``tick`` and ``encode`` let go of it between layers, so each layer is whole in a snapshot,
    and two may be a batch apart.
    """

    def __init__(
        self,
        statistics: StatisticsConfig,
        spike: SpikeConfig,
        *,
        now: float,
        activation_limit: int = 1000,
        screen: ScreenConfig | None = None,
        evidence: EvidenceBook | None = None,
        on_window: Callable[[WindowRecord], None] | None = None,
        levels: Sequence[float] = (),
    ) -> None:
        """Start empty.

        Args:
            statistics: How distributions are kept.
            spike: When a flagged feature counts as spiking.
            now: Unix seconds; the first window starts here.
            activation_limit: Most watched features whose activations are added up for scrapes.
            screen: When a whole layer counts as shifted; None: the default settings.
            evidence: What keeps slices and rows; None: one with the default settings.
            on_window: Given every closed window of flagged features, under the lock; must not wait.
            levels: Baseline quantiles at which requests of flagged features are counted for it too.
        """
        self._evidence = evidence or EvidenceBook()
        self._evidence_ids: dict[FeatureKey, str] = {}
        self._activation_limit = activation_limit
        self._on_window, self._levels = on_window, tuple(levels)
        self._settings = statistics
        self._policy = SpikePolicy(**spike.model_dump(), window_seconds=statistics.window_seconds)
        self._screen = ScreenPolicy(**(screen or ScreenConfig()).model_dump())
        self._lock = threading.RLock()
        self._bank, self._sparse = new_banks(statistics)
        self._layers: dict[LayerKey, MonitoredLayer] = {}
        self._flags: dict[FeatureSelector, Flag] = {}
        # Worked out when a scrape asks; None after any change of what they depend on.
        self._unmatched: tuple[FeatureSelector, ...] | None = None
        self._order: tuple[LayerKey, ...] | None = None
        self._followed = 0  # features whose activations are added up
        self._window_began = now
        self._retired: list[Event] = []

    # -- what the hooks send ----------------------------------------------------------------

    def register(
        self, layer: LayerKey, width: int, capture: Capture, now: float, *, sparse: bool = False
    ) -> None:
        """Announce a layer; announcing it again changes nothing but its capture.

        Where there is no room, layers that have been silent for ``retire_seconds`` give way, the
        longest silent first: revisions that are no longer served.

        Args:
            layer: Which layer.
            width: Its features.
            capture: How it is measured.
            now: Unix seconds.
            sparse: Whether its samples are ``SparseSample``s.

        Raises:
            LayerConflict: It is known with another width, or as sparse and is not, or the reverse.
            LimitReached: The configured number of layers or features, or their memory, is reached.
        """
        with self._lock:
            bank, other = (self._sparse, self._bank) if sparse else (self._bank, self._sparse)
            if layer in other.layers():
                raise LayerConflict(
                    f"layer {layer} was announced as {'dense' if sparse else 'sparse'} before: use "
                    "another model revision or layer name"
                )
            self._make_room(bank, layer, width, now)
            known = self._layers.get(layer)
            if known is None:
                known = MonitoredLayer(
                    capture, LayerWatch.empty(layer, self._policy, now), registered=now
                )
                self._layers[layer] = known
                self._unmatched = self._order = None
                self._rewatch(layer, now)
            known.capture, known.subject = capture, None

    def _make_room(self, bank: Bank | SparseBank, layer: LayerKey, width: int, now: float) -> None:
        """Register a layer with its bank, retiring silent ones of it as long as it has no room."""
        while True:
            try:
                bank.register(layer, width)
            except LimitReached:
                oldest = min(bank.layers(), key=self._last_sign, default=None)
                silent = 0.0 if oldest is None else now - self._last_sign(oldest)
                limit = (
                    self._settings.latent_limit
                    if bank is self._sparse
                    else self._settings.feature_limit
                )
                if oldest is None or silent < self._settings.retire_seconds or width > limit:
                    raise
                bank.forget(oldest)
                self._evidence.forget(oldest)
                self._followed -= len(self._layers.pop(oldest).activations.keys)
                self._unmatched = self._order = None
                detail = (
                    f"no sample for {self._settings.retire_seconds:g} s, and no room for {layer}"
                )
                self._retired.append(Event(now, "layer_retired", str(oldest), detail))
            else:
                return

    def _last_sign(self, layer: LayerKey) -> float:
        """Return when a layer was last sampled, or registered where it never was."""
        known = self._layers[layer]
        return max(known.last_seen, known.registered)

    def use_sparse(self, kernels: SparseKernels) -> None:
        """Count sparse layers with other loops from now on."""
        with self._lock:
            self._sparse.use(kernels)

    def apply(self, sample: LayerSample | SparseSample, now: float) -> None:
        """Take in sampled activations of a registered layer.

        Raises:
            UnregisteredLayer: The layer was never registered, or not for this kind of sample.
            ShapeMismatch: The sample's width is not the layer's.
        """
        with self._lock:
            if isinstance(sample, SparseSample):
                self._sparse.update(sample, now)
            else:
                self._bank.update(sample, now)
            layer = self._layers[sample.layer]
            # Requests without a row were seen nowhere: they are no evidence, and fill no baseline.
            requests = len(np.unique(sample.request_index))
            layer.rows += len(sample.request_index)
            layer.requests += requests
            if not self._frozen(sample.layer):
                layer.baseline_requests += requests
            layer.last_seen = now
            layer.baseline_started = layer.baseline_started or now
            for traffic, at in layer.watch.by_traffic():
                found = layer.watch.limits.high[at], layer.watch.limits.low[at]
                self._evidence.absorb(sample, layer.watch.indices[at], *found, now, traffic)

    def tick(self, now: float) -> tuple[Event, ...]:
        """Close the window if it is over, run the detectors, and return what changed.

        A clock that jumps back does not stall detection: the window then ends at once. One that
        jumps ahead closes one window, not the many it skipped.
        """
        with self._lock:
            began = self._window_began
            if began <= now < began + self._settings.window_seconds:
                return ()
            self._window_began = now
            keys, flagged = tuple(self._layers), self._tested()
            events, self._retired = self._retired, []
        for key in keys:  # readers get their turn in between
            with self._lock:
                if key in self._layers:  # it may have had to give way
                    self._close_alone(key, began, now, flagged, events)
        return tuple(events)

    def _close_alone(
        self, key: LayerKey, began: float, now: float, flagged: int, events: list[Event]
    ) -> None:
        """Close a layer's window and add what changed; if that fails, the other layers go on."""
        layer, failed = self._layers[key], False
        try:
            events.extend(self._close(key, began, now, flagged))
        except Exception:  # noqa: BLE001 - rule 1: one broken layer must not stop the others
            failed = True
            layer.failed_windows += 1
            if not layer.failing:  # once, not in every window
                structlog.get_logger().exception("layer_failed", layer=str(key))
        layer.failing = failed

    def _close(self, key: LayerKey, began: float, now: float, flagged: int) -> Iterator[Event]:
        layer, counts = self._layers[key], self._bank_of(key).close(key, now)
        layer.nonfinite += counts.nonfinite
        if counts.watched is not None:
            followed = np.arange(len(layer.activations.keys))
            layer.activations.add(counts.watched.select(followed))
        self._evidence.close(key, now)
        for change in layer.watch.observe(counts, self._policy, now, flagged):
            blamed = self._follow(layer.watch, change)
            for event in layer.watch.told((change,)):
                yield replace(event, detail=event.detail + blamed)
        yield from self._judge(key, counts, now)
        if self._on_window is not None and len(layer.watch.indices):
            subject = self._subject(key)
            self._on_window(record_of(subject, counts, layer.levels.plain, now, flagged))
        if self._frozen(key):
            return
        if layer.baseline_started:
            layer.learn(began, now, self._settings.window_seconds)
        if self._has_learned(layer, 1.0):
            yield self._freeze(key, now, "learned")
        elif self._has_learned(layer, _PLACING):
            self._place_thresholds(key)

    def _judge(self, key: LayerKey, counts: WindowCounts, now: float) -> Iterator[Event]:
        """Run what is no spike test: the screen of the whole layer, conditions, and drift."""
        layer = self._layers[key]
        if key in self._bank.layers():
            words = layer.screening.observe(counts, layer.watch.spiking, self._screen, now)
            if words is not None:
                what = "layer_shifted" if layer.screening.shifted else "layer_settled"
                yield Event(now, what, str(key), words)
        for certain in layer.watch.conditions.observe(counts, layer.watch.flags, now):
            feature = layer.watch.keys[certain.index]
            verdict = certain.condition if certain.holds else f"no longer {certain.condition}"
            yield Event(now, "feature_condition", str(feature), f"{verdict}: {certain.reason}")
        for drifted in layer.watch.drift.observe(counts, layer.watch.flags, now):
            what = "feature_drifting" if drifted.drifting else "feature_settled"
            yield Event(now, what, str(layer.watch.keys[drifted.index]), drifted.reason)

    def _has_learned(self, layer: MonitoredLayer, share: float) -> bool:
        """Whether a layer has learned this share of what its baseline needs."""
        return (
            layer.baseline_requests >= share * self._settings.baseline_min_requests
            and layer.learned_seconds >= share * self._settings.baseline_min_seconds
        )

    def _place_thresholds(self, key: LayerKey) -> None:
        """Have every feature of a dense layer compared with the thresholds of its baseline, once.

        What comes from now on until the baseline freezes says how often requests pass them.
        """
        if key in self._sparse.layers():
            return
        expected = self._bank.expectation(key)
        if expected is None or expected.level != self._policy.quantile:
            self._bank.place_thresholds(key, self._policy.quantile)
            self._set_thresholds(key)

    def _subject(self, key: LayerKey) -> Subject:
        """Return what the recorded windows of a layer are about: the same until that changes."""
        layer = self._layers[key]
        if layer.subject is None:
            frozen, indices = self._frozen(key), layer.watch.indices
            layer.subject = subject_of(
                layer.watch,
                layer.capture,
                self._bank_of(key).snapshot(key, Period.BASELINE, indices) if frozen else None,
                layer.levels,
                quantile=self._policy.quantile,
                window_seconds=self._settings.window_seconds,
            )
        return layer.subject

    def _tested(self) -> int:
        """Return how many features are tested for spikes: they share the false alarms."""
        return sum(int(layer.watch.tested.sum()) for layer in self._layers.values())

    def _follow(self, watch: LayerWatch, change: Transition) -> str:
        """Make the evidence of a change of state; return what the audit log says of its cause."""
        above, below = watch.limits.high[change.index], watch.limits.low[change.index]
        feature = watch.keys[change.index]
        record = self._evidence.follow(
            feature,
            change,
            tolerated=change.tolerated,
            above=math.inf if math.isnan(above) else float(above),
            below=-math.inf if math.isnan(below) else float(below),
            traffic=watch.flags[change.index].traffic,
        )
        if record is None:
            return ""
        self._evidence_ids[feature] = record.id
        return f". {record.attribution.words}" if record.attribution.cause else ""

    # -- evidence ---------------------------------------------------------------------------

    def waiting_evidence(self) -> tuple[EvidenceRecord, ...]:
        """Return the records that are not on the disk yet, oldest first."""
        with self._lock:
            return self._evidence.waiting()

    def evidence_saved(self, record_id: str) -> None:
        """Let go of a record that is on the disk."""
        with self._lock:
            self._evidence.saved(record_id)

    def show_evidence(self, newest: Mapping[FeatureKey, str]) -> None:
        """Say which record of each feature is the newest on the disk; those that wait are newer."""
        with self._lock:
            waiting = {record.feature: record.id for record in self._evidence.waiting()}
            self._evidence_ids = {**newest, **waiting}

    def evidence_counts(self) -> EvidenceCounts:
        """Return how the memory of evidence stands."""
        with self._lock:
            return self._evidence.counts()

    def _with_evidence(self, statuses: Iterable[FeatureStatus]) -> Iterator[FeatureStatus]:
        """Put the ids of the newest records into statuses; few features have one."""
        for status in statuses:
            found = self._evidence_ids.get(status.key)
            yield replace(status, evidence_id=found) if found else status

    def use(self, kernels: Kernels) -> None:
        """Count with other kernels from now on."""
        with self._lock:
            self._bank.use(kernels)

    # -- flags and baselines ----------------------------------------------------------------

    def set_flags(self, flags: Mapping[FeatureSelector, Flag], now: float) -> tuple[Event, ...]:
        """Watch exactly the features these selectors name, in every layer known now or later.

        Returns:
            What was told of features and no longer holds, because nobody watches for it any more.
        """
        with self._lock:
            self._flags, self._unmatched = dict(flags), None
            return tuple(event for layer in self._layers for event in self._rewatch(layer, now))

    def _rewatch(self, key: LayerKey, now: float) -> tuple[Event, ...]:
        wanted: dict[int, Flag] = {}
        width = self._bank_of(key).width(key)
        for selector, flag in self._flags.items():
            if selector.matches(key) and selector.index < width:
                wanted[selector.index] = flag
        watch = self._layers[key].watch
        if watch.watches(wanted, self._policy):
            return ()
        ended = watch.rewatch(wanted, self._policy, now)
        self._set_thresholds(key)
        return ended

    def _set_thresholds(self, key: LayerKey) -> None:
        """Tell the bank what to compare with; an unset threshold is never exceeded."""
        layer, quantile = self._layers[key], self._policy.quantile
        dense, watched = key in self._bank.layers(), None
        expected = self._bank.expectation(key) if dense else None
        if self._frozen(key) and len(layer.watch.indices):
            watched = self._bank_of(key).snapshot(key, Period.BASELINE, layer.watch.indices)
            layer.watch.use_baseline(watched, expected, self._policy)
            bounds = place_bounds(watched.quantile)
        else:
            layer.watch.forget_baseline()
            bounds = fallback_bounds(len(layer.watch.indices))
        layer.levels = Levels.of(watched, self._levels, layer.watch.flags)
        layer.subject = None
        self._followed -= len(layer.activations.keys)
        # Latents have a distribution of their own kind, and no histogram in scrapes.
        room = self._activation_limit - self._followed if dense else 0
        layer.activations.follow(key, layer.watch.indices[:room], bounds[:room])
        self._followed += len(layer.activations.keys)
        placed = expected is not None and expected.level == quantile
        self._bank_of(key).watch(
            key,
            layer.watch.limits.watched(
                layer.watch.indices,
                layer.watch.flags,
                layer.levels.thresholds,
                expected.thresholds if expected is not None and placed else None,
            ),
        )
        layer.screening.use_baseline(expected if placed and self._frozen(key) else None)

    def freeze(self, layers: Sequence[LayerKey], now: float) -> tuple[Event, ...]:
        """Take what was learned so far as the baseline of ``layers``.

        Raises:
            BaselineNotReady: Nothing was learned of one of them; then none is frozen.
        """
        with self._lock:
            for key in layers:
                if not self._frozen(key) and not self._layers[key].baseline_requests:
                    raise BaselineNotReady(
                        f"layer {key}: no sample seen since it was registered or learned anew, so there is "
                        "nothing to freeze: send traffic first"
                    )
            return tuple(self._freeze(k, now, "by command") for k in layers if not self._frozen(k))

    def _bank_of(self, key: LayerKey) -> Bank | SparseBank:
        """Return the bank that counts a registered layer."""
        return self._sparse if key in self._sparse.layers() else self._bank

    def _frozen(self, key: LayerKey) -> bool:
        return self._bank_of(key).frozen(key)

    def _freeze(self, key: LayerKey, now: float, how: str) -> Event:
        self._place_thresholds(key)  # if it was too early so far: then no rate is measured
        self._bank_of(key).freeze(key)
        self._set_thresholds(key)
        layer = self._layers[key]
        layer.learn(self._window_began, now, self._settings.window_seconds)
        layer.baseline_started = max(now - layer.learned_seconds, 0.0)  # by the clock as it is now
        layer.baseline_frozen_at, layer.baseline_origin = now, how
        requests = layer.baseline_requests
        return Event(now, "baseline_frozen", str(key), f"{how}, {requests} requests")

    def reset(self, layers: Sequence[LayerKey], now: float, reason: str = "") -> tuple[Event, ...]:
        """Forget the baselines of ``layers`` and learn anew, from live traffic alone."""
        with self._lock:
            events, flagged = [], self._tested()
            for key in layers:
                layer = self._layers[key]
                detail = f"{layer.baseline_requests} requests forgotten"
                if layer.baseline_digest:
                    detail += f", baseline {layer.baseline_digest[:DIGEST_SHOWN]}"
                self._bank_of(key).reset(key)
                layer.baseline_requests = 0
                layer.baseline_started, layer.learned_seconds = now, 0.0
                layer.baseline_digest, layer.relearns = "", True
                layer.baseline_frozen_at = (
                    0.0  # what is being stored of the old one names it no more
                )
                # At once: a new baseline may be there before the window ends.
                ended = tuple(self._lose_baseline(key, now, flagged))
                self._set_thresholds(key)
                detail += f": {reason}" if reason else ""
                events += [Event(now, "baseline_relearned", str(key), detail), *ended]
            return tuple(events)

    def _lose_baseline(self, key: LayerKey, now: float, flagged: int) -> Iterator[Event]:
        """Drop all that was found against a layer's baseline; yield what no longer holds."""
        layer = self._layers[key]
        if layer.screening.shifted:
            yield Event(now, "layer_settled", str(key), BASELINE_GONE)
        layer.screening = Screening()
        yield from layer.watch.lose_baseline(self._policy, now, flagged)

    # -- versions of baselines --------------------------------------------------------------

    def unnamed_baselines(self) -> tuple[LayerKey, ...]:
        """Return the dense layers whose frozen baseline has no digest yet."""
        with self._lock:
            return tuple(
                key
                for key in self._bank.layers()
                if not self._layers[key].baseline_digest and self._bank.frozen(key)
            )

    def learning_layers(self) -> tuple[LayerKey, ...]:
        """Return the dense layers that learn a baseline and would take a shared one instead."""
        with self._lock:
            return tuple(key for key in self._bank.layers() if self._would_share(key))

    def _would_share(self, key: LayerKey) -> bool:
        return not self._bank.frozen(key) and not self._layers[key].relearns

    def baseline(self, layer: LayerKey) -> tuple[BaselineFacts, bytes, str] | None:
        """Return the facts, statistics and origin of a layer's frozen baseline; None without one."""
        with self._lock:
            known = self._layers.get(layer)
            if known is None or layer not in self._bank.layers() or not self._bank.frozen(layer):
                return None
            expectation = self._bank.expectation(layer)
            facts = BaselineFacts(
                layer=layer,
                capture=known.capture,
                width=self._bank.width(layer),
                requests=known.baseline_requests,
                windows=expectation.windows if expectation is not None else 0,
                started=known.baseline_started,
                frozen=known.baseline_frozen_at,
            )
            origin, found = known.baseline_origin, self._bank.baseline(layer)
        # Seconds of work for the widest layers, so not under the lock.
        return facts, found.encode(), origin

    def name_baseline(self, layer: LayerKey, digest: str, frozen_at: float) -> None:
        """Say under which digest the baseline that froze at a time is stored."""
        with self._lock:
            known = self._layers.get(layer)
            # It may have been reset, and even have frozen again, while it was written.
            if known is not None and known.baseline_frozen_at == frozen_at:
                known.baseline_digest = digest

    def baseline_digests(self) -> Mapping[LayerKey, str]:
        """Return the digest of every stored baseline that is in force."""
        with self._lock:
            return {
                key: layer.baseline_digest
                for key, layer in self._layers.items()
                if layer.baseline_digest
            }

    def adopt_baseline(
        self,
        facts: BaselineFacts,
        statistics: bytes,
        digest: str,
        how: str,
        now: float,
        *,
        learning: bool = False,
    ) -> tuple[Event, ...]:
        """Compare a registered dense layer with a baseline that was learned elsewhere.

        Its windows and history start anew, on the bins of that baseline, and so do its detectors.

        Args:
            facts: What it was learned on.
            statistics: As ``baseline`` returns them.
            digest: Under which it is stored.
            how: How it came here, in words.
            now: Unix seconds.
            learning: Whether only a layer may have it that is among the ``learning_layers``.

        Raises:
            UnknownLayer: It was never registered, or is sparse.
            CorruptState: The statistics cannot be read.
            LayerConflict: They are of another width or other bins, or the layer is not learning.
        """
        with self._lock:
            read = self._bank.reader(facts.layer)
        # Seconds of work for the widest layers, so not under the lock.
        found = read(statistics)
        with self._lock:
            if learning and not self._would_share(facts.layer):
                raise LayerConflict(f"layer {facts.layer} does not learn any more, or its own only")
            self._bank.adopt(facts.layer, found)
            layer = self._layers[facts.layer]
            ended = tuple(self._lose_baseline(facts.layer, now, self._tested()))
            layer.baseline_requests, layer.baseline_started = facts.requests, facts.started
            layer.learned_seconds = max(facts.frozen - facts.started, 0.0)
            layer.baseline_frozen_at, layer.baseline_digest = facts.frozen, digest
            layer.baseline_origin, layer.relearns = "imported", False
            self._set_thresholds(facts.layer)
            detail = f"{how}, {facts.requests} requests, baseline {digest[:DIGEST_SHOWN]}"
            return Event(now, "baseline_imported", str(facts.layer), detail), *ended

    # -- questions --------------------------------------------------------------------------

    def select(self, model: str = "", revision: str = "", layer: str = "") -> tuple[LayerKey, ...]:
        """Return the layers that match; empty strings match all, a digest may be shortened."""
        with self._lock:
            return tuple(
                key
                for key in self._ordered()
                if (not model or key.model == model)
                and revision_matches(revision, key.revision)
                and (not layer or key.layer == layer)
            )

    def _ordered(self) -> tuple[LayerKey, ...]:
        """Return the known layers in order; there may be thousands, and every scrape asks."""
        if self._order is None:
            self._order = tuple(sorted(self._layers))
        return self._order

    def resolve(self, text: str) -> FeatureKey:
        """Find the feature a person names.

        Args:
            text: ``model@revision/layer/kind/index[;view]``; the revision may be a prefix, or be
                left out with its ``@`` when only one revision was seen.

        Raises:
            InvalidName: The text has another form.
            UnknownModel: No such model or revision was seen.
            UnknownLayer: The model has no such layer.
            UnknownFeature: The layer has no such index, or several revisions fit.
        """
        wanted = FeatureSelector.parse(text)
        with self._lock:
            fitting = [key for key in self._layers if wanted.matches(key)]
            if len(fitting) == 1:
                return self._within(fitting[0], wanted.index)
            if fitting:
                names = ", ".join(sorted(key.shown_revision for key in fitting))
                raise UnknownFeature(f"feature {text!r} fits revisions {names}: name one")
            known = self.select(wanted.model, wanted.revision)
            if not known:
                raise UnknownModel(
                    f"feature {text!r}: no layer of model {wanted.model!r}"
                    f"{' at that revision' if wanted.revision else ''} was ever registered"
                )
            # As a feature is written, so that a view or scope that differs is seen.
            names = ", ".join(
                sorted({f"{k.layer}{str(k).partition(k.layer)[2]}" for k in known})[:20]
            )
            raise UnknownLayer(f"feature {text!r}: no such layer; there are {names}")

    def _within(self, layer: LayerKey, index: int) -> FeatureKey:
        width = self._bank_of(layer).width(layer)
        if index >= width:
            raise UnknownFeature(f"feature index {index} of {layer}: use 0 to {width - 1}")
        return layer.feature(index)

    def layers(self) -> tuple[LayerStatus, ...]:
        """Return how every layer stands, sorted by key."""
        with self._lock:
            return tuple(self._layer_status(key) for key in self._ordered())

    def _layer_status(self, key: LayerKey) -> LayerStatus:
        layer = self._layers[key]
        return LayerStatus(
            key=key,
            width=self._bank_of(key).width(key),
            capture=layer.capture,
            rows=layer.rows,
            requests=layer.requests,
            nonfinite=layer.nonfinite,
            baseline_requests=layer.baseline_requests,
            baseline_frozen=self._frozen(key),
            last_seen=layer.last_seen,
            restored=layer.restored,
            detail=self._bank_of(key).detail(key),
            memory_bytes=self._bank_of(key).layer_bytes(key),
            failed_windows=layer.failed_windows,
            screened_features=layer.screening.judged,
            significant_features=layer.screening.significant,
            shifted=layer.screening.shifted,
            baseline_id=layer.baseline_digest[:DIGEST_SHOWN],
            baseline_windows=self._measured_windows(key),
            baseline_min_requests=self._settings.baseline_min_requests,
            baseline_min_seconds=self._settings.baseline_min_seconds,
            anomalies=self.anomalies(key),
        )

    def anomalies(self, key: LayerKey) -> tuple[Anomaly, ...]:
        """Return the unflagged features of a registered layer that the screen finds; few."""
        with self._lock:
            layer = self._layers[key]
            return layer.screening.anomalies.top(key, set(layer.watch.indices.tolist()))

    def _measured_windows(self, key: LayerKey) -> int:
        expected = self._bank.expectation(key) if key in self._bank.layers() else None
        return 0 if expected is None else expected.windows

    def memory(self) -> Memory:
        """Return how the memory of distributions stands."""
        with self._lock:
            return self._bank.memory()

    def watched_windows(self, layer: LayerKey) -> tuple[WatchedWindow, ...]:
        """Return the last closed windows of a layer's flagged features in finer bins, oldest first.

        Raises:
            UnknownLayer: It was never registered.
        """
        with self._lock:
            return self._bank.watched_windows(layer)

    def watched(self) -> tuple[FeatureStatus, ...]:
        """Return how every flagged feature of every known layer stands, sorted by key."""
        with self._lock:
            flagged = self._tested()
            return tuple(
                status
                for key in self._ordered()
                if self._layers[key].watch.keys
                for status in self._statuses(key, flagged)
            )

    def _statuses(self, key: LayerKey, flagged: int) -> Sequence[FeatureStatus]:
        watch = self._layers[key].watch
        return list(self._with_evidence(watch.statuses(self._policy, self._learning(key), flagged)))

    def activations(self) -> tuple[LayerActivations, ...]:
        """Return what watched features did since the daemon started, of every layer with such."""
        with self._lock:
            return tuple(
                self._layers[key].activations.view(key)
                for key in self._ordered()
                if self._layers[key].activations.keys
            )

    def unmatched(self) -> tuple[FeatureSelector, ...]:
        """Return the flags for which no known layer has a feature: not the layer, or not the index."""
        with self._lock:
            if self._unmatched is None:
                self._unmatched = tuple(self._without_feature())
            return self._unmatched

    def _without_feature(self) -> Iterator[FeatureSelector]:
        # By name first: a thousand flags times thousands of layers is too much under the lock.
        places: dict[tuple[str, str], list[LayerKey]] = {}
        for key in self._layers:
            places.setdefault((key.model, key.layer), []).append(key)
        for flag in self._flags:
            near = places.get((flag.model, flag.layer), ())
            if not any(
                flag.matches(key) and flag.index < self._bank_of(key).width(key) for key in near
            ):
                yield flag

    def _learning(self, key: LayerKey) -> str:
        layer, settings = self._layers[key], self._settings
        return (
            f"Learning its baseline: {layer.baseline_requests} of at least "
            f"{settings.baseline_min_requests} requests over at least "
            f"{settings.baseline_min_seconds:g} s."
        )

    def features(
        self, layers: Iterable[LayerKey], offset: int, limit: int
    ) -> tuple[tuple[FeatureStatus, ...], int]:
        """Return one page of all features of ``layers``, flagged or not, and how many there are."""
        found: list[FeatureStatus] = []
        total = 0
        with self._lock:
            flagged = self._tested()
            for key in layers:
                width = self._bank_of(key).width(key)
                first = max(offset - total, 0)
                last = min(offset + limit - total, width)
                if first < last:
                    known = {one.key.index: one for one in self._statuses(key, flagged)}
                    found += [known.get(i) or unwatched(key, i) for i in range(first, last)]
                total += width
        return tuple(found), total

    def feature(self, key: FeatureKey) -> FeatureStatus:
        """Return how one feature stands.

        Raises:
            UnknownLayer: Its layer was never registered.
            UnknownFeature: The layer has no such index.
        """
        with self._lock:
            if key.layer not in self._layers:
                raise UnknownLayer(f"layer {key.layer} was never registered")
            self._within(key.layer, key.index)
            page, _ = self.features([key.layer], key.index, 1)
        return page[0]

    def distribution(self, key: FeatureKey, window: Window) -> FeatureDistribution:
        """Return one feature's distribution over one window.

        Raises:
            UnknownLayer: Its layer was never registered.
            UnknownFeature: The layer has no such index.
        """
        with self._lock:
            self.feature(key)
            one = self._bank_of(key.layer).snapshot(
                key.layer, _PERIODS[window], np.array([key.index])
            )
        return describe(key, window, one)

    def typical_range(self, layer: LayerKey) -> tuple[np.ndarray, np.ndarray] | None:
        """Return ``(low, high)``, each ``(width,)`` float32, of the frozen baseline; else None.

        Sparse layers have none: no picture is made of a million latents at once.
        """
        with self._lock:
            if layer not in self._bank.layers() or not self._bank.frozen(layer):
                return None
            baseline = self._bank.snapshot(layer, Period.BASELINE)
        # Seconds of work for the widest layers, so not under the lock.
        bounds = baseline.quantile(TYPICAL_LEVELS)
        return bounds[:, 0].astype(np.float32), bounds[:, 1].astype(np.float32)

    # -- survival ---------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Return everything but the flags and the evidence, for ``restore``."""
        with self._lock:
            keys = self._bank.layers()
            saved = [self._layers[key].to_dict(key) for key in self._sparse.layers()]
            sparse = self._sparse.encoder()
        copies = []
        for key in keys:  # readers and the writer get their turn in between
            with self._lock:
                if key in self._layers:  # it may have had to give way
                    saved.append(self._layers[key].to_dict(key))
                    copies.append(self._bank.copy(key))
        return pack(saved, self._bank.pack(copies), sparse())

    def restore(self, payload: bytes, now: float) -> None:
        """Become what ``encode`` saw; call before anything is registered.

        Raises:
            CorruptState: The payload is not what ``encode`` makes, or was made under settings with
                other bins; the monitor is then unchanged.
        """
        settings = self._settings, self._policy, self._bank.kernels
        layers, bank, sparse = unpack(payload, *settings, now)
        with self._lock:
            self._bank, self._sparse, self._layers, self._followed = bank, sparse, layers, 0
            self._unmatched = self._order = None
            for key in layers:
                self._set_thresholds(key)
