"""The pages that show things; each is complete without JavaScript."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from sidecar.detect import State
from sidecar.errors import SidecarError
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import Job, JobState
from sidecar.monitor import (
    BaselineVersion,
    EvidenceRecord,
    FeatureDistribution,
    FeatureStatus,
    LayerStatus,
    Window,
)
from sidecar.web import histogram, wording
from sidecar.web.captions import caption
from sidecar.web.console import Console
from sidecar.web.filters import PAGE_ROWS, Filters, text
from sidecar.web.histogram import Limits

STATE_WORDS = {
    State.FIRING: "firing",
    State.PENDING: "pending",
    State.RESOLVED: "resolved",
    State.NORMAL: "normal",
    State.UNKNOWN: "unknown",
}
"""States in the order of their urgency."""

NOTICES = {
    "flagged": "Flag saved. Spikes of this feature raise an alert from now on.",
    "unflagged": "Flag removed. Nobody is told about this feature any longer.",
    "cancelling": "Cancel was asked for. The worker ends within a few seconds.",
    "released": "Let go. The same request is tried again when it is asked for.",
    "frozen": "The baseline is frozen. Spikes are judged against it from now on.",
    "reset": "The baseline is being learned anew. Until it is frozen, nothing can fire.",
}
"""What a page says after one of its forms was sent; the query names the sentence, never its text."""

_FLAG_ROWS = 5
_ANOMALY_ROWS = 50  # of all layers together; each has at most ten
_EVENT_ROWS = 20
_JOB_ROWS = 8
_STRIP = 4
_JOBS_PAGE = 40
_DIGEST_SHOWN = 12
_REASON_LIMIT = 200  # characters; the daemon checks it again, for every way in


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the feature list.

    Attributes:
        status: How the feature stands.
        name: What it is called.
        picture: Digest of its newest portrait, or empty.
        believed: The verdict on that portrait, or empty.
    """

    status: FeatureStatus
    name: str
    picture: str
    believed: str = ""


