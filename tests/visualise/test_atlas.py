"""Activation atlas: activations find their cells, and cells are drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidecar.errors import JobCancelled, NonFiniteActivation, SilentFeature, UnsupportedTarget
from sidecar.recipes import Atlas, Dataset, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, Progress, atlas, method_for
from sidecar.visualise.layout import lay_out
from tests.visualise.conftest import INPUT_SIZE, TinyNet
from tests.visualise.test_examples import as_dataset

pytestmark = pytest.mark.unit

RECIPE = Atlas(dataset="noise", positions=8, grid=3, least=2, steps=6, canvas=32, learning_rate=0.2)
COUNT = 20


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twenty images of noise."""
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    return as_dataset(tmp_path)


def draw(
    model: ImageModel, dataset: Dataset, *targets: Target, recipe: Atlas = RECIPE
) -> tuple[Picture, ...]:
    """Run the method."""
    return method_for(recipe).run(model, targets, recipe, Materials(datasets={"noise": dataset}))


def test_the_axes_are_those_of_the_greatest_variance() -> None:
    """Points on a plane are laid out as they lie on it, but for the signs of its axes."""
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(500, 2)) * [5.0, 1.0]
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))

    places, shares = lay_out(torch.from_numpy(flat @ turn[:2] + 3.0))

    centred = flat - flat.mean(0)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] > 0.9
    assert abs(np.corrcoef(places[:, 0], centred[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], centred[:, 1])[0, 1]) > 0.99


def test_every_activation_is_in_a_cell_and_full_cells_are_drawn(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Counts add up, but for cells with too few; what is empty stays white."""
    (picture,) = draw(model, dataset, unit("middle", 1))

    found = picture.findings
    counts = [one["count"] for one in found["cells"]]
    assert COUNT * RECIPE.positions == found["activations"]
    assert 0.8 * found["activations"] < sum(counts) <= found["activations"]
    assert min(counts) >= RECIPE.least
    filled = {(one["row"], one["column"]) for one in found["cells"]}
    for row in range(3):
        for column in range(3):
            part = picture.image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            assert ((row, column) in filled) == bool(part.std() > 0)
    best = max(found["cells"], key=lambda one: one["unit_mean"])
    assert [best["row"], best["column"]] == found["strongest"]
    assert {"dataset:noise": dataset.digest} == picture.inputs


def test_neighbours_on_the_map_are_unlike_the_far_side(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Cells are drawn from one start, so what differs between them is what the layer tells apart."""
    few, many = (
        draw(model, dataset, unit("low", 1), recipe=replace(RECIPE, steps=steps))[0].image
        for steps in (1, 40)
    )

    left, right = slice(0, 32), slice(64, 96)
    apart = [
        float(np.abs(one[32:64, left].astype(float) - one[32:64, right]).mean())
        for one in (few, many)
    ]
    assert apart[1] > apart[0]


def test_equal_requests_have_equal_maps(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """Alone and among others; units of one layer share the map, another seed makes another."""
    targets = (unit("low", 1), unit("middle", 2), unit("low", 3))

    together = draw(model, dataset, *targets)
    (alone,) = draw(model, dataset, targets[1])
    (other,) = draw(model, dataset, targets[1], recipe=replace(RECIPE, seed=1))

    assert np.array_equal(together[1].image, alone.image)
    assert together[1].findings == alone.findings
    assert np.array_equal(together[0].image, together[2].image)
    assert not np.array_equal(alone.image, other.image)


def test_the_cost_is_no_less_than_what_the_network_sees(
    net: TinyNet, wrap: Callable[..., ImageModel], dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """It is what it is when no cell stays empty."""
    model, seen = wrap(net), []
    recipe = replace(RECIPE, grid=2, least=1)
    given = Materials(datasets={"noise": dataset})
    planned = method_for(recipe).plan(model, [unit("middle", 1)], recipe, given)
    net.low.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))

    (picture,) = draw(model, dataset, unit("middle", 1), recipe=recipe)

    for_the_site, empty = 1, 4 - len(picture.findings["cells"])
    assert planned.forwards + for_the_site == sum(seen) + empty * recipe.steps
    assert planned.bytes_estimate > 0


def test_it_tells_how_far_it_is_and_stops_in_any_pass(
    model: ImageModel, dataset: Dataset, unit: Callable[..., Target]
) -> None:
    """The dataset is the first step, then come the optimiser's; a run that was stopped leaves no hook."""
    heard: list[Progress] = []
    method, given = method_for(RECIPE), Materials(datasets={"noise": dataset})
    method.run(model, [unit("low", 1)], RECIPE, given, on_progress=heard.append)
    assert (7, 7) == (heard[-1].step, heard[-1].steps)
    for patience in (0, 1, 4, 8):
        asked = iter(range(1000))
        with pytest.raises(JobCancelled):
            method.run(
                model,
                [unit("low", 1)],
                RECIPE,
                given,
                cancelled=lambda asked=asked, patience=patience: next(asked) >= patience,
            )
        assert not any(one._forward_hooks for one in model.module.modules())  # noqa: SLF001 - torch has no count


def test_what_cannot_be_mapped_is_refused(
    net: TinyNet,
    wrap: Callable[..., ImageModel],
    dataset: Dataset,
    unit: Callable[..., Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each refusal says which value, and what to do."""
    model, target = wrap(net), unit("low", 1)
    with pytest.raises(UnsupportedTarget, match=r"recipe\.dataset is empty"):
        Atlas()
    with pytest.raises(UnsupportedTarget, match="'noise' was not handed over"):
        method_for(RECIPE).plan(model, [target], RECIPE, Materials())
    with pytest.raises(UnsupportedTarget, match="an atlas is of one unit"):
        draw(model, dataset, replace(target, terms=(Term(target.feature),)))
    with pytest.raises(UnsupportedTarget, match="least 1000: no cell of 3 x 3"):
        draw(model, dataset, target, recipe=replace(RECIPE, least=1000))
    with monkeypatch.context() as patch:
        patch.setattr(atlas, "_BYTES_LIMIT", 100)
        with pytest.raises(UnsupportedTarget, match="positions 8 of 20 images of low take 3840"):
            draw(model, dataset, target)
    with torch.no_grad():
        net.low.weight.zero_()
    with pytest.raises(SilentFeature, match="the same everywhere"):
        draw(model, dataset, target)
    with torch.no_grad():
        net.low.bias[2] = float("nan")
    with pytest.raises(NonFiniteActivation, match="low is NaN or infinite on some image"):
        draw(model, dataset, target)
