"""The sidecar's configuration: one YAML file, checked whole before anything starts.

Every key is typed, has a default with a reason, and unknown keys are errors. ``load`` collects every
problem of the file and of the paths it names into one ``ConfigError``; after start-up nothing here
is read again.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sidecar.errors import ConfigError, SidecarError
from sidecar.features import FeatureSelector, Slice, check_name
from sidecar.recipes import recipe_of

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.\-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_PORT_LIMIT = 65535
_LEAST_RECORDING = 1 << 16  # a few windows of a thousand flagged features
_SOCKET_PATH_LIMIT = 107  # what struct sockaddr_un holds on Linux
_LEAST_EVIDENCE_LOG10 = 2  # below it chance alone raises an alarm every hundredth window or so
_SECONDS_IN_1000_DAYS = 86_400_000.0

_GONE_FROM_SPIKE = {
    "long_windows": "level_windows says over how many windows the recent level forgets",
    "long_factor": "factor is the least over the recent level, baseline_factor that over the baseline",
    "min_exceedances": "evidence weighs few requests by itself",
    "false_alarm_probability": "false_alarms_per_1000_days sets how many to expect",
    "pending_windows": "a spike fires as soon as there is evidence enough, without a wait",
}
"""Keys of earlier builds, and what took their place."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _check_address(value: str) -> str:
    if value.startswith("unix://"):
        if not value.removeprefix("unix://").startswith("/"):
            raise ValueError(f"{value!r} needs an absolute path, such as unix:///run/sidecar.sock")
        return value
    match = _ADDRESS.fullmatch(value)
    if not match or int(match["port"]) > _PORT_LIMIT:
        raise ValueError(f"{value!r} is neither host:port nor unix:///path")
    if not _is_loopback(match["host"]):
        raise ValueError(
            f"{value!r} is reachable from other machines, and this version has neither TLS nor "
            "authentication: listen on 127.0.0.1 or a unix socket"
        )
    return value


def _check_socket(value: str) -> str:
    """Check the address of a lane."""
    path = value.removeprefix("unix://")
    if path == value or not path.startswith("/") or path.endswith("/"):
        raise ValueError(
            f"{value!r}: the lane is a unix socket, such as unix:///run/sidecar/lane.sock"
        )
    if len(path.encode()) > _SOCKET_PATH_LIMIT:
        raise ValueError(f"{value!r}: a socket's path has at most {_SOCKET_PATH_LIMIT} bytes")
    return value


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine alone; other names than localhost may resolve to anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_web_address(value: str) -> str:
    if value.startswith("unix://"):
        raise ValueError(f"{value!r}: browsers and Prometheus need host:port")
    return _check_address(value)


def _check_folder(value: Path) -> Path:
    if not value.is_dir():
        raise ValueError(f"{value} is not a folder")
    return value


def _check_file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"{value} does not exist")
    return value


def _check_labels(value: Path) -> Path:
    read_labels(_check_file(value))
    return value


def _check_factory(value: str) -> str:
    if not _FACTORY.fullmatch(value):
        raise ValueError(f"{value!r} is not 'package.module:function'")
    return value


