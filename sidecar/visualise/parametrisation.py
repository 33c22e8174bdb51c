"""What the optimiser moves instead of pixels: spectra, phases, or pixels after all.

Gradient steps on pixels make high-frequency noise. In a Fourier basis scaled by 1/f, and in colour
axes as independent as those of photographs, equal steps make equally visible changes. Phases alone
cannot make more contrast or sharper grain than a photograph has.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.recipes import Maximisation

COLOUR_AXES = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the colour covariance of ImageNet, rows red, green, blue; as published with Lucid."""

_START_DEVIATION = 0.01
"""Of the start's coefficients: a faint grey cloud, so that no direction is preferred."""

_CONTRAST = 0.25
"""Of the whole spectrum, as in Lucid: one step of Adam at a rate of 0.05 then changes the picture
visibly and a sigmoid takes tens of steps to saturate."""

_PHASE_STEP = 4.0
"""Radians a unit of what MACO optimises: Adam at a rate of 0.05 then turns a wave by a fifth of a
radian a step."""

_LEAST_COLOUR = 0.02
"""A saturated colour would be infinite before the sigmoid, and no gradient could bring it back."""


class Parametrisation(Protocol):
    """A way of writing pictures down as numbers that are easy to optimise."""

    def start(self, generator: torch.Generator) -> torch.Tensor:
        """Return the random start of one picture, on the CPU."""

    def start_from(self, image: torch.Tensor) -> torch.Tensor:
        """Return the numbers of an image, colours from 0 to 1, shape ``(3, canvas, canvas)``."""

    def render(self, values: torch.Tensor) -> torch.Tensor:
        """Turn the numbers of ``n`` pictures into colours, ``(n, 3, canvas, canvas)``, differentiably."""


class Fourier:
    """Spectra scaled by 1/f: real and imaginary parts, ``(3, canvas, canvas // 2 + 1, 2)`` a picture."""

    def __init__(self, canvas: int, decay: float, axes: torch.Tensor, device: torch.device) -> None:
        self._canvas = canvas
        self._axes = axes.to(device)
        self._scale = frequency_scale(canvas, decay).to(device)

    def start(self, generator: torch.Generator) -> torch.Tensor:
        """Return the spectrum of a faint grey cloud."""
        return random_spectrum(self._canvas, generator)

    def start_from(self, image: torch.Tensor) -> torch.Tensor:
        """Return the spectrum of an image."""
        waves = torch.fft.rfft2(_before_sigmoid(image, self._axes), norm="ortho")
        return torch.view_as_real(waves) / self._scale

    def render(self, values: torch.Tensor) -> torch.Tensor:
        """Turn spectra into pictures."""
        return render(values, self._scale, self._axes)


