"""Activation maximisation of image models: pictures of what channels, neurons and logits look for.

All targets of one layer are optimised in one batch, each with its own random numbers, so a batch
costs little more than its largest member and no picture depends on its company.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import JobCancelled, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Accentuation, Maximisation, Target, content_key
from sidecar.visualise.ascent import (
    COARSE_RATIO,
    MEASURING_CROPS,
    Ascent,
    Ground,
    coarse_steps,
    few_threads,
    pass_images,
    sheets_together,
)
from sidecar.visualise.augmentation import square
from sidecar.visualise.directions import vectors_of
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.pictures import Cost, Picture, Progress, TypicalRange, with_cost
from sidecar.visualise.priors import TypicalRangePrior
from sidecar.visualise.resuming import Resumption
from sidecar.visualise.units import Dry, check_target, dry_run

_NOTHING = Materials()

_REPORT_STEPS = 16
_REPORT_SECONDS = 2.0
"""A report is due after either; people watch, and each one costs a picture."""

_SCRATCH_RATIO = 1.25
"""Peak memory of a pass against what autograd keeps; 1.06 measured on EfficientNet-Lite0."""

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""


def plan(
    model: ImageModel,
    targets: Sequence[Target],
    recipe: Maximisation,
    *,
    materials: Materials = _NOTHING,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Check a request and say what it will take, for the price of two forward passes of one image.

    Args:
        model: From ``load_model``.
        targets: What pictures are wanted of.
        recipe: How they are to be made.
        materials: What the recipe and the targets look at.
        clock: Seconds from any start.

    Raises:
        UnknownLayer: The model has no such layer, or never runs it.
        UnknownFeature: A layer has no unit of that index.
        UnsupportedTarget: No targets; a layer's output is no map or vector of units; a position or
            view does not exist there; the model rejects images of its configured size; something
            that the recipe or a target looks at was not handed over.
        ShapeMismatch: A typical range or a dictionary of directions has another width than its layer.
    """
    dry, grounds = _prepared(model, targets, recipe, materials)
    with few_threads(model):
        return _cost(model, targets, recipe, dry, grounds, clock)


def _cost(
    model: ImageModel,
    targets: Sequence[Target],
    recipe: Maximisation,
    dry: Dry,
    grounds: Mapping[LayerKey, Ground],
    clock: Callable[[], float],
) -> Cost:
    # The first pass pays for memory and kernels, so it is the second that is timed.
    started = clock()
    dry_run(model, list(dry.sites))
    seconds = clock() - started
    pictures = len(targets) * recipe.tiles
    views = pictures * recipe.steps * recipe.crops
    coarse = sum(grounds[target.feature.layer].coarse_steps for target in targets)
    price = 1 - (1 - COARSE_RATIO**2) * coarse / (len(targets) * recipe.steps)
    anchors = views * _anchor_passes(recipe, targets)
    looks = pictures * (MEASURING_CROPS + 2)  # the whole picture is looked at first and last
    together = min(max(pass_images(model), recipe.facets), pictures * recipe.crops)
    # A spectrum, its picture, their gradients and Adam's two moments: eight times the canvas.
    canvases = (
        min(sheets_together(model, recipe) * recipe.tiles, pictures) * 8 * 4 * 3 * recipe.canvas**2
    )
    return Cost(
        forwards=int(views + anchors + looks),
        seconds_estimate=seconds * (price * (_BACKWARD_RATIO * views + 2 * anchors) + looks),
        bytes_estimate=int(_SCRATCH_RATIO * together * dry.saved_bytes) + canvases,
    )


