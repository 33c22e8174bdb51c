"""DeepDream: an image is changed, scale by scale, so that a layer or unit is stirred more.

At each scale the picture is seen at the network's own resolution, in tiles where it is larger than the
input, and moved along its gradient, whose size does not matter.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sidecar.errors import JobCancelled, NonFiniteActivation, SilentFeature, UnsupportedTarget
from sidecar.recipes import DeepDream, Target, content_key
from sidecar.visualise.ascent import fast_model
from sidecar.visualise.augmentation import generator_for, resize_whole, square
from sidecar.visualise.directions import vectors_of
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.pictures import Cost, Picture, Progress, with_cost
from sidecar.visualise.resuming import Resumption, State
from sidecar.visualise.units import Dry, Site, Units, check_target, dry_run, forward_to

_GREY_DEVIATION = 0.05
"""Of the colours that a dream of nothing begins with."""

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""

_PASS_IMAGES = 1
"""Tiles in one pass: more are no faster on a CPU, and their rounding would depend on the canvas."""


class Dream:
    """The method of ``DeepDream`` recipes.

    Source:
        Mordvintsev, Olah and Tyka 2015, "Inceptionism: going deeper into neural networks".
    """

    recipe = DeepDream
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: DeepDream,
        materials: Materials,
    ) -> Cost:
        """Check a request and say what it will take.

        Raises:
            UnknownLayer: The model has no such layer, or never runs it.
            UnknownFeature: A layer has no unit of that index.
            UnsupportedTarget: No targets; a layer's output is no map or vector of units; a position
                or view does not exist there; the image or a dictionary was not handed over.
        """
        dry, _ = _prepared(model, targets, recipe, materials)
        return _cost(model, targets, recipe, dry)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: DeepDream,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[Picture, ...]:
        """Make one picture a target; each is dreamt alone, so none depends on its company.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``, before any step.
            JobCancelled: ``cancelled`` said so.
            SilentFeature: No gradient reached the picture, or the activation did not change.
            NonFiniteActivation: An activation or gradient became NaN or infinite.
        """
        dry, start = _prepared(model, targets, recipe, materials)
        cost = _cost(model, targets, recipe, dry)
        each = recipe.steps * recipe.octaves
        activations = [float("nan")] * len(targets)
        pictures: list[Picture] = []
        keys = [content_key(t, recipe, _inputs(t, materials)) for t in targets]
        kept = Resumption(checkpoint, keys, model.digest, model.device.type, time.monotonic)
        started, passes = time.perf_counter(), 0
        for number, target in enumerate(targets):

            def tell(
                step: int, value: float, image: NDArray[np.uint8], number: int = number
            ) -> None:
                activations[number] = value
                done = number * each + step
                on_progress(
                    Progress(done, each * len(targets), tuple(activations), image, (number,))
                )

            site = dry.sites[target.feature.layer.layer]
            units = _units(model, target, site, materials)
            sleeper = _Sleeper(model, target, recipe, units, kept, number)
            pictures.append(sleeper.dream(start, tell, cancelled, _inputs(target, materials)))
            passes += sleeper.passes
        seconds = time.perf_counter() - started
        return tuple(with_cost(picture, cost, passes, seconds) for picture in pictures)


@dataclass(slots=True)
class _Dreamt:
    """How far a dream is: all that its further steps depend on.

    Attributes:
        picture: At the scale that is being dreamt, shape ``(3, side, side)``.
        stream: Of its shifts.
        octave: Which scale.
        history: Activation at each step.
    """

    picture: torch.Tensor
    stream: torch.Generator
    octave: int = 0
    history: list[float] = field(default_factory=list)

    def state(self, passes: int) -> State:
        """Return it as arrays that need no pickle, with the images that the network has seen."""
        return {
            "picture": self.picture.detach().cpu().numpy(),
            "stream": self.stream.get_state().numpy(),
            "octave": np.array([self.octave], np.int64),
            "history": np.array(self.history, np.float64),
            "passes": np.array([passes], np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on from what ``state`` returned for the same target."""
        self.picture = torch.from_numpy(state["picture"]).to(self.picture.device)
        self.stream.set_state(torch.from_numpy(state["stream"]))
        self.octave = int(state["octave"][0])
        self.history[:] = state["history"].tolist()


