"""Reports on finished pictures: honest and fooled units, bounds, and what is left behind."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sidecar.errors import JobCancelled
from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import (
    Accentuation,
    Dataset,
    DeepDream,
    Maximisation,
    Recipe,
    Side,
    Target,
    Term,
)
from sidecar.visualise import (
    ImageModel,
    Materials,
    Picture,
    Settings,
    assess,
    method_for,
    plan,
    unmeasured,
    with_reliability,
)
from sidecar.visualise.parts import parts_of
from sidecar.visualise.reliability import _UNMEASURED
from sidecar.visualise.reruns import rerun_steps
from sidecar.visualise.verdict import Report
from tests.visualise.conftest import TinyNet
from tests.visualise.fooled import FOOLED, SIZE, FooledNet, photographs

RECIPE = Maximisation(steps=96, canvas=SIZE, noise=0.1, learning_rate=0.1)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The textures as a folder of images."""
    folder = tmp_path_factory.mktemp("textures")
    files = []
    for number, image in enumerate(photographs()):
        path = folder / f"{number:03}.png"
        Image.fromarray(image).save(path)
        files.append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return Dataset("textures", str(folder), tuple(files))


def texture_unit(index: int) -> Target:
    """Return a unit of the fooled network."""
    return Target(FeatureKey(LayerKey("fooled", "r1", "out", view=View.MEAN), index))


def reported(
    model: ImageModel, targets: list[Target], recipe: Recipe, settings: Settings
) -> tuple[tuple[Picture, ...], list[Report]]:
    """Make pictures, and return them with their reports."""
    method, materials = method_for(recipe), Materials()
    pictures = method.run(model, targets, recipe, materials)
    found = assess(method, model, pictures, recipe, materials, settings)
    return pictures, [report for report in found if report is not None]


def test_a_unit_that_fools_visualisation_is_found_out(textures: Dataset) -> None:
    """Its twin, which responds to photographs alike, takes their way; the fooled unit does not."""
    module = FooledNet().eval().requires_grad_(requires_grad=False)
    model = ImageModel(module, "d" * 64, SIZE, (0.5,) * 3, (1.0,) * 3, torch.device("cpu"))
    images = torch.from_numpy(photographs()).permute(0, 3, 1, 2) / 255 - 0.5
    natural = module(images).mean((2, 3))

    _, (honest, fooled) = reported(
        model, [texture_unit(0), texture_unit(FOOLED)], RECIPE, Settings(photographs=textures)
    )

    assert torch.allclose(natural[:, 0], natural[:, FOOLED], atol=1e-3)
    assert honest.verdict == "trusted"
    assert honest.measures["path"] > 0.9
    assert fooled.verdict == "unreliable"
    assert fooled.measures["path"] < 0.1
    assert any("another way through the network" in reason for reason in fooled.reasons)


