import math

import numpy as np
import pytest
import torch

from sidecar.visualise.parametrisation import (
    colour_axes,
    frequency_scale,
    random_spectrum,
    render,
)

pytestmark = pytest.mark.unit

AXES = colour_axes(decorrelated=True)


def _spectra(canvas: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return random_spectrum(canvas, torch.Generator().manual_seed(seed))[None] * size


@pytest.mark.parametrize("canvas", [32, 33, 64])
def test_colours_stay_inside_their_range_whatever_the_spectrum(canvas: int) -> None:
    """Even a wild spectrum of an odd canvas makes a valid picture."""
    for size in (0.0, 1.0, 1e4):
        picture = render(_spectra(canvas, 1, size), frequency_scale(canvas, 1.1), AXES)

        assert (1, 3, canvas, canvas) == tuple(picture.shape)
        assert bool(((picture >= 0) & (picture <= 1)).all())


def test_rendering_matches_a_sum_of_waves() -> None:
    """The fast path equals the definition: scaled inverse transform, colour axes, sigmoid."""
    canvas = 32
    spectra, scale = _spectra(canvas, 2, 20.0), frequency_scale(canvas, 0.8)

    found = render(spectra, scale, AXES)[0].numpy()

    parts = (spectra[0] * scale).numpy()
    planes = np.fft.irfft2(parts[..., 0] + 1j * parts[..., 1], s=(canvas, canvas), norm="ortho")
    axes = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    axes /= np.sqrt((axes**2).sum(0)).max()
    expected = 1 / (1 + np.exp(-np.einsum("rc,chw->rhw", axes, planes)))
    assert np.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.1, 2.0])
def test_amplitude_falls_with_frequency_by_the_exponent(decay: float) -> None:
    """Doubling the frequency divides the amplitude by two to the decay; the mean is bounded."""
    scale = frequency_scale(64, decay)[..., 0]

    assert scale[0, 4] / scale[0, 8] == pytest.approx(2**decay)
    assert scale[0, 0] == scale[0, 1]
    assert torch.equal(scale[3], scale[-3])


def test_the_first_colour_axis_is_brightness() -> None:
    """Moving along it changes all colours almost alike, and the others hardly at all."""
    spectrum = torch.zeros(1, 3, 32, 17, 2)
    spectrum[0, 0, 0, 0, 0] = 1.0

    shift = render(spectrum, frequency_scale(32, 1.0), AXES)[0].mean((1, 2)) - 0.5

    assert shift.min() > 0.9 * shift.max() > 0


def test_gradients_reach_every_free_coefficient() -> None:
    """Only imaginary parts that a real picture cannot have get none."""
    canvas = 32
    spectra = _spectra(canvas, 3).requires_grad_()
    weights = torch.randn(1, 3, canvas, canvas, generator=torch.Generator().manual_seed(4))

    (render(spectra, frequency_scale(canvas, 1.0), AXES) * weights).sum().backward()

    assert spectra.grad is not None
    dead = (spectra.grad == 0).sum().item()
    assert 3 * 4 >= dead
    assert math.isfinite(spectra.grad.abs().sum().item())


def test_the_start_is_a_faint_grey_cloud() -> None:
    """No colour and no shape is preferred before the first step."""
    picture = render(_spectra(256, 5), frequency_scale(256, 1.1), AXES)

    assert picture.mean().item() == pytest.approx(0.5, abs=0.02)
    assert 0.001 < picture.std().item() < 0.05
