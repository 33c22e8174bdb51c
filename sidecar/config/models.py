"""The sections that say which models are watched, which of their features, and how pictures are made."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sidecar.config.values import (
    Count,
    Positive,
    Section,
    check_factory,
    check_file,
    check_folder,
    check_labels,
    check_model_name,
    check_no_doubles,
    check_recipe,
    check_selector,
    check_slice,
)


class InputConfig(Section):
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


class ModelConfig(Section):
    """A model the sidecar watches and can make pictures of."""

    name: Annotated[str, AfterValidator(check_model_name)] = Field(
        description="Registry name; what the hooks say in their hello."
    )
    factory: Annotated[str, AfterValidator(check_factory)] | None = Field(
        default=None,
        description="package.module:function that returns the torch module; runs in the worker only.",
    )
    weights: Annotated[Path, AfterValidator(check_file)] | None = Field(
        default=None,
        description="safetensors or torch state-dict file, loaded into what the factory returns.",
    )
    labels: Annotated[Path, AfterValidator(check_labels)] | None = Field(
        default=None, description="JSON list of class names, in the order of the logits."
    )
    input: InputConfig = Field(default_factory=InputConfig, description="What images it takes.")
    sibling: str | None = Field(
        default=None,
        description="Name of another model with the same classes: portraits of logits are shown to it, and "
        "are believed the more if it sees the class in them.",
    )


class DatasetConfig(Section):
    """A folder of images that features are looked for in, and revisions compared on."""

    name: Annotated[str, AfterValidator(check_model_name)] = Field(
        description="What recipes call it."
    )
    folder: Annotated[Path, AfterValidator(check_folder)] = Field(
        description="Where the images lie, in folders of any depth: PNG, JPEG, WebP, BMP, GIF, TIFF."
    )
    image_limit: Count = Field(
        default=2000, description="Most images taken, in order of their paths."
    )


class FlagConfig(Section):
    """A feature somebody wants to be told about."""

    feature: Annotated[str, AfterValidator(check_selector)] = Field(
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
    slice: Annotated[dict[str, str], AfterValidator(check_slice)] = Field(
        default={}, description="Only requests with all these key: value pairs count. Default: all."
    )
    detectors: Annotated[
        list[Literal["spike", "conditions", "drift"]], AfterValidator(check_no_doubles)
    ] = Field(
        default=["spike", "conditions", "drift"],
        min_length=1,
        description="What looks at it: spike pages, conditions are certain (never seen, not finite, silent, "
        "saturated), drift is slow and asks for a ticket.",
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
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of a worker; 0 leaves the choice to torch."
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto, cpu, cuda or cuda:N."
    )
    python_path: list[Annotated[Path, AfterValidator(check_folder)]] = Field(
        default=[], description="Folders from which the worker may import model factories."
    )
    recipe: Annotated[dict[str, Any], AfterValidator(check_recipe)] = Field(
        default={}, description="Recipe values of jobs that do not name them."
    )
    reliability: ReliabilityConfig = Field(
        default_factory=ReliabilityConfig, description="How far portraits can be believed."
    )
