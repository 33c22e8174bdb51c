"""Where activations lie on a map: two numbers for each, and the cell they fall into."""

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import SilentFeature

_EDGE = 0.01
"""Share of activations at each end of an axis that count as its border; a few stragglers must not push
all others into one cell."""

_SAME = 1e-12
"""Variance, as a ratio of the mean square, that is the rounding of equal values."""


def lay_out(taken: torch.Tensor) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Lay activations out by their two principal components.

    Args:
        taken: Shape ``(n, width)``.

    Returns:
        Places of shape ``(n, 2)``, each axis turned so that its largest weight is positive; and the share
        of the variance along each.

    Raises:
        SilentFeature: All activations are the same.
    """
    whole = taken.double()
    centred = whole - whole.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)  # rising
    if values[-1] <= _SAME * whole.square().sum():
        raise SilentFeature(
            "the layer is the same everywhere in the dataset: there is nothing to map"
        )
    two = axes[:, -2:].flip(1) if axes.shape[1] > 1 else axes.repeat(1, 2)  # (width, 2)
    largest = two.gather(0, two.abs().argmax(0, keepdim=True))
    shares = (values / values.sum()).flip(0).tolist()
    places: NDArray[np.float64] = (centred @ (two * largest.sign())).numpy()
    return places, (shares[0], shares[1] if len(shares) > 1 else 0.0)


def cells_of(places: NDArray[np.float64], grid: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row, from the top, and column of each place on a square grid of ``grid`` cells a side."""
    low, high = np.quantile(places, [_EDGE, 1 - _EDGE], axis=0)
    reach = np.where(high > low, high - low, 1.0)
    scaled = ((places - low) / reach * grid).astype(np.int64).clip(0, grid - 1)
    return grid - 1 - scaled[:, 1], scaled[:, 0]
