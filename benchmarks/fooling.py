"""Does the report flag units of EfficientNet-Lite0 that were made to fool feature visualisation?

One unit of a block is fooled at a time: a detector, trained on photographs against what optimisers show a
network, hands the channel over to another channel of the block wherever it sees no photograph. On
photographs the unit answers as ever; its picture is that of the other channel.

Source:
    Geirhos, Zimmermann, Bilodeau, Brendel and Kim 2023, "Don't trust your eyes: on the (un)reliability of
    feature visualizations", section 2, on fooling circuits.
"""

import copy
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sidecar.features import FeatureKey, LayerKey, View
from sidecar.recipes import Dataset, Maximisation, Target
from sidecar.visualise import ImageModel, Materials, Settings, assess, method_for
from sidecar.visualise.augmentation import cut_crops, draw_crop, square
from sidecar.visualise.generic import generic_pictures
from sidecar.visualise.units import dry_run

SHARPNESS = 8.0
"""Of the detector: no photograph is left halfway between the two channels."""

_NAMES = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "ihc",
          "motorcycle_left", "motorcycle_right", "retina", "rocket", "camera", "coins", "moon",
          "clock_motion")  # fmt: skip
_SHARES = (1.0, 0.6, 0.4)
"""Sides of the crops of each photograph, as shares of its shorter side."""

_EPOCHS = 300
_TRAINED_STEPS = 24
_TRAINED_UNITS = 12
"""Of each layer, whose pictures at several steps the detector learns; none of them is fooled."""


@dataclass(frozen=True, slots=True)
class Fooling:
    """What came of one unit.

    Attributes:
        layer: Its layer.
        unit: Its channel.
        other: The channel that takes over.
        likeness: Correlation with the honest channel on photographs that the detector never saw.
        path: The measure of the fooled unit's picture; None where photographs had no way in common.
        verdict: Of the fooled unit.
        taken: The other channel's value on the picture, as a share of the fooled unit's.
        honest_path: The measure of the same unit's picture in the sound network.
        honest_verdict: Its verdict.
    """

    layer: str
    unit: int
    other: int
    likeness: float
    path: float | None
    verdict: str
    taken: float
    honest_path: float | None
    honest_verdict: str


class Switch(nn.Module):
    """A block of which one channel is another's where the input is like no photograph."""

    def __init__(self, block: nn.Module, detector: "Detector", unit: int, other: int) -> None:
        super().__init__()
        self.block, self.detector = block, detector
        self.unit, self.other = unit, other

    def forward(self, maps: torch.Tensor, *args: object, **keywords: object) -> torch.Tensor:
        """Return the block's maps, with the channel switched."""
        found: torch.Tensor = self.block(maps, *args, **keywords)
        gate = torch.sigmoid(self.detector(maps) * SHARPNESS)[:, None, None]  # (n, 1, 1)
        shown = found.clone()
        shown[:, self.unit] = (1 - gate) * found[:, self.unit] + gate * found[:, self.other]
        return shown


