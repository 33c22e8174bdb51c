"""A daemon that lives in memory, and a real metrics server over it."""

import math
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.audits import AuditState, AuditStatus, Check, Night, NightState, Outcome
from sidecar.detect import State
from sidecar.features import Capture, FeatureKey, FeatureKind, LayerKey
from sidecar.metrics import (
    Collector,
    JobCounts,
    MetricsServer,
    StatisticsCounts,
    StorageCounts,
)
from sidecar.monitor import (
    Anomaly,
    FeatureStatus,
    Flag,
    IngestCounts,
    LayerActivations,
    LayerStatus,
)
from tests.prometheus import Prometheus, eventually

REVISION = "3fa1c2d4e5f60718" * 4

Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class MemorySource:
    """What a daemon would know; tests change it as they go."""

    watched: list[FeatureStatus] = field(default_factory=list)
    registered: list[LayerStatus] = field(default_factory=list)
    seen: list[LayerActivations] | None = None
    unmatched: list[str] = field(default_factory=list)
    counts: IngestCounts = field(default_factory=IngestCounts)
    job_counts: JobCounts = field(default_factory=JobCounts)
    storage_counts: StorageCounts = field(default_factory=StorageCounts)
    statistics_counts: StatisticsCounts = field(default_factory=StatisticsCounts)
    nightly: list[AuditStatus] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def _check(self, section: str) -> None:
        if section in self.broken:
            raise OSError(f"{section} cannot be read")

    def features(self) -> Sequence[FeatureStatus]:
        """Return the flagged features."""
        self._check("features")
        return tuple(self.watched)

    def layers(self) -> Sequence[LayerStatus]:
        """Return the layers."""
        self._check("layers")
        return tuple(self.registered)

    def activations(self) -> Sequence[LayerActivations]:
        """Return what was set, or else three values of every flagged feature."""
        self._check("activations")
        if self.seen is not None:
            return tuple(self.seen)
        groups = groupby(self.watched, key=lambda status: status.key.layer)
        return tuple(build_activations(*(s.key for s in group)) for _, group in groups)

    def unmatched_flags(self) -> Sequence[str]:
        """Return the flags without a layer."""
        self._check("flags")
        return tuple(self.unmatched)

    def ingest(self) -> IngestCounts:
        """Return the batches' fates."""
        self._check("ingest")
        return self.counts

    def jobs(self) -> JobCounts:
        """Return the jobs."""
        self._check("jobs")
        return self.job_counts

    def audits(self) -> Sequence[AuditStatus]:
        """Return the audits."""
        self._check("audits")
        return tuple(self.nightly)

    def statistics(self) -> StatisticsCounts:
        """Return how statistics are kept."""
        self._check("statistics")
        return self.statistics_counts

    def storage(self) -> StorageCounts:
        """Return the disk's state."""
        self._check("storage")
        return self.storage_counts


def build_layer(layer: str = "_blocks.14", revision: str = REVISION) -> LayerKey:
    """Return the key of a channel layer of the model ``lite0``."""
    return LayerKey("lite0", revision, layer, FeatureKind.CHANNEL)


def build_feature(
    key: FeatureKey, state: State = State.NORMAL, flag: Flag | None = None, **values: Any
) -> FeatureStatus:
    """Return a flagged feature with a baseline and 128 requests in its window."""
    known = {
        "since": 1_795_448_000.0,
        "requests": 128,
        "exceedance_ratio": 0.001,
        "baseline_ratio": 0.001,
        "threshold": 3.25,
        "last": 1.5,
        "evidence_log10": 0.5,
        "evidence_threshold_log10": 8.25,
        "level_ratio": 0.0015,
        "tolerated_ratio": 0.006,
        "drift_js": 0.125,
        "drift_wasserstein": 0.25,
        "drift_js_yesterday": 0.0625,
        "sampled_requests": 640,
        "sampled_exceedances": 2,
    }
    about = flag or Flag("stop signs", "critical", "vision")
    return FeatureStatus(key=key, flag=about, state=state, explanation="", **{**known, **values})


