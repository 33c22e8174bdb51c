import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise.augmentation import cut_crops, draw_crop, generator_for, resize_whole

pytestmark = pytest.mark.unit

LAYER = LayerKey("lite0", "3fa1", "_blocks.14")
QUIET = Maximisation(noise=0.0, rotation_degrees=0.0)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ramp(side: int) -> torch.Tensor:
    """A canvas whose red is the column and green the row, in -1 to 1 at pixel centres."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    red, green = line.expand(side, side), line[:, None].expand(side, side)
    return torch.stack([red, green, red * 0])[None]


@settings(deadline=None)  # the first call of a torch kernel takes its time
@given(
    seed=st.integers(0, 2**31),
    low=st.floats(0.05, 1.0),
    high=st.floats(0.05, 1.0),
    sigma=st.floats(0.0, 10.0),
)
def test_unturned_crops_stay_inside_the_canvas(
    seed: int, low: float, high: float, sigma: float
) -> None:
    """Whatever the zoom and however far the centre is thrown."""
    low, high = sorted((low, high))
    recipe = replace(QUIET, zoom_min=low, zoom_max=high, centre_sigma=sigma)

    affine = draw_crop(recipe, 8, _stream(seed)).affine

    zoom = affine[0, 0].item()
    assert low - 1e-5 <= zoom <= high + 1e-5
    assert affine[:, 2].abs().max().item() + zoom <= 1 + 1e-5


def test_a_crop_shows_the_part_it_names() -> None:
    """Its middle is its centre, and its width the zoom."""
    crop = draw_crop(QUIET, 17, _stream(3))

    view = cut_crops(_ramp(256), [crop])[0]

    zoom, across, down = crop.affine[0, 0], crop.affine[0, 2], crop.affine[1, 2]
    assert view[0, 8, 8].item() == pytest.approx(across.item(), abs=1e-3)
    assert view[1, 8, 8].item() == pytest.approx(down.item(), abs=1e-3)
    assert (view[0, 8, 16] - view[0, 8, 0]).item() == pytest.approx(
        2 * zoom.item() * 16 / 17, abs=1e-3
    )


def test_turning_keeps_distances_and_stays_within_its_limit() -> None:
    """The affine part is a zoom times a rotation of at most the named angle."""
    recipe = replace(QUIET, rotation_degrees=25.0)
    stream = _stream(1)
    angles = []

    for _ in range(200):
        turn = draw_crop(recipe, 4, stream).affine[:, :2]
        zoom = torch.linalg.det(turn).sqrt()
        angles.append(torch.rad2deg(torch.asin(turn[1, 0] / zoom)).item())
        assert torch.allclose(turn @ turn.T, torch.eye(2) * zoom**2, atol=1e-6)

    assert -25.01 <= min(angles) < -20
    assert 20 < max(angles) <= 25.01


def test_corners_from_outside_are_reflections() -> None:
    """A whole canvas turned by 45 degrees shows no black and no stretched edge."""
    turned = torch.tensor([[0.7071, -0.7071, 0.0], [0.7071, 0.7071, 0.0]])
    crop = replace(draw_crop(QUIET, 64, _stream()), affine=turned)

    corner = cut_crops(_ramp(64), [crop])[0, :, 0, -1]

    # The corner lies at 1.41 to the right of the centre: reflected, that is 0.59 inside.
    assert corner[0].item() == pytest.approx(2 - 1.392, abs=0.03)


def test_noise_has_the_named_deviation() -> None:
    """It is added to each pixel of each colour."""
    noise = draw_crop(replace(QUIET, noise=0.1), 224, _stream()).noise

    assert (3, 224, 224) == tuple(noise.shape)
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.002)


def test_crops_let_the_gradient_through() -> None:
    """Every canvas of a batch gets the gradient of its own crop only."""
    canvases = _ramp(32).repeat(2, 1, 1, 1).requires_grad_()
    views = cut_crops(canvases, [draw_crop(QUIET, 8, _stream(s)) for s in (1, 2)])

    (gradient,) = torch.autograd.grad(views[0].sum(), canvases)

    assert gradient[0].abs().sum().item() > 0
    assert gradient[1].abs().sum().item() == 0


def test_a_stream_depends_on_seed_unit_and_purpose_alone() -> None:
    """Not on the revision or the view: revisions are compared from the same start."""
    neuron = LayerKey("m", "r", "_blocks.14", FeatureKind.NEURON, View.RAW)
    base = Target(LAYER.feature(3))
    others = [
        (Target(LAYER.feature(4)), 0, "start"),
        (Target(FeatureKey(replace(LAYER, layer="_blocks.7"), 3)), 0, "start"),
        (Target(FeatureKey(neuron, 3)), 0, "start"),
        (Target(FeatureKey(neuron, 3), (1, 2)), 0, "start"),
        (base, 1, "start"),
        (base, 0, "optimise"),
    ]
    same = Target(FeatureKey(LayerKey("m", "ffff", "_blocks.14", view=View.MEAN), 3))

    first = generator_for(base, 0, "start").initial_seed()

    assert first == generator_for(same, 0, "start").initial_seed()
    assert 7 == len({first, *(generator_for(*other).initial_seed() for other in others)})
    text = b"0\0start\0_blocks.14\0channel\x003\0None"
    assert int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1 == first


def test_resizing_the_whole_filters_out_what_the_network_cannot_see() -> None:
    """A one-pixel checkerboard becomes grey instead of aliasing."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    canvas = board.float().expand(1, 3, 64, 64)

    small = resize_whole(canvas, 24)

    assert (1, 3, 24, 24) == tuple(small.shape)
    assert (small[..., 2:-2, 2:-2] - 0.5).abs().max().item() < 0.1
    assert resize_whole(canvas, 64) is canvas
