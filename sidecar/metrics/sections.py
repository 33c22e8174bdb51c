"""The parts of a scrape: which labels things have, and their values as columns or rows."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from sidecar import errors
from sidecar.audits import AuditStatus, Check, Night, Outcome
from sidecar.detect import Direction, State
from sidecar.features import FeatureKey, LayerKey, Scope
from sidecar.metrics import catalogue
from sidecar.metrics.catalogue import Family
from sidecar.metrics.source import JobCounts, StatisticsCounts, StorageCounts
from sidecar.metrics.tables import Labels
from sidecar.monitor import Anomaly, FeatureStatus, Flag, IngestCounts, LayerStatus

Row = tuple[Family, Labels, float]
"""One sample: its family, label values and value."""

Columns = Iterator[tuple[Family, Sequence[float]]]
"""Families with one value for each subject, in the order of the subjects."""

# Reasons come over the wire in hook reports; beyond this many the rest is summed as "other", so
# that a broken or hostile client cannot grow the number of series.
_REASON_LIMIT = 32

# Reasons that exist at zero from the first scrape on, so that rate() sees their very first batch.
_REFUSALS = tuple(
    kind.reason
    for kind in (
        errors.QueueFull,
        errors.UnsupportedDtype,
        errors.PayloadMismatch,
        errors.ShapeMismatch,
        errors.InvalidName,
        errors.MessageTooLarge,
        errors.MalformedMessage,
        errors.BrokenFrame,
        errors.UnsupportedVersion,
        errors.TruncatedFrame,
        errors.ForbiddenPeer,
        errors.UnregisteredLayer,
        errors.UnregisteredStream,
        errors.UnknownModel,
        errors.LayerConflict,
        errors.LimitReached,
    )
)
_DROPS = ("shutdown", errors.SidecarError.reason)
_HOOK_DROPS = (
    "queue_full",
    "no_credit",
    "disconnected",
    "breaker_open",
    "too_large",
    "no_rows",
    "error",
)

_REMOVALS = ("bytes", "age")
_HELD_BACK = ("gpu_memory", "pressure")
_RECORDING_DROPS = ("backlog", "disk", "error")

_JOB_STATES = ("queued", "running", "done", "failed", "cancelled")

_LASTING_WINDOWS = 2

_ABSENT = float("nan")
_NO_YES = (0.0, 1.0)  # the same two objects in every scrape, which the renderers see at once
_CODES = {state: float(state.code) for state in State}


def feature_labels(key: FeatureKey) -> Labels:
    """Return the labels that every series of a feature has."""
    layer = key.layer
    return (layer.model, layer.shown_revision, layer.layer, str(layer.kind), key.label)


def layer_labels(key: LayerKey) -> Labels:
    """Return the labels that every series of a layer has."""
    view = str(key.view) if key.scope is Scope.ALL else f"{key.view};{key.scope}"
    return (key.model, key.shown_revision, key.layer, str(key.kind), view)


def info_labels(labels: Labels, flag: Flag | None, watched: tuple[str, str]) -> Labels:
    """Return the labels of a feature's info.

    Args:
        labels: The feature's own.
        flag: What people say about it.
        watched: Its direction, and the slice of the traffic.

    Returns:
        The feature's own, name, severity and owner, the path in the console, and how it is watched.
    """
    about = (flag.name, flag.severity, flag.owner) if flag else ("", "warning", "")
    model, revision, layer, kind, feature = labels
    path = f"{model}@{revision}/{layer}/{kind}/{feature}"
    return (*labels, *map(clean, about), path, *map(clean, watched))


def possible_conditions(status: FeatureStatus) -> tuple[str, ...]:
    """Return what could hold of a feature: without a baseline nothing that is measured by it."""
    return catalogue.CONDITIONS if status.threshold == status.threshold else ("nonfinite",)


def condition_values(statuses: Sequence[FeatureStatus]) -> list[float]:
    """Return 0 or 1 for each condition that could hold of each feature, in this order."""
    return [
        _NO_YES[condition in status.conditions]
        for status in statuses
        for condition in possible_conditions(status)
    ]


def drift_values(statuses: Sequence[FeatureStatus]) -> list[float]:
    """Return each feature's distances in the order of ``catalogue.REFERENCES``."""
    return [value for s in statuses for value in (s.drift_js, s.drift_js_yesterday)]


