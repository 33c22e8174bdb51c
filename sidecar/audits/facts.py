"""What a night plans and finds, as it is written down: values, and their JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sidecar.audits.priority import Chosen, Reason
from sidecar.audits.status import Check, Outcome
from sidecar.errors import CorruptState


@dataclass(frozen=True, slots=True)
class Plan:
    """What a night is about to do; written down before it does it.

    Attributes:
        revision: Under which revision of the model its jobs ask; empty until that is settled.
        digest: sha256 of the audited model's weights; empty until a manifest has told it.
        chosen: Features that are pictured; None until they are chosen.
        again: Manifests of earlier nights whose pictures are made again, by feature; None until they
            are chosen, after all other jobs.
        asked: Whether all jobs that look at the features were submitted.
        jobs: Ids of the jobs by their role: ``compare-N``, ``portraits-N``, ``again-N``; and
            ``portraits-N-M`` or ``compare-N-M`` where one of its features ended ``portraits-N`` for all.
        refused: Why jobs could not be asked for, by their roles.
    """

    revision: str = ""
    digest: str = ""
    chosen: tuple[Chosen, ...] | None = None
    again: Mapping[str, str] | None = None
    asked: bool = False
    jobs: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def with_job(self, role: str, job_id: str) -> "Plan":
        """Return the plan with one job more."""
        return replace(self, jobs={**self.jobs, role: job_id})

    def with_refusal(self, role: str, why: str) -> "Plan":
        """Return the plan with one job that will never be."""
        return replace(self, refused={**self.refused, role: why})


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """What became of all units of a layer by their values on the images, whatever was pictured of them.

    Attributes:
        layer: Its name and kind.
        units: How many it has.
        counts: Of them by fate; ``new`` counts units of the other model.
    """

    layer: str
    units: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Portrayed:
    """A portrait that a night refers to.

    Attributes:
        feature: Text form without model and revision.
        content_key: sha256 of the request.
        picture: sha256 of the PNG.
        manifest: sha256 of the manifest.
        verdict: How far it can be believed; empty: not measured.
        reasons: Why, a sentence a line.
        cached: Whether it was answered from the store.
        negative: Whether it is of the least values; one of the greatest says nothing of it.
    """

    feature: str
    content_key: str
    picture: str
    manifest: str
    verdict: str = ""
    reasons: str = ""
    cached: bool = False
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a night found; what later nights are held against.

    Attributes:
        digest: sha256 of the audited model's weights; empty where no job could tell it.
        other_digest: sha256 of the other model's; empty: nothing was compared.
        dataset_digest: sha256 of the images.
        layers: Layers that were compared.
        portraits: Portraits that were made or answered.
        again: Features whose earlier portrait was really made again.
        model: Name of the audited model; nights of another say nothing of this one.
        against: Name of the other model; empty: none.
    """

    digest: str = ""
    other_digest: str = ""
    dataset_digest: str = ""
    layers: tuple[LayerCounts, ...] = ()
    portraits: tuple[Portrayed, ...] = ()
    again: tuple[str, ...] = ()
    model: str = ""
    against: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        """Units of all layers by fate."""
        found: dict[str, int] = {}
        for layer in self.layers:
            for fate, count in layer.counts.items():
                found[fate] = found.get(fate, 0) + count
        return found

    def portrait(self, feature: str) -> Portrayed | None:
        """Return the portrait of a feature; None where there is none."""
        return next((one for one in self.portraits if one.feature == feature), None)


def encode(value: Plan | Facts) -> str:
    """Return a plan or facts as JSON."""
    return json.dumps(asdict(value), separators=(",", ":"))


def encode_checks(checks: tuple[Check, ...]) -> str:
    """Return checks as JSON."""
    return json.dumps([asdict(one) for one in checks], separators=(",", ":"))


def decode_plan(text: str) -> Plan:
    """Read a plan back; CorruptState where it is none."""
    document = _document(text, "plan")
    try:
        chosen = document.pop("chosen")
        found = None if chosen is None else tuple(_chosen(one) for one in chosen)
        return Plan(chosen=found, **document)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptState(f"the stored plan of a night cannot be read: {error!r}") from error


def decode_facts(text: str) -> Facts:
    """Read facts back; CorruptState where they are none."""
    document = _document(text, "findings")
    try:
        return Facts(
            layers=tuple(LayerCounts(**one) for one in document.pop("layers")),
            portraits=tuple(Portrayed(**one) for one in document.pop("portraits")),
            again=tuple(document.pop("again")),
            **document,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptState(f"the stored findings of a night cannot be read: {error!r}") from error


def decode_checks(text: str) -> tuple[Check, ...]:
    """Read checks back; CorruptState where they are none."""
    try:
        rows = json.loads(text)
        return tuple(Check(**{**row, "outcome": Outcome(row["outcome"])}) for row in rows)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptState(f"the stored checks of a night cannot be read: {error!r}") from error


def _document(text: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CorruptState(f"the stored {what} of a night is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptState(f"the stored {what} of a night is no JSON object")
    return document


def _chosen(document: Mapping[str, Any]) -> Chosen:
    return Chosen(document["feature"], Reason(document["reason"]), bool(document["negative"]))