def _check_selector(value: str) -> str:
    try:
        FeatureSelector.parse(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def _check_slice(value: dict[str, str]) -> dict[str, str]:
    try:
        Slice.of(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def _check_model_name(value: str) -> str:
    try:
        return check_name("model", value)
    except SidecarError as error:
        raise ValueError(error.message) from error


def _check_recipe(value: dict[str, Any]) -> dict[str, Any]:
    try:
        recipe_of(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def _check_no_doubles(values: list[Any]) -> list[Any]:
    doubled = [value for value, count in Counter(values).items() if count > 1]
    if doubled:
        shown = ", ".join(f"{value!r}" for value in doubled)
        raise ValueError(f"{shown} is there twice: name each once")
    return values


Address = Annotated[str, AfterValidator(_check_address)]
SocketAddress = Annotated[str, AfterValidator(_check_socket)]
WebAddress = Annotated[str, AfterValidator(_check_web_address)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Windows = Annotated[int, Field(ge=1, le=8640)]  # a day of the default length
Bytes = Annotated[int, Field(ge=1024)]


class ListenConfig(_Section):
    """Where the daemon listens. Loopback and unix sockets only."""

    grpc: list[Address] = Field(
        default=["127.0.0.1:50061"],
        min_length=1,
        description="Addresses of the gRPC services: host:port or unix:///path. Port 0 picks a free one.",
    )
    lane: list[SocketAddress] = Field(
        default=[],
        description="Unix sockets, unix:///path, for hooks of this machine, at a fraction of gRPC's CPU time.",
    )
    lane_uids: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="Users whose processes may use the lane, beside the daemon's own and root.",
    )
    metrics: WebAddress = Field(
        default="127.0.0.1:9464",
        description="Address of /metrics, /livez and /readyz; an own thread, so it answers under overload.",
    )
    web: WebAddress = Field(
        default="127.0.0.1:8080", description="Address of the console, JSON API and webhook."
    )


class InputConfig(_Section):
    """What images the model takes."""

    size: Annotated[int, Field(ge=8, le=2048)] = Field(
        default=224, description="Side of the square input in pixels."
    )
    mean: list[float] = Field(
        default=[0.485, 0.456, 0.406],
        min_length=3,
        max_length=3,
        description="Subtracted from each colour, in units of the 0 to 1 range.",
    )
    std: list[Positive] = Field(
        default=[0.229, 0.224, 0.225],
        min_length=3,
        max_length=3,
        description="Divides each colour after the mean is subtracted.",
    )


class ModelConfig(_Section):
    """A model the sidecar watches and can make pictures of."""

    name: Annotated[str, AfterValidator(_check_model_name)] = Field(
        description="Registry name; what the hooks say in their hello."
    )
    factory: Annotated[str, AfterValidator(_check_factory)] | None = Field(
        default=None,
        description="package.module:function that returns the torch module; runs in the worker only.",
    )
    weights: Annotated[Path, AfterValidator(_check_file)] | None = Field(
        default=None,
        description="safetensors or torch state-dict file, loaded into what the factory returns.",
    )
    labels: Annotated[Path, AfterValidator(_check_labels)] | None = Field(
        default=None, description="JSON list of class names, in the order of the logits."
    )
    input: InputConfig = Field(default_factory=InputConfig, description="What images it takes.")


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a file.

    Raises:
        ValueError: It cannot be read, or is no JSON list of names.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: need a JSON list of names")
    return tuple(names)


class FlagConfig(_Section):
    """A feature somebody wants to be told about."""

    feature: Annotated[str, AfterValidator(_check_selector)] = Field(
        description="model/layer/kind/index[;view[;scope]], or model@revision/... to pin one revision."
    )
    name: Annotated[str, Field(max_length=80)] = Field(
        default="", description="What people call it."
    )
    severity: Literal["info", "warning", "critical"] = Field(
        default="warning", description="Label of the alert."
    )
    owner: Annotated[str, Field(max_length=80)] = Field(
        default="", description="Who is told; label of the alert."
    )
    factor: Annotated[float, Field(gt=1.0)] | None = Field(
        default=None,
        description="Least factor over its recent level that can raise an alarm; default: spike.factor.",
    )
    direction: Literal["above", "below", "both"] = Field(
        default="above", description="On which side of its baseline it is watched."
    )
    slice: Annotated[dict[str, str], AfterValidator(_check_slice)] = Field(
        default={}, description="Only requests with all these key: value pairs count. Default: all."
    )
    detectors: Annotated[
        list[Literal["spike", "conditions", "drift"]], AfterValidator(_check_no_doubles)
    ] = Field(
        default=["spike", "conditions", "drift"],
        min_length=1,
        description="What looks at it: spike pages, conditions are certain (never seen, not finite, silent, "
        "saturated), drift is slow and asks for a ticket.",
    )


class StatisticsConfig(_Section):
    """How distributions are kept."""

    window_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=10.0, description="Length of one window; detection runs at the end of each."
    )
    warmup_rows: Count = Field(
        default=256,
        description="Rows after which a layer's bins are centred and scaled for good.",
    )
    baseline_min_requests: Count = Field(
        default=10_000,
        description="Requests a baseline needs before it freezes by itself: the first half places "
        "thresholds, the second measures how often requests pass them.",
    )
    baseline_min_seconds: float = Field(
        default=7200.0,
        ge=0,
        description="Seconds a baseline covers before it freezes by itself, halved alike: the screen "
        "needs the hour of the second half. A day is better, for it has every hour's traffic.",
    )
    history_seconds: Positive = Field(
        default=86_400.0, description="The longer history covers between one and two of these."
    )
    mantissa_bits: Annotated[int, Field(ge=2, le=6)] = Field(
        default=4,
        description="Bins per octave as a power of two; at 4 a quantile is within 4.55 % of its "
        "distance from the centre whatever the values, and usually within 1.6 %.",
    )
    retire_seconds: Positive = Field(
        default=86_400.0,
        description="A layer silent this long gives way when a new one finds no room; longest first.",
    )
    layer_limit: Count = Field(default=4096, description="Most layers kept, over all models.")
    feature_limit: Count = Field(default=262_144, description="Most features kept.")
    memory_bytes: Bytes = Field(
        default=512 << 20,
        description="Memory of all distributions; a layer for which there is none left is refused. "
        "`sidecar check config` says how many features that is.",
    )
    full_detail_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Share of memory_bytes for layers at full detail, in the order in which they are "
        "registered; later ones are screened: at most 3 mantissa bits, newest window and baseline.",
    )
    flagged_mantissa_bits: Annotated[int, Field(ge=2, le=6)] = Field(
        default=5, description="The same as mantissa_bits for the windows of flagged features."
    )
    flagged_windows: Annotated[int, Field(ge=1, le=8640)] = Field(
        default=12, description="Closed windows of flagged features that are kept."
    )
    flagged_memory_bytes: Bytes = Field(
        default=64 << 20,
        description="Memory of those, beside memory_bytes; beyond it flagged features of further "
        "layers have the bins of their layer only.",
    )
    latent_limit: Count = Field(
        default=1_048_576, description="Most latents of sparse layers kept; at most 345 bytes each."
    )
    latent_exponent: Annotated[int, Field(ge=-60, le=60)] = Field(
        default=-8,
        description="Power of two from which activations of sparse latents are told apart, over 19 "
        "octaves; another one starts statistics anew.",
    )


class SpikeConfig(_Section):
    """When a flagged feature counts as spiking."""

    quantile: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        default=0.999,
        description="A request exceeds when one of its values is beyond this baseline quantile.",
    )
    factor: Annotated[float, Field(gt=1.0)] = Field(
        default=3.0,
        description="The sensitivity: the least factor over the recent level that can raise an alarm. "
        "Lower finds smaller spikes, and takes bursts of like traffic for spikes.",
    )
    baseline_factor: Annotated[float, Field(gt=1.0)] = Field(
        default=1.5,
        description="Factor over the baseline's rate that is always tolerated: no baseline is exact.",
    )
    level_windows: Count = Field(
        default=15,
        description="Windows over which the recent level forgets: 2.5 minutes, quick enough to follow a topic.",
    )
    lag_windows: Windows = Field(
        default=4,
        description="Windows until a window counts for the recent level, lest a spike excuse itself.",
    )
    false_alarms_per_1000_days: Positive = Field(
        default=1.0,
        description="Expected of all flagged features together, while requests exceed within what is "
        "tolerated; it sets the evidence that an alarm takes.",
    )
    short_windows: Windows = Field(
        default=2,
        description="Windows of the rate that is shown and that must fall for an alert to end.",
    )
    clear_factor: Annotated[float, Field(gt=1.0)] = Field(
        default=2.0,
        description="Below this factor of the baseline's rate, or of the level at the onset if that was "
        "higher, a window is calm.",
    )
    clear_windows: Count = Field(
        default=6, description="Calm windows in a row after which a firing feature resolves."
    )
    resolved_windows: Count = Field(
        default=6, description="Windows a feature stays resolved before it counts as normal."
    )
    unsampled_windows: Count = Field(
        default=6, description="Windows without a sample after which the state is unknown."
    )