def threshold_values(statuses: Sequence[FeatureStatus]) -> list[float]:
    """Return each feature's thresholds in the order of ``catalogue.SIDES``; NaN where it has none."""
    return [
        value
        for s in statuses
        for value in (
            s.threshold if s.direction != Direction.BELOW else _ABSENT,
            s.low_threshold if s.direction != Direction.ABOVE else _ABSENT,
        )
    ]


def last_values(statuses: Sequence[FeatureStatus]) -> list[float]:
    """Return what each feature's newest window compares with these thresholds, likewise."""
    return [
        value
        for s in statuses
        for value in (
            s.last if s.direction != Direction.BELOW else _ABSENT,
            s.least if s.direction != Direction.ABOVE else _ABSENT,
        )
    ]


def lasting_anomalies(statuses: Sequence[LayerStatus], limit: int) -> list[Anomaly]:
    """Return the least likely findings of all layers that came again, at most ``limit``.

    What came once may be chance, and would be a new series every time.
    """
    found = [a for s in statuses for a in s.anomalies if a.windows >= _LASTING_WINDOWS]
    return sorted(found, key=lambda one: one.p_log10)[:limit]


def spike_threshold(statuses: Sequence[FeatureStatus]) -> float:
    """Return the evidence at which features fire; NaN where none is judged."""
    known = [s.evidence_threshold_log10 for s in statuses]
    return max((value for value in known if value == value), default=_ABSENT)  # noqa: PLR0124 - NaN


def evidence_ids(statuses: Sequence[FeatureStatus]) -> dict[int, str]:
    """Return the newest evidence of the features that have some, by their place."""
    return {place: clean(s.evidence_id) for place, s in enumerate(statuses) if s.evidence_id}


def feature_columns(statuses: Sequence[FeatureStatus]) -> Columns:
    """Yield the values of features."""
    yield catalogue.FEATURE_STATE, [_CODES[s.state] for s in statuses]
    yield catalogue.FEATURE_SPIKING, [_NO_YES[s.state is State.FIRING] for s in statuses]
    yield catalogue.FEATURE_STATE_CHANGED, [s.since for s in statuses]
    yield catalogue.FEATURE_REQUESTS, [float(s.requests) for s in statuses]
    # Without requests a share is no number; absence is what PromQL can tell from a real zero.
    yield (
        catalogue.FEATURE_EXCEEDANCE,
        [s.exceedance_ratio if s.requests else _ABSENT for s in statuses],
    )
    yield catalogue.FEATURE_BASELINE_EXCEEDANCE, [s.baseline_ratio for s in statuses]
    yield catalogue.FEATURE_EVIDENCE, [s.evidence_log10 for s in statuses]
    yield catalogue.FEATURE_LEVEL, [s.level_ratio for s in statuses]
    yield catalogue.FEATURE_TOLERATED, [s.tolerated_ratio for s in statuses]
    yield catalogue.FEATURE_SAMPLED, [float(s.sampled_requests) for s in statuses]
    yield catalogue.FEATURE_EXCEEDED, [float(s.sampled_exceedances) for s in statuses]
    yield catalogue.FEATURE_DRIFT_WASSERSTEIN, [s.drift_wasserstein for s in statuses]
    yield (
        catalogue.FEATURE_DRIFTING,
        [_NO_YES[s.drifting] if s.drift_js == s.drift_js else _ABSENT for s in statuses],
    )


def layer_columns(statuses: Sequence[LayerStatus], flagged: Mapping[LayerKey, int]) -> Columns:
    """Yield the values of layers; ``flagged`` counts the flagged features of each that has some."""
    yield catalogue.LAYER_FEATURES, [float(s.width) for s in statuses]
    yield catalogue.LAYER_FLAGGED, [float(flagged.get(s.key, 0)) for s in statuses]
    yield catalogue.LAYER_ROWS, [float(s.rows - s.restored[0]) for s in statuses]
    yield catalogue.LAYER_REQUESTS, [float(s.requests - s.restored[1]) for s in statuses]
    yield catalogue.LAYER_NONFINITE, [float(s.nonfinite - s.restored[2]) for s in statuses]
    yield catalogue.LAYER_FAILURES, [float(s.failed_windows) for s in statuses]
    yield catalogue.LAYER_BASELINE_FROZEN, [float(s.baseline_frozen) for s in statuses]
    yield catalogue.LAYER_BASELINE_REQUESTS, [float(s.baseline_requests) for s in statuses]
    yield catalogue.LAYER_BASELINE_WINDOWS, [float(s.baseline_windows) for s in statuses]
    yield catalogue.LAYER_SCREENED, [float(s.screened_features) for s in statuses]
    # Of a layer that is not screened nothing is known, but a shift that was seen stays seen.
    yield (
        catalogue.LAYER_SIGNIFICANT,
        [float(s.significant_features) if s.screened_features else _ABSENT for s in statuses],
    )
    yield (
        catalogue.LAYER_SHIFTED,
        [float(s.shifted) if s.screened_features or s.shifted else _ABSENT for s in statuses],
    )
    yield catalogue.LAYER_MEMORY, [float(s.memory_bytes) for s in statuses]
    yield catalogue.LAYER_LAST_SAMPLE, [s.last_seen for s in statuses]