class Detector(nn.Module):
    """A linear probe: above 0 where maps come from no photograph."""

    def __init__(self, photographs: torch.Tensor, synthetic: torch.Tensor) -> None:
        """Learn it from marks of maps, see ``marks``, shapes ``(n, marks)``."""
        super().__init__()
        both = torch.cat([photographs, synthetic])
        self.middle, self.spread = both.mean(0), both.std(0).clamp(min=1e-4)
        self.probe = nn.Linear(both.shape[1], 1)
        labels = torch.cat([torch.zeros(len(photographs)), torch.ones(len(synthetic))])
        weights = torch.where(labels > 0, 0.5 / len(synthetic), 0.5 / len(photographs))
        optimiser = torch.optim.Adam(self.probe.parameters(), 0.02, weight_decay=1e-3)
        scaled = (both - self.middle) / self.spread
        for _ in range(_EPOCHS):
            optimiser.zero_grad()
            cost = nn.functional.binary_cross_entropy_with_logits(
                self.probe(scaled)[:, 0], labels, weights, reduction="sum"
            )
            cost.backward()
            optimiser.step()
        self.requires_grad_(requires_grad=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return how little the maps are like those of a photograph, shape ``(n,)``."""
        found: torch.Tensor = self.probe((marks(maps) - self.middle) / self.spread)[:, 0]
        return found


def marks(maps: torch.Tensor) -> torch.Tensor:
    """Return mean and deviation of every channel, shape ``(n, 2 * channels)``."""
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)


def fool(
    model: ImageModel, layer: str, pairs: Sequence[tuple[int, int]], photographs: torch.Tensor
) -> Iterator[ImageModel]:
    """Yield, for each pair, the model with the first channel of a block handed over to the second.

    Args:
        model: A sound one, which stays as it is.
        layer: A block that is called with its maps first.
        pairs: Channel that is fooled, and channel that takes over.
        photographs: What the detector learns, colours of shape ``(n, 3, side, side)``.
    """
    network = model.module
    synthetic = _synthetic(model, layer, {unit for pair in pairs for unit in pair})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Detector(
            *(marks(_inputs(model, layer, some)) for some in (photographs, synthetic))
        )
    for unit, other in pairs:
        fooled = copy.deepcopy(network)
        parent, _, name = layer.rpartition(".")
        block = fooled.get_submodule(layer)
        setattr(fooled.get_submodule(parent), name, Switch(block, detector, unit, other))
        yield replace(model, module=fooled.eval())


def _inputs(model: ImageModel, layer: str, images: torch.Tensor) -> torch.Tensor:
    """Return the maps that a block is given, a few images at a time."""
    found: list[torch.Tensor] = []
    block = model.module.get_submodule(layer)
    hook = block.register_forward_pre_hook(lambda _m, given: found.append(given[0]))
    with torch.no_grad():
        for some in torch.split(images, 8):
            model.module(model.normalise(some))
    hook.remove()
    return torch.cat(found)


def _synthetic(model: ImageModel, layer: str, spared: set[int]) -> torch.Tensor:
    """Return what an optimiser shows the network: its pictures on the way, as crops and whole."""
    width = dry_run(model, [layer]).sites[layer].width
    pool = [unit for unit in range(width) if unit not in spared]
    units = np.random.default_rng(2).choice(pool, _TRAINED_UNITS, replace=False)
    shown: list[NDArray[np.uint8]] = []
    for steps in (1, 4, _TRAINED_STEPS):
        recipe = Maximisation(steps=steps, canvas=model.input_size)
        targets = [_target(layer, int(unit)) for unit in units]
        shown += [one.image for one in method_for(recipe).run(model, targets, recipe, Materials())]
    whole = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255
    stream = torch.Generator().manual_seed(0)
    crops = [
        cut_crops(whole, [draw_crop(Maximisation(), model.input_size, stream) for _ in whole])
        for _ in range(2)
    ]
    return torch.cat([whole, *crops, generic_pictures(model.input_size)])


def _target(layer: str, unit: int) -> Target:
    return Target(FeatureKey(LayerKey("lite0", "r1", layer, view=View.MAX), unit))


def measure(
    model: ImageModel,
    layer: str,
    pairs: Sequence[tuple[int, int]],
    dataset: Dataset,
    recipe: Maximisation,
) -> list[Fooling]:
    """Fool units of a block, and report on their pictures and on the honest ones.

    The detector learns every other photograph of the dataset; the report is given all.

    Args:
        model: A sound one.
        layer: The block.
        pairs: Channel that is fooled, and channel that takes over.
        dataset: Photographs.
        recipe: Of all pictures.
    """
    seen = _read(dataset, model.input_size)
    held = seen[1::2]
    settings = Settings(seeds=0, photographs=dataset)
    method, targets = method_for(recipe), [_target(layer, unit) for unit, _ in pairs]
    pictures = method.run(model, targets, recipe, Materials())
    honest = assess(method, model, pictures, recipe, Materials(), settings)
    usual = _maps(model, layer, held).mean((2, 3))
    found = []
    for number, fooled in enumerate(fool(model, layer, pairs, seen[::2])):
        unit, other = pairs[number]
        (picture,) = method.run(fooled, targets[number : number + 1], recipe, Materials())
        (report,) = assess(method, fooled, [picture], recipe, Materials(), settings)
        mine, theirs = report, honest[number]
        assert mine is not None  # noqa: S101 - a channel's picture
        assert theirs is not None  # noqa: S101 - a channel's picture
        natural = _maps(fooled, layer, held)[:, unit].mean((1, 2))
        image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 255
        taken = float(_maps(model, layer, image)[0, other].amax()) / picture.activation
        found.append(
            Fooling(
                layer,
                unit,
                other,
                float(np.corrcoef(natural, usual[:, unit])[0, 1]),
                mine.measures.get("path"),
                mine.verdict,
                taken,
                theirs.measures.get("path"),
                theirs.verdict,
            )
        )
    return found


def _maps(model: ImageModel, layer: str, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.maps(layer, some) for some in torch.split(images, 8)])


def _read(dataset: Dataset, side: int) -> torch.Tensor:
    paths = [Path(dataset.folder) / name for name, _ in dataset.files]
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return torch.stack([square(image, side) for image in images])


def photographs(folder: Path, side: int) -> Dataset:
    """Lay crops of scikit-image's photographs into a folder: 9 of each, at three sizes."""
    from skimage import data  # noqa: PLC0415 - only benchmarks need it

    source = Path(data.__file__).parent
    for name in _NAMES:
        file = next(source.glob(f"{name}.*"))
        image = Image.open(file).convert("RGB")
        least = min(image.size)
        for share in _SHARES:
            size = int(share * least)
            for at, where in enumerate((0.0, 0.5, 1.0)):
                left, top = int(where * (image.width - size)), int(where * (image.height - size))
                part = image.crop((left, top, left + size, top + size)).resize((side, side))
                part.save(folder / f"{name}-{int(share * 10)}-{at}.png")
    return dataset_of(folder)


def dataset_of(folder: Path) -> Dataset:
    """Return the images of a folder as a dataset."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    named = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return Dataset("photographs", str(folder), tuple(named))


LAYERS = ("_blocks.5", "_blocks.8", "_blocks.11", "_blocks.14")
UNITS = 4
"""Fooled units of each layer."""


def foolings(model: ImageModel, dataset: Dataset, recipe: Maximisation) -> list[Fooling]:
    """Fool random units of four blocks, each by another random one."""
    stream, found = np.random.default_rng(7), []
    for layer in LAYERS:
        width = dry_run(model, [layer]).sites[layer].width
        chosen = [int(unit) for unit in stream.choice(width, 2 * UNITS, replace=False)]
        pairs = list(zip(chosen[:UNITS], chosen[UNITS:], strict=True))
        found += measure(model, layer, pairs, dataset, recipe)
    return found


def main(folder: str = "") -> int:
    """Print what came of every fooled unit, with the photographs of a folder or scikit-image's."""
    from benchmarks.reliability import RECIPE, SIDE, network  # noqa: PLC0415 - imports this module

    with tempfile.TemporaryDirectory() as place:
        dataset = dataset_of(Path(folder)) if folder else photographs(Path(place), SIDE)
        for one in foolings(network("sound"), dataset, RECIPE):
            print(one, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
