"""Gradient ascent of one batch: pictures of one layer's units, from grey clouds to finished.

Each picture has random numbers of its own and Adam works coefficient by coefficient, so the members of
a batch share nothing but the forward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import NonFiniteActivation, SilentFeature
from sidecar.recipes import Maximisation, Target
from sidecar.visualise.adam import Adam
from sidecar.visualise.augmentation import cut_crops, draw_crop, generator_for, resize_whole
from sidecar.visualise.model import ImageModel, VisionModel
from sidecar.visualise.parametrisation import frequency_scale, random_spectrum, render
from sidecar.visualise.pictures import Picture
from sidecar.visualise.priors import TypicalRangePrior, total_variation
from sidecar.visualise.units import Site, Units, forward_to

_PASS_IMAGES = {"cpu": 8, "cuda": 64}
"""Most images in one forward and backward pass: about 0.7 GB of EfficientNet-Lite0 activations on a
CPU, where larger passes are no faster."""

_SILENT_STEPS = 16
"""Steps without any gradient after which a unit counts as silent: that many different crops and
noises have failed to stir it."""

_STILL_RATIO = 1e-6
"""Change of the activation, as a ratio of its size, below which the picture did nothing."""

MEASURING_CROPS = 16
"""Fresh augmentations the robustness of a finished picture is measured on."""


def pass_images(model: VisionModel) -> int:
    """Return the most images that go through the network at once on the model's device."""
    return _PASS_IMAGES.get(model.device.type, _PASS_IMAGES["cpu"])


@dataclass(slots=True)
class _Seen:
    """What the passes of one step found, a value a target."""

    values: torch.Tensor
    gradient: torch.Tensor


