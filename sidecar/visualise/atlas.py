"""Activation atlas: what a layer tells apart in a dataset, as a map of pictures.

Activations from random places of many images are laid out by their two principal components and gathered
into cells; each cell's mean direction is drawn by activation maximisation, as opaque as it has activations.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sidecar.errors import NonFiniteActivation, SilentFeature, UnsupportedTarget
from sidecar.features import LayerKey
from sidecar.recipes import Atlas, Dataset, Maximisation, Target
from sidecar.visualise.adam import Adam
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.augmentation import cut_crops, draw_crop, generator_for
from sidecar.visualise.datasets import batches
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, random_spectrum, render
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.units import Dry, Site, Units, check_targets, dry_run
from sidecar.visualise.views import MEASURING_VIEWS, Stop, as_picture, measure, refuse_terms

_BYTES_LIMIT = 512 << 20
"""Of the activations that are held: twice that is needed while they are laid out."""

_EDGE = 0.01
"""Share of activations at each end of an axis that count as its border; a few stragglers must not push
all others into one cell."""

_FAINTEST = 0.3
"""Opacity of a cell with the fewest activations."""

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""

_COSINE_LEAST = 0.1
"""Below this the angle to a cell's direction counts as this much, as in Lucid."""

_REPORT_STEPS = 16

_SAME = 1e-12
"""Variance, as a ratio of the mean square, that is the rounding of equal values."""


