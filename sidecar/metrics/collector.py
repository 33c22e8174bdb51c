"""Reads what the daemon knows into tables, once a scrape, within the limits on series."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import eq
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.samples import Exemplar

from sidecar.audits import AuditStatus
from sidecar.features import REVISION_DISPLAY, LayerKey
from sidecar.metrics import catalogue, sections
from sidecar.metrics.catalogue import Family, FamilyType
from sidecar.metrics.sections import Row
from sidecar.metrics.source import MetricsSource
from sidecar.metrics.tables import (
    EXEMPLAR,
    Chosen,
    Histograms,
    Labels,
    Memo,
    Room,
    Scrape,
    Table,
    choose,
    fitting,
)
from sidecar.metrics.text import number
from sidecar.monitor import FeatureStatus, LayerActivations, LayerStatus

_SECTIONS = (
    "features",
    "flags",
    "layers",
    "anomalies",
    "activations",
    "audits",
    "ingest",
    "jobs",
    "storage",
    "statistics",
)
_SUBJECTS = ("features", "layers", "audits", "flags", "histograms", "heatmaps")

AUDITS_LIMIT = 100
"""Most audits with series of their own: one a model and purpose, and a night is hours long."""

_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Draft:
    """A scrape being put together.

    Attributes:
        room: Series that may still be added.
        tables: What there is so far.
        histograms: What there is so far.
        left_out: Subjects without series, by what they are.
    """

    room: Room
    tables: dict[Family, Table] = field(default_factory=dict)
    histograms: list[Histograms] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def put(
        self,
        family: Family,
        labels: tuple[Labels, ...],
        values: Sequence[float],
        exemplars: Mapping[int, str] | None = None,
    ) -> None:
        """Add a family."""
        self.tables[family] = Table(family, labels, values, fitting(exemplars or {}))

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Add families of which each has its rows in a row."""
        for family, group in groupby(rows, key=lambda row: row[0]):
            found = list(group)
            labels = tuple(labels for _, labels, _ in found)
            self.put(family, labels, [float(value) for *_, value in found])

    def finished(self) -> Scrape:
        """Return it, with its own size, and every family of the catalogue in order."""
        # A NaN, which stands for an absent series, does not equal itself.
        held = sum(sum(map(eq, t.values, t.values)) for t in self.tables.values())
        native = sum(len(one.places) for one in self.histograms)
        self.put(catalogue.SERIES, ((),), [float(held + native + 1)])
        tables = (
            self.tables.get(family) or Table(family, (), ()) for family in catalogue.SCALAR_FAMILIES
        )
        return Scrape(tuple(tables), tuple(self.histograms))


