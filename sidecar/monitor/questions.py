"""What the monitor answers: layers, features and distributions as they stand."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sidecar.errors import UnknownFeature, UnknownLayer, UnknownModel
from sidecar.features import FeatureKey, FeatureSelector, LayerKey, revision_matches
from sidecar.monitor.books import DIGEST_SHOWN, Books
from sidecar.monitor.describe import describe, unwatched
from sidecar.monitor.views import (
    Anomaly,
    FeatureDistribution,
    FeatureStatus,
    LayerActivations,
    LayerStatus,
    Window,
)
from sidecar.stats import Memory, Period, WatchedWindow

TYPICAL_LEVELS = np.array([0.01, 0.999])
"""The range of activations called typical: what all but the rarest live rows stay within."""

_PERIODS = {
    Window.CURRENT: Period.CURRENT,
    Window.BASELINE: Period.BASELINE,
    Window.HISTORY: Period.HISTORY,
}


class Questions(Books):
    """Every question about layers and features; none of them changes what is kept."""

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

    def screened_quantile(self, key: LayerKey) -> float:
        """Return the baseline quantile at which a registered layer is screened; NaN: it is not yet.

        That of the spike test, unless the setting was changed after the baseline was learned.
        """
        with self._lock:
            expected = self._expected(key)
            return math.nan if expected is None else expected.level

    def _measured_windows(self, key: LayerKey) -> int:
        expected = self._expected(key)
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

    def _with_evidence(self, statuses: Iterable[FeatureStatus]) -> Iterator[FeatureStatus]:
        """Put the ids of the newest records into statuses; few features have one."""
        for status in statuses:
            found = self._evidence_ids.get(status.key)
            yield replace(status, evidence_id=found) if found else status

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
        if self._frozen(key):
            return "Its baseline has no finite value of it: nothing can be said."
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
