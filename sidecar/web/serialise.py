"""Values as JSON: stable names, seconds since 1970, null where a number is not known."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from sidecar.audits import AuditStatus, Night
from sidecar.detect import LeftOut
from sidecar.features import LayerKey
from sidecar.jobs import Job, MadePicture, Quarantined, Verification
from sidecar.monitor import (
    Anomaly,
    BaselineVersion,
    EvidenceRecord,
    FeatureDistribution,
    FeatureStatus,
    LayerStatus,
    UnmatchedFlag,
    alerts_of,
)


class Json(Response):
    """A JSON answer that is never cached, because it says how things are now."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, **headers: str) -> None:
        """Encode ``content``; NaN and infinities must be gone by now."""
        super().__init__(encode(content), status_code, {"cache-control": "no-store", **headers})


def encode(content: Any) -> str:
    """Return compact JSON; raises ValueError for NaN, which no JSON reader need accept."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def known(value: float) -> float | None:
    """Return ``value``, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def layer_names(key: LayerKey) -> dict[str, str]:
    """Return the parts of a layer key."""
    return {
        "model": key.model,
        "revision": key.revision,
        "layer": key.layer,
        "kind": str(key.kind),
        "view": str(key.view),
        "scope": str(key.scope),
    }


def feature(status: FeatureStatus, base: str, *, shifted: bool) -> dict[str, Any]:
    """Return a feature's state.

    Args:
        status: How it stands.
        base: What links start with.
        shifted: Whether its layer moves as a whole.
    """
    page = f"{base}/f/{status.key.path}"
    return {
        "key": str(status.key),
        **layer_names(status.key.layer),
        "index": status.key.index,
        "flag": asdict(status.flag) if status.flag else None,
        "state": str(status.state),
        "since": status.since or None,
        "requests": status.requests,
        "exceedance_ratio": known(status.exceedance_ratio),
        "level_ratio": known(status.level_ratio),
        "tolerated_ratio": known(status.tolerated_ratio),
        "spike_evidence_log10": known(status.evidence_log10),
        "spike_threshold_log10": known(status.evidence_threshold_log10),
        "direction": status.direction,
        "slice": status.slice,
        "conditions": list(status.conditions),
        "drifting": status.drifting,
        "drift_js": known(status.drift_js),
        "drift_js_yesterday": known(status.drift_js_yesterday),
        "drift_wasserstein": known(status.drift_wasserstein),
        "baseline_ratio": known(status.baseline_ratio),
        "threshold": known(status.threshold),
        "low_threshold": known(status.low_threshold),
        "last": known(status.last),
        "least": known(status.least),
        "sampled_requests": status.sampled_requests,
        "sampled_exceedances": status.sampled_exceedances,
        "spikes": status.spikes,
        "layer_shifted": shifted,
        "alerts": list(alerts_of(status, shifted=shifted)),
        "anomaly": anomaly(status.anomaly, base) if status.anomaly else None,
        "explanation": status.explanation,
        "caution": status.caution or None,
        "evidence_id": status.evidence_id or None,
        "page": page,
        "evidence": f"{page}/evidence",
        "portrait": f"{page}/portrait.png",
    }


def anomaly(found: Anomaly, base: str) -> dict[str, Any]:
    """Return what the screen finds of an unflagged feature."""
    return {
        "key": str(found.key),
        "since": found.since,
        "seen": found.seen,
        "windows": found.windows,
        "requests": found.requests,
        "exceedances": found.exceedances,
        "exceedance_ratio": found.exceedance_ratio,
        "baseline_ratio": found.baseline_ratio,
        "factor": found.factor,
        "p_log10": found.p_log10,
        "q_log10": found.q_log10,
        "page": f"{base}/f/{found.key.path}",
    }


def unmatched(found: UnmatchedFlag) -> dict[str, Any]:
    """Return why a flag fits no feature."""
    return {
        "flag": found.flag,
        "field": found.field,
        "value": found.value,
        "nearest": list(found.nearest),
        "explanation": found.words,
    }


