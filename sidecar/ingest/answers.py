"""Turns the monitor's and the queue's values into protobuf, and errors into gRPC statuses."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, ParamSpec, TypeVar

import grpc
import structlog

from sidecar.detect import State
from sidecar.errors import SidecarError
from sidecar.features import FeatureKind, Scope, View
from sidecar.jobs import Fate, Job, JobState, MadePicture, Portrait, Priority, Quarantined
from sidecar.monitor import (
    Anomaly,
    BaselineVersion,
    EvidenceRecord,
    FeatureDistribution,
    FeatureStatus,
    LayerStatus,
    UnmatchedFlag,
    Window,
    alerts_of,
)
from sidecar.store import Reference
from sidecar.wire.v1 import features_pb2, ingest_pb2, jobs_pb2

P = ParamSpec("P")
R = TypeVar("R")

STATES = {
    State.UNKNOWN: features_pb2.FEATURE_STATE_UNKNOWN,
    State.NORMAL: features_pb2.FEATURE_STATE_NORMAL,
    State.PENDING: features_pb2.FEATURE_STATE_PENDING,
    State.FIRING: features_pb2.FEATURE_STATE_FIRING,
    State.RESOLVED: features_pb2.FEATURE_STATE_RESOLVED,
}
KINDS = {kind: ingest_pb2.FeatureKind.Value(f"FEATURE_KIND_{kind.name}") for kind in FeatureKind}
VIEWS = {view: ingest_pb2.View.Value(f"VIEW_{view.name}") for view in View}
SCOPES = {scope: ingest_pb2.Scope.Value(f"SCOPE_{scope.name}") for scope in Scope}
JOB_STATES = {state: jobs_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
PRIORITIES = {
    priority: jobs_pb2.JobPriority.Value(f"JOB_PRIORITY_{priority.name}") for priority in Priority
}
WINDOWS = {
    features_pb2.WINDOW_UNSPECIFIED: Window.CURRENT,
    features_pb2.WINDOW_CURRENT: Window.CURRENT,
    features_pb2.WINDOW_BASELINE: Window.BASELINE,
    features_pb2.WINDOW_HISTORY: Window.HISTORY,
}


async def answer(
    context: "grpc.aio.ServicerContext[Any, Any]",
    call: Callable[P, R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Run a blocking call off the event loop; end the RPC with the right status if it fails."""
    return await settled(context, asyncio.to_thread(call, *args, **kwargs))


async def settled(context: "grpc.aio.ServicerContext[Any, Any]", outcome: Awaitable[R]) -> R:
    """Wait for a call that runs elsewhere; end the RPC with the right status if it fails."""
    try:
        return await outcome
    except SidecarError as error:
        await abort(context, error)
    except Exception as error:  # noqa: BLE001 - after start-up nothing may end the daemon
        structlog.get_logger().exception("rpc_failed")
        await abort(context, SidecarError(f"unexpected {type(error).__name__}; see the log"))


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: SidecarError) -> NoReturn:
    """End the RPC with the error's status, its text, and its code as trailing metadata."""
    context.set_trailing_metadata((("sidecar-code", error.code),))
    await context.abort(grpc.StatusCode[error.grpc_status], str(error))
    raise AssertionError("unreachable: abort raises")


