"""What targets and recipes ask for beyond one unit's positive side."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidecar.errors import ShapeMismatch, UnsupportedTarget
from sidecar.features import FeatureKind
from sidecar.recipes import Accentuation, Maximisation, Side, Target, Term
from sidecar.visualise import ImageModel, Materials, maximise, plan
from sidecar.visualise.augmentation import resize_whole
from sidecar.visualise.method import Directions
from sidecar.visualise.priors import distance, greyness, likeness
from sidecar.visualise.units import forward_to

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]
IMAGE = "a" * 64


def _maps(model: ImageModel, image: np.ndarray, layer: str) -> torch.Tensor:
    colours = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return forward_to(model, layer, resize_whole(colours, model.input_size))[0]


def test_the_negative_side_is_minimised(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """From the same start one side goes up and the other down, and both say the unit's own value."""
    target = unit("middle", 1, view="mean")

    up, down = (
        maximise(model, [replace(target, side=side)], replace(recipe, steps=20))[0] for side in Side
    )

    assert up.first_activation == down.first_activation
    assert up.activation > up.first_activation + 0.1
    assert down.activation < down.first_activation - 0.1
    assert down.activation == pytest.approx(
        _maps(model, down.image, "middle")[1].mean().item(), abs=1e-4
    )


def test_terms_are_weighed_together(model: ImageModel, unit: Unit, recipe: Maximisation) -> None:
    """A difference raises the one unit and lowers the other, where the sum raises both."""
    first, second = unit("middle", 1, view="mean"), unit("middle", 2, view="mean")
    long = replace(recipe, steps=30)

    both, apart = (
        maximise(model, [replace(first, terms=(Term(second.feature, weight),))], long)[0]
        for weight in (1.0, -1.0)
    )

    one, other = (_maps(model, found.image, "middle").mean((1, 2)) for found in (both, apart))
    assert one[1] + one[2] > other[1] + other[2]
    assert other[1] - other[2] > one[1] - one[2] + 0.1
    assert one[2] > other[2] + 0.1


