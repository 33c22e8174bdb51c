"""Attribution: maps that can be worked out by hand, and numbers that say when not to believe one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sidecar.errors import JobCancelled, NonFiniteActivation, UnsupportedTarget
from sidecar.features import FeatureKind, View
from sidecar.recipes import Attribution, Dataset, Examples, Side, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, method_for
from sidecar.visualise.attribution import overlay, shuffled
from tests.visualise.conftest import INPUT_SIZE, TinyNet
from tests.visualise.test_examples import as_dataset

pytestmark = pytest.mark.unit

DIGEST = "ab" * 32
RECIPE = Attribution(image=DIGEST, window=6, stride=3, steps=16, curve=8, tile=48)
SPOT = (slice(6, 12), slice(12, 18))


@pytest.fixture
def materials() -> Materials:
    """One image of noise."""
    pixels = np.random.default_rng(5).integers(0, 256, (INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    return Materials(images={DIGEST: pixels})


class Spot(nn.Module):
    """Looks at the brightness of one spot alone, and at its square."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return two channels of one position."""
        seen = images[:, :, SPOT[0], SPOT[1]].mean((1, 2, 3)) / 2 + 0.5
        result: torch.Tensor = self.top(torch.stack([seen, seen**2], 1)[:, :, None, None])
        return result


def draw(model: ImageModel, target: Target, recipe: Attribution, materials: Materials) -> Picture:
    """Run the method on one target."""
    return method_for(recipe).run(model, [target], recipe, materials)[0]


@pytest.mark.parametrize("technique", ["integrated_gradients", "occlusion"])
def test_the_pixels_that_count_are_found(
    wrap: Callable[..., ImageModel], unit: Callable[..., Target], technique: str
) -> None:
    """Taking the marked pixels away first silences the unit at once; at random it takes all of them."""
    image = np.full((INPUT_SIZE, INPUT_SIZE, 3), 128, np.uint8)
    image[SPOT] = 255
    recipe = replace(RECIPE, technique=technique, baseline="black", window=3, stride=3)

    found = draw(wrap(Spot()), unit("top", 0), recipe, Materials(images={DIGEST: image})).findings

    share = 36 / INPUT_SIZE**2
    assert found["maps"][technique]["deletion_auc"] < 2 * share
    assert found["maps"][technique]["insertion_auc"] > 1 - 2 * share
    assert 0.3 < found["random_order"]["deletion_auc"] < 0.7


def test_integrated_gradients_add_up_to_what_the_image_adds(
    wrap: Callable[..., ImageModel], unit: Callable[..., Target]
) -> None:
    """A square of brightness 1 against black is 1 more, and the delta is what is missing of it."""
    image = np.full((INPUT_SIZE, INPUT_SIZE, 3), 255, np.uint8)
    recipe = replace(RECIPE, technique="integrated_gradients", baseline="black")

    picture = draw(wrap(Spot()), unit("top", 1), recipe, Materials(images={DIGEST: image}))

    facts = picture.findings["maps"]["integrated_gradients"]
    assert facts["difference"] == pytest.approx(1.0, abs=1e-5)
    assert facts["completeness_delta"] == pytest.approx(0.0, abs=1e-4)
    assert facts["complete"]
    assert picture.activation == pytest.approx(1.0, abs=1e-5)
    assert picture.first_activation == pytest.approx(0.0, abs=1e-5)


