"""Every error the sidecar raises on purpose, in one tree.

::

    SidecarError
    ├── ConfigError             the operator mends the configuration; start-up only, exit 2
    ├── InvalidInput            the caller mends its request
    │   ├── UnsupportedDtype
    │   ├── PayloadMismatch
    │   ├── ShapeMismatch
    │   ├── InvalidName
    │   ├── MessageTooLarge
    │   ├── MalformedMessage
    │   ├── UnsupportedTarget
    │   ├── ForbiddenOrigin
    │   ├── ForbiddenHost
    │   ├── ForbiddenPeer
    │   └── BrokenFrame
    │       ├── UnsupportedVersion
    │       └── TruncatedFrame
    ├── NotRegistered           the caller sent something before announcing it
    │   ├── UnregisteredLayer
    │   └── UnregisteredStream
    ├── NotFound                the caller names something that does not exist
    │   ├── UnknownModel
    │   ├── UnknownLayer
    │   ├── UnknownFeature
    │   ├── UnknownJob
    │   ├── UnknownArtifact
    │   ├── UnknownBaseline
    │   └── UnknownAudit
    ├── Conflict                the request contradicts the present state
    │   ├── LayerConflict
    │   ├── BaselineNotReady
    │   ├── BaselineMismatch
    │   ├── JobFinished
    │   └── JobQuarantined
    ├── Overloaded              nobody's fault: try later, the sidecar shed load
    │   ├── QueueFull
    │   ├── JobQueueFull
    │   └── LimitReached
    ├── StorageError            the operator mends the disk
    │   ├── DiskFull
    │   ├── CorruptState
    │   └── StoreUnreachable
    └── JobError                a visualisation job ended without a result
        ├── ModelLoadFailed
        ├── DigestMismatch
        ├── SilentFeature
        ├── JobTimedOut
        ├── JobCancelled
        ├── WorkerCrashed
        ├── NonFiniteActivation
        ├── DeadlineMissed
        ├── SandboxRefused
        └── GpuOutOfMemory

Each class carries three stable attributes: ``code`` (what documents and clients match on),
``grpc_status`` (the name of a ``grpc.StatusCode``) and ``reason`` (the label value under which the
refusal is counted). Messages name the field, the value and what to do.
"""

from typing import ClassVar


class SidecarError(Exception):
    """Something the sidecar foresaw went wrong; the message says who can mend it and how."""

    code: ClassVar[str] = "SC000"
    grpc_status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "internal"

    sequence: int = 0
    """Number of the batch that was refused, set by the wire's decoder; 0: unknown, or no batch."""

    def __str__(self) -> str:
        """Return ``"<code> <message>"``, the form shown to people."""
        return f"{self.code} {self.message}"

    @property
    def message(self) -> str:
        """The message without its code."""
        return super().__str__()


class ConfigError(SidecarError):
    """The configuration cannot be used; all its problems are listed, one a line."""

    code = "SC100"
    grpc_status = "FAILED_PRECONDITION"
    reason = "config"


class InvalidInput(SidecarError):
    """A request breaks the protocol's rules; the caller mends it."""

    code = "SC200"
    grpc_status = "INVALID_ARGUMENT"
    reason = "invalid_input"


class UnsupportedDtype(InvalidInput):
    """A tensor's dtype is none of f32, f16, bf16."""

    code = "SC201"
    reason = "unsupported_dtype"


class PayloadMismatch(InvalidInput):
    """A tensor's payload has another length than its shape and dtype say."""

    code = "SC202"
    reason = "payload_mismatch"


class ShapeMismatch(InvalidInput):
    """An array's shape does not fit what it is combined with."""

    code = "SC203"
    reason = "shape_mismatch"


class InvalidName(InvalidInput):
    """A name, label or feature key is empty, too long, or holds characters that are not allowed."""

    code = "SC204"
    reason = "invalid_name"


class MessageTooLarge(InvalidInput):
    """A message is larger than the configured limit."""

    code = "SC205"
    grpc_status = "RESOURCE_EXHAUSTED"
    reason = "message_too_large"


class MalformedMessage(InvalidInput):
    """The bytes of a message are not the protobuf message they should be."""

    code = "SC206"
    reason = "malformed"


class UnsupportedTarget(InvalidInput):
    """A visualisation method cannot be applied to this feature or with this recipe."""

    code = "SC207"
    reason = "unsupported_target"


class ForbiddenOrigin(InvalidInput):
    """A form or call comes from a page of another site, or its token is not this daemon's."""

    code = "SC208"
    grpc_status = "PERMISSION_DENIED"
    reason = "forbidden_origin"


class ForbiddenHost(InvalidInput):
    """A web request names a host that the console is not known by."""

    code = "SC209"
    grpc_status = "PERMISSION_DENIED"
    reason = "forbidden_host"


class BrokenFrame(InvalidInput):
    """A frame's boundaries cannot be trusted; its connection is closed."""

    code = "SC210"
    reason = "broken_frame"


class UnsupportedVersion(BrokenFrame):
    """A frame has a version this end does not read; update the older end."""

    code = "SC211"
    reason = "unsupported_version"


class TruncatedFrame(BrokenFrame):
    """A frame did not arrive whole: its sender vanished or stalled in the middle of it."""

    code = "SC212"
    reason = "truncated_frame"


class ForbiddenPeer(InvalidInput):
    """The process at the other end of a socket runs as a user that is not allowed."""

    code = "SC213"
    grpc_status = "PERMISSION_DENIED"
    reason = "forbidden_peer"


