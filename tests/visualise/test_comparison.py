"""Comparison of revisions on tiny networks: the changed part is named, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from sidecar.errors import JobCancelled, UnknownLayer, UnsupportedTarget
from sidecar.features import FeatureKind
from sidecar.recipes import Comparison, Dataset, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, Progress, method_for
from tests.visualise.conftest import TinyNet, as_model, noise_in

pytestmark = pytest.mark.unit

RECIPE = Comparison(other="next", dataset="noise", steps=0, canvas=32)
COUNT = 48


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of noise over gradients of colour."""
    return noise_in(tmp_path_factory.mktemp("noise"), COUNT)


def compare(
    model: ImageModel,
    other: nn.Module,
    dataset: Dataset,
    *targets: Target,
    recipe: Comparison = RECIPE,
) -> tuple[Picture, ...]:
    """Run the method."""
    theirs = replace(as_model(other), digest="e" * 64)
    materials = Materials(datasets={"noise": dataset}, models={"next": theirs})
    return method_for(recipe).run(model, targets, recipe, materials)


def changed(layer: str) -> TinyNet:
    """Return the network with one layer's weights drawn anew."""
    net = TinyNet()
    stream = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in net.get_submodule(layer).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.3)
    return net


def test_exactly_what_was_changed_is_not_the_same(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Layers below a change are the same unit by unit; the changed one has lost or moved them."""
    below, there = compare(model, changed("upper"), dataset, unit("middle", 1), unit("upper", 1))

    assert ("same", 1) == (below.findings["fate"], below.findings["other"]["unit"])
    assert {"same": 8, "moved": 0, "lost": 0, "new": 0} == below.findings["layer"]["counts"]
    assert there.findings["fate"] in {"moved", "lost"}
    assert 0 == there.findings["layer"]["counts"]["same"]
    assert there.findings["reason"]


def test_a_unit_is_found_where_it_went(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Two channels that changed places are each other's partner."""
    other = TinyNet()
    with torch.no_grad():
        order = torch.tensor([0, 4, 2, 3, 1, 5, 6, 7])
        other.middle.weight.copy_(other.middle.weight[order])
        other.middle.bias.copy_(other.middle.bias[order])

    (picture,) = compare(model, other, dataset, unit("middle", 1))

    assert ("moved", 4) == (picture.findings["fate"], picture.findings["other"]["unit"])
    assert picture.findings["best_correlation"] == pytest.approx(1.0)
    assert [1, 4] == picture.findings["layer"]["listed"]["moved"]


def test_portraits_carry_over_to_the_same_unit(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Both sides start from the same noise, so equal weights give equal portraits."""
    recipe = replace(RECIPE, steps=4)

    (picture,) = compare(model, TinyNet(), dataset, unit("middle", 1), recipe=recipe)

    found = picture.findings["portraits"]
    assert found["transfer"] == pytest.approx(1.0)
    assert found["feature_similarity"] == pytest.approx(1.0)
    assert "same" == picture.findings["fate"]
    assert {"dataset:noise": dataset.digest, "model:next": "e" * 64} == picture.inputs


def test_a_portrait_that_no_longer_works_is_evidence(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """A unit that photographs drive as before and its portrait does not, has moved."""

    class Capped(TinyNet):
        """Never reaches what the portrait would."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = torch.relu(self.low(images))
            return self.site(self.middle(maps))

        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

    free, capped = Capped(), Capped()
    recipe = replace(RECIPE, steps=40)
    target = unit("site", 1)
    (usual,) = compare(as_model(free), free, dataset, target, recipe=replace(recipe, steps=0))
    capped.site = nn.Hardtanh(-1e9, usual.activation)

    (picture,) = compare(as_model(free), capped, dataset, target, recipe=recipe)

    assert picture.findings["correlation"] > 0.99
    assert picture.findings["portraits"]["transfer"] < 0.5
    assert "moved" == picture.findings["fate"]
    assert "its portrait reaches only" in picture.findings["reason"]


def test_a_portrait_that_cannot_be_made_there_is_said_so(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """A dead unit there is a finding, and no failure of the job."""
    other = TinyNet()
    with torch.no_grad():
        other.low.weight.zero_()

    (picture,) = compare(model, other, dataset, unit("low", 1), recipe=replace(RECIPE, steps=20))

    assert "lost" == picture.findings["fate"]
    assert "no gradient" in picture.findings["portraits"]["no_portrait_there"]


def test_a_unit_that_is_constant_here_has_no_spread_to_be_measured_in(
    net: TinyNet, model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """It moved, and neither by how much nor by what factor is a number."""
    with torch.no_grad():
        net.low.weight[1].zero_()

    (picture,) = compare(model, TinyNet(), dataset, unit("low", 1))

    assert "moved" == picture.findings["fate"]
    assert picture.findings["median_shift"] is None
    assert picture.findings["spread_ratio"] is None


def test_layers_of_another_architecture_are_found_by_likeness(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Where no layer of that name has as many units, the most similar of its kind is taken."""

    class Deeper(nn.Module):
        """Two stages named like each other; the second is the layer looked for, seen wider."""

        def __init__(self, net: TinyNet) -> None:
            super().__init__()
            self.low = net.low
            self.stages = nn.ModuleList([nn.Conv2d(6, 6, 1), nn.Conv2d(6, 16, 3, 2, 1)])
            with torch.no_grad():
                self.stages[0].weight.copy_(torch.eye(6)[..., None, None])
                self.stages[0].bias.zero_()
                self.stages[1].weight[:8] = net.stages[0].weight
                self.stages[1].bias[:8] = net.stages[0].bias

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.stages[1](self.stages[0](torch.relu(self.low(images))))

    class Shallow(nn.Module):
        """One stage."""

        def __init__(self) -> None:
            super().__init__()
            net = TinyNet()
            self.low, self.stages = net.low, nn.ModuleList([net.middle])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.stages[0](torch.relu(self.low(images)))

    shallow = Shallow()

    (picture,) = compare(as_model(shallow), Deeper(shallow), dataset, unit("stages.0", 3))

    assert "stages.1" == picture.findings["other"]["layer"]
    assert ("same", 3) == (picture.findings["fate"], picture.findings["other"]["unit"])
    assert 8 <= picture.findings["layer"]["counts"]["new"] + 8


def test_what_cannot_be_compared_is_refused(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """The missing model, the missing layer, the neuron and the sum of units each say why."""
    target = unit("middle", 1)
    method = method_for(RECIPE)
    with pytest.raises(UnsupportedTarget, match="model 'next' was not handed over"):
        method.plan(model, [target], RECIPE, Materials(datasets={"noise": dataset}))
    with pytest.raises(UnknownLayer, match="the model has no layer away"):
        compare(model, TinyNet(), dataset, target, recipe=replace(RECIPE, layer="away"))
    with pytest.raises(UnsupportedTarget, match="single channels and logits are compared"):
        compare(model, TinyNet(), dataset, unit("middle", 1, FeatureKind.NEURON))
    with pytest.raises(UnsupportedTarget, match="single channels and logits are compared"):
        compare(model, TinyNet(), dataset, replace(target, terms=(Term(target.feature),)))
    few = replace(dataset, files=dataset.files[:5])
    with pytest.raises(UnsupportedTarget, match="5 images are too few"):
        compare(model, TinyNet(), few, target)


def test_progress_counts_the_passes_and_then_the_steps(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """It never goes back, and only the last is the end."""
    materials = Materials(datasets={"noise": dataset}, models={"next": model})
    recipe = replace(RECIPE, steps=4)
    heard: list[Progress] = []

    method_for(recipe).run(model, [unit("middle", 1)], recipe, materials, on_progress=heard.append)

    steps = [one.step for one in heard]
    assert sorted(steps) == steps
    assert len(heard) - 4 > 4
    assert [heard[-1].step] == [one.steps for one in heard if one.step == one.steps]


def test_a_comparison_can_be_cancelled(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Between two passes over the dataset."""
    materials = Materials(datasets={"noise": dataset}, models={"next": model})

    with pytest.raises(JobCancelled, match="cancelled while middle was run"):
        method_for(RECIPE).run(
            model, [unit("middle", 1)], RECIPE, materials, cancelled=lambda: True
        )
