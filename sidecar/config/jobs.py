"""The section that says how visualisation jobs run."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from sidecar.config.values import Count, Positive, Section, check_folder, check_recipe

_CRON_FIELDS = 5  # minute, hour, day, month, weekday; no seconds, no macros
_LONGEST_WINDOW_SECONDS = 7 * 86_400.0  # a window of a week never closes

_NotNegative = Annotated[float, Field(ge=0)]
_BytesOrNone = Annotated[int, Field(ge=0)]


def _check_cron(value: str) -> str:
    from croniter import croniter  # noqa: PLC0415 - 0.1 s that few configurations need

    form = "five fields: minute, hour, day of the month, month and weekday, such as '0 22 * * 1-5'"
    if len(value.split()) != _CRON_FIELDS:
        raise ValueError(f"{value!r} is no cron expression: give {form}")
    try:
        croniter(value, datetime(2026, 1, 1)).get_next()  # noqa: DTZ001 - wall time, see windows.py
    except (ValueError, KeyError) as error:  # croniter's own errors are ValueErrors
        raise ValueError(f"{value!r} names no time ({error}): give {form}") from error
    return value


def _check_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError) as error:  # KeyError: not in the database
        raise ValueError(
            f"{value!r} is no known time zone: give a name such as Europe/Berlin, or UTC; where none is "
            "known, install tzdata"
        ) from error
    return value


def _check_page(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(
            f"{value!r} is no URL: give the metrics page, such as http://host:8000/metrics"
        )
    return value


Cron = Annotated[str, AfterValidator(_check_cron)]
Zone = Annotated[str, AfterValidator(_check_zone)]


class WindowConfig(Section):
    """When audits may run."""

    cron: Cron = Field(
        description="When the window opens: minute, hour, day, month and weekday, in `zone`."
    )
    duration_seconds: Annotated[float, Field(gt=0, le=_LONGEST_WINDOW_SECONDS)] = Field(
        description="For how long it is open, at most a week."
    )
    zone: Zone = Field(
        default="UTC",
        description="Time zone of `cron`. A time that summer time jumps over comes as much later; one "
        "that comes twice counts once, the first time.",
    )


class YieldConfig(Section):
    """A metric of the model server above which audits make way."""

    url: Annotated[str, AfterValidator(_check_page)] = Field(
        description="The server's metrics page, in Prometheus' text format."
    )
    metric: Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")] = Field(
        description="Name of a gauge or of a summary's quantiles there; of several series the greatest "
        "counts."
    )
    threshold: float = Field(description="Above it running audits are put back, and none starts.")
    whom: Literal["audits", "all"] = Field(
        default="audits",
        description="Who makes way: audits, or people's and alerts' jobs as well, as where all share a GPU.",
    )
    poll_seconds: Positive = Field(default=5.0, description="How often the page is asked for.")


class GpuConfig(Section):
    """How jobs share a GPU with a model server. Tested with stand-ins, never run on a GPU."""

    admission: Literal["auto", "require", "off"] = Field(
        default="auto",
        description="Whether jobs wait until NVML shows room for them. auto: where nvidia-ml-py is installed "
        "and the driver answers; require refuses to start without, and holds jobs back while it does not "
        "answer.",
    )
    reserve_bytes: _BytesOrNone = Field(
        default=2 << 30,
        description="Memory of the GPU that stays free beside a job, for what the model server may yet want.",
    )
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5, description="Most of the GPU's memory that torch takes in one worker."
    )
    poll_seconds: Positive = Field(
        default=5.0, description="How soon a job that was held back looks again."
    )


class ReliabilityConfig(Section):
    """How much is done to find out how far a portrait can be believed. See docs/portraits.md."""

    seeds: Annotated[int, Field(ge=0, le=16)] = Field(
        default=3,
        description="Further pictures of each feature from other seeds; 0 leaves their agreement out.",
    )
    share: Annotated[float, Field(gt=0.0, le=10.0)] = Field(
        default=0.5, description="Of a job's optimiser steps, that those pictures may take."
    )
    dataset: str | None = Field(
        default=None,
        description="Name of a dataset of photographs from the model's world: portraits are compared with "
        "those that excite the feature most.",
    )


class JobsConfig(Section):
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
    quarantine_seconds: _NotNegative = Field(
        default=3600.0,
        description="How long the same is refused after that; 0 refuses nothing. `sidecar job release` "
        "lifts it.",
    )
    audit_windows: list[WindowConfig] = Field(
        default=[], description="When audits may run; without any, at all times."
    )
    yield_to: YieldConfig | None = Field(
        default=None, description="What of the model server audits make way for."
    )
    checkpoint_bytes: _BytesOrNone = Field(
        default=512 << 20,
        description="Disk for the checkpoints of all jobs together, from which an interrupted one goes "
        "on; 0 keeps none.",
    )
    sandbox: Literal["auto", "require", "off"] = Field(
        default="auto",
        description="Whether a worker may use neither the network nor other files nor processes. auto "
        "takes what the kernel has and says what is missing; require refuses to start without all of it.",
    )
    memory_limit_bytes: _BytesOrNone = Field(
        default=16 << 30,
        description="Address space of a sandboxed worker without CUDA; 0 sets no limit.",
    )
    file_limit_bytes: _BytesOrNone = Field(
        default=1 << 30, description="Largest file a sandboxed worker may write; 0 sets no limit."
    )
    subprocesses: bool = Field(
        default=False, description="Whether a sandboxed worker may start processes."
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of a worker; 0 leaves the choice to torch."
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto, cpu, cuda or cuda:N."
    )
    python_path: list[Annotated[Path, AfterValidator(check_folder)]] = Field(
        default=[], description="Folders from which the worker may import model factories."
    )
    gpu: GpuConfig = Field(default_factory=GpuConfig, description="Sharing a GPU.")
    recipe: Annotated[dict[str, Any], AfterValidator(check_recipe)] = Field(
        default={}, description="Recipe values of jobs that do not name them."
    )
    reliability: ReliabilityConfig = Field(
        default_factory=ReliabilityConfig, description="How far portraits can be believed."
    )
