"""What the daemon knows of an audited model: its flags, what is the matter with them, what is served."""

import math
from collections.abc import Iterator, Mapping, Sequence

from sidecar.audits.checks import Served
from sidecar.audits.priority import Candidate
from sidecar.config import AuditConfig, SidecarConfig
from sidecar.errors import SidecarError
from sidecar.features import FeatureKey, FeatureKind, FeatureSelector, is_digest
from sidecar.monitor import FeatureStatus, LayerStatus, Operations
from sidecar.recipes import PICTURE_KINDS, SIDED_KINDS

UNITS = (0, 1, 2, 3)
"""Units that stand for a layer of which nothing is flagged, as in ``sidecar compare``."""

COMPARED = frozenset({FeatureKind.CHANNEL, FeatureKind.LOGIT})
"""Kinds of units that can be compared."""

_TOGETHER_SECONDS = 600.0
"""Revisions whose newest samples are no further apart are served side by side; more, and the older one was
replaced."""

_EVENTS = 10_000
"""Audit entries that are looked through for what fired since the last night; more are a flood."""

_ANY = "any"  # stands for a revision where a layer's name alone matters


def rest_of(key: FeatureKey) -> str:
    """Return a feature's text form without model and revision."""
    return str(key).partition("/")[2]


def layer_of(feature: str) -> str:
    """Return the layer's text form of a feature without model and revision."""
    return str(FeatureKey.parse(f"m@{_ANY}/{feature}").layer).partition("/")[2]


def audited_layers(audit: AuditConfig, config: SidecarConfig) -> tuple[str, ...]:
    """Return the layers of an audit, ``LAYER/KIND[;VIEW]``: those it names, or those of its flags."""
    if not audit.layers:
        return tuple(dict.fromkeys(map(layer_of, flagged_features(audit, config))))
    return tuple(dict.fromkeys(map(_layer, audit.layers)))


def flagged_features(audit: AuditConfig, config: SidecarConfig) -> tuple[str, ...]:
    """Return the features of the model that the configuration flags, without model and revision."""
    flags = (FeatureSelector.parse(flag.feature) for flag in config.flags)
    return tuple(dict.fromkeys(_unpinned(one) for one in flags if one.model == audit.model_name))


def _layer(text: str) -> str:
    name, semicolon, view = text.partition(";")
    path, slash, kind = name.rpartition("/")
    if not slash:
        path, kind = name, FeatureKind.CHANNEL.value
    return layer_of(f"{path}/{kind}/0{semicolon}{view}")


def _unpinned(flag: FeatureSelector) -> str:
    return str(flag).partition("/")[2]


def candidates(
    audit: AuditConfig,
    config: SidecarConfig,
    operations: Operations,
    *,
    digest: str,
    since: float,
    pictured: Mapping[str, float],
) -> tuple[Candidate, ...]:
    """Return what a night may picture.

    Args:
        audit: Which audit.
        config: The flags.
        operations: What the daemon knows.
        digest: The revision that is audited; empty: nobody knows it yet.
        since: When the last night began; what fired after it is urgent.
        pictured: When each feature was pictured last, in unix seconds.
    """
    layers = audited_layers(audit, config)
    flags = {
        rest: side
        for rest, side in _flags(audit, config, operations, digest)
        if layer_of(rest) in layers
    }
    fired, strange = _fired(audit, operations, since), _strange(audit, operations)
    named = [rest for rest in {*flags, *strange} if layer_of(rest) in layers and portrayable(rest)]
    covered = {layer_of(rest) for rest in flags}
    fillers = [unit_of(layer, n) for layer in layers if layer not in covered for n in UNITS]
    fillers = [rest for rest in fillers if rest not in named and portrayable(rest)]
    return tuple(
        Candidate(
            rest,
            flagged=rest in flags,
            fired=rest in fired,
            strange=rest in strange,
            pictured_at=pictured.get(rest, 0.0),
            negative=flags.get(rest, False),
        )
        for rest in sorted({*named, *fillers})
    )


def unit_of(layer: str, index: int) -> str:
    """Return a unit of a layer, ``LAYER/KIND[;VIEW]``, as a feature without model and revision."""
    name, semicolon, view = layer.partition(";")
    return f"{name}/{index}{semicolon}{view}"


def stand_ins(layers: Sequence[str], compared: Sequence[str]) -> tuple[str, ...]:
    """Return the first unit of each layer of which nothing is compared, so that its units are counted."""
    there = {layer_of(rest) for rest in compared}
    missing = [unit_of(layer, 0) for layer in layers if layer not in there]
    return tuple(rest for rest in missing if comparable(rest))


def comparable(feature: str) -> bool:
    """Whether a feature's kind can be compared."""
    return FeatureKey.parse(f"m@{_ANY}/{feature}").layer.kind in COMPARED


