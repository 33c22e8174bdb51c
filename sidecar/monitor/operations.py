"""Every question and command of people and machines, with its entry in the audit log."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import structlog

import sidecar
from sidecar.config import FlagConfig, SidecarConfig, read_labels
from sidecar.detect import Detector, Direction, State
from sidecar.errors import (
    Conflict,
    CorruptState,
    InvalidInput,
    InvalidName,
    NotFound,
    SidecarError,
    StorageError,
    UnknownArtifact,
    UnknownFeature,
    UnknownLayer,
    UnsupportedTarget,
)
from sidecar.features import (
    FeatureKey,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    Slice,
    revision_matches,
)
from sidecar.jobs import (
    ArtifactIndex,
    Cause,
    Dictionaries,
    Job,
    JobQueue,
    JobRequest,
    Portrait,
    Quarantined,
    Runner,
)
from sidecar.monitor.baselines import Baselines, BaselineVersion
from sidecar.monitor.directions import DirectionLookup
from sidecar.monitor.monitor import Monitor
from sidecar.monitor.pictures import Pictures
from sidecar.monitor.record import EvidenceRecord, exposure_of
from sidecar.monitor.unmatched import UnmatchedFlag, explain
from sidecar.monitor.uploads import image_media_type
from sidecar.monitor.views import (
    Event,
    FeatureDistribution,
    FeatureStatus,
    Flag,
    LayerStatus,
    Window,
)
from sidecar.monitor.watching import Watching
from sidecar.recipes import (
    PICTURE_KINDS,
    SIDED_KINDS,
    Recipe,
    Side,
    Target,
    recipe_like,
    recipe_of,
)
from sidecar.store import ArtifactStore, BaselineStore, Catalogue, EvidenceStore, References

PORTRAIT_LIMIT = 20
"""Portraits of one feature that are listed; older ones stay in the store until it is full."""

QUARANTINE_LIMIT = 200
"""Quarantined requests listed at once; each is forgotten when its time is over."""

EXPLAINED_LIMIT = 20
"""Flags without a feature that are explained at a time: enough for a screen, and quick with thousands of
layers."""

EVENT_BACKLOG = 10_000
"""Audit entries waiting for the disk; beyond it the oldest are lost and counted in the log."""

DETAIL_LIMIT = 1000
"""Characters of an audit entry's detail: an alert's summary comes from outside and may be anything."""

TEXT_LIMIT = 80
"""Characters of a flag's name and owner, as in the configuration: both are labels of every scrape."""

REASON_LIMIT = 200
"""Characters of the reason for a command; it stands in the audit log."""

KEY_LIMIT = 1000
"""Characters of an idempotency key; our own hold a whole feature key."""

TARGET_LIMIT = 64
"""Features of one job: they are optimised in one batch, in one worker's memory."""

SEVERITIES = ("info", "warning", "critical")

STATE_ORDER = (State.FIRING, State.PENDING, State.RESOLVED, State.NORMAL, State.UNKNOWN)
"""What a person wants to see first."""

_AS_IT_IS = Watching()
_STATE_EVENTS = ("feature_", "layer_", "baseline_")
_ALERT_LABELS = ("model", "revision", "layer", "kind", "feature")


