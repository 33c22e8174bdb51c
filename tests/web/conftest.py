"""A real server over a daemon that lives in memory and keeps real values."""

import base64
import contextlib
import hashlib
import io
import json
import math
import os
import select
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from sidecar.audits import (
    CHECKS,
    AuditState,
    AuditStatus,
    Check,
    Night,
    NightState,
    Outcome,
)
from sidecar.detect import SliceCount, State, attribute
from sidecar.errors import (
    BaselineNotReady,
    InvalidInput,
    JobFinished,
    SidecarError,
    UnknownArtifact,
    UnknownAudit,
    UnknownFeature,
    UnknownJob,
    UnknownLayer,
    UnknownModel,
)
from sidecar.features import Capture, FeatureKey, FeatureKind, FeatureSelector, LayerKey, View
from sidecar.jobs import Job, JobRequest, JobState, MadePicture, Portrait, Quarantined
from sidecar.monitor import (
    Anomaly,
    BaselineVersion,
    Event,
    EvidenceRecord,
    EvidenceRow,
    Exposure,
    FeatureDistribution,
    FeatureStatus,
    Flag,
    LayerStatus,
    UnmatchedFlag,
    Watching,
    Window,
)
from sidecar.recipes import PICTURE_KINDS, Maximisation, Target, content_key
from sidecar.store import BaselineFacts, StoredBaseline
from sidecar.web import WebServer, create_app

NOW = 1_795_448_000.0
REVISION = "3fa1c0de9a10b7c2" * 4
LEVELS = np.array([0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999])
ORDER = (State.FIRING, State.PENDING, State.RESOLVED, State.NORMAL, State.UNKNOWN)


