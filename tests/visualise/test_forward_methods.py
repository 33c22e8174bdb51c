"""The methods that need no gradients, on a model that has none beside the same graph with gradients."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar.errors import UnknownFeature, UnknownLayer
from sidecar.features import FeatureKey, LayerKey
from sidecar.recipes import Comparison, Dataset, Examples, Target
from sidecar.visualise import (
    FORWARD_METHODS,
    InputForm,
    Materials,
    VisionModel,
    load_onnx,
    method_for,
)
from tests import onnx_graphs as graphs

pytestmark = pytest.mark.service

TARGET = Target(FeatureKey(LayerKey("m", "v1", "block.out"), 1))
RECIPE = Comparison(other="next", dataset="noise", steps=6, canvas=32)


def load(path: Path, *, gradients: bool) -> VisionModel:
    """Load the small graph on the CPU."""
    form = InputForm(graphs.SIDE, graphs.SIDE)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    return load_onnx(path, form=form, mean=mean, std=std, device="cpu", gradients=gradients)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small graph as a file."""
    return graphs.save(graphs.conv_graph(), tmp_path_factory.mktemp("graph") / "m.onnx")


@pytest.fixture(scope="module")
def forward(path: Path) -> VisionModel:
    """It in ONNX Runtime."""
    return load(path, gradients=False)


@pytest.fixture(scope="module")
def differentiable(path: Path) -> VisionModel:
    """It in torch."""
    return load(path, gradients=True)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Forty images of noise over colours."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(5)
    for number in range(40):
        ground = 90 + rng.integers(0, 60, 3) + rng.integers(0, 60, (36, 36, 3))
        Image.fromarray(ground.astype(np.uint8)).save(folder / f"{number:02d}.png")
    paths = sorted(folder.iterdir())
    files = tuple((one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in paths)
    return Materials(datasets={"noise": Dataset("noise", str(folder), files)})


def test_the_other_model_may_only_run_forward(
    differentiable: VisionModel, forward: VisionModel, materials: Materials
) -> None:
    """There is no portrait there, which is said; that of this side is still shown to it."""
    given = replace(materials, models={"next": forward}, sources={"next": "5" * 64})

    (picture,) = method_for(RECIPE).run(differentiable, [TARGET], RECIPE, given)

    portraits = picture.findings["portraits"]
    assert "same" == picture.findings["fate"] == picture.findings["fate_on_images"]
    assert portraits["transfer"] == pytest.approx(1.0, abs=1e-3)
    assert "only runs forward" in portraits["no_portrait_there"]
    assert "5" * 64 == picture.inputs["model:next"]


def test_the_targets_model_may_only_run_forward(
    differentiable: VisionModel, forward: VisionModel, materials: Materials
) -> None:
    """Then there are no portraits here, and the images alone say what became of the unit."""
    given = replace(materials, models={"next": differentiable})
    method = method_for(RECIPE)

    cost = method.plan(forward, [TARGET], RECIPE, given)
    (picture,) = method.run(forward, [TARGET], RECIPE, given)

    assert 80 == cost.forwards
    assert "same" == picture.findings["fate"]
    assert "only runs forward" in picture.findings["portraits"]["no_portrait_here"]
    with pytest.raises(UnknownLayer, match="the model has no layer away"):
        method.plan(differentiable, [TARGET], replace(RECIPE, layer="away"), given)


def test_examples_are_the_same_with_and_without_gradients(
    differentiable: VisionModel, forward: VisionModel, materials: Materials
) -> None:
    """The images, values and places; only what moved the unit cannot be told, so all of it is shown."""
    recipe = Examples(dataset="noise", top=3, bands=0, tile=32)
    method = method_for(recipe)

    (one,) = method.run(differentiable, [TARGET], recipe, materials)
    (other,) = method.run(forward, [TARGET], recipe, materials)

    for mine, theirs in zip(one.findings["examples"], other.findings["examples"], strict=True):
        assert (mine["file"], mine["position"]) == (theirs["file"], theirs["position"])
        assert theirs["value"] == pytest.approx(mine["value"], rel=1e-4)
        assert (0, 0, 32, 32) == tuple(theirs["box"]) != tuple(mine["box"])


def test_targets_are_checked_without_gradients_too(
    forward: VisionModel, materials: Materials
) -> None:
    """A layer and a unit that the graph does not have are refused before any work."""
    recipe = Examples(dataset="noise")
    method = method_for(recipe)
    layer = TARGET.feature.layer

    with pytest.raises(UnknownFeature, match=r"block.out has \d+ units"):
        method.plan(forward, [Target(FeatureKey(layer, 999))], recipe, materials)
    away = Target(FeatureKey(replace(layer, layer="away"), 0))
    with pytest.raises(UnknownLayer, match="the model has no layer away"):
        method.plan(forward, [away], recipe, materials)


def test_the_methods_without_gradients_are_named() -> None:
    """They are what a refusal of a forward-only model suggests."""
    assert ("comparison", "dataset_examples", "search") == tuple(FORWARD_METHODS)
