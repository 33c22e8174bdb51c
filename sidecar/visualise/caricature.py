"""Caricature: what a layer keeps of an image, exaggerated.

The picture is moved until the layer answers to it in the same direction as to the image, only stronger.
What the layer does not tell apart is free to change, and what it looks for is drawn larger.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from sidecar.errors import NonFiniteActivation, SilentFeature
from sidecar.recipes import Caricature, Maximisation, Target, content_key
from sidecar.visualise.adam import Adam
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.augmentation import cut_crops, draw_crop, generator_for, resize_whole
from sidecar.visualise.contact_sheet import Tile, draw_sheet
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.parametrisation import colour_axes, frequency_scale, random_spectrum, render
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.resuming import Resumption, State
from sidecar.visualise.subject import Subject, check_subject, find_subject
from sidecar.visualise.units import Dry, Site, check_targets, dry_run
from sidecar.visualise.views import (
    MEASURING_VIEWS,
    Stop,
    as_colours,
    as_picture,
    measure,
    refuse_terms,
)

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""

_REPORT_STEPS = 16
"""Steps between two reports; each costs a picture."""

_COSINE_LEAST = 0.1
"""Below this the angle counts as this much: at the start, when it is nearly right, its power would
leave no gradient. As in Lucid."""


class ImageCaricature:
    """The method of ``Caricature`` recipes.

    The unit of a target names the layer, and the numbers beside the picture are that unit's.

    Source:
        Cammarata et al. 2020, "Thread: Circuits", on caricatures; Lucid, ``caricature``.
    """

    recipe = Caricature
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Caricature,
        materials: Materials,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take, for the price of two forward passes.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The model has no such thing; a target weighs
                several units; or the image was not handed over.
        """
        dry = _checked(model, targets)
        searched = check_subject(recipe, materials)
        started = clock()
        dry_run(model, list(dry.sites))
        seconds = clock() - started
        looks = len(targets) * (recipe.steps + searched + 2 * MEASURING_VIEWS + 4)
        moves = len(targets) * recipe.steps
        canvases = 8 * 4 * 3 * recipe.canvas**2
        held = max(2, pass_images(model) if searched else 2) * dry.saved_bytes + canvases
        return Cost(looks + moves, seconds * (looks + _BACKWARD_RATIO * moves), held)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Caricature,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[Picture, ...]:
        """Make one sheet a target, in their order: the image, and its caricature.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``; or a file of the dataset cannot
                be read, or changed.
            SilentFeature: The layer does not answer to the image, or no gradient comes from it.
            NonFiniteActivation: The layer is NaN or infinite on some picture.
            JobCancelled: ``cancelled`` said so; asked before every step.
        """
        dry = _checked(model, targets)
        check_subject(recipe, materials)
        stop = Stop(cancelled, len(targets) * recipe.steps)
        known = [float("nan")] * len(targets)
        found = []
        given = {f"dataset:{name}": materials.dataset(name).digest for name in recipe.datasets}
        keys = [content_key(target, recipe, given) for target in targets]
        kept = Resumption(checkpoint, keys, model.digest, model.device.type, time.monotonic)
        for number, target in enumerate(targets):
            site = dry.sites[target.feature.layer.layer]
            subject = find_subject(model, target, site, recipe, materials, stop)
            work = _Drawing(model, target, site, recipe, subject, stop)
            begun = kept.state(number)
            if begun is not None:
                work.restore(begun)
            for step in range(work.taken, recipe.steps + 1):
                if step > work.taken:
                    with kept.saving(number, work.state):
                        work.step()
                    kept.note(number, work.state)
                if step % _REPORT_STEPS == 0 or step == recipe.steps:
                    shown = as_picture(work.canvas().detach()[0])
                    on_progress(Progress(stop.step, stop.steps, tuple(known), shown, (number,)))
            kept.finished(number, work.state())
            picture = work.finish()
            known[number] = picture.activation
            found.append(picture)
        return tuple(found)


def _checked(model: ImageModel, targets: Sequence[Target]) -> Dry:
    dry = check_targets(model, targets)
    refuse_terms(targets, "a caricature")
    return dry


