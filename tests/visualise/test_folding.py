"""Batch norms folded away: every value that can be asked for stays what it was."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from sidecar.errors import UnknownLayer
from sidecar.visualise import ImageModel
from sidecar.visualise.folding import FOLD_LIMIT

pytestmark = pytest.mark.service


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.1)
    return norm


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as networks from elsewhere have it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Convolve with a border of ones."""
        wide = functional.pad(images, (1, 1, 1, 1), value=1.0)
        return functional.conv2d(wide, self.weight, self.bias, self.stride, groups=self.groups)


class Odd(nn.Conv2d):
    """A convolution that does more than one: folding into its weights would be wrong."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Convolve and square."""
        return super().forward(images) ** 2


class Net(nn.Module):
    """One pair of each kind, good and bad."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.plain = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.plain_norm = _norm(4)
        self.padded = Padded(4, 4, 3, groups=2)
        self.padded_norm = _norm(4)
        self.odd = Odd(4, 4, 1)
        self.odd_norm = _norm(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.shared_norm = _norm(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.twice_norm = _norm(4)
        self.free = nn.BatchNorm2d(4, track_running_stats=False)
        self.boxed = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.boxed_norm = _norm(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps, shape ``(n, 4, h, w)``."""
        maps = torch.relu_(self.plain_norm(self.plain(images)))
        maps = self.padded_norm(self.padded(maps))
        maps = self.odd_norm(self.odd(maps))
        before = self.shared(maps)
        maps = self.shared_norm(before) + before  # somebody else needs it unnormed
        maps = self.twice_norm(self.twice(self.twice_norm(self.twice(maps))))
        result: torch.Tensor = self.free(self.boxed_norm(self.boxed(maps)))
        return result


def _outputs(model: ImageModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each module's first output, by its own name."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.module.named_modules():

        def keep(_m: nn.Module, _i: object, output: torch.Tensor, name: str = name) -> None:
            found.setdefault(name, output.clone())

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model.module(model.normalise(images))
    for handle in handles:
        handle.remove()
    return found


def _folded(model: ImageModel) -> set[str]:
    return {name for name, m in model.module.named_modules() if isinstance(m, nn.Identity)}


@pytest.fixture
def wide(wrap: Callable[[nn.Module], ImageModel]) -> ImageModel:
    """The network as a model."""
    return wrap(Net())


def test_only_pairs_that_stay_exact_are_folded(wide: ImageModel) -> None:
    """A norm whose convolution is used twice, runs twice or computes something else stays."""
    assert {"plain_norm", "padded_norm", "boxed_norm"} == _folded(wide.folded())


def test_every_layer_but_the_convolutions_folded_into_keeps_its_values(wide: ImageModel) -> None:
    """Norms among them: under its own name each returns what it did."""
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))

    before, after = _outputs(wide, images), _outputs(wide.folded(), images)

    for name, wanted in before.items():
        if name not in {"plain", "padded", "boxed", "boxed.0"}:
            assert (after[name] - wanted).abs().max() <= FOLD_LIMIT * wanted.abs().max(), name


@pytest.mark.parametrize("tap", ["plain", "boxed", "boxed.0"])
def test_a_convolution_that_is_looked_at_is_left_alone(wide: ImageModel, tap: str) -> None:
    """Also where it is a box around it that is looked at."""
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))

    folded = wide.folded([tap])

    assert f"{tap.partition('.')[0]}_norm" not in _folded(folded)
    assert torch.allclose(wide.maps(tap, images), folded.maps(tap, images), rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_model_itself_alone(wide: ImageModel) -> None:
    """No hook, no changed weight, the same digest."""
    before = copy.deepcopy(wide.module.state_dict())

    folded = wide.folded()

    assert wide.digest == folded.digest
    assert all(torch.equal(before[name], now) for name, now in wide.module.state_dict().items())
    assert not any(module._forward_hooks for module in wide.module.modules())  # noqa: SLF001 - torch shows them nowhere else
    assert not any(parameter.requires_grad for parameter in folded.module.parameters())


def test_a_tap_that_does_not_exist_is_named(wide: ImageModel) -> None:
    """Rather than folding what somebody wanted to see."""
    with pytest.raises(UnknownLayer, match="did you mean plain"):
        wide.folded(["plane"])
