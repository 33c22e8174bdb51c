"""Activation atlas: what a layer tells apart in a dataset, as a map of pictures.

Activations from random places of many images are laid out by their two principal components and gathered
into cells; each cell's mean direction is drawn by activation maximisation, as opaque as it has activations.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sidecar.errors import NonFiniteActivation, UnsupportedTarget
from sidecar.features import LayerKey
from sidecar.recipes import Atlas, Dataset, Maximisation, Target, content_key
from sidecar.visualise.adam import Adam
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.augmentation import Crop, cut_crops, draw_crop, generator_for
from sidecar.visualise.datasets import batches
from sidecar.visualise.layout import cells_of, check_layout, lay_out
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, random_spectrum, render
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.resuming import Resumption, State
from sidecar.visualise.units import Dry, Site, Units, check_targets, dry_run
from sidecar.visualise.views import MEASURING_VIEWS, Stop, as_picture, measure, refuse_terms

_BYTES_LIMIT = 512 << 20
"""Of the activations that are held: twice that is needed while they are laid out."""

_TAKEN_KEPT_BYTES = 64 << 20
"""Of activations that a checkpoint holds while they are taken; more would be written for seconds."""

_FAINTEST = 0.3
"""Opacity of a cell with the fewest activations."""

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""

_COSINE_LEAST = 0.1
"""Below this the angle to a cell's direction counts as this much, as in Lucid."""