def ingest_rows(counts: IngestCounts) -> Iterator[Row]:
    """Yield what became of the batches."""
    for family, value in (
        (catalogue.BATCHES_RECEIVED, counts.received),
        (catalogue.BATCHES_ACCEPTED, counts.accepted),
        (catalogue.BATCHES_PROCESSED, counts.processed),
        (catalogue.BATCHES_IN_FLIGHT, counts.in_flight),
        (catalogue.PAYLOAD_BYTES, counts.payload_bytes),
        (catalogue.QUEUE_BYTES, counts.queue_bytes),
        (catalogue.QUEUE_LIMIT, counts.queue_limit_bytes),
        (catalogue.STREAMS, counts.streams),
        (catalogue.SAMPLING_RATE, counts.sampling_rate),
        (catalogue.HOOK_SENT, counts.hook_batches_sent),
        (catalogue.HOOK_ERRORS, counts.hook_errors),
        (catalogue.HOOK_FORWARDS, counts.forwards),
        (catalogue.HOOK_SAMPLED, counts.sampled_forwards),
        (catalogue.HOOK_SECONDS, counts.hook_seconds),
        (catalogue.FORWARD_SECONDS, counts.forward_seconds),
        (catalogue.HOOK_GOVERNED, counts.governed_forwards),
        (catalogue.HOOK_SAMPLING_RATE, counts.hook_sampling_rate),
        (catalogue.HOOK_OVERHEAD, counts.hook_overhead_ratio),
    ):
        yield family, (), value
    yield from _by_reason(catalogue.BATCHES_REFUSED, counts.refused, _REFUSALS)
    yield from _by_reason(catalogue.BATCHES_DROPPED, counts.dropped, _DROPS)
    yield from _by_reason(catalogue.HOOK_DROPPED, counts.hook_dropped, _HOOK_DROPS)


def job_rows(counts: JobCounts) -> Iterator[Row]:
    """Yield how the jobs stand."""
    for state in _JOB_STATES:
        yield catalogue.JOBS, (state,), counts.states.get(state, 0)
    yield catalogue.JOB_RUNS, (), counts.timed
    yield catalogue.JOB_SECONDS, (), counts.seconds
    yield catalogue.JOBS_QUARANTINED, (), counts.quarantined
    yield from _by_reason(catalogue.JOBS_HELD_BACK, counts.held_back, _HELD_BACK)
    if math.isfinite(counts.gpu_free_bytes):
        yield catalogue.JOB_GPU_FREE, (), counts.gpu_free_bytes


def audit_labels(status: AuditStatus) -> Labels:
    """Return the labels that every series of an audit has; the model without a revision."""
    model = status.model.partition("@")[0]
    return (clean(status.name), clean(model), clean(status.against))


def audit_rows(statuses: Sequence[AuditStatus]) -> Iterator[Row]:
    """Yield how audits stand, and what their newest judged nights came to."""
    labelled = [(audit_labels(status), status) for status in statuses]
    for labels, status in labelled:
        yield catalogue.AUDIT_STATE, labels, catalogue.AUDIT_STATES.index(status.state)
    for labels, status in labelled:
        yield catalogue.AUDIT_NEXT_START, labels, status.next_at
    for labels, status in labelled:
        yield catalogue.AUDIT_REGRESSED, labels, _NO_YES[status.regressed]
    for labels, status in labelled:
        yield catalogue.AUDIT_OVERDUE, labels, _NO_YES[status.overdue]
    for labels, status in labelled:
        came_to = Counter(str(night.state) for night in status.nights)
        for state in catalogue.NIGHT_STATES:
            yield catalogue.AUDIT_NIGHTS, (*labels, state), came_to[state]
    judged = [(labels, s.last) for labels, s in labelled if s.last is not None]
    yield from _night_rows(judged)
    yield from _check_rows(judged)