class Operations:
    """What the console, the command line and the webhook may ask of the daemon.

    Every method may be called from any thread, may block on the disk, and raises nothing but
    ``SidecarError``.

    Attributes:
        provenance: What may be asked about made pictures.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        config: SidecarConfig,
        *,
        monitor: Monitor,
        catalogue: Catalogue,
        evidence: EvidenceStore,
        artifacts: ArtifactStore,
        queue: JobQueue,
        runner: Runner,
        baselines: BaselineStore,
        index: ArtifactIndex,
        references: References,
        clock: Callable[[], float],
        dictionaries: Dictionaries | None = None,
    ) -> None:
        """Join the parts; flags of the configuration and the catalogue take effect.

        Evidence that says more of a person than the configuration now allows is deleted.
        """
        self._config, self._monitor, self._clock = config, monitor, clock
        self._catalogue, self._evidence, self._artifacts = catalogue, evidence, artifacts
        self._queue, self._runner = queue, runner
        self._configured = {
            FeatureSelector.parse(flag.feature): _configured(flag) for flag in config.flags
        }
        self._labels = {m.name: read_labels(m.labels) for m in config.models if m.labels}
        self._backlog: deque[Event] = deque(maxlen=EVENT_BACKLOG)
        self._backlog_lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._lost = 0
        self._changes = 0
        self._flags_lock = threading.Lock()
        self._warned: set[FeatureSelector] = set()
        self._layers_known = 0
        self._baselines = Baselines(
            monitor,
            baselines,
            shared=config.store.shared_baselines,
            quantile=config.spike.quantile,
            record=self.record,
        )
        self._dictionaries = dictionaries or Dictionaries()
        self._directions = DirectionLookup(monitor, self._dictionaries)
        self.provenance = Pictures(
            monitor,
            dictionaries=self._dictionaries,
            artifacts=artifacts,
            index=index,
            references=references,
            runner=runner,
            record=self.record,
            clock=clock,
        )
        self._apply_flags()
        self._forget_evidence()

    # -- features ---------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The sidecar's version."""
        return sidecar.__version__

    @property
    def console_url(self) -> str:
        """How people reach the console: what links begin with."""
        config = self._config
        return (config.alerts.console_url or f"http://{config.listen.web}").rstrip("/")

    @property
    def runbooks_url(self) -> str:
        """Where the runbooks of the shipped alerts are: the metrics server hands them out."""
        return f"http://{self._config.listen.metrics}/runbooks"

    def features(
        self,
        *,
        model: str = "",
        revision: str = "",
        layer: str = "",
        flagged_only: bool = False,
        state: State | None = None,
        query: str = "",
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[FeatureStatus], int]:
        """Return one page of features and how many fit; flagged ones first, see ``urgency``.

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
        keys = self._monitor.select(model, revision, layer)
        wanted = set(keys)
        watched = [s for s in self._monitor.watched() if s.key.layer in wanted]
        watched.sort(key=lambda s: (urgency(s), s.key))
        fits = [s for s in watched if state in (None, s.state) and _mentions(s, query)]
        if flagged_only or state not in (None, State.UNKNOWN):
            return fits[offset : offset + limit], len(fits)
        layers = [key for key in keys if query.lower() in str(key).lower()]
        page = list(fits[offset : offset + limit])
        start = max(offset - len(fits), 0)
        rest, plain = self._plain(layers, {s.key for s in watched}, start, limit - len(page))
        return [*page, *rest], len(fits) + plain

    def _plain(
        self, layers: Sequence[LayerKey], watched: AbstractSet[FeatureKey], start: int, count: int
    ) -> tuple[Sequence[FeatureStatus], int]:
        """Return features of ``layers`` that nobody watches, from the ``start``th on, and their number."""
        widths = {status.key: status.width for status in self._monitor.layers()}
        before = dict(zip(layers, accumulate((widths[key] for key in layers), initial=0)))  # noqa: B905 - one sum more than layers
        places = sorted(before[k.layer] + k.index for k in watched if k.layer in before)
        total = sum(widths[key] for key in layers) - len(places)
        for place in places:
            # Each watched feature further up pushes the one that is looked for one place down.
            start += place <= start
        found, _ = self._monitor.features(layers, start, count + len(places))
        return [status for status in found if status.key not in watched][:count], total

    def layers(self) -> Sequence[LayerStatus]:
        """Return every registered layer, sorted by key."""
        return self._monitor.layers()

    def labels(self, model: str) -> Sequence[str]:
        """Return the model's class names in the order of its logits; empty where none are known."""
        return self._labels.get(model, ())

    def resolve(self, text: str) -> FeatureKey:
        """Return the feature that ``text`` names; its revision may be a prefix or left out.

        A direction of a configured dictionary may be called by its name.
        """
        return self._directions.resolve(text)

    def feature(self, key: FeatureKey) -> FeatureStatus:
        """Return how a feature stands; NotFound where there is no such feature."""
        return self._with_anomaly(self._monitor.feature(key))

    def _with_anomaly(self, status: FeatureStatus) -> FeatureStatus:
        """Add what the screen says of a feature that nobody flagged."""
        if status.flag is not None:
            return status
        found = (a for a in self._monitor.anomalies(status.key.layer) if a.key == status.key)
        anomaly = next(found, None)
        if anomaly is None:
            return status
        quantile = self._monitor.screened_quantile(status.key.layer)
        words = (
            f"Not flagged, but the screen finds it: {anomaly.exceedances} of {anomaly.requests} requests "
            f"are beyond its baseline's {100 * quantile:.10g} % quantile, "
            f"{anomaly.factor:.3g} times as often as in its baseline."
        )
        return replace(status, anomaly=anomaly, explanation=words)

    def watched(self) -> Sequence[FeatureStatus]:
        """Return the flagged features of all known layers."""
        return self._monitor.watched()

    def unmatched_flags(self) -> Sequence[str]:
        """Return the text of the flags whose layer no hook registered, or not with that index."""
        return [str(flag) for flag in self._monitor.unmatched()]

    def explained_flags(self) -> Sequence[UnmatchedFlag]:
        """Return why flags fit no feature: of the first ``EXPLAINED_LIMIT`` of them."""
        return self._explained(self._monitor.unmatched()[:EXPLAINED_LIMIT])

    def _explained(self, flags: Sequence[FeatureSelector]) -> Sequence[UnmatchedFlag]:
        layers = [(one.key, one.width) for one in self._monitor.layers()] if flags else []
        found = (explain(flag, layers) for flag in flags)
        return [one for one in found if one is not None]  # its layer may have come just now

    def warn_unmatched(self) -> None:
        """Log every flag that fits no feature, once; call it now and then.

        Hooks register one layer after another, so nothing is said before there was a layer, nor while
        any came since the last call.
        """
        flags, layers = self._monitor.unmatched(), len(self._monitor.select())
        settled, self._layers_known = layers and layers == self._layers_known, layers
        self._warned &= set(flags)
        if not settled:
            return
        new = [flag for flag in flags if flag not in self._warned][:EXPLAINED_LIMIT]
        self._warned |= set(new)
        for one in self._explained(new):
            structlog.get_logger().warning(
                "flag_unmatched",
                flag=one.flag,
                field=one.field,
                nearest=list(one.nearest),
                detail=one.words,
            )

    def distribution(self, key: FeatureKey, window: Window) -> FeatureDistribution:
        """Return a feature's distribution over a window."""
        return self._monitor.distribution(key, window)

    def events(self, key: FeatureKey | None, limit: int) -> Sequence[Event]:
        """Return the newest audit events, newest first, of one feature and its layer or of all."""
        subjects = [None] if key is None else [str(key), str(key.layer)]
        stored = [event for s in subjects for event in self._catalogue.events(s, limit)]
        stored.sort(key=lambda event: event.at, reverse=True)
        return [Event(e.at, e.what, e.subject, e.detail) for e in stored[:limit]]

    # -- flags and baselines ----------------------------------------------------------------

    def flag(self, key: FeatureKey, flag: Flag, watching: Watching = _AS_IT_IS) -> None:
        """Watch a feature from now on, or change how.

        Args:
            key: Which feature.
            flag: Its name, severity and owner.
            watching: How; what it does not say stays as it is, be that set by hand or configured. What
                is as configured anyway goes on following the configuration.

        Raises:
            InvalidInput: The name or owner is too long or not printable, or there is no such severity.
        """
        _check_flag(flag)
        self.feature(key)
        selector = _pinned(key)
        _, earlier = self._stored().get(selector, (flag, _AS_IT_IS))
        kept = watching.after(earlier).beside(self._common(selector))
        words = (flag.name, flag.severity, flag.owner)
        self._catalogue.set_flag(str(selector), *words, kept.encode())
        self._apply_flags()
        how = f", watched {watching}" if str(watching) else ""
        detail = f"{flag.name or 'unnamed'}, severity {flag.severity}{how}"
        self.record((Event(self._clock(), "feature_flagged", str(key), detail),))

    def unflag(self, key: FeatureKey) -> None:
        """Watch a feature no longer.

        What was set by hand on a feature of the configuration goes, and the configuration's own flag
        is back.

        Raises:
            Conflict: The configuration flags it, and nothing was set by hand.
            UnknownFeature: Nobody watches it.
        """
        self.feature(key)
        mine = [s for s in self._stored() if s.index == key.index and s.matches(key.layer)]
        held = [s for s in self._configured if s.index == key.index and s.matches(key.layer)]
        if not mine and held:
            raise Conflict(f"feature {key} is flagged in the configuration as {held[0]}: edit that")
        if not mine:
            raise UnknownFeature(f"feature {key} is not flagged")
        for selector in mine:
            self._catalogue.remove_flag(str(selector))
        self._apply_flags()
        detail = "the configuration's own flag stays" if held else ""
        self.record((Event(self._clock(), "feature_unflagged", str(key), detail),))

    def _flags(self) -> dict[FeatureSelector, Flag]:
        """Return all flags; one set by hand is watched as it says, and else as is configured."""
        found = dict(self._configured)
        for selector, (flag, watching) in self._stored().items():
            found[selector] = replace(
                watching.over(self._common(selector)),
                name=flag.name,
                severity=flag.severity,
                owner=flag.owner,
            )
        return found

    def _common(self, selector: FeatureSelector) -> Flag:
        """Return how the configuration has a feature watched, or how all are that it does not name."""
        ours = (mine for one, mine in self._configured.items() if _covers(one, selector))
        return next(ours, Flag())

    def _stored(self) -> dict[FeatureSelector, tuple[Flag, Watching]]:
        """Return the flags set by hand; a row that the disk has damaged is told and passed over."""
        found: dict[FeatureSelector, tuple[Flag, Watching]] = {}
        for stored in self._catalogue.flags():
            try:
                selector = FeatureSelector.parse(stored.selector)
                watching = Watching.decode(stored.watched)
            except InvalidInput as error:
                log = structlog.get_logger()
                log.warning("flag_unreadable", selector=stored.selector, error=str(error))
                continue
            found[selector] = Flag(stored.name, stored.severity, stored.owner), watching
        return found

    def _apply_flags(self) -> None:
        with self._flags_lock:
            self.record(self._monitor.set_flags(self._flags(), self._clock()))

    def freeze(self, model: str, revision: str, layer: str) -> int:
        """Freeze the baselines of the matching layers now; return how many layers matched."""
        layers = self._matching(model, revision, layer)
        self.record(self._monitor.freeze(layers, self._clock()))
        return len(layers)

    def reset(self, model: str, revision: str, layer: str, reason: str = "") -> int:
        """Learn the baselines of the matching layers anew; return how many layers matched.

        Raises:
            InvalidInput: The model is empty, or the reason is too long or not printable.
            UnknownLayer: No layer matches.
        """
        _check_text("reason", reason, REASON_LIMIT)
        layers = self._matching(model, revision, layer)
        self.record(self._monitor.reset(layers, self._clock(), reason))
        return len(layers)

    def baselines(self, model: str, revision: str, layer: str) -> Sequence[BaselineVersion]:
        """Return the stored versions of the matching layers' baselines, newest first."""
        return [
            one
            for one in self._baselines.versions()
            if model in ("", one.stored.facts.layer.model)
            and revision_matches(revision, one.stored.facts.layer.revision)
            and layer in ("", one.stored.facts.layer.layer)
        ]

    def import_baseline(self, content: bytes) -> BaselineVersion:
        """Compare a layer with an exported baseline from now on, see ``Baselines.adopt``."""
        return self._baselines.adopt(content, self._clock())

    def keep_baselines(self) -> None:
        """Store new baselines and take on shared ones; see ``Baselines.keep``."""
        self._baselines.keep(self._clock())

    def _matching(self, model: str, revision: str, layer: str) -> tuple[LayerKey, ...]:
        if not model:
            raise InvalidInput("model is empty: name the model whose baselines are meant")
        found = self._monitor.select(model, revision, layer)
        if not found:
            said = (("model", model), ("revision", revision), ("layer", layer))
            wanted = " ".join(f"{what} {name!r}" for what, name in said if name)
            raise UnknownLayer(f"{wanted}: no such layer was ever registered")
        return found

    def record(self, events: Sequence[Event]) -> None:
        """Put audit entries on their way; ``flush_events`` writes and acts on them, off the writer."""
        for event in events:
            kept = replace(event, detail=_storable(event.detail))
            with self._backlog_lock:
                self._lost += len(self._backlog) == EVENT_BACKLOG
                self._backlog.append(kept)
                self._changes += event.what.startswith(_STATE_EVENTS)
            structlog.get_logger().info(kept.what, subject=kept.subject, detail=kept.detail)

    @property
    def changes(self) -> int:
        """How often a feature's state or a baseline changed; what is worth a snapshot at once."""
        with self._backlog_lock:
            return self._changes

    def flush_events(self) -> None:
        """Write waiting audit entries; those the disk refuses stay for the next time.

        Raises:
            StorageError: The disk refuses them.
        """
        with self._flush_lock:
            while (event := self._next_event()) is not None:
                try:
                    self._catalogue.add_event(event.at, event.what, event.subject, event.detail)
                except StorageError:
                    self._put_back(event)
                    raise
                self._react(event)
            self._tell_lost()

    def _next_event(self) -> Event | None:
        with self._backlog_lock:
            return self._backlog.popleft() if self._backlog else None

    def _put_back(self, event: Event) -> None:
        with self._backlog_lock:
            if len(self._backlog) < EVENT_BACKLOG:
                self._backlog.appendleft(event)
            else:
                self._lost += 1

    def _tell_lost(self) -> None:
        with self._backlog_lock:
            lost, self._lost = self._lost, 0
        if lost:
            structlog.get_logger().warning("audit_entries_lost", count=lost)

    # -- evidence ---------------------------------------------------------------------------

    def evidence(self, key: FeatureKey, limit: int) -> Sequence[EvidenceRecord]:
        """Return the newest records of why a feature fired, newest first; none that expired."""
        found = []
        for body in self._evidence.of(str(key), self._oldest_evidence(), limit):
            try:
                found.append(EvidenceRecord.decode(body))
            except CorruptState as error:
                log = structlog.get_logger()
                log.warning("evidence_unreadable", subject=str(key), error=str(error))
        return found

    def save_evidence(self) -> None:
        """Write the records that wait; those the disk refuses stay for the next time.

        Raises:
            StorageError: The disk refuses them.
        """
        with self._flush_lock:
            waiting = self._monitor.waiting_evidence()
            for one in waiting:
                self._evidence.add(one.id, str(one.feature), one.at, one.exposure, one.encode())
                self._monitor.evidence_saved(one.id)
            if waiting:
                self._show_evidence()

    def expire_evidence(self) -> None:
        """Delete the records that are too old, and try again to write those that wait.

        Raises:
            StorageError: The disk refuses that.
        """
        if self._evidence.expire(self._oldest_evidence()):
            self._show_evidence()
        self.save_evidence()

    def _forget_evidence(self) -> None:
        """Delete what expired while nobody was there, and what may not be kept any longer."""
        allowed = exposure_of(self._config.evidence)
        gone = self._evidence.forget(allowed) + self._evidence.expire(self._oldest_evidence())
        if gone:
            structlog.get_logger().info("evidence_deleted", records=gone, exposure=allowed.name)
        self._show_evidence()

    def _oldest_evidence(self) -> float:
        return self._clock() - self._config.evidence.expire_seconds

    def _show_evidence(self) -> None:
        newest: dict[FeatureKey, str] = {}
        for text, record_id in self._evidence.newest(self._oldest_evidence()).items():
            with suppress(InvalidName):  # a row that the disk has damaged
                newest[FeatureKey.parse(text)] = record_id
        self._monitor.show_evidence(newest)

    # -- jobs -------------------------------------------------------------------------------

    def default_recipe(self) -> Recipe:
        """Return the recipe of jobs that do not name their own values."""
        return recipe_of(self._config.jobs.recipe)

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the default recipe with some values named.

        Raises:
            UnsupportedTarget: A name is unknown, or a value has the wrong type or range.
        """
        return recipe_like(self.default_recipe(), values)

    def can_picture(self, key: FeatureKey) -> bool:
        """Whether a job may be about a feature: of its kind pictures are made, and what it takes is there."""
        kind = key.layer.kind
        directed = kind is not FeatureKind.DIRECTION or self._dictionaries.has(key.layer)
        return kind in PICTURE_KINDS and directed

    def submit(self, request: JobRequest) -> Job:
        """Queue a job, or return the one that has the same idempotency key.

        Raises:
            InvalidInput: The idempotency key is too long or not printable.
            UnsupportedTarget: The job names no feature, several models, a model without a factory
                or ONNX file, also as the other of a comparison, or a typical range where there is no baseline.
            JobQueueFull: Too many jobs wait.
        """
        self._check(request)
        return self._queue.submit(request, self._clock())

    def _check(self, request: JobRequest) -> None:
        _check_text("idempotency_key", request.idempotency_key, KEY_LIMIT)
        if not request.targets:
            raise UnsupportedTarget("job has no features: name at least one")
        if len(request.targets) > TARGET_LIMIT:
            raise UnsupportedTarget(
                f"job has {len(request.targets)} features: name at most {TARGET_LIMIT}"
            )
        for target in request.targets:
            self._directions.check(target.feature, self.feature)
        owners = {(t.feature.layer.model, t.feature.layer.revision) for t in request.targets}
        if len(owners) > 1:
            raise UnsupportedTarget(f"job names {len(owners)} model revisions: make one job each")
        name, _ = owners.pop()
        model = self._config.model(name)
        if model is None or not model.is_loadable:
            raise UnsupportedTarget(
                f"model {name!r} has no factory in the configuration, so no picture of it can be "
                "made: set models.factory or models.onnx"
            )
        for other in request.recipe.models:
            found = self._config.model(other)
            if found is None or not found.is_loadable:
                raise UnsupportedTarget(
                    f"recipe.other {other!r} is no model with a factory or an ONNX file in the "
                    "configuration: add it under models"
                )
        layers = {target.feature.layer for target in request.targets}
        learned = {status.key for status in self._monitor.layers() if status.baseline_frozen}
        if "typical" in request.recipe.inputs and not layers <= learned:
            raise UnsupportedTarget(
                "recipe.typical_range needs a frozen baseline of the layer: wait, or run "
                "'sidecar baseline freeze'"
            )

    def reproduce(self, digest: str, time_limit_seconds: float = 0.0) -> Job:
        """Queue a job that makes a picture again, whatever is in the store; the original stays.

        Raises:
            UnknownArtifact: No picture or manifest is listed under the digest.
            Conflict: It cannot be made again, see ``Pictures.reproduction``.
        """
        request = self.provenance.reproduction(digest)
        return self.submit(replace(request, time_limit_seconds=time_limit_seconds))

    def jobs(self, key: FeatureKey | None, limit: int, before: str = "") -> Sequence[Job]:
        """Return the newest jobs, newest first, of one feature or of all, older than ``before``."""
        if key is None:
            return self._queue.list(limit, before or None)
        recent = self._queue.list(limit * 10, before or None)
        mine = [job for job in recent if any(t.feature == key for t in job.request.targets)]
        return mine[:limit]

    def job(self, job_id: str) -> Job:
        """Return a job; UnknownJob where there is none."""
        return self._queue.get(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stop a job; JobFinished where it has ended."""
        self._queue.cancel(job_id, self._clock())
        return self._queue.get(job_id)

    def quarantined(self, limit: int = QUARANTINE_LIMIT) -> Sequence[Quarantined]:
        """Return what is refused for killing its worker again and again, the longest first."""
        return self._queue.quarantine.held(self._clock(), min(limit, QUARANTINE_LIMIT))

    def release_quarantine(self, name: str) -> int:
        """Refuse no longer what was quarantined under a content key or a job's id; say how many.

        Raises:
            UnknownJob: Nothing of that name is quarantined.
        """
        lifted = self._queue.quarantine.lift(name)
        detail = f"{lifted} content keys"
        self.record((Event(self._clock(), "quarantine_released", name[:KEY_LIMIT], detail),))
        return lifted

    def preview(self, job_id: str) -> bytes | None:
        """Return the newest intermediate picture of a running job as PNG; None before the first."""
        return self._runner.preview(job_id)

    def wait_job(self, job_id: str, seen: int, timeout: float) -> int:
        """Block until a job's version differs from ``seen`` or ``timeout`` seconds have passed."""
        return self._runner.wait_change(job_id, seen, timeout)

    def portraits(self, key: FeatureKey) -> Sequence[Portrait]:
        """Return the finished pictures of a feature that are still in the store, newest first."""
        found = self._queue.portraits(str(key), PORTRAIT_LIMIT)
        return [p for p in found if self._artifacts.has(p.picture_digest)]

    def artifact(self, digest: str) -> tuple[Path, str]:
        """Return the file and media type of an artifact; UnknownArtifact where there is none."""
        if not self._artifacts.has(digest):
            raise UnknownArtifact(f"artifact {digest[:80]!r} is not in the store")
        return self._artifacts.open(digest)

    def put_image(self, data: bytes) -> tuple[str, str]:
        """Store an image that recipes may look at; returns its sha256 and media type.

        Raises:
            InvalidInput: It does not begin as an image of a known kind does.
            DiskFull, StorageError: It cannot be stored.
        """
        stored = self._artifacts.put(data, image_media_type(data))
        return stored.digest, stored.media_type

    # -- alerts -----------------------------------------------------------------------------

    def alert_fired(
        self,
        fingerprint: str,
        started: float,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> Job | None:
        """Ask for the portrait of the feature an alert is about.

        The same fingerprint and start are one job however often they are sent.

        Returns:
            The job, or None where portraits on alerts are switched off or no picture can be made.

        Raises:
            NotFound: The labels name no known feature.
            JobQueueFull: Too many jobs wait; the alert may be sent again.
        """
        missing = [name for name in _ALERT_LABELS if not labels.get(name)]
        if missing:
            raise NotFound(f"alert has no labels {', '.join(missing)}: it is about no feature")
        values = [labels[name] for name in _ALERT_LABELS]
        key = self.resolve("{}@{}/{}/{}/{}".format(*values))
        detail = annotations.get("summary", "")
        cause = Cause(alert=fingerprint, alert_started=started)
        return self.portrait_of(key, f"alert:{fingerprint}:{started:.3f}", detail, cause)

    def portrait_of(
        self, key: FeatureKey, idempotency_key: str, detail: str, cause: Cause
    ) -> Job | None:
        """Ask for a feature's portrait because it fires; None where none can be made."""
        model = self._config.model(key.layer.model)
        possible = self.can_picture(key) and model is not None and model.is_loadable
        if not self._config.alerts.portrait_on_firing or not possible:
            return None
        request = JobRequest(
            (Target(key, side=self._side(key)),),
            self.default_recipe(),
            origin="alert",
            idempotency_key=idempotency_key,
            cause=replace(cause, evidence=self._monitor.feature(key).evidence_id),
        )
        self._check(request)
        now = self._clock()
        job = self._queue.submit(request, now)
        if job.created == now and not job.attempts:  # else it was asked for before
            self.record((Event(now, "portrait_requested", str(key), detail),))
        return job

    def _side(self, key: FeatureKey) -> Side:
        """Return the end of a feature's range that its flag is about; that of ``both`` is the upper."""
        flag = self.feature(key).flag
        below = flag is not None and flag.direction is Direction.BELOW
        return Side.NEGATIVE if below and key.layer.kind in SIDED_KINDS else Side.POSITIVE

    def _react(self, event: Event) -> None:
        """Ask for the portrait of a feature that began to fire, where no Alertmanager does."""
        if not self._config.alerts.direct or event.what != "feature_firing":
            return
        try:
            key = FeatureKey.parse(event.subject)
            cause = Cause(alert="direct", alert_started=event.at)
            name = f"direct:{event.subject}:{event.at:.3f}"
            self.portrait_of(key, name, event.detail, cause)
        except SidecarError as error:
            log = structlog.get_logger()
            log.warning("portrait_refused", subject=event.subject, error=str(error))


def _configured(flag: FlagConfig) -> Flag:
    return Flag(
        flag.name,
        flag.severity,
        flag.owner,
        factor=flag.factor,
        direction=Direction(flag.direction),
        traffic=Slice.of(flag.slice),
        detectors=tuple(Detector(name) for name in flag.detectors),
    )


def _covers(broad: FeatureSelector, narrow: FeatureSelector) -> bool:
    """Whether a selector names all that another, pinned to a revision or not, does."""
    same = replace(broad, revision=narrow.revision) == narrow
    return same and narrow.revision.startswith(broad.revision)


def _pinned(key: FeatureKey) -> FeatureSelector:
    layer = key.layer
    return FeatureSelector(
        layer.model, layer.layer, layer.kind, key.index, layer.view, layer.revision, layer.scope
    )


def _check_flag(flag: Flag) -> None:
    _check_text("name", flag.name, TEXT_LIMIT)
    _check_text("owner", flag.owner, TEXT_LIMIT)
    if flag.severity not in SEVERITIES:
        raise InvalidInput(f"severity {flag.severity[:40]!r}: use one of {', '.join(SEVERITIES)}")


def _check_text(what: str, value: str, limit: int) -> None:
    if len(value) > limit or not value.isprintable():
        raise InvalidInput(f"{what} {value[:40]!r}: use at most {limit} printable characters")


def _storable(text: str) -> str:
    """Return text that UTF-8 can hold; one lone surrogate would stop the whole log."""
    return text[:DETAIL_LIMIT].encode("utf-8", "replace").decode()


def urgency(status: FeatureStatus) -> tuple[bool, bool, int, FeatureKey]:
    """Return what sorts features: spikes, then conditions and drift, then the rest by state."""
    spikes = status.state in (State.FIRING, State.PENDING)
    holds = bool(status.conditions) or status.drifting
    return not spikes, spikes or not holds, STATE_ORDER.index(status.state), status.key


def _mentions(status: FeatureStatus, query: str) -> bool:
    flag = status.flag or Flag()
    return query.lower() in f"{status.key} {flag.name} {flag.owner}".lower()
