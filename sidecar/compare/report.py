"""A comparison in values: what every layer and every pictured unit came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sidecar
from sidecar.compare.gate import FATES, Rule
from sidecar.errors import CorruptState
from sidecar.features import FeatureKey
from sidecar.jobs import parse_manifest

SCHEMA = 1
"""Of ``report.json``; raised when a name in it is taken away or changes its meaning."""

_NUMBERS = (
    "correlation",
    "best",
    "best_correlation",
    "median_shift",
    "spread_ratio",
)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One picture of a comparison with its manifest, as they lie in the store.

    Attributes:
        content_key: sha256 of the request.
        picture_digest: sha256 of the PNG.
        picture: The PNG.
        manifest_digest: sha256 of the manifest.
        manifest: Its bytes.
    """

    content_key: str
    picture_digest: str
    picture: bytes
    manifest_digest: str
    manifest: bytes


@dataclass(frozen=True, slots=True)
class Named:
    """A model or dataset by its name, and what it was.

    Attributes:
        name: As configured.
        digest: sha256 of weights, ONNX file, or images.
        images: How many there are; 0: it is a model.
    """

    name: str
    digest: str
    images: int = 0


@dataclass(frozen=True, slots=True)
class LayerFate:
    """What became of all units of a layer.

    Attributes:
        layer: Its name and kind, ``layer/kind[;view[;scope]]``.
        other: Name of the other model's layer.
        units: How many it has.
        counts: Units by fate; ``new`` counts units of the other model's layer.
        listed: The first units by fate, of ``moved``, ``lost`` and ``new``.
        median_correlation: Of each unit with the unit of the same index; None where there is none.
        median_best_correlation: Of each unit with the one most like it.
        limit: Correlation above which units are related.
    """

    layer: str
    other: str
    units: int
    counts: Mapping[str, int]
    listed: Mapping[str, Sequence[int]]
    median_correlation: float | None
    median_best_correlation: float | None
    limit: float


@dataclass(frozen=True, slots=True)
class FeatureFate:
    """What became of a pictured unit.

    Attributes:
        feature: Text form, with the digest of the weights as revision.
        layer: As in ``LayerFate``.
        unit: Its index.
        other_layer: Name of the other model's layer.
        other_unit: The unit there that it was compared with.
        fate: ``same``, ``moved`` or ``lost``.
        reason: Why, with numbers.
        numbers: What was measured on the dataset, by name.
        portraits: What was measured on the portraits, or why there is none.
        content_key: sha256 of the request.
        picture: sha256 of the PNG.
        manifest: sha256 of the manifest.
    """

    feature: str
    layer: str
    unit: int
    other_layer: str
    other_unit: int
    fate: str
    reason: str
    numbers: Mapping[str, float | None]
    portraits: Mapping[str, float | str | None]
    content_key: str
    picture: str
    manifest: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule of the gate that a layer breaks, and how."""

    rule: str
    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of one comparison.

    Attributes:
        model: The model whose units are looked for.
        other: The model in which they are.
        dataset: On what.
        recipe: Every value of the recipe.
        layers: Layers in the order of the request.
        features: Pictured units likewise.
        rules: The gate, as text; empty: none was asked for.
        broken: What breaks it.
        made_with: Versions of everything that computed.
        device: On what it was computed.
        created: When, ISO 8601, UTC.
        pictures: The PNGs by their sha256.
    """

    model: Named
    other: Named
    dataset: Named
    recipe: Mapping[str, Any]
    layers: tuple[LayerFate, ...]
    features: tuple[FeatureFate, ...]
    rules: tuple[str, ...]
    broken: tuple[Broken, ...]
    made_with: Mapping[str, str | None]
    device: str
    created: str
    pictures: Mapping[str, bytes] = field(repr=False)


def report_of(answers: Sequence[Answer], rules: Sequence[Rule] = ()) -> Report:
    """Gather the answers of one comparison.

    A portrait can show that a unit has moved whose values on the dataset are the same; its layer's
    counts then say so as well.

    Args:
        answers: At least one; all of one request.
        rules: The gate.

    Raises:
        CorruptState: A manifest cannot be read, or is of no comparison.
    """
    read = [(answer, parse_manifest(answer.manifest)) for answer in answers]
    try:
        features = tuple(_feature(answer, facts) for answer, facts in read)
        layers = _layers(features, [facts["findings"] for _, facts in read])
        facts = read[0][1]
        findings, code = facts["findings"], facts["code"]
        other, dataset = findings["other"], findings["dataset"]
        return Report(
            model=Named(facts["model"]["name"], facts["model"]["digest"]),
            other=Named(other["model"], other["digest"]),
            dataset=Named(dataset["name"], dataset["digest"], dataset["images"]),
            recipe=facts["recipe"],
            layers=layers,
            features=features,
            rules=tuple(map(str, rules)),
            broken=tuple(
                Broken(str(rule), layer.layer, reason)
                for rule in rules
                for layer in layers
                if (reason := rule.broken(layer.counts, layer.units))
            ),
            made_with=dict(code),
            device=f"{facts['device']['type']} {facts['device']['name']}",
            created=max(facts["started"] for _, facts in read),
            pictures={answer.picture_digest: answer.picture for answer in answers},
        )
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptState(f"a manifest is of no comparison: {error!r} is missing") from error


def _feature(answer: Answer, facts: Mapping[str, Any]) -> FeatureFate:
    findings = facts["findings"]
    key = FeatureKey.parse(facts["feature"])
    head, _, tail = str(key).partition("/")
    layer = str(key.layer).partition("/")[2]
    return FeatureFate(
        feature=f"{head.partition('@')[0]}@{facts['model']['digest']}/{tail}",
        layer=layer,
        unit=key.index,
        other_layer=findings["other"]["layer"],
        other_unit=findings["other"]["unit"],
        fate=findings["fate"],
        reason=findings["reason"],
        numbers={name: findings[name] for name in _NUMBERS},
        portraits=findings["portraits"],
        content_key=answer.content_key,
        picture=answer.picture_digest,
        manifest=answer.manifest_digest,
    )


def _layers(
    features: Sequence[FeatureFate], findings: Sequence[Mapping[str, Any]]
) -> tuple[LayerFate, ...]:
    counts: dict[str, dict[str, int]] = {}
    found: dict[str, tuple[FeatureFate, Mapping[str, Any]]] = {}
    for feature, said in zip(features, findings, strict=True):
        summary = said["layer"]
        mine = counts.setdefault(feature.layer, {fate: summary["counts"][fate] for fate in FATES})
        mine[said["fate_on_images"]] -= 1
        mine[feature.fate] += 1
        found.setdefault(feature.layer, (feature, summary))
    return tuple(
        LayerFate(
            layer=name,
            other=feature.other_layer,
            units=summary["units"],
            counts=counts[name],
            listed=summary["listed"],
            median_correlation=summary["median_correlation"],
            median_best_correlation=summary["median_best_correlation"],
            limit=summary["limit"],
        )
        for name, (feature, summary) in found.items()
    )


def as_json(report: Report) -> str:
    """Return a report as JSON, without the pictures themselves."""
    said = {name: value for name, value in _plain(report).items() if name != "pictures"}
    passed = not report.broken if report.rules else None
    document = {"schema": SCHEMA, "sidecar": sidecar.__version__, "passed": passed, **said}
    return json.dumps(document, indent=2) + "\n"


def _plain(report: Report) -> dict[str, Any]:
    return asdict(report)
