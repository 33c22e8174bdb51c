"""How a module's output becomes rows: one function for each kind of unit and view.

Each takes a detached floating tensor and gives rows ``(items, width)`` or ``(items, positions, width)``
in memory of their own, so that later in-place operations of the model cannot change them. On a CPU
the only reductions are maximum, mean and norm: a variance costs twenty times the copy.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from sidecar.errors import ShapeMismatch
from sidecar.features import FeatureKind, View
from sidecar.hooks.plan import Tap

Reduction = Callable[[torch.Tensor, float], tuple[torch.Tensor, float]]
"""Takes the output and a random number; gives the rows, and how many of the item's positions there
are for each one taken."""

Positions = Mapping[int, tuple[int, ...]]
"""For each number of dimensions those that are neither items nor channels."""

_SEQUENCE = 3  # dimensions of (items, positions, features)
_IMAGE = 4  # dimensions of (items, channels, height, width)
_ABREAST = 32  # channels that torch reduces at once, measured with torch 2.13 on AVX-512
_ATTENTION = 4  # dimensions of (items, heads, queries, keys)


UNREDUCED = (FeatureKind.NEURON, FeatureKind.LATENT)
"""Kinds of which every position is a row of its own."""

_CHANNELS_FIRST = (
    torch.nn.modules.conv._ConvNd,  # noqa: SLF001 - the only name for all convolutions
    torch.nn.modules.batchnorm._NormBase,  # noqa: SLF001 - batch and instance norms
    torch.nn.GroupNorm,
)
"""Modules that say by their type where the channels are: in dimension 1."""


def reduction(tap: Tap, max_rows: int, module: torch.nn.Module) -> Reduction:
    """Return the function that turns outputs of a tapped module into rows."""
    view = tap.resolved_view
    if tap.kind is FeatureKind.CHANNEL:
        positions = _positions(tap.channel_dim, module)
        return _channel_max(positions) if view is View.MAX else _channel_mean(positions)
    if tap.kind is FeatureKind.LOGIT:
        return _logit
    if tap.kind is FeatureKind.NEURON:
        return lambda output, draw: positions_of(output, draw, max_rows)
    if view is View.ENTROPY:
        return _entropy
    return lambda output, _: (_head_norm(output, tap.heads), 1.0)


def maximum_positions(tap: Tap, module: torch.nn.Module) -> Positions | None:
    """Return which dimensions a tap takes the maximum over; None where it does something else."""
    if tap.kind is FeatureKind.CHANNEL and tap.resolved_view is View.MAX:
        return _positions(tap.channel_dim, module)
    return None


def fitting_dims(tap: Tap) -> tuple[int, ...]:
    """Return the numbers of dimensions a tap's tensors may have."""
    if tap.kind is FeatureKind.CHANNEL:
        return (2, 3, 4, 5)
    if tap.kind is FeatureKind.LOGIT:
        return (2,)
    if tap.kind in UNREDUCED:
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
        f"the output is {describe(output)}: the tap needs a non-empty floating tensor of "
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


def describe(output: object) -> str:
    """Say what a module has put out."""
    shapes = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in _tensors(output)]
    return f"{type(output).__name__} of {', '.join(shapes[:4]) or 'no tensors'}"


def _positions(channel_dim: int | None, module: torch.nn.Module) -> Positions:
    first = {2: (), 3: (2,), 4: (2, 3), 5: (2, 3, 4)}
    last = {2: (), 3: (1,), 4: (1, 2), 5: (1, 2, 3)}
    if channel_dim is None:
        return first if isinstance(module, _CHANNELS_FIRST) else first | {_SEQUENCE: (1,)}
    return first if channel_dim == 1 else last


def interleaved(output: torch.Tensor) -> bool:
    """Whether channels of an image lie next to each other, in a number that makes ``amax`` slow.

    torch then takes one value at a time on a CPU: 0.5 ms for 16 channels of 112 by 112 positions,
    instead of 0.02 ms for a multiple of 32 channels or for channels one after another.
    """
    return (
        output.dim() == _IMAGE
        and output.shape[1] % _ABREAST != 0
        and output.is_cpu
        and output.is_contiguous(memory_format=torch.channels_last)
        and not output.is_contiguous()
    )


