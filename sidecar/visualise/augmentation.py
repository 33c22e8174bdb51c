"""Random zoomed crops and noise: the optimiser must please the network from every distance.

A picture that only works as a whole, at one scale, is adversarial texture. Crops that zoom, shift and
turn, with noise on every pixel, are what makes sibling networks and people recognise it.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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


def generator_for(target: Target, seed: int, purpose: str, facet: int = 0) -> torch.Generator:
    """Return a stream of random numbers that depends on nothing but the arguments.

    The target's side and terms stay out of it, so that what they change can be seen.

    Model and revision stay out of it on purpose: the same unit of two revisions starts from the same
    noise, so their pictures differ by the weights alone. The stream lives on the CPU, so that it is
    the same on every device.
    """
    layer = target.feature.layer
    text = (
        f"{seed}\0{purpose}\0{layer.layer}\0{layer.kind}\0{target.feature.index}\0{target.position}"
    )
    if facet:
        text += f"\0{facet}"
    word = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(word >> 1)  # signed 64 bits


def draw_crop(recipe: Maximisation, size: int, generator: torch.Generator) -> Crop:
    """Draw one view of a picture, as the recipe's transforms want it.

    A zoomed crop has a uniform zoom, and a Gaussian centre clipped so that the crop stays inside. A
    jittered whole is shifted and scaled uniformly, and may show reflections at its borders.
    """
    zoom_draw, turn_draw = torch.rand(2, generator=generator).tolist()
    if recipe.transforms == "jitter":
        zoom = 1 + recipe.scale * (2 * zoom_draw - 1)
        # Both run from -1 to 1 over the canvas, so a ratio of it counts twice.
        across, down = ((torch.rand(2, generator=generator) * 4 - 2) * recipe.jitter).tolist()
    else:
        zoom = recipe.zoom_min + (recipe.zoom_max - recipe.zoom_min) * zoom_draw
        centre = torch.randn(2, generator=generator) * recipe.centre_sigma
        across, down = centre.clamp(-(1 - zoom), 1 - zoom).tolist()
    noise = torch.zeros(())
    if recipe.noise:
        noise = torch.randn((3, size, size), generator=generator) * recipe.noise
    turn = math.radians(recipe.rotation_degrees) * (2 * turn_draw - 1)
    cosine, sine = zoom * math.cos(turn), zoom * math.sin(turn)
    affine = torch.tensor([[cosine, -sine, across], [sine, cosine, down]])
    return Crop(affine, noise.expand(3, size, size))


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


def square(image: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Return the middle square of an image as colours from 0 to 1.

    Args:
        image: Shape ``(height, width, 3)``.
        side: Of the result in pixels.

    Returns:
        Shape ``(3, side, side)``.
    """
    height, width, _ = image.shape
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    middle = np.ascontiguousarray(image[top : top + least, left : left + least])
    colours = torch.from_numpy(middle).permute(2, 0, 1)[None].float() / 255  # (1, 3, least, least)
    return resize_whole(colours, side)[0].clamp(0, 1)
