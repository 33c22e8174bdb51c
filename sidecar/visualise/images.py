"""Activation maximisation of image models: pictures of what channels, neurons and logits look for.

All targets of one layer are optimised in one batch, each with its own random numbers, so a batch
costs little more than its largest member and no picture depends on its company.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import JobCancelled, UnsupportedTarget
from sidecar.features import LayerKey
from sidecar.recipes import Maximisation, Target
from sidecar.visualise.ascent import MEASURING_CROPS, Ascent, pass_images
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.pictures import Cost, Picture, Progress, TypicalRange
from sidecar.visualise.priors import TypicalRangePrior
from sidecar.visualise.units import Dry, check_targets, dry_run

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
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Check a request and say what it will take, for the price of two forward passes of one image.

    Args:
        model: From ``load_model``.
        targets: What pictures are wanted of.
        recipe: How they are to be made.
        clock: Seconds from any start.

    Raises:
        UnknownLayer: The model has no such layer, or never runs it.
        UnknownFeature: A layer has no unit of that index.
        UnsupportedTarget: No targets; a layer's output is no map or vector of units; a position or
            view does not exist there; the model rejects images of its configured size.
    """
    dry = check_targets(model, targets)
    # The first pass pays for memory and kernels, so it is the second that is timed.
    started = clock()
    dry_run(model, list(dry.sites))
    seconds = clock() - started
    steps = len(targets) * recipe.steps * recipe.crops
    looks = len(targets) * (MEASURING_CROPS + 2)  # the whole picture is looked at first and last
    together = min(pass_images(model), len(targets) * recipe.crops)
    # A spectrum, its picture, their gradients and Adam's two moments: eight times the canvas.
    canvases = min(pass_images(model), len(targets)) * 8 * 4 * 3 * recipe.canvas**2
    return Cost(
        forwards=steps + looks,
        seconds_estimate=seconds * (_BACKWARD_RATIO * steps + looks),
        bytes_estimate=int(_SCRATCH_RATIO * together * dry.saved_bytes) + canvases,
    )


def maximise(
    model: ImageModel,
    targets: Sequence[Target],
    recipe: Maximisation,
    *,
    typical: TypicalRange | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Picture, ...]:
    """Make one picture a target.

    The same model, targets and recipe give the same pictures bit for bit on one machine and number
    of threads; a target's random numbers do not depend on the other targets.

    Args:
        model: From ``load_model``; unchanged afterwards, no hook is left behind.
        targets: What the pictures are of; those of one layer share a batch.
        recipe: How they are made.
        typical: Ranges for the typical-range prior; needed where ``recipe.typical_range`` is not 0.
        on_progress: Called at the start and end of a batch and every 16 steps or 2 seconds between.
        cancelled: Asked before every step.
        clock: Seconds from any start.

    Returns:
        Pictures in the order of ``targets``.

    Raises:
        UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``, before any step; the last also
            when the recipe needs a typical range that is not given.
        ShapeMismatch: A typical range has another width than its layer.
        JobCancelled: ``cancelled`` said so.
        SilentFeature: No gradient reached a picture in the first steps, or its activation never
            changed; the message names the units.
        NonFiniteActivation: An activation or gradient became NaN or infinite.

    Complexity:
        ``steps * crops`` forward and backward passes up to the layer a target; memory bounded by
        8 images a pass on a CPU (64 on CUDA), whatever the number of targets and crops.

    Source:
        Olah, Mordvintsev and Schubert 2017, "Feature visualization".
    """
    dry = check_targets(model, targets)
    priors = _priors(model, targets, recipe, typical, dry)
    report = _Report(on_progress, clock, recipe.steps, targets, pass_images(model))
    pictures: dict[int, Picture] = {}
    for members in _batches(targets, pass_images(model)):
        layer = targets[members[0]].feature.layer
        wanted = [targets[member] for member in members]
        batch = Ascent(model, wanted, recipe, dry.sites[layer.layer], priors.get(layer))
        _optimise(batch, members, report, cancelled)
        inputs = {"typical": typical.digest(layer)} if typical and layer in priors else {}
        pictures |= zip(members, batch.finish(inputs), strict=True)
    return tuple(pictures[number] for number in range(len(targets)))


class ActivationMaximisation:
    """The method of ``Maximisation`` recipes, see ``maximise``."""

    recipe = Maximisation
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Maximisation,
        materials: Materials,  # noqa: ARG002 - what it has is looked at when it is used
    ) -> Cost:
        """Check a request and say what it will take, see ``plan``."""
        return plan(model, targets, recipe)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Maximisation,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,  # noqa: ARG002 - the interface of methods
    ) -> tuple[Picture, ...]:
        """Make one picture a target, see ``maximise``."""
        return maximise(
            model,
            targets,
            recipe,
            typical=materials.typical,
            on_progress=on_progress,
            cancelled=cancelled,
        )


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
    batch: "Ascent", members: list[int], report: "_Report", cancelled: Callable[[], bool]
) -> None:
    report.begin(members, batch.first, batch.images())
    for _ in range(batch.recipe.steps):
        if cancelled():
            raise JobCancelled(f"cancelled at step {report.step} of {report.steps}")
        report.stepped(members, batch.step(), batch.images)


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

    def begin(self, members: list[int], values: list[float], images: NDArray[np.uint8]) -> None:
        """Show the random start of a batch."""
        self._note(members, values)
        self._tell(members, images)

    def stepped(
        self, members: list[int], values: list[float], images: Callable[[], NDArray[np.uint8]]
    ) -> None:
        """Count a step, and show the pictures where a report is due or the batch is done."""
        self.step += 1
        self._note(members, values)
        late = self._clock() - self._told_at >= _REPORT_SECONDS
        many = self.step - self._told_step >= _REPORT_STEPS
        if late or many or self.step % self._batch_steps == 0:
            self._tell(members, images())

    def _note(self, members: list[int], values: list[float]) -> None:
        for member, value in zip(members, values, strict=True):
            self._activations[member] = value

    def _tell(self, members: list[int], images: NDArray[np.uint8]) -> None:
        strip = np.concatenate(list(images), axis=1)  # (canvas, n * canvas, 3)
        activations = tuple(self._activations)
        self._on_progress(Progress(self.step, self.steps, activations, strip, tuple(members)))
        self._told_step, self._told_at = self.step, self._clock()