def _interleaved_max(output: torch.Tensor) -> torch.Tensor:
    """Take the maximum over the height with whole lines abreast, and over the width of what is left."""
    items, channels, height, width = output.shape
    lines = output.permute(0, 2, 3, 1).reshape(items, height, width * channels)  # no copy
    highest = lines.amax(1).view(items, width, channels)  # (items, width, channels)
    return highest.amax(1)  # (items, channels)


def _channel_max(positions: Positions) -> Reduction:
    def reduce(output: torch.Tensor, _: float) -> tuple[torch.Tensor, float]:
        where = positions[output.dim()]
        if where == (2, 3) and interleaved(output):
            return _interleaved_max(output), 1.0
        return (output.amax(where) if where else output.clone()), 1.0  # (items, channels)

    return reduce


def _channel_mean(positions: Positions) -> Reduction:
    def reduce(output: torch.Tensor, _: float) -> tuple[torch.Tensor, float]:
        where = positions[output.dim()]
        if not where:
            return output.clone(), 1.0  # (items, channels)
        # float32 sums: half-precision ones lose the mean of a large feature map.
        wide = torch.float32 if output.dtype in (torch.float16, torch.bfloat16) else None
        return output.mean(where, dtype=wide), 1.0  # (items, channels)

    return reduce


def _logit(output: torch.Tensor, _: float) -> tuple[torch.Tensor, float]:
    return output.clone(), 1.0  # (items, classes)


def positions_of(output: torch.Tensor, draw: float, max_rows: int) -> tuple[torch.Tensor, float]:
    """Copy every position of short sequences, and a random comb of long ones; as a ``Reduction``."""
    if output.dim() == 2 or output.shape[1] <= max_rows:  # noqa: PLR2004 - (items, features)
        return output.clone(), 1.0
    return comb(output, draw, max_rows), output.shape[1] / max_rows


def comb(output: torch.Tensor, draw: float, rows: int) -> torch.Tensor:
    """Copy some positions of longer sequences, each with the same probability ``rows / positions``.

    Circular systematic sampling: every ``positions // rows``-th position from a random one on,
    beyond the end on from the start. Two slices do it, where positions of equal distance to a real
    number's precision would need an index tensor on the model's device.

    Args:
        output: Shape ``(items, positions, features)``, more than ``rows`` positions.
        draw: A random number from 0 to below 1.
        rows: How many positions are taken of each item; the same ones of every item.

    Returns:
        New memory of shape ``(items, rows, features)``.

    Source:
        Cochran 1977, "Sampling techniques", section 8.1.
    """
    positions = output.shape[1]
    step, start = positions // rows, int(draw * positions)
    first = min(rows, -(-(positions - start) // step))  # those before the end
    head = output[:, start : start + step * first : step]  # (items, first, features)
    if first == rows:
        return head.clone()
    again = start + step * first - positions
    tail = output[
        :, again : again + step * (rows - first) : step
    ]  # (items, rows - first, features)
    return torch.cat((head, tail), 1)  # (items, rows, features)


def _head_norm(output: torch.Tensor, heads: int) -> torch.Tensor:
    items, positions, width = output.shape
    if width % heads:
        raise ShapeMismatch(f"{width} features do not divide into {heads} heads")
    slices = output.reshape(items, positions, heads, width // heads)
    norms: torch.Tensor = torch.linalg.vector_norm(slices, dim=-1)  # (items, positions, heads)
    return norms.mean(1)  # (items, heads)


def _entropy(output: torch.Tensor, _: float) -> tuple[torch.Tensor, float]:
    terms: torch.Tensor = torch.special.entr(output)
    return terms.sum(-1).mean(-1), 1.0  # (items, heads)