class ScreenConfig(_Section):
    """When so many features of a layer exceed too often that the layer as a whole counts as shifted."""

    false_discoveries: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05,
        description="Expected share of false ones among the features that a window calls significant.",
    )
    factor: Annotated[float, Field(gt=1)] = Field(
        default=2.0,
        description="Exceedance rate over the baseline's below which no feature counts.",
    )
    baseline_windows: Count = Field(
        default=360,
        description="Windows of a baseline's second half, an hour by default, before the screen says "
        "anything: over fewer it cannot be told how much counts vary. A shorter baseline is not screened.",
    )
    layer_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Share of a layer's features beyond which a window is loud."
    )
    layer_minimum: Count = Field(
        default=5, description="Significant features below which no window is loud."
    )
    pending_windows: Count = Field(
        default=30,
        description="Loud windows in a row after which a layer counts as shifted although no two of its "
        "flagged features spike: bursts that all features share are over by then, or nearly so.",
    )
    clear_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.025,
        validate_default=True,
        description="Share of significant features up to which a window is calm.",
    )
    clear_windows: Count = Field(
        default=6, description="Calm windows in a row after which a shifted layer resolves."
    )
    resolved_windows: Count = Field(
        default=6, description="Windows a layer stays resolved before it counts as normal."
    )
    unsampled_windows: Count = Field(
        default=6, description="Windows without a judged feature after which nothing is known."
    )

    @field_validator("clear_ratio")
    @classmethod
    def _calm_is_no_louder_than_loud(cls, value: float, info: ValidationInfo) -> float:
        loud = info.data.get("layer_ratio", 1.0)  # it is missing where it is wrong itself
        if value > loud:
            raise ValueError(
                f"{value:g} is above layer_ratio {loud:g}: a window would be loud and calm at once; "
                f"use at most {loud:g}"
            )
        return value


