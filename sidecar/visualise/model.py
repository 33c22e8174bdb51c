"""Models as the methods see them: what images they take, what they are called by, and their maps.

There are two kinds. An ``ImageModel`` is a torch module and has gradients; a ``ForwardModel`` (in
``onnx_forward``) is a graph that ONNX Runtime executes and has none. ``VisionModel`` is what both
promise, and all that a method may use which needs no gradient.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn, Protocol

import torch
from torch import nn
from torch.nn import functional

from sidecar.errors import UnknownLayer, UnsupportedTarget
from sidecar.visualise.folding import fold_batch_norms

_SUGGESTIONS = 3


class Reached(BaseException):  # not an Exception, so that no model's own except clause swallows it
    """Ends a forward pass at the layer that was wanted."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


@dataclass(frozen=True, slots=True)
class InputForm:
    """How a model wants its images, beside their mean and deviation.

    Pictures are made in squares. A model of another aspect sees them stretched to it, as it sees the
    images that a server resizes for it.

    Attributes:
        height: Rows of the input in pixels; 0: the model's ``input_size``.
        width: Columns; 0: the model's ``input_size``.
        top: What white is before the mean is subtracted: 1 or 255.
        channels: Order of the colours.
        layout: Order of the axes.
    """

    height: int = 0
    width: int = 0
    top: float = 1.0
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def shape(self, size: int) -> tuple[int, int]:
        """Rows and columns of the input of a model of that size."""
        return self.height or size, self.width or size

    def apply(
        self, images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> torch.Tensor:
        """Turn colours from 0 to 1 into what the model takes, differentiably.

        Args:
            images: Shape ``(n, 3, side, side)``, red first.
            mean: Subtracted from each colour, in the order of ``channels`` and units of ``top``.
            std: Divides each after that.

        Returns:
            Shape ``(n, 3, height, width)``, or ``(n, height, width, 3)`` for ``nhwc``.
        """
        shape = self.shape(images.shape[-1])
        if shape != tuple(images.shape[2:]):
            images = functional.interpolate(
                images, shape, mode="bilinear", align_corners=False, antialias=True
            )
        if self.channels == "bgr":
            images = images.flip(1)
        middle, deviation = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (mean, std)
        )
        ready = (images * self.top - middle) / deviation
        return ready.permute(0, 2, 3, 1) if self.layout == "nhwc" else ready  # (n, h, w, 3)


