"""A scrape of ten thousand series against the client library's own exposition of the same families."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from benchmarks.row import Row, least_cpu_seconds
from sidecar.audits import AuditStatus
from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
)
from sidecar.metrics import Collector, JobCounts, StatisticsCounts, StorageCounts
from sidecar.metrics.exposition import Exposition
from sidecar.metrics.protobuf import MEDIA_TYPE
from sidecar.monitor import (
    FeatureStatus,
    Flag,
    IngestCounts,
    LayerActivations,
    LayerStatus,
    Monitor,
)

NOW = 1_795_448_000.0  # a time of today's length: timestamps are the longest numbers
LAYERS, WIDTH, ROWS = 10, 512, 200
FEW, MANY = 43, 100  # flagged features of a layer: ten thousand series, and the default limit
EVIDENCE_FROM = 0.9  # a tenth of the features has evidence, and so an exemplar
LONG_WINDOWS = 12  # then the rates have as many digits as they ever will
WINDOW_SECONDS = 10.0
UNIT = "ms of CPU a scrape"
MILLI = 1e3
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class _Live:
    """A monitor with flagged features, read anew on every scrape.

    Every field of a status has a number, whatever of it the monitor knows after some windows: a feature
    costs the most series that it can. The numbers are put in when a window closes, not in the scrape.

    Args:
        flagged: Flagged features of each layer.
    """

    def __init__(self, flagged: int) -> None:
        statistics = StatisticsConfig(window_seconds=WINDOW_SECONDS, warmup_rows=ROWS)
        self._monitor = Monitor(statistics, SpikeConfig(), now=NOW)
        self._keys = [
            LayerKey("bench", "a" * 64, f"blocks.{n}.hook_resid_post", FeatureKind.CHANNEL)
            for n in range(LAYERS)
        ]
        for key in self._keys:
            self._monitor.register(key, WIDTH, Capture(), NOW)
        names = [f"bench/{key.layer}/channel/{i}" for key in self._keys for i in range(flagged)]
        flags = {FeatureSelector.parse(name): Flag(name, "warning", "team") for name in names}
        self._monitor.set_flags(flags, NOW)
        self._rng, self._now = np.random.default_rng(0), NOW
        self.window()
        self._monitor.freeze(self._keys, self._now)
        for _ in range(LONG_WINDOWS):
            self.window()

    def window(self) -> None:
        """Sample every layer and close the window."""
        index, requests = np.arange(ROWS, dtype=np.int32), tuple(Request() for _ in range(ROWS))
        for key in self._keys:
            values = self._rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
            self._monitor.apply(LayerSample(key, values, index, requests), self._now + 1)
        self._now += WINDOW_SECONDS
        self._monitor.tick(self._now)
        self._features = [self._filled(status) for status in self._monitor.watched()]
        self._layers = [
            replace(
                status,
                screened_features=WIDTH,
                significant_features=int(self._rng.integers(20)),
                baseline_id="b" * 64,
            )
            for status in self._monitor.layers()
        ]

    def _filled(self, status: FeatureStatus) -> FeatureStatus:
        evidence, level = self._rng.random(2).tolist()
        return replace(
            status,
            evidence_log10=evidence,
            evidence_threshold_log10=9.0,
            level_ratio=level,
            tolerated_ratio=4 * level,
            drift_js=1 / 3,  # the same for an hour of scrapes
            drift_wasserstein=2 / 3,
            drift_js_yesterday=1 / 7,
            sampled_requests=int(1e6 * evidence),
            sampled_exceedances=int(1e6 * level),
            evidence_id="e" * 24 if evidence > EVIDENCE_FROM else "",
        )

    def features(self) -> Sequence[FeatureStatus]:
        self._monitor.watched()  # reading it is part of a scrape
        return self._features

    def layers(self) -> Sequence[LayerStatus]:
        self._monitor.layers()
        return self._layers

    def activations(self) -> Sequence[LayerActivations]:
        return self._monitor.activations()

    def unmatched_flags(self) -> Sequence[str]:
        return [str(flag) for flag in self._monitor.unmatched()]

    def ingest(self) -> IngestCounts:
        return IngestCounts()

    def jobs(self) -> JobCounts:
        return JobCounts()

    def audits(self) -> Sequence[AuditStatus]:
        return ()

    def statistics(self) -> StatisticsCounts:
        return StatisticsCounts()

    def storage(self) -> StorageCounts:
        return StorageCounts()


@dataclass(frozen=True, slots=True)
class _Ways:
    """One source, exposed by us and by the client library."""

    live: _Live
    ours: Exposition
    registry: CollectorRegistry

    @classmethod
    def of(cls, live: _Live, *, classic_buckets: bool) -> Self:
        collector = Collector(
            live, version="0", config_digest="0" * 64, classic_buckets=classic_buckets
        )
        registry = CollectorRegistry()
        for register in (ProcessCollector, GCCollector):
            register(registry=registry)
        registry.register(collector)
        return cls(live, Exposition(collector), registry)

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Return the CPU time of one scrape, the least of several, each after a new window."""
        return MILLI * least_cpu_seconds(work, before=self.live.window)


def run() -> Sequence[Row]:
    """Measure whole answers, without HTTP and gzip: reading the monitor, numbers, joining.

    23 series of each of 430 flagged features, and the daemon's own, are the ten thousand. The peer
    reads the same monitor and makes the same bytes of it. A window closes before every scrape, so
    that values have changed. In protobuf, which the peer cannot write, the native histograms of all
    features come on top: its text is the peer there. The last two rows are the most that the defaults
    allow: 1,000 flagged features, without and with their buckets.
    """
    plain = _Ways.of(_Live(FEW), classic_buckets=False)
    many = _Live(MANY)
    full, buckets = (_Ways.of(many, classic_buckets=wanted) for wanted in (False, True))
    text = plain.milliseconds(lambda: generate_latest(plain.registry))
    strict = plain.milliseconds(lambda: generate_openmetrics(plain.registry))
    more = full.milliseconds(lambda: generate_latest(full.registry))
    whole = buckets.milliseconds(lambda: generate_latest(buckets.registry))
    rows = [
        _row("scrape.10k", plain, "", text, "generate_latest"),
        _row("scrape.openmetrics", plain, OPENMETRICS, strict, "its openmetrics.generate_latest"),
        _row("scrape.protobuf", plain, MEDIA_TYPE, text, "generate_latest, no histograms"),
        _row("scrape.1000_features", full, "", more, "generate_latest"),
        _row("scrape.buckets", buckets, "", whole, "generate_latest"),
    ]
    for name, ways in (
        ("scrape.10k", plain),
        ("scrape.1000_features", full),
        ("scrape.buckets", buckets),
    ):
        body = ways.ours.answer("").body
        series = sum(not line.startswith(b"#") for line in body.splitlines())
        packed = MILLI * least_cpu_seconds(lambda body=body: gzip.compress(body, 1))
        print(
            f"{name}: {series} series, {len(body)} bytes; gzip adds {packed:.3g} ms where asked for"
        )
    return rows


def _row(name: str, ways: _Ways, accept: str, peer_value: float, peer: str) -> Row:
    value = ways.milliseconds(lambda: ways.ours.answer(accept))
    return Row(name, value, UNIT, f"prometheus_client {peer}", peer_value, peer_value / value)
