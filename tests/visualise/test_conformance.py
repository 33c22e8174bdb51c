"""Every method, held to every promise."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.features import FeatureKind
from sidecar.recipes import (
    Accentuation,
    Atlas,
    Attribution,
    Caricature,
    Comparison,
    Dataset,
    DeepDream,
    Examples,
    Maximisation,
    Recipe,
    Search,
    Side,
    Target,
    Term,
)
from sidecar.visualise import METHODS, ImageModel, Materials
from sidecar.visualise.method import Directions
from tests.visualise.conformance import PROMISES, Case
from tests.visualise.conftest import noise_in

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]
IMAGE = "a" * 64
SHORT = {"steps": 3, "canvas": 32}

RECIPES: dict[str, Recipe] = {
    "maximisation": Maximisation(learning_rate=0.2, **SHORT),
    "maco, jitter": Maximisation(
        parametrisation="maco", transforms="jitter", colours="plain", crops=2, l2=0.1, **SHORT
    ),
    "pixels, facets": Maximisation(parametrisation="pixel", facets=2, learning_rate=0.2, **SHORT),
    "accentuation": Accentuation(start=IMAGE, layer="low", **SHORT),
    "dream": DeepDream(start=IMAGE, steps=2, canvas=40, octaves=2),
    "dream of nothing": DeepDream(steps=1, canvas=40, octaves=2),
    "examples": Examples(dataset="noise", top=2, bands=1, per_band=1, tile=32),
    "comparison": Comparison(other="next", dataset="noise", **SHORT),
    "attribution": Attribution(
        image=IMAGE, layer="low", steps=4, window=12, stride=6, curve=4, tile=32
    ),
    "search": Search(generations=10, population=8, frequencies=2, canvas=32),
    "caricature": Caricature(image=IMAGE, **SHORT),
    "atlas": Atlas(dataset="noise", grid=2, least=1, steps=2, canvas=32),
}
"""Between them every value that changes what is done, in as few steps as show it."""


class NormedNet(nn.Module):
    """Convolutions with batch norms, so that what is folded is held to the promises as well."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 6, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(6)
        self.middle = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)
        self.spare = nn.Linear(1, 1)  # never runs
        stream = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape ``(n, 5)``."""
        maps = self.middle(torch.relu(self.norm(self.low(images))))
        found: torch.Tensor = self.head(torch.tanh(maps).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """As many images as a comparison takes at least."""
    return noise_in(tmp_path_factory.mktemp("noise"), 32)


@pytest.fixture(params=list(RECIPES))
def case(
    request: pytest.FixtureRequest,
    wrap: Callable[[nn.Module], ImageModel],
    unit: Unit,
    noise: Dataset,
) -> Case:
    """One method's smallest request."""
    stream = np.random.default_rng(3)
    image = stream.integers(0, 256, (37, 50, 3), dtype=np.uint8)
    vectors = Directions(stream.normal(size=(3, 8)).astype(np.float32), "d" * 64)
    far = unit("middle", 2)
    targets = (
        unit("middle", 1),
        replace(unit("middle", 4), side=Side.NEGATIVE),
        replace(unit("middle", 3), terms=(Term(far.feature, -0.5),)),
        unit("middle", 5, FeatureKind.NEURON, position=(0, 5)),
        unit("middle", 1, FeatureKind.DIRECTION, "mean"),
        unit("low", 0, FeatureKind.NORM),
        unit("head", 2, FeatureKind.LOGIT),
    )
    refused = (
        unit("middle", 8),
        unit("nowhere", 0),
        unit("spare", 0),
        unit("low", 0, FeatureKind.DIRECTION, "mean"),
        unit("middle", 3, FeatureKind.DIRECTION, "mean"),
        unit("middle", 0, FeatureKind.NORM, "max"),
        unit("middle", 1, FeatureKind.NEURON, position=(9, 9)),
    )
    materials = Materials(
        images={IMAGE: image},
        directions={"middle": vectors},
        datasets={"noise": noise},
        models={"next": wrap(NormedNet())},
    )
    recipe = RECIPES[request.param]
    if isinstance(recipe, Examples):  # of single units that a photograph can drive
        targets = (targets[0], targets[1], targets[3], targets[6])
    if isinstance(
        recipe, Comparison | Attribution | Search | Caricature | Atlas
    ):  # of single units
        targets = (targets[0], unit("low", 2), targets[6])
    return Case(wrap(NormedNet()), targets, recipe, materials, refused)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_method_keeps_every_promise(promise: Callable[[Case], None], case: Case) -> None:
    """One body for all of them, see ``conformance``."""
    promise(case)


def test_every_method_has_a_case() -> None:
    """Whoever adds a method adds a request that holds it to the promises."""
    assert {*METHODS} == {type(recipe) for recipe in RECIPES.values()}