class VisionModel(Protocol):
    """What every model promises, with gradients or without.

    Attributes:
        digest: What names its revision.
        input_size: Side in pixels of the square images it is given.
        device: Where its maps are.
        differentiable: Whether gradients flow from maps to images.
    """

    @property
    def digest(self) -> str: ...  # noqa: D102 - see the class

    @property
    def input_size(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def differentiable(self) -> bool: ...  # noqa: D102

    def layers(self) -> Sequence[str]:
        """Names of the layers that may be asked for."""

    def maps(self, path: str, images: torch.Tensor) -> torch.Tensor:
        """Return a layer's output for colours from 0 to 1, shape ``(n, 3, input_size, input_size)``.

        Returns:
            Shape ``(n, width, rows, columns)``, float32; a vector has one row and column.

        Raises:
            UnknownLayer: There is no such layer, or the model never runs it.
            UnsupportedTarget: Its output is not a tensor of 2 or 4 dimensions.
        """


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A model ready to be looked into: evaluation mode, parameters frozen, weights known.

    Attributes:
        module: Takes what ``normalise`` returns; in float32.
        digest: sha256 of its weights, see ``sidecar.weights``; of an ONNX model that of its file.
        input_size: Side in pixels of the square images it is given; the longer one of its input.
        mean: Subtracted from each colour, in units of ``form.top``.
        std: Divides each colour after that.
        device: Where the module lives.
        form: What else the module wants of its input.
        sites: Module path of each name a layer may be called by; empty: module paths are the names.
        differentiable: Always; graphs without gradients are ``ForwardModel``.
    """

    module: nn.Module
    digest: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    form: InputForm = InputForm()
    sites: Mapping[str, str] = field(default_factory=dict)
    differentiable: Literal[True] = True

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn colours from 0 to 1, shape ``(n, 3, h, w)``, into what the module takes."""
        return self.form.apply(images, self.mean, self.std)

    def layers(self) -> Sequence[str]:
        """Names of the layers that may be asked for."""
        return list(self.sites) or [name for name, _ in self.module.named_modules() if name]

    def find(self, path: str) -> nn.Module:
        """Return the module of a layer.

        Raises:
            UnknownLayer: There is none; the message suggests the most similar names.
        """
        if self.sites and path not in self.sites:
            unknown_layer(path, self.layers())
        try:
            return self.module.get_submodule(self.sites.get(path, path))
        except AttributeError:
            unknown_layer(path, self.layers())

    def maps(self, path: str, images: torch.Tensor) -> torch.Tensor:
        """Return a layer's output and run nothing above the layer, see ``VisionModel.maps``.

        The hook this needs is gone when the call returns or raises.
        """

        def stop(_module: nn.Module, _inputs: object, output: object) -> None:
            raise Reached(output)

        # On CUDA half precision is twice as fast and the noise of the recipe is far above its rounding.
        fast = self.device.type == "cuda" and torch.is_grad_enabled()
        handle = self.find(path).register_forward_hook(stop)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
                self.module(self.normalise(images))
        except Reached as reached:
            return as_maps(path, reached.output, len(images))
        finally:
            handle.remove()
        raise never_ran(path)

    def folded(self, taps: Collection[str] = ()) -> "ImageModel":
        """Return the model with batch norms folded into the convolutions before them.

        Every layer keeps its name. A layer in ``taps``, and every layer that is no convolution in
        front of a folded norm, keeps its values within 1e-4 of the largest; a folded norm returns what
        it returned. The digest stays: the revision is that of the weights that were loaded.

        Args:
            taps: Layers that will be looked at; a convolution among them is not folded into.

        Returns:
            A copy, or this model where it has no batch norm; it is unchanged.

        Raises:
            UnknownLayer: A tap does not exist.
        """
        for path in taps:
            self.find(path)
        if not any(isinstance(inner, nn.BatchNorm2d) for inner in self.module.modules()):
            return self
        kept = {self.sites.get(path, path) for path in taps}
        grey = torch.full((1, 3, self.input_size, self.input_size), 0.5, device=self.device)
        return replace(self, module=fold_batch_norms(self.module, self.normalise(grey), kept))


def with_gradients(model: VisionModel, method: str, without: Sequence[str] = ()) -> ImageModel:
    """Return a model that a method of gradients can work on.

    Args:
        model: Any model.
        method: What wants the gradients.
        without: Methods that want none.

    Raises:
        UnsupportedTarget: The model only runs forward; the message names ``without``.
    """
    if isinstance(model, ImageModel):
        return model
    instead = f"use {', '.join(without)}" if without else "no other method is there yet"
    raise UnsupportedTarget(
        f"method {method} needs gradients, and the model only runs forward in ONNX Runtime: "
        f"{instead}, or configure it with gradients: true or a factory"
    )


def unknown_layer(path: str, names: Sequence[str]) -> NoReturn:
    """Refuse a name, with the most similar ones.

    Raises:
        UnknownLayer: Always.
    """
    near = difflib.get_close_matches(path, names, _SUGGESTIONS)
    hint = f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(names[:3])}"
    raise UnknownLayer(f"the model has no layer {path}: {hint}")


def never_ran(path: str) -> UnknownLayer:
    """Say that a layer is there to no purpose."""
    return UnknownLayer(f"layer {path} exists, but the model's forward pass never runs it")


def as_maps(path: str, output: object, images: int) -> torch.Tensor:
    """Return what a layer gave as maps, shape ``(n, width, rows, columns)``, float32.

    Raises:
        UnsupportedTarget: It is not a tensor of 2 or 4 dimensions for that many images.
    """
    if not isinstance(output, torch.Tensor):
        raise UnsupportedTarget(
            f"layer {path} returns {type(output).__name__}, need a tensor: name a module inside it"
        )
    shape = tuple(output.shape)
    if len(shape) not in (2, 4) or shape[0] != images or 0 in shape:
        raise UnsupportedTarget(
            f"layer {path} returns shape {shape} for {images} image(s): need (n, channels, rows, "
            "columns) or (n, units)"
        )
    return output.float().reshape(*shape, *(1,) * (4 - len(shape)))  # (n, width, rows, columns)