def evidence(record: EvidenceRecord) -> dict[str, Any]:
    """Return why a feature fired; a row's value is null where it is infinite."""
    said = record.attribution
    return {
        "id": record.id,
        "at": record.at,
        "reason": record.reason,
        "numbers": {name: known(value) for name, value in record.numbers.items()},
        "above": known(record.above),
        "below": known(record.below),
        "since": record.since or None,
        "windows": record.windows,
        "requests": record.requests,
        "exceedances": record.exceedances,
        "uncounted": record.uncounted,
        "attribution": {
            "words": said.words,
            "cause": said.cause or None,
            "share": said.share if said.cause else None,
            "slices": [_left_out(one) for one in said.ranked],
        },
        "exposure": record.exposure.name.lower(),
        "rows": [
            {
                "value": known(row.value),
                "infinite": math.isinf(row.value),
                "at": row.at,
                "request_id": row.request_id or None,
                "position": row.position,
                "traffic": row.traffic,
            }
            for row in record.rows
        ],
    }


def _left_out(one: LeftOut) -> dict[str, Any]:
    return {
        "key": one.left.key,
        "value": one.left.value,
        "requests": one.left.requests,
        "exceedances": one.left.exceedances,
        "exceedance_ratio": known(one.left.rate),
        "exceedance_ratio_without": known(one.rate),
        "share": one.share,
        "gone": one.gone,
    }


def layer(status: LayerStatus, base: str) -> dict[str, Any]:
    """Return how a layer stands; links in it start with ``base``."""
    return {
        **layer_names(status.key),
        "width": status.width,
        "capture": asdict(status.capture),
        "rows": status.rows,
        "requests": status.requests,
        "nonfinite": status.nonfinite,
        "baseline_requests": status.baseline_requests,
        "baseline_frozen": status.baseline_frozen,
        "last_seen": status.last_seen or None,
        "baseline": status.baseline_id or None,
        "baseline_windows": status.baseline_windows,
        "baseline_min_requests": status.baseline_min_requests,
        "baseline_min_seconds": status.baseline_min_seconds,
        "screened_features": status.screened_features,
        "significant_features": status.significant_features,
        "shifted": status.shifted,
        "detail": status.detail,
        "memory_bytes": status.memory_bytes,
        "anomalies": [anomaly(one, base) for one in status.anomalies],
    }


def baseline(version: BaselineVersion) -> dict[str, Any]:
    """Return one stored version of a layer's baseline."""
    stored, facts = version.stored, version.stored.facts
    return {
        **layer_names(facts.layer),
        "digest": stored.digest,
        "in_force": version.in_force,
        "origin": stored.origin,
        "requests": facts.requests,
        "windows": facts.windows,
        "started": facts.started or None,
        "frozen": facts.frozen or None,
        "stored": stored.stored or None,
        "hours": facts.hours,
        "cautions": list(version.cautions),
    }


def distribution(value: FeatureDistribution) -> dict[str, Any]:
    """Return a distribution with its occupied bins; ``edges`` has one entry more than ``counts``."""
    return {
        "key": str(value.key),
        "window": str(value.window),
        "count": value.count,
        "mean": known(value.mean),
        "variance": known(value.variance),
        "minimum": known(value.minimum),
        "maximum": known(value.maximum),
        "zero_ratio": known(value.zero_ratio),
        "nonfinite": value.nonfinite,
        "edges": [known(edge) for edge in value.edges.tolist()],
        "counts": value.counts.tolist(),
        "quantiles": [
            {"level": level, "value": known(quantile)}
            for level, quantile in zip(value.levels.tolist(), value.quantiles.tolist(), strict=True)
        ],
        "relative_error": known(value.relative_error),
    }


