"""Runs audits at their time, judges their nights, and says how they stand."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from sidecar.audits.book import AuditBook, Entry
from sidecar.audits.checks import state_of
from sidecar.audits.facts import Plan
from sidecar.audits.gathering import Findings, Gatherer, to_repeat
from sidecar.audits.judging import judge
from sidecar.audits.page import render_night
from sidecar.audits.priority import choose
from sidecar.audits.report import NightReport, as_json
from sidecar.audits.requests import apart, configured_digest, looking, repeating, unserved_revision
from sidecar.audits.retention import superfluous
from sidecar.audits.status import AuditState, AuditStatus, Night, NightState
from sidecar.audits.times import Times
from sidecar.audits.watching import candidates, served, served_digest
from sidecar.config import AuditConfig, SidecarConfig
from sidecar.errors import (
    Conflict,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    JobError,
    JobQuarantined,
    SidecarError,
    UnknownArtifact,
    UnknownAudit,
    UnknownModel,
)
from sidecar.features import is_digest
from sidecar.jobs import JobQueue, JobRequest, ModelSources
from sidecar.monitor import Event, Operations
from sidecar.store import ArtifactStore, OwnerKind, References

TICK_SECONDS = 1.0
"""How often it is looked whose time has come and which jobs have ended."""

PATIENCE_SECONDS = 30.0
"""Pause of an audit after its step failed: a full queue or disk is not mended by asking faster."""

DAY_SECONDS = 86_400.0
"""How far back the first night looks for what fired; a layer without a sample for as long is not sampled."""

SETTLING_SECONDS = 3_600.0
"""How long after its start a daemon calls no layer silent: it may have been down for days itself, and requests
have to come first."""

FORGOTTEN_SECONDS = 90 * DAY_SECONDS
"""How long nights of an audit are kept that is configured no more: somebody may put it back."""

NOTE_LIMIT = 200
"""Characters of why somebody accepts a night; it stands in the audit log."""

SCHEDULE = "schedule"
"""Actor of nights whose time had come."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What audits work with.

    Attributes:
        config: Models, flags, and the audits themselves.
        operations: What the daemon knows, and its audit log.
        queue: Where jobs go.
        artifacts: Where pictures and reports are.
        references: What keeps them there.
    """

    config: SidecarConfig
    operations: Operations
    queue: JobQueue
    artifacts: ArtifactStore
    references: References


class NightlyAudits:
    """The configured audits; see ``status.Audits`` for what it answers.

    One thread does all the work; what it knows is in the database before it acts on it, so that it goes on
    after kill -9 where it was.
    """

    def __init__(self, tools: Tools, *, clock: Callable[[], float]) -> None:
        """Read what earlier nights left.

        Raises:
            StorageError: The database cannot be used.
        """
        self._tools, self._clock = tools, clock
        self._audits = {one.name: one for one in tools.config.audits}
        self._book = AuditBook(tools.queue.database)
        self._sources = ModelSources(tools.config.model)
        self._gatherer = Gatherer(tools.queue, tools.artifacts, tools.operations)
        self._lock, self._reloading = threading.Lock(), threading.Lock()
        self._entries: tuple[Entry, ...] = ()
        self._held: set[str] = set()
        self._settled_at = clock() + SETTLING_SECONDS
        self._not_before: dict[str, float] = {}
        self._times = {
            one.name: Times(
                one.schedule, one.zone, self._book.since(one.name, _schedule(one), clock())
            )
            for one in tools.config.audits
        }
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-audits", daemon=True)
        self._reload()

    # -- life ---------------------------------------------------------------------------------

    def start_thread(self) -> None:
        """Begin to look whose time has come; without audits there is nothing to look at."""
        self._release_orphans()
        if self._audits:
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop looking; a night that runs goes on after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether somebody looks after the audits there are; for the liveness probe."""
        return not self._audits or self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.tick()
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def tick(self) -> None:
        """Do what there is to do now; whatever goes wrong with one audit, the others go on."""
        for audit in self._audits.values():
            if time.monotonic() < self._not_before.get(audit.name, 0.0):
                continue
            try:
                self._step(audit)
            except SidecarError as error:
                self._pause(audit)
                _log.warning("audit_step_failed", audit=audit.name, error=str(error))
            except Exception:  # noqa: BLE001 - rule 1: after start-up nothing may end this thread
                self._pause(audit)
                _log.exception("audit_step_crashed", audit=audit.name)

    def _pause(self, audit: AuditConfig) -> None:
        self._not_before[audit.name] = time.monotonic() + PATIENCE_SECONDS

    # -- questions ----------------------------------------------------------------------------

    def statuses(self) -> tuple[AuditStatus, ...]:
        """Return how every configured audit stands, in the order of the configuration."""
        return tuple(map(self.status, self._audits))

    def status(self, name: str) -> AuditStatus:
        """Return how one audit stands; UnknownAudit where there is none of that name."""
        audit = self._find(name)
        mine = self._of(name)
        nights = tuple(one.night for one in mine)
        running = next((one for one in nights if not one.state.judged), None)
        last = next((one for one in nights if one.state.judged), None)
        now, times = self._clock(), self._times[name]
        scheduled = [one for one in mine if one.scheduled]
        due = next((one.due for one in scheduled if not one.night.state.judged), None)
        overdue = times.overdue([one.due for one in scheduled], due, now)
        return AuditStatus(
            name=name,
            model=audit.model,
            against=audit.against or "",
            state=_state(overdue=overdue, running=running, last=last),
            last=last,
            running=running,
            next_at=times.next_at(now),
            overdue=overdue,
            nights=nights,
        )

    def night(self, name: str, night_id: str) -> Night:
        """Return one night; UnknownAudit where it is not kept."""
        return self._entry(name, night_id).night

    def report(self, name: str, night_id: str, form: Literal["html", "json"]) -> bytes:
        """Return a night's report; UnknownAudit where there is none, or not yet."""
        entry = self._entry(name, night_id)
        digest = entry.page if form == "html" else entry.data
        if not digest:
            raise UnknownAudit(
                f"audit {name!r}: night {night_id} is {entry.night.state}: no report yet"
            )
        try:
            return self._tools.artifacts.get(digest)
        except UnknownArtifact as error:
            words = f"audit {name!r}: the {form} report of {night_id} is gone from the store"
            raise UnknownAudit(words) from error

    def _entry(self, name: str, night_id: str) -> Entry:
        self._find(name)
        found = next((one for one in self._of(name) if one.night.id == night_id), None)
        if found is None:
            raise UnknownAudit(
                f"audit {name!r} has no night {night_id[:40]!r}: see `sidecar audit show {name}`"
            )
        return found

    def _find(self, name: str) -> AuditConfig:
        audit = self._audits.get(name)
        if audit is None:
            known = ", ".join(self._audits) or "none is configured: name one under audits"
            raise UnknownAudit(f"audit {name[:80]!r} is unknown: use one of {known}")
        return audit

    def _of(self, name: str) -> list[Entry]:
        with self._lock:
            return [one for one in self._entries if one.night.audit == name]

    def _judged(self, name: str) -> list[Entry]:
        return [one for one in self._of(name) if one.night.state.judged]

    def _past(self, audit: AuditConfig) -> list[Entry]:
        """Return the judged nights that others may be held against: those of the model that is audited now."""
        return [one for one in self._judged(audit.name) if one.facts.model == audit.model_name]

    def _reload(self) -> None:
        # One at a time: what was read first must not replace what was read after it, and hide a night.
        with self._reloading:
            entries = self._book.entries()
            with self._lock:
                self._entries = entries

    # -- commands -----------------------------------------------------------------------------

    def start(self, name: str, actor: str) -> Night:
        """Run an audit now, with an audit entry, or return the night that already runs.

        Raises:
            UnknownAudit: There is none of that name.
            StorageError: The disk refuses it.
        """
        self._find(name)
        now = self._clock()
        begun = self._book.begin(name, now, now, actor=actor, scheduled=False)
        self._reload()
        night = self.status(name).running or self._of(name)[0].night
        if begun:
            self._record("audit_started", name, f"night {night.id}, asked for by {actor}")
            self._not_before.pop(name, None)
        self._wake.set()
        return night

    def accept(self, name: str, night_id: str, note: str) -> Night:
        """Take what a judged night found for the new normal, with an audit entry.

        Args:
            name: Of the audit.
            night_id: Which night; later ones are held against it.
            note: Who accepts it and why.

        Raises:
            UnknownAudit: There is no such night.
            Conflict: It still runs, or failed: then it found nothing that later ones could be held against.
            InvalidInput: The note is empty, too long, or not printable.
        """
        entry = self._entry(name, night_id)
        if not note or len(note) > NOTE_LIMIT or not note.isprintable():
            raise InvalidInput(
                f"note {note[:40]!r}: say in 1 to {NOTE_LIMIT} printable characters who accepts it and why"
            )
        if entry.night.state is NightState.FAILED:
            raise Conflict(
                f"audit {name!r}: night {night_id} failed, and found nothing to accept: name the one that "
                "regressed with --night"
            )
        if not self._book.accept(name, night_id, note):
            raise Conflict(f"audit {name!r}: night {night_id} still runs: wait until it is judged")
        self._reload()
        self._record("audit_accepted", name, f"night {night_id}: {note}")
        return entry.night

    def _record(self, what: str, audit: str, detail: str) -> None:
        self._tools.operations.record((Event(self._clock(), what, audit, detail),))

    # -- one step -----------------------------------------------------------------------------

    def _step(self, audit: AuditConfig) -> None:
        """Begin a night whose time has come, or bring the one that runs further."""
        running = next((one for one in self._of(audit.name) if not one.night.state.judged), None)
        if running is not None:
            self._advance(audit, running)
            return
        now, times = self._clock(), self._times[audit.name]
        if now < times.since:
            times.since = self._book.since(audit.name, _schedule(audit), now)
        due = times.last_at(now)
        if due <= times.since or any(
            one.scheduled and one.due == due for one in self._of(audit.name)
        ):
            return
        if self._book.begin(audit.name, due, now, actor=SCHEDULE, scheduled=True):
            self._reload()
            self._record("audit_started", audit.name, f"night {self._of(audit.name)[0].night.id}")
            self._wake.set()

    def _advance(self, audit: AuditConfig, entry: Entry) -> None:
        """Do the next of: choose, ask, ask for some alone, make earlier portraits again, judge."""
        if entry.plan.chosen is None:
            entry = self._write(entry, self._chosen(audit, entry))
        if entry.plan.revision:
            entry = self._ask(audit, entry)
        if not self._ended(entry):
            return
        if self._is_other_model(audit, entry.plan):
            # What is served is not what is configured; that is what is audited.
            self._write(entry, self._unserved(audit, entry, entry.plan))
            return
        if entry.plan.again is None:
            entry = self._ask_again(audit, entry)
        if self._ended(entry):
            self._judge(audit, entry)
            self._held.clear()

    def _ended(self, entry: Entry) -> bool:
        """Whether all jobs have; what those made that have is held from now on."""
        jobs = [self._gatherer.job(job_id) for job_id in entry.plan.jobs.values()]
        for job in jobs:
            if job is not None and job.portraits and job.id not in self._held:
                digests = [d for p in job.portraits for d in (p.picture_digest, p.manifest_digest)]
                self._hold(entry, digests)
                self._held.add(job.id)
        return all(job is None or job.state.ended for job in jobs)

    def _chosen(self, audit: AuditConfig, entry: Entry) -> Plan:
        """Settle what is looked at, and under which revision."""
        model = self._tools.config.model(audit.model_name)
        digest = configured_digest(audit, model) if model is not None else ""
        sampled_after = entry.night.started_at - DAY_SECONDS
        digest = digest or served_digest(audit, self._tools.operations, sampled_after)
        past = self._past(audit)
        pictured: dict[str, float] = {}
        for one in reversed(past):
            pictured |= dict.fromkeys(_names(one.plan), one.night.started_at)
        found = candidates(
            audit,
            self._tools.config,
            self._tools.operations,
            digest=digest,
            since=past[0].night.started_at if past else sampled_after,
            pictured=pictured,
        )
        plan = replace(entry.plan, chosen=choose(found, audit.features), revision=digest)
        return plan if digest else self._unserved(audit, entry, plan)

    def _unserved(self, audit: AuditConfig, entry: Entry, plan: Plan) -> Plan:
        """Return a plan that asks, from the beginning, for whatever the configuration loads."""
        model = self._tools.config.model(audit.model_name)
        try:
            source = self._sources.read(audit.model_name).source
        except (
            JobError,
            UnknownModel,
        ) as error:  # a file of it is gone, or it left the configuration
            return replace(plan.with_refusal("model", str(error)), revision="", jobs={})
        revision = unserved_revision(model, source, entry.night.id) if model is not None else ""
        return replace(plan, revision=revision, asked=False, jobs={})

    def _is_other_model(self, audit: AuditConfig, plan: Plan) -> bool:
        """Whether a job was refused because the configured weights are not those that are served.

        Others may have been answered from the store, which has pictures of what is served.
        """
        model = self._tools.config.model(audit.model_name)
        named = model is not None and plan.revision == configured_digest(audit, model)
        # Where no digest was asked for, the one that does not fit is the other model's, or configured.
        if model is None or named or not is_digest(plan.revision) or plan.again is not None:
            return False
        return DigestMismatch.code in self._gatherer.codes(plan).values()

    def _ask(self, audit: AuditConfig, entry: Entry) -> Entry:
        """Submit what was not yet; a full queue is asked again later."""
        tools, plan = self._tools, entry.plan
        if not plan.asked:
            for role, request in looking(audit, tools.config, tools.operations, plan):
                entry = self._submit(entry, role, request)
            return self._write(entry, replace(entry.plan, asked=True))
        if failed := self._gatherer.codes(plan):
            wanted = dict(looking(audit, tools.config, tools.operations, plan))
            for role, request in apart(wanted, failed):
                entry = self._submit(entry, role, request)
        return entry

    def _ask_again(self, audit: AuditConfig, entry: Entry) -> Entry:
        """Have portraits of earlier nights made again, once it is known of which weights."""
        digest = self._gatherer.digest(entry.plan)
        limit = audit.reproduced if audit.portraits and digest else 0
        again = to_repeat(self._past(audit), digest, limit)
        plan = replace(entry.plan, digest=digest, again=again)
        for role, request in repeating(self._tools.operations, again):
            # Written down with the choice: a daemon that is killed here asks for the same again.
            plan = self._submitted(entry, plan, role, request)
        return self._write(entry, plan)

    def _submit(self, entry: Entry, role: str, request: JobRequest) -> Entry:
        """Submit a job and write it down; one that was submitted before is the same one."""
        if role in entry.plan.jobs or role in entry.plan.refused:
            return entry
        return self._write(entry, self._submitted(entry, entry.plan, role, request))

    def _submitted(self, entry: Entry, plan: Plan, role: str, request: JobRequest) -> Plan:
        key = f"audit:{entry.night.audit}:{entry.night.id}:{plan.revision}:{role}"
        try:
            job = self._tools.queue.submit(replace(request, idempotency_key=key), self._clock())
        except JobQuarantined as error:
            return plan.with_refusal(role, str(error))
        return plan.with_job(role, job.id)

    def _write(self, entry: Entry, plan: Plan) -> Entry:
        written = self._book.plan(entry, plan)
        self._reload()
        return written

    # -- judging ------------------------------------------------------------------------------

    def _judge(self, audit: AuditConfig, entry: Entry) -> None:
        past = self._past(audit)
        sampled_after = entry.night.started_at - DAY_SECONDS
        settled = self._clock() >= self._settled_at
        hooks = served(audit, self._tools.operations, sampled_after, settled=settled)
        found = self._gatherer.gather(audit, entry, past, hooks)
        judged = judge(audit, found)
        state, now = state_of(judged, found.jobs), self._clock()
        night = replace(
            entry.night,
            ended_at=now,
            state=state,
            checks=judged,
            counts=found.facts.counts,
            features=len(entry.plan.chosen or ()),
        )
        report = NightReport(audit, replace(entry, night=night), found, tuple(past))
        page = render_night(report, self._gatherer.read).encode()
        data = as_json(report).encode()
        self._keep(entry, found)
        names = [hashlib.sha256(content).hexdigest() for content in (page, data)]
        try:
            self._store(entry, names[0], page, "text/html")
            self._store(entry, names[1], data, "application/json")
            ended = self._book.judge(
                entry,
                state,
                judged,
                found.facts,
                now,
                page=names[0],
                data=names[1],
                report_bytes=len(page) + len(data),
            )
        except SidecarError:
            # It is judged again, at another time of day: that report is another, and nobody asks for this one.
            self._tools.references.release(OwnerKind.REPORT, _owner(entry.night), names)
            raise
        if ended:
            self._reload()
            words = "; ".join(f"{one.name}: {one.reason}" for one in night.failed_checks)
            self._record(
                _JUDGED[state], audit.name, f"night {night.id}{f': {words}' if words else ''}"
            )
        self._prune(audit)

    def _keep(self, entry: Entry, found: Findings) -> None:
        digests = [d for one in found.facts.portraits for d in (one.picture, one.manifest)]
        digests += [one.picture for one in found.repeats if one.picture]
        digests += list(found.report.pictures) if found.report else []
        self._hold(entry, [*digests, *(digest for digest, _ in found.verifications)])

    def _hold(self, entry: Entry, digests: Sequence[str]) -> None:
        note = f"audit {entry.night.audit}, night {entry.night.id}"
        now = self._clock()
        self._tools.references.hold(OwnerKind.REPORT, _owner(entry.night), digests, now, note)

    def _store(self, entry: Entry, digest: str, content: bytes, media_type: str) -> None:
        """Store a report, held before it is there."""
        self._hold(entry, [digest])
        try:
            self._tools.artifacts.put(content, media_type)
        except DiskFull:
            self._tools.operations.provenance.collect()
            self._tools.artifacts.put(content, media_type)

    def _prune(self, audit: AuditConfig) -> None:
        """Let go of nights beyond the configured number and bytes; their pictures may then go."""
        for one in superfluous(self._judged(audit.name), audit.keep_nights, audit.keep_bytes):
            self._tools.references.release(OwnerKind.REPORT, _owner(one.night))
            self._book.remove(one.night.audit, one.night.id)
        self._reload()

    def _release_orphans(self) -> None:
        """Forget old nights of audits that are configured no more, and let go of what no night holds."""
        oldest = self._clock() - FORGOTTEN_SECONDS
        with self._lock:
            entries = self._entries
        for one in entries:
            if one.night.audit not in self._audits and one.night.started_at < oldest:
                self._book.remove(one.night.audit, one.night.id)
        self._reload()
        with self._lock:
            known = {_owner(one.night) for one in self._entries}
        owners = {one.owner for one in self._tools.references.of(OwnerKind.REPORT)}
        for owner in owners - known:
            if owner.startswith(_OWNER_PREFIX):
                self._tools.references.release(OwnerKind.REPORT, owner)


_OWNER_PREFIX = "audit:"
_JUDGED = {
    NightState.PASSED: "audit_passed",
    NightState.REGRESSED: "audit_regressed",
    NightState.FAILED: "audit_failed",
}


def _owner(night: Night) -> str:
    return f"{_OWNER_PREFIX}{night.audit}:{night.id}"


def _schedule(audit: AuditConfig) -> str:
    return f"{audit.schedule} {audit.zone}"


def _names(plan: Plan) -> list[str]:
    return [one.feature for one in plan.chosen or ()]


def _state(*, overdue: bool, running: Night | None, last: Night | None) -> AuditState:
    if overdue:
        return AuditState.OVERDUE
    if running is not None:
        return AuditState.RUNNING
    return AuditState(last.state.value) if last is not None else AuditState.WAITING
