"""A scrape of ten thousand series against the client library's own exposition of the same families."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
)
from sidecar.metrics import Collector, JobCounts, StorageCounts
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
LAYERS, FLAGGED, WIDTH, ROWS = 10, 100, 512, 200
LONG_WINDOWS = 12  # then the rates have as many digits as they ever will
WINDOW_SECONDS = 10.0
UNIT = "ms of CPU a scrape"
MILLI = 1e3
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class _Live:
    """A monitor with a thousand flagged features, read anew on every scrape."""

    def __init__(self) -> None:
        statistics = StatisticsConfig(window_seconds=WINDOW_SECONDS, warmup_rows=ROWS)
        self._monitor = Monitor(statistics, SpikeConfig(), now=NOW)
        self._keys = [
            LayerKey("bench", "a" * 64, f"blocks.{n}.hook_resid_post", FeatureKind.CHANNEL)
            for n in range(LAYERS)
        ]
        for key in self._keys:
            self._monitor.register(key, WIDTH, Capture(), NOW)
        names = [f"bench/{key.layer}/channel/{i}" for key in self._keys for i in range(FLAGGED)]
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

    def features(self) -> Sequence[FeatureStatus]:
        return self._monitor.watched()

    def layers(self) -> Sequence[LayerStatus]:
        return self._monitor.layers()

    def activations(self) -> Sequence[LayerActivations]:
        return self._monitor.activations()

    def unmatched_flags(self) -> Sequence[str]:
        return [str(flag) for flag in self._monitor.unmatched()]

    def ingest(self) -> IngestCounts:
        return IngestCounts()

    def jobs(self) -> JobCounts:
        return JobCounts()

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

    Ten series of each of 1,000 flagged features, and the daemon's own, are the ten thousand. The peer
    reads the same monitor and makes the same bytes of it. A window closes before every scrape, so
    that values have changed. With buckets there are 20,000 more series. In protobuf, which the peer
    cannot write, the native histograms of all features come on top: its text is the peer there.
    """
    live = _Live()
    plain, buckets = (_Ways.of(live, classic_buckets=wanted) for wanted in (False, True))
    text = plain.milliseconds(lambda: generate_latest(plain.registry))
    strict = plain.milliseconds(lambda: generate_openmetrics(plain.registry))
    whole = buckets.milliseconds(lambda: generate_latest(buckets.registry))
    rows = [
        _row("scrape.10k", plain, "", text, "generate_latest"),
        _row("scrape.openmetrics", plain, OPENMETRICS, strict, "its openmetrics.generate_latest"),
        _row("scrape.protobuf", plain, MEDIA_TYPE, text, "generate_latest, no histograms"),
        _row("scrape.buckets", buckets, "", whole, "generate_latest"),
    ]
    for name, ways in (("scrape.10k", plain), ("scrape.buckets", buckets)):
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