class IngestConfig(_Section):
    """Bounds on what the hooks may send."""

    queue_bytes: Bytes = Field(
        default=64 << 20,
        description="Batches waiting for the statistics, their requests included; beyond it they drop.",
    )
    message_limit_bytes: Bytes = Field(
        default=4 << 20, description="Largest message read from a stream."
    )
    stream_limit: Count = Field(default=64, description="Most open ingest streams.")
    credit_bytes: Bytes = Field(
        default=8 << 20, description="Unacknowledged payload one stream may have."
    )
    width_limit: Count = Field(default=262_144, description="Most features of one layer.")
    sampling_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Share of forward passes hooks sample when the sidecar is at ease."
    )


class JobsConfig(_Section):
    """How visualisation jobs run."""

    concurrency: Count = Field(default=1, description="Jobs that run at once.")
    queue_limit: Count = Field(default=256, description="Most waiting jobs.")
    time_limit_seconds: Positive = Field(default=900.0, description="Wall time of one job.")
    lease_seconds: Positive = Field(
        default=30.0, description="A job whose worker is silent this long is given to another."
    )
    attempt_limit: Count = Field(
        default=3, description="Attempts after which a job that kills its worker is failed."
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of a worker; 0 leaves the choice to torch."
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto, cpu, cuda or cuda:N."
    )
    python_path: list[Annotated[Path, AfterValidator(_check_folder)]] = Field(
        default=[], description="Folders from which the worker may import model factories."
    )
    recipe: Annotated[dict[str, Any], AfterValidator(_check_recipe)] = Field(
        default={}, description="Recipe values of jobs that do not name them."
    )


class StoreConfig(_Section):
    """What is kept on disk."""

    artifact_limit_bytes: Bytes = Field(
        default=4 << 30, description="Artifacts beyond which the oldest unreferenced are removed."
    )
    snapshot_seconds: Positive = Field(
        default=30.0, description="Interval of state snapshots: the most that kill -9 can lose."
    )
    shared_baselines: Annotated[Path, AfterValidator(_check_folder)] | None = Field(
        default=None,
        description="Folder of *.baseline files from `sidecar baseline export`; a layer for which there "
        "is one takes it on instead of learning its own, so that replicas compare with the same.",
    )


class EvidenceConfig(_Section):
    """What is kept of the requests that made a flagged feature fire. See docs/evidence.md."""

    enabled: bool = Field(
        default=False,
        description="Whether the top rows of flagged features are kept with their request ids, which "
        "are personal data in most places. Requests and exceedances are counted by slice either way.",
    )
    rows_per_window: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3,
        description="Rows kept of each feature in a window: enough to see whether they are alike.",
    )
    ids: Literal["keep", "hash", "drop"] = Field(
        default="keep",
        description="What becomes of request ids before they are kept. hash: 16 digits of a keyed "
        "sha256, which can be compared but not read back; the key is drawn for each state_dir.",
    )
    limit_bytes: Bytes = Field(
        default=16 << 20,
        description="Most memory of open and recent windows, and again most bytes of records on disk; "
        "beyond it the oldest go.",
    )
    expire_seconds: Positive = Field(
        default=604_800.0,
        description="Age at which records are deleted; a week, so that Monday can look at the weekend.",
    )
    slices_limit: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=256,
        description="key=value pairs counted for each layer in a window, one key at most a quarter of "
        "them; requests with further pairs are counted as uncounted. 0 counts no slices.",
    )


