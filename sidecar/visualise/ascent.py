"""Gradient ascent of one batch: pictures of one layer's units, from their start to finished.

Each picture has random numbers of its own and Adam works coefficient by coefficient, so the sheets of
a batch share nothing but the forward pass; the facets of one sheet also push each other apart.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import NonFiniteActivation, SilentFeature
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Accentuation, Maximisation, Target
from sidecar.visualise.adam import Adam
from sidecar.visualise.augmentation import Crop, cut_crops, draw_crop, generator_for, resize_whole
from sidecar.visualise.model import ImageModel, VisionModel
from sidecar.visualise.parametrisation import parametrisation_of
from sidecar.visualise.pictures import Picture
from sidecar.visualise.priors import (
    TypicalRangePrior,
    distance,
    greyness,
    likeness,
    total_variation,
)
from sidecar.visualise.sheets import Tile, lay_out, tiles_of
from sidecar.visualise.units import Site, Units, forward_to

_BATCH_PICTURES = {"cpu": 8, "cuda": 64}
"""Pictures that are optimised side by side, unless a sheet has more; people watch them together."""

_PASS_IMAGES = {"cpu": 1, "cuda": 64}
"""Images in one forward and backward pass, if a sheet does not need more. On a CPU larger passes gain
little over one thread (see ``few_threads``), take more memory, and their rounding depends on their size,
so that a picture would depend on its company."""

_ONE_THREAD_BYTES = 64 << 20
"""Parameters of a network, below which one thread takes its passes; EfficientNet-Lite0 has 18 MiB,
ResNet-50, which gains from several, 98."""

_SILENT_STEPS = 16
"""Steps without any gradient after which a unit counts as silent: that many different crops and
noises have failed to stir it."""

_STILL_RATIO = 1e-6
"""Change of the activation, as a ratio of its size, below which the picture did nothing."""

_PLATEAU_STEPS = 32
"""Steps whose mean is compared with that of as many before: single steps differ by their crops."""

COARSE_RATIO = 5 / 7
"""Side of a coarse view, of the input's: half the pixels, and 160 of 224 are whole strides of 32."""

MEASURING_CROPS = 16
"""Fresh augmentations the robustness of a finished picture is measured on."""


def pass_images(model: VisionModel) -> int:
    """Return the most images that go through the network at once on the model's device."""
    return _PASS_IMAGES.get(model.device.type, _PASS_IMAGES["cpu"])


def fast_model(model: ImageModel, taps: Collection[str]) -> ImageModel:
    """Return a copy that computes the same up to rounding in fewer CPU seconds, for taking steps.

    Batch norms are folded, and what is a copy by then goes channels last: 0.059 instead of 0.094 CPU
    seconds an image, forward and backward, on EfficientNet-Lite0.
    """
    found = model.folded(taps)
    if found is not model:
        found.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave out this form
    return found


@contextlib.contextmanager
def few_threads(model: ImageModel) -> Iterator[None]:
    """Compute with one thread, on a CPU, what is too small to be shared out.

    The pieces of a small network end before their threads have met again: on two, a pass of
    EfficientNet-Lite0 up to block 14 takes 60 ms of CPU, on one 42. What one thread computes does not
    depend on how many the machine has, so neither do the pictures.
    """
    before = torch.get_num_threads()
    size = sum(parameter.nbytes for parameter in model.module.parameters())
    small = model.device.type == "cpu" and size < _ONE_THREAD_BYTES
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def coarse_size(size: int) -> int:
    """Return the side of a coarse view for an input of that side, in pixels."""
    return round(size * COARSE_RATIO)


def coarse_steps(model: ImageModel, layer: LayerKey, recipe: Maximisation) -> int:
    """Return how many steps of a layer's pictures have coarse views.

    None have where the maps of another size are other units (neurons), where the model's own form
    brings every view to one size, and where its forward pass takes no other.
    """
    form = model.form
    if not recipe.coarse or layer.kind is FeatureKind.NEURON or form.height or form.width:
        return 0
    side = coarse_size(model.input_size)
    grey = torch.full((1, 3, side, side), 0.5, device=model.device)
    try:
        with torch.no_grad():
            model.maps(layer.layer, grey)
    except Exception:  # noqa: BLE001 - an operator's code; at its own size it has been run already
        return 0
    return round(recipe.coarse * recipe.steps)