class Collector:
    """A ``prometheus_client`` collector over a ``MetricsSource``, and what faster renderers read.

    Scrapes are bounded: at most ``flagged_limit`` features, flags and layers each have series, at most
    ``series_limit`` series are there in all, and what is left out is counted in
    ``sidecar_series_truncated``. What comes first is kept, in the source's order: features, then
    layers, audits, flags, findings of the screen, native histograms, heat maps. A section of the source that raises is left out and
    counted in ``sidecar_collect_errors_total``; the rest of the scrape is served. May be collected
    from several threads at once.

    Args:
        source: What the daemon knows.
        version: Of the sidecar.
        config_digest: sha256 of the configuration.
        flagged_limit: Most features, flags and layers with series of their own.
        series_limit: Most series, those of the process included.
        classic_buckets: Whether features have classic histograms, of up to 21 series each.
        anomalies_limit: Most unflagged features of the screen with a series.
    """

    def __init__(
        self,
        source: MetricsSource,
        *,
        version: str,
        config_digest: str,
        flagged_limit: int = 1000,
        series_limit: int = 50_000,
        classic_buckets: bool = True,
        anomalies_limit: int = 20,
    ) -> None:
        self._source = source
        self._build = (version, config_digest[:REVISION_DISPLAY])
        self._limit = flagged_limit
        self._series_limit = series_limit
        self._classic = classic_buckets
        self._anomalies_limit = anomalies_limit
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._features_chosen: Memo[Chosen] = Memo()
        self._infos: Memo[tuple[Labels, ...]] = Memo()
        self._conditions: Memo[tuple[Labels, ...]] = Memo()
        self._references: Memo[tuple[Labels, ...]] = Memo()
        self._sides: Memo[tuple[Labels, ...]] = Memo()
        self._baselines: Memo[tuple[Labels, ...]] = Memo()
        self._layers_chosen: Memo[Chosen] = Memo()
        self._histograms_chosen: Memo[tuple[Chosen, ...]] = Memo()
        self._levels_chosen: Memo[tuple[tuple[Labels, ...], tuple[int, ...]]] = Memo()

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering needs no source."""
        return [_metric(Table(family, (), ())) for family in catalogue.SCALAR_FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the catalogue once, in its order; empty where there is no data.

        Native histograms are left out: the client's formats have no place for them.
        """
        yield from map(_metric, self.scrape().tables)

    def scrape(self) -> Scrape:
        """Read the source once."""
        source, draft = self._source, _Draft(Room(self._series_limit - catalogue.OWN_SERIES))
        features = self._read("features", source.features)
        layers = self._read("layers", source.layers)
        audits = self._read("audits", source.audits)
        flags = self._read("flags", source.unmatched_flags)
        activations = self._read("activations", source.activations)
        self._section(draft, "features", lambda d: self._features(d, features))
        self._section(draft, "layers", lambda d: self._layers(d, layers, features))
        self._section(draft, "audits", lambda d: self._audits(d, audits))
        self._section(draft, "flags", lambda d: self._flags(d, flags))
        self._section(draft, "anomalies", lambda d: self._anomalies(d, layers))
        self._section(draft, "activations", lambda d: self._activations(d, activations, features))
        self._section(draft, "ingest", lambda d: d.put_rows(sections.ingest_rows(source.ingest())))
        self._section(draft, "jobs", lambda d: d.put_rows(sections.job_rows(source.jobs())))
        self._section(
            draft, "storage", lambda d: d.put_rows(sections.storage_rows(source.storage()))
        )
        self._section(
            draft, "statistics", lambda d: d.put_rows(sections.statistics_rows(source.statistics()))
        )
        draft.put_rows(self._about(draft))
        return draft.finished()

    def _about(self, draft: _Draft) -> Iterator[Row]:
        """Yield what the scrape says of itself."""
        yield catalogue.BUILD_INFO, self._build, 1.0
        yield catalogue.SERIES_LIMIT, (), self._series_limit
        for subject in _SUBJECTS:
            if subject in draft.left_out:
                yield catalogue.SERIES_TRUNCATED, (subject,), draft.left_out[subject]
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

    def _section(self, draft: _Draft, section: str, write: Callable[[_Draft], None]) -> None:
        """Add a section to the draft whole, or not at all."""
        part = _Draft(draft.room)

        def written() -> Sequence[_Draft]:
            write(part)
            return (part,)

        for one in self._read(section, written):
            draft.tables |= one.tables
            draft.histograms += one.histograms
            draft.left_out |= one.left_out

    def _features(self, draft: _Draft, statuses: Sequence[FeatureStatus]) -> None:
        limit = min(self._limit, draft.room.fits(catalogue.FEATURE_SERIES))
        keys = [status.key for status in statuses]
        chosen = self._features_chosen.get(
            limit, keys, lambda: choose(keys, sections.feature_labels, limit)
        )
        draft.room.take(len(chosen.places) * catalogue.FEATURE_SERIES)
        kept = [statuses[place] for place in chosen.places]
        for family, values in sections.feature_columns(kept):
            draft.put(family, chosen.labels, values)
        spikes = [float(status.spikes) for status in kept]
        draft.put(catalogue.FEATURE_SPIKES, chosen.labels, spikes, sections.evidence_ids(kept))
        draft.put(catalogue.SPIKE_THRESHOLD, ((),), [sections.spike_threshold(kept)])
        self._put_conditions(draft, chosen.labels, kept)
        references = self._references.get(
            None, [chosen.labels], lambda: _each(chosen.labels, catalogue.REFERENCES)
        )
        draft.put(catalogue.FEATURE_DRIFT, references, sections.drift_values(kept))
        sides = self._sides.get(
            None, [chosen.labels], lambda: _each(chosen.labels, catalogue.SIDES)
        )
        draft.put(catalogue.FEATURE_THRESHOLD, sides, sections.threshold_values(kept))
        draft.put(catalogue.FEATURE_LAST, sides, sections.last_values(kept))
        self._put_infos(draft, chosen.labels, kept)
        draft.left_out["features"] = chosen.left_out

    def _put_conditions(
        self, draft: _Draft, labels: tuple[Labels, ...], kept: Sequence[FeatureStatus]
    ) -> None:
        possible = tuple(map(sections.possible_conditions, kept))
        conditions = self._conditions.get(
            possible,
            [labels],
            lambda: tuple(
                (*mine, name)
                for mine, names in zip(labels, possible, strict=True)
                for name in names
            ),
        )
        draft.put(catalogue.FEATURE_CONDITION, conditions, sections.condition_values(kept))

    def _put_infos(
        self, draft: _Draft, labels: tuple[Labels, ...], kept: Sequence[FeatureStatus]
    ) -> None:
        flags = [status.flag for status in kept]
        watched = tuple((str(status.direction), status.slice) for status in kept)
        infos = self._infos.get(
            watched,
            [labels, *flags],
            lambda: tuple(map(sections.info_labels, labels, flags, watched)),
        )
        draft.put(catalogue.FEATURE_INFO, infos, [1.0] * len(infos))

    def _layers(
        self, draft: _Draft, statuses: Sequence[LayerStatus], features: Sequence[FeatureStatus]
    ) -> None:
        limit = min(self._limit, draft.room.fits(catalogue.LAYER_SERIES))
        keys = [status.key for status in statuses]
        chosen = self._layers_chosen.get(
            limit, keys, lambda: choose(keys, sections.layer_labels, limit)
        )
        draft.room.take(len(chosen.places) * catalogue.LAYER_SERIES)
        kept = [statuses[place] for place in chosen.places]
        for family, values in sections.layer_columns(kept, _flagged(features)):
            draft.put(family, chosen.labels, values)
        models = tuple(dict.fromkeys(labels[:2] for labels in chosen.labels))
        draft.put(catalogue.MODEL_INFO, models, [1.0] * len(models))
        names = tuple(sections.clean(status.baseline_id[:REVISION_DISPLAY]) for status in kept)
        baselines = self._baselines.get(
            names,
            [chosen.labels],
            lambda: tuple((*mine, name) for mine, name in zip(chosen.labels, names, strict=True)),
        )
        there = [1.0 if name else float("nan") for name in names]
        draft.put(catalogue.LAYER_BASELINE_INFO, baselines, there)
        draft.left_out["layers"] = chosen.left_out

    def _audits(self, draft: _Draft, statuses: Sequence[AuditStatus]) -> None:
        limit = min(AUDITS_LIMIT, draft.room.fits(catalogue.AUDIT_SERIES))
        chosen = choose(statuses, sections.audit_labels, limit)
        draft.room.take(len(chosen.places) * catalogue.AUDIT_SERIES)
        draft.put_rows(sections.audit_rows([statuses[place] for place in chosen.places]))
        draft.left_out["audits"] = chosen.left_out

    def _flags(self, draft: _Draft, flags: Sequence[str]) -> None:
        limit = min(self._limit, draft.room.fits(1))
        chosen = choose(flags, lambda flag: (sections.clean(flag),), limit)
        draft.room.take(len(chosen.places))
        draft.put(catalogue.FLAG_UNMATCHED, chosen.labels, [1.0] * len(chosen.labels))
        draft.left_out["flags"] = chosen.left_out

    def _anomalies(self, draft: _Draft, layers: Sequence[LayerStatus]) -> None:
        limit = min(self._anomalies_limit, draft.room.fits(1))
        found = sections.lasting_anomalies(layers, limit)
        chosen = choose([one.key for one in found], sections.feature_labels, limit)
        draft.room.take(len(chosen.places))
        factors = [found[place].factor for place in chosen.places]
        draft.put(catalogue.ANOMALY, chosen.labels, factors)

    def _activations(
        self,
        draft: _Draft,
        layers: Sequence[LayerActivations],
        features: Sequence[FeatureStatus],
    ) -> None:
        limit = min(self._limit, draft.room.fits(1))
        chosen = self._histograms_chosen.get(
            limit, [one.keys for one in layers], lambda: _first(layers, limit)
        )
        found = [
            Histograms(one.labels, one.places, layer)
            for one, layer in zip(chosen, layers, strict=True)
            if one.places
        ]
        draft.histograms += found
        held = sum(len(one.places) for one in found)
        draft.room.take(held)
        # A feature that nobody adds up is left out too, whatever the reason.
        draft.left_out["histograms"] = max(len(features) - held, 0)
        if self._classic:
            shown = self._levels(draft, found)
            draft.left_out["heatmaps"] = max(len(features) - shown, 0)

    def _levels(self, draft: _Draft, found: Sequence[Histograms]) -> int:
        """Add classic buckets; return of how many features."""
        room = draft.room.fits(1)
        sources = [part for one in found for part in (one.labels, one.activations.bounds)]
        labels, kept = self._levels_chosen.get(room, sources, lambda: _bucket_labels(found, room))
        draft.room.take(len(labels))
        values: list[float] = []
        for one, places in zip(found, kept, strict=True):
            rows = list(one.places[:places])
            there = _there(one.activations, rows)
            values += one.activations.below[rows][there].astype(float).tolist()
        draft.put(catalogue.FEATURE_LEVELS, labels, values)
        return sum(kept)