class Ascent:
    """Pictures of one layer's units while they are optimised together."""

    def __init__(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Maximisation,
        site: Site,
        prior: TypicalRangePrior | None,
    ) -> None:
        self.recipe = recipe
        self._model = model
        self._targets = targets
        self._prior = prior
        self._units = Units.of(targets, site, model.device)
        self._streams = [generator_for(target, recipe.seed, "optimise") for target in targets]
        self._scale = frequency_scale(recipe.canvas, recipe.decay).to(model.device)
        starts = [
            random_spectrum(recipe.canvas, generator_for(target, recipe.seed, "start"))
            for target in targets
        ]
        self._spectra = torch.stack(starts).to(model.device).requires_grad_()
        self._adam = Adam(self._spectra, recipe.learning_rate)
        self._stirred = torch.zeros(len(targets), dtype=torch.bool, device=model.device)
        self._history: list[list[float]] = []
        self.first = self._measure_whole(self.images())

    def step(self) -> list[float]:
        """Take one step of every picture; return the activations its crops gave."""
        canvases = render(self._spectra, self._scale)  # (n, 3, canvas, canvas)
        seen = self._look(canvases.detach().requires_grad_())
        self._refuse_nonfinite(seen)
        self._refuse_silent()
        (gradient,) = torch.autograd.grad(canvases, self._spectra, seen.gradient)
        self._adam.step(gradient)
        values: list[float] = seen.values.tolist()
        self._history.append(values)
        return values

    def images(self) -> NDArray[np.uint8]:
        """The pictures as they are now, shape ``(n, canvas, canvas, 3)``."""
        with torch.no_grad():
            colours = render(self._spectra, self._scale).mul(255).round().byte()
        return colours.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def finish(self, inputs: Mapping[str, str]) -> list[Picture]:
        """Measure the pictures as people will see them: at 8 bits."""
        images = self.images()
        last = self._measure_whole(images)
        robust = self._measure_crops(images)  # (n, crops)
        self._refuse_useless(last, robust)
        return [
            Picture(
                target=target,
                recipe=self.recipe,
                model_digest=self._model.digest,
                inputs=inputs,
                image=images[number],
                activation=last[number],
                activation_augmented=float(robust[number].mean()),
                activation_augmented_spread=float(robust[number].std(correction=0)),
                first_activation=self.first[number],
                history=tuple(values[number] for values in self._history),
            )
            for number, target in enumerate(self._targets)
        ]

    def _look(self, canvases: torch.Tensor) -> _Seen:
        """Send all crops of a step through the network, a few at a time."""
        count, crops = len(canvases), self.recipe.crops
        values = torch.zeros(count, device=canvases.device)
        gradient = torch.zeros_like(canvases)
        for times in _shares(crops, max(1, pass_images(self._model) // count)):
            units = self._units.repeated(times)
            maps = self._forward(canvases.repeat(times, 1, 1, 1), times)
            own = units.objective(maps)  # (times * n,)
            values += units.values(maps.detach()).view(times, count).sum(0) / crops
            gradient += self._own_gradient(own, canvases) / crops
            if self._prior is not None:
                cost = self._prior(units, maps).sum() * self.recipe.typical_range / crops
                gradient += torch.autograd.grad(cost, canvases)[0]
        if self.recipe.total_variation:
            cost = total_variation(canvases).sum() * self.recipe.total_variation
            gradient += torch.autograd.grad(cost, canvases)[0]
        return _Seen(values, gradient)

    def _forward(self, canvases: torch.Tensor, times: int) -> torch.Tensor:
        size = self._model.input_size
        crops = [
            draw_crop(self.recipe, size, stream) for _ in range(times) for stream in self._streams
        ]
        return forward_to(self._model, self._units.layer.layer, cut_crops(canvases, crops))

    def _own_gradient(self, own: torch.Tensor, canvases: torch.Tensor) -> torch.Tensor:
        """The gradient that pushes each picture towards its unit, noting which of them have any."""
        if not own.requires_grad:
            raise SilentFeature(
                f"{self._names()}: the layer's output is cut off from the picture (no_grad, detach, "
                "or integers): no gradient can reach it"
            )
        downhill = -own.sum()
        keep = self._prior is not None
        gradient, *_ = torch.autograd.grad(
            downhill, canvases, retain_graph=keep, materialize_grads=True
        )
        self._stirred |= gradient.abs().amax((1, 2, 3)) > 0
        return gradient

    def _measure_whole(self, images: NDArray[np.uint8]) -> list[float]:
        with torch.no_grad():
            whole = resize_whole(self._colours(images), self._model.input_size)
            maps = forward_to(self._model, self._units.layer.layer, whole)
            values: list[float] = self._units.values(maps).tolist()
        return values

    def _measure_crops(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Activations under fresh augmentations, shape ``(n, crops)``."""
        colours, size = self._colours(images), self._model.input_size
        streams = [generator_for(target, self.recipe.seed, "measure") for target in self._targets]
        found = []
        with torch.no_grad():
            for _ in range(MEASURING_CROPS):
                crops = [draw_crop(self.recipe, size, stream) for stream in streams]
                views = cut_crops(colours, crops)
                maps = forward_to(self._model, self._units.layer.layer, views)
                found.append(self._units.values(maps))
        return torch.stack(found, dim=1).cpu()

    def _colours(self, images: NDArray[np.uint8]) -> torch.Tensor:
        bytes_ = torch.from_numpy(images).to(self._model.device)
        return bytes_.permute(0, 3, 1, 2).float() / 255  # (n, 3, canvas, canvas)

    def _refuse_nonfinite(self, seen: _Seen) -> None:
        fine = seen.values.isfinite() & seen.gradient.flatten(1).isfinite().all(1)
        if not fine.all():
            raise NonFiniteActivation(
                f"{self._names(~fine)}: activation or gradient became NaN or infinite at step "
                f"{len(self._history) + 1}: lower recipe.learning_rate, or mend the model"
            )

    def _refuse_silent(self) -> None:
        watched = min(_SILENT_STEPS, self.recipe.steps)
        if len(self._history) + 1 == watched and not self._stirred.all():
            raise SilentFeature(
                f"{self._names(~self._stirred)}: no gradient in {watched} steps, so a picture would "
                "be noise; the unit may be dead, or silent on anything like a faint grey cloud"
            )

    def _refuse_useless(self, last: list[float], robust: torch.Tensor) -> None:
        fine = torch.tensor([self.first, last]).isfinite().all(0) & robust.isfinite().all(1)
        if not fine.all():
            raise NonFiniteActivation(
                f"{self._names(~fine)}: the activation of the finished picture is NaN or infinite: mend "
                "the model"
            )
        still = [
            abs(after - before) <= _STILL_RATIO * max(abs(before), _STILL_RATIO)
            for before, after in zip(self.first, last, strict=True)
        ]
        if any(still):
            raise SilentFeature(
                f"{self._names(torch.tensor(still))}: the activation did not change in "
                f"{self.recipe.steps} steps, so the picture shows nothing"
            )

    def _names(self, which: torch.Tensor | None = None) -> str:
        marks = [True] * len(self._targets) if which is None else which.tolist()
        return ", ".join(
            str(t.feature) for t, mark in zip(self._targets, marks, strict=True) if mark
        )


def _shares(total: int, most: int) -> Iterator[int]:
    """Split a number into parts of at most ``most``."""
    while total > 0:
        yield min(total, most)
        total -= most
