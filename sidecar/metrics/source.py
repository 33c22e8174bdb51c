"""What the metrics room asks of the daemon: immutable counts, read on every scrape."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.audits import AuditStatus
from sidecar.monitor import (
    EvidenceCounts,
    FeatureStatus,
    IngestCounts,
    LayerActivations,
    LayerStatus,
)


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How the visualisation jobs stand.

    Attributes:
        states: Jobs in the job table by state: ``queued``, ``running``, ``done``, ``failed``,
            ``cancelled``. A state that is missing counts as zero.
        timed: Jobs that ran to an end since the daemon started.
        seconds: Seconds those took from start to end, added up.
        quarantined: Jobs that killed their worker in every attempt since the daemon started.
        held_back: How often jobs were held back since then, by what for.
        gpu_free_bytes: Free memory of the GPU that jobs run on; NaN where nobody knows.
    """

    states: Mapping[str, int] = field(default_factory=dict)
    timed: int = 0
    seconds: float = 0.0
    quarantined: int = 0
    held_back: Mapping[str, int] = field(default_factory=dict)
    gpu_free_bytes: float = math.nan


@dataclass(frozen=True, slots=True)
class StatisticsCounts:
    """How the statistics are kept.

    Attributes:
        kernels: What counts: ``numpy`` until the compiled ones are ready, then ``numba``.
        kernels_failed: Whether those could not be compiled.
        memory_bytes: Bytes set aside for the distributions of all registered layers.
        memory_limit_bytes: Bytes that may be.
        expected_false_alarms: Spike alarms without a cause to be expected in 1,000 days over all flagged
            features together, by the configured policy; NaN where it is not known.
    """

    kernels: str = "numpy"
    kernels_failed: bool = False
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    expected_false_alarms: float = math.nan


@dataclass(frozen=True, slots=True)
class StorageCounts:
    """How the state directory stands.

    Attributes:
        artifact_bytes: Bytes of artifacts stored.
        artifact_limit_bytes: Bytes of artifacts that may be on disk.
        snapshot_at: Unix seconds of the newest snapshot that was written whole; 0: none yet.
        snapshot_interval_seconds: Configured interval of snapshots.
        snapshot_failures: Snapshots that could not be written since the daemon started.
        quarantined: Snapshot files set aside as corrupt.
        evidence: How the memory of evidence stands.
        recording_bytes: Bytes of recorded windows on disk.
        recording_limit_bytes: Bytes of them that may be on disk; 0: nothing is recorded.
        windows_recorded: Windows recorded since the daemon started.
        windows_dropped: Windows that could not be, by reason: ``backlog``, ``disk`` or ``error``.
        artifacts: How many artifacts are stored.
        artifacts_removed: Artifacts removed since the daemon started, by reason: ``bytes`` or ``age``.
    """

    artifact_bytes: int = 0
    artifact_limit_bytes: int = 0
    snapshot_at: float = 0.0
    snapshot_interval_seconds: float = 0.0
    snapshot_failures: int = 0
    quarantined: int = 0
    evidence: EvidenceCounts = field(default_factory=EvidenceCounts)
    recording_bytes: int = 0
    recording_limit_bytes: int = 0
    windows_recorded: int = 0
    windows_dropped: Mapping[str, int] = field(default_factory=dict)
    artifacts: int = 0
    artifacts_removed: Mapping[str, int] = field(default_factory=dict)


class MetricsSource(Protocol):
    """What the daemon shows to a scrape.

    Every method is called from the threads of the metrics server, at any time and possibly several
    at once. It returns values that never change afterwards, and neither waits for the network nor
    for the statistics to finish a batch.
    """

    def features(self) -> Sequence[FeatureStatus]:
        """Return the flagged features, in an order that stays the same from scrape to scrape."""
        ...

    def layers(self) -> Sequence[LayerStatus]:
        """Return the registered layers, in an order that stays the same from scrape to scrape."""
        ...

    def activations(self) -> Sequence[LayerActivations]:
        """Return what the flagged features did since the start, layers in the order of ``features``."""
        ...

    def unmatched_flags(self) -> Sequence[str]:
        """Return the text of the flags whose layer no hook registered, or not with that index."""
        ...

    def ingest(self) -> IngestCounts:
        """Return what became of the batches."""
        ...

    def jobs(self) -> JobCounts:
        """Return how the jobs stand."""
        ...

    def audits(self) -> Sequence[AuditStatus]:
        """Return how the nightly audits stand, in an order that stays the same."""
        ...

    def statistics(self) -> StatisticsCounts:
        """Return how the statistics are kept."""
        ...

    def storage(self) -> StorageCounts:
        """Return how the state directory stands."""
        ...
