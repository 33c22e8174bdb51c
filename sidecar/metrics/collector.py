"""Turns what the daemon knows into metric families, on every scrape."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)

from sidecar import errors
from sidecar.detect import State
from sidecar.features import REVISION_DISPLAY, LayerKey, Scope
from sidecar.metrics import catalogue
from sidecar.metrics.catalogue import Family, FamilyType
from sidecar.metrics.source import JobCounts, MetricsSource, StorageCounts
from sidecar.monitor import FeatureStatus, IngestCounts, LayerStatus

# Reasons come over the wire in hook reports; beyond this many the rest is summed as "other", so
# that a broken or hostile client cannot grow the number of series.
_REASON_LIMIT = 32

# Reasons that exist at zero from the first scrape on, so that rate() sees their very first batch.
_REFUSALS = tuple(
    kind.reason
    for kind in (
        errors.QueueFull,
        errors.UnsupportedDtype,
        errors.PayloadMismatch,
        errors.ShapeMismatch,
        errors.InvalidName,
        errors.MessageTooLarge,
        errors.MalformedMessage,
        errors.UnregisteredLayer,
        errors.UnregisteredStream,
        errors.UnknownModel,
        errors.LayerConflict,
        errors.LimitReached,
    )
)
_DROPS = ("shutdown", errors.SidecarError.reason)
_HOOK_DROPS = ("queue_full", "no_credit", "disconnected", "breaker_open", "too_large", "error")

_JOB_STATES = ("queued", "running", "done", "failed", "cancelled")
_SECTIONS = ("features", "flags", "layers", "ingest", "jobs", "storage")

_Item = TypeVar("_Item")
_Row = tuple[Family, Sequence[str], float]


class Collector:
    """A ``prometheus_client`` collector over a ``MetricsSource``.

    Scrapes are bounded: at most ``flagged_limit`` features, flags and layers each have series, and
    what is left out is counted in ``sidecar_series_truncated``. A section of the source that raises
    is left out and counted in ``sidecar_collect_errors_total``; the rest of the scrape is served.
    May be collected from several threads at once.

    Complexity:
        About 10 samples a flagged feature and 8 a layer.
    """

    def __init__(
        self, source: MetricsSource, *, version: str, config_digest: str, flagged_limit: int = 1000
    ) -> None:
        self._source = source
        self._build = (version, config_digest[:REVISION_DISPLAY])
        self._limit = flagged_limit
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering needs no source."""
        return [_empty(family) for family in catalogue.FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the catalogue once, in its order; empty where there is no data."""
        found = {family: _empty(family) for family in catalogue.FAMILIES}
        for family, labels, value in self._rows():
            _add(found[family], labels, value)
        yield from found.values()

    def _rows(self) -> Iterator[_Row]:
        source = self._source
        features = self._read("features", source.features)
        layers = self._read("layers", source.layers)
        flags = self._read("flags", source.unmatched_flags)
        yield from self._section("features", lambda: self._features(features))
        yield from self._section("layers", lambda: self._layers(layers, features))
        yield from self._section("flags", lambda: self._flags(flags))
        yield from self._section("ingest", lambda: _ingest(source.ingest()))
        yield from self._section("jobs", lambda: _jobs(source.jobs()))
        yield from self._section("storage", lambda: _storage(source.storage()))
        yield catalogue.BUILD_INFO, self._build, 1
        with self._lock:
            failed = dict(self._errors)
        for section in _SECTIONS:
            yield catalogue.COLLECT_ERRORS, (section,), failed.get(section, 0)

    def _read(self, section: str, read: Callable[[], Sequence[_Item]]) -> Sequence[_Item]:
        try:
            return read()
        except Exception:  # noqa: BLE001 - one broken section must not hide all the others
            with self._lock:
                self._errors[section] += 1
            return ()

    def _section(self, section: str, rows: Callable[[], Iterable[_Row]]) -> Sequence[_Row]:
        return self._read(section, lambda: list(rows()))

    def _features(self, statuses: Sequence[FeatureStatus]) -> Iterator[_Row]:
        kept, left_out = _distinct(((_feature_labels(s), s) for s in statuses), self._limit)
        for labels, status in kept.items():
            yield from _feature(labels, status)
        yield catalogue.SERIES_TRUNCATED, ("features",), left_out

    def _layers(
        self, statuses: Sequence[LayerStatus], features: Sequence[FeatureStatus]
    ) -> Iterator[_Row]:
        flagged = Counter(status.key.layer for status in features)
        kept, left_out = _distinct(((_layer_labels(s.key), s) for s in statuses), self._limit)
        for labels, status in kept.items():
            yield from _layer(labels, status, flagged[status.key])
        for model in dict.fromkeys(labels[:2] for labels in kept):
            yield catalogue.MODEL_INFO, model, 1
        yield catalogue.SERIES_TRUNCATED, ("layers",), left_out

    def _flags(self, flags: Sequence[str]) -> Iterator[_Row]:
        kept, left_out = _distinct((((_clean(flag),), flag) for flag in flags), self._limit)
        for labels in kept:
            yield catalogue.FLAG_UNMATCHED, labels, 1
        yield catalogue.SERIES_TRUNCATED, ("flags",), left_out


def _distinct(
    items: Iterable[tuple[tuple[str, ...], _Item]], limit: int
) -> tuple[dict[tuple[str, ...], _Item], int]:
    """Keep the first ``limit`` items with different labels; also return how many were left out.

    Prometheus rejects a scrape, or drops samples without a word, when two series are equal.
    """
    kept: dict[tuple[str, ...], _Item] = {}
    left_out = 0
    for labels, item in items:
        if labels in kept or len(kept) >= limit:
            left_out += 1
        else:
            kept[labels] = item
    return kept, left_out


def _feature_labels(status: FeatureStatus) -> tuple[str, ...]:
    layer = status.key.layer
    return (layer.model, layer.shown_revision, layer.layer, str(layer.kind), status.key.label)


def _layer_labels(key: LayerKey) -> tuple[str, ...]:
    view = str(key.view) if key.scope is Scope.ALL else f"{key.view};{key.scope}"
    return (key.model, key.shown_revision, key.layer, str(key.kind), view)


def _feature(labels: tuple[str, ...], status: FeatureStatus) -> Iterator[_Row]:
    yield catalogue.FEATURE_STATE, labels, status.state.code
    yield catalogue.FEATURE_SPIKING, labels, float(status.state is State.FIRING)
    yield catalogue.FEATURE_STATE_CHANGED, labels, status.since
    yield catalogue.FEATURE_REQUESTS, labels, status.requests
    # Without requests a share is no number; absence is what PromQL can tell from a real zero.
    if status.requests:
        yield catalogue.FEATURE_EXCEEDANCE, labels, status.exceedance_ratio
        yield catalogue.FEATURE_LONG_EXCEEDANCE, labels, status.long_exceedance_ratio
    yield catalogue.FEATURE_BASELINE_EXCEEDANCE, labels, status.baseline_ratio
    yield catalogue.FEATURE_THRESHOLD, labels, status.threshold
    yield catalogue.FEATURE_LAST, labels, status.last
    flag = status.flag
    about = (flag.name, flag.severity, flag.owner) if flag else ("", "warning", "")
    model, revision, layer, kind, feature = labels
    path = f"{model}@{revision}/{layer}/{kind}/{feature}"
    yield catalogue.FEATURE_INFO, (*labels, *map(_clean, about), path), 1


def _layer(labels: tuple[str, ...], status: LayerStatus, flagged: int) -> Iterator[_Row]:
    yield catalogue.LAYER_FEATURES, labels, status.width
    yield catalogue.LAYER_FLAGGED, labels, flagged
    rows, requests, nonfinite = status.restored
    yield catalogue.LAYER_ROWS, labels, status.rows - rows
    yield catalogue.LAYER_REQUESTS, labels, status.requests - requests
    yield catalogue.LAYER_NONFINITE, labels, status.nonfinite - nonfinite
    yield catalogue.LAYER_BASELINE_FROZEN, labels, float(status.baseline_frozen)
    yield catalogue.LAYER_BASELINE_REQUESTS, labels, status.baseline_requests
    yield catalogue.LAYER_LAST_SAMPLE, labels, status.last_seen


def _ingest(counts: IngestCounts) -> Iterator[_Row]:
    for family, value in (
        (catalogue.BATCHES_RECEIVED, counts.received),
        (catalogue.BATCHES_ACCEPTED, counts.accepted),
        (catalogue.BATCHES_PROCESSED, counts.processed),
        (catalogue.BATCHES_IN_FLIGHT, counts.in_flight),
        (catalogue.PAYLOAD_BYTES, counts.payload_bytes),
        (catalogue.QUEUE_BYTES, counts.queue_bytes),
        (catalogue.QUEUE_LIMIT, counts.queue_limit_bytes),
        (catalogue.STREAMS, counts.streams),
        (catalogue.SAMPLING_RATE, counts.sampling_rate),
        (catalogue.HOOK_SENT, counts.hook_batches_sent),
        (catalogue.HOOK_ERRORS, counts.hook_errors),
        (catalogue.HOOK_FORWARDS, counts.forwards),
        (catalogue.HOOK_SAMPLED, counts.sampled_forwards),
        (catalogue.HOOK_SECONDS, counts.hook_seconds),
        (catalogue.FORWARD_SECONDS, counts.forward_seconds),
    ):
        yield family, (), value
    yield from _by_reason(catalogue.BATCHES_REFUSED, counts.refused, _REFUSALS)
    yield from _by_reason(catalogue.BATCHES_DROPPED, counts.dropped, _DROPS)
    yield from _by_reason(catalogue.HOOK_DROPPED, counts.hook_dropped, _HOOK_DROPS)


def _jobs(counts: JobCounts) -> Iterator[_Row]:
    for state in _JOB_STATES:
        yield catalogue.JOBS, (state,), counts.states.get(state, 0)
    yield catalogue.JOB_RUNS, (), counts.timed
    yield catalogue.JOB_SECONDS, (), counts.seconds


def _storage(counts: StorageCounts) -> Iterator[_Row]:
    yield catalogue.ARTIFACT_BYTES, (), counts.artifact_bytes
    yield catalogue.ARTIFACT_LIMIT, (), counts.artifact_limit_bytes
    yield catalogue.SNAPSHOT_TIMESTAMP, (), counts.snapshot_at
    yield catalogue.SNAPSHOT_INTERVAL, (), counts.snapshot_interval_seconds
    yield catalogue.SNAPSHOT_FAILURES, (), counts.snapshot_failures
    yield catalogue.QUARANTINED, (), counts.quarantined


def _by_reason(family: Family, counts: Mapping[str, int], known: tuple[str, ...]) -> Iterator[_Row]:
    merged = Counter(dict.fromkeys(known, 0))
    for reason, count in sorted(counts.items()):
        name = _clean(reason)
        merged[name if name in merged or len(merged) < _REASON_LIMIT else "other"] += count
    for name, count in merged.items():
        yield family, (name,), count


def _clean(value: str) -> str:
    """Return ``value`` as text that UTF-8 can hold; a lone surrogate would end the whole scrape."""
    return value.encode("utf-8", "replace").decode()


_Metric = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily


def _empty(family: Family) -> _Metric:
    labels, unit = list(family.labels), _exposed_unit(family)
    match family.type:
        case FamilyType.COUNTER:
            return CounterMetricFamily(family.name, family.help, labels=labels, unit=unit)
        case FamilyType.GAUGE:
            return GaugeMetricFamily(family.name, family.help, labels=labels, unit=unit)
        case FamilyType.INFO:
            return InfoMetricFamily(family.name.removesuffix("_info"), family.help, labels=labels)


def _exposed_unit(family: Family) -> str:
    """Return the unit OpenMetrics states, which must be the end of the name."""
    last = family.name.removesuffix("_total").rpartition("_")[2]
    return last if last in ("seconds", "bytes", "ratio") else ""


def _add(metric: _Metric, labels: Sequence[str], value: float) -> None:
    if isinstance(metric, InfoMetricFamily):
        metric.add_metric(list(labels), {})
    elif not math.isnan(value):
        metric.add_metric(list(labels), value)
