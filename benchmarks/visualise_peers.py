"""Lucent and Horama as their documentation runs them, each as a function from units to pictures.

Both import torchvision, whose wheels do not load beside a CPU build of torch. They use three small
things of it, which are written out here: normalisation, a download, and ``roi_align``.
"""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

PEERS = Path(".peers")
STEPS = 128

_MEAN, _STD = 0.498, 0.502


class _Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std


def _roi_align(
    image: torch.Tensor, boxes: torch.Tensor, output_size: tuple[int, int]
) -> torch.Tensor:
    """One bilinear sample a cell, as torchvision takes where a cell is no larger than a pixel."""
    _, _, height, width = image.shape
    x0, y0, x1, y1 = boxes[:, 1:].T
    zoom = torch.stack([(x1 - x0) / width, (y1 - y0) / height], 1)
    centre = torch.stack([(x0 + x1) / width - 1, (y0 + y1) / height - 1], 1)
    affine = torch.cat([torch.diag_embed(zoom), centre[:, :, None]], 2)
    grid = functional.affine_grid(affine, [len(boxes), 3, *output_size], align_corners=False)
    views = image.expand(len(boxes), -1, -1, -1)
    return functional.grid_sample(views, grid, padding_mode="border", align_corners=False)


def stand_in() -> None:
    """Put what the peers need of torchvision and IPython, and the peers, where imports find them."""

    def module(name: str, **values: object) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(values)
        sys.modules[name] = made
        return made

    module("torchvision", transforms=module("torchvision.transforms", Normalize=_Normalize))
    module("torchvision.ops", roi_align=_roi_align)
    module("torchvision.datasets")
    module("torchvision.datasets.utils", download_url=None)
    module("IPython", display=module("IPython.display"))
    module("matplotlib.pyplot")
    module("matplotlib")
    sys.path.append(str(PEERS.resolve()))


def lucent(network: nn.Module, units: list[tuple[str, int]], canvas: int) -> list[np.ndarray]:
    """Return Lucent's pictures of channels or logits, its defaults: RGB, ``(canvas, canvas, 3)``."""
    from lucent.optvis import objectives, param, render, transform  # noqa: PLC0415 - after stand_in

    def normalise(image: torch.Tensor) -> torch.Tensor:
        return (image - _MEAN) / _STD

    pictures = []
    for number, (layer, unit) in enumerate(units):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002 - its transforms draw from there
        pictures += render.render_vis(
            network,
            objectives.channel(layer.replace(".", "_"), unit),
            param_f=lambda: param.image(canvas),
            transforms=[*transform.standard_transforms, normalise],
            preprocess=False,
            thresholds=(STEPS,),
            progress=False,
            show_image=False,
        )
    return [(picture[0] * 255).round().astype(np.uint8) for picture in pictures]


def horama_maco(
    network: nn.Module, units: list[tuple[str, int]], magnitude: np.ndarray
) -> list[np.ndarray]:
    """Return Horama's MACO pictures, its defaults but for the steps, shape ``(1280, 1280, 3)``.

    Its magnitudes are a download; it is given ours, which it normalises and resizes as its own.
    """
    from horama import maco_fv  # noqa: PLC0415 - after stand_in

    np.save(maco_fv.MACO_SPECTRUM_FILENAME, magnitude)  # in the working directory, where it looks
    pictures = []
    for number, (layer, unit) in enumerate(units):
        torch.manual_seed(number)
        image, _ = maco_fv.maco(
            _objective(network, layer, unit), total_steps=STEPS, values_range=(-1, 1), device="cpu"
        )
        colours = ((image.detach() + 1) / 2).clamp(0, 1)  # normalised colours to 0 to 1
        pictures.append(colours.permute(1, 2, 0).mul(255).round().byte().numpy())
    return pictures


def _objective(network: nn.Module, layer: str, unit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As its documentation does it: run the network, and read the layer with a hook."""
    seen: list[torch.Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out))

    def score(images: torch.Tensor) -> torch.Tensor:
        network(images)
        found = seen.pop()[:, unit]
        seen.clear()
        return found.mean()

    return score