def _flagged(features: Sequence[FeatureStatus]) -> Mapping[LayerKey, int]:
    """Count the flagged features of each layer; those of one layer follow each other."""
    found: Counter[LayerKey] = Counter()
    for layer, group in groupby(features, key=lambda status: status.key.layer):
        found[layer] += sum(1 for _ in group)
    return found


def _each(labels: tuple[Labels, ...], values: tuple[str, ...]) -> tuple[Labels, ...]:
    """Return every subject's labels with every value of one more label."""
    return tuple((*mine, value) for mine in labels for value in values)


def _first(layers: Sequence[LayerActivations], limit: int) -> tuple[Chosen, ...]:
    """Choose the first ``limit`` features with different labels, over all layers."""
    taken: set[Labels] = set()
    found = []
    for layer in layers:
        chosen = choose(layer.keys, sections.feature_labels, limit - len(taken))
        new = {
            labels: place
            for place, labels in zip(chosen.places, chosen.labels, strict=True)
            if labels not in taken
        }
        taken.update(new)
        found.append(Chosen(tuple(new.values()), tuple(new), len(layer.keys) - len(new)))
    return tuple(found)


def _bucket_labels(
    found: Sequence[Histograms], room: int
) -> tuple[tuple[Labels, ...], tuple[int, ...]]:
    """Return the labels of all buckets there is room for, and of how many features each layer's are."""
    labels: list[Labels] = []
    kept = []
    for one in found:
        rows = list(one.places)
        bounds = one.activations.bounds[rows]
        places = 0
        for mine, row, there in zip(one.labels, bounds, _there(one.activations, rows), strict=True):
            if len(labels) + there.sum() > room:
                break
            labels += [(*mine, number(bound)) for bound in row[there].tolist()]
            places += 1
        kept.append(places)
    return tuple(labels), tuple(kept)


