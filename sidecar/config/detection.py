"""The sections that say how distributions are kept and when something is wrong with them."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from sidecar.config.values import Bytes, Count, Positive, Section, Windows


class StatisticsConfig(Section):
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


class SpikeConfig(Section):
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


class ScreenConfig(Section):
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