def job(value: Job, base: str) -> dict[str, Any]:
    """Return a job as it stands; links in it start with ``base``."""
    here = f"{base}/api/v1/jobs/{quote(value.id, safe='')}"
    preview = f"{here}/preview.png?v={value.preview_version}" if value.preview_version else None
    return {
        "id": value.id,
        "state": str(value.state),
        "features": [str(target.feature) for target in value.request.targets],
        "positions": [target.position for target in value.request.targets],
        "recipe": value.request.recipe.values(),
        "origin": value.request.origin,
        "priority": str(value.request.priority),
        "deadline": value.request.deadline or None,
        "idempotency_key": value.request.idempotency_key,
        "step": value.step,
        "steps": value.steps,
        "message": value.message,
        "error_code": value.error_code or None,
        "error": value.error or None,
        "created": value.created or None,
        "started": value.started or None,
        "ended": value.ended or None,
        "attempts": value.attempts,
        "from_cache": value.from_cache,
        "portraits": [
            {
                **asdict(portrait),
                "reasons": portrait.reasons.splitlines(),
                "picture": f"{base}/api/v1/artifacts/{portrait.picture_digest}",
                "manifest": f"{base}/api/v1/artifacts/{portrait.manifest_digest}",
            }
            for portrait in value.portraits
        ],
        "preview": preview,
        "page": f"{base}/jobs/{quote(value.id, safe='')}",
    }


def quarantined(found: Quarantined, base: str) -> dict[str, Any]:
    """Return what is not tried again before a time."""
    return {
        "content_key": found.content_key,
        "job": found.job_id,
        "feature": found.feature or None,
        "reason": found.reason,
        "until": found.until,
        "page": f"{base}/jobs/{quote(found.job_id, safe='')}",
    }


def made(found: MadePicture, base: str) -> dict[str, Any]:
    """Return a picture in the store; links in it start with ``base``."""
    return {
        "manifest_digest": found.manifest_digest,
        "picture_digest": found.picture_digest,
        "content_key": found.content_key,
        "feature": found.feature,
        "model": found.model,
        "revision": found.revision,
        "method": found.method,
        "verdict": found.verdict or None,
        "job": found.job_id or None,
        "origin": found.origin or None,
        "reproduces": found.reproduces or None,
        "created": found.created,
        "picture": f"{base}/api/v1/artifacts/{found.picture_digest}",
        "manifest": f"{base}/api/v1/artifacts/{found.manifest_digest}",
        "page": f"{base}/artifacts/{found.manifest_digest}",
    }


def audit(status: AuditStatus, base: str) -> dict[str, Any]:
    """Return how an audit stands, with its newest judged night and the one that runs."""
    return {
        "name": status.name,
        "model": status.model,
        "against": status.against or None,
        "state": str(status.state),
        "overdue": status.overdue,
        "next_at": status.next_at,
        "last": night(status.last, base) if status.last else None,
        "running": night(status.running, base) if status.running else None,
        "page": f"{base}/audits/{status.name}",
    }


def night(found: Night, base: str) -> dict[str, Any]:
    """Return a night with its checks; a value or limit is null where it is no number."""
    report = f"{base}{found.report}" if found.report else None
    return {
        "audit": found.audit,
        "id": found.id,
        "state": str(found.state),
        "started_at": found.started_at,
        "ended_at": found.ended_at,
        "asked_by": found.actor,
        "checks": [
            {
                "name": one.name,
                "outcome": str(one.outcome),
                "value": None if one.value is None else known(one.value),
                "limit": None if one.limit is None else known(one.limit),
                "reason": one.reason,
            }
            for one in found.checks
        ],
        "counts": dict(found.counts) or None,
        "features_pictured": found.features,
        "report": report,
        "report_json": f"{report.removesuffix('.html')}.json" if report else None,
    }


def verification(found: Verification) -> dict[str, Any]:
    """Return what came of checking a picture; ``ok`` of a finding is null where it was not told."""
    return {
        "manifest_digest": found.digest,
        "picture_digest": found.picture,
        "feature": found.feature,
        "ok": found.ok,
        "findings": [
            {"check": one.check, "ok": one.ok, "detail": one.detail} for one in found.findings
        ],
    }


def error(code: str, message: str, **more: Any) -> Mapping[str, Any]:
    """Return the body of every answer that is not a success."""
    return {"code": code, "message": message, **more}