def make_png(seed: int, side: int = 128) -> bytes:
    """Return a PNG of coloured 1/f noise: not flat, not the same for two seeds."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    scale = 1 / np.maximum(frequency, 1 / side) ** 1.6  # (side, side // 2 + 1)
    waves = rng.normal(size=(3, *scale.shape)) + 1j * rng.normal(size=(3, *scale.shape))
    colours = np.fft.irfft2(waves * scale, s=(side, side))  # (3, side, side)
    colours /= colours.std(axis=(1, 2), keepdims=True)
    pixels = (255 / (1 + np.exp(-1.4 * colours))).astype(np.uint8).transpose(1, 2, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),)
    chunks += ((b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def log_linear_edges(largest: float, bins_per_octave: int = 16, octaves: int = 16) -> np.ndarray:
    """Return bin edges of both signs, narrow near zero and wide in the tails."""
    steps = np.arange(octaves * bins_per_octave + 1) / bins_per_octave
    positive = largest * 2.0 ** (steps - octaves) * 1.0001
    return np.concatenate((-positive[::-1], positive))


def make_distribution(key: FeatureKey, window: Window, values: np.ndarray) -> FeatureDistribution:
    """Return the view of real values: moments, quantiles, and their occupied log-linear bins."""
    finite = values[np.isfinite(values)]
    nonfinite = len(values) - len(finite)
    unknown = np.full(len(LEVELS), math.nan)
    base = FeatureDistribution(
        key=key,
        window=window,
        count=len(finite),
        mean=math.nan,
        variance=math.nan,
        minimum=math.nan,
        maximum=math.nan,
        zero_ratio=0.0,
        nonfinite=nonfinite,
        edges=np.empty(0),
        counts=np.empty(0, np.int64),
        levels=LEVELS,
        quantiles=unknown,
        relative_error=0.0303,
    )
    if not len(finite):
        return base
    edges = log_linear_edges(max(1e-9, float(np.abs(finite).max())))
    counts, _ = np.histogram(finite, edges)
    occupied = np.flatnonzero(counts)
    first, last = occupied[0], occupied[-1] + 1
    return replace(
        base,
        mean=float(finite.mean()),
        variance=float(finite.var()),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
        zero_ratio=float(np.mean(finite == 0)),
        edges=edges[first : last + 1],
        counts=counts[first:last].astype(np.int64),
        quantiles=np.quantile(finite, LEVELS),
    )


@dataclass
class MemoryBackend:
    """The daemon of these tests: every promise of ``Backend``, kept in memory."""

    folder: Path
    now: float = NOW
    version: str = "0.1.0"
    known_layers: dict[LayerKey, LayerStatus] = field(default_factory=dict)
    watched: dict[FeatureKey, FeatureStatus] = field(default_factory=dict)
    values: dict[tuple[FeatureKey, Window], np.ndarray] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    records: dict[FeatureKey, list[EvidenceRecord]] = field(default_factory=dict)
    pictures: dict[str, list[Portrait]] = field(default_factory=dict)
    media_types: dict[str, str] = field(default_factory=dict)
    queue: dict[str, Job] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    previews: dict[str, bytes] = field(default_factory=dict)
    class_names: dict[str, Sequence[str]] = field(default_factory=dict)
    recipe: Maximisation = field(default_factory=Maximisation)
    stored: list[BaselineVersion] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    findings: dict[FeatureKey, Anomaly] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    portraits_on_alerts: bool = True
    made: list[MadePicture] = field(default_factory=list)
    refused: list[Quarantined] = field(default_factory=list)
    failing: SidecarError | Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    # -- what a test arranges ------------------------------------------------------------------

    def add_layer(self, layer: LayerKey, width: int, **more: Any) -> LayerKey:
        """Register a layer with plausible counts."""
        status = LayerStatus(
            key=layer,
            width=width,
            capture=Capture("demo-server 0.3", "float32", compiled=False, tap="torch hooks 0.1"),
            rows=182_400,
            requests=182_400,
            nonfinite=0,
            baseline_requests=20_000,
            baseline_frozen=True,
            last_seen=self.now - 3,
        )
        self.known_layers[layer] = replace(status, **more)
        return layer

    def watch(self, key: FeatureKey, state: State, name: str = "", **more: Any) -> FeatureKey:
        """Flag a feature and say how it stands."""
        firing = state in (State.FIRING, State.PENDING)
        status = FeatureStatus(
            key=key,
            flag=Flag(name, "warning", "vision-safety"),
            state=state,
            since=self.now - 260,
            requests=640,
            exceedance_ratio=0.0830 if firing else 0.0016,
            baseline_ratio=0.0010,
            threshold=4.71,
            last=9.42 if firing else 3.85,
            explanation="53 of 640 requests beyond the baseline's 99.9 % quantile, 83 times the "
            "baseline share; tolerated 0.36 %; evidence 10^12.4, an alarm takes 10^8.6"
            if firing
            else "Within its baseline.",
            evidence_log10=12.4 if firing else 0.1,
            evidence_threshold_log10=8.6,
            level_ratio=0.0012,
            tolerated_ratio=0.0036,
        )
        self.watched[key] = replace(status, **more)
        return key

    def fill(self, key: FeatureKey, window: Window, values: np.ndarray) -> None:
        """Say which values a window holds."""
        self.values[key, window] = values

    def store(self, body: bytes, media_type: str) -> str:
        """Keep an artifact and return its digest."""
        digest = hashlib.sha256(body).hexdigest()
        (self.folder / digest).write_bytes(body)
        self.media_types[digest] = media_type
        return digest

    def add_portrait(self, key: FeatureKey, seed: int = 0, **manifest: Any) -> Portrait:
        """Keep a finished picture with a manifest."""
        recipe = replace(self.recipe, seed=seed)
        body = {
            "method": {"name": "activation_maximisation", "version": 1},
            "recipe": {"seed": seed, "steps": 128},
        }
        portrait = Portrait(
            feature=str(key),
            content_key=content_key(Target(key), recipe),
            picture_digest=self.store(make_png(seed), "image/png"),
            manifest_digest=self.store(json.dumps(body | manifest).encode(), "application/json"),
            created=self.now - 120,
        )
        self.pictures.setdefault(str(key), []).insert(0, portrait)
        return portrait

    def add_baseline(self, layer: LayerKey, *cautions: str, **more: Any) -> BaselineVersion:
        """Store a version of a layer's baseline, the newest so far; it is the one in force."""
        digest = hashlib.sha256(f"{layer} {len(self.stored)}".encode()).hexdigest()
        facts = BaselineFacts(
            layer,
            self.known_layers[layer].capture,
            192,
            20_000,
            360,
            self.now - 9e4,
            self.now - 9e3,
        )
        stored = replace(StoredBaseline(digest, facts, "learned", self.now - 9e3), **more)
        self.stored = [replace(one, in_force=False) for one in self.stored]
        self.stored.insert(0, BaselineVersion(stored, in_force=True, cautions=cautions))
        return self.stored[0]

    def add_evidence(self, key: FeatureKey, **more: Any) -> EvidenceRecord:
        """Keep a record of a spike of one route, with rows of every kind."""
        eu, us = SliceCount("route", "/v1/eu", 60, 41), SliceCount("route", "/v1/us", 580, 3)
        tenant = SliceCount("tenant", "a-tenant-whose-name-is-as-long-as-names-get." * 4, 640, 44)
        rows = [
            EvidenceRow(math.inf, self.now - 262, "9f2c4a7718d0e35b", 0, "route=/v1/eu"),
            EvidenceRow(
                9.42, self.now - 271, "request-" + "x" * 190, 12, f"route=/v1/eu,{tenant.name}"
            ),
            EvidenceRow(8.97, self.now - 275, "", 3, ""),
        ]
        pairs = (eu, us, tenant)
        said = attribute(640, 44, pairs, baseline_rate=0.001, tolerated_rate=0.005)
        numbers = {"short_rate": 0.083, "baseline_share": 0.001, "probability": 1e-12}
        record = EvidenceRecord(
            feature=key,
            at=self.now - 260,
            reason="8.3 % of 640 requests above the baseline's 99.9 % quantile",
            numbers=numbers | {"long_rate": math.nan},
            above=4.71,
            below=-math.inf,
            since=self.now - 280,
            windows=2,
            requests=640,
            exceedances=44,
            uncounted=0,
            attribution=said,
            rows=tuple(rows),
            exposure=Exposure.KEEP,
        )
        made = replace(record, **more)
        self.records.setdefault(key, []).insert(0, made)
        if key in self.watched:
            self.watched[key] = replace(self.watched[key], evidence_id=made.id)
        return made

    def add_job(self, key: FeatureKey, state: JobState, **more: Any) -> Job:
        """Queue a job and say how it stands."""
        job = self.submit(JobRequest((Target(key),), self.recipe, "console"))
        return self.change(job.id, state=state, **more)

    def change(self, job_id: str, **values: Any) -> Job:
        """Change a job and wake whoever waits for that."""
        with self.changed:
            self.queue[job_id] = replace(self.queue[job_id], **values)
            self.versions[job_id] += 1
            self.changed.notify_all()
            return self.queue[job_id]

    def show(self, job_id: str, picture: bytes, step: int) -> None:
        """Give a running job a new intermediate picture."""
        self.previews[job_id] = picture
        self.change(job_id, step=step, preview_version=self.queue[job_id].preview_version + 1)

    # -- what the console asks -----------------------------------------------------------------

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
        """Return one page and the total, the most urgent first."""
        if self.failing:
            raise self.failing
        fits = [
            key
            for key in sorted(self.known_layers)
            if model in ("", key.model) and key.revision.startswith(revision)
            if layer in ("", key.layer)
        ]
        flagged = [s for key, s in self.watched.items() if key.layer in fits and _has(s, query)]
        flagged = [s for s in flagged if state in (None, s.state)]
        flagged.sort(key=_urgency)
        if flagged_only or state not in (None, State.UNKNOWN):
            return flagged[offset : offset + limit], len(flagged)
        named = [key for key in fits if query.lower() in str(key).lower()]
        own = [(key, sum(s.key.layer == key for s in flagged)) for key in named]
        total = len(flagged) + sum(self.known_layers[key].width - mine for key, mine in own)
        page = list(flagged[offset : offset + limit])
        skip = max(0, offset - len(flagged))
        for key in named:
            for index in range(self.known_layers[key].width):
                if len(page) >= limit:
                    return page, total
                if key.feature(index) in self.watched:
                    continue
                if skip:
                    skip -= 1
                    continue
                page.append(self.feature(key.feature(index)))
        return page, total

    def unmatched_flags(self) -> Sequence[str]:
        """Return flags that fit nothing."""
        return self.unmatched

    def explained_flags(self) -> Sequence[UnmatchedFlag]:
        """Return that the layer is what none of them has."""
        return [UnmatchedFlag(one, "layer", "conv9", ("conv1",)) for one in self.unmatched[:20]]

    def layers(self) -> Sequence[LayerStatus]:
        """Return every layer."""
        return [self.known_layers[key] for key in sorted(self.known_layers)]

    def labels(self, model: str) -> Sequence[str]:
        """Return class names."""
        return self.class_names.get(model, ())

    def resolve(self, text: str) -> FeatureKey:
        """Return the one feature of that name."""
        wanted = FeatureSelector.parse(text)
        fits = [key for key in self.known_layers if wanted.matches(key)]
        if not fits:
            raise UnknownModel(f"feature {text!r}: no such model or layer was ever registered")
        if len(fits) > 1:
            raise UnknownFeature(f"feature {text!r} fits {len(fits)} revisions: name one")
        key = fits[0].feature(wanted.index)
        self.feature(key)
        return key

    def feature(self, key: FeatureKey) -> FeatureStatus:
        """Return how a feature stands."""
        layer = self.known_layers.get(key.layer)
        if layer is None:
            raise UnknownLayer(f"layer {key.layer} was never registered")
        if key.index >= layer.width:
            raise UnknownFeature(f"feature index {key.index}: use 0 to {layer.width - 1}")
        unknown = math.nan
        plain = FeatureStatus(
            key, None, State.UNKNOWN, 0.0, 0, unknown, unknown, unknown, unknown, ""
        )
        return self.watched.get(key, replace(plain, anomaly=self.findings.get(key)))

    def distribution(self, key: FeatureKey, window: Window) -> FeatureDistribution:
        """Return the distribution of the values a test put in."""
        self.feature(key)
        return make_distribution(key, window, self.values.get((key, window), np.empty(0)))

    def events(self, key: FeatureKey | None, limit: int) -> Sequence[Event]:
        """Return the log of a feature and its layer."""
        subjects = None if key is None else (str(key), str(key.layer))
        return [e for e in self.log if subjects is None or e.subject in subjects][:limit]

    def evidence(self, key: FeatureKey, limit: int) -> Sequence[EvidenceRecord]:
        """Return why a feature fired."""
        return self.records.get(key, [])[:limit]

    def portraits(self, key: FeatureKey) -> Sequence[Portrait]:
        """Return finished pictures."""
        return self.pictures.get(str(key), [])

    def jobs(self, key: FeatureKey | None, limit: int, before: str = "") -> Sequence[Job]:
        """Return jobs, newest first."""
        found = sorted(self.queue.values(), key=lambda job: job.id, reverse=True)
        found = [job for job in found if not before or job.id < before]
        return [
            job
            for job in found
            if key is None or any(target.feature == key for target in job.request.targets)
        ][:limit]

    def job(self, job_id: str) -> Job:
        """Return a job."""
        if job_id not in self.queue:
            raise UnknownJob(f"job {job_id!r} does not exist")
        return self.queue[job_id]

    def submit(self, request: JobRequest) -> Job:
        """Queue a job once per idempotency key."""
        if self.failing:
            raise self.failing
        with self.changed:
            for job in self.queue.values():
                if request.idempotency_key and (
                    job.request.idempotency_key == request.idempotency_key
                ):
                    return job
            job_id = f"01K{len(self.queue):023d}"
            job = Job(job_id, request, JobState.QUEUED, created=self.now - 30)
            self.queue[job_id], self.versions[job_id] = job, 0
            return job

    def cancel(self, job_id: str) -> Job:
        """End a job."""
        if self.job(job_id).state.ended:
            raise JobFinished(f"job {job_id} has ended: it can no longer be cancelled")
        return self.change(job_id, state=JobState.CANCELLED, ended=self.now)

    @property
    def provenance(self) -> "MemoryBackend":
        """Return itself: it knows the pictures too."""
        return self

    def list(
        self, *, limit: int = 50, before: str = "", revision: str = "", **wanted: str
    ) -> Sequence[MadePicture]:
        """Return pictures, the newest first."""
        names = [one.manifest_digest for one in self.made]
        rest = self.made[names.index(before) + 1 if before in names else 0 :]
        return [
            one
            for one in rest
            if one.revision.startswith(revision)
            and all(value in ("", getattr(one, name)) for name, value in wanted.items())
        ][:limit]

    def quarantined(self) -> Sequence[Quarantined]:
        """Return what is refused."""
        return self.refused

    def release_quarantine(self, name: str) -> int:
        """Let what a job asked for go."""
        kept = [one for one in self.refused if one.job_id != name]
        if kept == self.refused:
            raise UnknownJob(f"nothing named {name!r} is quarantined")
        count, self.refused = len(self.refused) - len(kept), kept
        return count

    def preview(self, job_id: str) -> bytes | None:
        """Return the newest intermediate picture."""
        return self.previews.get(job_id)

    def wait_job(self, job_id: str, seen: int, timeout: float) -> int:
        """Wait for a change."""
        with self.changed:
            self.changed.wait_for(lambda: self.versions[job_id] != seen, timeout)
            return self.versions[job_id]

    def artifact(self, digest: str) -> tuple[Path, str]:
        """Return a file."""
        self.fetched.append(digest)
        if digest not in self.media_types:
            raise UnknownArtifact(f"artifact {digest} is not in the store")
        return self.folder / digest, self.media_types[digest]

    def flag(self, key: FeatureKey, flag: Flag, watching: Watching) -> None:
        """Watch a feature."""
        self.watched[key] = replace(self.feature(key), flag=watching.over(flag))

    def unflag(self, key: FeatureKey) -> None:
        """Watch it no longer."""
        if key not in self.watched:
            raise UnknownFeature(f"feature {key} is not flagged")
        del self.watched[key]

    def freeze(self, model: str, revision: str, layer: str) -> int:
        """Freeze baselines."""
        return self._baseline(model, revision, layer, frozen=True)

    def reset(self, model: str, revision: str, layer: str, reason: str = "") -> int:
        """Learn anew."""
        self.reasons.append(reason)
        return self._baseline(model, revision, layer, frozen=False)

    def baselines(self, model: str, revision: str, layer: str) -> Sequence[BaselineVersion]:
        """Return stored versions."""
        return [
            one
            for one in self.stored
            if model in ("", one.stored.facts.layer.model)
            and one.stored.facts.layer.revision.startswith(revision)
            and layer in ("", one.stored.facts.layer.layer)
        ]

    def _baseline(self, model: str, revision: str, layer: str, *, frozen: bool) -> int:
        fits = [k for k in self.known_layers if (k.model, k.layer) == (model, layer)]
        fits = [k for k in fits if k.revision.startswith(revision)]
        if frozen and any(not self.known_layers[k].rows for k in fits):
            raise BaselineNotReady(f"layer {layer}: no sample seen yet")
        for key in fits:
            self.known_layers[key] = replace(self.known_layers[key], baseline_frozen=frozen)
        return len(fits)

    def can_picture(self, key: FeatureKey) -> bool:
        """Say whether it is of a kind of which pictures are made without a dictionary."""
        return key.layer.kind in PICTURE_KINDS - {FeatureKind.DIRECTION}

    def default_recipe(self) -> Maximisation:
        """Return the recipe."""
        return self.recipe

    def alert_fired(
        self,
        fingerprint: str,
        started: float,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> Job | None:
        """Queue a portrait once per alert."""
        names = ("model", "revision", "layer", "kind", "feature")
        key = self.resolve("{}@{}/{}/{}/{}".format(*(labels[name] for name in names)))
        if not self.portraits_on_alerts or annotations.get("silent"):
            return None
        once = f"alert:{fingerprint}:{started:.3f}"
        return self.submit(JobRequest((Target(key),), self.recipe, "alert", once))


REPORT = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A night</title>
<style>h1{color:rgb(1, 2, 3)}</style></head><body><h1>A night</h1>
<img alt="" src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">
<script>document.body.dataset.ran = 'yes'</script></body></html>"""


@dataclass
class MemoryAudits:
    """The audits of these tests: every promise of ``Audits``, kept in memory."""

    now: float = NOW
    known: dict[str, AuditStatus] = field(default_factory=dict)
    bodies: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    started: list[tuple[str, str]] = field(default_factory=list)
    accepted: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, *states: NightState, **more: Any) -> AuditStatus:
        """Configure an audit with these nights, the newest first."""
        nights = tuple(self._night(name, n, state) for n, state in enumerate(states))
        judged = next((one for one in nights if one.state.judged), None)
        running = next((one for one in nights if not one.state.judged), None)
        state = AuditState(nights[0].state) if nights else AuditState.WAITING
        status = AuditStatus(
            name=name,
            model="lite0",
            against="lite0-int8",
            state=state,
            last=judged,
            running=running,
            next_at=self.now + 7300,
            overdue=False,
            nights=nights,
        )
        self.known[name] = replace(status, **more)
        return self.known[name]

    def _night(self, name: str, ago: int, state: NightState) -> Night:
        start = self.now - 3600 - 86_400 * ago
        night_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(start))}"
        if not state.judged:
            return Night(name, night_id, start, None, state, actor="cli")
        self.bodies[name, night_id, "html"] = REPORT
        self.bodies[name, night_id, "json"] = b'{"schema": 1}'
        bad = {"comparison": (12.5, 5.0), "live": (None, None)}
        checks = tuple(
            Check(one, Outcome.FAILED, *bad[one], f"The check {one} failed, with its numbers.")
            if one in bad and state is NightState.REGRESSED
            else Check(one, Outcome.IMPOSSIBLE, None, None, "No portrait of the night before.")
            if one == "verdict"
            else Check(one, Outcome.PASSED, 0.0, 0.0, "All of them are as they were.")
            for one in CHECKS
        )
        moved = 24 if state is NightState.REGRESSED else 2 + ago % 3
        counts = {"same": 187 - moved, "moved": moved, "lost": 5, "new": 3}
        report = f"/audits/{name}/{night_id}/report.html"
        return Night(name, night_id, start, start + 900, state, checks, counts, 32, report)

    def statuses(self) -> tuple[AuditStatus, ...]:
        """Return all."""
        return tuple(self.known.values())

    def status(self, name: str) -> AuditStatus:
        """Return one."""
        if name not in self.known:
            raise UnknownAudit(f"audit {name!r} is unknown")
        return self.known[name]

    def night(self, name: str, night_id: str) -> Night:
        """Return one night."""
        found = [one for one in self.status(name).nights if one.id == night_id]
        if not found:
            raise UnknownAudit(f"audit {name!r} has no night {night_id!r}")
        return found[0]

    def report(self, name: str, night_id: str, form: str) -> bytes:
        """Return the bytes of a report."""
        self.night(name, night_id)
        if (name, night_id, form) not in self.bodies:
            raise UnknownAudit("no report yet")
        return self.bodies[name, night_id, form]

    def accept(self, name: str, night_id: str, note: str) -> Night:
        """Take a night for the new normal."""
        if not note:
            raise InvalidInput("note: say who accepts it and why")
        self.accepted.append((name, night_id, note))
        return self.night(name, night_id)

    def start(self, name: str, actor: str) -> Night:
        """Start a night, or return the one that runs."""
        status = self.status(name)
        if status.running:
            return status.running
        self.started.append((name, actor))
        night = Night(name, "20261124T120000Z", self.now, None, NightState.RUNNING, actor=actor)
        self.known[name] = replace(
            status, state=AuditState.RUNNING, running=night, nights=(night, *status.nights)
        )
        return night


def _urgency(status: FeatureStatus) -> tuple[float, FeatureKey]:
    place = ORDER.index(status.state)
    concern = place > 1 and (status.conditions or status.drifting)
    return (1.5 if concern else place), status.key


def _has(status: FeatureStatus, query: str) -> bool:
    flag = status.flag or Flag()
    return query.lower() in f"{status.key} {flag.name} {flag.owner}".lower()


@pytest.fixture
def backend(tmp_path: Path) -> MemoryBackend:
    """An empty daemon."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return MemoryBackend(folder)


@pytest.fixture
def channels(backend: MemoryBackend) -> LayerKey:
    """A layer of 192 channels."""
    return backend.add_layer(LayerKey("lite0", REVISION, "_blocks.14"), 192)


@pytest.fixture
def logits(backend: MemoryBackend) -> LayerKey:
    """A layer of 1000 class logits whose names are known."""
    names = [f"class {i}" for i in range(1000)]
    names[130] = "flamingo"
    backend.class_names["lite0"] = names
    return backend.add_layer(LayerKey("lite0", REVISION, "_fc", FeatureKind.LOGIT, View.RAW), 1000)


@pytest.fixture
def spiking(backend: MemoryBackend, channels: LayerKey) -> FeatureKey:
    """A rectified channel that spikes, with everything a feature page can show."""
    key = backend.watch(channels.feature(33), State.FIRING, "striped texture")
    rng = np.random.default_rng(5)
    usual = np.maximum(rng.normal(0.4, 1.3, 20_000), 0)
    now = np.concatenate((np.maximum(rng.normal(0.5, 1.4, 1_800), 0), rng.normal(7, 1.1, 160)))
    backend.fill(key, Window.BASELINE, usual)
    backend.fill(key, Window.CURRENT, now)
    backend.fill(key, Window.HISTORY, np.concatenate((usual, now)))
    subject = str(key)
    backend.log = [
        Event(backend.now - 260, "feature_firing", subject, "8.3 % of 640 requests, p 1e-12"),
        Event(backend.now - 275, "feature_pending", subject, "6.9 % of 320 requests"),
        Event(backend.now - 9_000, "baseline_frozen", str(channels), "learned, 20000 requests"),
        Event(backend.now - 90_000, "feature_flagged", subject, "striped texture, warning"),
    ]
    backend.add_evidence(key, at=backend.now - 90_000)
    backend.add_evidence(key)
    live = {"percentile": 100.0, "maximum": 9.42, "count": 20_000, "window": "baseline"}
    made = {
        "duration_seconds": 14.2,
        "device": {"type": "cpu", "name": "x86_64"},
        "code": {"sidecar": "0.1.0", "torch": "2.13.0"},
        "model": {"name": "lite0", "digest": REVISION, "digest_verified": True},
        "live": live,
    }
    for seed, plain in ((1, 58.2), (0, 61.6)):
        reached = {"plain": plain, "augmented": plain - 2.1, "augmented_spread": 1.9}
        backend.add_portrait(key, seed, activation=reached, **made)
    return key


@pytest.fixture
def audits() -> MemoryAudits:
    """No audit yet."""
    return MemoryAudits()


@pytest.fixture
def server(backend: MemoryBackend, audits: MemoryAudits) -> Iterator[WebServer]:
    """The console, listening."""
    app = create_app(
        backend, console_url="http://console.example/", clock=lambda: backend.now, audits=audits
    )
    running = WebServer(app, "127.0.0.1", 0)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: WebServer) -> Iterator[httpx.Client]:
    """A client of the console that follows no redirects."""
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.port}", timeout=30, trust_env=False
    ) as found:
        yield found


