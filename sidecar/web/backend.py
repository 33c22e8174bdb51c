"""What the console needs to know and do; the daemon says how."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sidecar.detect import State
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobRequest, MadePicture, Portrait, Quarantined, Verification
from sidecar.monitor import (
    BaselineVersion,
    Event,
    EvidenceRecord,
    FeatureDistribution,
    FeatureStatus,
    Flag,
    LayerStatus,
    UnmatchedFlag,
    Watching,
    Window,
)
from sidecar.recipes import Recipe
from sidecar.store import Reference


class PictureBook(Protocol):
    """The made pictures as the console sees them; a digest names a picture or its manifest."""

    def list(
        self,
        *,
        feature: str = "",
        model: str = "",
        revision: str = "",
        method: str = "",
        verdict: str = "",
        job_id: str = "",
        limit: int = 50,
        before: str = "",
    ) -> Sequence[MadePicture]:
        """Return pictures, the newest first; see ``ArtifactIndex.list``."""

    def find(self, digest: str) -> MadePicture:
        """Return a picture; UnknownArtifact where none is listed under the digest."""

    def verify(self, digest: str) -> Verification:
        """Check a picture and its manifest against each other and their names."""

    def references(self, found: MadePicture) -> Sequence[Reference]:
        """Return who refers to a picture or its manifest."""


class Backend(Protocol):
    """The daemon as the console sees it.

    Every method may block and is called from several threads at once, never from the event loop.
    What goes wrong is a ``SidecarError``; its code and message are shown to the person who asked.
    """

    @property
    def version(self) -> str:
        """The sidecar's version, shown in the foot of every page."""

    @property
    def provenance(self) -> "PictureBook":
        """What may be asked about made pictures."""

    def features(
        self,
        *,
        model: str,
        revision: str,
        layer: str,
        flagged_only: bool,
        state: State | None,
        query: str,
        offset: int,
        limit: int,
    ) -> tuple[Sequence[FeatureStatus], int]:
        """Return one page of features and how many there are in all.

        Flagged features come first: firing, pending, then those of which a condition or drift
        holds, then resolved, normal, unknown, each by key.

        Args:
            model: Only of this model; empty: of all.
            revision: Only of revisions that start with this.
            layer: Only of this layer.
            flagged_only: Only those somebody watches.
            state: Only those in this state.
            query: Only those whose key, name or owner holds this text, in any case.
            offset: How many to skip.
            limit: At most so many; 0 asks for the total alone.
        """

    def unmatched_flags(self) -> Sequence[str]:
        """Return the text of the flags whose layer no hook registered, or not with that index."""

    def explained_flags(self) -> Sequence[UnmatchedFlag]:
        """Return why the first of these fit no feature; a screenful at most."""

    def layers(self) -> Sequence[LayerStatus]:
        """Return every registered layer, sorted by key."""

    def labels(self, model: str) -> Sequence[str]:
        """Return the model's class names in the order of its logits; empty where none are known."""

    def resolve(self, text: str) -> FeatureKey:
        """Return the one feature that ``text`` names; its revision may be a prefix or left out.

        Raises:
            InvalidName: The text is no feature key.
            NotFound: Nothing, or more than one thing, has that name.
        """

    def feature(self, key: FeatureKey) -> FeatureStatus:
        """Return how a feature stands; NotFound where there is no such feature."""

    def distribution(self, key: FeatureKey, window: Window) -> FeatureDistribution:
        """Return a feature's distribution; its count is 0 where the window holds nothing."""

    def events(self, key: FeatureKey | None, limit: int) -> Sequence[Event]:
        """Return the newest audit events, newest first, of one feature and its layer or of all."""

    def evidence(self, key: FeatureKey, limit: int) -> Sequence[EvidenceRecord]:
        """Return the newest records of why a feature fired, newest first; none that expired."""

    def portraits(self, key: FeatureKey) -> Sequence[Portrait]:
        """Return the finished pictures of a feature, newest first; a few suffice."""

    def jobs(self, key: FeatureKey | None, limit: int, before: str = "") -> Sequence[Job]:
        """Return the newest jobs, newest first, of one feature or of all.

        Args:
            key: Only of this feature.
            limit: At most so many.
            before: Only those submitted before the job of this id.
        """

    def job(self, job_id: str) -> Job:
        """Return a job; UnknownJob where there is none."""

    def submit(self, request: JobRequest) -> Job:
        """Queue a job, or return the one that has the same idempotency key."""

    def cancel(self, job_id: str) -> Job:
        """Stop a job; JobFinished where it has ended."""

    def quarantined(self) -> Sequence[Quarantined]:
        """Return what is refused for killing its worker again and again, the longest first."""

    def release_quarantine(self, name: str) -> int:
        """Refuse it no longer; return how many content keys were let go.

        Args:
            name: A content key, its first 8 digits or more, or the job's id.

        Raises:
            UnknownJob: Nothing of that name is quarantined.
        """

    def preview(self, job_id: str) -> bytes | None:
        """Return the newest intermediate picture of a running job as PNG; None before the first."""

    def wait_job(self, job_id: str, seen: int, timeout: float) -> int:
        """Block until a job's version differs from ``seen`` or ``timeout`` seconds have passed.

        Returns:
            The version now; it grows with every change of the job, and no version is negative.
        """

    def artifact(self, digest: str) -> tuple[Path, str]:
        """Return the file and media type of an artifact; UnknownArtifact where there is none."""

    def flag(self, key: FeatureKey, flag: Flag, watching: Watching) -> None:
        """Watch a feature from now on, or change how; what ``watching`` does not say stays as it is."""

    def unflag(self, key: FeatureKey) -> None:
        """Watch a feature no longer."""

    def freeze(self, model: str, revision: str, layer: str) -> int:
        """Freeze the baselines of the matching layers now; return how many layers matched."""

    def reset(self, model: str, revision: str, layer: str, reason: str = "") -> int:
        """Learn the baselines of the matching layers anew; return how many layers matched.

        Args:
            model: Of this model.
            revision: Of revisions that start with this.
            layer: Of this layer; empty: of all.
            reason: Why, for the audit log; InvalidInput where it is too long or not printable.
        """

    def baselines(self, model: str, revision: str, layer: str) -> Sequence[BaselineVersion]:
        """Return the stored versions of baselines, newest first; an empty argument means all."""

    def can_picture(self, key: FeatureKey) -> bool:
        """Whether a job may be about a feature."""

    def default_recipe(self) -> Recipe:
        """Return the recipe of jobs that do not name their own values."""

    def alert_fired(
        self,
        fingerprint: str,
        started: float,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> Job | None:
        """Ask for the portrait of the feature an alert is about.

        The same fingerprint and start are one job however often they are sent.

        Args:
            fingerprint: Alertmanager's name of the alert's label set.
            started: Unix seconds at which the alert began.
            labels: At least ``model``, ``revision``, ``layer``, ``kind`` and ``feature``.
            annotations: The alert's texts.

        Returns:
            The job, or None where portraits on alerts are off or no picture can be made.

        Raises:
            NotFound: The labels name no known feature.
            Overloaded: The job queue is full; the alert may be sent again.
        """