@dataclass(slots=True)
class _Sleeper:
    """One picture while it is dreamt."""

    model: ImageModel
    target: Target
    recipe: DeepDream
    units: Units
    kept: Resumption
    number: int
    passes: int = 0

    def dream(
        self,
        start: torch.Tensor | None,
        tell: Callable[[int, float, NDArray[np.uint8]], None],
        cancelled: Callable[[], bool],
        inputs: dict[str, str],
    ) -> Picture:
        """Return the finished picture; ``start`` has colours from 0 to 1, ``(3, canvas, canvas)``."""
        fast, sides = fast_model(self.model, {self.units.layer.layer}), self.recipe.sides()
        begun = self._noise() if start is None else start.to(self.model.device)
        first = self._whole(begun)
        stream = generator_for(self.target, self.recipe.seed, "dream")
        dreamt = _Dreamt(resize_whole(begun[None], sides[0])[0], stream)  # (3, side, side)
        self._restore(dreamt)
        history, canvas = dreamt.history, self.recipe.canvas
        shown = _enlarged(dreamt.picture, canvas) if history else begun
        tell(len(history), history[-1] if history else first, _bytes(shown))
        details = torch.zeros_like(begun)
        for octave in range(dreamt.octave, len(sides)):
            ground = resize_whole(begun[None], sides[octave])[0]  # (3, side, side)
            if octave > dreamt.octave:
                dreamt.picture = ground + _enlarged(details, sides[octave])
                dreamt.octave = octave
            while len(history) < (octave + 1) * self.recipe.steps:
                self._take(dreamt, fast, cancelled)
            details = dreamt.picture - ground
            # An intermediate picture has the size of the finished one.
            tell(len(history), history[-1], _bytes(_enlarged(dreamt.picture, canvas)))
        self.kept.finished(self.number, dreamt.state(self.passes))
        image = _bytes(dreamt.picture)
        last = self._whole(_colours(image).to(self.model.device))
        self._refuse(first, last)
        jittered = self._jittered(image)
        return Picture(
            target=self.target,
            recipe=self.recipe,
            model_digest=self.model.digest,
            inputs=inputs,
            image=image,
            activation=last,
            activation_augmented=float(np.mean(jittered)),
            activation_augmented_spread=float(np.std(jittered)),
            first_activation=first,
            history=tuple(history),
            findings={
                "view": "whole picture, resized to the network's input",
                "steps": len(history),
                "octaves": list(self.recipe.sides()),
            },
        )

    def _restore(self, dreamt: "_Dreamt") -> None:
        reached = self.kept.state(self.number)
        if reached is not None:
            dreamt.restore(reached)
            self.passes = int(reached["passes"][0])

    def _take(self, dreamt: "_Dreamt", fast: ImageModel, cancelled: Callable[[], bool]) -> None:
        """Take a step, and note it where that is due."""

        def state() -> State:
            return dreamt.state(self.passes)

        with self.kept.saving(self.number, state):
            if cancelled():
                raise JobCancelled(f"cancelled at step {len(dreamt.history)} of a dream")
        dreamt.picture, value = self._step(fast, dreamt.picture, dreamt.stream)
        dreamt.history.append(value)
        self.kept.note(self.number, state)

    def _step(
        self, fast: ImageModel, picture: torch.Tensor, stream: torch.Generator
    ) -> tuple[torch.Tensor, float]:
        """Return the picture one step on, and the mean activation of the tiles it was seen in."""
        most = min(self.recipe.jitter, picture.shape[-1] - 1)
        down, across = torch.randint(-most, most + 1, (2,), generator=stream).tolist()
        shifted = picture.roll((down, across), (1, 2)).detach().requires_grad_()
        gradient = torch.zeros_like(shifted)
        values: list[float] = []
        tiles = _tiles(shifted, self.model.input_size)
        for some in torch.split(tiles, _PASS_IMAGES):
            maps = forward_to(fast, self.units.layer.layer, some)
            units = self.units.repeated(len(some))
            own = units.objective(maps)
            self._refuse_blind(own)
            values += units.values(maps.detach()).tolist()
            (part,) = torch.autograd.grad(own.sum(), shifted, retain_graph=True)
            gradient += part
        self.passes += len(tiles)
        size = gradient.abs().mean()
        if not size.isfinite() or not np.isfinite(values).all():
            raise NonFiniteActivation(
                f"{self.target.feature}: activation or gradient became NaN or infinite: lower "
                "recipe.learning_rate, or mend the model"
            )
        if size == 0:
            return picture, float(np.mean(values))
        moved = shifted.detach() + gradient * (self.recipe.learning_rate / size)
        return moved.roll((-down, -across), (1, 2)).clamp(0, 1), float(np.mean(values))

    def _whole(self, picture: torch.Tensor) -> float:
        """Activation of the whole picture, resized to the network's input."""
        with torch.no_grad():
            view = resize_whole(picture[None], self.model.input_size)
            maps = forward_to(self.model, self.units.layer.layer, view)
            self.passes += 1
            return float(self.units.values(maps)[0])

    def _jittered(self, image: NDArray[np.uint8]) -> list[float]:
        """Activations of the whole picture under the shifts that it was dreamt with."""
        stream = generator_for(self.target, self.recipe.seed, "measure")
        colours, found = _colours(image).to(self.model.device), []
        most = min(self.recipe.jitter, self.recipe.canvas - 1)
        for _ in range(_MEASURING_SHIFTS):
            down, across = torch.randint(-most, most + 1, (2,), generator=stream).tolist()
            found.append(self._whole(colours.roll((down, across), (1, 2))))
        return found

    def _noise(self) -> torch.Tensor:
        stream = generator_for(self.target, self.recipe.seed, "start")
        shape = (3, self.recipe.canvas, self.recipe.canvas)
        noise = torch.randn(shape, generator=stream) * _GREY_DEVIATION + 0.5
        return noise.clamp(0, 1).to(self.model.device)

    def _refuse_blind(self, own: torch.Tensor) -> None:
        if not own.requires_grad:
            raise SilentFeature(
                f"{self.target.feature}: the layer's output is cut off from the picture (no_grad, "
                "detach, or integers): no gradient can reach it"
            )

    def _refuse(self, first: float, last: float) -> None:
        if not np.isfinite([first, last]).all():
            raise NonFiniteActivation(
                f"{self.target.feature}: the activation of the finished picture is NaN or infinite: "
                "mend the model"
            )
        if abs(last - first) <= _STILL_RATIO * max(abs(first), _STILL_RATIO):
            raise SilentFeature(
                f"{self.target.feature}: the activation did not change, so the picture shows nothing"
            )


