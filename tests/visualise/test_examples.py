"""Dataset examples: the right images, in the right order, with where they drive the unit."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidecar.errors import (
    JobCancelled,
    NonFiniteActivation,
    UnsupportedTarget,
)
from sidecar.features import FeatureKind
from sidecar.recipes import Dataset, Examples, Side, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, method_for
from tests.visualise.conftest import INPUT_SIZE, TinyNet

pytestmark = pytest.mark.unit

RECIPE = Examples(dataset="noise", top=3, bands=2, per_band=2, tile=32)
COUNT = 20


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twenty images of noise, of odd sizes."""
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        side = INPUT_SIZE + number
        pixels = rng.integers(0, 256, (side, side + 7, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    return as_dataset(tmp_path)


def as_dataset(folder: Path) -> Dataset:
    """Return a folder as a job is handed it."""
    paths = sorted(folder.iterdir())
    files = tuple((one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in paths)
    return Dataset("noise", str(folder), files)


def find(
    model: ImageModel, dataset: Dataset, *targets: Target, recipe: Examples = RECIPE
) -> tuple[Picture, ...]:
    """Run the method."""
    materials = Materials(datasets={"noise": dataset})
    return method_for(recipe).run(model, targets, recipe, materials)


def seen_by_hand(model: ImageModel, path: Path, unit: int) -> float:
    """Return a channel's maximum on one image, without any of the method's code."""
    image = Image.open(path)
    side = min(image.size)
    size = tuple(round(length * INPUT_SIZE / side) for length in image.size)
    fitted = image.resize(size, Image.Resampling.BICUBIC)
    left, top = ((length - INPUT_SIZE) // 2 for length in size)
    pixels = np.array(fitted.crop((left, top, left + INPUT_SIZE, top + INPUT_SIZE)))
    colours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        low = torch.relu(model.module.low((colours - 0.5) / 0.5))
        return float(torch.tanh(model.module.middle(low))[0, unit].max())


def test_the_strongest_images_come_first(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """The order and the values are those of the network run by hand."""
    model = replace(model, module=Bare(model.module))
    by_hand = {
        name: seen_by_hand(model, Path(dataset.folder, name), 2) for name, _ in dataset.files
    }

    found = find(model, dataset, unit("tail", 2))[0].findings["examples"]

    top = found[:3]
    assert sorted(by_hand, key=lambda name: -by_hand[name])[:3] == [one["file"] for one in top]
    assert [1, 2, 3] == [one["rank"] for one in top]
    assert [one["value"] for one in top] == pytest.approx(
        [by_hand[one["file"]] for one in top], abs=1e-5
    )


class Bare(torch.nn.Module):
    """The tiny network up to its second layer, with that layer's tanh as a module of its own."""

    def __init__(self, net: TinyNet) -> None:
        super().__init__()
        self.low, self.middle = net.low, net.middle
        self.tail = torch.nn.Tanh()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the second layer."""
        result: torch.Tensor = self.tail(self.middle(torch.relu(self.low(images))))
        return result


def test_bands_go_down_and_no_image_is_shown_twice(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """A sheet spans the distribution: the last band holds weaker images than the one before."""
    picture = find(model, dataset, unit("middle", 1))[0]

    found = picture.findings["examples"]
    values = [one["value"] for one in found]
    assert len(found) == 3 + 2 * 2 == len({one["file"] for one in found})
    assert values == sorted(values, reverse=True)
    assert ["top"] * 3 + ["rest, 0 to 50 % down"] * 2 + ["rest, 50 to 100 % down"] * 2 == [
        one["band"] for one in found
    ]
    assert picture.activation == values[0]
    assert picture.first_activation == pytest.approx(picture.findings["quantiles"]["0.5"])


def test_the_negative_side_shows_what_silences_a_unit(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """The weakest images of one side are the strongest of the other."""
    whole = replace(RECIPE, top=COUNT, bands=0)
    target = unit("middle", 1)

    up, down = (
        find(model, dataset, replace(target, side=side), recipe=whole)[0].findings["examples"]
        for side in (Side.POSITIVE, Side.NEGATIVE)
    )

    assert [one["file"] for one in up] == [one["file"] for one in reversed(down)]


def test_the_box_holds_what_moves_the_unit(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """A first-layer unit sees 5 x 5 pixels around its strongest position, and no other."""
    for one in find(model, dataset, unit("low", 1))[0].findings["examples"]:
        left, top, right, bottom = one["box"]
        row, column = one["position"]

        assert 0 < right - left <= 5
        assert 0 < bottom - top <= 5
        assert left <= 2 * column < right
        assert top <= 2 * row < bottom


def test_a_small_dataset_makes_a_small_sheet(
    model: ImageModel, tmp_path: Path, unit: Callable[..., Target]
) -> None:
    """Fewer images than asked for are no fault."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "one.png")

    picture = find(model, as_dataset(tmp_path), unit("middle", 1))[0]

    assert 1 == len(picture.findings["examples"])


def test_a_neuron_is_looked_at_where_it_is(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Not where its channel happens to be strongest."""
    target = unit("middle", 1, FeatureKind.NEURON, position=(2, 3))

    found = find(model, dataset, target)[0].findings["examples"]

    assert [[2, 3]] * len(found) == [one["position"] for one in found]


def test_what_cannot_be_looked_through_is_refused(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """A missing dataset, a changed file and a sum of units each say what is wrong."""
    target = unit("middle", 1)
    method = method_for(RECIPE)
    with pytest.raises(UnsupportedTarget, match="dataset 'noise' was not handed over"):
        method.plan(model, [target], RECIPE, Materials())
    with pytest.raises(UnsupportedTarget, match="examples are of one unit"):
        find(model, dataset, replace(target, terms=(Term(target.feature),)))
    Path(dataset.folder, "03.png").write_bytes(b"another")
    with pytest.raises(UnsupportedTarget, match=r"03\.png has changed since"):
        find(model, dataset, target)


def test_an_image_that_breaks_the_unit_is_named(
    net: TinyNet, wrap: Callable[..., ImageModel], dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """NaN has no rank."""
    with torch.no_grad():
        net.middle.weight[1] = float("nan")

    with pytest.raises(
        NonFiniteActivation, match=r"is NaN or infinite on 00\.png, and on 20 images"
    ):
        find(wrap(net), dataset, unit("middle", 1))


def test_a_run_can_be_cancelled_between_passes(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Nobody waits for the whole dataset."""
    materials = Materials(datasets={"noise": dataset})
    heard: list[int] = []

    with pytest.raises(JobCancelled, match="cancelled at pass 1 of 20"):
        method_for(RECIPE).run(
            model,
            [unit("middle", 1)],
            RECIPE,
            materials,
            on_progress=lambda progress: heard.append(progress.step),
            cancelled=lambda: bool(heard),
        )


def test_the_cost_counts_every_image(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Units of one layer share a pass; two layers take two."""
    materials = Materials(datasets={"noise": dataset})
    method = method_for(RECIPE)

    one = method.plan(model, [unit("middle", 1)], RECIPE, materials)
    two = method.plan(model, [unit("middle", 1), unit("low", 1)], RECIPE, materials)

    assert COUNT + 3 * 7 == one.forwards
    assert 2 * one.forwards == two.forwards
    assert one.bytes_estimate > 0