def feature(
    status: FeatureStatus,
    portrait: Portrait | None,
    *,
    console_url: str,
    runbooks_url: str,
    shifted: bool,
) -> features_pb2.Feature:
    """Return a feature's status as its message.

    Args:
        status: How it stands.
        portrait: The newest; None: there is none, or it was not looked up.
        console_url: What links begin with.
        runbooks_url: What those of runbooks begin with.
        shifted: Whether its layer moves as a whole.
    """
    key, flag = status.key, status.flag
    layer = key.layer
    return features_pb2.Feature(
        key=str(key),
        model=layer.model,
        revision=layer.revision,
        layer=layer.layer,
        kind=KINDS[layer.kind],
        index=key.index,
        view=VIEWS[layer.view],
        scope=SCOPES[layer.scope],
        flagged=flag is not None,
        name=flag.name if flag else "",
        severity=flag.severity if flag else "",
        owner=flag.owner if flag else "",
        state=STATES[status.state],
        state_since_unix_seconds=status.since,
        exceedance_ratio=_number(status.exceedance_ratio),
        baseline_exceedance_ratio=_number(status.baseline_ratio),
        threshold=status.threshold,
        requests=status.requests,
        portrait_digest=portrait.picture_digest if portrait else "",
        portrait_verdict=portrait.verdict if portrait else "",
        explanation=status.explanation,
        caution=status.caution,
        conditions=status.conditions,
        drifting=status.drifting,
        drift_js=_known(status.drift_js),
        drift_js_yesterday=_known(status.drift_js_yesterday),
        drift_wasserstein=_known(status.drift_wasserstein),
        level_ratio=_known(status.level_ratio),
        tolerated_ratio=_known(status.tolerated_ratio),
        spike_evidence_log10=_known(status.evidence_log10),
        spike_threshold_log10=_known(status.evidence_threshold_log10),
        direction=status.direction,
        slice=status.slice,
        detectors=map(str, flag.detectors) if flag else (),
        factor=flag.factor if flag else None,
        low_threshold=_known(status.low_threshold),
        last=_known(status.last),
        least=_known(status.least),
        evidence_id=status.evidence_id,
        sampled_requests=status.sampled_requests,
        sampled_exceedances=status.sampled_exceedances,
        spikes=status.spikes,
        page=f"{console_url}/f/{key.path}",
        anomaly=anomaly(status.anomaly) if status.anomaly else None,
        layer_shifted=shifted,
        alerts=alerts_of(status, shifted=shifted),
        runbooks=runbooks_url,
    )


def anomaly(found: Anomaly) -> features_pb2.Anomaly:
    """Return what the screen finds of an unflagged feature as its message."""
    return features_pb2.Anomaly(
        key=str(found.key),
        since_unix_seconds=found.since,
        seen_unix_seconds=found.seen,
        windows=found.windows,
        requests=found.requests,
        exceedances=found.exceedances,
        baseline_exceedance_ratio=found.baseline_ratio,
        factor=found.factor,
        p_log10=found.p_log10,
        q_log10=found.q_log10,
    )


def unmatched(found: UnmatchedFlag) -> features_pb2.UnmatchedFlag:
    """Return why a flag fits no feature as its message."""
    return features_pb2.UnmatchedFlag(
        flag=found.flag,
        field=found.field,
        value=found.value,
        nearest=found.nearest,
        explanation=found.words,
    )


def layer(status: LayerStatus) -> features_pb2.Layer:
    """Return how a layer stands as its message."""
    key, capture = status.key, status.capture
    return features_pb2.Layer(
        key=str(key),
        model=key.model,
        revision=key.revision,
        layer=key.layer,
        kind=KINDS[key.kind],
        view=VIEWS[key.view],
        scope=SCOPES[key.scope],
        width=status.width,
        capture=ingest_pb2.Capture(
            server=capture.server,
            dtype=capture.dtype,
            compiled=capture.compiled,
            tap=capture.tap,
        ),
        rows=status.rows,
        requests=status.requests,
        nonfinite=status.nonfinite,
        last_seen_unix_seconds=status.last_seen,
        baseline_frozen=status.baseline_frozen,
        baseline_requests=status.baseline_requests,
        baseline_windows=status.baseline_windows,
        baseline=status.baseline_id,
        screened_features=status.screened_features,
        significant_features=status.significant_features,
        shifted=status.shifted,
        detail=str(status.detail),
        memory_bytes=status.memory_bytes,
        anomalies=map(anomaly, status.anomalies),
    )


def distribution(found: FeatureDistribution) -> features_pb2.GetDistributionResponse:
    """Return a distribution as its message."""
    return features_pb2.GetDistributionResponse(
        count=found.count,
        mean=found.mean,
        variance=found.variance,
        min=found.minimum,
        max=found.maximum,
        zero_ratio=found.zero_ratio,
        nonfinite=found.nonfinite,
        edges=found.edges.tolist(),
        counts=found.counts.tolist(),
        quantile_levels=found.levels.tolist(),
        quantiles=found.quantiles.tolist(),
        relative_error=found.relative_error,
    )