class _Drawing:
    """One caricature while it is drawn."""

    def __init__(
        self,
        model: ImageModel,
        target: Target,
        site: Site,
        recipe: Caricature,
        subject: Subject,
        stop: Stop,
    ) -> None:
        self._model, self._target, self._site, self._recipe = model, target, site, recipe
        self._subject, self._stop = subject, stop
        self._views = Maximisation(
            canvas=recipe.canvas,
            zoom_min=recipe.zoom_min,
            zoom_max=recipe.zoom_max,
            rotation_degrees=recipe.rotation_degrees,
            noise=recipe.noise,
        )
        self._crops = generator_for(target, recipe.seed, "caricature")
        self._image = resize_whole(as_colours(subject.image, model), recipe.canvas)
        self._scale = frequency_scale(recipe.canvas, recipe.decay).to(model.device)
        self._axes = colour_axes(decorrelated=True).to(model.device)
        start = random_spectrum(recipe.canvas, generator_for(target, recipe.seed, "start"))
        self._spectrum = start[None].to(model.device).requires_grad_()
        self._adam = Adam(self._spectrum, recipe.learning_rate)
        self._history: list[float] = []
        self._wanted = self._maps(self._image)
        if not self._wanted.isfinite().all():
            raise NonFiniteActivation(
                f"{self._path} is NaN or infinite on the image: mend the model"
            )
        if not self._wanted.any():
            raise SilentFeature(
                f"{self._path} is 0 on the image everywhere: use another image or layer"
            )
        self._first = self._cosine(self.canvas())

    @property
    def taken(self) -> int:
        """Steps that were taken."""
        return len(self._history)

    def state(self) -> State:
        """Return what the steps to come depend on; the crops so far are drawn again from the seed."""
        history = np.array(self._history, np.float64)
        return {
            "values": self._spectrum.detach().cpu().numpy(),
            "history": history,
            **self._adam.state(),
        }

    def restore(self, state: State) -> None:
        """Go on from what ``state`` returned for the same target."""
        with torch.no_grad():
            self._spectrum.copy_(torch.from_numpy(state["values"]))
        self._adam.restore(state)
        self._history = state["history"].tolist()
        for _ in self._history:
            draw_crop(self._views, self._model.input_size, self._crops)
        self._stop.skip(self.taken)

    def canvas(self) -> torch.Tensor:
        """The picture as it is, shape ``(1, 3, canvas, canvas)``."""
        return render(self._spectrum, self._scale, self._axes)

    def step(self) -> None:
        """Show image and picture in the same crop, and move the picture."""
        self._stop.next()
        crop = draw_crop(self._views, self._model.input_size, self._crops)
        with torch.no_grad():
            wanted = self._model.maps(self._path, cut_crops(self._image, [crop])).flatten()
        given = self._model.maps(self._path, cut_crops(self.canvas(), [crop])).flatten()
        cosine = functional.cosine_similarity(given, wanted, dim=0)
        length = torch.linalg.vector_norm(wanted)
        along = (given * wanted).sum() / length.clamp(min=torch.finfo(length.dtype).tiny)
        gained = along * cosine.clamp(min=_COSINE_LEAST) ** self._recipe.cosine_power
        (gradient,) = torch.autograd.grad(-gained, self._spectrum)
        if not (gradient.isfinite().all() and cosine.isfinite()):
            raise NonFiniteActivation(
                f"{self._path}: activation or gradient became NaN or infinite at step "
                f"{len(self._history) + 1}: lower recipe.learning_rate, or mend the model"
            )
        if not self._history and not gradient.any():
            raise SilentFeature(
                f"{self._path}: no gradient comes from it: use another layer or seed"
            )
        self._adam.step(gradient)
        self._history.append(float(cosine.detach()))

    def finish(self) -> Picture:
        """Measure the picture as people will see it: at 8 bits."""
        image = as_picture(self.canvas().detach()[0])
        here, there = (
            measure(self._model, self._target, self._site, one, self._recipe.seed, self._stop)
            for one in (image, self._subject.image)
        )
        seen = as_colours(image, self._model)
        maps = self._maps(seen)
        ratio = float(torch.linalg.vector_norm(maps) / torch.linalg.vector_norm(self._wanted))
        cosine = self._cosine(seen)
        tiles = (
            Tile(self._subject.image, (f"{there.whole:.4g}", self._subject.file or "stored image")),
            Tile(image, (f"{here.whole:.4g}", f"cosine {cosine:.2f}, {ratio:.1f} times as long")),
        )
        return Picture(
            target=self._target,
            recipe=self._recipe,
            model_digest=self._model.digest,
            inputs=self._subject.inputs,
            image=draw_sheet([tiles], self._recipe.canvas),
            activation=here.whole,
            activation_augmented=here.crops,
            activation_augmented_spread=here.spread,
            first_activation=there.whole,
            history=tuple(self._history),
            findings={
                "image": self._subject.found | {"activation": there.whole},
                "cosine": cosine,
                "cosine_of_start": self._first,
                "length_ratio": ratio,
            },
        )

    @property
    def _path(self) -> str:
        return self._target.feature.layer.layer

    def _maps(self, canvas: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._model.maps(self._path, resize_whole(canvas, self._model.input_size))

    def _cosine(self, canvas: torch.Tensor) -> float:
        pair = (self._maps(canvas).flatten(), self._wanted.flatten())
        found = float(functional.cosine_similarity(*pair, dim=0))
        return found if np.isfinite(found) else 0.0
