"""What survives a restart: the catalogue, evidence, artifacts, baselines, snapshots and recordings.

The room promises that a write it has answered is on the disk, that a crash at any instruction leaves
the state of before or of after it, and that a damaged file is set aside and counted, so it never
stops a start. A full disk is a ``DiskFull`` for the caller; nothing that was there before is lost.
Recordings promise less, for they are written all the time: see ``Recordings``.
"""

from sidecar.store.artifacts import Artifact, ArtifactStore, Removal
from sidecar.store.baselines import (
    BaselineFacts,
    BaselineStore,
    StoredBaseline,
    pack_baseline,
    unpack_baseline,
)
from sidecar.store.catalogue import Catalogue
from sidecar.store.database import Database
from sidecar.store.evidence import EvidenceStore, secret_key
from sidecar.store.recordings import (
    ReadCounts,
    Recorder,
    RecorderCounts,
    Recordings,
    find_segments,
    read_recordings,
)
from sidecar.store.references import OwnerKind, Reference, References
from sidecar.store.remote import RemoteShelf
from sidecar.store.shelf import Entry
from sidecar.store.snapshots import Snapshots
from sidecar.store.windows import Screened, Subject, WindowRecord

__all__ = [
    "Artifact",
    "ArtifactStore",
    "BaselineFacts",
    "BaselineStore",
    "Catalogue",
    "Database",
    "Entry",
    "EvidenceStore",
    "OwnerKind",
    "ReadCounts",
    "Recorder",
    "RecorderCounts",
    "Recordings",
    "Reference",
    "References",
    "RemoteShelf",
    "Removal",
    "Screened",
    "Snapshots",
    "StoredBaseline",
    "Subject",
    "WindowRecord",
    "find_segments",
    "pack_baseline",
    "read_recordings",
    "secret_key",
    "unpack_baseline",
]
