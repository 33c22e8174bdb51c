"""Pictures of nothing: the yardstick for what a unit does when nobody asked for it.

Clouds with the spectrum of photographs at several contrasts and finenesses, plain noise, and plain
colours. A picture that was made for a unit must do far better than these.
"""

from collections.abc import Iterator

import torch

from sidecar.recipes import Maximisation
from sidecar.visualise.augmentation import Crop, cut_crops, draw_crop
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, random_spectrum, render

_DECAYS = (0.6, 1.0, 1.4)
"""Exponents of the amplitude spectrum around that of photographs, 1: sand, clouds, soft colours."""

_CONTRASTS = (5.0, 20.0, 60.0)
"""Times the faint start of an optimisation; at the greatest nearly all colours are saturated."""

_EACH = 3
_SEED = 20_261_126
"""Of all pictures here, so that equal pictures get equal reports."""

GENERIC_PICTURES = _EACH * (len(_DECAYS) * len(_CONTRASTS) + 2)

VIEWS = 8
"""Random views of a finished picture that are looked at afresh."""


def generic_pictures(side: int) -> torch.Tensor:
    """Return pictures of nothing, always the same.

    Returns:
        Colours from 0 to 1, shape ``(GENERIC_PICTURES, 3, side, side)``.
    """
    stream = torch.Generator().manual_seed(_SEED)
    clouds = torch.cat(list(_clouds(side, stream)))
    noise = torch.rand(_EACH, 3, side, side, generator=stream)
    plain = torch.rand(_EACH, 3, 1, 1, generator=stream).expand(-1, -1, side, side)
    return torch.cat([clouds, noise, plain])


def _clouds(side: int, stream: torch.Generator) -> Iterator[torch.Tensor]:
    for decay in _DECAYS:
        scale = frequency_scale(side, decay)
        for contrast in _CONTRASTS:
            spectra = [random_spectrum(side, stream) * contrast for _ in range(_EACH)]
            yield render(torch.stack(spectra), scale, colour_axes(decorrelated=True))


def fresh_views(picture: torch.Tensor, size: int) -> torch.Tensor:
    """Cut random zoomed crops, turned a little and noisy, that no optimiser has seen.

    They are those of the usual recipe, whatever the picture was made with, so that pictures of
    different methods compare.

    Args:
        picture: Colours, shape ``(1, 3, side, side)``.
        size: Side of a view.

    Returns:
        Shape ``(VIEWS, 3, size, size)``.
    """
    stream = torch.Generator().manual_seed(_SEED)
    crops: list[Crop] = [draw_crop(Maximisation(), size, stream) for _ in range(VIEWS)]
    return cut_crops(picture.expand(VIEWS, -1, -1, -1), crops)