class RecordingConfig(_Section):
    """What is kept for `sidecar replay` and `sidecar calibrate`. See docs/recordings.md."""

    limit_bytes: Annotated[int, Field(ge=0)] = Field(
        default=256 << 20,
        description="Disk for the closed windows of flagged features, in state_dir/recordings; the "
        "oldest go. About 100 kB a day for each flagged feature. 0 records nothing.",
    )
    segment_bytes: Bytes = Field(
        default=4 << 20,
        description="Size at which another file is begun; the oldest file is what goes.",
    )
    levels: Annotated[
        list[Annotated[float, Field(ge=0.5, lt=1)]],
        Field(max_length=8),
        AfterValidator(_check_no_doubles),
    ] = Field(
        default=[0.99, 0.999, 0.9999],
        description="Baseline quantiles at which requests are counted for policies with another "
        "spike.quantile; each costs about 0.3 bytes and one comparison a value of a flagged feature.",
    )

    @field_validator("limit_bytes")
    @classmethod
    def _room_for_segments(cls, value: int) -> int:
        if 0 < value < _LEAST_RECORDING:
            raise ValueError(
                f"{value} bytes hold no recording: use at least {_LEAST_RECORDING}, or 0 for none"
            )
        return value

    @field_validator("segment_bytes")
    @classmethod
    def _segments_within_the_limit(cls, value: int, info: ValidationInfo) -> int:
        # The default is not checked: of a small limit a quarter is a segment in any case.
        limit = info.data.get("limit_bytes", 0)
        if 0 < limit < value:
            raise ValueError(
                f"{value} is above limit_bytes {limit}: use at most a quarter of the limit, {limit // 4}, "
                "so that the oldest file can go"
            )
        return value


class AlertsConfig(_Section):
    """What happens when a feature fires."""

    console_url: str = Field(
        default="",
        description="How people reach the console; links in alerts start with it. Default: listen.web.",
    )
    portrait_on_firing: bool = Field(
        default=True, description="Whether a firing alert asks for the feature's portrait."
    )
    direct: bool = Field(
        default=False,
        description="Ask for portraits from the daemon's own detector too, without Alertmanager.",
    )


class MetricsConfig(_Section):
    """Bounds on what is exported."""

    flagged_limit: Count = Field(default=1000, description="Most flagged features with own series.")
    series_limit: Annotated[int, Field(ge=200)] = Field(
        default=50_000,
        description="Most series of one scrape; a flagged feature has 24, and up to 21 buckets.",
    )
    classic_buckets: bool = Field(
        default=True, description="Whether flagged features have classic buckets, for heat maps."
    )


class SidecarConfig(_Section):
    """The whole file."""

    listen: ListenConfig = Field(default_factory=ListenConfig, description="Addresses.")
    state_dir: Path = Field(
        default=Path("/var/lib/sidecar"), description="Catalogue, snapshots and artifacts."
    )
    models: list[ModelConfig] = Field(default=[], description="Models that may be watched.")
    flags: list[FlagConfig] = Field(default=[], description="Features people are told about.")
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

    @model_validator(mode="after")
    def _names_agree(self) -> "SidecarConfig":
        names = [model.name for model in self.models]
        problems = _disagreements(names, [flag.feature for flag in self.flags])
        if problems:
            raise ValueError("; ".join(f"{section}: {what}" for section, what in problems))
        return self

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


def _disagreements(names: Sequence[str], features: Sequence[str]) -> list[tuple[str, str]]:
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


