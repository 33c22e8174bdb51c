"""The section that says what is looked at every night."""

import re
from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from sidecar.config.jobs import Cron, Zone
from sidecar.config.values import Section, check_model_name, check_no_doubles
from sidecar.errors import SidecarError
from sidecar.features import FeatureKey, is_digest

_RULE = re.compile(r"(moved|lost|new)(=(\d+|(100(\.0*)?|\d{1,2}(\.\d+)?)%))?")
_UNPINNED = "configured"  # stands for a revision where a layer's name alone is checked


def _check_gate(value: str) -> str:
    """Check the rules of a gate, see ``compare.parse_rules``."""
    rules = [part.strip() for part in value.split(",") if part.strip()]
    for rule in rules:
        if not _RULE.fullmatch(rule):
            raise ValueError(
                f"{rule!r} is no rule: give moved, lost or new, alone or with the most units that may, such "
                "as moved=5% or new=10"
            )
    fates = Counter(rule.partition("=")[0] for rule in rules)
    if doubled := [fate for fate, count in fates.items() if count > 1]:
        raise ValueError(f"{doubled[0]} is there twice: name it once")
    return value


def _check_layers(value: list[str]) -> list[str]:
    """Check names of layers, ``LAYER[/KIND][;VIEW]``."""
    for text in value:
        layer, semicolon, view = text.partition(";")
        name, slash, kind = layer.rpartition("/")
        kind = kind if slash else "channel"
        try:
            FeatureKey.parse(f"m@{_UNPINNED}/{name or layer}/{kind}/0{semicolon}{view}")
        except SidecarError as error:
            raise ValueError(
                f"{text!r} is no layer, such as _blocks.5 or _fc/logit: {error.message}"
            ) from error
        if kind not in ("channel", "logit"):
            raise ValueError(f"{text!r}: a {kind} is not audited: use channel or logit")
    return check_no_doubles(value)


def _check_audited(value: str) -> str:
    """Check ``MODEL`` or ``MODEL@REVISION``."""
    name, pinned, revision = value.partition("@")
    check_model_name(name)
    if pinned and not is_digest(revision):
        raise ValueError(
            f"{value!r}: {revision!r} is no sha256: need 64 hexadecimal digits in lower case, or MODEL alone"
        )
    return value


class AuditConfig(Section):
    """A model that is looked at every night, and held against another one and against the night before."""

    name: Annotated[str, AfterValidator(check_model_name)] = Field(
        description="What people call it; part of its reports' addresses."
    )
    model: Annotated[str, AfterValidator(_check_audited)] = Field(
        description="What is audited: a configured model, or MODEL@REVISION with the sha256 of its weights."
    )
    against: str | None = Field(
        default=None,
        description="Another configured model, in which its units are looked for every night. Without it "
        "nothing is compared.",
    )
    dataset: str | None = Field(
        default=None, description="Images that both models are shown; needed with `against`."
    )
    schedule: Cron = Field(
        default="30 2 * * *",
        description="When a night begins: minute, hour, day, month and weekday, in `zone`. Its jobs are "
        "audits: jobs.audit_windows and jobs.yield_to hold them back.",
    )
    zone: Zone = Field(default="UTC", description="Time zone of `schedule`.")
    layers: Annotated[list[str], AfterValidator(_check_layers)] = Field(
        default=[],
        description="LAYER[/KIND][;VIEW], such as _blocks.5 or _fc/logit. Default: the layers of the "
        "model's flags.",
    )
    features: Annotated[int, Field(ge=1, le=64)] = Field(
        default=32, description="Most features pictured in a night, taken by priority."
    )
    fail_on: Annotated[str, AfterValidator(_check_gate)] = Field(
        default="",
        description="Gate on the comparison, as `sidecar compare --fail-on`: lost,moved=5%,new=10.",
    )
    compare_steps: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=64,
        description="Optimiser steps of each portrait in the comparison; 0: it looks at the images alone.",
    )
    tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.01,
        description="Share of a layer's units by which more may be moved or lost than the night before, "
        "whatever the gate says.",
    )
    portraits: bool = Field(
        default=True,
        description="Whether portraits of the chosen features are made, and held against those of earlier "
        "nights.",
    )
    reproduced: Annotated[int, Field(ge=0, le=16)] = Field(
        default=2,
        description="Portraits of earlier nights that are really made again in a night; a cache proves "
        "nothing. 0 leaves that out.",
    )
    keep_nights: Annotated[int, Field(ge=2, le=3660)] = Field(
        default=90, description="Nights whose reports and pictures are kept."
    )
    keep_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        default=512 << 20,
        description="Bytes of reports beyond which the oldest nights are removed; the newest two stay.",
    )

    @property
    def model_name(self) -> str:
        """Name of the audited model."""
        return self.model.partition("@")[0]

    @property
    def revision(self) -> str:
        """Revision of it that was named; empty: whatever is configured."""
        return self.model.partition("@")[2]

    @model_validator(mode="after")
    def _agrees(self) -> "AuditConfig":
        if self.against is not None and self.dataset is None:
            raise ValueError(
                f"{self.name}: against {self.against!r} needs images to compare on: name a dataset"
            )
        if self.fail_on and self.against is None:
            raise ValueError(
                f"{self.name}: fail_on is about a comparison: name against, or remove it"
            )
        if self.against == self.model_name:
            raise ValueError(f"{self.name}: against is the model itself: name another one")
        if self.against is None and not self.portraits:
            raise ValueError(f"{self.name}: neither compares nor pictures anything: remove it")
        return self