def sheets_together(model: ImageModel, recipe: Maximisation) -> int:
    """Return the most targets of one batch on the model's device."""
    pictures = _BATCH_PICTURES.get(model.device.type, _BATCH_PICTURES["cpu"])
    return max(1, pictures // recipe.tiles)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What the pictures of one batch stand on, beside their recipe.

    Attributes:
        site: The layer's shape.
        vectors: The layer's directions, shape ``(directions, width)``; None: it has none.
        typical: The prior of the recipe's ``typical_range``; None: switched off.
        start: Image to begin with, colours from 0 to 1, shape ``(3, canvas, canvas)``; None: noise.
        coarse_steps: Steps, from the first on, whose views are of ``coarse_size``.
    """

    site: Site
    vectors: torch.Tensor | None = None
    typical: TypicalRangePrior | None = None
    start: torch.Tensor | None = None
    coarse_steps: int = 0


@dataclass(slots=True)
class _Seen:
    """What the passes of one step found, a row a picture; the gradient is downhill."""

    values: torch.Tensor
    gradient: torch.Tensor
    stirred: torch.Tensor


class Ascent:
    """Sheets of one layer's units while they are optimised together.

    A picture is *running* until its sheet has reached a plateau; everything that the steps to come
    depend on is in ``_values``, ``_adam``, ``_streams``, ``_running``, ``_final``, ``_stirred`` and
    ``_history``.
    """

    def __init__(
        self, model: ImageModel, targets: Sequence[Target], recipe: Maximisation, ground: Ground
    ) -> None:
        self.recipe = recipe
        self._model = model
        self._fast = fast_model(model, {targets[0].feature.layer.layer, *_looked_at(recipe)})
        self._targets = targets
        self._ground = ground
        self._tiles = [tile for target in targets for tile in tiles_of(target, recipe)]
        self._units = self._units_of(range(len(self._tiles)))
        self._streams = [
            generator_for(tile.target, recipe.seed, "optimise", tile.facet) for tile in self._tiles
        ]
        self._writing = parametrisation_of(recipe, model.device)
        starts = [self._start(tile) for tile in self._tiles]
        self._values = torch.stack(starts).to(model.device).requires_grad_()
        self._adam = Adam(self._values, recipe.learning_rate)
        self._running = list(range(len(self._tiles)))
        self._final: dict[int, torch.Tensor] = {}
        self._stirred = torch.zeros(len(self._tiles), dtype=torch.bool, device=model.device)
        self._history: list[list[float]] = [[] for _ in self._tiles]
        self._passes = 0
        self._first = self._measure_whole(self._pictures())

    @property
    def first(self) -> list[float]:
        """The activations of the starts, a value a target."""
        return self._first[:: self.recipe.tiles]

    @property
    def done(self) -> bool:
        """Whether every sheet has had its steps or reached its plateau."""
        return not self._running or len(self._history[self._running[0]]) >= self.recipe.steps

    def step(self) -> list[float]:
        """Take one step of every running picture; return the activations that were seen last."""
        canvases = self._writing.render(self._values)  # (running, 3, canvas, canvas)
        seen = self._look(canvases.detach().requires_grad_())
        self._refuse_nonfinite(seen)
        self._refuse_silent()
        (gradient,) = torch.autograd.grad(canvases, self._values, seen.gradient)
        self._adam.step(gradient)
        for number, value in zip(self._running, seen.values.tolist(), strict=True):
            self._history[number].append(value)
        if self.recipe.plateau:
            self._stop(self._sheets_at_rest())
        return self.activations

    @property
    def taken(self) -> int:
        """Steps taken so far, by the sheets that took most."""
        return max(map(len, self._history))

    @property
    def activations(self) -> list[float]:
        """What the crops of the last step gave, a value a target; before the first, the start's."""
        each = self.recipe.tiles
        return [
            values[-1] if values else start
            for values, start in zip(self._history[::each], self.first, strict=True)
        ]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return everything that the steps to come depend on, as arrays that need no pickle."""
        streams = torch.zeros((0, 0), dtype=torch.uint8)
        if self._streams:
            streams = torch.stack([one.get_state() for one in self._streams])  # (running, bytes)
        rest = torch.stack([*self._final.values()]) if self._final else self._values[:0].detach()
        adam = {f"adam_{name}": value for name, value in self._adam.state().items()}
        return adam | {
            "values": self._values.detach().cpu().numpy(),
            "stirred": self._stirred.cpu().numpy(),
            "streams": streams.numpy(),
            "running": np.array(self._running, np.int64),
            "ended": np.array([*self._final], np.int64),
            "ended_values": rest.cpu().numpy(),
            "taken": np.array([*map(len, self._history)], np.int64),
            "history": np.array([value for one in self._history for value in one], np.float64),
            "passes": np.array([self._passes], np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from what ``state`` returned for the same targets, recipe and model.

        The steps that follow give the same bits as they would have without the interruption.
        """
        ended = torch.from_numpy(state["ended_values"]).to(self._model.device)
        self._final = dict(zip(state["ended"].tolist(), ended, strict=True))
        places = state["running"].tolist()
        if len(places) < len(self._running):
            self._keep(places)
        with torch.no_grad():
            self._values.copy_(torch.from_numpy(state["values"]))
        self._stirred.copy_(torch.from_numpy(state["stirred"]))
        for stream, words in zip(self._streams, state["streams"], strict=True):
            stream.set_state(torch.from_numpy(words))
        ends = np.cumsum(state["taken"])
        self._history = [one.tolist() for one in np.split(state["history"], ends[:-1])]
        self._passes = int(state["passes"][0])
        adam = {k.removeprefix("adam_"): v for k, v in state.items() if k.startswith("adam_")}
        self._adam.restore(adam)

    def images(self) -> NDArray[np.uint8]:
        """The sheets as they are now, shape ``(n, height, width, 3)``."""
        each, pictures = self.recipe.tiles, self._pictures()
        return np.stack(
            [
                lay_out(list(pictures[first : first + each]))
                for first in range(0, len(pictures), each)
            ]
        )

    def finish(self, inputs: Mapping[str, str]) -> list[Picture]:
        """Measure the pictures as people will see them: at 8 bits."""
        pictures = self._pictures()
        last = self._measure_whole(pictures)
        robust = self._measure_crops(pictures)  # (tiles, crops)
        self._refuse_useless(last, robust)
        each, sheets = self.recipe.tiles, self.images()
        found = []
        for place, target in enumerate(self._targets):
            number = place * each
            rest = range(number, number + each)
            found.append(
                Picture(
                    target=target,
                    recipe=self.recipe,
                    model_digest=self._model.digest,
                    inputs=inputs,
                    image=sheets[place],
                    activation=last[number],
                    activation_augmented=float(robust[number].mean()),
                    activation_augmented_spread=float(robust[number].std(correction=0)),
                    first_activation=self._first[number],
                    history=tuple(self._history[number]),
                    findings=self._findings(rest, last, robust),
                )
            )
        return found

    @property
    def passes(self) -> int:
        """Images that have gone through the network so far."""
        return self._passes

    def _start(self, tile: Tile) -> torch.Tensor:
        if self._ground.start is not None:
            return self._writing.start_from(self._ground.start)
        stream = generator_for(tile.target, self.recipe.seed, "start", tile.facet)
        return self._writing.start(stream)

    def _pictures(self) -> NDArray[np.uint8]:
        """Every picture as it is now, shape ``(tiles, canvas, canvas, 3)``."""
        running = dict(zip(self._running, self._values.detach(), strict=True))
        everyone = {**running, **self._final}
        values = torch.stack([everyone[number] for number in range(len(self._tiles))])
        with torch.no_grad():
            colours = self._writing.render(values).mul(255).round().byte()
        return colours.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _look(self, canvases: torch.Tensor) -> _Seen:
        """Send all crops of a step through the network, a few at a time."""
        parts = []
        for places in self._passes_of(len(canvases)):
            units = self._units.only(places)
            streams = [self._streams[place] for place in places]
            some = canvases[places[0] : places[-1] + 1]
            parts.append(self._look_at(some.detach().requires_grad_(), units, streams))
        seen = _Seen(*(torch.cat(each) for each in zip(*parts, strict=True)))
        self._stirred |= seen.stirred
        for weight, prior in (
            (self.recipe.total_variation, total_variation),
            (self.recipe.l2, greyness),
        ):
            if weight:
                cost = prior(canvases).sum() * weight
                seen.gradient += torch.autograd.grad(cost, canvases)[0]
        return seen

    def _look_at(
        self, canvases: torch.Tensor, units: Units, streams: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return activations, gradients downhill, and which units have any, of some pictures."""
        stirred = torch.zeros(len(canvases), dtype=torch.bool, device=canvases.device)
        count, crops = len(canvases), self.recipe.crops
        values = torch.zeros(count, device=canvases.device)
        gradient = torch.zeros_like(canvases)
        for times in _shares(crops, max(1, pass_images(self._model) // count)):
            many = units.repeated(times)
            drawn = [
                draw_crop(self.recipe, self._view_size, one)
                for _ in range(times)
                for one in streams
            ]
            views = cut_crops(canvases.repeat(times, 1, 1, 1), drawn)
            maps = self._forward(self._fast, many.layer.layer, views)
            own = many.objective(maps)  # (times * n,)
            values += many.values(maps.detach()).view(times, count).sum(0) / crops
            price = self._price(many, maps, own, views, drawn)
            uphill = self._own_gradient(own, canvases, keep=price is not None)
            stirred |= uphill.abs().amax((1, 2, 3)) > 0
            gradient -= uphill / crops
            if price is not None:
                gradient += torch.autograd.grad(price.sum() / crops, canvases)[0]
        return values, gradient, stirred

    def _passes_of(self, count: int) -> Iterator[list[int]]:
        """Yield places of pictures that go through the network together: whole sheets."""
        each = max(1, self.recipe.facets)
        together = max(1, pass_images(self._model) // each) * each
        for first in range(0, count, together):
            yield list(range(first, min(first + together, count)))

    def _price(
        self,
        units: Units,
        maps: torch.Tensor,
        own: torch.Tensor,
        views: torch.Tensor,
        drawn: list[Crop],
    ) -> torch.Tensor | None:
        """What each view pays to the priors that look at maps, shape ``(times * n,)``; None: nothing.

        Likeness and distance are ratios; they are weighed by the activation, so that the same weights
        do for every unit.
        """
        recipe, worth = self.recipe, own.detach().abs()
        prices = []
        if self._ground.typical is not None:
            prices.append(self._ground.typical(units, maps) * recipe.typical_range)
        if recipe.facets > 1 and recipe.diversity:
            prices.append(likeness(maps, recipe.facets) * worth * recipe.diversity)
        if isinstance(recipe, Accentuation) and recipe.closeness:
            prices.append(self._moved(recipe, maps, views, drawn) * worth * recipe.closeness)
        return torch.stack(prices).sum(0) if prices else None

    def _moved(
        self, recipe: Accentuation, maps: torch.Tensor, views: torch.Tensor, drawn: list[Crop]
    ) -> torch.Tensor:
        """How far each view is from the same view of the image that the picture began with."""
        assert self._ground.start is not None  # noqa: S101 - the recipe has one
        layer = recipe.layer or self._units.layer.layer
        if layer != self._units.layer.layer:
            maps = self._forward(self._fast, layer, views)
        with torch.no_grad():
            begun = self._ground.start.expand(len(drawn), -1, -1, -1)
            anchors = self._forward(self._fast, layer, cut_crops(begun, drawn))
        return distance(maps, anchors)

    @property
    def _view_size(self) -> int:
        """Side of the views of the next step; that of its noise and maps follows."""
        coarse = self.taken < self._ground.coarse_steps
        return coarse_size(self._size) if coarse else self._size

    def _forward(self, model: ImageModel, layer: str, views: torch.Tensor) -> torch.Tensor:
        self._passes += len(views)
        return forward_to(model, layer, views.contiguous(memory_format=torch.channels_last))

    def _own_gradient(
        self, own: torch.Tensor, canvases: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:
        """The gradient that pushes each picture towards its unit, all zero where there is none."""
        if not own.requires_grad:
            raise SilentFeature(
                f"{self._names(self._running)}: the layer's output is cut off from the picture "
                "(no_grad, detach, or integers): no gradient can reach it"
            )
        gradient, *_ = torch.autograd.grad(
            own.sum(), canvases, retain_graph=keep, materialize_grads=True
        )
        return gradient

    def _sheets_at_rest(self) -> list[int]:
        """Places of the running sheets whose activation has stopped rising."""
        each, steps = self.recipe.tiles, 2 * _PLATEAU_STEPS
        found = []
        for place in sorted({number // each for number in self._running}):
            # What coarse views give is another number, so the two are not compared.
            history = np.array(self._history[place * each : (place + 1) * each])
            history = history[:, self._ground.coarse_steps :]
            if history.shape[1] < steps:
                return []
            before, after = (
                history[:, -steps:-_PLATEAU_STEPS].mean(1),
                history[:, -_PLATEAU_STEPS:].mean(1),
            )
            sign = np.array([-1.0 if t.target.side == "negative" else 1.0 for t in self._tiles])
            rise = (after - before) * sign[place * each : (place + 1) * each]
            if (rise < self.recipe.plateau * np.abs(before)).all():
                found.append(place)
        return found

    def _stop(self, places: list[int]) -> None:
        """Take sheets out of the batch, as they are."""
        each = self.recipe.tiles
        ended = {number for place in places for number in range(place * each, (place + 1) * each)}
        if not ended:
            return
        kept = [at for at, number in enumerate(self._running) if number not in ended]
        values = self._values.detach()
        for at, number in enumerate(self._running):
            if number in ended:
                self._final[number] = values[at].clone()
        self._keep(kept)

    def _keep(self, kept: list[int]) -> None:
        """Go on with the running pictures at some places alone."""
        self._values = self._values.detach()[kept].clone().requires_grad_()
        self._adam = self._adam.only(kept, self._values)
        self._streams = [self._streams[at] for at in kept]
        self._stirred = self._stirred[kept]
        self._running = [self._running[at] for at in kept]
        if kept:
            self._units = self._units.only(kept)

    def _units_of(self, numbers: Sequence[int]) -> Units:
        return Units.of(
            [self._tiles[number].target for number in numbers],
            self._ground.site,
            self._model.device,
            self._ground.vectors,
            weights=[self._tiles[number].weights for number in numbers],
            cosine=self.recipe.objective == "cosine",
        )

    def _measure_whole(self, images: NDArray[np.uint8]) -> list[float]:
        values: list[float] = []
        everyone, limit = range(len(images)), pass_images(self._model)
        with torch.no_grad():
            for first in range(0, len(images), limit):
                some = everyone[first : first + limit]
                whole = resize_whole(self._colours(images[first : first + limit]), self._size)
                units = self._units_of(some)
                maps = self._forward(self._model, units.layer.layer, whole)
                values += units.values(maps).tolist()
        return values

    def _measure_crops(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Activations under fresh augmentations, shape ``(tiles, crops)``."""
        seed, limit = self.recipe.seed, pass_images(self._model)
        found = []
        with torch.no_grad():
            for first in range(0, len(images), limit):
                some = range(len(images))[first : first + limit]
                units = self._units_of(some)
                tiles = [self._tiles[number] for number in some]
                streams = [generator_for(t.target, seed, "measure", t.facet) for t in tiles]
                colours = self._colours(images[first : first + limit])
                views = [
                    cut_crops(colours, [draw_crop(self.recipe, self._size, one) for one in streams])
                    for _ in range(MEASURING_CROPS)
                ]
                seen = [self._forward(self._model, units.layer.layer, view) for view in views]
                found.append(torch.stack([units.values(maps) for maps in seen], dim=1))
        return torch.cat(found).cpu()

    @property
    def _size(self) -> int:
        return self._model.input_size

    def _findings(
        self, numbers: Sequence[int], last: list[float], robust: torch.Tensor
    ) -> dict[str, Any]:
        taken = len(self._history[numbers[0]])
        found: dict[str, Any] = {
            "view": "whole picture, resized to the network's input",
            "steps": taken,
            "coarse_steps": min(taken, self._ground.coarse_steps),
            "stopped": "steps" if taken == self.recipe.steps else "plateau",
        }
        if self.recipe.tiles > 1:
            canvas = self.recipe.canvas
            found["tiles"] = [
                {
                    "x": at * canvas,
                    "y": 0,
                    "side": canvas,
                    "weights": list(self._tiles[number].weights),
                    "activation": last[number],
                    "activation_augmented": float(robust[number].mean()),
                    "start": self._first[number],
                }
                for at, number in enumerate(numbers)
            ]
        return found

    def _colours(self, images: NDArray[np.uint8]) -> torch.Tensor:
        bytes_ = torch.from_numpy(images).to(self._model.device)
        return bytes_.permute(0, 3, 1, 2).float() / 255  # (n, 3, canvas, canvas)

    def _refuse_nonfinite(self, seen: _Seen) -> None:
        fine = seen.values.isfinite() & seen.gradient.flatten(1).isfinite().all(1)
        if not fine.all():
            raise NonFiniteActivation(
                f"{self._names(self._running, ~fine)}: activation or gradient became NaN or infinite "
                f"at step {len(self._history[self._running[0]]) + 1}: lower recipe.learning_rate, or "
                "mend the model"
            )

    def _refuse_silent(self) -> None:
        watched = min(_SILENT_STEPS, self.recipe.steps)
        if len(self._history[self._running[0]]) + 1 == watched and not self._stirred.all():
            raise SilentFeature(
                f"{self._names(self._running, ~self._stirred)}: no gradient in {watched} steps, so a "
                "picture would be noise; the unit may be dead, or silent on anything like a faint grey "
                "cloud"
            )

    def _refuse_useless(self, last: list[float], robust: torch.Tensor) -> None:
        everyone = range(len(self._tiles))
        fine = torch.tensor([self._first, last]).isfinite().all(0) & robust.isfinite().all(1)
        if not fine.all():
            raise NonFiniteActivation(
                f"{self._names(everyone, ~fine)}: the activation of the finished picture is NaN or "
                "infinite: mend the model"
            )
        still = torch.tensor(
            [
                abs(after - before) <= _STILL_RATIO * max(abs(before), _STILL_RATIO)
                for before, after in zip(self._first, last, strict=True)
            ]
        )
        if still.any():
            raise SilentFeature(
                f"{self._names(everyone, still)}: the activation did not change in "
                f"{self.recipe.steps} steps, so the picture shows nothing"
            )

    def _names(self, numbers: Sequence[int], which: torch.Tensor | None = None) -> str:
        marks = [True] * len(numbers) if which is None else which.tolist()
        marked = (number for number, mark in zip(numbers, marks, strict=True) if mark)
        return ", ".join(dict.fromkeys(str(self._tiles[n].target.feature) for n in marked))


def _looked_at(recipe: Maximisation) -> set[str]:
    """Layers that a recipe looks at beside the target's."""
    return {recipe.layer} if isinstance(recipe, Accentuation) and recipe.layer else set()


def _shares(total: int, most: int) -> Iterator[int]:
    """Split a number into parts of at most ``most``."""
    while total > 0:
        yield min(total, most)
        total -= most