class _Loader(yaml.SafeLoader):
    """The safe loader, which otherwise lets the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is there twice: join the two", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path) -> SidecarConfig:
    """Read and check a configuration file.

    Args:
        path: A YAML file. Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: The file cannot be read, is no YAML mapping, or holds unknown keys, wrong types,
            values out of range, or paths that do not exist; the message lists every problem with
            its line.
    """
    document, tree = _read(path)
    try:
        return SidecarConfig.model_validate(_absolute(document, path.resolve().parent))
    except ValidationError as error:
        # With a wrong field anywhere pydantic does not come to what the sections say of each other.
        said = [] if _is_whole(error) else _disagreements(*_named(document))
        lines = [f"{path}:{_line(tree, (section,))}: {section}: {what}" for section, what in said]
        raise ConfigError("\n".join(sorted([*_problems(error, path, tree), *lines]))) from error


def load_policy(path: Path) -> PolicyConfig:
    """Read when features fire: from the settings of ``spike`` alone, or from a whole configuration.

    Sections beside ``spike`` and ``flags`` are not looked into, so that the configuration of another
    machine can be read where its weights and folders are not.

    Raises:
        ConfigError: The file cannot be read, or what it says of these is wrong; the message lists
            every problem with its line.
    """
    document, tree = _read(path)
    bare = bool(document) and not set(document) & set(SidecarConfig.model_fields)
    inside: tuple[str, ...] = ("spike",) if bare else ()
    known = SpikeConfig.model_fields if bare else SidecarConfig.model_fields
    problems = [
        f"{path}:{_line(tree, (str(key),))}: {key}: {_unknown((*inside, str(key)), _UNKNOWN_IN_POLICY)}"
        for key in document
        if key not in known
    ]
    rest = {key: value for key, value in document.items() if key in known}
    policy = PolicyConfig()
    try:
        policy = PolicyConfig.model_validate({"spike": rest} if bare else rest)
    except ValidationError as error:
        problems += _problems(error, path, tree, inside)
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return policy


_UNKNOWN_IN_POLICY = (
    "unknown key: check its spelling and place; a policy has the keys of spike, or the sections of a "
    "configuration"
)


def _unknown(location: tuple[int | str, ...], otherwise: str) -> str:
    """Say what became of a key that there is no more, or that there never was."""
    section, key = (*map(str, location), "", "")[:2]
    gone = _GONE_FROM_SPIKE.get(key) if section == "spike" else None
    return f"unknown key: it is gone, remove it; {gone}" if gone else otherwise


def _read(path: Path) -> tuple[dict[Any, Any], yaml.Node | None]:
    """Return the mapping in a file, and its nodes, which know their lines."""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
        tree = yaml.compose(text, Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # ValueError: text that is no UTF-8, or a scalar such as the date 2024-13-45.
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, need a mapping of settings")
    return document, tree


def _is_whole(error: ValidationError) -> bool:
    """Whether every field was right, and only the file as a whole is not."""
    return all(not item["loc"] for item in error.errors(include_url=False))


def _named(document: dict[Any, Any]) -> tuple[list[str], list[str]]:
    """Return the models' names and the flagged features of a document that may hold anything."""

    def texts(section: str, key: str) -> list[str]:
        items = document.get(section)
        entries = items if isinstance(items, list) else []
        found = [entry.get(key) for entry in entries if isinstance(entry, dict)]
        return [value for value in found if isinstance(value, str)]

    return texts("models", "name"), texts("flags", "feature")


def _absolute(document: dict[Any, Any], base: Path) -> dict[Any, Any]:
    """Resolve the document's relative paths against the folder of the file."""

    def resolve(value: Any) -> Any:
        return str(base / value) if isinstance(value, str) else value

    found = dict(document)
    if "state_dir" in found:
        found["state_dir"] = resolve(found["state_dir"])
    if isinstance(found.get("models"), list):
        found["models"] = [
            {k: resolve(v) if k in ("weights", "labels") else v for k, v in model.items()}
            if isinstance(model, dict)
            else model
            for model in found["models"]
        ]
    store = found.get("store")
    if isinstance(store, dict) and "shared_baselines" in store:
        found["store"] = {**store, "shared_baselines": resolve(store["shared_baselines"])}
    jobs = found.get("jobs")
    if isinstance(jobs, dict) and isinstance(jobs.get("python_path"), list):
        found["jobs"] = {**jobs, "python_path": [resolve(p) for p in jobs["python_path"]]}
    return found


def _problems(
    error: ValidationError, path: Path, tree: yaml.Node | None, inside: tuple[str, ...] = ()
) -> list[str]:
    """Return what is wrong, with the lines; the file holds what is under ``inside``."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "file"
        shown = "" if isinstance(item["input"], dict | list) else f" (found {item['input']!r})"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown(
                item["loc"], "unknown key: check its spelling and place, or remove it"
            )
        lines.append(f"{path}:{_line(tree, item['loc'][len(inside) :])}: {key}: {message}{shown}")
    return sorted(lines)


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Return the 1-based line of the deepest node on the way to ``location``."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[part]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