def maximise(
    model: ImageModel,
    targets: Sequence[Target],
    recipe: Maximisation,
    *,
    materials: Materials = _NOTHING,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    checkpoint: Checkpoint | None = None,
) -> tuple[Picture, ...]:
    """Make one picture, or one sheet of them, a target.

    The same model, targets and recipe give the same pictures bit for bit on one machine and, unless
    the model is small enough for ``few_threads``, number of threads; a target's random numbers do not
    depend on the other targets.

    Args:
        model: From ``load_model``; unchanged afterwards, no hook is left behind.
        targets: What the pictures are of; those of one layer share a batch.
        recipe: How they are made.
        materials: What the recipe and the targets look at: typical ranges, the image to begin with,
            directions.
        on_progress: Called at the start and end of a batch and every 16 steps or 2 seconds between.
        cancelled: Asked before every step.
        clock: Seconds from any start.
        checkpoint: Where what was reached is kept, every ten seconds and when cancelled, and from
            where an earlier attempt at the same goes on; the pictures are the same bit for bit.

    Returns:
        Pictures in the order of ``targets``. Their findings say what it took beside what was
        predicted; for the whole request, since its passes are shared.

    Raises:
        UnknownLayer, UnknownFeature, UnsupportedTarget, ShapeMismatch: As ``plan``, before any step.
        JobCancelled: ``cancelled`` said so.
        SilentFeature: No gradient reached a picture in the first steps, or its activation never
            changed; the message names the units.
        NonFiniteActivation: An activation or gradient became NaN or infinite.

    Complexity:
        ``steps * crops`` forward and backward passes up to the layer a picture; memory bounded by
        one image, or one sheet, a pass on a CPU (64 images on CUDA), whatever the number of targets and crops.

    Source:
        Olah, Mordvintsev and Schubert 2017, "Feature visualization".
    """
    dry, grounds = _prepared(model, targets, recipe, materials)
    with few_threads(model):
        cost = _cost(model, targets, recipe, dry, grounds, time.perf_counter)
        started, passes = time.perf_counter(), 0
        limit = sheets_together(model, recipe)
        report = _Report(on_progress, clock, recipe.steps, targets, limit)
        inputs = {layer: _inputs(layer, recipe, materials) for layer in grounds}
        keys = [content_key(target, recipe, inputs[target.feature.layer]) for target in targets]
        resumption = Resumption(checkpoint, keys, model.digest, model.device.type, clock)
        pictures: dict[int, Picture] = {}
        for number, members in enumerate(_batches(targets, limit)):
            layer = targets[members[0]].feature.layer
            batch = Ascent(model, [targets[member] for member in members], recipe, grounds[layer])
            reached = resumption.state(number)
            if reached is not None:
                batch.restore(reached)
            _optimise(batch, members, report, cancelled, partial(resumption.note, number))
            resumption.finished(number, batch.state())
            pictures |= zip(members, batch.finish(inputs[layer]), strict=True)
            passes += batch.passes
    seconds = time.perf_counter() - started
    return tuple(
        with_cost(pictures[number], cost, passes, seconds) for number in range(len(targets))
    )


class ActivationMaximisation:
    """The method of ``Maximisation`` recipes, see ``maximise``."""

    recipe: type[Maximisation] = Maximisation
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Maximisation,
        materials: Materials,
    ) -> Cost:
        """Check a request and say what it will take, see ``plan``."""
        return plan(model, targets, recipe, materials=materials)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Maximisation,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[Picture, ...]:
        """Make one picture a target, see ``maximise``."""
        return maximise(
            model,
            targets,
            recipe,
            materials=materials,
            on_progress=on_progress,
            cancelled=cancelled,
            checkpoint=checkpoint,
        )


class FeatureAccentuation(ActivationMaximisation):
    """The method of ``Accentuation`` recipes: as activation maximisation, begun with an image.

    Source:
        Hamblin et al. 2024, "Feature accentuation: revealing 'what' features respond to in natural
        images".
    """

    recipe: type[Maximisation] = Accentuation


def _prepared(
    model: ImageModel, targets: Sequence[Target], recipe: Maximisation, materials: Materials
) -> tuple[Dry, dict[LayerKey, Ground]]:
    """Check a request; return what its layers are like, and what the pictures of each stand on."""
    if not targets:
        raise UnsupportedTarget("no targets: name at least one unit to make a picture of")
    layers = dict.fromkeys(target.feature.layer for target in targets)
    also = [recipe.layer] if isinstance(recipe, Accentuation) and recipe.layer else []
    dry = dry_run(model, list(dict.fromkeys([*(layer.layer for layer in layers), *also])))
    for target in targets:
        known = materials.directions.get(target.feature.layer.layer)
        check_target(
            target, dry.sites[target.feature.layer.layer], len(known.vectors) if known else None
        )
        _check_terms(target, recipe)
    priors = _priors(model, targets, recipe, materials.typical, dry)
    start = None
    if isinstance(recipe, Accentuation):
        start = square(materials.image(recipe.start), recipe.canvas).to(model.device)
    return dry, {
        layer: Ground(
            site=dry.sites[layer.layer],
            vectors=vectors_of(layer, dry.sites[layer.layer], materials),
            typical=priors.get(layer),
            start=start,
            coarse_steps=coarse_steps(model, layer, recipe),
        )
        for layer in layers
    }