def portrayable(feature: str) -> bool:
    """Whether a night can make a portrait of a feature's kind.

    Directions are left to people: whether their dictionary is there shows only in the job.
    """
    kind = FeatureKey.parse(f"m@{_ANY}/{feature}").layer.kind
    return kind in PICTURE_KINDS and kind is not FeatureKind.DIRECTION


def _flags(
    audit: AuditConfig, config: SidecarConfig, operations: Operations, digest: str
) -> Iterator[tuple[str, bool]]:
    """Yield the flagged features of the model, and whether their low side is watched."""
    for flag in config.flags:
        selector = FeatureSelector.parse(flag.feature)
        pinned_elsewhere = digest and selector.revision and not digest.startswith(selector.revision)
        if selector.model == audit.model_name and not pinned_elsewhere:
            below = flag.direction == "below" and selector.kind in SIDED_KINDS
            yield _unpinned(selector), below
    for status in operations.watched():  # flags set by hand, of layers that hooks announced
        layer = status.key.layer
        if layer.model == audit.model_name:
            below = status.direction == "below" and layer.kind in SIDED_KINDS
            yield rest_of(status.key), below


def _fired(audit: AuditConfig, operations: Operations, since: float) -> set[str]:
    found = {
        rest_of(s.key) for s in _mine(audit, operations) if s.state.value in ("firing", "pending")
    }
    for event in operations.events(None, _EVENTS):
        if event.at <= since:
            continue
        owner, _, rest = event.subject.partition("/")
        if event.what == "feature_firing" and owner.partition("@")[0] == audit.model_name:
            found.add(rest)
    return found


def _strange(audit: AuditConfig, operations: Operations) -> set[str]:
    drifting = {rest_of(status.key) for status in _mine(audit, operations) if status.drifting}
    layers = (one for one in operations.layers() if one.key.model == audit.model_name)
    return drifting | {rest_of(found.key) for one in layers for found in one.anomalies}


def _mine(audit: AuditConfig, operations: Operations) -> list[FeatureStatus]:
    return [one for one in operations.watched() if one.key.layer.model == audit.model_name]


# -- what is served -------------------------------------------------------------------------------


def served_digest(audit: AuditConfig, operations: Operations, since: float) -> str:
    """Return the digest of the one revision that hooks sample; empty where there is none, or several.

    What they sampled before ``since`` and not after it is served no more, as far as anybody knows.
    """
    found = _fresh(audit, operations, since)
    return next(iter(found)) if len(found) == 1 and all(map(is_digest, found)) else ""


def _fresh(audit: AuditConfig, operations: Operations, since: float = 0.0) -> set[str]:
    """Return the revisions of the model that are sampled now, if any was after ``since``."""
    layers = [
        one for one in operations.layers() if one.key.model == audit.model_name and one.last_seen
    ]
    newest = max((one.last_seen for one in layers), default=0.0)
    if newest < since:
        return set()
    return {one.key.revision for one in layers if one.last_seen >= newest - _TOGETHER_SECONDS}


def served(
    audit: AuditConfig, operations: Operations, since: float, *, settled: bool = True
) -> Served:
    """Return what hooks say of the model.

    Args:
        audit: Which audit.
        operations: What the daemon knows.
        since: A layer without a sample after it is not sampled any more.
        settled: Whether the daemon has run for long enough to say so: hooks had nobody to send to before.
    """
    fresh = _fresh(audit, operations)
    by_key = {one.key: one for one in operations.layers() if one.key.revision in fresh}
    statuses = [one for one in _mine(audit, operations) if one.key.layer.revision in fresh]
    problems = [
        (rest_of(one.key), words)
        for one in statuses
        if (words := _problem(one, by_key.get(one.key.layer), since if settled else 0.0))
    ]
    lost = [text for text in operations.unmatched_flags() if _model_of(text) == audit.model_name]
    problems += [(text, "fits no feature that a hook announced") for text in lost]
    lately = bool(_fresh(audit, operations, since))
    return Served(tuple(sorted(fresh)), len(statuses) + len(lost), tuple(problems), lately)


def _model_of(flag: str) -> str:
    try:
        return FeatureSelector.parse(flag).model
    except SidecarError:
        return ""


def _problem(status: FeatureStatus, layer: LayerStatus | None, since: float) -> str:
    if layer is None or layer.last_seen < since:
        return "is not sampled any more"
    if not layer.baseline_frozen:
        return f"has no baseline yet, {layer.baseline_requests} requests were learned"
    if status.drifting:
        distance = (
            "" if math.isnan(status.drift_js) else f", {status.drift_js:.3f} from its baseline"
        )
        return f"drifts{distance}"
    return ""
