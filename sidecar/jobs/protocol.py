"""The values of the job queue: what is asked, what is answered, and how a job stands.

They cross from the console and the webhook through the queue to the worker child, and back. Nothing
here runs anything.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.recipes import Maximisation, Recipe, Target


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Priority(StrEnum):
    """Whose jobs go first: people's, then alerts', then audits of many features."""

    INTERACTIVE = "interactive"
    ALERT = "alert"
    AUDIT = "audit"

    @property
    def rank(self) -> int:
        """0 for what goes first; the number that the job table sorts by."""
        return tuple(Priority).index(self)


_BY_ORIGIN = {"alert": Priority.ALERT, "audit": Priority.AUDIT}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a picture was asked for, so that it can be traced to that.

    Attributes:
        alert: Fingerprint of the alert, or ``direct`` where the daemon itself asked; empty: none.
        alert_started: Unix seconds at which that alert began; 0: none.
        evidence: Id of the evidence record of the feature at that time, or empty.
        reproduces: sha256 of the manifest whose picture is made again, or empty. Such a job is
            never answered from the store, and its picture never becomes the feature's answer.
    """

    alert: str = ""
    alert_started: float = 0.0
    evidence: str = ""
    reproduces: str = ""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What somebody asked for.

    Attributes:
        targets: Units of one model revision, one picture each; made in one batch.
        recipe: How the pictures are made.
        origin: What asked: ``cli``, ``console``, ``api``, ``alert`` or ``audit``.
        idempotency_key: Two requests with the same non-empty key are one job.
        time_limit_seconds: Wall time; 0 takes the configured limit.
        cause: What led to it.
        deadline: Unix seconds after which it need not be started any more; 0: none.
        asked_priority: Whose turn it takes; None takes that of its origin.
    """

    targets: tuple[Target, ...]
    recipe: Recipe = field(default_factory=Maximisation)
    origin: str = "cli"
    idempotency_key: str = ""
    time_limit_seconds: float = 0.0
    cause: Cause = field(default_factory=Cause)
    deadline: float = 0.0
    asked_priority: Priority | None = None

    @property
    def priority(self) -> Priority:
        """Whose turn it takes: as asked, else people first, then alerts, then audits."""
        return self.asked_priority or _BY_ORIGIN.get(self.origin, Priority.INTERACTIVE)

    @property
    def model(self) -> str:
        """Name of the model all targets are of; empty where there are none."""
        return self.targets[0].feature.layer.model if self.targets else ""


@dataclass(frozen=True, slots=True)
class Portrait:
    """One finished picture.

    Attributes:
        feature: Text form of the feature key.
        content_key: sha256 of the request, see ``recipes.content_key``.
        picture_digest: sha256 of the PNG in the artifact store.
        manifest_digest: sha256 of the JSON manifest in the artifact store.
        created: Unix seconds.
        verdict: How far the picture can be believed: ``trusted``, ``weak`` or ``unreliable``; empty
            where that was not measured.
        reasons: Why, a sentence a line; empty where it is trusted.
    """

    feature: str
    content_key: str
    picture_digest: str
    manifest_digest: str
    created: float
    verdict: str = ""
    reasons: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands now.

    Attributes:
        id: ULID-like, sortable by time of submission.
        request: What was asked.
        state: Where it is in its life.
        step: Optimiser step reached.
        steps: Optimiser steps in all.
        message: What it is doing, in words.
        error_code: Stable code of what went wrong, or empty.
        error: What went wrong and what to do, or empty.
        created: Unix seconds of submission.
        started: Unix seconds of the last start, or 0.
        ended: Unix seconds of the end, or 0.
        attempts: Times it was started.
        portraits: What it made; one for each target when done.
        from_cache: Whether every picture was there already.
        preview_version: Grows with every new intermediate picture; 0: none yet.
    """

    id: str
    request: JobRequest
    state: JobState
    step: int = 0
    steps: int = 0
    message: str = ""
    error_code: str = ""
    error: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    attempts: int = 0
    portraits: tuple[Portrait, ...] = ()
    from_cache: bool = False
    preview_version: int = 0
