"""The sections that say what is kept on disk."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from sidecar.config.values import (
    Bytes,
    Positive,
    Section,
    check_folder,
    check_no_doubles,
    check_place,
)

_LEAST_RECORDING = 1 << 16  # a few windows of a thousand flagged features


class StoreConfig(Section):
    """What is kept on disk."""

    artifacts: Annotated[str, AfterValidator(check_place)] = Field(
        default="",
        description="Folder of artifacts, or fsspec URL such as s3://bucket/prefix, of one daemon alone; "
        "credentials come from the environment. Default: artifacts in state_dir.",
    )
    artifact_limit_bytes: Bytes = Field(
        default=4 << 30, description="Artifacts beyond which the oldest unreferenced are removed."
    )
    artifact_max_age_days: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Age at which an unreferenced artifact is removed in any case. Default: never.",
    )
    artifact_cache_bytes: Bytes = Field(
        default=256 << 20,
        description="Most bytes of an object store's artifacts kept in state_dir to be read again.",
    )
    snapshot_seconds: Positive = Field(
        default=30.0, description="Interval of state snapshots: the most that kill -9 can lose."
    )
    shared_baselines: Annotated[Path, AfterValidator(check_folder)] | None = Field(
        default=None,
        description="Folder of *.baseline files from `sidecar baseline export`; a layer for which there "
        "is one takes it on instead of learning its own, so that replicas compare with the same.",
    )


class EvidenceConfig(Section):
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


class RecordingConfig(Section):
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
        AfterValidator(check_no_doubles),
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