def baseline(found: BaselineVersion) -> features_pb2.Baseline:
    """Return a version of a baseline as its message."""
    stored, facts = found.stored, found.stored.facts
    return features_pb2.Baseline(
        digest=stored.digest,
        layer=str(facts.layer),
        requests=facts.requests,
        windows=facts.windows,
        started_unix_seconds=facts.started,
        frozen_unix_seconds=facts.frozen,
        stored_unix_seconds=stored.stored,
        origin=stored.origin,
        in_force=found.in_force,
        cautions=found.cautions,
    )


def evidence(found: EvidenceRecord) -> features_pb2.Evidence:
    """Return an evidence record as its message."""
    said = found.attribution
    return features_pb2.Evidence(
        id=found.id,
        key=str(found.feature),
        at_unix_seconds=found.at,
        reason=found.reason,
        numbers=found.numbers,
        above=found.above,
        below=found.below,
        since_unix_seconds=found.since,
        windows=found.windows,
        requests=found.requests,
        exceedances=found.exceedances,
        uncounted=found.uncounted,
        attribution=said.words,
        cause=said.cause,
        share=said.share,
        slices=[
            features_pb2.EvidenceSlice(
                key=one.left.key,
                value=one.left.value,
                requests=one.left.requests,
                exceedances=one.left.exceedances,
                rate_without=one.rate,
                share=one.share,
                gone=one.gone,
            )
            for one in said.ranked
        ],
        rows=[
            features_pb2.EvidenceRow(
                value=row.value,
                at_unix_seconds=row.at,
                request_id=row.request_id,
                position=row.position,
                traffic=row.traffic,
            )
            for row in found.rows
        ],
        exposure=found.exposure.name.lower(),
    )


def job(found: Job) -> jobs_pb2.Job:
    """Return a job as its message."""
    return jobs_pb2.Job(
        id=found.id,
        state=JOB_STATES[found.state],
        features=[str(target.feature) for target in found.request.targets],
        recipe_json=json.dumps(asdict(found.request.recipe)),
        step=found.step,
        steps=found.steps,
        message=found.message,
        error_code=found.error_code,
        error=found.error,
        created_unix_seconds=found.created,
        started_unix_seconds=found.started,
        ended_unix_seconds=found.ended,
        attempts=found.attempts,
        artifacts=[
            jobs_pb2.JobArtifact(
                feature=portrait.feature,
                content_key=portrait.content_key,
                picture_digest=portrait.picture_digest,
                manifest_digest=portrait.manifest_digest,
                verdict=portrait.verdict,
                reasons=portrait.reasons.splitlines(),
            )
            for portrait in found.portraits
        ],
        from_cache=found.from_cache,
        origin=found.request.origin,
        idempotency_key=found.request.idempotency_key,
        priority=PRIORITIES[found.request.priority],
        deadline_unix_seconds=found.request.deadline,
    )


def _known(value: float) -> float | None:
    """Return a number, or None where it is not known: the field is then absent."""
    return None if math.isnan(value) else value


def stored(found: MadePicture, references: Sequence[Reference] = ()) -> jobs_pb2.StoredArtifact:
    """Return a made picture as its message."""
    return jobs_pb2.StoredArtifact(
        picture_digest=found.picture_digest,
        manifest_digest=found.manifest_digest,
        content_key=found.content_key,
        feature=found.feature,
        method=found.method,
        job_id=found.job_id,
        origin=found.origin,
        reproduces=found.reproduces,
        created_unix_seconds=found.created,
        verdict=found.verdict,
        references=sorted({f"{one.kind} {one.owner} {one.note}".strip() for one in references}),
    )


def quarantined(found: Quarantined) -> jobs_pb2.QuarantinedRequest:
    """Return what is not tried again as its message."""
    return jobs_pb2.QuarantinedRequest(
        content_key=found.content_key,
        job_id=found.job_id,
        feature=found.feature,
        reason=found.reason,
        until_unix_seconds=found.until,
    )


def fate(found: Fate) -> jobs_pb2.ArtifactFate:
    """Return what becomes of an artifact as its message."""
    return jobs_pb2.ArtifactFate(
        digest=found.digest,
        size_bytes=found.size,
        modified_unix_seconds=found.modified,
        reason=found.reason,
        why=found.why,
    )


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value
