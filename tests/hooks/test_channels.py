"""Where the channels are: said by a module's type, or by the tap."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sidecar.errors import InvalidInput
from sidecar.features import FeatureKind, View
from sidecar.hooks import Plan as AnyPlan
from sidecar.hooks import Tap, current_requests
from sidecar.hooks.reduce import interleaved
from sidecar.hooks.torch import attach

pytestmark = pytest.mark.unit

# Without a budget: a busy machine would move the sampling rate.
Plan = partial(AnyPlan, overhead_budget=None)


def rows(sink: Any, model: nn.Module, inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the rows that a channel tap on the whole model takes of one pass."""
    with attach(model, Plan("m", (Tap("", **options),), revision="r"), sink), torch.no_grad():
        model(inputs)
    return torch.from_numpy(sink.last()["output"].values.copy())


@pytest.mark.parametrize("view", [View.MAX, View.MEAN])
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(2, 6, 3),
        nn.ConvTranspose1d(2, 6, 3),
        nn.BatchNorm1d(2).eval(),
        nn.InstanceNorm1d(2),
        nn.GroupNorm(1, 2),
        nn.Conv3d(2, 6, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_convolutions_and_norms_have_channels_first(
    memory_sink: Any, module: nn.Module, view: View
) -> None:
    """After these dimension 1 holds the channels, of sequences too."""
    inputs = torch.randn(4, 2, *([9, 9, 9] if isinstance(module, nn.Conv3d) else [9]))

    taken = rows(memory_sink, module, inputs, view=view)

    flat = module(inputs).detach().flatten(2)
    expected = flat.amax(2) if view is View.MAX else flat.mean(2)
    assert torch.allclose(expected, taken, atol=1e-6)
    assert taken.shape == (4, flat.shape[1])


def test_other_sequences_have_channels_last(memory_sink: Any) -> None:
    """A transformer's (items, positions, width) is read as such, and so is any unknown module's."""
    inputs = torch.randn(2, 5, 3)

    assert torch.equal(inputs.amax(1), rows(memory_sink, nn.Identity(), inputs))


@pytest.mark.parametrize(
    ("shape", "dim", "over"),
    [((2, 5, 3), 1, (2,)), ((2, 5, 4, 3), -1, (1, 2)), ((2, 5, 4, 3, 6), -1, (1, 2, 3))],
)
def test_a_tap_may_name_the_dimension(
    memory_sink: Any, shape: tuple[int, ...], dim: int, over: tuple[int, ...]
) -> None:
    """What the type does not say the tap does: Conv1d in a wrapper, or maps with channels last."""
    inputs = torch.randn(shape)

    taken = rows(memory_sink, nn.Identity(), inputs, channel_dim=dim)

    assert torch.equal(inputs.amax(over), taken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel_dim": 0}, "channel_dim 0: use 1 or -1"),
        ({"channel_dim": 1, "kind": FeatureKind.NEURON}, "channel_dim is for channel taps"),
    ],
)
def test_other_dimensions_are_refused(options: dict[str, Any], words: str) -> None:
    """Dimension 0 holds the items; other kinds have no channels."""
    with pytest.raises(InvalidInput, match=words):
        Tap("x", **options)


LAST = torch.channels_last


def image(*shape: int) -> torch.Tensor:
    """Return maps whose channels lie next to each other, all negative in one of them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values[:, 0] -= 10.0
    return values.to(memory_format=LAST)


@pytest.mark.parametrize("shape", [(1, 3, 7, 5), (3, 40, 4, 4), (2, 64, 3, 3), (2, 5, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_maxima_do_not_depend_on_the_memory_format(
    new_memory_sink: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Maps with channels last in memory give bit for bit what those with channels first give."""
    maps = image(*shape).to(dtype)
    maps[-1, -1, 0, 0] = torch.nan

    first = rows(new_memory_sink(), nn.Identity(), maps.contiguous())
    last = rows(new_memory_sink(), nn.Identity(), maps)

    assert torch.equal(maps.float().amax((2, 3)).nan_to_num(7.0), last.nan_to_num(7.0))
    assert torch.equal(first.nan_to_num(7.0), last.nan_to_num(7.0))


@pytest.mark.parametrize("formats", [(0, 1, 0), (1, 0, 1)])
def test_a_server_may_change_the_memory_format(memory_sink: Any, formats: tuple[int, ...]) -> None:
    """What a layer hook learned from its first output is about speed; rows are right either way."""
    model, maps = nn.Identity(), image(2, 3, 6, 6)

    with attach(model, Plan("m", (Tap(""),), revision="r"), memory_sink), torch.no_grad():
        for last in formats:
            model(maps if last else maps.contiguous())

    taken = [torch.from_numpy(sample[0].values.copy()) for sample in memory_sink.samples]
    assert len(taken) == 3
    assert all(torch.equal(maps.amax((2, 3)), found) for found in taken)


def test_a_part_of_the_items_is_taken_from_either_format(memory_sink: Any) -> None:
    """The sampled items' rows are theirs, and no others'."""
    model, maps = nn.Identity(), image(64, 3, 6, 6)
    plan = Plan("m", (Tap(""),), sampling_rate=0.5, revision="r", seed=1)

    names = [str(number) for number in range(64)]
    with attach(model, plan, memory_sink), torch.no_grad(), current_requests(names):
        model(maps)

    sample = memory_sink.samples[0][0]
    mine = [int(request.id) for request in sample.requests]
    assert 0 < len(mine) < 64
    assert torch.equal(maps.amax((2, 3))[mine], torch.from_numpy(sample.values.copy()))


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (image(1, 3, 6, 6), True),
        (image(1, 64, 6, 6), False),
        (image(1, 3, 6, 6).contiguous(), False),
        (image(1, 3, 1, 1), False),
        (torch.zeros(2, 3, 4), False),
    ],
)
def test_only_what_torch_reduces_one_by_one_is_reduced_by_lines(
    maps: torch.Tensor, expected: bool
) -> None:
    """Channels last in memory, and not a multiple of 32 of them; everything else is one ``amax``."""
    assert interleaved(maps) is expected
