"""Folds batch norms into the convolutions in front of them: the same function, fewer passes of memory.

In evaluation mode a batch norm multiplies and shifts each channel by constants, which the convolution
before it can do as well. Which pairs there are is not read off the code but watched in a forward
pass: a pair is folded only if the norm alone uses what the convolution returns, and if the folded
convolution, run on what it was really given, returns what the norm did.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

FOLD_LIMIT = 1e-4
"""Largest difference of a folded pair, over the largest value it returns; rounding leaves some 1e-6."""


@dataclass(slots=True)
class _Call:
    """What one module was given and returned: the tensors, and their values at that moment."""

    given: torch.Tensor
    returned: torch.Tensor
    given_values: torch.Tensor
    returned_values: torch.Tensor


@dataclass(slots=True)
class _Trace:
    """One forward pass, module by module.

    Attributes:
        calls: Each module's calls, by its first path.
        returning: Paths of the modules that returned a tensor, by the tensor's identity. The calls
            keep the tensors alive, so that no two share one.
    """

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    returning: dict[int, list[str]] = field(default_factory=dict)


class _Uses(TorchFunctionMode):
    """Counts how often each watched tensor goes into something that makes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}
        self.paused = False
        self._alive: list[object] = []  # so that no identity is given to a second tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused and _holds_tensor(result):  # asking for a shape is no use
            for given in (*args, *(kwargs or {}).values()):
                for one in given if isinstance(given, list | tuple) else (given,):
                    self.counts[id(one)] = self.counts.get(id(one), 0) + 1
                    self._alive.append(one)
        return result


def _holds_tensor(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(one, torch.Tensor) for one in value)
    return isinstance(value, torch.Tensor)


def fold_batch_norms(
    module: nn.Module, example: torch.Tensor, kept: Collection[str] = ()
) -> nn.Module:
    """Return a copy of a module with the batch norms folded that can be folded exactly.

    A folded norm becomes an identity under its own name, so that it still returns what it did. What the
    convolution in front of it returns is another value, so a pair stays as it is where a path in
    ``kept`` returns that.

    Args:
        module: In evaluation mode; unchanged.
        example: Input of one image.
        kept: Module paths that must go on returning what they do.

    Returns:
        The copy, in which each pair's output differs by at most ``FOLD_LIMIT`` of its largest value.
    """
    trace, counts = _watch(module, example)
    found = copy.deepcopy(module)
    for path, calls in trace.calls.items():
        norm = module.get_submodule(path)
        if not isinstance(norm, nn.BatchNorm2d) or len(calls) != 1:
            continue
        before = trace.returning.get(id(calls[0].given), [])
        source = next((p for p in before if isinstance(module.get_submodule(p), nn.Conv2d)), None)
        if source is None or counts.get(id(calls[0].given)) != 1 or set(before) & set(kept):
            continue
        folded = _folded(module.get_submodule(source), norm)
        if folded is not None and len(trace.calls[source]) == 1:
            with torch.no_grad():
                same = _agrees(
                    folded(trace.calls[source][0].given_values), calls[0].returned_values
                )
            if same:
                _put(found, source, folded)
                _put(found, path, nn.Identity())
    return found.eval().requires_grad_(requires_grad=False)


def _watch(module: nn.Module, example: torch.Tensor) -> tuple[_Trace, dict[int, int]]:
    trace, uses = _Trace(), _Uses()
    handles: list[RemovableHandle] = []
    for path, inner in module.named_modules():

        def note(_m: nn.Module, given: tuple[Any, ...], returned: object, path: str = path) -> None:
            if isinstance(returned, torch.Tensor) and given and isinstance(given[0], torch.Tensor):
                uses.paused = True  # copies, because what comes after may work in place
                values = (given[0].clone(), returned.clone())
                uses.paused = False
                trace.calls.setdefault(path, []).append(_Call(given[0], returned, *values))
                trace.returning.setdefault(id(returned), []).append(path)

        handles.append(inner.register_forward_hook(note))
    try:
        with torch.no_grad(), uses:
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return trace, uses.counts


def _folded(source: nn.Module, norm: nn.BatchNorm2d) -> nn.Module | None:
    """Return the convolution that does both, or None where the norm has no constants of its own."""
    if norm.running_mean is None or norm.running_var is None or norm.training:
        return None
    assert isinstance(source, nn.Conv2d)  # noqa: S101 - found as one
    if "weight" not in source._parameters:  # noqa: SLF001 - a parametrised weight is computed anew
        return None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)  # (channels,)
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if source.bias is not None:
        shift = shift + source.bias.double() * scale
    folded = copy.deepcopy(source)
    kernel = source.weight.double() * scale[:, None, None, None]
    folded.weight = nn.Parameter(kernel.to(source.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(shift.to(source.weight.dtype), requires_grad=False)
    return folded


def _agrees(folded: object, wanted: torch.Tensor) -> bool:
    if not isinstance(folded, torch.Tensor) or folded.shape != wanted.shape:
        return False
    limit = FOLD_LIMIT * float(wanted.abs().max())
    return bool((folded - wanted).abs().max() <= limit)


def _put(module: nn.Module, path: str, child: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, child)
