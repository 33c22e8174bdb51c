"""What saves work: coarse views of the first steps, and one thread for small networks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.features import FeatureKind
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, InputForm, maximise, plan
from sidecar.visualise.ascent import coarse_size

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]
COARSE = 0.5


class Watching(nn.Module):
    """Passes images on, and notes their sides and with how many threads they came."""

    def __init__(self, only: int = 0, parameters: int = 0) -> None:
        super().__init__()
        self.middle = nn.Conv2d(3, 6, 3)
        self.weight = nn.Parameter(torch.zeros(parameters))
        self.sides: list[int] = []
        self.threads: list[int] = []
        self._only = only

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps, shape ``(n, 6, rows, columns)``."""
        if self._only and images.shape[-1] != self._only:
            raise RuntimeError("shapes cannot be multiplied")
        if images.requires_grad:
            self.sides.append(images.shape[-1])
        self.threads.append(torch.get_num_threads())
        maps: torch.Tensor = self.middle(images)
        return maps


def _seen(module: Watching, model: ImageModel, target: Target, recipe: Maximisation) -> list[int]:
    maximise(model, [target], recipe)
    return module.sides[-recipe.steps :]


def test_the_first_steps_are_coarse_and_the_rest_are_not(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """Half of the six steps at five sevenths of the side, and the findings say so."""
    module = Watching()
    model = wrap(module)
    small, whole = coarse_size(model.input_size), model.input_size

    picture = maximise(model, [unit("middle", 3)], replace(recipe, coarse=COARSE))[0]

    assert module.sides[-6:] == [small] * 3 + [whole] * 3
    assert picture.findings["coarse_steps"] == 3
    assert not np.array_equal(picture.image, maximise(model, [unit("middle", 3)], recipe)[0].image)


def test_what_takes_one_size_alone_has_no_coarse_steps(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """A network that refuses other sizes gets the picture it would have had without them."""
    plain = wrap(Watching())
    strict = wrap(Watching(only=plain.input_size))
    strict.module.load_state_dict(plain.module.state_dict())

    coarse = maximise(strict, [unit("middle", 3)], replace(recipe, coarse=COARSE))[0]

    assert coarse.findings["coarse_steps"] == 0
    assert np.array_equal(coarse.image, maximise(plain, [unit("middle", 3)], recipe)[0].image)


def test_neurons_and_fixed_forms_have_no_coarse_steps(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """A neuron's position is one of the whole grid; a form with rows of its own undoes the saving."""
    module, coarse = Watching(), replace(recipe, coarse=COARSE)
    model = wrap(module)
    neuron = unit("middle", 3, FeatureKind.NEURON)
    formed = replace(model, form=InputForm(height=40))

    assert set(_seen(module, model, neuron, coarse)) == {model.input_size}
    assert set(_seen(module, formed, unit("middle", 3), coarse)) == {model.input_size}


def test_a_plateau_is_not_sought_across_the_change_of_size(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """With 60 coarse steps of 100 there are no two times 32 full ones left to compare."""
    recipe = replace(recipe, steps=100, coarse=0.6, plateau=1.0)

    picture = maximise(wrap(Watching()), [unit("middle", 3)], recipe)[0]

    assert picture.findings["steps"] == 100
    assert picture.findings["stopped"] == "steps"


def test_coarse_steps_are_predicted_to_cost_less(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """Half the pixels take half the time; as many passes are counted."""
    model, clock = wrap(Watching()), iter(range(100))
    costs = [
        plan(model, [unit("middle", 3)], replace(recipe, coarse=share), clock=lambda: next(clock))
        for share in (0.0, 1.0)
    ]

    assert costs[0].forwards == costs[1].forwards
    full, coarse = (cost.seconds_estimate for cost in costs)
    assert (full - coarse) / (full - 18) == pytest.approx(
        1 - (5 / 7) ** 2
    )  # 18 looks at whole ones


@pytest.mark.parametrize(("parameters", "threads"), [(0, 1), (17 << 20, 2)])
def test_a_small_network_is_given_one_thread(
    wrap: Callable[[nn.Module], ImageModel],
    unit: Unit,
    recipe: Maximisation,
    parameters: int,
    threads: int,
) -> None:
    """And the caller finds as many as before; 68 MiB of parameters are not small."""
    torch.set_num_threads(2)
    module = Watching(parameters=parameters)

    maximise(wrap(module), [unit("middle", 3)], replace(recipe, steps=2))

    assert module.threads[-1] == threads
    assert torch.get_num_threads() == 2