_REPORT_STEPS = 16


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
        checkpoint: Checkpoint | None = None,
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
        given = {f"dataset:{dataset.name}": dataset.digest}
        keys = [content_key(target, recipe, given) for target in targets]
        kept = Resumption(checkpoint, keys, model.digest, model.device.type, time.monotonic)
        found: dict[LayerKey, _Map] = {}
        for number, layer in enumerate(layers):
            members = tuple(n for n, t in enumerate(targets) if t.feature.layer == layer)

            def tell(shown: NDArray[np.uint8], members: tuple[int, ...] = members) -> None:
                on_progress(Progress(stop.step, stop.steps, nothing, shown, members[:1]))

            work = _Making(model, layer, recipe, dataset, stop, kept, number)
            found[layer] = work.make(tell)
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
    check_layout(recipe.layout)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """A map before it is drawn.

    Attributes:
        filled: Numbers of the cells that are not empty, row by row from the top, shape ``(cells,)``.
        counts: Activations in each of these, shape ``(cells,)``.
        means: Their means, shape ``(cells, width)``.
        usual: The mean of all, shape ``(width,)``.
        explained: Share of the variance along both axes, shape ``(2,)``; NaN where they mean nothing.
        activations: How many were taken, shape ``(1,)``.
    """

    filled: NDArray[np.int64]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    usual: NDArray[np.float32]
    explained: NDArray[np.float64]
    activations: NDArray[np.int64]

    @classmethod
    def of(cls, taken: torch.Tensor, recipe: Atlas) -> "_Laid":
        """Lay activations of shape ``(n, width)`` out.

        Raises:
            UnsupportedTarget: No cell has enough of them.
            SilentFeature: They are all the same.
        """
        places, explained = lay_out(taken, recipe.layout, recipe.seed)
        row, column = cells_of(places, recipe.grid)
        number = row * recipe.grid + column
        counts = np.bincount(number, minlength=recipe.grid**2)
        filled = np.flatnonzero(counts >= recipe.least)
        if not len(filled):
            raise UnsupportedTarget(
                f"recipe.least {recipe.least}: no cell of {recipe.grid} x {recipe.grid} has as many of the "
                f"{len(taken)} activations; lower it or grid, or raise positions"
            )
        means = torch.stack([taken[torch.from_numpy(number == one)].mean(0) for one in filled])
        return cls(
            filled,
            counts[filled],
            means.numpy(),
            taken.mean(0).numpy(),
            np.array(explained),
            np.array([len(taken)]),
        )

    @classmethod
    def restored(cls, state: State) -> "_Laid":
        """Return what ``state`` was made of."""
        arrays: dict[str, Any] = {name: state[name] for name in cls.__slots__}
        return cls(**arrays)

    def state(self) -> State:
        """Return it as arrays that need no pickle."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Making:
    """One layer's map while it is made: its activations are taken, laid out and drawn."""

    def __init__(
        self,
        model: ImageModel,
        layer: LayerKey,
        recipe: Atlas,
        dataset: Dataset,
        stop: Stop,
        kept: Resumption,
        number: int,
    ) -> None:
        self._model, self._layer, self._recipe = model, layer, recipe
        self._dataset, self._stop = dataset, stop
        self._kept, self._number = kept, number

    def make(self, tell: Callable[[NDArray[np.uint8]], None]) -> "_Map":
        """Return the map; go on with what an earlier attempt had reached."""
        state = self._kept.state(self._number) or {}
        if "means" in state:
            laid = _Laid.restored(state)
            self._stop.skip(1)
        else:
            laid = _Laid.of(self._take(state), self._recipe)
            state = {}
            self._stop.next()
        images = self._draw(laid, state, tell)
        grid = self._recipe.grid
        cells = [
            _Cell(int(one) // grid, int(one) % grid, int(count), torch.from_numpy(mean), image)
            for one, count, mean, image in zip(
                laid.filled, laid.counts, laid.means, images, strict=True
            )
        ]
        first, second = laid.explained.tolist()
        return _Map(cells, (first, second), int(laid.activations[0]))

    def _take(self, state: State) -> torch.Tensor:
        """Return activations at random positions, shape ``(images * positions, width)``."""
        path, recipe = self._layer.layer, self._recipe
        stream = generator_for(Target(self._layer.feature(0)), recipe.seed, "atlas positions")
        parts, seen = [], 0
        if state:
            parts, seen = [torch.from_numpy(state["taken"])], int(state["seen"][0])
            stream.set_state(torch.from_numpy(state["stream"]))

        def reached() -> State:
            if not parts:
                return {}
            taken, words = torch.cat(parts).numpy(), stream.get_state().numpy()
            return {"taken": taken, "seen": np.array([seen], np.int64), "stream": words}

        for numbers, images in batches(self._dataset, self._model, pass_images(self._model), seen):
            small = sum(part.nbytes for part in parts) <= _TAKEN_KEPT_BYTES
            if small:
                self._kept.note(self._number, reached)
            with self._kept.saving(self._number, reached) if small else nullcontext():
                self._stop.check()
            with torch.no_grad():
                maps = self._model.maps(path, images).flatten(2).cpu()  # (n, width, places)
            chosen = torch.randint(
                maps.shape[2], (len(maps), 1, recipe.positions), generator=stream
            )
            picked = maps.gather(2, chosen.expand(-1, maps.shape[1], -1))  # (n, width, positions)
            parts.append(picked.transpose(1, 2).flatten(0, 1))
            seen = numbers[-1] + 1
        found = torch.cat(parts)
        if recipe.layout == "umap" and found.nbytes <= _TAKEN_KEPT_BYTES:
            # Nobody asks while it lays out: where the process is killed then, these are not taken again.
            self._kept.note(self._number, reached, now=True)
        if not found.isfinite().all():
            raise NonFiniteActivation(f"{path} is NaN or infinite on some image: mend the model")
        return found

    def _draw(
        self, laid: _Laid, state: State, tell: Callable[[NDArray[np.uint8]], None]
    ) -> list[NDArray[np.uint8]]:
        """Draw every cell, all from one start and in the same crops, so that they differ by direction alone."""
        recipe, device = self._recipe, self._model.device
        origin = Target(self._layer.feature(0))
        start = random_spectrum(recipe.canvas, generator_for(origin, recipe.seed, "start"))
        crops = generator_for(origin, recipe.seed, "atlas crops")
        scale = frequency_scale(recipe.canvas, recipe.decay).to(device)
        axes = colour_axes(decorrelated=True).to(device)
        spectra = start.repeat(len(laid.means), 1, 1, 1, 1).to(device).requires_grad_()
        adam, taken = Adam(spectra, recipe.learning_rate), 0
        views = Maximisation(canvas=recipe.canvas, zoom_min=0.7, noise=0.05)

        def draw() -> Crop:
            return draw_crop(views, self._model.input_size, crops)

        def shown(cell: int) -> NDArray[np.uint8]:
            with torch.no_grad():
                return as_picture(render(spectra[cell][None], scale, axes)[0])

        def reached() -> State:
            ink = {"values": spectra.detach().cpu().numpy(), **adam.state()}
            return {**laid.state(), **ink}

        if state:
            with torch.no_grad():
                spectra.copy_(torch.from_numpy(state["values"]))
            adam.restore(state)
            taken = int(state["steps"][0])
            for _ in range(taken):  # the crops so far are drawn again from the seed
                draw()
            self._stop.skip(taken)
            tell(shown(0))
        with self._kept.saving(self._number, reached):
            for step in range(taken + 1, recipe.steps + 1):
                adam.step(self._gradient(spectra, laid, draw(), scale, axes, step))
                self._kept.note(self._number, reached)
                self._stop.next()
                if step % _REPORT_STEPS == 0 or step == recipe.steps:
                    tell(shown(0))
        self._kept.finished(self._number, reached())
        return [shown(cell) for cell in range(len(spectra))]

    def _gradient(
        self,
        spectra: torch.Tensor,
        laid: _Laid,
        crop: Crop,
        scale: torch.Tensor,
        axes: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Return the way downhill of every cell, shape of ``spectra``."""
        path, limit, device = self._layer.layer, pass_images(self._model), self._model.device
        means, usual = torch.from_numpy(laid.means), torch.from_numpy(laid.usual)
        wanted = functional.normalize(means - usual, dim=1).to(device)
        away = usual.to(device)[None, :, None, None]
        gradient = torch.zeros_like(spectra)
        for first in range(0, len(means), limit):
            self._stop.check()
            few = slice(first, first + limit)
            canvases = render(spectra[few], scale, axes)
            maps = self._model.maps(path, cut_crops(canvases, [crop] * len(canvases))) - away
            along = torch.einsum("nwrc,nw->nrc", maps, wanted[few])
            length = torch.linalg.vector_norm(maps, dim=1).clamp(min=1e-6)
            cosine = (along / length).clamp(min=_COSINE_LEAST)
            (part,) = torch.autograd.grad(-(along * cosine).mean((1, 2)).sum(), spectra)
            gradient += part
        if not gradient.isfinite().all():
            raise NonFiniteActivation(
                f"{path}: the gradient became NaN or infinite at step {step}: lower "
                "recipe.learning_rate, or mend the model"
            )
        return gradient


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
            "layout": recipe.layout,
            "variance_explained": list(found.explained) if recipe.layout == "pca" else None,
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
