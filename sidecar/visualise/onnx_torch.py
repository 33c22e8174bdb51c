"""Turns an ONNX graph into a torch module, and does not believe the result until it has been compared.

The converter is ``onnx2pytorch``. It imports torchvision for five operations, of which none is in a
classifier, and torchvision does not load beside every build of torch; so it is imported without.
"""

import contextlib
import math
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sidecar.errors import ModelLoadFailed
from sidecar.visualise.model import InputForm
from sidecar.visualise.onnx_files import OnnxFile
from sidecar.visualise.onnx_forward import CPU, open_session, run_once, tapped
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, random_spectrum, render

PARITY_LIMIT = 1e-3
"""Largest difference at a tap, over the largest value there. The relative tolerance of ONNX's own
backend tests; what was measured is in docs/decisions/018."""

_SEED = 20
_TINY = 1e-12  # a value that is nought everywhere
_NO_GRADIENT = ("Quantize", "QLinear", "Dequantize", "Integer", "QGemm", "QAttention")
"""Parts of the names of operations on whole numbers, which have no gradient."""

_NEED_TORCHVISION = {
    "torchvision": (),
    "torchvision.io": ("decode_image", "ImageReadMode"),
    "torchvision.ops": ("deform_conv2d", "nms", "box_convert", "roi_align", "roi_pool"),
}
_TORCHVISION_OPERATIONS = frozenset(
    {"DeformConv", "ImageDecoder", "MaxRoiPool", "NonMaxSuppression", "RoiAlign"}
)


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a converted module is from ONNX Runtime, on the same images.

    Attributes:
        tap: The value that differs most.
        difference: Its largest difference, absolute.
        ratio: The same over the largest value of that tap.
        taps: Values that were compared.
    """

    tap: str
    difference: float
    ratio: float
    taps: int


class _Call(nn.Module):
    """A function as a module, so that its output can be tapped."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function
        # The one function that takes its inputs as a list.
        self._as_list = getattr(function, "func", None) is torch.cat

    def forward(self, *given: Any) -> Any:
        """Call it."""
        return self._function(list(given)) if self._as_list else self._function(*given)


def convert(file: OnnxFile) -> tuple[nn.Module, dict[str, str]]:
    """Turn a graph into a torch module in evaluation mode.

    Returns:
        The module, and the path in it of every name in ``file.taps``.

    Raises:
        ModelLoadFailed: The graph works on whole numbers, has operations or versions of them that the
            converter does not know, or the converter is not installed; the message names them and says
            that ``gradients: false`` runs the graph without.
    """
    _refuse_quantised(file)
    try:
        with _without_torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of read-only buffers, which are copied at once
            from onnx2pytorch import ConvertModel  # noqa: PLC0415 - optional package

            module = ConvertModel(file.proto)
    except ImportError as error:
        raise ModelLoadFailed(
            f"onnx {file.path}: gradients need: pip install onnx2pytorch, or gradients: false"
        ) from error
    except Exception as error:  # whatever an unforeseen graph makes of it
        raise _cannot(file, f"onnx2pytorch fails with {type(error).__name__}: {error}") from error
    for name in module.mapping.values():
        inner = getattr(module, name)
        if not isinstance(inner, nn.Module):
            delattr(module, name)
            module.add_module(name, _Call(inner))
    sites = {name: module.mapping[value] for name, value in file.taps.items()}
    return module.eval().requires_grad_(requires_grad=False), sites


def check_parity(
    file: OnnxFile,
    module: nn.Module,
    form: InputForm,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    images: torch.Tensor | None = None,
) -> Parity:
    """Compare every value of a converted graph with what ONNX Runtime makes of it.

    Args:
        file: The graph.
        module: From ``convert``, on the CPU.
        form: How it wants its images; with height and width.
        mean: Subtracted from each colour.
        std: Divides each colour after that.
        images: Colours from 0 to 1, shape ``(n, 3, side, side)``; None: one of independent pixels and one
            with the spectrum and the colours of photographs.

    Raises:
        ModelLoadFailed: Some value differs by more than ``PARITY_LIMIT``; the message names the worst. Or
            either runtime fails on a batch of two.
    """
    side = max(form.height, form.width)
    ready = form.apply(_images(side) if images is None else images, mean, std).contiguous()
    found = _distances(file, module, ready, _reference(file, ready))
    # The first of several that differ alike is where it begins.
    worst = max(found, key=lambda one: found[one][1])
    difference, ratio = found[worst]
    if not ratio <= PARITY_LIMIT:
        raise _cannot(
            file,
            f"its conversion differs from ONNX Runtime by {difference:.3g} at {worst}, {ratio:.3g} of the "
            f"largest value there (limit {PARITY_LIMIT:g})",
        )
    return Parity(worst, difference, ratio, len(found))


