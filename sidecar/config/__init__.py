"""The sidecar's configuration: one YAML file, checked whole before anything starts.

Every key is typed, has a default with a reason, and unknown keys are errors. ``load`` collects every
problem of the file and of the paths it names into one ``ConfigError``; after start-up nothing here
is read again.
"""

from sidecar.config.access import AlertsConfig, IngestConfig, ListenConfig, MetricsConfig
from sidecar.config.audits import AuditConfig
from sidecar.config.detection import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.config.file import PolicyConfig, SidecarConfig
from sidecar.config.jobs import GpuConfig, JobsConfig, ReliabilityConfig, WindowConfig, YieldConfig
from sidecar.config.keeping import EvidenceConfig, RecordingConfig, StoreConfig
from sidecar.config.models import (
    DatasetConfig,
    DictionaryConfig,
    FlagConfig,
    InputConfig,
    ModelConfig,
)
from sidecar.config.reading import load, load_policy
from sidecar.config.values import read_labels

__all__ = [
    "AlertsConfig",
    "AuditConfig",
    "DatasetConfig",
    "DictionaryConfig",
    "EvidenceConfig",
    "FlagConfig",
    "GpuConfig",
    "IngestConfig",
    "InputConfig",
    "JobsConfig",
    "ListenConfig",
    "MetricsConfig",
    "ModelConfig",
    "PolicyConfig",
    "RecordingConfig",
    "ReliabilityConfig",
    "ScreenConfig",
    "SidecarConfig",
    "SpikeConfig",
    "StatisticsConfig",
    "StoreConfig",
    "WindowConfig",
    "YieldConfig",
    "load",
    "load_policy",
    "read_labels",
]
