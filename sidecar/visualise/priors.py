"""Priors: what a picture pays for being unlike a photograph, live traffic, or what it should stay near."""

import torch
from torch.nn import functional

from sidecar.errors import ShapeMismatch
from sidecar.features import LayerKey
from sidecar.visualise.pictures import TypicalRange
from sidecar.visualise.units import Site, Units

_NARROWEST_RATIO = 1e-3
"""Of the layer's median range: a unit that hardly moves on live traffic is not measured in units of
almost nothing."""


def total_variation(pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels, down plus across.

    Args:
        pictures: Shape ``(n, 3, canvas, canvas)``.

    Returns:
        Shape ``(n,)``; independent of the canvas for the same picture at the same sharpness.
    """
    down = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().mean((1, 2, 3))  # (n,)
    across = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))  # (n,)
    return down + across


def greyness(pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of the colours from mid-grey, shape ``(n,)``."""
    return (pictures - 0.5).square().mean((1, 2, 3))


def likeness(maps: torch.Tensor, facets: int) -> torch.Tensor:
    """Return how alike the pictures of one sheet are to the network.

    Texture is compared, by the cosine of the Gram matrices of the maps; of a vector, its own cosine.

    Args:
        maps: Shape ``(sheets * facets, width, rows, columns)``, the facets of a sheet together.
        facets: Pictures a sheet, 2 or more.

    Returns:
        The mean cosine with the sheet's other pictures, shape ``(sheets * facets,)``.

    Source:
        Olah, Mordvintsev and Schubert 2017, "Feature visualization", on diversity.
    """
    if maps[0, 0].numel() > 1:
        flat = maps.flatten(2)  # (n, width, positions)
        marks = (flat @ flat.transpose(1, 2)).flatten(1)  # (n, width * width)
    else:
        marks = maps.flatten(1)  # (n, width)
    sheets = functional.normalize(marks, dim=1).view(-1, facets, marks.shape[1])
    alike = sheets @ sheets.transpose(1, 2)  # (sheets, facets, facets)
    own = torch.diagonal(alike, dim1=1, dim2=2)  # (sheets, facets)
    return ((alike.sum(2) - own) / (facets - 1)).flatten()


def distance(maps: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Return how far maps are from others, as a ratio of those, shape ``(n,)``.

    Args:
        maps: Shape ``(n, width, rows, columns)``.
        anchors: The same shape.

    Source:
        Hamblin et al. 2024, "Feature accentuation: revealing 'what' features respond to in natural
        images".
    """
    away: torch.Tensor = torch.linalg.vector_norm((maps - anchors).flatten(1), dim=1)
    size: torch.Tensor = torch.linalg.vector_norm(anchors.flatten(1), dim=1)
    return away / size.clamp(min=torch.finfo(size.dtype).tiny)


class TypicalRangePrior:
    """How far the units beside the target leave the range they have on live traffic."""

    def __init__(
        self, typical: TypicalRange, layer: LayerKey, site: Site, device: torch.device
    ) -> None:
        """Take one layer's range.

        Args:
            typical: Ranges of layers; must have this one.
            layer: Which layer, kind and view.
            site: Its measured shape.
            device: Where the model lives.

        Raises:
            ShapeMismatch: The range has another width than the layer.
        """
        name = str(layer)
        ends = (typical.low[name], typical.high[name])
        low, high = (torch.tensor(end, dtype=torch.float32, device=device) for end in ends)
        if len(low) != site.width:
            raise ShapeMismatch(
                f"typical range of {layer} has {len(low)} units, the layer has {site.width}"
            )
        width = high - low
        middle = width.nanmedian().nan_to_num(0.0)
        floor = max(float(middle) * _NARROWEST_RATIO, torch.finfo(torch.float32).tiny)
        # What is unknown about a unit must cost nothing: its range is endless.
        self._low = torch.where(low.isnan(), -torch.inf, low)  # (width,)
        self._high = torch.where(high.isnan(), torch.inf, high)  # (width,)
        self._width = width.nan_to_num(nan=1.0).clamp(min=floor)  # (width,)

    def __call__(self, units: Units, maps: torch.Tensor) -> torch.Tensor:
        """Return the mean overshoot of the other units, in widths of their ranges, shape ``(n,)``."""
        values = units.all_values(maps)  # (n, width)
        over = (values - self._high).relu() + (self._low - values).relu()
        others = torch.ones_like(values).scatter_(1, units.indices[:, None], 0.0)
        count = max(values.shape[1] - 1, 1)
        return (over / self._width * others).sum(1) / count
