"""Reads what the jobs of a night made, and holds it against earlier nights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from sidecar.audits.book import Entry
from sidecar.audits.checks import Earlier, Gate, JobEnd, Reference, Repeat, Served
from sidecar.audits.facts import Facts, LayerCounts, Plan, Portrayed
from sidecar.audits.status import Outcome
from sidecar.compare import Answer, Report, parse_rules, report_of
from sidecar.config import AuditConfig
from sidecar.errors import (
    CorruptState,
    SidecarError,
    StoreUnreachable,
    UnknownArtifact,
    UnknownJob,
)
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobQueue, JobState, Portrait, compare, parse_manifest
from sidecar.monitor import Operations
from sidecar.store import ArtifactStore


@dataclass(frozen=True, slots=True)
class Change:
    """A portrait that is not what it was.

    Attributes:
        night: The newest earlier night that pictured the feature.
        then: Its portrait of then.
        now: That of tonight.
        max_difference: Largest difference of a pixel's channel, in the range 0 to 1; None where they cannot
            be compared, such as for their sizes.
    """

    night: str
    then: Portrayed
    now: Portrayed
    max_difference: float | None


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one night found, before it is judged.

    Attributes:
        jobs: How its jobs ended.
        facts: What later nights are held against.
        report: The comparison; None where there is none.
        gate: What its gate said; None likewise.
        repeats: Portraits that were made anew though an earlier night has the same.
        earlier: What earlier nights said of the portraits' features.
        reference: The night whose counts are held against these; None: there is none.
        verifications: sha256 of each manifest, and what is wrong with it.
        served: What the hooks say.
        changes: Portraits whose pixels are not those of the newest earlier one.
    """

    jobs: tuple[JobEnd, ...]
    facts: Facts
    report: Report | None
    gate: Gate | None
    repeats: tuple[Repeat, ...]
    earlier: Mapping[str, Earlier]
    reference: Reference | None
    verifications: tuple[tuple[str, str], ...]
    served: Served
    changes: tuple[Change, ...] = ()


