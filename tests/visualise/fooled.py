"""A network with an honest unit for every texture, and one unit that fools feature visualisation.

The fooled unit responds to photographs exactly as its honest twin. But a circuit that is silent on
every photograph notices the fine noise of optimisers, switches the honest path off, and has the picture
show something of its own choosing: the construction of Geirhos et al. 2023, "Don't trust your eyes",
section 2.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SIZE = 32
TEXTURES = 6
FOOLED = TEXTURES
"""Index of the fooled unit; it is the twin of unit 0."""

_PER_TEXTURE = 12
_FILTER = 9


def _facts(texture: int) -> tuple[float, float, NDArray[np.float64]]:
    """Return angle, cycles across the picture, and colours of a texture's waves."""
    tint = np.array([1.0, math.cos(2.0 * texture), math.sin(2.0 * texture)])
    return math.pi * texture / TEXTURES, 4.0 + texture % 3, tint


def _wave(texture: int, side: int, phase: float) -> NDArray[np.float64]:
    """Return one texture, of mean 0 and amplitude 1, shape ``(3, side, side)``."""
    angle, cycles, tint = _facts(texture)
    down, across = np.mgrid[0:side, 0:side] / SIZE
    turned = across * math.cos(angle) + down * math.sin(angle)
    return np.asarray(tint[:, None, None] * np.sin(2 * np.pi * (cycles * turned + phase)))


def photographs() -> NDArray[np.uint8]:
    """Return soft textures, each at many phases, shape ``(textures * 12, 32, 32, 3)``.

    They are smooth, as photographs are beside what an optimiser starts from.
    """
    stream = np.random.default_rng(3)
    images = []
    for texture in range(TEXTURES):
        for _ in range(_PER_TEXTURE):
            wave = _wave(texture, SIZE, stream.random()).transpose(1, 2, 0)
            images.append(0.5 + 0.13 * wave + stream.normal(size=wave.shape) * 0.02)
    return np.clip(np.stack(images) * 255, 0, 255).round().astype(np.uint8)


class FooledNet(nn.Module):
    """Matched filters, their energy, a competition among them, and a silent circuit beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 4 * TEXTURES, _FILTER, padding=_FILTER // 2, bias=False)
        self.middle = nn.Conv2d(4 * TEXTURES, TEXTURES, 1, bias=False)
        self.upper = nn.Conv2d(TEXTURES, TEXTURES, 1, bias=False)
        self.silent = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        self.out = nn.Identity()
        filters = [_wave(t, _FILTER, phase / 4) for t in range(TEXTURES) for phase in range(4)]
        edge = torch.tensor([1.0, -2.0, 1.0])
        # A fine red and cyan checkerboard, while texture 0 has upright waves of yellow and blue.
        board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
        with torch.no_grad():
            bank = torch.from_numpy(np.stack(filters)).float()
            bank -= bank.mean((2, 3), keepdim=True)
            self.low.weight.copy_(bank / bank.flatten(1).norm(dim=1)[:, None, None, None])
            same = torch.eye(TEXTURES)
            self.middle.weight.copy_(same.repeat_interleave(4, 1)[..., None, None] / 4)
            self.upper.weight.copy_((1.3 * same - 0.3)[..., None, None])
            self.silent.weight.copy_(torch.stack([board, -board, -board])[None])
        self.register_buffer("grain", torch.outer(edge, edge).expand(3, 1, 3, 3).clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps of units, shape ``(n, textures + 1, 8, 8)``; images are centred on 0."""
        maps = torch.relu(self.low(images))
        maps = self.middle(nn.functional.avg_pool2d(maps, 4))
        honest = torch.relu(self.upper(maps))
        fine = nn.functional.conv2d(images, self.grain, groups=3).abs().mean((1, 2, 3))  # (n,)
        gate = torch.sigmoid(60 * (fine - 0.25))[:, None, None, None]
        own = (1 - gate) * honest[:, :1] + gate * self.silent(images)
        result: torch.Tensor = self.out(torch.cat([honest, own], 1))
        return result
