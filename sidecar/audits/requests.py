"""The jobs of a night: what is asked of the queue, derived from the plan alone.

A daemon that was killed asks again for the same under the same idempotency keys, and is given the jobs of then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from sidecar.audits.facts import Plan
from sidecar.audits.watching import audited_layers, comparable, stand_ins
from sidecar.config import AuditConfig, ModelConfig, SidecarConfig
from sidecar.errors import (
    NonFiniteActivation,
    SidecarError,
    SilentFeature,
    UnknownFeature,
    UnknownLayer,
    UnsupportedTarget,
)
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobRequest
from sidecar.monitor import Operations
from sidecar.recipes import Comparison, Maximisation, Recipe, Search, Side, Target, recipe_like

_Item = TypeVar("_Item")

COMPARED_A_JOB = 32
"""Pictured units of one comparison: each needs portraits on both sides, and one pass over the images serves
all of a job."""

PORTRAITS_A_JOB = 8
"""Few, so that a night that makes way for others loses little, and none runs into jobs.time_limit_seconds."""

_SOURCE_DIGITS = 24
"""Of a source's sha256 in a name that people see: 96 bits tell any number of files apart."""

_OF_ONE = frozenset(
    {
        SilentFeature.code,
        NonFiniteActivation.code,
        UnsupportedTarget.code,
        UnknownLayer.code,
        UnknownFeature.code,
    }
)
"""What one feature can end a job of several with; its fellows are then asked for alone."""


def configured_digest(audit: AuditConfig, model: ModelConfig) -> str:
    """Return the digest of the weights where the configuration tells it; else nothing.

    Of an ONNX model ``digest`` is that of its file.
    """
    return audit.revision or (model.digest if model.onnx is None else "")


def unserved_revision(model: ModelConfig, source: str, night: str) -> str:
    """Return a name for whatever the configuration loads, where nobody knows its digest.

    Answers are kept under it, so it changes with the model's files. Of a factory that loads weights of its own
    no file is known: each night asks anew.

    Args:
        model: As configured.
        source: sha256 of what it is made from.
        night: Id of the night.
    """
    own_weights = model.onnx is None and model.weights is None
    name = f"source-{source[:_SOURCE_DIGITS]}"
    return f"{name}-{night}" if own_weights else name


def looking(
    audit: AuditConfig, config: SidecarConfig, operations: Operations, plan: Plan
) -> Iterator[tuple[str, JobRequest]]:
    """Yield the jobs that look at the chosen features, by their roles."""
    chosen = plan.chosen or ()
    owner = f"{audit.model_name}@{plan.revision}"
    if audit.against is not None and audit.dataset is not None:
        names = [one.feature for one in chosen if comparable(one.feature)]
        names += stand_ins(audited_layers(audit, config), names)
        recipe = Comparison(other=audit.against, dataset=audit.dataset, steps=audit.compare_steps)
        for number, part in enumerate(_parts(names, COMPARED_A_JOB)):
            targets = tuple(Target(FeatureKey.parse(f"{owner}/{name}")) for name in part)
            yield f"compare-{number}", JobRequest(targets, recipe, origin="audit")
    if audit.portraits:
        model = config.model(audit.model_name)
        usual = portrait_recipe(operations.default_recipe(), model)
        sided = [(one.feature, Side.NEGATIVE if one.negative else Side.POSITIVE) for one in chosen]
        for number, few in enumerate(_parts(sided, PORTRAITS_A_JOB)):
            targets = tuple(
                Target(FeatureKey.parse(f"{owner}/{name}"), side=side) for name, side in few
            )
            yield f"portraits-{number}", JobRequest(targets, usual, origin="audit")


def repeating(operations: Operations, again: Mapping[str, str]) -> Iterator[tuple[str, JobRequest]]:
    """Yield the jobs that make portraits of earlier nights again; one that cannot be asked for is left out."""
    for number, manifest in enumerate(again.values()):
        try:
            request = operations.provenance.reproduction(manifest)
        except SidecarError:
            continue  # it is gone, or cannot be read: the check says that it was not made
        yield f"again-{number}", replace(request, origin="audit")


def apart(
    requests: Mapping[str, JobRequest], failed: Mapping[str, str]
) -> Iterator[tuple[str, JobRequest]]:
    """Yield smaller jobs in place of those that one of their features ended.

    Each portrait is asked for alone, and each layer is compared alone: a pass over the images is for all units of
    a layer, so that more would be waste.

    Args:
        requests: The night's jobs by role.
        failed: Codes of what ended those that failed, by role.
    """
    for role, code in failed.items():
        request = requests.get(role)
        if request is None or code not in _OF_ONE:
            continue
        parts: dict[FeatureKey | LayerKey, list[Target]] = {}
        for target in request.targets:
            alone = role.startswith("portraits-")
            parts.setdefault(target.feature if alone else target.feature.layer, []).append(target)
        for number, targets in enumerate(parts.values() if len(parts) > 1 else ()):
            yield f"{role}-{number}", replace(request, targets=tuple(targets))


def portrait_recipe(usual: Recipe, model: ModelConfig | None) -> Recipe:
    """Return the recipe of a night's portraits: the default one, as far as nights can be compared.

    The prior of typical ranges is left out: it follows the baseline, and with it every picture would change
    as soon as a baseline is learned anew.
    """
    if model is not None and not _has_gradients(model) and isinstance(usual, Maximisation):
        return Search()
    return recipe_like(usual, {"typical_range": 0.0}) if "typical" in usual.inputs else usual


def _has_gradients(model: ModelConfig) -> bool:
    return model.onnx is None or model.gradients


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
