"""The daemon's picture of the world: every feature's distribution, flag and state.

Promises: one lock, so that a reader never sees half an update, held for one layer at a time; no clock, file or socket is read
here, ``now`` is an argument; everything it knows is encoded into one payload and comes back from it.
``Operations`` adds what people and machines ask for over that: commands with their audit entry, and
the job queue beside it.
"""

from sidecar.monitor.alerts import alerts_of
from sidecar.monitor.banks import budget_of
from sidecar.monitor.baselines import BaselineVersion
from sidecar.monitor.evidence import EvidenceBook, EvidenceCounts
from sidecar.monitor.live import live_contexts
from sidecar.monitor.monitor import Monitor
from sidecar.monitor.operations import Operations
from sidecar.monitor.pictures import Pictures
from sidecar.monitor.record import EvidenceRecord, EvidenceRow, Exposure
from sidecar.monitor.unmatched import UnmatchedFlag, explain
from sidecar.monitor.uploads import IMAGE_LIMIT_BYTES
from sidecar.monitor.views import (
    Anomaly,
    Event,
    FeatureDistribution,
    FeatureStatus,
    Flag,
    IngestCounts,
    LayerActivations,
    LayerStatus,
    Window,
)
from sidecar.monitor.watching import COMMON_FACTOR, Watching

__all__ = [
    "COMMON_FACTOR",
    "IMAGE_LIMIT_BYTES",
    "Anomaly",
    "BaselineVersion",
    "Event",
    "EvidenceBook",
    "EvidenceCounts",
    "EvidenceRecord",
    "EvidenceRow",
    "Exposure",
    "FeatureDistribution",
    "FeatureStatus",
    "Flag",
    "IngestCounts",
    "LayerActivations",
    "LayerStatus",
    "Monitor",
    "Operations",
    "Pictures",
    "UnmatchedFlag",
    "Watching",
    "Window",
    "alerts_of",
    "budget_of",
    "explain",
    "live_contexts",
]
