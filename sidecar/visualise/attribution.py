"""Attribution: which pixels of an image make a unit active, and how far the maps can be believed.

The maps are Captum's. What stands beside them is measured here: whether integrated gradients add up,
whether taking the marked pixels away silences the unit sooner than taking any, and whether a network of
shuffled weights would have given the same map.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from sidecar.errors import NonFiniteActivation, UnsupportedTarget
from sidecar.recipes import Attribution, Side, Target
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.contact_sheet import Tile, draw_sheet
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.subject import Subject, check_subject, find_subject
from sidecar.visualise.units import Dry, Site, Units, check_targets, dry_run
from sidecar.visualise.views import (
    MEASURING_VIEWS,
    Measured,
    Stop,
    as_colours,
    as_picture,
    measure,
    refuse_terms,
)

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""

_BLUR = 1 / 12
"""Standard deviation of the blurred baseline as a ratio of the side: nothing is recognised in it, and its
colours are the image's."""

_COMPLETE = 0.05
"""Largest share that integrated gradients may fail to explain, or explain too much."""

_BRIGHTEST = 0.99
"""Quantile of a map's sizes that is drawn in full colour; a single pixel must not dim all others."""

_SMOOTH = 1 / 112
"""Standard deviation of the blur with which a map is drawn, as a ratio of its side; numbers are taken
from the map as it is."""

_SHUFFLES_FROM = 2
"""Dimensions from which a parameter is a weight that is shuffled; scales and biases stay."""

_RED, _BLUE = (200, 20, 30), (30, 80, 200)