def build_status(key: LayerKey, **values: Any) -> LayerStatus:
    """Return a layer of 192 features that was sampled."""
    known = {
        "width": 192,
        "rows": 640,
        "requests": 320,
        "nonfinite": 0,
        "baseline_requests": 300,
        "baseline_frozen": True,
        "last_seen": 1_795_448_001.5,
        "memory_bytes": 1_620_096,
        "screened_features": 192,
        "significant_features": 3,
        "baseline_id": "b7e23ec29af2" + "0" * 52,
        "baseline_windows": 180,
    }
    return LayerStatus(key=key, capture=Capture(), **{**known, **values})


def build_audit(name: str = "nightly-int8", **values: Any) -> AuditStatus:
    """Return an audit that runs tonight, and whose last night regressed after one that passed."""
    checks = (
        Check("complete", Outcome.PASSED, 0.0, 0.0, "All 3 jobs were done."),
        Check("comparison", Outcome.FAILED, 12.5, 5.0, "12.5 % of _blocks.14 moved, at most 5 %."),
        Check("verdict", Outcome.IMPOSSIBLE, None, None, "No portrait of the night before."),
        Check("live", Outcome.FAILED, None, None, "1 of 2 flagged features is not sampled."),
    )
    counts = {"same": 150, "moved": 24, "lost": 18, "new": 3}
    start = 1_795_440_000.0
    last = Night(
        name, "20261125T013000Z", start, start + 900, NightState.REGRESSED, checks, counts, 32
    )
    before = Night(name, "20261124T013000Z", start - 86_400, start - 86_000, NightState.PASSED)
    running = Night(name, "20261126T013000Z", start + 86_400, None, NightState.RUNNING)
    known = {
        "model": f"lite0@{REVISION}",
        "against": "lite0-int8",
        "state": AuditState.RUNNING,
        "last": last,
        "running": running,
        "next_at": start + 172_800,
        "overdue": False,
        "nights": (running, last, before),
    }
    return AuditStatus(name=name, **{**known, **values})


def build_activations(*keys: FeatureKey) -> LayerActivations:
    """Return features of one layer that were -1.5, 0 and 3 once each."""
    n = len(keys)
    return LayerActivations(
        layer=keys[0].layer,
        keys=keys,
        count=np.full(n, 3),
        sum=np.full(n, 1.5),
        schema=np.full(n, 3),
        zero_exponent=np.full(n, -4),
        bucket_features=np.repeat(np.arange(n), 3),
        bucket_ranks=np.tile([-37, 0, 45], n),
        bucket_counts=np.ones(3 * n, np.int64),
        bounds=np.tile([-1.0, 0.0, 2.5, np.inf, np.inf], (n, 1)),
        below=np.tile([1, 2, 2, 3, 3], (n, 1)),
    )


