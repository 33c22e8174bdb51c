"""Statistics, flags and detectors under one lock."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import structlog

from sidecar.detect import Transition
from sidecar.errors import BaselineNotReady, LayerConflict, LimitReached
from sidecar.features import (
    Capture,
    FeatureKey,
    FeatureSelector,
    LayerKey,
    LayerSample,
    SparseSample,
)
from sidecar.monitor.activations import fallback_bounds, place_bounds
from sidecar.monitor.banks import pack, unpack
from sidecar.monitor.books import DIGEST_SHOWN
from sidecar.monitor.cautions import cautions_in_force
from sidecar.monitor.evidence import EvidenceCounts
from sidecar.monitor.layer import MonitoredLayer
from sidecar.monitor.questions import Questions
from sidecar.monitor.record import EvidenceRecord
from sidecar.monitor.screening import Screening
from sidecar.monitor.views import Event, Flag
from sidecar.monitor.watch import BASELINE_GONE, LayerWatch
from sidecar.monitor.windows import Levels, record_of, subject_of
from sidecar.stats import Bank, Kernels, Period, SparseBank, SparseKernels, WindowCounts
from sidecar.store import BaselineFacts, Subject

_PLACING = 0.5
"""Share of a baseline after which thresholds are placed; the rest measures how often they are passed.
The values that placed a threshold cannot say that: of those it is passed by as few as it was made for."""


class Monitor(Questions):
    """Every feature's distribution, flag and state.

    All methods may be called from any thread; each holds the lock for one layer's arithmetic at
    most. ``tick`` and ``encode`` let go of it between layers, so each layer is whole in a snapshot,
    and two may be a batch apart.
    """

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
            self._caution(layer)

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
        self._learn_own(key, counts)
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

    def _learn_own(self, key: LayerKey, counts: WindowCounts) -> None:
        """Count a closed window for the flags that are watched in their own way."""
        watch, frozen = self._layers[key].watch, self._frozen(key)
        if (
            watch.own.add(counts, watch.flags, self._policy.quantile, learning=not frozen)
            and frozen
        ):
            self._set_thresholds(key)

    def _place_thresholds(self, key: LayerKey) -> None:
        """Have features compared with the thresholds of their baseline, once: all of a dense layer.

        What comes from now on until the baseline freezes says how often requests pass them.
        """
        watch, quantile, placed = self._layers[key].watch, self._policy.quantile, False
        expected = self._expected(key)
        if key in self._bank.layers() and (expected is None or expected.level != quantile):
            self._bank.place_thresholds(key, quantile)
            expected, placed = self._expected(key), True
        missing = watch.unplaced(expected, quantile)
        if len(missing):
            found = self._bank_of(key).snapshot(key, Period.BASELINE, watch.indices[missing])
            watch.place(found, missing, quantile)
        if placed or len(missing):
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
                baseline_factor=self._policy.baseline_factor,
                window_seconds=self._settings.window_seconds,
            )
        return layer.subject

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
        dense, watched, expected = key in self._bank.layers(), None, self._expected(key)
        if self._frozen(key) and len(layer.watch.indices):
            watched = self._bank_of(key).snapshot(key, Period.BASELINE, layer.watch.indices)
            layer.watch.use_baseline(watched, expected, self._policy)
            bounds, limits = place_bounds(watched.quantile), layer.watch.limits
        else:
            layer.watch.forget_baseline()
            bounds = fallback_bounds(len(layer.watch.indices))
            limits = layer.watch.learning(expected, quantile)
        layer.levels = Levels.of(watched, self._levels, layer.watch.flags)
        layer.subject = None
        self._followed -= len(layer.activations.keys)
        # Latents have a distribution of their own kind, and no histogram in scrapes.
        room = self._activation_limit - self._followed if dense else 0
        layer.activations.follow(key, layer.watch.indices[:room], bounds[:room])
        self._followed += len(layer.activations.keys)
        levels = layer.levels.thresholds
        watching = limits.watched(layer.watch.indices, layer.watch.flags, levels)
        self._bank_of(key).watch(key, watching)
        # The screen needs no quantile but the one that its baseline was measured at.
        layer.screening.use_baseline(expected if self._frozen(key) else None)
        self._caution(key)

    def _caution(self, key: LayerKey) -> None:
        """Work out anew what speaks against the baseline of a layer."""
        layer, frozen = self._layers[key], self._frozen(key)
        expected, quantile = self._expected(key), self._policy.quantile
        how = layer.baseline_capture, layer.capture
        layer.cautions = cautions_in_force(expected, quantile, *how) if frozen else ()

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

    def _freeze(self, key: LayerKey, now: float, how: str) -> Event:
        self._place_thresholds(key)  # if it was too early so far: then no rate is measured
        self._bank_of(key).freeze(key)
        self._set_thresholds(key)
        layer = self._layers[key]
        layer.learn(self._window_began, now, self._settings.window_seconds)
        layer.baseline_started = max(now - layer.learned_seconds, 0.0)  # by the clock as it is now
        layer.baseline_frozen_at, layer.baseline_origin = now, how
        layer.baseline_capture = layer.capture
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
                layer.baseline_capture = None
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
                capture=known.baseline_capture or known.capture,
                width=self._bank.width(layer),
                requests=known.baseline_requests,
                windows=expectation.windows if expectation is not None else 0,
                started=known.baseline_started,
                frozen=known.baseline_frozen_at,
            )
            origin, found = known.baseline_origin, self._bank.baseline(layer)
            found = replace(found, own=known.watch.own.counts())
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

    def baseline_cautions(self) -> Mapping[LayerKey, tuple[str, ...]]:
        """Return what speaks against the baselines in force, in sentences, where something does."""
        with self._lock:
            return {key: layer.cautions for key, layer in self._layers.items() if layer.cautions}

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
            layer.watch.own.take(found.own)
            layer.baseline_requests, layer.baseline_started = facts.requests, facts.started
            layer.learned_seconds = max(facts.frozen - facts.started, 0.0)
            layer.baseline_frozen_at, layer.baseline_digest = facts.frozen, digest
            layer.baseline_origin, layer.relearns = "imported", False
            layer.baseline_capture = facts.capture
            self._set_thresholds(facts.layer)
            detail = f"{how}, {facts.requests} requests, baseline {digest[:DIGEST_SHOWN]}"
            return Event(now, "baseline_imported", str(facts.layer), detail), *ended

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
