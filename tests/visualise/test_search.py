"""The search without gradients: it climbs, says so honestly, and needs a forward pass alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.errors import (
    JobCancelled,
    NonFiniteActivation,
    SilentFeature,
    UnknownFeature,
    UnknownLayer,
    UnsupportedTarget,
)
from sidecar.features import FeatureKind, View
from sidecar.recipes import Maximisation, Search, Side, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, maximise, method_for
from tests.visualise.conftest import TinyNet

pytestmark = pytest.mark.unit

RECIPE = Search(generations=30, population=8, frequencies=2, canvas=32)


@dataclass(frozen=True)
class Forward:
    """A model without gradients, as a graph in ONNX Runtime has none."""

    inner: ImageModel
    differentiable: bool = False

    @property
    def digest(self) -> str:
        """That of the model inside."""
        return self.inner.digest

    @property
    def input_size(self) -> int:
        """That of the model inside."""
        return self.inner.input_size

    @property
    def device(self) -> torch.device:
        """That of the model inside."""
        return self.inner.device

    def layers(self) -> Sequence[str]:
        """Those of the model inside."""
        return self.inner.layers()

    def maps(self, path: str, images: torch.Tensor) -> torch.Tensor:
        """Return what nothing can be differentiated through."""
        with torch.no_grad():
            return self.inner.maps(path, images)


def search(model: object, *targets: Target, recipe: Search = RECIPE) -> tuple[Picture, ...]:
    """Run the method."""
    return method_for(recipe).run(model, targets, recipe, Materials())


def test_a_model_that_only_runs_forward_gets_its_picture(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """Far above the start, within half of what gradients reach, and the same as with a torch module."""
    target = unit("middle", 1, view=View.MEAN)

    (found,) = search(Forward(model), target)
    (same,) = search(model, target)
    (climbed,) = maximise(model, [target], Maximisation(steps=30, canvas=32, learning_rate=0.2))

    assert found.activation > found.first_activation
    assert found.activation - found.first_activation > 0.5 * (
        climbed.activation - climbed.first_activation
    )
    assert np.array_equal(found.image, same.image)
    assert found.history[-1] > found.history[0]
    assert RECIPE.generations == len(found.history)
    assert {"coefficients": 3 * 5 * 3 * 2, "pictures_tried": 240} == found.findings


def test_the_negative_side_goes_down(model: ImageModel, unit: Callable[..., Target]) -> None:
    """The values stay the unit's own."""
    target = replace(unit("middle", 1, view=View.MEAN), side=Side.NEGATIVE)

    (found,) = search(model, target)

    assert found.activation < found.first_activation
    assert found.history[-1] < found.history[0]


def test_equal_requests_have_equal_pictures(model: ImageModel, unit: Callable[..., Target]) -> None:
    """Alone and among others; another seed finds another."""
    targets = [unit("low", 2, view=View.MEAN), unit("middle", 1, view=View.MEAN)]
    short = replace(RECIPE, generations=12)

    together = search(model, *targets, recipe=short)
    (alone,) = search(model, targets[1], recipe=short)
    (other,) = search(model, targets[1], recipe=replace(short, seed=1))

    assert np.array_equal(together[1].image, alone.image)
    assert together[1].history == alone.history
    assert not np.array_equal(other.image, alone.image)


def test_no_frequency_above_the_highest_is_in_the_picture(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """Before colours are squeezed into their range; with small coefficients nearly so after."""
    (found,) = search(
        model, unit("low", 1, view=View.MEAN), recipe=replace(RECIPE, generations=2, sigma=0.01)
    )

    power = np.abs(np.fft.fft2(found.image.astype(float).mean(-1))) ** 2
    waves = np.abs(np.fft.fftfreq(32, 1 / 32))
    low = np.maximum.outer(waves, waves) <= RECIPE.frequencies
    power[0, 0] = 0
    assert power[low].sum() > 10 * power[~low].sum()


def test_the_cost_is_what_the_network_sees(
    net: TinyNet, wrap: Callable[..., ImageModel], unit: Callable[..., Target]
) -> None:
    """Every picture of every generation, the start and the measuring at the end."""
    model, seen = wrap(net), []
    planned = method_for(RECIPE).plan(model, [unit("middle", 1)], RECIPE, Materials())
    net.low.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))

    search(model, unit("middle", 1))

    for_the_site = 1
    assert planned.forwards + for_the_site == sum(seen)
    assert planned.bytes_estimate > 0


def test_it_stops_within_a_generation(model: ImageModel, unit: Callable[..., Target]) -> None:
    """A population of several passes is not finished first."""
    wide = replace(RECIPE, population=32)
    for patience in (0, 1, 2):
        asked = iter(range(1000))
        with pytest.raises(JobCancelled, match="cancelled at step 0 of 30"):
            method_for(wide).run(
                model,
                [unit("middle", 1)],
                wide,
                Materials(),
                cancelled=lambda asked=asked, patience=patience: next(asked) >= patience,
            )
    assert not any(one._forward_hooks for one in model.module.modules())  # noqa: SLF001 - torch has no count


def test_a_unit_that_nothing_moves_is_refused(
    net: TinyNet, wrap: Callable[..., ImageModel], unit: Callable[..., Target]
) -> None:
    """A picture of it would be noise."""
    with torch.no_grad():
        net.middle.weight[1] = 0.0

    with pytest.raises(SilentFeature, match="no picture of 8 generations moved it"):
        search(wrap(net), unit("middle", 1))


def test_a_unit_that_becomes_nan_is_refused(
    net: TinyNet, wrap: Callable[..., ImageModel], unit: Callable[..., Target]
) -> None:
    """In the generation in which it happens."""
    with torch.no_grad():
        net.middle.weight[1] = float("nan")

    with pytest.raises(NonFiniteActivation, match="in generation 1: mend"):
        search(wrap(net), unit("middle", 1))


def test_what_cannot_be_searched_for_is_refused(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """Each refusal says which value, and what to do."""
    target = unit("middle", 1)
    with pytest.raises(UnsupportedTarget, match="frequencies 16 needs a canvas above 32"):
        Search(frequencies=16, canvas=32)
    with pytest.raises(UnsupportedTarget, match=r"zoom_min 0\.9 is above zoom_max 0\.5"):
        Search(zoom_min=0.9, zoom_max=0.5)
    with pytest.raises(UnsupportedTarget, match="no targets"):
        search(model)
    with pytest.raises(UnsupportedTarget, match="a search is of one unit"):
        search(model, replace(target, terms=(Term(target.feature),)))
    with pytest.raises(UnknownLayer, match="did you mean middle"):
        search(model, unit("midle", 1))
    with pytest.raises(UnknownFeature, match="has 8 units"):
        search(model, unit("middle", 8))


class Plain(nn.Module):
    """A unit that every coarse picture leaves where it is, or lower."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return minus how far the picture is from grey."""
        result: torch.Tensor = self.top(-images.square().mean((1, 2, 3), keepdim=False)[:, None])
        return result


def test_a_search_that_ends_below_its_start_says_so(
    wrap: Callable[..., ImageModel], unit: Callable[..., Target]
) -> None:
    """Instead of handing out a picture that shows less of the unit than grey does."""
    target = unit("top", 0, FeatureKind.LOGIT, View.RAW)

    with pytest.raises(SilentFeature, match="no further than the start"):
        search(wrap(Plain()), target, recipe=replace(RECIPE, generations=1, sigma=3.0))