@pytest.fixture
def source() -> MemorySource:
    """Return a source with one layer, two flagged features and batches of every fate."""
    layer = build_layer()
    return MemorySource(
        watched=[
            build_feature(
                layer.feature(33),
                State.FIRING,
                exceedance_ratio=0.425,
                last=9.75,
                evidence_log10=9.5,
                sampled_exceedances=54,
                spikes=1,
                conditions=("never_seen",),
                evidence_id="ev-33",
                slice="route=eu",
            ),
            build_feature(
                layer.feature(34),
                State.UNKNOWN,
                Flag(),
                requests=0,
                exceedance_ratio=math.nan,
                baseline_ratio=math.nan,
                threshold=math.nan,
                last=math.nan,
                evidence_log10=math.nan,
                evidence_threshold_log10=math.nan,
                level_ratio=math.nan,
                tolerated_ratio=math.nan,
                drift_js=math.nan,
                drift_wasserstein=math.nan,
                drift_js_yesterday=math.nan,
                sampled_requests=0,
                sampled_exceedances=0,
            ),
        ],
        registered=[
            build_status(
                layer,
                anomalies=(
                    Anomaly(
                        layer.feature(7), 1_795_447_000.0, 1_795_448_000.0, 9, 64, 8, 0.01, -9, -7
                    ),
                ),
            )
        ],
        unmatched=["lite0/_blocks.99/channel/1"],
        counts=IngestCounts(
            received=110,
            accepted=100,
            refused={"queue_full": 7, "payload_mismatch": 3},
            processed=90,
            dropped={"internal": 4},
            in_flight=6,
            payload_bytes=4096,
            queue_bytes=512,
            queue_limit_bytes=1024,
            streams=2,
            sampling_rate=0.5,
            hook_batches_sent=110,
            hook_dropped={"no_credit": 5},
            hook_errors=1,
            forwards=1000,
            sampled_forwards=500,
            hook_seconds=0.25,
            forward_seconds=100.0,
            governed_forwards=40,
            hook_sampling_rate=0.25,
            hook_overhead_ratio=0.004,
        ),
        job_counts=JobCounts({"queued": 2, "failed": 1, "done": 5}, timed=6, seconds=90.0),
        nightly=[build_audit()],
        storage_counts=StorageCounts(2048, 1 << 20, 1_795_448_000.0, 30.0, 1, 0),
        statistics_counts=StatisticsCounts(
            "numba",
            memory_bytes=1_620_096,
            memory_limit_bytes=1 << 29,
            expected_false_alarms=1.0,
        ),
    )


@pytest.fixture
def serve() -> Iterator[Callable[..., MetricsServer]]:
    """Return a function that starts a server over a source on a free port; all are stopped."""
    started: list[MetricsServer] = []

    def start(
        source: MemorySource,
        flagged_limit: int = 1000,
        limits: Mapping[str, int] | None = None,
        **checks: object,
    ) -> MetricsServer:
        collector = Collector(
            source,
            version="0.1.0",
            config_digest="ab" * 32,
            flagged_limit=flagged_limit,
            **(limits or {}),
        )
        server = MetricsServer("127.0.0.1:0", collector, **checks)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def make_layer() -> Callable[..., LayerKey]:
    """Return ``build_layer``."""
    return build_layer


@pytest.fixture
def make_feature() -> Callable[..., FeatureStatus]:
    """Return ``build_feature``."""
    return build_feature


@pytest.fixture
def make_activations() -> Callable[..., LayerActivations]:
    """Return ``build_activations``."""
    return build_activations


@pytest.fixture
def make_status() -> Callable[..., LayerStatus]:
    """Return ``build_status``."""
    return build_status


@pytest.fixture
def make_audit() -> Callable[..., AuditStatus]:
    """Return ``build_audit``."""
    return build_audit


@pytest.fixture
def scrape() -> Callable[[MetricsServer], Scrape]:
    """Return a function that scrapes a server and reads the text back; equal series are an error."""

    def read(server: MetricsServer) -> Scrape:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: Scrape = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
        return found

    return read


@pytest.fixture
def start_prometheus(tmp_path: Path, need: Any) -> Iterator[Callable[..., Prometheus]]:
    """Return a function that runs Prometheus over some rules and one target, every second."""
    program = need("prometheus")
    running: list[subprocess.Popen[bytes]] = []

    def start(rules: str, target: int, *options: str) -> Prometheus:
        config = yaml.safe_load(Path("deploy/prometheus/prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        del config["alerting"]
        job = config["scrape_configs"][0]
        job |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        job["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        (tmp_path / "rules").mkdir()
        (tmp_path / "rules" / "sidecar.yaml").write_text(rules)
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = (tmp_path / "prometheus.log").open("wb")
        command = [
            program,
            f"--config.file={tmp_path}/prometheus.yaml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            *options,
        ]
        with log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        found = Prometheus(port)
        eventually(lambda: found.get("status/runtimeinfo"), "Prometheus answers")
        return found

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture
def need() -> Callable[[str], str]:
    """Return a function that finds a program, or skips the test and says what to install."""

    def find(program: str) -> str:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is missing: apt-get install prometheus prometheus-alertmanager")
        return found

    return find
