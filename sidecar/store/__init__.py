"""What survives a restart: the catalogue, the evidence, the artifacts and the snapshots.

The room promises that a write it has answered is on the disk, that a crash at any instruction leaves
the state of before or of after it, and that a damaged file is set aside and counted, so it never
stops a start. A full disk is a ``DiskFull`` for the caller; nothing that was there before is lost.
"""

from sidecar.store.artifacts import Artifact, ArtifactStore
from sidecar.store.baselines import (
    BaselineFacts,
    BaselineStore,
    StoredBaseline,
    pack_baseline,
    unpack_baseline,
)
from sidecar.store.catalogue import Catalogue, StoredEvent, StoredFlag
from sidecar.store.database import Database
from sidecar.store.evidence import EvidenceStore, secret_key
from sidecar.store.snapshots import Snapshots

__all__ = [
    "Artifact",
    "ArtifactStore",
    "BaselineFacts",
    "BaselineStore",
    "Catalogue",
    "Database",
    "EvidenceStore",
    "Snapshots",
    "StoredBaseline",
    "StoredEvent",
    "StoredFlag",
    "pack_baseline",
    "secret_key",
    "unpack_baseline",
]
