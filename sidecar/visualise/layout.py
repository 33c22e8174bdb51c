"""Where activations lie on a map: two numbers for each, and the cell they fall into."""

import importlib
import importlib.util
import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import SilentFeature, UnsupportedTarget

_EDGE = 0.01
"""Share of activations at each end of an axis that count as its border; a few stragglers must not push
all others into one cell."""

_NEIGHBOURS = 15
"""Of each activation, that UMAP keeps together: its default, which balances parts against the whole."""

_WORD = 1 << 32
"""Seeds of numpy's random numbers are below it."""

_SAME = 1e-12
"""Variance, as a ratio of the mean square, that is the rounding of equal values."""


Placed = tuple[NDArray[np.float64], tuple[float, float]]
"""Places of shape ``(n, 2)``; and the share of the variance along each axis, NaN where axes mean nothing."""


def check_layout(layout: str) -> None:
    """Refuse a layout that cannot be made here.

    Raises:
        UnsupportedTarget: It takes a package that is not installed.
    """
    if layout == "umap" and importlib.util.find_spec("umap") is None:
        raise UnsupportedTarget(
            "recipe.layout umap needs umap-learn, which is not installed: pip install "
            "'feature-sidecar[umap]', or use layout pca"
        )


def lay_out(taken: torch.Tensor, layout: str = "pca", seed: int = 0) -> Placed:
    """Lay activations out on a plane.

    Args:
        taken: Shape ``(n, width)``.
        layout: ``pca``: by their two principal components, each axis turned so that its largest weight is
            positive. ``umap``: so that neighbours stay neighbours; distances and axes mean nothing.
        seed: Of UMAP's random numbers.

    Raises:
        SilentFeature: All activations are the same.
        UnsupportedTarget: ``umap``, and there are too few, or as ``check_layout``.

    Source:
        McInnes, Healy and Melville 2018, "UMAP: uniform manifold approximation and projection".
    """
    if layout == "umap":
        _refuse_same(taken.double())
        return _neighbours(taken.numpy(), seed), (math.nan, math.nan)
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


def _refuse_same(whole: torch.Tensor) -> None:
    spread = (whole - whole.mean(0)).square().sum()
    if spread <= _SAME * whole.square().sum():
        raise SilentFeature(
            "the layer is the same everywhere in the dataset: there is nothing to map"
        )


def _neighbours(taken: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    check_layout("umap")
    if len(taken) <= _NEIGHBOURS:
        raise UnsupportedTarget(
            f"recipe.layout umap needs more than {_NEIGHBOURS} activations, and there are {len(taken)}: raise "
            "positions, or use layout pca"
        )
    with warnings.catch_warnings():  # it warns of packages that nobody needs here
        warnings.simplefilter("ignore")
        library = importlib.import_module("umap")
        # One thread: with several the order of their sums is another in every run.
        fitted = library.UMAP(n_neighbors=_NEIGHBOURS, random_state=seed % _WORD, n_jobs=1)
        places: NDArray[np.float64] = np.asarray(fitted.fit_transform(taken), np.float64)
    return places


def cells_of(places: NDArray[np.float64], grid: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row, from the top, and column of each place on a square grid of ``grid`` cells a side."""
    low, high = np.quantile(places, [_EDGE, 1 - _EDGE], axis=0)
    reach = np.where(high > low, high - low, 1.0)
    scaled = ((places - low) / reach * grid).astype(np.int64).clip(0, grid - 1)
    return grid - 1 - scaled[:, 1], scaled[:, 0]
