"""Dataset examples: which real images drive a unit, where in them, and how strongly."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import JobCancelled, NonFiniteActivation, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Dataset, Examples, Side, Target
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.contact_sheet import Tile, draw_sheet
from sidecar.visualise.datasets import batches, colours, read_square
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel, VisionModel
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.units import Dry, Site, Units, check_targets, dry_run, forward_to

_DARKEST = 0.2
"""Of the brightness that an image keeps where the unit is silent: what is dark must still be seen."""

_KINDS = frozenset({FeatureKind.CHANNEL, FeatureKind.NEURON, FeatureKind.LOGIT})

_REPORT_PASSES = 16
"""A report is due after; people watch, and each one costs a picture."""

_SCRATCH_RATIO = 2.0
"""Memory of a forward pass without gradients against what autograd would keep, at most."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One image of the sheet."""

    number: int
    value: float
    band: str


class DatasetExamples:
    """The method of ``Examples`` recipes.

    Every image of the dataset goes through the network once. The sheet has a row for each image: the
    image, the image as bright as the unit is active there, and the part of it that moved the unit; a model
    that only runs forward does not say which part that is, and the whole image is shown.

    Source:
        Bau et al. 2017, "Network dissection"; Zeiler and Fergus 2014, "Visualizing and understanding
        convolutional networks".
    """

    recipe = Examples
    gradients = False

    def plan(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Examples,
        materials: Materials,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take, for the price of two forward passes.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The model, or the dataset, has no such
                thing; or a target weighs several units, which no image is an example of.
        """
        dataset = materials.dataset(recipe.dataset)
        dry = _checked(model, targets)
        started = clock()
        dry_run(model, list(dry.sites))
        seconds = clock() - started
        looks = len(dataset.files) * len(dry.sites) + 3 * len(targets) * _shown(recipe)
        together = min(pass_images(model), len(dataset.files))
        return Cost(looks, seconds * looks, int(_SCRATCH_RATIO * together * dry.saved_bytes))

    def run(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Examples,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,  # noqa: ARG002 - a run is one pass over the dataset
    ) -> tuple[Picture, ...]:
        """Make one sheet a target, in their order.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``; or a file of the dataset
                cannot be read, or changed.
            NonFiniteActivation: An image drives a unit to NaN or infinity.
            JobCancelled: ``cancelled`` said so.
        """
        dataset = materials.dataset(recipe.dataset)
        _checked(model, targets)
        watch = _Watch(model, targets, dataset, on_progress, cancelled)
        values = watch.look()  # (targets, images)
        return tuple(
            _picture(model, target, recipe, dataset, values[number], watch)
            for number, target in enumerate(targets)
        )


def _checked(model: VisionModel, targets: Sequence[Target]) -> Dry:
    dry = check_targets(model, targets)
    for target in targets:
        if target.feature.layer.kind not in _KINDS:
            raise UnsupportedTarget(
                f"{target.feature}: examples are of single channels, neurons and logits"
            )
        if target.terms:
            raise UnsupportedTarget(
                f"{target.feature}: examples are of one unit; leave the further units out"
            )
    return dry


def _shown(recipe: Examples) -> int:
    return recipe.top + recipe.bands * recipe.per_band


class _Watch:
    """One pass over a dataset, layer by layer, and who is told of it."""

    def __init__(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        dataset: Dataset,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._model = model
        self._targets = targets
        self._dataset = dataset
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._together = pass_images(model)
        self._layers: dict[LayerKey, list[int]] = {}
        for number, target in enumerate(targets):
            self._layers.setdefault(target.feature.layer, []).append(number)
        self._steps = len(self._layers) * math.ceil(len(dataset.files) / self._together)

    def look(self) -> NDArray[np.float64]:
        """Return what every image does to every target, shape ``(targets, images)``."""
        values = np.full((len(self._targets), len(self._dataset.files)), np.nan)
        step = 0
        for layer, members in self._layers.items():
            units: Units | None = None
            for numbers, images in batches(self._dataset, self._model, self._together):
                self.refuse_cancelled(step)
                with torch.no_grad():
                    maps = forward_to(self._model, layer.layer, images)
                wanted = [self._targets[member] for member in members]
                units = units or Units.of(wanted, Site(*maps.shape[1:]), self._model.device)
                values[np.ix_(members, numbers)] = _values(units, maps)
                step += 1
                if step % _REPORT_PASSES == 0 or step in (1, self._steps):
                    self._tell(step, members, values, images)
        self._refuse_nonfinite(values)
        return values

    def refuse_cancelled(self, step: int) -> None:
        """Stop where somebody asked for it."""
        if self._cancelled():
            raise JobCancelled(f"cancelled at pass {step} of {self._steps}")

    def _tell(
        self, step: int, members: list[int], values: NDArray[np.float64], images: torch.Tensor
    ) -> None:
        known = np.where(np.isnan(values), -np.inf, values).max(axis=1)
        best = tuple(float(one) if np.isfinite(one) else math.nan for one in known)
        seen = (images[:1].permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()[0]
        self._on_progress(Progress(step, self._steps, best, seen, (members[0],)))

    def _refuse_nonfinite(self, values: NDArray[np.float64]) -> None:
        for target, row in zip(self._targets, values, strict=True):
            odd = np.flatnonzero(~np.isfinite(row))
            if len(odd):
                name, _ = self._dataset.files[odd[0]]
                raise NonFiniteActivation(
                    f"{target.feature} is NaN or infinite on {name}, and on {len(odd)} images in all: "
                    "mend the model or take the image out of the dataset"
                )


def _values(units: Units, maps: torch.Tensor) -> NDArray[np.float64]:
    """Return each unit's value on each image, shape ``(units, images)``."""
    count, images = len(units.indices), len(maps)
    rows = [units.only([place]).repeated(images).values(maps) for place in range(count)]
    found: NDArray[np.float64] = torch.stack(rows).double().cpu().numpy()
    return found


def _choose(values: NDArray[np.float64], recipe: Examples, side: Side) -> list[_Chosen]:
    """Return the images of a sheet, from the strongest down; never one twice."""
    order = np.argsort(-values if side is Side.POSITIVE else values, kind="stable")
    top = min(recipe.top, len(order))
    chosen = [_Chosen(int(one), float(values[one]), "top") for one in order[:top]]
    for band, members in enumerate(np.array_split(order[top:], recipe.bands or 1)):
        if not recipe.bands or not len(members):
            continue
        share = (100 * band / recipe.bands, 100 * (band + 1) / recipe.bands)
        count = min(recipe.per_band, len(members))
        places = ((np.arange(count) + 0.5) * len(members) / count).astype(int)
        name = f"rest, {share[0]:.0f} to {share[1]:.0f} % down"
        chosen += [_Chosen(int(one), float(values[one]), name) for one in members[places]]
    return chosen


def _picture(
    model: VisionModel,
    target: Target,
    recipe: Examples,
    dataset: Dataset,
    values: NDArray[np.float64],
    watch: _Watch,
) -> Picture:
    chosen = _choose(values, recipe, target.side)
    largest = max(abs(one.value) for one in chosen)
    tiles, found = [], []
    for one in chosen:
        watch.refuse_cancelled(0)
        image = read_square(dataset, one.number, model.input_size)
        seen = _see(model, target, image)
        name, digest = dataset.files[one.number]
        heat = seen.heat / max(seen.heat.max(), np.finfo(np.float32).tiny)
        shade = _DARKEST + (1 - _DARKEST) * heat * min(1.0, abs(one.value) / (largest or 1.0))
        left, top, right, bottom = seen.box
        caption = (f"{one.value:.4g}", one.band)
        tiles.append(
            (
                Tile(image, caption),
                Tile((image * shade[..., None]).round().astype(np.uint8)),
                Tile(image[top:bottom, left:right]),
            )
        )
        rank = int((values > one.value).sum()) + 1
        found.append(
            {"file": name, "sha256": digest, "value": one.value, "rank": rank, "band": one.band}
            | {"position": list(seen.position), "box": list(seen.box)}
        )
    top_values = np.array([one.value for one in chosen if one.band == "top"])
    return Picture(
        target=target,
        recipe=recipe,
        model_digest=model.digest,
        inputs={f"dataset:{dataset.name}": dataset.digest},
        image=draw_sheet(tiles, recipe.tile),
        activation=chosen[0].value,
        activation_augmented=float(top_values.mean()),
        activation_augmented_spread=float(top_values.std()),
        first_activation=float(np.median(values)),
        history=(),
        findings={
            "dataset": {"name": dataset.name, "digest": dataset.digest, "images": len(values)},
            "quantiles": {
                f"{level:g}": float(np.quantile(values, level)) for level in (0.5, 0.9, 0.99, 1.0)
            },
            "examples": found,
        },
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Where one image drives a unit."""

    heat: NDArray[np.float32]
    position: tuple[int, int]
    box: tuple[int, int, int, int]


def _see(model: VisionModel, target: Target, image: NDArray[np.uint8]) -> _Seen:
    """Return the unit's activation over an image, its strongest position, and what that one sees.

    The box holds every pixel that moves the unit at that position, to first order: the receptive field
    as far as the network uses it on this image. Where the unit has a single position its heat is how
    strongly each pixel moves it.

    A model that only runs forward does not say what moves a unit: then the box is the whole image, and a
    single position lights all of it.
    """
    size = model.input_size
    canvas = colours(image[None], model)
    if isinstance(model, ImageModel):
        canvas.requires_grad_()
    maps = forward_to(model, target.feature.layer.layer, canvas)  # (1, width, rows, columns)
    own = maps[0, target.feature.index]
    signed = own if target.side is Side.POSITIVE else -own
    place = int(signed.detach().flatten().argmax())
    row, column = divmod(place, own.shape[1])
    if target.feature.layer.kind is FeatureKind.NEURON:
        row, column = target.position or (own.shape[0] // 2, own.shape[1] // 2)
    if isinstance(model, ImageModel):
        (gradient,) = torch.autograd.grad(own[row, column], canvas)
        moved = gradient[0].abs().amax(0)  # (size, size)
    else:
        moved = torch.ones(size, size)
    if own.numel() > 1:
        strength = signed.detach()[None, None].clamp(min=0.0)
    else:
        strength = torch.nn.functional.avg_pool2d(moved[None, None], 9, 4, 4)
    heat = torch.nn.functional.interpolate(
        strength, (size, size), mode="bilinear", align_corners=False
    )
    return _Seen(heat[0, 0].cpu().numpy(), (row, column), _box(moved))


def _box(moved: torch.Tensor) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what moves the unit; all of the image if nothing does."""
    size = len(moved)
    rows, columns = (moved.amax(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return 0, 0, size, size
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