_MEASURING_SHIFTS = 16
"""As many views as the robustness of other pictures is measured on."""

_STILL_RATIO = 1e-6
"""Change of the activation, as a ratio of its size, below which the picture did nothing."""


def _prepared(
    model: ImageModel, targets: Sequence[Target], recipe: DeepDream, materials: Materials
) -> tuple[Dry, torch.Tensor | None]:
    """Check a request; return what its layers are like, and the image the dreams begin with."""
    if not targets:
        raise UnsupportedTarget("no targets: name at least one unit or layer to dream of")
    dry = dry_run(model, list(dict.fromkeys(target.feature.layer.layer for target in targets)))
    for target in targets:
        known = materials.directions.get(target.feature.layer.layer)
        site = dry.sites[target.feature.layer.layer]
        check_target(target, site, len(known.vectors) if known else None)
        _units(model, target, site, materials)
    start = square(materials.image(recipe.start), recipe.canvas) if recipe.start else None
    return dry, start


def _units(model: ImageModel, target: Target, site: Site, materials: Materials) -> Units:
    return Units.of([target], site, model.device, vectors_of(target.feature.layer, site, materials))


def _cost(model: ImageModel, targets: Sequence[Target], recipe: DeepDream, dry: Dry) -> Cost:
    # The first pass paid for memory and kernels, so it is the second that is timed.
    started = time.perf_counter()
    dry_run(model, list(dry.sites))
    seconds = time.perf_counter() - started
    tiles = sum(_tiles_across(side, model.input_size) ** 2 for side in recipe.sides())
    steps, looks = len(targets) * recipe.steps * tiles, len(targets) * (2 + _MEASURING_SHIFTS)
    return Cost(
        forwards=steps + looks,
        seconds_estimate=seconds * (_BACKWARD_RATIO * steps + looks),
        bytes_estimate=int(1.25 * min(_PASS_IMAGES, tiles) * dry.saved_bytes)
        + 8 * 4 * 3 * recipe.canvas**2,
    )


def _tiles_across(side: int, size: int) -> int:
    return max(1, -(-side // size))


def _tiles(picture: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a picture into tiles of the network's input that cover it; a smaller one is enlarged.

    Returns:
        Shape ``(tiles, 3, size, size)``.
    """
    side = picture.shape[-1]
    if side <= size:
        return _enlarged(picture, size)[None]
    count = _tiles_across(side, size)
    corners = [round(at * (side - size) / (count - 1)) for at in range(count)]
    parts = [
        picture[:, top : top + size, left : left + size] for top in corners for left in corners
    ]
    return torch.stack(parts)


def _enlarged(picture: torch.Tensor, side: int) -> torch.Tensor:
    if picture.shape[-1] == side:
        return picture
    return functional.interpolate(
        picture[None], (side, side), mode="bilinear", align_corners=False
    )[0]


def _bytes(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Return a picture as RGB, shape ``(side, side, 3)``."""
    bytes_ = picture.detach().clamp(0, 1).mul(255).round().byte()
    return bytes_.permute(1, 2, 0).contiguous().cpu().numpy()


def _colours(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255  # (3, side, side)


def _inputs(target: Target, materials: Materials) -> dict[str, str]:
    layer = target.feature.layer.layer
    known = materials.directions.get(layer)
    return dict.fromkeys(target.inputs, known.digest) if known else {}