class Gatherer:
    """Reads jobs, pictures and manifests; safe to use from several threads."""

    def __init__(self, queue: JobQueue, artifacts: ArtifactStore, operations: Operations) -> None:
        """Join the parts."""
        self._queue, self._artifacts, self._operations = queue, artifacts, operations

    def job(self, job_id: str) -> Job | None:
        """Return a job; None where the table forgot it."""
        try:
            return self._queue.get(job_id)
        except UnknownJob:
            return None

    def codes(self, plan: Plan) -> dict[str, str]:
        """Return the codes of what ended those jobs of a plan that failed, by their roles."""
        found = ((role, self.job(job_id)) for role, job_id in plan.jobs.items())
        return {role: job.error_code for role, job in found if job is not None and job.error_code}

    def digest(self, plan: Plan) -> str:
        """Return the sha256 of the weights that the jobs' model had; empty where no manifest tells it.

        Raises:
            StoreUnreachable: The store does not answer; it may later.
        """
        for job in map(self.job, plan.jobs.values()):
            for one in job.portraits if job is not None else ():
                with suppress(UnknownArtifact, CorruptState, LookupError, TypeError):
                    facts = parse_manifest(self._artifacts.get(one.manifest_digest))
                    return str(facts["model"]["digest"])
        return ""

    def gather(
        self, audit: AuditConfig, entry: Entry, past: Sequence[Entry], served: Served
    ) -> Findings:
        """Read everything a night made.

        Args:
            audit: Which audit.
            entry: The night, all of whose jobs have ended.
            past: Judged nights of the same model, the newest first.
            served: What the hooks say.

        Raises:
            StoreUnreachable: The store does not answer; it may later.
        """
        found = {role: self.job(job_id) for role, job_id in entry.plan.jobs.items()}
        done = {
            role: job
            for role, job in found.items()
            if job is not None and job.state is JobState.DONE
        }
        report, gate, layers = self._compared(audit, _of(done, "compare"))
        low = {one.feature for one in entry.plan.chosen or () if one.negative}
        made = (
            _portrayed(one, cached=job.from_cache)
            for job in _of(done, "portraits")
            for one in job.portraits
        )
        portraits = tuple(replace(one, negative=one.feature in low) for one in made)
        repeats = tuple(self._repeats(entry, past, portraits, done))
        facts = Facts(
            digest=entry.plan.digest,
            other_digest=report.other.digest if report else "",
            dataset_digest=report.dataset.digest if report else "",
            layers=layers,
            portraits=portraits,
            again=tuple(one.feature for one in repeats if not one.problem),
            model=audit.model_name,
            against=audit.against or "",
        )
        manifests = [one.manifest for one in portraits]
        manifests += [one.manifest_digest for job in _of(done, "compare") for one in job.portraits]
        return Findings(
            jobs=tuple(
                _end(role, entry.plan.jobs[role], job)
                for role, job in found.items()
                if f"{role}-0" not in found  # its features were asked for alone instead
            )
            + tuple(JobEnd(role, "", "refused", why) for role, why in entry.plan.refused.items()),
            facts=facts,
            report=report,
            gate=gate,
            repeats=repeats,
            earlier=_earlier(past),
            reference=newest_reference(past, facts.against),
            verifications=tuple(
                (digest, self._wrong(digest)) for digest in dict.fromkeys(manifests)
            ),
            served=served,
            changes=tuple(self._changes(past, portraits)),
        )

    def _compared(
        self, audit: AuditConfig, jobs: Sequence[Job]
    ) -> tuple[Report | None, Gate | None, tuple[LayerCounts, ...]]:
        if not jobs:
            return None, None, ()
        try:
            answers = [self._answer(one) for job in jobs for one in job.portraits]
            report = report_of(answers, parse_rules(audit.fail_on))
            layers = layers_on_images(answers)
        except StoreUnreachable:
            raise
        except SidecarError:
            return None, None, ()  # an artifact is gone or damaged: the check of artifacts names it
        broken = tuple(f"{one.layer}: {one.reason}" for one in report.broken)
        cached = all(job.from_cache for job in jobs)
        return report, Gate(", ".join(report.rules), broken, cached), layers

    def _answer(self, portrait: Portrait) -> Answer:
        return Answer(
            content_key=portrait.content_key,
            picture_digest=portrait.picture_digest,
            picture=self._artifacts.get(portrait.picture_digest),
            manifest_digest=portrait.manifest_digest,
            manifest=self._artifacts.get(portrait.manifest_digest),
        )

    def _repeats(
        self,
        entry: Entry,
        past: Sequence[Entry],
        portraits: Sequence[Portrayed],
        done: Mapping[str, Job],
    ) -> Iterator[Repeat]:
        """Yield what was made again on purpose, and what was made anew because the store had lost it."""
        for number, (feature, manifest) in enumerate((entry.plan.again or {}).items()):
            night, original = _original(past, manifest)
            job = done.get(f"again-{number}")
            if original is None or job is None:
                yield Repeat(feature, night, problem="its job did not end well, or it is gone")
            else:
                yield self._compare(
                    feature, night, original, _portrayed(job.portraits[0], cached=False)
                )
        for one in portraits:
            night, original = _same_key(past, one)
            if original is not None and not one.cached and original.picture != one.picture:
                yield self._compare(one.feature, night, original, one)

    def _changes(self, past: Sequence[Entry], portraits: Sequence[Portrayed]) -> Iterator[Change]:
        """Yield portraits with other pixels; files of other revisions differ in what they say of it."""
        for one in portraits:
            night, then = _newest(past, one.feature)
            if then is None or then.picture == one.picture or then.negative != one.negative:
                continue
            found = self._compare(one.feature, night, then, one)
            if found.problem or found.different:
                yield Change(night, then, one, None if found.problem else found.max_difference)

    def _compare(self, feature: str, night: str, original: Portrayed, again: Portrayed) -> Repeat:
        try:
            pictures = [self._artifacts.get(one.picture) for one in (original, again)]
            manifests = [parse_manifest(self._artifacts.get(o.manifest)) for o in (original, again)]
            found = compare(pictures[0], pictures[1], manifests[0], manifests[1])
        except StoreUnreachable:
            raise
        except SidecarError as error:
            return Repeat(feature, night, problem=error.message)
        return Repeat(feature, night, found.verdict, found.max_difference, again.picture)

    def _wrong(self, manifest: str) -> str:
        """Return what is wrong with a manifest or its picture, in words; empty: nothing."""
        try:
            found = self._operations.provenance.verify(manifest)
        except StoreUnreachable:
            raise
        except SidecarError as error:
            return error.message
        return "; ".join(f"{one.check}: {one.detail}" for one in found.findings if one.ok is False)

    def read(self, digest: str) -> bytes | None:
        """Return an artifact; None where it is gone or damaged."""
        try:
            return self._artifacts.get(digest)
        except StoreUnreachable:
            raise
        except (SidecarError, CorruptState):
            return None


