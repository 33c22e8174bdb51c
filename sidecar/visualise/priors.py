"""Priors: what a picture pays for being unlike a photograph or unlike live traffic."""

import torch

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
