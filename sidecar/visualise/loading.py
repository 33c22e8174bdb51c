"""Loads the operator's model without ever unpickling anything but tensors."""

import importlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidecar.errors import DigestMismatch, ModelLoadFailed
from sidecar.visualise.folding import fold_batch_norms
from sidecar.weights import module_digest

_SERVED_DTYPES = (torch.bfloat16, torch.float16)
"""Precisions a server may have cast a checkpoint to; its revision is then that of the cast weights."""

_PICKLE_MARKS = ("weights_only", "Unsupported global", "Unsupported operand", "persistent_load")
"""What torch's refusals of pickled code have in common; its own advice is to switch safety off."""


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A model ready to be looked into: evaluation mode, parameters frozen, weights known.

    Attributes:
        module: Takes normalised images, shape ``(n, 3, input_size, input_size)``; in float32.
        digest: sha256 of its weights, see ``sidecar.weights``.
        input_size: Side of the square input in pixels.
        mean: Subtracted from each colour, in units of the 0 to 1 range.
        std: Divides each colour after that.
        device: Where the module lives.
    """

    module: nn.Module
    digest: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def folded(self, taps: Collection[str] = ()) -> "ImageModel":
        """Return the model with batch norms folded into the convolutions before them.

        A copy, which computes the same up to rounding; layers in ``taps`` keep what they return.
        """
        if not any(isinstance(inner, nn.BatchNorm2d) for inner in self.module.modules()):
            return self
        grey = torch.full((1, 3, self.input_size, self.input_size), 0.5, device=self.device)
        return replace(self, module=fold_batch_norms(self.module, self.normalise(grey), taps))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn colours from 0 to 1, shape ``(n, 3, h, w)``, into what the module takes."""
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (images - mean) / std


def load_model(
    factory: str,
    weights: Path | None,
    *,
    input_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: str = "auto",
    expected_digest: str = "",
) -> ImageModel:
    """Build the operator's model, load its weights, and make sure they are the ones asked for.

    Weights are read from safetensors, or with ``torch.load(weights_only=True)``: a file that holds
    pickled code is refused without running it. The factory is code the operator named, so it runs.

    Args:
        factory: ``package.module:function``; called without arguments, returns a torch module.
        weights: State dict loaded strictly into it; None where the factory loads its own.
        input_size: Side of the square input in pixels.
        mean: Colour means in units of the 0 to 1 range.
        std: Colour standard deviations.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        expected_digest: sha256 the weights must have as they are or cast to bfloat16 or float16, as
            servers do; they then have the values of that cast. Empty: any.

    Raises:
        ModelLoadFailed: The factory cannot be imported or fails, the file cannot be read, is a
            pickle, does not fit, or holds NaN; the device does not exist. The message names which.
        DigestMismatch: The weights are another revision.
    """
    module = _build(factory)
    if weights is not None:
        _fill(module, _read(weights), weights, factory)
    _refuse_broken(module, weights, factory)
    _refuse_odd_input(input_size, mean, std)
    digest = module_digest(module)
    if expected_digest and digest != expected_digest:
        served = _served_dtype(module, expected_digest)
        if served is None:
            raise DigestMismatch(
                f"model {factory} with weights {weights or 'of its own'} has digest {digest}, and "
                f"another in half precision, but {expected_digest} was asked for: point the model's "
                "weights at that revision"
            )
        module, digest = module.to(served), expected_digest
    place = _device(device)
    try:
        # The values are those that are served; half-precision arithmetic is for serving, its
        # gradients vanish, and on a CPU it is slower.
        module = module.float().eval().requires_grad_(requires_grad=False).to(place)
    except RuntimeError as error:
        raise ModelLoadFailed(f"model {factory} does not fit on {place}: {error}") from error
    return ImageModel(module, digest, input_size, mean, std, place)


def _served_dtype(module: nn.Module, digest: str) -> torch.dtype | None:
    """Return the precision in which a module's weights have a digest; None if in none."""
    return next((one for one in _SERVED_DTYPES if module_digest(module, one) == digest), None)