class ActivationAtlas:
    """The method of ``Atlas`` recipes.

    The unit of a target names the layer; the numbers beside the picture are of that unit on the cell in
    which it is strongest.

    Source:
        Carter et al. 2019, "Activation atlas".
    """

    recipe = Atlas
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Atlas,
        materials: Materials,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take at most: as if no cell stayed empty.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The model, or the dataset, has no such thing; a
                target weighs several units; or the activations would not fit.
        """
        dataset = materials.dataset(recipe.dataset)
        dry = _checked(model, targets, recipe, dataset)
        started = clock()
        dry_run(model, list(dry.sites))
        seconds = clock() - started
        layers = len({target.feature.layer for target in targets})
        cells = min(recipe.grid**2, len(dataset.files) * recipe.positions // recipe.least)
        looks = layers * len(dataset.files) + len(targets) * (MEASURING_VIEWS + 1)
        moves = layers * cells * recipe.steps
        widest = max(site.width for site in dry.sites.values())
        held = 2 * _held_bytes(dataset, recipe, widest) + pass_images(model) * (
            dry.saved_bytes + 8 * 4 * 3 * recipe.canvas**2
        )
        return Cost(looks + moves, seconds * (looks + _BACKWARD_RATIO * moves), held)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Atlas,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,  # noqa: ARG002 - cells are many and small
    ) -> tuple[Picture, ...]:
        """Make one map a target, in their order; those of one layer share it.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``; a file of the dataset cannot be
                read, or changed; or no cell has enough activations.
            SilentFeature: The layer is the same everywhere.
            NonFiniteActivation: The layer is NaN or infinite on some picture.
            JobCancelled: ``cancelled`` said so; asked before every pass.
        """
        dataset = materials.dataset(recipe.dataset)
        dry = _checked(model, targets, recipe, dataset)
        layers = list(dict.fromkeys(target.feature.layer for target in targets))
        stop = Stop(cancelled, len(layers) * (1 + recipe.steps))
        nothing = (math.nan,) * len(targets)
        found: dict[LayerKey, _Map] = {}
        for layer in layers:
            members = tuple(n for n, t in enumerate(targets) if t.feature.layer == layer)

            def tell(shown: NDArray[np.uint8], members: tuple[int, ...] = members) -> None:
                on_progress(Progress(stop.step, stop.steps, nothing, shown, members[:1]))

            found[layer] = _map(model, layer, recipe, dataset, stop, tell)
        return tuple(
            _picture(
                model,
                t,
                dry.sites[t.feature.layer.layer],
                recipe,
                dataset,
                found[t.feature.layer],
                stop,
            )
            for t in targets
        )


def _checked(model: ImageModel, targets: Sequence[Target], recipe: Atlas, dataset: Dataset) -> Dry:
    dry = check_targets(model, targets)
    refuse_terms(targets, "an atlas")
    for path, site in dry.sites.items():
        wanted = _held_bytes(dataset, recipe, site.width)
        if wanted > _BYTES_LIMIT:
            raise UnsupportedTarget(
                f"recipe.positions {recipe.positions} of {len(dataset.files)} images of {path} take {wanted} "
                f"bytes, above {_BYTES_LIMIT}: lower positions, or use a smaller dataset"
            )
    return dry


def _held_bytes(dataset: Dataset, recipe: Atlas, width: int) -> int:
    return 4 * width * recipe.positions * len(dataset.files)


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """One cell of the map.

    Attributes:
        row: From the top.
        column: From the left.
        count: Activations in it.
        mean: Their mean, shape ``(width,)``.
        image: Its picture.
    """

    row: int
    column: int
    count: int
    mean: torch.Tensor
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Map:
    """What became of a layer.

    Attributes:
        cells: Those that are not empty.
        explained: Share of the variance that each of the two axes holds.
        activations: How many were taken.
    """

    cells: Sequence[_Cell]
    explained: tuple[float, float]
    activations: int


def _map(
    model: ImageModel,
    layer: LayerKey,
    recipe: Atlas,
    dataset: Dataset,
    stop: Stop,
    tell: Callable[[NDArray[np.uint8]], None],
) -> _Map:
    taken = _take(model, layer, recipe, dataset, stop)
    places, explained = lay_out(taken)
    stop.next()
    row, column = _cells_of(places, recipe.grid)
    number = row * recipe.grid + column
    counts = np.bincount(number, minlength=recipe.grid**2)
    filled = np.flatnonzero(counts >= recipe.least)
    if not len(filled):
        raise UnsupportedTarget(
            f"recipe.least {recipe.least}: no cell of {recipe.grid} x {recipe.grid} has as many of the "
            f"{len(taken)} activations; lower it or grid, or raise positions"
        )
    means = torch.stack([taken[torch.from_numpy(number == one)].mean(0) for one in filled])
    images = _draw(model, layer, recipe, means, taken.mean(0), stop, tell)
    cells = [
        _Cell(int(one) // recipe.grid, int(one) % recipe.grid, int(counts[one]), mean, image)
        for one, mean, image in zip(filled, means, images, strict=True)
    ]
    return _Map(cells, explained, len(taken))


def _take(
    model: ImageModel, layer: LayerKey, recipe: Atlas, dataset: Dataset, stop: Stop
) -> torch.Tensor:
    """Return activations at random positions, shape ``(images * positions, width)``."""
    stream = generator_for(Target(layer.feature(0)), recipe.seed, "atlas positions")
    parts = []
    for _, images in batches(dataset, model, pass_images(model)):
        stop.check()
        with torch.no_grad():
            maps = model.maps(layer.layer, images).flatten(2).cpu()  # (n, width, places)
        chosen = torch.randint(maps.shape[2], (len(maps), 1, recipe.positions), generator=stream)
        picked = maps.gather(2, chosen.expand(-1, maps.shape[1], -1))  # (n, width, positions)
        parts.append(picked.transpose(1, 2).flatten(0, 1))
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise NonFiniteActivation(f"{layer.layer} is NaN or infinite on some image: mend the model")
    return found


def lay_out(taken: torch.Tensor) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Lay activations out by their two principal components.

    Args:
        taken: Shape ``(n, width)``.

    Returns:
        Places of shape ``(n, 2)``, each axis turned so that its largest weight is positive; and the share
        of the variance along each.

    Raises:
        SilentFeature: All activations are the same.
    """
    whole = taken.double()
    centred = whole - whole.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)  # rising
    if values[-1] <= _SAME * whole.square().sum():
        raise SilentFeature(
            "the layer is the same everywhere in the dataset: there is nothing to map"
        )
    two = axes[:, -2:].flip(1) if axes.shape[1] > 1 else axes.repeat(1, 2)  # (width, 2)
    largest = two.gather(0, two.abs().argmax(0, keepdim=True))
    shares = (values / values.sum()).flip(0).tolist()
    places: NDArray[np.float64] = (centred @ (two * largest.sign())).numpy()
    return places, (shares[0], shares[1] if len(shares) > 1 else 0.0)


