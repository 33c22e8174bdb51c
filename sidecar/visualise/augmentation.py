"""Random zoomed crops and noise: the optimiser must please the network from every distance.

A picture that only works as a whole, at one scale, is adversarial texture. Crops that zoom, shift and
turn, with noise on every pixel, are what makes sibling networks and people recognise it.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from sidecar.recipes import Maximisation, Target


@dataclass(frozen=True, slots=True)
class Crop:
    """The random numbers of one crop of one picture.

    Attributes:
        affine: Output to canvas coordinates, both from -1 to 1, shape ``(2, 3)``.
        noise: Added to the colours, shape ``(3, size, size)``.
    """

    affine: torch.Tensor
    noise: torch.Tensor


def generator_for(target: Target, seed: int, purpose: str) -> torch.Generator:
    """Return a stream of random numbers that depends on nothing but the arguments.

    Model and revision stay out of it on purpose: the same unit of two revisions starts from the same
    noise, so their pictures differ by the weights alone. The stream lives on the CPU, so that it is
    the same on every device.
    """
    layer = target.feature.layer
    text = (
        f"{seed}\0{purpose}\0{layer.layer}\0{layer.kind}\0{target.feature.index}\0{target.position}"
    )
    word = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(word >> 1)  # signed 64 bits


def draw_crop(recipe: Maximisation, size: int, generator: torch.Generator) -> Crop:
    """Draw one crop: zoom uniform, centre Gaussian and clipped so that the crop stays inside."""
    zoom_draw, turn_draw = torch.rand(2, generator=generator).tolist()
    centre = torch.randn(2, generator=generator) * recipe.centre_sigma
    noise = torch.randn((3, size, size), generator=generator) * recipe.noise
    zoom = recipe.zoom_min + (recipe.zoom_max - recipe.zoom_min) * zoom_draw
    turn = math.radians(recipe.rotation_degrees) * (2 * turn_draw - 1)
    across, down = centre.clamp(-(1 - zoom), 1 - zoom).tolist()
    cosine, sine = zoom * math.cos(turn), zoom * math.sin(turn)
    return Crop(torch.tensor([[cosine, -sine, across], [sine, cosine, down]]), noise)


def cut_crops(canvases: torch.Tensor, crops: list[Crop]) -> torch.Tensor:
    """Cut one crop from each canvas and add its noise, differentiably.

    Corners that a turn brings in from outside are reflections.

    Args:
        canvases: Shape ``(n, 3, canvas, canvas)``.
        crops: ``n`` crops of the same size.

    Returns:
        Shape ``(n, 3, size, size)``; noise may leave the range 0 to 1.
    """
    device = canvases.device
    noise = torch.stack([crop.noise for crop in crops]).to(device)
    affine = torch.stack([crop.affine for crop in crops]).to(device)
    grid = functional.affine_grid(affine, list(noise.shape), align_corners=False)
    views = functional.grid_sample(
        canvases, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return views + noise


def resize_whole(canvases: torch.Tensor, size: int) -> torch.Tensor:
    """Resize whole pictures to the network's input, with an antialiasing filter.

    Args:
        canvases: Shape ``(n, 3, canvas, canvas)``.
        size: Side of the result.

    Returns:
        Shape ``(n, 3, size, size)``.
    """
    if canvases.shape[-1] == size:
        return canvases
    return functional.interpolate(
        canvases, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