def feature_list(request: Request) -> Response:
    """``/``: the features, most urgent first, and the layers they live in."""
    console, filters = Console.of(request), Filters.of(request.query_params)
    layers = console.backend.layers()
    found, total = _found(console, filters, PAGE_ROWS, (filters.page - 1) * PAGE_ROWS)
    tally = {state: _tally(console, state) for state in STATE_WORDS}
    nothing_flagged = not sum(tally.values())
    return console.page(
        "features.html",
        filters=filters,
        rows=_rows(console, found),
        total=total,
        first=(filters.page - 1) * PAGE_ROWS,
        pages=max(1, -(-total // PAGE_ROWS)),
        tally=tally,
        nothing_flagged=nothing_flagged,
        layers=layers,
        sums=_sums(layers),
        models=sorted({layer.key.model for layer in layers}),
        revisions=sorted({layer.key.revision for layer in layers}),
        names=sorted({layer.key.layer for layer in layers}),
        states=STATE_WORDS,
        unmatched=console.backend.unmatched_flags(),
        explained=console.backend.explained_flags()[:_FLAG_ROWS],
        shifted={layer.key for layer in layers if layer.shifted},
        notice=_notice(request),
    )


def _found(
    console: Console, filters: Filters, limit: int, offset: int
) -> tuple[Sequence[FeatureStatus], int]:
    return console.backend.features(
        model=filters.model,
        revision=filters.revision,
        layer=filters.layer,
        flagged_only=filters.flagged_only,
        state=filters.state,
        query=filters.query,
        offset=offset,
        limit=limit,
    )


def _tally(console: Console, state: State) -> int:
    return _found(console, Filters(state=state), 0, 0)[1]


def _rows(console: Console, found: Sequence[FeatureStatus]) -> list[Row]:
    models = {status.key.layer.model for status in found}
    labels = {model: tuple(console.backend.labels(model)) for model in models}
    rows = []
    for status in found:
        newest = next(iter(console.backend.portraits(status.key)), None)
        own = status.flag.name if status.flag else ""
        name = own or wording.unit_name(status.key, labels[status.key.layer.model])
        picture, believed = (newest.picture_digest, newest.verdict) if newest else ("", "")
        rows.append(Row(status, name, picture, believed))
    return rows


def _sums(layers: Sequence[LayerStatus]) -> dict[str, int]:
    return {
        "layers": len(layers),
        "features": sum(layer.width for layer in layers),
        "rows": sum(layer.rows for layer in layers),
        "frozen": sum(layer.baseline_frozen for layer in layers),
    }


def _notice(request: Request) -> str:
    return NOTICES.get(request.query_params.get("done", ""), "")


def feature(request: Request) -> Response:
    """``/f/{feature}``: everything there is to say about one feature."""
    console = Console.of(request)
    backend, key = console.backend, console.backend.resolve(request.path_params["feature"])
    status = backend.feature(key)
    windows = {window: backend.distribution(key, window) for window in Window}
    portraits = [caption(backend, portrait) for portrait in backend.portraits(key)[:_STRIP]]
    labels = tuple(backend.labels(key.layer.model))
    jobs = backend.jobs(key, _JOB_ROWS)
    unit = wording.unit_name(key, labels)
    record = next(iter(backend.evidence(key, 1)), None)
    return console.page(
        "feature.html",
        status=status,
        key=key,
        name=(status.flag.name if status.flag else "") or unit,
        unit=unit,
        verdict=wording.verdict(status),
        layer=next((layer for layer in backend.layers() if layer.key == key.layer), None),
        windows=windows,
        plot=_plot(windows, Limits(wording.upper(status), wording.lower(status))),
        quantiles=_quantiles(windows),
        portraits=portraits,
        jobs=jobs,
        running=next((job for job in jobs if not job.state.ended), None),
        events=backend.events(key, _EVENT_ROWS),
        happened=wording.happened(status),
        evidence=record,
        alarm=_alarm(status, record),
        recipe=backend.default_recipe(),
        can_picture=backend.can_picture(key),
        commands=_commands(key),
        form_key=secrets.token_hex(8),
        notice=_notice(request),
    )


def _alarm(status: FeatureStatus, record: EvidenceRecord | None) -> float | None:
    """Return the evidence that raised the alarm, as a power of ten; None where none is held.

    While an alarm is held no evidence is gathered, so that what the detector has now is 0.
    """
    if status.state is not State.FIRING or record is None:
        return None
    found = record.numbers.get("evidence_log10", math.nan)
    return found if math.isfinite(found) else None


@dataclass(frozen=True, slots=True)
class Plot:
    """The histogram of a feature, drawn for wide and for narrow screens.

    Attributes:
        wide: SVG element for 720 px and more.
        narrow: SVG element for a telephone.
        beyond: What the picture leaves out, in words.
        zeros: Shares of exact zeros, in words; empty where there are none.
    """

    wide: Markup
    narrow: Markup
    beyond: str
    zeros: str


def _plot(windows: dict[Window, FeatureDistribution], limits: Limits) -> Plot | None:
    now, baseline = windows[Window.CURRENT], windows[Window.BASELINE]
    if not now.count and not baseline.count:
        return None
    return Plot(
        wide=histogram.draw(now, baseline, limits),
        narrow=histogram.draw(now, baseline, limits, shape="narrow"),
        beyond=histogram.beyond(now, baseline, limits),
        zeros=_zeros(now, baseline),
    )


def _zeros(now: FeatureDistribution, baseline: FeatureDistribution) -> str:
    shares = (("now", now), ("in the baseline", baseline))
    parts = [f"{wording.percent(one.zero_ratio)} {name}" for name, one in shares if one.count]
    if not any(one.zero_ratio for _, one in shares):
        return "No value is exactly zero."
    return f"Exactly zero: {', '.join(parts)}."


def _quantiles(windows: dict[Window, FeatureDistribution]) -> list[tuple[str, list[float]]]:
    """Return a line for each quantile level: its name, and its value in each window."""
    levels = windows[Window.CURRENT].levels.tolist()
    return [
        (f"{level * 100:.6g} %", [float(windows[window].quantiles[i]) for window in Window])
        for i, level in enumerate(levels)
    ]


def _commands(key: FeatureKey) -> list[tuple[str, str]]:
    named = wording.short_key(key)
    return [
        ("Show", wording.command("sidecar", "feature", "get", named)),
        ("Why it fired", wording.command("sidecar", "feature", "evidence", named)),
        ("Make a portrait", wording.command("sidecar", "job", "run", named)),
        ("As JSON", wording.command("sidecar", "feature", "get", named, "-o", "json")),
    ]


def layers(request: Request) -> Response:
    """``/layers``: what is measured, and the baselines with their commands."""
    console = Console.of(request)
    found = console.backend.layers()
    versions: dict[LayerKey, list[BaselineVersion]] = {layer.key: [] for layer in found}
    for one in console.backend.baselines("", "", ""):
        versions.get(one.stored.facts.layer, []).append(
            one
        )  # a layer may be gone, and not its files
    anomalies = [one for layer in found for one in layer.anomalies]
    return console.page(
        "layers.html",
        layers=found,
        anomalies=anomalies[:_ANOMALY_ROWS],
        found=len(anomalies),
        versions=versions,
        digits=_DIGEST_SHOWN,
        reason_limit=_REASON_LIMIT,
        sums=_sums(found),
        notice=_notice(request),
    )


def job_list(request: Request) -> Response:
    """``/jobs``: the newest jobs."""
    console = Console.of(request)
    found = console.backend.jobs(None, _JOBS_PAGE + 1, text(request.query_params, "before"))
    page = list(found[:_JOBS_PAGE])
    return console.page(
        "jobs.html",
        jobs=page,
        names=_names(console, page),
        older=page[-1].id if len(found) > _JOBS_PAGE else "",
        live=any(not job.state.ended for job in page),
        quarantined=[
            (one, FeatureKey.parse(one.feature) if one.feature else None)
            for one in console.backend.quarantined()
        ],
        notice=_notice(request),
    )


def job(request: Request) -> Response:
    """``/jobs/{id}``: how one job stands, live."""
    console = Console.of(request)
    found = console.backend.job(request.path_params["job_id"])
    return console.page(
        "job.html",
        job=found,
        captions=[caption(console.backend, portrait) for portrait in found.portraits],
        names=_names(console, [found]),
        remaining=remaining(found, console.clock()),
        advice=ADVICE.get(found.error_code, ADVICE_OTHERWISE),
        recipe=found.request.recipe.values(),
        usual=console.backend.default_recipe().values(),
        held=[one for one in console.backend.quarantined() if one.job_id == found.id],
        notice=_notice(request),
    )


def _names(console: Console, found: Sequence[Job]) -> dict[str, str]:
    """Return what the jobs' features are called, by key."""
    backend, names = console.backend, {}
    for key in {target.feature for job in found for target in job.request.targets}:
        try:
            flag = backend.feature(key).flag
        except SidecarError:  # a job may outlive the layer it was about
            flag = None
        unit = wording.unit_name(key, tuple(backend.labels(key.layer.model)))
        names[str(key)] = (flag.name if flag else "") or unit
    return names


def remaining(found: Job, now: float) -> str:
    """Say how long a running job will take if it goes on as it went so far."""
    if found.state is not JobState.RUNNING or not 0 < found.step < found.steps:
        return ""
    gone = max(0.0, now - found.started)
    return f"about {wording.duration(gone / found.step * (found.steps - found.step))} left"


ADVICE = {
    "SC801": "Check models.factory, models.weights, models.onnx and jobs.python_path of the model in the configuration.",
    "SC802": "The server runs other weights than the configuration names. Point models.weights at the weights the server loaded.",
    "SC803": "Try another seed, or another unit: a picture of a unit without gradient would be noise.",
    "SC804": "Ask for fewer steps or a smaller canvas, or raise jobs.time_limit_seconds.",
    "SC805": "Nothing is wrong. Ask again when you want the picture.",
    "SC806": "Look into the daemon's log for the worker's last words; a worker without memory ends like this.",
    "SC703": "Look whether the object store of store.artifacts answers, and whether the network lets the daemon through; then ask again.",
    "SC808": "Ask again with a later deadline or none; more of jobs.concurrency or wider jobs.audit_windows shorten the wait.",
    "SC809": "Change the model's factory, or loosen jobs.sandbox and its limits if you trust it.",
    "SC505": "Mend the model, then let it run again with 'sidecar job release'.",
    "SC701": "Free space in the state directory, then ask again.",
}
"""What to do about a failed job, by error code."""

ADVICE_OTHERWISE = "Mend what the message names, then ask again."