def _build(factory: str) -> nn.Module:
    path, colon, name = factory.partition(":")
    if not colon or not path or not name:
        raise ModelLoadFailed(f"factory {factory!r} is not 'package.module:function'")
    make = _import(factory, path, name)
    try:
        module = make()
    except (Exception, SystemExit) as error:  # a factory that exits must not look like a crash
        raise ModelLoadFailed(
            f"factory {factory} failed with {_words(error)}: it must run without arguments in the "
            "worker's environment"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelLoadFailed(
            f"factory {factory} returned {type(module).__name__}, need a torch.nn.Module"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelLoadFailed(
            f"factory {factory} returned a TorchScript module, which takes no hooks: return the "
            "eager module"
        )
    return module


def _import(factory: str, path: str, name: str) -> Callable[[], Any]:
    try:
        found = getattr(importlib.import_module(path), name, None)
    except (Exception, SystemExit) as error:
        raise ModelLoadFailed(
            f"factory {factory}: importing {path} failed with {_words(error)}: install it for the "
            "worker or add its folder to jobs.python_path"
        ) from error
    if not callable(found):
        raise ModelLoadFailed(f"factory {factory}: {path} has no function {name}")
    return found  # type: ignore[no-any-return]  # checked to be callable, which is all we need


def _read(weights: Path) -> Mapping[str, torch.Tensor]:
    try:
        document = _parse(weights)
    except ModelLoadFailed:
        raise
    except Exception as error:
        raise ModelLoadFailed(_refusal(weights, error)) from error
    if isinstance(document, Mapping) and isinstance(document.get("state_dict"), Mapping):
        document = document["state_dict"]  # a training checkpoint
    odd = _first_odd(document)
    if odd:
        raise ModelLoadFailed(
            f"weights {weights}: {odd}; need a state dict, that is names to tensors"
        )
    return document  # type: ignore[no-any-return]  # checked just above


def _parse(weights: Path) -> Any:
    if weights.suffix != ".safetensors":
        return torch.load(weights, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise ModelLoadFailed(
            f"weights {weights}: reading safetensors needs the package: pip install safetensors"
        ) from error
    return load_file(weights)


def _refusal(weights: Path, error: Exception) -> str:
    if any(mark in str(error) for mark in _PICKLE_MARKS):
        return (
            f"weights {weights} hold pickled objects, not just tensors, and were not run: save "
            "model.state_dict() with safetensors or torch.save"
        )
    return (
        f"weights {weights} cannot be read: {_words(error)}; need a torch state dict or safetensors"
    )


def _first_odd(document: object) -> str:
    """Say what keeps a document from being a state dict; empty if nothing does."""
    if not isinstance(document, Mapping):
        return f"the file holds {type(document).__name__}"
    for name, value in document.items():
        if not isinstance(value, torch.Tensor):
            return f"entry {name!r} is {type(value).__name__}"
    return ""


def _fill(
    module: nn.Module, state: Mapping[str, torch.Tensor], weights: Path, factory: str
) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except Exception as error:
        raise ModelLoadFailed(
            f"weights {weights} do not fit the module of {factory}: {error}"
        ) from error


def _refuse_broken(module: nn.Module, weights: Path | None, factory: str) -> None:
    source = f"weights {weights}" if weights is not None else f"the weights of {factory}"
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor) and torch.isnan(tensor).any():
            raise ModelLoadFailed(f"{source}: tensor {name} holds NaN: use an intact checkpoint")
    # An attention mask may be infinite on purpose, so buffers are let off.
    for name, parameter in module.named_parameters():
        if torch.isinf(parameter).any():
            raise ModelLoadFailed(
                f"{source}: parameter {name} is infinite: use an intact checkpoint"
            )


def _refuse_odd_input(
    size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    if size < 1 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ModelLoadFailed(
            f"model input of size {size}, mean {mean}, std {std} makes no sense: need a positive "
            "size, finite means and positive deviations"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadFailed(
            f"device {name!r} cannot be used here: {_words(error)}; try auto or cpu"
        ) from error
    return device


def _words(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__