def _distance(found: object, reference: torch.Tensor) -> tuple[float, float]:
    """Largest difference, absolute and over the largest value; infinite where shapes differ."""
    if not isinstance(found, torch.Tensor) or found.shape != reference.shape:
        return math.inf, math.inf
    if not reference.numel():
        return 0.0, 0.0
    difference = float((found - reference).abs().max())
    if math.isnan(difference):
        return math.inf, math.inf
    return difference, difference / max(float(reference.abs().max()), _TINY)


def _images(side: int) -> torch.Tensor:
    """Return pixels drawn one by one, and a picture with the spectrum and colours of photographs."""
    stream = torch.Generator().manual_seed(_SEED)
    pixels = torch.rand((1, 3, side, side), generator=stream)
    even = side + side % 2
    # Their start is a faint cloud; a hundred times it has the contrast of a photograph.
    spectrum = 100 * random_spectrum(even, stream)[None]
    photograph = render(spectrum, frequency_scale(even, 1.0), colour_axes(decorrelated=True))[
        :, :, :side, :side
    ]
    return torch.cat([pixels, photograph])  # (2, 3, side, side)


def _reference(file: OnnxFile, ready: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every value of the graph that is made of floats, as ONNX Runtime computes it."""
    values = list(dict.fromkeys(file.taps.values()))
    session = open_session(tapped(file, values), (CPU,))
    try:
        outputs = run_once(session, file.input_name, ready.numpy(), values)
    except ModelLoadFailed as error:
        raise _cannot(
            file, f"{error.message}; export it with a batch of any size, not {file.input_shape[0]}"
        ) from error
    return {
        value: torch.from_numpy(output)
        for value, output in zip(values, outputs, strict=True)
        if isinstance(output, np.ndarray) and output.dtype.kind == "f"
    }


def _distances(
    file: OnnxFile, module: nn.Module, ready: torch.Tensor, wanted: dict[str, torch.Tensor]
) -> dict[str, tuple[float, float]]:
    """Run the module and hold each value against its reference as it comes, keeping none."""
    found = dict.fromkeys(wanted, (math.inf, math.inf))  # what never comes differs
    handles = []
    for value, name in module.mapping.items():  # type: ignore[union-attr, operator]  # the converter's own

        def compare(_m: nn.Module, _i: object, output: object, value: str = value) -> None:
            if value in wanted:
                found[value] = _distance(output, wanted[value])

        handles.append(module.get_submodule(name).register_forward_hook(compare))
    try:
        with torch.no_grad():
            module(ready)
    except Exception as error:
        raise _cannot(
            file,
            f"its conversion fails on {len(ready)} images of {tuple(ready.shape[1:])} with "
            f"{type(error).__name__}: {str(error)[:200]}",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _refuse_quantised(file: OnnxFile) -> None:
    kinds = sorted({node.op_type for node in file.proto.graph.node})
    whole = [kind for kind in kinds if any(part in kind for part in _NO_GRADIENT)]
    if whole:
        raise _cannot(file, f"it is quantised ({', '.join(whole)}), and whole numbers have none")
    absent = [kind for kind in kinds if kind in _TORCHVISION_OPERATIONS]
    if absent:
        raise _cannot(file, f"{', '.join(absent)} cannot be converted")


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let a package be imported as if torchvision were there, without loading it."""
    own = {name: sys.modules.pop(name, None) for name in _NEED_TORCHVISION}
    for name, members in _NEED_TORCHVISION.items():
        sys.modules[name] = _stand_in(name, members)
    for name in ("io", "ops"):
        setattr(sys.modules["torchvision"], name, sys.modules[f"torchvision.{name}"])
    try:
        yield
    finally:
        for name, module in own.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _stand_in(name: str, members: Sequence[str]) -> types.ModuleType:
    module = types.ModuleType(name)
    for member in members:
        setattr(module, member, None)
    return module


def _cannot(file: OnnxFile, why: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"onnx {file.path} cannot have gradients: {why}; with gradients: false it is run without"
    )
