"""Search: a picture that drives a unit, found without gradients.

For models that only run forward. Whole low frequencies of the picture are drawn from a distribution, the
network says which of them drive the unit, and the distribution moves there. What has no gradient has
no fine detail either: the pictures are coarser than those of the ascent, and weaker.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import NonFiniteActivation, SilentFeature, UnsupportedTarget
from sidecar.recipes import Maximisation, Search, Side, Target, content_key
from sidecar.visualise.augmentation import (
    Crop,
    cut_crops,
    draw_crop,
    generator_for,
    resize_whole,
)
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel, VisionModel
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, render
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.resuming import Resumption, State
from sidecar.visualise.units import Site, Units, dry_run
from sidecar.visualise.views import (
    MEASURING_VIEWS,
    Stop,
    as_picture,
    measure,
    refuse_terms,
    sites_of,
    together,
)

_REPORT_STEPS = 16
"""Generations between two reports; each costs a picture."""

_SILENT_GENERATIONS = 8
"""Generations without any difference between pictures after which a unit counts as silent."""

_WORD = 1 << 32
"""Seeds of the search distribution are below it."""


class GradientFreeSearch:
    """The method of ``Search`` recipes.

    The search distribution is that of separable CMA-ES, whose cost grows linearly with the number of
    frequencies. All pictures of a generation are seen in the same random crop, so that they differ by
    what they show alone.

    Source:
        Ros and Hansen 2008, "A simple modification in CMA-ES achieving linear time and space complexity".
    """

    recipe = Search
    gradients = False

    def plan(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Search,
        materials: Materials,  # noqa: ARG002 - looks at nothing
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take; what ONNX Runtime holds for itself is not counted.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The model has no such thing, or a target weighs
                several units.
        """
        sites = _checked(model, targets)
        grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
        started = clock()
        with torch.no_grad():
            model.maps(next(iter(sites)), grey)
        seconds = clock() - started
        looks = len(targets) * (recipe.generations * recipe.population + MEASURING_VIEWS + 1)
        canvases = recipe.population * 8 * 3 * 4 * recipe.canvas**2
        held = dry_run(model, list(sites)).saved_bytes if isinstance(model, ImageModel) else 0
        return Cost(looks, seconds * looks, canvases + together(model) * held)

    def run(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Search,
        materials: Materials,  # noqa: ARG002 - looks at nothing
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[Picture, ...]:
        """Find one picture a target, in their order.

        What is kept of a search is what the network said of every picture: the same pictures are drawn
        again from the seed, and need no network.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``.
            SilentFeature: No picture moved the unit.
            NonFiniteActivation: A picture drives it to NaN or infinity.
            JobCancelled: ``cancelled`` said so; asked before every pass.
        """
        sites = _checked(model, targets)
        stop = Stop(cancelled, len(targets) * recipe.generations)
        values = [float("nan")] * len(targets)
        found = []
        keys = [content_key(target, recipe) for target in targets]
        kept = Resumption(checkpoint, keys, model.digest, model.device.type, time.monotonic)
        for number, target in enumerate(targets):
            hunt = _Hunt(model, target, sites[target.feature.layer.layer], recipe, stop)
            reached = kept.state(number)
            if reached is not None:
                hunt.restore(reached)
            values[number] = hunt.last

            def tell(number: int = number, hunt: "_Hunt" = hunt) -> None:
                shown = as_picture(hunt.picture())
                on_progress(Progress(stop.step, stop.steps, tuple(values), shown, (number,)))

            tell()
            for generation in range(hunt.taken + 1, recipe.generations + 1):
                with kept.saving(number, hunt.state):
                    values[number] = hunt.step()
                kept.note(number, hunt.state)
                if generation % _REPORT_STEPS == 0 or generation == recipe.generations:
                    tell()
            kept.finished(number, hunt.state())
            found.append(hunt.finish())
        return tuple(found)


def _checked(model: VisionModel, targets: Sequence[Target]) -> dict[str, Site]:
    found = sites_of(model, targets)
    refuse_terms(targets, "a search")
    return found


class _Distribution(Protocol):
    """What is used of the library."""

    @property
    def mean(self) -> NDArray[np.float64]: ...

    def ask(self) -> NDArray[np.float64]: ...

    def tell(self, solutions: list[tuple[NDArray[np.float64], float]]) -> None: ...


class _Hunt:
    """The search for one picture."""

    def __init__(
        self, model: VisionModel, target: Target, site: Site, recipe: Search, stop: Stop
    ) -> None:
        self._model, self._target, self._site, self._recipe = model, target, site, recipe
        self._stop = stop
        self._sign = -1.0 if target.side is Side.NEGATIVE else 1.0
        self._units = Units.of([_upwards(target)], site, model.device)
        self._views = Maximisation(
            canvas=recipe.canvas,
            zoom_min=recipe.zoom_min,
            zoom_max=recipe.zoom_max,
            rotation_degrees=recipe.rotation_degrees,
            noise=recipe.noise,
        )
        self._crops = generator_for(target, recipe.seed, "search views")
        self._waves = _Waves(recipe, model.device)
        stream = generator_for(target, recipe.seed, "search")
        self._start = torch.randn(self._waves.size, generator=stream).numpy() * 0.01
        word = int(torch.randint(_WORD, (1,), generator=stream))
        self._search = _distribution(self._start, recipe, word)
        self._history: list[float] = []
        self._drives: list[list[float]] = []
        self._stirred = False
        self.first = self._whole(self._start)

    @property
    def taken(self) -> int:
        """Generations that were tried."""
        return len(self._history)

    @property
    def last(self) -> float:
        """Activation of the newest generation's best picture; before the first, of the start."""
        return self._history[-1] if self._history else self.first

    def state(self) -> State:
        """Return what the network said: of every picture of each generation, and of the best."""
        drives = np.array(self._drives, np.float64).reshape(-1, self._recipe.population)
        return {"drives": drives, "history": np.array(self._history, np.float64)}

    def restore(self, state: State) -> None:
        """Draw the generations again that the network has seen, and hand on what it said."""
        drives, history = state["drives"].tolist(), state["history"].tolist()
        for drive, best in zip(drives, history, strict=True):
            tried, _ = self._draw()
            self._learn(tried, drive, best)
        self._stop.skip(len(history))

    def picture(self) -> torch.Tensor:
        """The picture at the centre of the distribution, shape ``(3, canvas, canvas)``."""
        centre: torch.Tensor = self._waves.render(self._search.mean[None])[0]
        return centre

    def step(self) -> float:
        """Try one generation; return the activation of its best picture, in the view of its crop."""
        tried, crop = self._draw()
        drive, values = [], []
        for first in range(0, len(tried), together(self._model)):
            self._stop.check()
            few = self._waves.render(tried[first : first + together(self._model)])
            with torch.no_grad():
                maps = self._model.maps(self._path, cut_crops(few, [crop] * len(few)))
            units = self._units.repeated(len(few))
            drive += (self._sign * units.objective(maps)).tolist()
            values += units.values(maps).tolist()
        self._refuse(drive)
        self._stop.next()
        self._learn(tried, drive, values[int(np.argmax(drive))])
        return self._history[-1]

    def _draw(self) -> tuple[NDArray[np.float64], Crop]:
        tried = np.stack([self._search.ask() for _ in range(self._recipe.population)])
        return tried, draw_crop(self._views, self._model.input_size, self._crops)

    def _learn(self, tried: NDArray[np.float64], drive: list[float], best: float) -> None:
        self._search.tell([(one, -score) for one, score in zip(tried, drive, strict=True)])
        self._stirred |= bool(np.ptp(drive) > 0)
        self._drives.append(drive)
        self._history.append(best)

    def finish(self) -> Picture:
        """Measure the picture as people will see it: at 8 bits."""
        image = as_picture(self.picture())
        measured = measure(
            self._model, self._target, self._site, image, self._recipe.seed, self._stop
        )
        if not self._sign * measured.whole > self._sign * self.first:
            raise SilentFeature(
                f"{self._target.feature}: {self._recipe.generations} generations ended at "
                f"{measured.whole:.4g}, no further than the start at {self.first:.4g}: raise "
                "recipe.generations or recipe.population, or the unit is silent on coarse pictures"
            )
        return Picture(
            target=self._target,
            recipe=self._recipe,
            model_digest=self._model.digest,
            inputs={},
            image=image,
            activation=measured.whole,
            activation_augmented=measured.crops,
            activation_augmented_spread=measured.spread,
            first_activation=self.first,
            history=tuple(self._history),
            findings={
                "coefficients": self._waves.size,
                "pictures_tried": self._recipe.generations * self._recipe.population,
            },
        )

    @property
    def _path(self) -> str:
        return self._target.feature.layer.layer

    def _whole(self, coefficients: NDArray[np.float64]) -> float:
        with torch.no_grad():
            canvas = self._waves.render(coefficients[None])
            maps = self._model.maps(self._path, resize_whole(canvas, self._model.input_size))
        return float(self._units.values(maps)[0])

    def _refuse(self, drive: list[float]) -> None:
        generation = len(self._history) + 1
        if not np.isfinite([*drive, self.first]).all():
            raise NonFiniteActivation(
                f"{self._target.feature}: an activation became NaN or infinite in generation {generation}: "
                "mend the model"
            )
        stirred = self._stirred or bool(np.ptp(drive) > 0)
        watched = min(_SILENT_GENERATIONS, self._recipe.generations)
        if generation == watched and not stirred:
            raise SilentFeature(
                f"{self._target.feature}: no picture of {watched} generations moved it, so a picture would "
                "be noise; the unit may be dead, or silent on coarse pictures"
            )


def _upwards(target: Target) -> Target:
    """Return the target without its side, which the search sees to itself."""
    return Target(target.feature, target.position)


class _Waves:
    """Low frequencies of a picture as a plain vector."""

    def __init__(self, recipe: Search, device: torch.device) -> None:
        self._canvas, highest = recipe.canvas, recipe.frequencies
        self._scale = frequency_scale(recipe.canvas, recipe.decay).to(device)
        self._axes = colour_axes(decorrelated=True).to(device)
        self._rows = torch.tensor([*range(highest + 1), *range(-highest, 0)]) % recipe.canvas
        self._columns = torch.arange(highest + 1)
        self.shape = (3, len(self._rows), len(self._columns), 2)

    @property
    def size(self) -> int:
        """How many numbers a picture has."""
        return int(np.prod(self.shape))

    def render(self, coefficients: NDArray[np.float64]) -> torch.Tensor:
        """Return pictures of vectors of shape ``(n, size)``, shape ``(n, 3, canvas, canvas)``."""
        count, canvas = len(coefficients), self._canvas
        given = torch.from_numpy(coefficients).float().view(count, *self.shape)
        spectra = torch.zeros(count, 3, canvas, canvas // 2 + 1, 2)
        spectra[:, :, self._rows[:, None], self._columns[None, :]] = given
        return render(spectra.to(self._scale.device), self._scale, self._axes)


def _distribution(start: NDArray[np.float64], recipe: Search, word: int) -> "_Distribution":
    try:
        from cmaes import SepCMA  # noqa: PLC0415 - only this method needs it
    except ImportError as error:
        raise UnsupportedTarget(
            "method search needs cmaes: pip install 'feature-sidecar[worker]'"
        ) from error
    found: _Distribution = SepCMA(
        start.astype(np.float64), recipe.sigma, seed=word, population_size=recipe.population
    )
    return found