def test_too_few_steps_are_seen_in_the_delta(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """More points on the way explain the difference better."""
    target = unit("head", 1, FeatureKind.LOGIT, View.RAW)

    few, many = (
        abs(
            draw(
                model,
                target,
                replace(RECIPE, technique="integrated_gradients", steps=steps, baseline="black"),
                materials,
            ).findings["maps"]["integrated_gradients"]["completeness_delta"]
        )
        for steps in (4, 128)
    )

    assert many < few


def test_grad_cam_at_the_units_own_layer_is_its_map(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """There only the unit itself has a gradient; the grid is the layer's."""
    recipe = replace(RECIPE, technique="grad_cam")

    found = draw(model, unit("middle", 1), recipe, materials).findings["maps"]["grad_cam"]

    assert "middle" == found["layer"]
    assert [6, 6] == found["grid"]


def test_grad_cam_of_a_logit_needs_a_layer_with_positions(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Alone it is refused; among all three it is left out, and the findings say so."""
    logit = unit("head", 1, FeatureKind.LOGIT, View.RAW)

    with pytest.raises(UnsupportedTarget, match="head has none: name a layer of maps"):
        draw(model, logit, replace(RECIPE, technique="grad_cam"), materials)
    without = draw(model, logit, RECIPE, materials).findings["maps"]["grad_cam"]
    named = draw(model, logit, replace(RECIPE, layer="upper"), materials).findings["maps"][
        "grad_cam"
    ]

    assert {"left_out": "head has no positions: name recipe.layer"} == without
    assert "upper" == named["layer"]


def test_the_negative_side_marks_what_silences_the_unit(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """The difference to be explained has the other sign; the value is the unit's own either way."""
    recipe = replace(RECIPE, technique="integrated_gradients")
    target = unit("middle", 1)

    up, down = (
        draw(model, replace(target, side=side), recipe, materials)
        for side in (Side.POSITIVE, Side.NEGATIVE)
    )

    differences = [one.findings["maps"]["integrated_gradients"]["difference"] for one in (up, down)]
    assert differences[0] == pytest.approx(-differences[1])
    assert up.activation == down.activation
    assert up.first_activation == pytest.approx(down.first_activation)


def test_a_network_of_shuffled_weights_is_asked_where_that_is_wanted(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Its map stands in a second row, and the findings say how alike the two are."""
    target = unit("middle", 1)
    recipe = replace(RECIPE, technique="integrated_gradients", randomise="yes")

    plain = draw(model, target, replace(recipe, randomise="no"), materials)
    checked = draw(model, target, recipe, materials)

    likeness = checked.findings["maps"]["integrated_gradients"]["randomised_rank_correlation"]
    assert -1 < likeness < 0.95
    assert checked.image.shape[0] > 1.8 * plain.image.shape[0]
    assert "randomised_rank_correlation" not in plain.findings["maps"]["integrated_gradients"]


def test_shuffling_moves_weights_and_leaves_the_network(net: TinyNet) -> None:
    """The same values in other places, by the seed; biases stay."""
    before = net.low.weight.clone()

    one, again, other = (shuffled(net, seed) for seed in (1, 1, 2))

    assert torch.equal(before, net.low.weight)
    assert torch.equal(one.low.weight, again.low.weight)
    assert not torch.equal(one.low.weight, other.low.weight)
    assert torch.equal(before.flatten().sort().values, one.low.weight.flatten().sort().values)
    assert torch.equal(net.low.bias, one.low.bias)


def test_a_datasets_strongest_image_is_looked_at(
    model: ImageModel, tmp_path: Path, unit: Callable[..., Target]
) -> None:
    """The same as the first of the dataset's examples."""
    rng = np.random.default_rng(3)
    for number in range(10):
        pixels = rng.integers(0, 256, (INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    dataset: Dataset = as_dataset(tmp_path)
    given = Materials(datasets={"noise": dataset})
    recipe = replace(RECIPE, image="", dataset="noise", technique="grad_cam")

    picture = draw(model, unit("middle", 2), recipe, given)

    examples = Examples(dataset="noise", top=1, bands=0)
    best = method_for(examples).run(model, [unit("middle", 2)], examples, given)[0]
    assert best.findings["examples"][0]["file"] == picture.findings["image"]["file"]
    assert best.activation == pytest.approx(picture.activation, abs=1e-5)
    assert {"dataset:noise": dataset.digest} == picture.inputs


def test_equal_requests_have_equal_sheets_and_leave_no_hook(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Also among others, and after being cancelled at any pass."""
    targets = [unit("middle", 1), unit("low", 2)]
    method = method_for(RECIPE)

    together = method.run(model, targets, RECIPE, materials)
    alone = method.run(model, targets[1:], RECIPE, materials)

    assert np.array_equal(together[1].image, alone[0].image)
    assert together[1].findings == alone[0].findings
    for patience in (0, 1, 5, 20):
        asked = iter(range(10_000))
        with pytest.raises(JobCancelled):
            method.run(
                model,
                targets,
                RECIPE,
                materials,
                cancelled=lambda asked=asked, patience=patience: next(asked) >= patience,
            )
        assert not any(one._forward_hooks for one in model.module.modules())  # noqa: SLF001 - torch has no count


def test_the_cost_is_what_the_network_sees(
    net: TinyNet, wrap: Callable[..., ImageModel], materials: Materials, unit: Callable[..., Target]
) -> None:
    """Every image that goes through the target's layer was planned."""
    model, recipe = wrap(net), replace(RECIPE, randomise="no")
    seen: list[int] = []
    method = method_for(recipe)
    planned = method.plan(model, [unit("middle", 1)], recipe, materials).forwards
    with_dry_runs = 2  # one for the sites, one for Grad-CAM's layer
    net.low.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))

    method.run(model, [unit("middle", 1)], recipe, materials)

    assert planned + with_dry_runs == sum(seen)


def test_what_cannot_be_attributed_is_refused(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Each refusal says which value, and what to do."""
    target = unit("middle", 1)
    with pytest.raises(UnsupportedTarget, match="both empty: name a stored image"):
        Attribution()
    with pytest.raises(UnsupportedTarget, match="both given"):
        Attribution(image=DIGEST, dataset="noise")
    with pytest.raises(UnsupportedTarget, match=r"recipe\.image 'cat\.png' is no sha256"):
        Attribution(image="cat.png")
    with pytest.raises(UnsupportedTarget, match="stride 8 is above window 4"):
        Attribution(image=DIGEST, window=4, stride=8)
    with pytest.raises(UnsupportedTarget, match=r"abababab.* was not handed over"):
        draw(model, target, RECIPE, Materials())
    with pytest.raises(UnsupportedTarget, match="attribution is of one unit"):
        draw(model, replace(target, terms=(Term(target.feature),)), RECIPE, materials)
    with pytest.raises(UnsupportedTarget, match="window 400 is larger than"):
        draw(model, target, replace(RECIPE, window=400), materials)
    with pytest.raises(UnsupportedTarget, match="upper runs after middle"):
        draw(model, target, replace(RECIPE, layer="upper"), materials)


def test_a_map_of_nan_is_no_map(
    net: TinyNet, wrap: Callable[..., ImageModel], materials: Materials, unit: Callable[..., Target]
) -> None:
    """It is refused, never drawn."""
    with torch.no_grad():
        net.middle.weight[1] = float("nan")

    with pytest.raises(NonFiniteActivation, match="NaN or infinite"):
        draw(wrap(net), unit("middle", 1), RECIPE, materials)


def test_an_overlay_is_red_where_the_unit_is_driven_and_blue_where_it_is_held_back() -> None:
    """Where the map says nothing, the image stays, faded."""
    image = np.full((32, 32, 3), 100, np.uint8)
    heat = np.zeros((32, 32), np.float32)
    heat[:8], heat[-8:] = 1.0, -1.0

    red, grey, blue = overlay(image, heat)[[2, 16, -3], 16].astype(int)

    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert grey.max() - grey.min() == 0
