import math

import numpy as np
import pytest
import torch

from sidecar.visualise.parametrisation import (
    Fourier,
    Maco,
    Pixels,
    colour_axes,
    frequency_scale,
    natural_magnitude,
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


@pytest.mark.parametrize("decorrelated", [True, False])
@pytest.mark.parametrize("kind", [Fourier, Pixels])
def test_a_picture_that_begins_with_an_image_is_that_image(
    kind: type[Fourier | Pixels], decorrelated: bool
) -> None:
    """Up to what is held off the ends of the range."""
    axes, cpu = colour_axes(decorrelated=decorrelated), torch.device("cpu")
    writing = Fourier(33, 1.1, axes, cpu) if kind is Fourier else Pixels(33, axes, cpu)
    image = torch.rand(3, 33, 33, generator=torch.Generator().manual_seed(6))

    found = writing.render(writing.start_from(image)[None])[0]

    assert torch.allclose(image.clamp(0.02, 0.98), found, atol=1e-3)


@pytest.mark.parametrize("canvas", [32, 64])
def test_maco_changes_phases_and_never_magnitudes(canvas: int) -> None:
    """Whatever the phases, the spectrum of the planes has the magnitudes of photographs."""
    writing = Maco(canvas, torch.eye(3), torch.device("cpu"))
    values = writing.start(torch.Generator().manual_seed(1))

    planes = torch.logit(writing.render((values * 3)[None])[0].double())

    found = torch.fft.rfft2(planes, norm="ortho").abs()[:, 1 : canvas // 2, 1 : canvas // 2]
    wanted = natural_magnitude(canvas)[:, 1 : canvas // 2, 1 : canvas // 2].double()
    assert torch.allclose(wanted, found, rtol=0.02)


def test_natural_magnitudes_fall_with_frequency() -> None:
    """About as 1/f, and the constant term is none: pictures are grey on average."""
    brightness = natural_magnitude(256)[0]

    assert brightness[0, 0] == 0
    assert 4 < brightness[0, 4] / brightness[0, 32] < 24
