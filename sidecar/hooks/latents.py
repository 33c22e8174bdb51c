"""Latents of sampled rows, by an encoder that the server hands over."""

import torch

from sidecar.errors import ShapeMismatch
from sidecar.hooks.plan import Tap
from sidecar.hooks.reduce import describe, positions_of

LATENT_SHARE = 8
"""Part of the queue that one layer's latents of one pass may take with their zeros, as they wait for the
sender: fewer positions are taken of long sequences where more would not fit."""


class Latents:
    """A ``Reduction`` to latents. Any number of threads may use it where the encoder allows that.

    Args:
        tap: Of kind ``latent``.
        max_rows: Most positions of an item.
        limit_bytes: Of the queue.
    """

    def __init__(self, tap: Tap, max_rows: int, limit_bytes: int) -> None:
        self._encoder = tap.encoder
        self._max_rows = max_rows
        self._most_bytes = limit_bytes // LATENT_SHARE
        self._width = 0

    def __call__(self, output: torch.Tensor, draw: float) -> tuple[torch.Tensor, float]:
        """Return the latents of sampled positions, ``(items, latents)`` or ``(items, positions, latents)``.

        Raises:
            ShapeMismatch: What the encoder made is not that.
        """
        rows, weight = positions_of(output, draw, self._fitting(output))
        if self._encoder is None:
            return rows, weight
        with torch.no_grad():
            latents = self._encoder(rows)
            if not (
                isinstance(latents, torch.Tensor)
                and latents.layout is torch.strided
                and not latents.is_meta
                and latents.shape[:-1] == rows.shape[:-1]
            ):
                raise ShapeMismatch(
                    f"the encoder made {describe(latents)} of rows {tuple(rows.shape)}: it must return one "
                    "dense tensor that differs in the last dimension only"
                )
            self._width = latents.shape[-1]
            # In memory of its own: an encoder may use its output again, or return a part of a large one.
            return latents.clone(memory_format=torch.contiguous_format), weight

    def _fitting(self, output: torch.Tensor) -> int:
        """Return how many positions of each item fit; one until it is known how many latents there are."""
        width = output.shape[-1] if self._encoder is None else self._width
        if not width:
            return 1
        item_bytes = output.shape[0] * width * output.element_size()
        return max(1, min(self._max_rows, self._most_bytes // max(item_bytes, 1)))
