"""Where the channels are: said by a module's type, or by the tap."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sidecar.errors import InvalidInput
from sidecar.features import FeatureKind, View
from sidecar.hooks import Plan as AnyPlan
from sidecar.hooks import Tap
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