def _there(activations: LayerActivations, rows: list[int]) -> NDArray[np.bool_]:
    """Return which bounds are a bucket: the finite ones and the first +Inf."""
    bounds = activations.bounds[rows]
    finite = np.count_nonzero(np.isfinite(bounds), axis=1)
    found: NDArray[np.bool_] = np.arange(bounds.shape[1]) <= finite[:, None]
    return found


def _metric(table: Table) -> Metric:
    family = table.family
    names, unit = list(family.labels), family.exposed_unit
    known = [(labels, v) for labels, v in zip(table.labels, table.values, strict=True) if v == v]  # noqa: PLR0124 - NaN is absent
    match family.type:
        case FamilyType.COUNTER:
            counter = CounterMetricFamily(family.name, family.help, labels=names, unit=unit)
            for place, (labels, value) in enumerate(known):  # a counter is never absent
                counter.add_metric(list(labels), value, exemplar=_exemplar(table, place))
            return counter
        case FamilyType.GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=names, unit=unit)
            for labels, value in known:
                gauge.add_metric(list(labels), value)
            return gauge
        case FamilyType.INFO:
            name = family.name.removesuffix("_info")
            info = InfoMetricFamily(name, family.help, labels=names)
            for labels, _ in known:
                info.add_metric(list(labels), {})
            return info
        case _:
            return _histogram(family, known)


def _exemplar(table: Table, place: int) -> Exemplar | None:
    label, value = EXEMPLAR
    found = table.exemplars.get(place)
    return Exemplar({label: found}, value) if found else None


def _histogram(family: Family, known: Iterable[tuple[Labels, float]]) -> HistogramMetricFamily:
    found = HistogramMetricFamily(family.name, family.help, labels=list(family.labels[:-1]))
    for labels, group in groupby(known, key=lambda item: item[0][:-1]):
        buckets = [(bucket[-1], value) for bucket, value in group]
        found.add_metric(list(labels), buckets, sum_value=None)
    return found