def _check_terms(target: Target, recipe: Maximisation) -> None:
    if recipe.stops > 1 and len(target.terms) != 1:
        raise UnsupportedTarget(
            f"recipe.stops {recipe.stops} goes from {target.feature} to one other unit, and the target "
            f"has {len(target.terms)} terms: name one"
        )
    if recipe.objective == "cosine" and target.feature.layer.kind is not FeatureKind.DIRECTION:
        raise UnsupportedTarget(
            f"recipe.objective cosine is for directions, and {target.feature} is a "
            f"{target.feature.layer.kind}: use dot"
        )


def _inputs(layer: LayerKey, recipe: Maximisation, materials: Materials) -> dict[str, str]:
    """Return the digests of what else the pictures of a layer depend on."""
    found = {}
    if "typical" in recipe.inputs and materials.typical is not None:
        found["typical"] = materials.typical.digest(layer)
    if layer.kind is FeatureKind.DIRECTION:
        found["directions"] = materials.directions[layer.layer].digest
    return found


def _anchor_passes(recipe: Maximisation, targets: Sequence[Target]) -> float:
    """Return the passes a view costs beside its own: of the image, and to another layer."""
    if not isinstance(recipe, Accentuation) or not recipe.closeness:
        return 0
    elsewhere = sum(recipe.layer not in {"", t.feature.layer.layer} for t in targets)
    return 1 + elsewhere / len(targets)


def _priors(
    model: ImageModel,
    targets: Sequence[Target],
    recipe: Maximisation,
    typical: TypicalRange | None,
    dry: Dry,
) -> dict[LayerKey, TypicalRangePrior]:
    if recipe.typical_range == 0:
        return {}
    layers = dict.fromkeys(target.feature.layer for target in targets)
    for layer in layers:
        if typical is None or str(layer) not in typical.low:
            raise UnsupportedTarget(
                f"recipe.typical_range {recipe.typical_range} needs the live range of {layer}: wait "
                "for its baseline, or set typical_range to 0"
            )
    assert typical is not None  # noqa: S101 - there is a target, so the loop has seen to it
    return {
        layer: TypicalRangePrior(typical, layer, dry.sites[layer.layer], model.device)
        for layer in layers
    }


def _batches(targets: Sequence[Target], limit: int) -> Iterator[list[int]]:
    """Yield indices of targets that share a layer, at most ``limit`` at a time."""
    layers: dict[LayerKey, list[int]] = {}
    for number, target in enumerate(targets):
        layers.setdefault(target.feature.layer, []).append(number)
    for members in layers.values():
        for first in range(0, len(members), limit):
            yield members[first : first + limit]


def _optimise(
    batch: "Ascent",
    members: list[int],
    report: "_Report",
    cancelled: Callable[[], bool],
    note: Callable[..., None],
) -> None:
    report.begin(members, batch.activations, batch.images(), batch.taken)
    while not batch.done:
        if cancelled():
            note(batch.state, now=True)
            raise JobCancelled(f"cancelled at step {report.step} of {report.steps}")
        values = batch.step()
        report.stepped(members, values, batch.images, ended=batch.done)
        note(batch.state)


class _Report:
    """Tells the caller how far the whole request is, and not too often."""

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        clock: Callable[[], float],
        batch_steps: int,
        targets: Sequence[Target],
        limit: int,
    ) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self._batch_steps = batch_steps
        self._activations = [float("nan")] * len(targets)
        self._told_step = 0
        self._told_at = clock()
        self.step = 0
        self.steps = batch_steps * sum(1 for _ in _batches(targets, limit))

    def begin(
        self, members: list[int], values: list[float], images: NDArray[np.uint8], taken: int
    ) -> None:
        """Show the random start of a batch, or what an earlier attempt had reached of it."""
        self.step += taken
        self._note(members, values)
        self._tell(members, images)

    def stepped(
        self,
        members: list[int],
        values: list[float],
        images: Callable[[], NDArray[np.uint8]],
        *,
        ended: bool,
    ) -> None:
        """Count a step, or all that are left of a batch, and show the pictures where it is due."""
        self.step += 1
        if ended:
            self.step = -(-self.step // self._batch_steps) * self._batch_steps
        self._note(members, values)
        late = self._clock() - self._told_at >= _REPORT_SECONDS
        many = self.step - self._told_step >= _REPORT_STEPS
        if late or many or ended:
            self._tell(members, images())

    def _note(self, members: list[int], values: list[float]) -> None:
        for member, value in zip(members, values, strict=True):
            self._activations[member] = value

    def _tell(self, members: list[int], images: NDArray[np.uint8]) -> None:
        strip = np.concatenate(list(images), axis=1)  # (canvas, n * canvas, 3)
        activations = tuple(self._activations)
        self._on_progress(Progress(self.step, self.steps, activations, strip, tuple(members)))
        self._told_step, self._told_at = self.step, self._clock()