def _cells_of(
    places: NDArray[np.float64], grid: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row, from the top, and column of each place."""
    low, high = np.quantile(places, [_EDGE, 1 - _EDGE], axis=0)
    reach = np.where(high > low, high - low, 1.0)
    scaled = ((places - low) / reach * grid).astype(np.int64).clip(0, grid - 1)
    return grid - 1 - scaled[:, 1], scaled[:, 0]


def _draw(
    model: ImageModel,
    layer: LayerKey,
    recipe: Atlas,
    means: torch.Tensor,
    usual: torch.Tensor,
    stop: Stop,
    tell: Callable[[NDArray[np.uint8]], None],
) -> list[NDArray[np.uint8]]:
    """Draw every cell, all from one start and in the same crops, so that they differ by direction alone."""
    origin = Target(layer.feature(0))
    start = random_spectrum(recipe.canvas, generator_for(origin, recipe.seed, "start"))
    crops = generator_for(origin, recipe.seed, "atlas crops")
    scale = frequency_scale(recipe.canvas, recipe.decay).to(model.device)
    axes = colour_axes(decorrelated=True).to(model.device)
    spectra = start.repeat(len(means), 1, 1, 1, 1).to(model.device).requires_grad_()
    adam = Adam(spectra, recipe.learning_rate)
    wanted = functional.normalize(means - usual, dim=1).to(model.device)
    usual = usual.to(model.device)[None, :, None, None]
    views = Maximisation(canvas=recipe.canvas, zoom_min=0.7, noise=0.05)
    for step in range(1, recipe.steps + 1):
        crop = draw_crop(views, model.input_size, crops)
        gradient = torch.zeros_like(spectra)
        for first in range(0, len(means), pass_images(model)):
            stop.check()
            few = slice(first, first + pass_images(model))
            canvases = render(spectra[few], scale, axes)
            maps = model.maps(layer.layer, cut_crops(canvases, [crop] * len(canvases))) - usual
            along = torch.einsum("nwrc,nw->nrc", maps, wanted[few])
            length = torch.linalg.vector_norm(maps, dim=1).clamp(min=1e-6)
            cosine = (along / length).clamp(min=_COSINE_LEAST)
            (part,) = torch.autograd.grad(-(along * cosine).mean((1, 2)).sum(), spectra)
            gradient += part
        if not gradient.isfinite().all():
            raise NonFiniteActivation(
                f"{layer.layer}: the gradient became NaN or infinite at step {step}: lower "
                "recipe.learning_rate, or mend the model"
            )
        adam.step(gradient)
        stop.next()
        if step % _REPORT_STEPS == 0 or step == recipe.steps:
            with torch.no_grad():
                tell(as_picture(render(spectra[:1], scale, axes)[0]))
    with torch.no_grad():
        return [as_picture(render(one[None], scale, axes)[0]) for one in spectra]


def _picture(
    model: ImageModel,
    target: Target,
    site: Site,
    recipe: Atlas,
    dataset: Dataset,
    found: _Map,
    stop: Stop,
) -> Picture:
    unit = target.feature.index
    strongest = max(found.cells, key=lambda cell: float(cell.mean[unit]))
    measured = measure(model, target, site, strongest.image, recipe.seed, stop)
    grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
    with torch.no_grad():
        silent = Units.of([target], site, model.device).values(
            model.maps(target.feature.layer.layer, grey)
        )
    most = max(cell.count for cell in found.cells)
    side = recipe.canvas
    sheet = np.full((recipe.grid * side, recipe.grid * side, 3), 255, np.uint8)
    for cell in found.cells:
        opaque = _FAINTEST + (1 - _FAINTEST) * math.sqrt(cell.count / most)
        shown = (255 - (255 - cell.image.astype(np.float32)) * opaque).round().astype(np.uint8)
        top, left = cell.row * side, cell.column * side
        sheet[top : top + side, left : left + side] = shown
    return Picture(
        target=target,
        recipe=recipe,
        model_digest=model.digest,
        inputs={f"dataset:{dataset.name}": dataset.digest},
        image=sheet,
        activation=measured.whole,
        activation_augmented=measured.crops,
        activation_augmented_spread=measured.spread,
        first_activation=float(silent[0]),
        history=(),
        findings={
            "dataset": {
                "name": dataset.name,
                "digest": dataset.digest,
                "images": len(dataset.files),
            },
            "activations": found.activations,
            "variance_explained": list(found.explained),
            "strongest": [strongest.row, strongest.column],
            "cells": [
                {
                    "row": c.row,
                    "column": c.column,
                    "count": c.count,
                    "unit_mean": float(c.mean[unit]),
                }
                for c in found.cells
            ],
        },
    )