class PixelAttribution:
    """The method of ``Attribution`` recipes.

    Source:
        Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks"; Selvaraju et al. 2017,
        "Grad-CAM"; Zeiler and Fergus 2014, on occlusion; Petsiuk, Das and Saenko 2018, "RISE", on
        deletion and insertion; Adebayo et al. 2018, "Sanity checks for saliency maps".
    """

    recipe = Attribution
    gradients = True

    def plan(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Attribution,
        materials: Materials,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take, for the price of a few forward passes.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The model has no such thing; a target weighs
                several units; the image was not handed over; the window is larger than the input; or
                Grad-CAM's layer has no positions or lies above the unit.
        """
        dry = _checked(model, targets, recipe)
        searched = check_subject(recipe, materials)
        started = clock()
        dry_run(model, list(dry.sites))
        seconds = clock() - started
        forward, backward = _passes(model, recipe, dry, targets)
        looks = forward + len(targets) * searched
        held = int(pass_images(model) * dry.saved_bytes * 1.25)
        estimate = seconds * (looks + _BACKWARD_RATIO * backward)
        return Cost(looks + backward, estimate, held)

    def run(
        self,
        model: ImageModel,
        targets: Sequence[Target],
        recipe: Attribution,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,  # noqa: ARG002 - the passes are few
    ) -> tuple[Picture, ...]:
        """Make one sheet a target, in their order: the image, and a map for each technique.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``; or a file of the dataset cannot
                be read, or changed.
            NonFiniteActivation: An image drives a unit, or its gradient, to NaN or infinity.
            JobCancelled: ``cancelled`` said so; asked before every pass.
        """
        dry = _checked(model, targets, recipe)
        check_subject(recipe, materials)
        stop = Stop(cancelled, len(targets) * _stages(recipe))
        known = [math.nan] * len(targets)
        found = []
        for number, target in enumerate(targets):
            site = dry.sites[target.feature.layer.layer]
            subject = find_subject(model, target, site, recipe, materials, stop)
            measured = measure(model, target, site, subject.image, recipe.seed, stop)
            known[number] = measured.whole

            def tell(shown: NDArray[np.uint8], number: int = number) -> None:
                on_progress(Progress(stop.step, stop.steps, tuple(known), shown, (number,)))

            tell(subject.image)
            work = _Work(model, target, site, recipe, subject, stop)
            found.append(_picture(work, measured, dry, tell))
        return tuple(found)


def _checked(model: ImageModel, targets: Sequence[Target], recipe: Attribution) -> Dry:
    """Find the sites of the targets' layers, and of Grad-CAM's."""
    dry = check_targets(model, targets)
    refuse_terms(targets, "attribution")
    if recipe.window > model.input_size and "occlusion" in recipe.techniques:
        raise UnsupportedTarget(
            f"recipe.window {recipe.window} is larger than the model's input of {model.input_size} pixels"
        )
    for target in targets:
        own = target.feature.layer.layer
        path = recipe.layer or own
        if "grad_cam" not in recipe.techniques:
            continue
        pair = dry_run(model, list(dict.fromkeys((path, own))))
        if next(iter(pair.sites)) != path:
            raise UnsupportedTarget(
                f"recipe.layer {path} runs after {own}, so it cannot move its units: name a layer below"
            )
        if not _has_positions(pair.sites[path]) and (
            recipe.layer or recipe.technique == "grad_cam"
        ):
            raise UnsupportedTarget(
                f"recipe.layer {recipe.layer!r}: Grad-CAM looks at positions, and {path} has none: name a "
                "layer of maps below it"
            )
    return dry


def _has_positions(site: Site) -> bool:
    return site.rows * site.columns > 1


def _stages(recipe: Attribution) -> int:
    return len(recipe.techniques) * (2 if recipe.randomise == "yes" else 1)


def _passes(
    model: ImageModel, recipe: Attribution, dry: Dry, targets: Sequence[Target]
) -> tuple[int, int]:
    """Return images that go forward alone, and those that go backward too, without the dataset's."""
    covered = (math.ceil((model.input_size - recipe.window) / recipe.stride) + 1) ** 2 + 1
    forward = {"integrated_gradients": 4, "grad_cam": 0, "occlusion": covered}
    backward = {"integrated_gradients": recipe.steps, "grad_cam": 1, "occlusion": 0}
    looks = moves = 0
    for target in targets:
        names = [
            one for one in recipe.techniques if one != "grad_cam" or _cam_fits(recipe, dry, target)
        ]
        times = 2 if recipe.randomise == "yes" else 1
        moves += times * sum(backward[name] for name in names)
        looks += times * sum(forward[name] for name in names) + MEASURING_VIEWS + 1
        looks += 2 * (recipe.curve + 1) * (len(names) + 1)
    return looks, moves


def _cam_fits(recipe: Attribution, dry: Dry, target: Target) -> bool:
    return bool(recipe.layer) or _has_positions(dry.sites[target.feature.layer.layer])


class _Work:
    """One image and one unit, and what the network says of them."""

    def __init__(
        self,
        model: ImageModel,
        target: Target,
        site: Site,
        recipe: Attribution,
        subject: Subject,
        stop: Stop,
    ) -> None:
        self.model = model
        self.target = target
        self.recipe = recipe
        self.subject = subject
        self.stop = stop
        self.colours = as_colours(subject.image, model)
        self.baseline = _baseline(self.colours, recipe.baseline)
        self._units = Units.of([target], site, model.device)
        self.sign = -1.0 if target.side is Side.NEGATIVE else 1.0

    @property
    def layer(self) -> str:
        """Path of the layer that the unit is in."""
        return self.target.feature.layer.layer

    def on(self, model: ImageModel) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the unit of a model as a function of images; greater is further to the target's side."""

        def value(images: torch.Tensor) -> torch.Tensor:
            self.stop.check()
            maps = model.maps(self.layer, images)
            return self.sign * self._units.repeated(len(images)).values(maps)  # (n,)

        return value

    def values(self, images: torch.Tensor) -> NDArray[np.float64]:
        """Return the unit on many images, a few at a time, shape ``(n,)``."""
        with torch.no_grad():
            value, few = self.on(self.model), pass_images(self.model)
            parts = [value(images[i : i + few]) for i in range(0, len(images), few)]
        found: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
        return found


def _baseline(colours: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "blur":
        return _blurred(colours, _BLUR)
    return torch.full_like(colours, 0.5 if kind == "grey" else 0.0)


def _blurred(planes: torch.Tensor, ratio: float) -> torch.Tensor:
    """Blur planes of shape ``(1, n, side, side)`` with a Gaussian, reflected at the borders."""
    deviation = max(ratio * planes.shape[-1], 0.5)
    reach = min(math.ceil(3 * deviation), planes.shape[-1] - 1)
    places = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    weights = (weights / weights.sum()).repeat(planes.shape[1], 1)  # (n, 2 * reach + 1)
    padded = functional.pad(planes, (reach,) * 4, mode="reflect")
    down = functional.conv2d(padded, weights[:, None, :, None], groups=planes.shape[1])
    return functional.conv2d(down, weights[:, None, None, :], groups=planes.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Map:
    """What a technique says.

    Attributes:
        heat: How much each pixel moves the unit to the target's side, shape ``(side, side)``.
        facts: What the technique says of itself.
    """

    heat: NDArray[np.float32]
    facts: dict[str, Any]


def _attribute(work: _Work, model: ImageModel, technique: str) -> _Map:
    value = work.on(model)
    if technique == "integrated_gradients":
        found = _integrated(work, model, value)
    elif technique == "grad_cam":
        found = _grad_cam(work, model, value)
    else:
        found = _occluded(work, model, value)
    if not np.isfinite(found.heat).all():
        raise NonFiniteActivation(
            f"{work.target.feature}: {technique} gave NaN or infinity on this image: mend the model, or "
            "use another technique"
        )
    return found


def _integrated(
    work: _Work, model: ImageModel, value: Callable[[torch.Tensor], torch.Tensor]
) -> _Map:
    captum = _captum()
    heat, delta = captum.IntegratedGradients(value).attribute(
        work.colours.clone().requires_grad_(),
        work.baseline,
        n_steps=work.recipe.steps,
        internal_batch_size=pass_images(model),
        return_convergence_delta=True,
    )
    with torch.no_grad():
        ends = [float(value(one)[0]) for one in (work.colours, work.baseline)]
    wanted, missed = ends[0] - ends[1], float(delta[0])
    share = abs(missed / wanted) if wanted else None
    facts = {
        "difference": wanted,
        "completeness_delta": missed,
        "completeness_ratio": share,
        "complete": share is not None and share <= _COMPLETE,
    }
    return _Map(_flat(heat), facts)


def _grad_cam(
    work: _Work, model: ImageModel, value: Callable[[torch.Tensor], torch.Tensor]
) -> _Map:
    captum = _captum()
    path = work.recipe.layer or work.layer
    try:
        cam = captum.LayerGradCam(value, model.find(path)).attribute(
            work.colours.clone().requires_grad_(), relu_attributions=True
        )
    except RuntimeError as error:
        if "not have been used" not in str(error):
            raise
        raise UnsupportedTarget(
            f"recipe.layer {path}: no way leads from it to {work.target.feature}: name a layer between the "
            "image and the unit"
        ) from error
    side = work.colours.shape[-1]
    heat = functional.interpolate(cam.float(), (side, side), mode="bilinear", align_corners=False)
    return _Map(_flat(heat), {"layer": path, "grid": list(cam.shape[2:])})


def _occluded(
    work: _Work, model: ImageModel, value: Callable[[torch.Tensor], torch.Tensor]
) -> _Map:
    captum = _captum()
    window, stride = work.recipe.window, work.recipe.stride
    with torch.no_grad():
        heat = captum.Occlusion(value).attribute(
            work.colours,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=work.baseline,
            perturbations_per_eval=pass_images(model),
        )
    # Captum gives every colour of a pixel the whole difference; one of them is the pixel's.
    return _Map(_flat(heat[:, :1]), {"window": window, "stride": stride})


def _flat(heat: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = heat.detach().sum(1)[0].float().cpu().numpy()
    return found


def _captum() -> Any:
    try:
        import captum.attr  # noqa: PLC0415 - seconds, and only this method needs it
    except ImportError as error:
        raise UnsupportedTarget(
            "method attribution needs captum: pip install 'feature-sidecar[worker]'"
        ) from error
    return captum.attr


# -- how far they can be believed -----------------------------------------------------------------


def _curves(work: _Work, order: NDArray[np.int64]) -> dict[str, float | None]:
    """Return the areas under the curves of taking pixels away, and of putting them in, in an order.

    A curve runs from 0 (the baseline's value) to 1 (the image's); a map is good where deletion is low
    and insertion high. None where the image does not drive the unit beyond the baseline.
    """
    side = work.colours.shape[-1]
    shares = np.linspace(0, 1, work.recipe.curve + 1)
    rank = np.empty(side * side, np.int64)
    rank[order] = np.arange(side * side)
    masks = [torch.from_numpy((rank < share * side * side).reshape(side, side)) for share in shares]
    taken = torch.stack(masks).to(work.colours.device)[:, None]  # (points, 1, side, side)
    inserted = work.values(torch.where(taken, work.colours, work.baseline))
    deleted = work.values(torch.where(taken, work.baseline, work.colours))
    low, high = inserted[0], deleted[0]
    if not high > low:
        return {"deletion_auc": None, "insertion_auc": None}
    scaled = [(curve - low) / (high - low) for curve in (deleted, inserted)]
    areas = [float(np.trapezoid(curve, shares)) for curve in scaled]
    return {"deletion_auc": areas[0], "insertion_auc": areas[1]}


def _order(heat: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(-heat.ravel(), kind="stable")


def shuffled(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose weights stand in random places, each tensor with values of its own.

    Biases and the scales of norms stay, so that activations keep their size.
    """
    found = copy.deepcopy(module)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim >= _SHUFFLES_FROM:
                places = torch.randperm(parameter.numel(), generator=stream)
                mixed = parameter.flatten()[places.to(parameter.device)]
                parameter.copy_(mixed.view_as(parameter))
    return found


def _likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return Spearman's rank correlation of the sizes of two maps; None where one is flat."""
    ranks = [np.argsort(np.argsort(np.abs(heat).ravel(), kind="stable")) for heat in (one, other)]
    if not (np.ptp(one) and np.ptp(other)):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# -- the sheet ------------------------------------------------------------------------------------


def _picture(
    work: _Work, measured: Measured, dry: Dry, tell: Callable[[NDArray[np.uint8]], None]
) -> Picture:
    recipe, target = work.recipe, work.target
    image = work.subject.image
    tiles = [Tile(image, (f"{measured.whole:.4g}", work.subject.file or "stored image"))]
    second = [Tile(as_picture(work.baseline[0]), ("baseline", recipe.baseline))]
    maps: dict[str, Any] = {}
    other = None
    if recipe.randomise == "yes":
        other = replace(work.model, module=shuffled(work.model.module, recipe.seed))
    for technique in recipe.techniques:
        name = technique.replace("_", " ")
        if technique == "grad_cam" and not _cam_fits(recipe, dry, target):
            why = f"{work.layer} has no positions: name recipe.layer"
            maps[technique] = {"left_out": why}
            blank = np.full_like(image, 235)
            tiles.append(Tile(blank, (name, "left out")))
            second.append(Tile(blank))
            for _ in range(2 if other is not None else 1):
                work.stop.next()
            tell(image)
            continue
        found = _attribute(work, work.model, technique)
        facts = found.facts | _curves(work, _order(found.heat))
        tiles.append(Tile(overlay(image, found.heat), (name, _words(facts))))
        work.stop.next()
        tell(tiles[-1].image)
        if other is not None:
            theirs = _attribute(work, other, technique)
            facts["randomised_rank_correlation"] = _likeness(found.heat, theirs.heat)
            second.append(Tile(overlay(image, theirs.heat), ("shuffled weights",)))
            work.stop.next()
            tell(second[-1].image)
        maps[technique] = facts
    chance = np.random.default_rng(recipe.seed).permutation(image.shape[0] * image.shape[1])
    groups = [tiles, second] if other is not None else [tiles]
    return Picture(
        target=target,
        recipe=recipe,
        model_digest=work.model.digest,
        inputs=work.subject.inputs,
        image=draw_sheet(groups, recipe.tile, columns=1),
        activation=measured.whole,
        activation_augmented=measured.crops,
        activation_augmented_spread=measured.spread,
        first_activation=float(work.values(work.baseline)[0]) * work.sign,
        history=(),
        findings={
            "image": work.subject.found,
            "baseline": recipe.baseline,
            "maps": maps,
            "random_order": _curves(work, chance),
        },
    )


def _words(facts: dict[str, Any]) -> str:
    if facts["deletion_auc"] is None:
        return "the unit is not driven"
    return f"deletion {facts['deletion_auc']:.2f}, insertion {facts['insertion_auc']:.2f}"


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a map over a faded image: red drives the unit to its side, blue away from it.

    Args:
        image: RGB, shape ``(side, side, 3)``.
        heat: Shape ``(side, side)``.
    """
    planes = torch.from_numpy(np.ascontiguousarray(heat))[None, None]
    smooth = _blurred(planes, _SMOOTH)[0, 0].numpy()
    full = float(np.quantile(np.abs(smooth), _BRIGHTEST)) or float(np.abs(smooth).max()) or 1.0
    strength = np.clip(smooth / full, -1, 1)[..., None]
    grey = image.mean(-1, keepdims=True) * 0.6 + 100
    colour = np.where(strength > 0, np.array(_RED), np.array(_BLUE))
    mixed = grey * (1 - np.abs(strength)) + colour * np.abs(strength)
    found: NDArray[np.uint8] = (
        np.broadcast_to(mixed, image.shape).clip(0, 255).round().astype(np.uint8)
    )
    return found
