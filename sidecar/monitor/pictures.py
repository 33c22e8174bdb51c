"""What people ask about made pictures: which there are, whether they hold, and that some stay."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidecar.detect import State
from sidecar.errors import (
    Conflict,
    CorruptState,
    NotFound,
    SidecarError,
    UnknownArtifact,
)
from sidecar.features import FeatureKey
from sidecar.jobs import (
    ArtifactIndex,
    Cause,
    Dictionaries,
    Fate,
    JobRequest,
    MadePicture,
    Runner,
    Verification,
    parse_manifest,
    request_of,
    verify,
)
from sidecar.monitor.live import live_contexts
from sidecar.monitor.monitor import Monitor
from sidecar.monitor.views import Event
from sidecar.recipes import Target
from sidecar.store import ArtifactStore, OwnerKind, Reference, References

PICTURE_LIMIT = 200
"""Most pictures listed at once."""

_PIN_OWNER = "operator"  # one pin a picture, whoever sets it: the note says who and why


class Pictures:
    """The pictures in the store; safe to use from several threads.

    A digest may be a picture's or its manifest's: both name the pair.
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        artifacts: ArtifactStore,
        index: ArtifactIndex,
        references: References,
        runner: Runner,
        dictionaries: Dictionaries,
        record: Callable[[Sequence[Event]], None],
        clock: Callable[[], float],
    ) -> None:
        """Join the parts; ``record`` puts audit entries on their way."""
        self._monitor, self._artifacts, self._index = monitor, artifacts, index
        self._references, self._runner = references, runner
        self._dictionaries = dictionaries
        self._record, self._clock = record, clock

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
        return self._index.list(
            feature=feature,
            model=model,
            revision=revision,
            method=method,
            verdict=verdict,
            job_id=job_id,
            limit=min(limit, PICTURE_LIMIT),
            before=before,
        )

    def find(self, digest: str) -> MadePicture:
        """Return the picture that a digest names.

        Raises:
            UnknownArtifact: None is listed under it.
        """
        found = self._index.find(digest)
        if found is None:
            raise UnknownArtifact(
                f"no picture or manifest {digest[:80]!r}: see `sidecar artifact list`"
            )
        return found

    def verify(self, digest: str) -> Verification:
        """Check a picture and its manifest; see ``jobs.verify``.

        Raises:
            UnknownArtifact: None is listed under the digest.
            StoreUnreachable: The store does not answer.
        """
        return verify(self.find(digest).manifest_digest, self._read)

    def _read(self, digest: str) -> bytes | None:
        try:
            return self._artifacts.get(digest)
        except (UnknownArtifact, CorruptState):
            return None  # damaged ones are set aside, and told in the log

    def reproduction(self, digest: str) -> JobRequest:
        """Return the request that makes a picture again, to be compared with the original.

        Raises:
            UnknownArtifact: None is listed under the digest.
            CorruptState: Its manifest does not say what was asked for.
            Conflict: It used typical ranges, or directions, that are not those of today.
        """
        original = self.find(digest).manifest_digest
        facts = parse_manifest(self._artifacts.get(original))
        target, recipe = request_of(facts)
        self._refuse_changed(target, facts)
        request = JobRequest((target,), recipe, origin="api", cause=Cause(reproduces=original))
        wanted = str(facts.get("typical_digest") or "")
        live = live_contexts(self._monitor, request) if wanted else {}
        context = live.get(str(target.feature))
        if wanted and (context is None or context.typical_digest != wanted):
            raise Conflict(
                f"{digest[:80]} was made with the typical ranges of a baseline that is not in force: "
                "import that baseline, or make a new portrait"
            )
        return request

    def _refuse_changed(self, target: Target, facts: Mapping[str, Any]) -> None:
        """Refuse to make a picture of a direction again from another dictionary than it was made from."""
        wanted = [one for one in facts.get("inputs", ()) if one.get("kind") == "directions"]
        if not wanted:
            return
        found = self._dictionaries.read(target.feature.layer).digest
        if found != wanted[0]["digest"]:
            raise Conflict(
                f"{target.feature} was drawn from dictionary {wanted[0]['name']} of sha256 "
                f"{wanted[0]['digest']}, and today's has {found}: put that file under dictionaries, or make a "
                "new portrait"
            )

    # -- what stays -------------------------------------------------------------------------

    def pin(self, digest: str, note: str) -> MadePicture:
        """Keep a picture and its manifest until somebody unpins them.

        Args:
            digest: Of either.
            note: Who wants it and why.

        Raises:
            UnknownArtifact: None is listed under the digest.
        """
        found, now = self.find(digest), self._clock()
        pair = (found.picture_digest, found.manifest_digest)
        self._references.hold(OwnerKind.PIN, _PIN_OWNER, pair, now, note)
        self._record((Event(now, "artifact_pinned", found.feature, note),))
        return found

    def unpin(self, digest: str) -> MadePicture:
        """Let a picture go with the others again.

        Raises:
            UnknownArtifact: None is listed under the digest.
            NotFound: It is not pinned.
        """
        found = self.find(digest)
        pair = (found.picture_digest, found.manifest_digest)
        if not self._references.release(OwnerKind.PIN, _PIN_OWNER, pair):
            raise NotFound(f"{digest[:80]} is not pinned: nothing to undo")
        now = self._clock()
        self._record((Event(now, "artifact_unpinned", found.feature, found.manifest_digest),))
        return found

    def references(self, found: MadePicture) -> Sequence[Reference]:
        """Return who refers to a picture or its manifest."""
        pair = (found.picture_digest, found.manifest_digest)
        return [one for one in self._references.of() if one.digest in pair]

    def fates(self) -> Sequence[Fate]:
        """Say of every artifact whether the next collection removes it, and why."""
        self._close_alerts()
        return self._runner.fates()

    def collect(self) -> int:
        """Remove what nobody refers to and is too old or too much; return how many went."""
        self._close_alerts()
        return self._runner.collect()

    def _close_alerts(self) -> None:
        """Let go of what alerts showed that are over."""
        for one in {(r.owner, r.note) for r in self._references.of(OwnerKind.ALERT)}:
            if not self._is_open(one[1]):
                self._references.release(OwnerKind.ALERT, one[0])

    def _is_open(self, feature: str) -> bool:
        """Whether an alert on a feature may still be open: it fires, or something certain holds."""
        try:
            status = self._monitor.feature(FeatureKey.parse(feature))
        except SidecarError:
            return False
        firing = status.state in (State.FIRING, State.PENDING)
        return firing or bool(status.conditions) or status.drifting
