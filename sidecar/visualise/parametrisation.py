"""Pictures as decorrelated spectra: what the optimiser moves instead of pixels.

Gradient steps on pixels make high-frequency noise. In a Fourier basis scaled by 1/f, and in colour
axes as independent as those of photographs, equal steps make equally visible changes.
"""

import torch

_COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the colour covariance of ImageNet, rows red, green, blue; as published with Lucid."""

_START_DEVIATION = 0.01
"""Of the start's coefficients: a faint grey cloud, so that no direction is preferred."""

_CONTRAST = 0.25
"""Of the whole spectrum, as in Lucid: one step of Adam at a rate of 0.05 then changes the picture
visibly and a sigmoid takes tens of steps to saturate."""


def frequency_scale(canvas: int, decay: float) -> torch.Tensor:
    """Return the amplitude each frequency gets, falling as ``1 / frequency ** decay``.

    Args:
        canvas: Side of the picture in pixels.
        decay: The exponent; photographs have about 1.

    Returns:
        Shape ``(canvas, canvas // 2 + 1, 1)``, float32; the constant term counts as frequency
        ``1 / canvas``.

    Source:
        Olah, Mordvintsev and Schubert 2017, "Feature visualization", on preconditioning.
    """
    down = torch.fft.fftfreq(canvas)[:, None]
    across = torch.fft.rfftfreq(canvas)[None, :]
    frequency = torch.sqrt(down**2 + across**2).clamp(min=1.0 / canvas)
    return (_CONTRAST / frequency**decay)[..., None]


def random_spectrum(canvas: int, generator: torch.Generator) -> torch.Tensor:
    """Return the random start of one picture.

    Returns:
        Real and imaginary parts, shape ``(3, canvas, canvas // 2 + 1, 2)``, float32.
    """
    shape = (3, canvas, canvas // 2 + 1, 2)
    return torch.randn(shape, generator=generator) * _START_DEVIATION


def render(spectra: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Turn spectra into pictures, differentiably.

    Args:
        spectra: Shape ``(n, 3, canvas, canvas // 2 + 1, 2)``.
        scale: From ``frequency_scale``.

    Returns:
        Colours strictly between 0 and 1, shape ``(n, 3, canvas, canvas)``.
    """
    canvas = spectra.shape[2]
    waves = torch.view_as_complex((spectra * scale).contiguous())  # (n, 3, canvas, canvas // 2 + 1)
    planes = torch.fft.irfft2(waves, s=(canvas, canvas), norm="ortho")  # (n, 3, canvas, canvas)
    return torch.sigmoid(torch.einsum("rc,nchw->nrhw", _colour_axes(spectra), planes))


def _colour_axes(like: torch.Tensor) -> torch.Tensor:
    axes = torch.tensor(_COLOUR, dtype=like.dtype, device=like.device)
    longest: torch.Tensor = torch.linalg.vector_norm(axes, dim=0).max()
    return axes / longest