class NotRegistered(SidecarError):
    """A message refers to something its stream has not announced."""

    code = "SC300"
    grpc_status = "FAILED_PRECONDITION"
    reason = "not_registered"


class UnregisteredLayer(NotRegistered):
    """A tensor carries a layer id that its stream has not registered."""

    code = "SC301"
    reason = "unregistered_layer"


class UnregisteredStream(NotRegistered):
    """A stream sent layers or batches before its hello."""

    code = "SC302"
    reason = "unregistered_stream"


class NotFound(SidecarError):
    """The request names something that does not exist."""

    code = "SC400"
    grpc_status = "NOT_FOUND"
    reason = "not_found"


class UnknownModel(NotFound):
    """No such model in the configuration, or no such revision seen."""

    code = "SC401"
    reason = "unknown_model"


class UnknownLayer(NotFound):
    """The model has no such layer, or the layer was never registered."""

    code = "SC402"
    reason = "unknown_layer"


class UnknownFeature(NotFound):
    """The layer has no feature with this index."""

    code = "SC403"
    reason = "unknown_feature"


class UnknownJob(NotFound):
    """There is no job with this id."""

    code = "SC404"
    reason = "unknown_job"


class UnknownArtifact(NotFound):
    """There is no artifact with this digest."""

    code = "SC405"
    reason = "unknown_artifact"


class UnknownBaseline(NotFound):
    """There is no stored baseline with this digest."""

    code = "SC406"
    reason = "unknown_baseline"


class UnknownAudit(NotFound):
    """No such audit is configured, or the night is not kept, or has no report yet."""

    code = "SC407"
    reason = "unknown_audit"


class Conflict(SidecarError):
    """The request contradicts the present state."""

    code = "SC500"
    grpc_status = "FAILED_PRECONDITION"
    reason = "conflict"


class LayerConflict(Conflict):
    """A layer is registered again with another width."""

    code = "SC501"
    reason = "layer_conflict"


class BaselineNotReady(Conflict):
    """A baseline cannot be frozen yet: too few samples were seen."""

    code = "SC502"
    reason = "baseline_not_ready"


class BaselineMismatch(Conflict):
    """A baseline was learned on another layer, revision, capture or kind of bins than the layer's."""

    code = "SC504"
    reason = "baseline_mismatch"


class JobFinished(Conflict):
    """The job has ended; it can no longer be cancelled or changed."""

    code = "SC503"
    reason = "job_finished"


class JobQuarantined(Conflict):
    """Equal requests killed their worker again and again; they are refused for a while."""

    code = "SC505"
    reason = "job_quarantined"


class Overloaded(SidecarError):
    """The sidecar sheds load; the same request may succeed later."""

    code = "SC600"
    grpc_status = "RESOURCE_EXHAUSTED"
    reason = "overloaded"


class QueueFull(Overloaded):
    """The ingest queue has no room for the batch."""

    code = "SC601"
    reason = "queue_full"


class JobQueueFull(Overloaded):
    """The job queue holds as many waiting jobs as it may."""

    code = "SC602"
    reason = "job_queue_full"


class LimitReached(Overloaded):
    """A configured cap on layers, features, streams or series is reached."""

    code = "SC603"
    reason = "limit_reached"


class StorageError(SidecarError):
    """The state directory cannot be read or written; the operator mends the disk."""

    code = "SC700"
    grpc_status = "UNAVAILABLE"
    reason = "storage"


class DiskFull(StorageError):
    """There is no space left to write state or artifacts."""

    code = "SC701"
    reason = "disk_full"


class CorruptState(StorageError):
    """A state file fails its checks; it is set aside and the daemon goes on without it."""

    code = "SC702"
    reason = "corrupt_state"


class StoreUnreachable(StorageError):
    """The artifact store is on another machine and does not answer; the same may succeed later."""

    code = "SC703"
    reason = "store_unreachable"


class JobError(SidecarError):
    """A visualisation job ended without a result."""

    code = "SC800"
    grpc_status = "ABORTED"
    reason = "job_failed"


class ModelLoadFailed(JobError):
    """The model's factory or weights could not be loaded."""

    code = "SC801"
    reason = "model_load_failed"


class DigestMismatch(JobError):
    """The loaded weights are not those of the revision that was asked for."""

    code = "SC802"
    reason = "digest_mismatch"


class SilentFeature(JobError):
    """The feature gives no gradient, so any picture of it would be noise."""

    code = "SC803"
    reason = "silent_feature"


class JobTimedOut(JobError):
    """The job ran into its time limit."""

    code = "SC804"
    grpc_status = "DEADLINE_EXCEEDED"
    reason = "job_timed_out"


class JobCancelled(JobError):
    """Somebody cancelled the job."""

    code = "SC805"
    grpc_status = "CANCELLED"
    reason = "job_cancelled"


class WorkerCrashed(JobError):
    """The job's process ended without saying why."""

    code = "SC806"
    reason = "worker_crashed"


class NonFiniteActivation(JobError):
    """An activation or gradient became NaN or infinite while a picture was made."""

    code = "SC807"
    reason = "non_finite_activation"


class DeadlineMissed(JobError):
    """The job was still waiting when its deadline passed."""

    code = "SC808"
    grpc_status = "DEADLINE_EXCEEDED"
    reason = "deadline_missed"


class SandboxRefused(JobError):
    """The model's code wanted what a worker may not: the network, other files, processes, more memory."""

    code = "SC809"
    reason = "sandbox_refused"


class GpuOutOfMemory(JobError):
    """The GPU had no memory left for the job: it is tried again, and nothing is held against its features."""

    code = "SC810"
    reason = "gpu_out_of_memory"