def test_a_norm_is_the_length_of_a_whole_layer(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """It is driven up, and its value is what numpy says of the layer's output."""
    target = unit("middle", 0, FeatureKind.NORM)

    picture = maximise(model, [target], replace(recipe, steps=20))[0]

    expected = np.linalg.norm(_maps(model, picture.image, "middle").numpy())
    assert picture.activation == pytest.approx(float(expected), rel=1e-4)
    assert picture.activation > 1.2 * picture.first_activation


@pytest.mark.parametrize("objective", ["dot", "cosine"])
def test_a_direction_is_a_vector_over_the_layers_units(
    model: ImageModel, unit: Unit, recipe: Maximisation, objective: str
) -> None:
    """Its value is the dot product, whichever of the two is made large."""
    vectors = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    materials = Materials(directions={"middle": Directions(vectors, "d" * 64)})
    target = unit("middle", 1, FeatureKind.DIRECTION, "mean")

    picture = maximise(
        model, [target], replace(recipe, steps=20, objective=objective), materials=materials
    )[0]

    maps = _maps(model, picture.image, "middle").numpy()
    assert picture.activation == pytest.approx(float(vectors[1] @ maps.mean((1, 2))), abs=1e-3)
    assert picture.activation > picture.first_activation
    assert {"directions": "d" * 64} == picture.inputs


def test_directions_of_another_width_are_refused(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """A dictionary of another layer cannot be used by mistake."""
    vectors = Directions(np.ones((1, 7), np.float32), "d" * 64)

    with pytest.raises(ShapeMismatch, match="over 7 units, the layer has 8"):
        plan(
            model,
            [unit("middle", 0, FeatureKind.DIRECTION, "mean")],
            recipe,
            materials=Materials(directions={"middle": vectors}),
        )


def test_stops_go_from_one_unit_to_another(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The first tile is the unit's own picture, and its activation falls from there on."""
    first, second = unit("middle", 1, view="mean"), unit("middle", 2, view="mean")
    long = replace(recipe, steps=30)
    way = replace(first, terms=(Term(second.feature, 1.0),))

    alone = maximise(model, [first], long)[0]
    sheet = maximise(model, [way], replace(long, stops=3))[0]

    tiles = sheet.findings["tiles"]
    assert (32, 96, 3) == sheet.image.shape
    assert np.array_equal(alone.image, sheet.image[:, :32])
    assert [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]] == [tile["weights"] for tile in tiles]
    assert tiles[0]["activation"] > tiles[1]["activation"] > tiles[2]["activation"]
    assert alone.activation == sheet.activation == tiles[0]["activation"]


def test_stops_need_one_other_unit(model: ImageModel, unit: Unit, recipe: Maximisation) -> None:
    """Where there is nowhere to go, it says so before any work."""
    with pytest.raises(UnsupportedTarget, match="has 0 terms: name one"):
        plan(model, [unit("middle", 1)], replace(recipe, stops=3))


def test_facets_are_pushed_apart(model: ImageModel, unit: Unit, recipe: Maximisation) -> None:
    """With diversity the pictures of one unit are less alike to the network than without."""
    shared = replace(recipe, steps=30, facets=3, noise=0.0)

    def alike(diversity: float) -> float:
        sheet = maximise(model, [unit("middle", 1)], replace(shared, diversity=diversity))[0]
        maps = [_maps(model, tile, "middle") for tile in np.split(sheet.image, 3, axis=1)]
        return likeness(torch.stack(maps), 3).mean().item()

    assert alike(2.0) < alike(0.0) - 0.01


def test_a_plateau_ends_it_and_is_said(model: ImageModel, unit: Unit, recipe: Maximisation) -> None:
    """A sheet that no longer rises is left as it is; one that does goes on, whatever its company."""
    short = replace(recipe, steps=400, noise=0.0, learning_rate=0.5, plateau=0.02)
    targets = [unit("middle", 1), unit("middle", 2)]

    pictures = maximise(model, targets, short)
    alone = maximise(model, targets[:1], short)[0]

    taken = [picture.findings["steps"] for picture in pictures]
    assert all(64 <= steps < 400 for steps in taken)
    assert ["plateau"] * 2 == [picture.findings["stopped"] for picture in pictures]
    assert taken[0] == alone.findings["steps"] == len(pictures[0].history)
    assert np.array_equal(alone.image, pictures[0].image)
    assert (
        pictures[0].findings["cost"]["forwards"] < pictures[0].findings["cost"]["forwards_planned"]
    )


def test_closeness_keeps_a_picture_near_its_image(model: ImageModel, unit: Unit) -> None:
    """The more closeness counts, the less the layer's output moves away from the image's."""
    stream = np.random.default_rng(5)
    image = np.kron(stream.integers(40, 216, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    materials = Materials(images={IMAGE: image})
    usual = Accentuation(start=IMAGE, canvas=32, steps=20, noise=0.0)

    def moved(closeness: float) -> float:
        recipe = replace(usual, closeness=closeness)
        picture = maximise(model, [unit("middle", 1)], recipe, materials=materials)[0]
        maps, anchors = (_maps(model, one, "middle")[None] for one in (picture.image, image))
        return distance(maps, anchors).item()

    assert moved(5.0) < moved(0.0)


def test_likeness_is_one_for_equal_maps_and_none_for_others() -> None:
    """Units that are never active together make two textures."""
    maps = torch.zeros(2, 2, 3, 3)
    maps[0, 0], maps[1, 1] = 1.0, 2.0

    assert [0.0, 0.0] == likeness(maps, 2).tolist()
    assert [1.0, 1.0] == pytest.approx(likeness(maps[:1].repeat(2, 1, 1, 1), 2).tolist())


def test_distance_is_a_ratio_of_the_anchor() -> None:
    """Twice the image's output is one image's length away."""
    anchors = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.1

    assert [1.0, 1.0] == pytest.approx(distance(2 * anchors, anchors).tolist())


def test_greyness_is_least_for_grey() -> None:
    """Mid-grey costs nothing, and black or white a quarter."""
    ends = torch.stack([torch.full((3, 4, 4), value) for value in (0.5, 0.0, 1.0)])

    assert [0.0, 0.25, 0.25] == pytest.approx(greyness(ends).tolist())
