"""How a module's output becomes rows: one function for each kind of unit and view.

Each takes a detached floating tensor and gives rows ``(items * rows_per_item, width)`` in memory of
their own, so that later in-place operations of the model cannot change them. On a CPU the only
reductions are maximum, mean and norm: a variance costs twenty times the copy.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from sidecar.errors import ShapeMismatch
from sidecar.features import FeatureKind, View
from sidecar.hooks.plan import Tap

Reduction = Callable[[torch.Tensor, int], torch.Tensor]
"""Takes the output and a random number; gives rows, those of one item next to each other."""

_SEQUENCE = 3  # dimensions of (items, positions, features)
_ATTENTION = 4  # dimensions of (items, heads, queries, keys)


def reduction(tap: Tap, max_rows: int) -> Reduction:
    """Return the function that turns outputs of a tap's modules into rows."""
    view = tap.resolved_view
    if tap.kind is FeatureKind.CHANNEL:
        return _channel_max if view is View.MAX else _channel_mean
    if tap.kind is FeatureKind.LOGIT:
        return _logit
    if tap.kind is FeatureKind.NEURON:
        return lambda output, draw: _neuron(output, draw, max_rows)
    if view is View.ENTROPY:
        return _entropy
    return lambda output, _: _head_norm(output, tap.heads)


def fitting_dims(tap: Tap) -> tuple[int, ...]:
    """Return the numbers of dimensions a tap's tensors may have."""
    if tap.kind is FeatureKind.CHANNEL:
        return (2, 3, 4, 5)
    if tap.kind is FeatureKind.LOGIT:
        return (2,)
    if tap.kind is FeatureKind.NEURON:
        return (2, 3)
    return (_ATTENTION,) if tap.resolved_view is View.ENTROPY else (_SEQUENCE,)


def find_tensor(output: object, dims: tuple[int, ...]) -> torch.Tensor:
    """Return the first floating tensor of a module's output with a fitting number of dimensions.

    Raises:
        ShapeMismatch: There is none.
    """
    for tensor in _tensors(output):
        if tensor.dim() in dims and tensor.is_floating_point() and tensor.numel():
            return tensor.detach()
    raise ShapeMismatch(
        f"the output is {_describe(output)}: the tap needs a non-empty floating tensor of "
        f"{' or '.join(map(str, dims))} dimensions"
    )


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)


def _describe(output: object) -> str:
    shapes = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in _tensors(output)]
    return f"{type(output).__name__} of {', '.join(shapes[:4]) or 'no tensors'}"


# For each number of dimensions those that are neither items nor channels.
_POSITIONS = {2: (), 3: (1,), 4: (2, 3), 5: (2, 3, 4)}


def _channel_max(output: torch.Tensor, _: int) -> torch.Tensor:
    where = _POSITIONS[output.dim()]
    return output.amax(where) if where else output.clone()  # (items, channels)


def _channel_mean(output: torch.Tensor, _: int) -> torch.Tensor:
    where = _POSITIONS[output.dim()]
    if not where:
        return output.clone()  # (items, channels)
    # float32 sums: half-precision ones lose the mean of a large feature map.
    wide = torch.float32 if output.dtype in (torch.float16, torch.bfloat16) else None
    return output.mean(where, dtype=wide)  # (items, channels)


def _logit(output: torch.Tensor, _: int) -> torch.Tensor:
    return output.clone()  # (items, classes)


def _neuron(output: torch.Tensor, draw: int, max_rows: int) -> torch.Tensor:
    """Take every position of short sequences, and a random comb of long ones."""
    if output.dim() == 2:  # noqa: PLR2004 - (items, features)
        return output.clone()
    positions = output.shape[1]
    rows = min(positions, max_rows)
    step = positions // rows
    # A slice and not an index: it needs no index tensor on the device.
    start = draw % (positions - step * (rows - 1))
    comb = output[:, start : start + step * rows : step]  # (items, rows, features)
    # reshape alone may alias the live tensor.
    return comb.reshape(-1, output.shape[2]).clone()


def _head_norm(output: torch.Tensor, heads: int) -> torch.Tensor:
    items, positions, width = output.shape
    if width % heads:
        raise ShapeMismatch(f"{width} features do not divide into {heads} heads")
    slices = output.reshape(items, positions, heads, width // heads)
    norms: torch.Tensor = torch.linalg.vector_norm(slices, dim=-1)  # (items, positions, heads)
    return norms.mean(1)  # (items, heads)


def _entropy(output: torch.Tensor, _: int) -> torch.Tensor:
    terms: torch.Tensor = torch.special.entr(output)
    return terms.sum(-1).mean(-1)  # (items, heads)
