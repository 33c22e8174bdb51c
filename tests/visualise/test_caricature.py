"""Caricatures: a picture to which a layer answers in the image's direction, and more strongly."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidecar.errors import JobCancelled, NonFiniteActivation, SilentFeature, UnsupportedTarget
from sidecar.recipes import Caricature, Target, Term
from sidecar.visualise import ImageModel, Materials, Picture, Progress, method_for
from tests.visualise.conftest import INPUT_SIZE, TinyNet

pytestmark = pytest.mark.unit

DIGEST = "ab" * 32
RECIPE = Caricature(image=DIGEST, steps=30, canvas=32, learning_rate=0.2, noise=0.02)


@pytest.fixture
def materials() -> Materials:
    """An image of four flat quarters."""
    quarters = np.random.default_rng(5).integers(0, 256, (2, 2, 3), np.uint8)
    half = INPUT_SIZE // 2
    return Materials(images={DIGEST: quarters.repeat(half, 0).repeat(half, 1)})


def draw(
    model: ImageModel, materials: Materials, *targets: Target, recipe: Caricature = RECIPE
) -> tuple[Picture, ...]:
    """Run the method."""
    return method_for(recipe).run(model, targets, recipe, materials)


def test_the_layer_answers_as_to_the_image(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """In nearly the same direction, which it did not at the start."""
    (picture,) = draw(model, materials, unit("low", 1))

    found = picture.findings
    assert found["cosine"] > 0.8
    assert found["cosine"] > found["cosine_of_start"] + 0.1
    assert picture.history[-1] > picture.history[0]
    assert {"file": "", "sha256": DIGEST, "activation": picture.first_activation} == found["image"]
    assert picture.image.shape[1] > 1.8 * RECIPE.canvas


def test_the_length_alone_makes_it_longer_and_less_alike(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Without the angle the picture is all exaggeration; with much of it, less."""
    wild, tame = (
        draw(model, materials, unit("low", 1), recipe=replace(RECIPE, cosine_power=power))[
            0
        ].findings
        for power in (0.0, 8.0)
    )

    assert wild["length_ratio"] > tame["length_ratio"]
    assert wild["cosine"] < tame["cosine"]


def test_equal_requests_have_equal_pictures(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Alone and among others; another seed draws another."""
    short = replace(RECIPE, steps=4)
    targets = (unit("low", 1), unit("middle", 2))

    together = draw(model, materials, *targets, recipe=short)
    (alone,) = draw(model, materials, targets[1], recipe=short)
    (other,) = draw(model, materials, targets[1], recipe=replace(short, seed=1))

    assert np.array_equal(together[1].image, alone.image)
    assert together[1].history == alone.history
    assert not np.array_equal(alone.image, other.image)


def test_the_cost_is_what_the_network_sees(
    net: TinyNet, wrap: Callable[..., ImageModel], materials: Materials, unit: Callable[..., Target]
) -> None:
    """Image and picture at every step, and the measuring of both."""
    model, seen = wrap(net), []
    planned = method_for(RECIPE).plan(model, [unit("low", 1)], RECIPE, materials)
    net.low.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))

    draw(model, materials, unit("low", 1))

    for_the_site = 1
    assert planned.forwards + for_the_site == sum(seen)
    assert planned.bytes_estimate > 0


def test_it_tells_how_far_it_is_and_stops_at_any_step(
    model: ImageModel, materials: Materials, unit: Callable[..., Target]
) -> None:
    """Progress ends at the last step; a run that was stopped leaves no hook."""
    heard: list[Progress] = []
    method, targets = method_for(RECIPE), [unit("low", 1)]
    method.run(model, targets, RECIPE, materials, on_progress=heard.append)
    assert [0, 16, 30] == [one.step for one in heard]
    for patience in (0, 1, 7):
        asked = iter(range(1000))
        with pytest.raises(JobCancelled, match=f"cancelled at step {patience} of 30"):
            method.run(
                model,
                targets,
                RECIPE,
                materials,
                cancelled=lambda asked=asked, patience=patience: next(asked) >= patience,
            )
        assert not any(one._forward_hooks for one in model.module.modules())  # noqa: SLF001 - torch has no count


def test_what_cannot_be_drawn_is_refused(
    net: TinyNet, wrap: Callable[..., ImageModel], materials: Materials, unit: Callable[..., Target]
) -> None:
    """Each refusal says which value, and what to do."""
    model, target = wrap(net), unit("low", 1)
    with pytest.raises(UnsupportedTarget, match="both empty: name a stored image"):
        Caricature()
    with pytest.raises(UnsupportedTarget, match=r"zoom_min 0\.9 is above zoom_max 0\.5"):
        Caricature(image=DIGEST, zoom_min=0.9, zoom_max=0.5)
    with pytest.raises(UnsupportedTarget, match="was not handed over"):
        draw(model, Materials(), target)
    with pytest.raises(UnsupportedTarget, match="a caricature is of one unit"):
        draw(model, materials, replace(target, terms=(Term(target.feature),)))
    with torch.no_grad():
        net.low.weight.zero_()
        net.low.bias.zero_()
    with pytest.raises(SilentFeature, match="low is 0 on the image everywhere"):
        draw(model, materials, target)
    with torch.no_grad():
        net.low.bias[2] = float("nan")
    with pytest.raises(NonFiniteActivation, match="low is NaN or infinite on the image"):
        draw(model, materials, target)