def test_a_report_depends_on_its_own_picture_only(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """In company or alone: the same verdict and, up to rounding in batches, the same numbers."""
    targets = [unit("middle", index) for index in (1, 4, 6)]

    _, together = reported(model, targets, recipe, Settings())
    _, alone = reported(model, targets[1:2], recipe, Settings())

    assert together[1].verdict == alone[0].verdict
    assert alone[0].measures == pytest.approx(together[1].measures, rel=1e-3, abs=1e-3)


def test_a_report_leaves_the_model_as_it_was(
    net: TinyNet, model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """No hooks stay, and the network answers as before."""
    images = torch.rand((2, 3, 24, 24), generator=torch.Generator().manual_seed(0))
    before = net(images)

    reported(model, [unit("middle", 1), unit("head", 2, FeatureKind.LOGIT)], recipe, Settings())

    assert torch.equal(before, net(images))
    assert not any(module._forward_hooks for module in net.modules())  # noqa: SLF001 - torch has no other way


@pytest.mark.parametrize("kind", [FeatureKind.CHANNEL, FeatureKind.NEURON, FeatureKind.LOGIT])
def test_every_kind_of_unit_gets_its_measures(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation, kind: FeatureKind
) -> None:
    """Finite numbers, each of which the table explains."""
    layer = "head" if kind is FeatureKind.LOGIT else "middle"

    _, (report,) = reported(model, [unit(layer, 1, kind)], recipe, Settings())

    assert {"rise", "selectivity", "agreement", "stirred", "score"} <= set(report.measures)
    assert all(np.isfinite(value) for value in report.measures.values())
    assert set(report.document()["measures"]) == set(report.measures)


def test_another_side_and_weighed_units_are_held_to_what_was_asked(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """The same picture is as far below for the negative side as it is above for the positive one."""
    target = unit("middle", 1)
    method, materials = method_for(recipe), Materials()
    (picture,) = method.run(model, [target], recipe, materials)
    other = FeatureKey(target.feature.layer, 3)
    lower = replace(picture, target=replace(target, side=Side.NEGATIVE))
    weighed = replace(picture, target=replace(target, terms=(Term(other, -1.0),)))

    up, down, both = assess(
        method, model, [picture, lower, weighed], recipe, materials, Settings(seeds=0)
    )

    assert up is not None
    assert down is not None
    assert both is not None
    assert up.measures["stirred"] == pytest.approx(-down.measures["stirred"])
    assert down.measures["rise"] < 0
    assert both.measures["rise"] != up.measures["rise"]


def test_a_sibling_is_asked_for_classes_only(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """A network that sees the class everywhere, and one of fewer classes that cannot be asked."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with torch.no_grad():
        head[1].weight.zero_()
        head[1].bias.copy_(torch.tensor([0.0, 0.0, 20.0, 0.0, 0.0]))
    sibling = replace(model, module=head.eval(), input_size=16)
    few = replace(sibling, module=nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval())
    targets = [unit("head", 2, FeatureKind.LOGIT), unit("middle", 2)]

    _, (logit, channel) = reported(model, targets, recipe, Settings(seeds=0, sibling=sibling))
    _, (unasked,) = reported(model, targets[:1], recipe, Settings(seeds=0, sibling=few))

    assert logit.measures["transfer"] == pytest.approx(1.0)
    assert "transfer" not in channel.measures
    assert "transfer" not in unasked.measures


def test_the_extra_cost_is_bounded_and_planned(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """Steps of the further pictures stay within their share, and the plan counts them."""
    recipe = Maximisation(steps=512, canvas=32)
    target = unit("middle", 1)
    alone = plan(model, [target], recipe)

    whole = with_reliability(alone, [target], recipe, Settings(seeds=3, share=0.25))
    none = with_reliability(alone, [target], recipe, Settings(seeds=0))

    assert 21 == rerun_steps(recipe, 3, 0.25)
    assert (12, 32, 8, 0) == (
        rerun_steps(replace(recipe, steps=64), 3, 0.25),
        rerun_steps(recipe, 3, 9.0),
        rerun_steps(replace(recipe, steps=8), 3, 1.0),
        rerun_steps(recipe, 0, 1.0),
    )
    assert alone.forwards < none.forwards < alone.forwards + 120
    assert alone.forwards + 21 * 6 < whole.forwards < 1.5 * alone.forwards
    assert alone.seconds_estimate is not None
    assert whole.seconds_estimate is not None
    assert whole.seconds_estimate > alone.seconds_estimate


def test_a_report_can_be_cancelled(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """Also while the further pictures are made."""
    method, materials = method_for(recipe), Materials()
    pictures = method.run(model, [unit("middle", 1)], recipe, materials)

    with pytest.raises(JobCancelled):
        assess(method, model, pictures, recipe, materials, Settings(), cancelled=lambda: True)
    with pytest.raises(JobCancelled):
        assess(
            method, model, pictures, recipe, materials, Settings(seeds=0), cancelled=lambda: True
        )


def test_pictures_that_nothing_computed_get_no_report(
    model: ImageModel, unit: Callable[..., Target], tmp_path: Path
) -> None:
    """A sheet of photographs is believed for what it is."""
    from sidecar.recipes import Examples  # noqa: PLC0415 - beside its only use

    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    dataset = Dataset("d", str(tmp_path), (("a.png", digest),))
    recipe = Examples(dataset="d")
    materials = Materials(datasets={"d": dataset})
    method = method_for(recipe)
    pictures = method.run(model, [unit("middle", 1)], recipe, materials)

    assert [None] == assess(method, model, pictures, recipe, materials, Settings())
    assert "photographs" in unmeasured(pictures[0].target, recipe)


def test_the_gallery_says_why_the_other_methods_have_no_verdict(
    unit: Callable[..., Target],
) -> None:
    """In the words that the manifest has."""
    page = Path("docs/gallery-further.md").read_text(encoding="utf-8")

    for kind, why in _UNMEASURED.items():
        assert f"| `{kind.method}` | {why} |" in page
    assert unmeasured(unit("middle", 0, FeatureKind.NORM), DeepDream()) in page


def test_a_whole_layer_has_no_unit_to_be_held_against(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """A dream of a layer gets no verdict, and it is said why; one of a unit gets one."""
    recipe = DeepDream(canvas=32, octaves=2, steps=4)
    whole, channel = unit("middle", 0, FeatureKind.NORM), unit("middle", 1)

    _, reports = reported(model, [whole, channel], recipe, Settings())

    assert 1 == len(reports)
    assert "whole layer" in unmeasured(whole, recipe)
    assert "" == unmeasured(channel, recipe)
    assert {"rise", "stirred", "selectivity"} <= set(reports[0].measures)
    assert "agreement" not in reports[0].measures


def test_a_sheet_gets_the_report_of_its_weakest_picture(
    model: ImageModel, unit: Callable[..., Target], recipe: Maximisation
) -> None:
    """Facets are held to the unit, and the last of a way between two to the other one."""
    target, other = unit("middle", 1), unit("middle", 3)
    way = replace(target, terms=(Term(other.feature),))
    method, materials = method_for(recipe), Materials()
    facets, stops = replace(recipe, facets=3), replace(recipe, stops=3)
    (sheet,) = method.run(model, [target], facets, materials)
    (between,) = method.run(model, [way], stops, materials)

    parts, ways = parts_of(sheet), parts_of(between)
    (report,) = assess(method, model, [sheet], facets, materials, Settings())

    assert [target] * 3 == [part.target for part in parts]
    assert np.array_equal(sheet.image, np.concatenate([part.image for part in parts], axis=1))
    assert [target, way, other] == [part.target for part in ways]
    assert ways[0].moved is not None
    assert ways[2].moved is None
    assert report is not None
    alone = [
        assess(
            method,
            model,
            [replace(sheet, image=part.image, findings={})],
            recipe,
            materials,
            Settings(seeds=0),
        )[0]
        for part in parts
    ]
    scores = [one.measures["rise"] for one in alone if one is not None]
    assert report.measures["rise"] in scores
    assert "agreement" not in report.measures


def test_what_began_with_an_image_is_measured_against_it(
    model: ImageModel, unit: Callable[..., Target]
) -> None:
    """An accentuation that changed nothing rises above nothing, however strong the image is."""
    target, image = unit("middle", 1, view=View.MEAN), np.full((32, 32, 3), 110, np.uint8)
    image[8:24, 8:24] = 140
    recipe = Accentuation(start="a" * 64, canvas=32, steps=24, learning_rate=0.2, closeness=0.0)
    materials = Materials(images={"a" * 64: image})
    method = method_for(recipe)
    (made,) = method.run(model, [target], recipe, materials)
    whole = replace(made, image=image)

    done, undone = assess(method, model, [made, whole], recipe, materials, Settings(seeds=0))

    assert done is not None
    assert undone is not None
    assert done.measures["rise"] > undone.measures["rise"]
    assert undone.measures["rise"] <= 1e-3
