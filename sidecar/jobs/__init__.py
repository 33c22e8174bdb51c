"""Visualisation jobs: a durable queue, and a runner that gives each job a process of its own.

The room promises that a job once accepted survives kill -9 of everything, is recorded as done exactly
once, and is answered from the store where an equal request was answered before; that people's jobs go
before alerts' and those before audits, and an interrupted one goes on where it was; that a job's process
never outlives the daemon, its time limit or its cancellation by more than two seconds; and that
whatever a model does in there harms that one job only: the kernel keeps it from the network, from other
files and from other processes. ``sidecar.jobs.worker`` is the child's side.
"""

from sidecar.jobs.comparison import Comparison, compare
from sidecar.jobs.datasets import Datasets
from sidecar.jobs.dictionaries import Dictionaries
from sidecar.jobs.fates import Fate
from sidecar.jobs.index import ArtifactIndex, MadePicture
from sidecar.jobs.manifest import artifact_inputs
from sidecar.jobs.protocol import Cause, Job, JobRequest, JobState, Portrait, Priority
from sidecar.jobs.quarantine import Quarantined
from sidecar.jobs.queue import JobQueue
from sidecar.jobs.runner import Runner
from sidecar.jobs.sources import ModelSources
from sidecar.jobs.spec import LiveContext
from sidecar.jobs.verification import Finding, Verification, parse_manifest, request_of, verify
from sidecar.jobs.windows import last_start, next_start

__all__ = [
    "ArtifactIndex",
    "Cause",
    "Comparison",
    "Datasets",
    "Dictionaries",
    "Fate",
    "Finding",
    "Job",
    "JobQueue",
    "JobRequest",
    "JobState",
    "LiveContext",
    "MadePicture",
    "ModelSources",
    "Portrait",
    "Priority",
    "Quarantined",
    "Runner",
    "Verification",
    "artifact_inputs",
    "compare",
    "last_start",
    "next_start",
    "parse_manifest",
    "request_of",
    "verify",
]
