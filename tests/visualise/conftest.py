"""Tiny deterministic networks, so that every behaviour is seen in a fraction of a second."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View, default_view
from sidecar.recipes import Dataset, Maximisation, Target
from sidecar.visualise import ImageModel

INPUT_SIZE = 24


class TinyNet(nn.Module):
    """Two convolutions, a counted upper part, and a head with logits; random but fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 6, 5, stride=2, padding=2)
        self.middle = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.upper = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.spare = nn.Linear(1, 1)  # never runs
        self.upper_calls = 0
        stream = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape ``(n, 5)``."""
        maps = torch.relu(self.low(images))
        maps = torch.tanh(self.middle(maps))
        self.upper_calls += 1
        maps = self.upper(maps)
        result: torch.Tensor = self.head(maps.mean((2, 3)))
        return result


def as_model(module: nn.Module, size: int = INPUT_SIZE) -> ImageModel:
    """Wrap a module the way ``load_model`` does."""
    module.eval().requires_grad_(requires_grad=False)
    return ImageModel(module, "d" * 64, size, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))


def noise_in(folder: Path, count: int) -> Dataset:
    """Fill a folder with images of noise over one colour each, and return it as a job is handed it."""
    rng = np.random.default_rng(3)
    for number in range(count):
        ground = 100 + rng.integers(0, 30, 3) + rng.integers(0, 24, (26, 26, 3))
        Image.fromarray(ground.astype(np.uint8)).save(folder / f"{number:02d}.png")
    paths = sorted(folder.iterdir())
    files = tuple((one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in paths)
    return Dataset("noise", str(folder), files)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def wrap() -> Callable[[nn.Module], ImageModel]:
    """Turn a module into a model."""
    return as_model


@pytest.fixture
def net() -> TinyNet:
    """A fresh tiny network."""
    return TinyNet()


@pytest.fixture
def model(net: TinyNet) -> ImageModel:
    """The tiny network as a model."""
    return as_model(net)


@pytest.fixture
def unit() -> Callable[..., Target]:
    """Name a unit of the tiny network."""

    def make(
        layer: str,
        index: int,
        kind: FeatureKind = FeatureKind.CHANNEL,
        view: View | None = None,
        position: tuple[int, int] | None = None,
    ) -> Target:
        key = LayerKey("tiny", "r1", layer, kind, view or default_view(kind))
        return Target(FeatureKey(key, index), position)

    return make


@pytest.fixture
def recipe() -> Maximisation:
    """A recipe that shows an effect in a few steps on a small canvas."""
    return Maximisation(steps=6, canvas=32, learning_rate=0.2, noise=0.02)
