"""Batches as a sparse autoencoder makes them: few latents a row, some of them in almost every row."""

import numpy as np

from sidecar.features import FeatureKind, LayerKey, Request, SparseSample

LAYER = LayerKey("bench", "0", "sae", FeatureKind.LATENT)
ROWS, ACTIVE = 1024, 50
"""A batch of 51,200 non-zero values."""


def batches(
    width: int, rows: int = ROWS, active: int = ACTIVE, count: int = 6
) -> list[SparseSample]:
    """Return different batches of ``rows`` rows with ``active`` latents of ``width`` each.

    A latent's popularity falls with one over its rank (Zipf), and ranks lie anywhere in the layer;
    values are lognormal.
    """
    rng = np.random.default_rng(width)
    share = np.cumsum(1.0 / np.arange(1, width + 1))
    latent = rng.permutation(width).astype(np.uint32)
    return [_batch(rng, share, latent, rows, active) for _ in range(count)]


def _batch(
    rng: np.random.Generator, share: np.ndarray, latent: np.ndarray, rows: int, active: int
) -> SparseSample:
    listed = [_row(rng, share, latent, active) for _ in range(rows)]
    values = rng.lognormal(0.0, 1.0, rows * active).astype(np.float32)
    splits = np.arange(rows + 1, dtype=np.int64) * active
    requests = tuple(Request() for _ in range(rows))
    index = np.arange(rows, dtype=np.int32)
    return SparseSample(LAYER, len(latent), splits, np.concatenate(listed), values, index, requests)


def _row(
    rng: np.random.Generator, share: np.ndarray, latent: np.ndarray, active: int
) -> np.ndarray:
    """Return ``active`` distinct latents in increasing order, popular ones likelier."""
    found = np.empty(0, np.int64)
    while len(found) < active:
        more = np.searchsorted(share, rng.random(3 * active) * share[-1])
        found = np.unique(np.concatenate((found, more)))
    return np.sort(latent[rng.permutation(found)[:active]])
