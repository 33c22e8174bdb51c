"""The sections that say which models are watched, which of their features, and how pictures are made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sidecar.config.values import (
    Count,
    Positive,
    Section,
    check_dictionary_file,
    check_digest,
    check_direction_labels,
    check_factory,
    check_file,
    check_folder,
    check_labels,
    check_layer_name,
    check_model_name,
    check_no_doubles,
    check_range,
    check_selector,
    check_slice,
)


class InputConfig(Section):
    """What images the model takes."""

    size: Annotated[int, Field(ge=8, le=2048)] = Field(
        default=224, description="Side of the square input in pixels."
    )
    height: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        default=None,
        description="Rows of an input that is not square, with width; pictures are stretched to it.",
    )
    width: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        default=None, description="Columns of an input that is not square, with height."
    )
    range: Annotated[list[int], AfterValidator(check_range)] = Field(
        default=[0, 1],
        description="What black and white are before the mean is subtracted: [0, 1] or [0, 255].",
    )
    mean: list[float] = Field(
        default=[0.485, 0.456, 0.406],
        min_length=3,
        max_length=3,
        description="Subtracted from each colour, in units of range and the order of channels.",
    )
    std: list[Positive] = Field(
        default=[0.229, 0.224, 0.225],
        min_length=3,
        max_length=3,
        description="Divides each colour after the mean is subtracted.",
    )
    channels: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of the colours.")
    layout: Literal["nchw", "nhwc"] = Field(
        default="nchw",
        description="Order of the axes: batch, colours, rows, columns, or colours last.",
    )

    @model_validator(mode="after")
    def _agrees(self) -> "InputConfig":
        given = self.model_fields_set
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width come together: name both, or size alone")
        if self.height is not None and "size" in given:
            raise ValueError("size is of a square input: remove it, or height and width")
        if self.range != [0, 1] and not {"mean", "std"} <= given:
            raise ValueError(
                f"range {self.range} needs mean and std in its units, such as mean [127, 127, "
                "127] and std [128, 128, 128]"
            )
        return self


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
    onnx: Annotated[Path, AfterValidator(check_file)] | None = Field(
        default=None, description="ONNX file, in place of factory and weights."
    )
    gradients: bool = Field(
        default=True,
        description="Whether an ONNX model is converted to torch, for methods that need gradients; false: it "
        "only runs forward, in ONNX Runtime.",
    )
    digest: Annotated[str, AfterValidator(check_digest)] = Field(
        default="",
        description="sha256 that the model must have when it is loaded: of the weights, as in a feature's "
        "revision, or of the ONNX file. Empty: any.",
    )
    labels: Annotated[Path, AfterValidator(check_labels)] | None = Field(
        default=None, description="JSON list of class names, in the order of the logits."
    )
    jobs: Count = Field(default=1, description="Most jobs of this model at once.")
    input: InputConfig = Field(default_factory=InputConfig, description="What images it takes.")
    sibling: str | None = Field(
        default=None,
        description="Name of another model with the same classes: portraits of logits are shown to it, and "
        "are believed the more if it sees the class in them.",
    )

    @property
    def is_loadable(self) -> bool:
        """Whether there is something that a worker can load, beside a name to watch."""
        return self.factory is not None or self.onnx is not None

    @model_validator(mode="after")
    def _is_one_model(self) -> "ModelConfig":
        if self.onnx is not None and self.factory is not None:
            raise ValueError(
                f"factory {self.factory!r} and onnx {str(self.onnx)!r} are two models: name one of them"
            )
        if self.weights is not None and self.factory is None:
            raise ValueError(
                f"weights {str(self.weights)!r} are loaded into what a factory returns: name the factory"
            )
        if self.onnx is None and not self.gradients:
            raise ValueError("gradients: false is for onnx models: remove it")
        return self


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


class DictionaryConfig(Section):
    """A file of vectors over the units of one layer, whose rows are its directions."""

    name: Annotated[str, AfterValidator(check_model_name)] = Field(
        description="What manifests call it."
    )
    model: Annotated[str, AfterValidator(check_model_name)] = Field(
        description="Name of the model, under models."
    )
    layer: Annotated[str, AfterValidator(check_layer_name)] = Field(
        description="Module path of the layer; a layer has at most one dictionary."
    )
    file: Annotated[Path, AfterValidator(check_dictionary_file)] = Field(
        description=".npy, or safetensors with one tensor: (directions, units of the layer), or (units,). Read "
        "in the worker only."
    )
    digest: Annotated[str, AfterValidator(check_digest)] = Field(
        default="", description="sha256 that the file must have. Empty: any."
    )
    labels: Annotated[Path, AfterValidator(check_direction_labels)] | None = Field(
        default=None,
        description="JSON list of the directions' names, in the order of the rows: what stands in place of "
        "the row's number.",
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