def _night_rows(judged: Sequence[tuple[Labels, Night]]) -> Iterator[Row]:
    for labels, night in judged:
        yield catalogue.AUDIT_NIGHT_STATE, labels, catalogue.AUDIT_STATES.index(night.state)
    for labels, night in judged:
        for fate in catalogue.AUDIT_FATES:
            yield catalogue.AUDIT_UNITS, (*labels, fate), night.counts.get(fate, _ABSENT)
    for labels, night in judged:
        yield catalogue.AUDIT_FEATURES, labels, night.features
    for labels, night in judged:
        yield catalogue.AUDIT_LAST_END, labels, _known(night.ended_at)


def _check_rows(judged: Sequence[tuple[Labels, Night]]) -> Iterator[Row]:
    checks = [
        ((*labels, one.name), one)
        for labels, night in judged
        for one in night.checks
        if one.name in catalogue.AUDIT_CHECKS
    ]
    for labels, check in checks:
        yield catalogue.AUDIT_CHECK_FAILED, labels, _failed(check)
    for labels, check in checks:
        yield catalogue.AUDIT_CHECK_VALUE, labels, _known(check.value)
    for labels, check in checks:
        yield catalogue.AUDIT_CHECK_LIMIT, labels, _known(check.limit)


def _failed(check: Check) -> float:
    if check.outcome is Outcome.IMPOSSIBLE:
        return _ABSENT
    return _NO_YES[check.outcome is Outcome.FAILED]


def _known(value: float | None) -> float:
    return _ABSENT if value is None else value


def storage_rows(counts: StorageCounts) -> Iterator[Row]:
    """Yield how the state directory stands."""
    yield catalogue.ARTIFACT_BYTES, (), counts.artifact_bytes
    yield catalogue.ARTIFACTS, (), counts.artifacts
    yield from _by_reason(catalogue.ARTIFACTS_REMOVED, counts.artifacts_removed, _REMOVALS)
    yield catalogue.ARTIFACT_LIMIT, (), counts.artifact_limit_bytes
    yield catalogue.SNAPSHOT_TIMESTAMP, (), counts.snapshot_at
    yield catalogue.SNAPSHOT_INTERVAL, (), counts.snapshot_interval_seconds
    yield catalogue.SNAPSHOT_FAILURES, (), counts.snapshot_failures
    yield catalogue.QUARANTINED, (), counts.quarantined
    yield catalogue.EVIDENCE_BYTES, (), counts.evidence.used_bytes
    yield catalogue.EVIDENCE_LIMIT, (), counts.evidence.limit_bytes
    for what, number in counts.evidence.dropped.items():
        yield catalogue.EVIDENCE_DROPPED, (what,), number
    yield catalogue.RECORDING_BYTES, (), counts.recording_bytes
    yield catalogue.RECORDING_LIMIT, (), counts.recording_limit_bytes
    yield catalogue.WINDOWS_RECORDED, (), counts.windows_recorded
    yield from _by_reason(catalogue.WINDOWS_DROPPED, counts.windows_dropped, _RECORDING_DROPS)


def clean(value: str) -> str:
    """Return ``value`` as text that UTF-8 can hold; a lone surrogate would end the whole scrape."""
    return value.encode("utf-8", "replace").decode()


def statistics_rows(counts: StatisticsCounts) -> Iterator[Row]:
    """Yield how the statistics are kept."""
    yield catalogue.STATISTICS_KERNELS, (clean(counts.kernels),), 1
    yield catalogue.STATISTICS_KERNELS_FAILED, (), float(counts.kernels_failed)
    yield catalogue.STATISTICS_MEMORY, (), counts.memory_bytes
    yield catalogue.STATISTICS_MEMORY_LIMIT, (), counts.memory_limit_bytes
    yield catalogue.EXPECTED_FALSE_ALARMS, (), counts.expected_false_alarms


def _by_reason(family: Family, counts: Mapping[str, int], known: tuple[str, ...]) -> Iterator[Row]:
    merged = Counter(dict.fromkeys(known, 0))
    for reason, count in sorted(counts.items()):
        name = clean(reason)
        merged[name if name in merged or len(merged) < _REASON_LIMIT else "other"] += count
    for name, count in merged.items():
        yield family, (name,), count