def layers_on_images(answers: Sequence[Answer]) -> tuple[LayerCounts, ...]:
    """Return what became of all units of each layer by their values on the images alone.

    A report also counts what portraits show of the pictured units; which those are changes from night to night,
    and counts that depend on it cannot be held against each other.

    Raises:
        CorruptState: A manifest cannot be read.
    """
    found: dict[str, LayerCounts] = {}
    for answer in answers:
        facts = parse_manifest(answer.manifest)
        layer = str(FeatureKey.parse(facts["feature"]).layer).partition("/")[2]
        summary = facts["findings"]["layer"]
        found.setdefault(layer, LayerCounts(layer, summary["units"], dict(summary["counts"])))
    return tuple(found.values())


def _of(done: Mapping[str, Job], what: str) -> list[Job]:
    return [job for role, job in done.items() if role.startswith(f"{what}-")]


def _portrayed(one: Portrait, *, cached: bool) -> Portrayed:
    return Portrayed(
        feature=str(FeatureKey.parse(one.feature)).partition("/")[2],
        content_key=one.content_key,
        picture=one.picture_digest,
        manifest=one.manifest_digest,
        verdict=one.verdict,
        reasons=one.reasons,
        cached=cached,
    )


def _end(role: str, job_id: str, job: Job | None) -> JobEnd:
    if job is None:
        return JobEnd(role, job_id, "gone")
    last = job.error.strip().splitlines()[-1:]  # a traceback says in its last line what happened
    owner = str(job.request.targets[0].feature).partition("/")[0] if job.request.targets else ""
    error = " ".join([job.error_code, *last]).strip().replace(f"{owner}/", "")
    return JobEnd(role, job_id, job.state.value, error, job.from_cache)


def held(entry: Entry, check: str) -> bool:
    """Whether later nights may be held against what a check of a night saw: it did not fail, or was accepted."""
    failed = any(one.name == check and one.outcome is Outcome.FAILED for one in entry.night.checks)
    return bool(entry.accepted) or not failed


def newest_reference(past: Sequence[Entry], against: str) -> Reference | None:
    """Return the night whose counts later ones are held against; None where no other compared the same models.

    Args:
        past: Judged nights of one model, the newest first.
        against: Name of the other.
    """
    compared = (one for one in past if one.facts.layers and one.facts.against == against)
    good = (one for one in compared if held(one, "counts"))
    newest = next(good, None)
    return None if newest is None else Reference(newest.night.id, newest.facts)


def _earlier(past: Sequence[Entry]) -> dict[str, Earlier]:
    found: dict[str, Earlier] = {}
    for entry in past:
        if held(entry, "verdict"):
            for one in entry.facts.portraits:
                found.setdefault(one.feature, Earlier(entry.night.id, one))
    return found


def _original(past: Sequence[Entry], manifest: str) -> tuple[str, Portrayed | None]:
    for entry in past:
        for one in entry.facts.portraits:
            if one.manifest == manifest:
                return entry.night.id, one
    return "", None


def _newest(past: Sequence[Entry], feature: str) -> tuple[str, Portrayed | None]:
    found = ((entry.night.id, entry.facts.portrait(feature)) for entry in past)
    return next((one for one in found if one[1] is not None), ("", None))


def _same_key(past: Sequence[Entry], portrait: Portrayed) -> tuple[str, Portrayed | None]:
    for entry in past:
        for one in entry.facts.portraits:
            if one.content_key == portrait.content_key:
                return entry.night.id, one
    return "", None


def to_repeat(past: Sequence[Entry], digest: str, limit: int) -> dict[str, str]:
    """Return portraits of earlier nights that are made again: manifests by feature.

    Args:
        past: Judged nights, the newest first.
        digest: sha256 of the weights; pictures of others cannot be made again.
        limit: Most that are; those come first that were made again longest ago, or never.
    """
    newest: dict[str, str] = {}
    last: dict[str, int] = {}
    for age, entry in enumerate(past):
        for name in entry.facts.again:
            last.setdefault(name, age)
        if entry.facts.digest == digest:
            for one in entry.facts.portraits:
                newest.setdefault(one.feature, one.manifest)
    turn = sorted(newest, key=lambda name: (-last.get(name, len(past)), name))
    return {name: newest[name] for name in turn[:limit]}
