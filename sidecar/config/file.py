"""The whole file, and what its sections say of each other."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sidecar.config.access import AlertsConfig, IngestConfig, ListenConfig, MetricsConfig
from sidecar.config.audits import AuditConfig
from sidecar.config.detection import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.config.jobs import JobsConfig
from sidecar.config.keeping import EvidenceConfig, RecordingConfig, StoreConfig
from sidecar.config.models import DatasetConfig, DictionaryConfig, FlagConfig, ModelConfig
from sidecar.config.values import Section, check_no_doubles
from sidecar.errors import SidecarError
from sidecar.features import FeatureSelector

_LEAST_EVIDENCE_LOG10 = 2  # below it chance alone raises an alarm every hundredth window or so
_SECONDS_IN_1000_DAYS = 86_400_000.0


class SidecarConfig(Section):
    """The whole file."""

    listen: ListenConfig = Field(default_factory=ListenConfig, description="Addresses.")
    state_dir: Path = Field(
        default=Path("/var/lib/sidecar"), description="Catalogue, snapshots and artifacts."
    )
    models: list[ModelConfig] = Field(default=[], description="Models that may be watched.")
    flags: list[FlagConfig] = Field(default=[], description="Features people are told about.")
    datasets: list[DatasetConfig] = Field(
        default=[], description="Folders of images that features are looked for in."
    )
    audits: list[AuditConfig] = Field(
        default=[], description="What is looked at every night. See docs/audits.md."
    )
    dictionaries: list[DictionaryConfig] = Field(
        default=[], description="Files of directions that portraits can be of."
    )
    statistics: StatisticsConfig = Field(
        default_factory=StatisticsConfig, description="Distributions."
    )
    spike: SpikeConfig = Field(default_factory=SpikeConfig, description="The spike test.")
    screen: ScreenConfig = Field(
        default_factory=ScreenConfig, description="The screen of every feature."
    )
    ingest: IngestConfig = Field(default_factory=IngestConfig, description="Bounds of the ingest.")
    jobs: JobsConfig = Field(default_factory=JobsConfig, description="Visualisation jobs.")
    store: StoreConfig = Field(default_factory=StoreConfig, description="Disk.")
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="Alerts.")
    evidence: EvidenceConfig = Field(
        default_factory=EvidenceConfig, description="What is kept of a spike's requests."
    )
    recording: RecordingConfig = Field(
        default_factory=RecordingConfig, description="Recorded windows."
    )
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="Exported series.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )

    @field_validator("spike")
    @classmethod
    def _alarms_take_evidence(cls, value: SpikeConfig, info: ValidationInfo) -> SpikeConfig:
        statistics = info.data.get("statistics")  # missing where it is wrong itself
        if statistics is not None:
            _check_evidence(value.false_alarms_per_1000_days, statistics.window_seconds)
        return value

    @field_validator("datasets")
    @classmethod
    def _named_once(cls, value: list[DatasetConfig]) -> list[DatasetConfig]:
        check_no_doubles([one.name for one in value])
        return value

    @field_validator("audits")
    @classmethod
    def _audits_named_once(cls, value: list[AuditConfig]) -> list[AuditConfig]:
        check_no_doubles([one.name for one in value])
        return value

    @field_validator("dictionaries")
    @classmethod
    def _one_a_layer(cls, value: list[DictionaryConfig]) -> list[DictionaryConfig]:
        check_no_doubles([one.name for one in value])
        check_no_doubles([f"the dictionary of {one.model}/{one.layer}" for one in value])
        return value

    @model_validator(mode="after")
    def _names_agree(self) -> "SidecarConfig":
        names = [model.name for model in self.models]
        problems = disagreements(names, [flag.feature for flag in self.flags])
        problems += self._dangling(names) + self._unauditable()
        if problems:
            raise ValueError("; ".join(f"{section}: {what}" for section, what in problems))
        return self

    def _dangling(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Return names that lead nowhere, as ``(section, what)``."""
        found = [
            ("models", f"{model.name}: sibling {model.sibling!r} is not another model under models")
            for model in self.models
            if model.sibling is not None and model.sibling not in set(names) - {model.name}
        ]
        found += [
            ("dictionaries", f"{one.name}: model {one.model!r} is not under models")
            for one in self.dictionaries
            if one.model not in names
        ]
        dataset = self.jobs.reliability.dataset
        if dataset is not None and dataset not in {one.name for one in self.datasets}:
            found.append(("jobs", f"reliability.dataset {dataset!r} is not under datasets"))
        return found

    def _unauditable(self) -> list[tuple[str, str]]:
        """Return what audits name that is not there, as ``(section, what)``."""
        datasets = {one.name for one in self.datasets}
        found = []
        for audit in self.audits:
            for field, name in (("model", audit.model_name), ("against", audit.against)):
                model = None if name is None else self.model(name)
                if name is not None and (model is None or not model.is_loadable):
                    found.append(
                        (
                            "audits",
                            f"{audit.name}: {field} {name!r} is no model with a factory or onnx",
                        )
                    )
            if audit.dataset is not None and audit.dataset not in datasets:
                what = f"{audit.name}: dataset {audit.dataset!r} is not under datasets"
                found.append(("audits", what))
            if not audit.layers and not self._flagged(audit.model_name):
                what = f"{audit.name}: {audit.model_name!r} has no flags: name layers"
                found.append(("audits", what))
        return found

    def _flagged(self, model: str) -> bool:
        """Whether the configuration flags a feature of a model."""
        return any(FeatureSelector.parse(flag.feature).model == model for flag in self.flags)

    def model(self, name: str) -> ModelConfig | None:
        """Return the model of this name, or None."""
        return next((model for model in self.models if model.name == name), None)


def _check_evidence(false_alarms: float, window_seconds: float) -> None:
    """Check that the alarm of a single flagged feature takes evidence, see ``detect.SpikePolicy``."""
    windows = _SECONDS_IN_1000_DAYS / window_seconds
    most = windows / 10**_LEAST_EVIDENCE_LOG10
    if false_alarms >= most:
        raise ValueError(
            f"false_alarms_per_1000_days {false_alarms:.10g} leaves evidence of 10^{_LEAST_EVIDENCE_LOG10} or less "
            f"to raise an alarm, which chance reaches: with statistics.window_seconds "
            f"{window_seconds:g} use less than {most:.0f}"
        )


def disagreements(names: Sequence[str], features: Sequence[str]) -> list[tuple[str, str]]:
    """Return what does not fit together of models and flags, as ``(section, what)``."""
    flags = []
    for text in features:
        try:
            flags.append(FeatureSelector.parse(text))
        except SidecarError:
            continue  # the field's own check says so
    doubled = sorted({name for name in names if names.count(name) > 1})
    unknown = sorted({flag.model for flag in flags} - set(names))
    return [
        *(("models", f"{name!r} is there twice") for name in doubled),
        *(("flags", f"{flag} is there twice") for flag, n in Counter(flags).items() if n > 1),
        *(("flags", f"model {name!r} is not under models") for name in unknown),
    ]


class PolicyConfig(BaseModel):
    """What a replay takes of a configuration: when features fire."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    spike: SpikeConfig = Field(default_factory=SpikeConfig, description="The spike test.")
    flags: list[FlagConfig] = Field(default=[], description="Features with words of their own.")