class Pixels:
    """Pixels before the sigmoid, ``(3, canvas, canvas)`` a picture."""

    def __init__(self, canvas: int, axes: torch.Tensor, device: torch.device) -> None:
        self._canvas = canvas
        self._axes = axes.to(device)

    def start(self, generator: torch.Generator) -> torch.Tensor:
        """Return faint noise."""
        shape = (3, self._canvas, self._canvas)
        return torch.randn(shape, generator=generator) * _START_DEVIATION

    def start_from(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image's pixels."""
        return _before_sigmoid(image, self._axes)

    def render(self, values: torch.Tensor) -> torch.Tensor:
        """Turn pixels into pictures."""
        return _coloured(values, self._axes)


class Maco:
    """Phases of a spectrum with the magnitudes of photographs, ``(3, canvas, canvas // 2 + 1)``.

    Source:
        Fel et al. 2023, "Unlocking feature visualization for deeper networks with MAgnitude
        Constrained Optimization". The magnitudes are our own, see ``natural_magnitude``, and the
        amplitude that they fix need not be normalised in every step.
    """

    def __init__(self, canvas: int, axes: torch.Tensor, device: torch.device) -> None:
        self._canvas = canvas
        self._axes = axes.to(device)
        self._magnitude = natural_magnitude(canvas).to(device)

    def start(self, generator: torch.Generator) -> torch.Tensor:
        """Return random phases."""
        shape = (3, self._canvas, self._canvas // 2 + 1)
        return (torch.rand(shape, generator=generator) * 2 - 1) * (torch.pi / _PHASE_STEP)

    def start_from(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image's phases; its magnitudes are lost."""
        waves = torch.fft.rfft2(_before_sigmoid(image, self._axes))
        angles: torch.Tensor = waves.angle()
        return angles / _PHASE_STEP

    def render(self, values: torch.Tensor) -> torch.Tensor:
        """Turn phases into pictures."""
        angles = values * _PHASE_STEP
        waves = torch.complex(self._magnitude * angles.cos(), self._magnitude * angles.sin())
        side = (self._canvas, self._canvas)
        return _coloured(torch.fft.irfft2(waves, s=side, norm="ortho"), self._axes)


def parametrisation_of(recipe: Maximisation, device: torch.device) -> Parametrisation:
    """Return the parametrisation that a recipe names."""
    axes = colour_axes(decorrelated=recipe.colours == "decorrelated")
    if recipe.parametrisation == "pixel":
        return Pixels(recipe.canvas, axes, device)
    if recipe.parametrisation == "maco":
        return Maco(recipe.canvas, axes, device)
    return Fourier(recipe.canvas, recipe.decay, axes, device)


def colour_axes(*, decorrelated: bool) -> torch.Tensor:
    """Return the colours that the three planes of a picture stand for, shape ``(3, 3)``.

    Those of photographs, divided by the longest; or red, green and blue.
    """
    if not decorrelated:
        return torch.eye(3)
    axes = torch.tensor(COLOUR_AXES)
    longest: torch.Tensor = torch.linalg.vector_norm(axes, dim=0).max()
    return axes / longest


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


def render(spectra: torch.Tensor, scale: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Turn spectra into pictures, differentiably.

    Args:
        spectra: Shape ``(n, 3, canvas, canvas // 2 + 1, 2)``.
        scale: From ``frequency_scale``.
        axes: From ``colour_axes``.

    Returns:
        Colours strictly between 0 and 1, shape ``(n, 3, canvas, canvas)``.
    """
    canvas = spectra.shape[2]
    waves = torch.view_as_complex((spectra * scale).contiguous())  # (n, 3, canvas, canvas // 2 + 1)
    planes = torch.fft.irfft2(waves, s=(canvas, canvas), norm="ortho")  # (n, 3, canvas, canvas)
    return _coloured(planes, axes)


def natural_magnitude(canvas: int) -> torch.Tensor:
    """Return how large the Fourier coefficients of photographs are.

    Measured on 256 pixels and read off by frequency in cycles a pixel, so a larger canvas holds more
    of the same and not a larger picture of it. The constant term is 0: pictures are grey on average.

    Args:
        canvas: Side of the picture in pixels.

    Returns:
        Shape ``(3, canvas, canvas // 2 + 1)``, float32; the planes of a picture made of them with any
        phases have on average the deviation of photographs.
    """
    measured = _measured_spectrum()
    down, across = np.fft.fftfreq(canvas)[:, None], np.fft.rfftfreq(canvas)[None, :]
    radius = np.maximum(np.hypot(down, across), 1e-12)
    turn = (np.arctan2(down, across) % np.pi) / np.pi  # of half a circle
    planes = [
        _read_off(np.asarray(table), np.asarray(measured["radii"]), radius, turn)
        for table in measured["log10_magnitude"]
    ]
    found = np.stack(planes)  # (3, canvas, canvas // 2 + 1)
    found[:, 0, 0] = 0.0
    # Of a real picture's coefficients, those across twice: once more for the half that is not kept.
    twice = np.where((across == 0) | (across == 0.5), 1.0, 2.0)  # noqa: PLR2004 - Nyquist
    deviation = np.sqrt((found**2 * twice).sum((1, 2)) / canvas**2)
    found *= (np.asarray(measured["deviation"]) / deviation)[:, None, None]
    return torch.from_numpy(found.astype(np.float32))


def _read_off(
    table: NDArray[np.float64],
    radii: NDArray[np.float64],
    radius: NDArray[np.float64],
    turn: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Interpolate one plane's table, ``(orientations, rings)``, in log frequency and orientation."""
    place = turn * len(table)
    low = np.floor(place).astype(int) % len(table)
    share = place - np.floor(place)
    curves = np.stack([np.interp(np.log(radius), np.log(radii), curve) for curve in table])
    below = np.take_along_axis(curves, low[None], 0)[0]
    above = np.take_along_axis(curves, (low[None] + 1) % len(table), 0)[0]
    found: NDArray[np.float64] = 10 ** (below * (1 - share) + above * share)
    return found


@cache
def _measured_spectrum() -> dict[str, Sequence[float]]:
    file = resources.files("sidecar.visualise") / "natural_spectrum.json"
    document: dict[str, Sequence[float]] = json.loads(file.read_text("utf-8"))
    return document


def _coloured(planes: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(torch.einsum("rc,nchw->nrhw", axes, planes))


def _before_sigmoid(image: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Undo ``_coloured`` for one image, colours held off the ends."""
    colours = image.to(axes.device).clamp(_LEAST_COLOUR, 1 - _LEAST_COLOUR)
    return torch.einsum("cr,rhw->chw", torch.linalg.inv(axes), torch.logit(colours))
