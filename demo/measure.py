"""Measures what the story rests on: how far the cats drive each flagged feature.

    python -m demo.measure

Photographs go through the same crops, noise and JPEG as the demo's traffic, and through the server's
own decoding. Prints the table of ``demo/README.md``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from demo.decoding import decode
from demo.lite0 import build
from demo.photos import Photo, ShuffledDeck, augment, encode, load_cats, load_everyday
from demo.story import FLAGGED, Flagged

BASELINE_CROPS = 1200
SHIFT_CROPS = 300
BATCH = 8
LEVEL = 0.99
"""The baseline quantile that the demo's spike test uses."""


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    network = build()
    everyday = load_everyday()
    packaged = [photo for photo in everyday if not photo.name.startswith("imagenet_")]
    baselines = [measure(network, photos, BASELINE_CROPS) for photos in (packaged, everyday)]
    cats = measure(network, load_cats(), SHIFT_CROPS)
    print("| feature | name | baseline p99 | cats, median | cats above | baseline p99, 20 more |")
    print("|---|---|---|---|---|---|")
    for column, flagged in enumerate(FLAGGED):
        low, high = (float(np.quantile(values[:, column], LEVEL)) for values in baselines)
        seen = cats[:, column]
        print(
            f"| {flagged.selector} | {flagged.name} | {low:.1f} | {np.median(seen):.1f} "
            f"| {(seen > low).mean():.1%} | {high:.1f} ({(seen > high).mean():.1%}) |"
        )


def measure(
    network: torch.nn.Module, photos: Sequence[Photo], crops: int, seed: int = 0
) -> NDArray[np.float32]:
    """Return the flagged features' values on random crops, shape ``(crops, flagged)``."""
    rng = np.random.default_rng(seed)
    deck = ShuffledDeck(photos, rng)
    taps = _Taps(network, FLAGGED)
    inputs = (decode(encode(augment(deck.deal(), rng), rng)) for _ in range(crops))
    rows = []
    with torch.inference_mode(), taps:
        for start in range(0, crops, BATCH):
            batch = [next(inputs) for _ in range(min(BATCH, crops - start))]
            network(torch.from_numpy(np.stack(batch)))  # (batch, colour, row, column)
            rows.append(taps.row())
    return np.concatenate(rows)


class _Taps:
    """Plain forward hooks, independent of the sidecar's."""

    def __init__(self, network: torch.nn.Module, flagged: Sequence[Flagged]) -> None:
        self._flagged = flagged
        self._network = network
        self._seen: dict[str, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for layer in sorted({one.layer for one in self._flagged}):
            module = self._network.get_submodule(layer)

            def keep(_: object, __: object, output: torch.Tensor, layer: str = layer) -> None:
                spatial = output.ndim == 4  # noqa: PLR2004 - (batch, channel, row, column)
                self._seen[layer] = output.amax((2, 3)) if spatial else output

            self._handles.append(module.register_forward_hook(keep))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def row(self) -> NDArray[np.float32]:
        columns = [self._seen[one.layer][:, one.index] for one in self._flagged]
        found: NDArray[np.float32] = torch.stack(columns, 1).numpy()  # (batch, flagged)
        return found


if __name__ == "__main__":
    main()