@pytest.fixture
def token(server: WebServer, client: httpx.Client) -> str:
    """The token that the console's own forms carry."""
    return str(server._app.state.console.gate.token)  # noqa: SLF001 - what a page would hold


class Navigated(Exception):
    """The page that was asked went away before it had answered; ask the next one."""


class Browser:
    """Chromium, spoken to through a pipe: no port, no library, and pages keep their policy."""

    def __init__(self, profile: Path) -> None:
        """Start it with an own profile."""
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            f"--hide-scrollbars --remote-debugging-pipe --user-data-dir={profile} about:blank"
        )
        # The shell puts the pipe's ends where Chromium looks for them: 3 and 4.
        line = f"exec chromium {flags} 3<&{to_read} 4>&{from_write}"
        self._process = subprocess.Popen(
            ["bash", "-c", line],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._next, self._buffer = 0, b""
        self._events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Ask one thing and return the answer; events that come first are kept.

        Raises:
            Navigated: A form or a reload replaced the page meanwhile.
        """
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        body = json.dumps(message | ({"sessionId": session} if session else {})).encode()
        os.write(self._to, body + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._next:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated(answer)
                assert "error" not in answer, answer
                return dict(answer["result"])

    def wait_loaded(self, loader: str) -> None:
        """Wait until the document of one navigation, and nothing older, is complete."""
        wanted = {"loaderId": loader, "name": "load"}
        while True:
            for event in self._events:
                if wanted.items() <= event["params"].items():
                    self._events.remove(event)
                    return
            self._receive()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], 60)
            assert ready, "Chromium is silent"
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "Chromium is gone"
            self._buffer += chunk
        body, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(body)
        if "method" in message:
            self._events.append(message)
        return message

    def said(self) -> list[str]:
        """Return what pages wrote to the console, and what the policy refused."""
        names = ("Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown")
        return [str(event["params"]) for event in self._events if event["method"] in names]

    def open(
        self, url: str, *, width: int = 1280, dark: bool = False, script: bool = True
    ) -> "Page":
        """Load a page and return it when it is complete."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, attached["sessionId"])
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Emulation.setScriptExecutionDisabled", value=not script)
        page.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.wait_loaded(page.call("Page.navigate", url=url)["loaderId"])
        return page


@dataclass
class Page:
    """One tab."""

    browser: Browser
    session: str

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask one thing of the tab."""
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true, across reloads, in the midst of which a page is empty."""
        pause = threading.Event()
        expression = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"
        for _ in range(600):
            with contextlib.suppress(Navigated):
                if value := self.evaluate(expression):
                    return value
            pause.wait(0.05)
        raise AssertionError(f"never true: {expression}")

    def picture(self) -> np.ndarray:
        """Return what is seen, shape (height, width, 3)."""
        body = self.call("Page.captureScreenshot", format="png")["data"]
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            return np.asarray(image.convert("RGB"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser of its own for each test."""
    found = Browser(tmp_path / "profile")
    yield found
    found.close()
