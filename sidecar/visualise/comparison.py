"""Comparison of two revisions: does the other model still look for what a unit looks for?

Both models see the same images; units are matched by how their values correlate over them. Portraits of
both sides are then made from the same start, and the one model is shown the other's.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import JobCancelled, SidecarError, UnknownLayer, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Comparison, Dataset, Maximisation, Target
from sidecar.visualise.agreement import Agreement, Fate, agreement, similarity, summary
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.augmentation import resize_whole
from sidecar.visualise.contact_sheet import Tile, draw_sheet
from sidecar.visualise.datasets import batches, colours, read_square
from sidecar.visualise.images import ActivationMaximisation
from sidecar.visualise.method import Checkpoint, Materials
from sidecar.visualise.model import ImageModel, VisionModel, unknown_layer
from sidecar.visualise.pictures import Cost, Picture, Progress
from sidecar.visualise.units import Site, Units, check_targets, dry_run, forward_to

_KINDS = frozenset({FeatureKind.CHANNEL, FeatureKind.LOGIT})

_SEARCH_IMAGES = 64
"""Images on which the most similar layer is looked for: enough to tell stages of a network apart."""

_SEARCH_LEAST = 0.3
"""Similarity below which no layer of the other model counts as the same."""

_TRANSFER_LEAST = 0.5
"""Share of its activation that a portrait must reach in the other model for a unit to be the same."""

_MAXIMISATION = ActivationMaximisation()

_NOT_ASKED = "not asked for"

_FORWARD_ONLY = "the model only runs forward, and portraits need gradients"


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One of the two models: a layer of it, and every unit's value on every image."""

    model: VisionModel
    layer: LayerKey
    values: NDArray[np.float64]  # (images, width)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A layer in both models."""

    here: _Side
    there: _Side
    found: Agreement
    summary: dict[str, Any]


class RevisionComparison:
    """The method of ``Comparison`` recipes."""

    recipe = Comparison
    gradients = False

    def plan(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Comparison,
        materials: Materials,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Cost:
        """Check a request and say what it will take; the search for a similar layer is not counted.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: One of the models, or the dataset, has no
                such thing; or a target is no single channel or logit.
        """
        dataset, other = materials.dataset(recipe.dataset), materials.model(recipe.other)
        layers = _checked(model, targets)
        if recipe.layer and recipe.layer not in other.layers():
            unknown_layer(recipe.layer, other.layers())
        dry = dry_run(model, [layer.layer for layer in layers])
        started = clock()
        dry_run(model, list(dry.sites))
        seconds = clock() - started
        looks = 2 * len(dataset.files) * len(layers)
        cost = Cost(looks, seconds * looks, dry.saved_bytes * pass_images(model))
        if not recipe.steps or not isinstance(model, ImageModel):
            return cost
        drawn = _MAXIMISATION.plan(model, targets, _portrait_recipe(recipe), Materials())
        return Cost(
            looks + 2 * drawn.forwards,
            seconds * looks + 2 * (drawn.seconds_estimate or 0.0),
            max(cost.bytes_estimate, drawn.bytes_estimate),
        )

    def run(
        self,
        model: VisionModel,
        targets: Sequence[Target],
        recipe: Comparison,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,  # noqa: ARG002 - the parts are short
    ) -> tuple[Picture, ...]:
        """Compare each target with its partner in the other model.

        Returns:
            A sheet a target: portraits and strongest images of both sides. Its ``findings`` say what
            became of the unit, why, and how the whole layer fared; a portrait that could not be made
            is named there and ends nothing.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``; or no layer of the other
                model is like the targets'.
            JobCancelled: ``cancelled`` said so.
        """
        dataset, other = materials.dataset(recipe.dataset), materials.model(recipe.other)
        layers = _checked(model, targets)
        passes = 2 * len(layers) * math.ceil(len(dataset.files) / pass_images(model))
        look = _Look(dataset, cancelled, _Teller(on_progress, passes, recipe.steps, len(targets)))
        pairs = {layer: _pair(look, model, other, layer, recipe) for layer in layers}

        def further(progress: Progress) -> None:
            step, steps = passes + progress.step, passes + progress.steps
            on_progress(replace(progress, step=step, steps=steps))

        portraits = _Portraits(model, other, targets, pairs, recipe, further, cancelled)
        inputs = {
            f"dataset:{dataset.name}": dataset.digest,
            f"model:{recipe.other}": materials.source(recipe.other),
        }
        return tuple(
            _picture(
                target, number, pairs[target.feature.layer], portraits, recipe, dataset, inputs
            )
            for number, target in enumerate(targets)
        )


def _checked(model: VisionModel, targets: Sequence[Target]) -> list[LayerKey]:
    check_targets(model, targets)
    for target in targets:
        if target.feature.layer.kind not in _KINDS or target.terms:
            raise UnsupportedTarget(
                f"{target.feature}: single channels and logits are compared: name one"
            )
    return list(dict.fromkeys(target.feature.layer for target in targets))


def _portrait_recipe(recipe: Comparison) -> Maximisation:
    return Maximisation(seed=recipe.seed, steps=recipe.steps, canvas=recipe.canvas)


class _Teller:
    """Says how far the passes over the dataset are; the portraits come after them."""

    def __init__(
        self, on_progress: Callable[[Progress], None], passes: int, steps: int, targets: int
    ) -> None:
        self._on_progress = on_progress
        self._passes = passes
        self._steps = passes + steps
        self._unknown = (math.nan,) * targets
        self._done = 0

    def passed(self, images: torch.Tensor) -> None:
        """One more pass is done, on these colours."""
        self._done = min(self._done + 1, self._passes)
        seen = (images[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        self._on_progress(Progress(self._done, self._steps, self._unknown, seen, ()))


class _Look:
    """Runs models over a dataset."""

    def __init__(self, dataset: Dataset, cancelled: Callable[[], bool], teller: _Teller) -> None:
        self.dataset = dataset
        self._cancelled = cancelled
        self._teller = teller

    def side(self, model: VisionModel, layer: LayerKey, dataset: Dataset | None = None) -> _Side:
        """Return every unit of a layer on every image, shape ``(images, width)``."""
        found = []
        for _, images in batches(dataset or self.dataset, model, pass_images(model)):
            if self._cancelled():
                raise JobCancelled(f"cancelled while {layer.layer} was run over the dataset")
            with torch.no_grad():
                maps = forward_to(model, layer.layer, images)
            found.append(_all_values(model, layer, maps))
            if dataset is None:
                self._teller.passed(images)
        return _Side(model, layer, np.concatenate(found))


def _all_values(model: VisionModel, layer: LayerKey, maps: torch.Tensor) -> NDArray[np.float64]:
    units = Units.of([Target(layer.feature(0))], Site(*maps.shape[1:]), model.device)
    found: NDArray[np.float64] = units.all_values(maps).double().cpu().numpy()
    return found


def _pair(
    look: _Look, model: VisionModel, other: VisionModel, layer: LayerKey, recipe: Comparison
) -> _Pair:
    here = look.side(model, layer)
    there = look.side(other, _layer_there(look, here, other, recipe))
    for side, name in ((here, "this"), (there, "the other")):
        if not np.isfinite(side.values).all():
            raise UnsupportedTarget(f"{side.layer.layer} of {name} model is NaN on some image")
    found = agreement(here.values, there.values)
    return _Pair(here, there, found, summary(found))


def _layer_there(look: _Look, here: _Side, other: VisionModel, recipe: Comparison) -> LayerKey:
    """Return the other model's layer: the one named, else of the same name, else the most similar."""
    own = here.layer
    if recipe.layer:
        return replace(own, layer=recipe.layer)
    few = replace(look.dataset, files=look.dataset.files[:: _stride(look.dataset)])
    if _width(look, other, own, few) == here.values.shape[1]:
        return own
    wanted = _pattern(own.layer)
    names = [name for name in other.layers() if _pattern(name) == wanted]
    subset = here.values[:: _stride(look.dataset)]
    scored = []
    for name in names:
        try:
            side = look.side(other, replace(own, layer=name), few)
        except (UnknownLayer, UnsupportedTarget):
            continue
        scored.append((similarity(subset, side.values), name))
    best, name = max(scored, default=(0.0, ""))
    if best < _SEARCH_LEAST:
        raise UnsupportedTarget(
            f"no layer of model {recipe.other} is like {own.layer}: the most similar of {len(scored)} has "
            f"CKA {best:.2f}, need {_SEARCH_LEAST}; name one as recipe.layer"
        )
    return replace(own, layer=name)


def _stride(dataset: Dataset) -> int:
    return max(1, len(dataset.files) // _SEARCH_IMAGES)


def _width(look: _Look, other: VisionModel, layer: LayerKey, few: Dataset) -> int:
    try:
        return int(look.side(other, layer, replace(few, files=few.files[:1])).values.shape[1])
    except (UnknownLayer, UnsupportedTarget):
        return 0


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


class _Portraits:
    """Portraits of both sides, and what each model makes of the other's."""

    def __init__(
        self,
        model: VisionModel,
        other: VisionModel,
        targets: Sequence[Target],
        pairs: dict[LayerKey, _Pair],
        recipe: Comparison,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._cancelled = cancelled
        self.here: tuple[Picture | str, ...] = tuple(_NOT_ASKED for _ in targets)
        self.there = self.here
        if not recipe.steps:
            return
        self._drawing = _portrait_recipe(recipe)
        self.here = self._together(model, targets, on_progress)
        self.there = tuple(
            self._drawn(other, _partner(target, pairs, recipe.other)) for target in targets
        )

    def _together(
        self, model: VisionModel, targets: Sequence[Target], on_progress: Callable[[Progress], None]
    ) -> tuple[Picture | str, ...]:
        """Return all portraits of one model in one batch; where one cannot be made, each alone."""
        if not isinstance(model, ImageModel):
            return tuple(_FORWARD_ONLY for _ in targets)
        try:
            return _MAXIMISATION.run(
                model,
                targets,
                self._drawing,
                Materials(),
                on_progress=on_progress,
                cancelled=self._cancelled,
            )
        except JobCancelled:
            raise
        except SidecarError:
            return tuple(self._drawn(model, target) for target in targets)

    def _drawn(self, model: VisionModel, target: Target) -> Picture | str:
        """Return a portrait; or why there is none, which is no fault of the comparison."""
        if not isinstance(model, ImageModel):
            return _FORWARD_ONLY
        try:
            return _MAXIMISATION.run(
                model, [target], self._drawing, Materials(), cancelled=self._cancelled
            )[0]
        except JobCancelled:
            raise
        except SidecarError as error:
            return error.message


def _partner(target: Target, pairs: dict[LayerKey, _Pair], other: str) -> Target:
    pair = pairs[target.feature.layer]
    layer = replace(pair.there.layer, model=other, revision=pair.there.model.digest)
    index = int(pair.found.partner[target.feature.index])
    return replace(target, feature=layer.feature(index))


def _picture(
    target: Target,
    number: int,
    pair: _Pair,
    portraits: _Portraits,
    recipe: Comparison,
    dataset: Dataset,
    inputs: dict[str, str],
) -> Picture:
    unit = target.feature.index
    partner = int(pair.found.partner[unit])
    fate, reason = pair.found.fate(unit)
    own = pair.here.values[:, unit]
    on_images = fate
    mine, theirs = portraits.here[number], portraits.there[number]
    drawn = mine if isinstance(mine, Picture) else None
    measured: dict[str, Any] = {}
    if drawn is not None:
        measured = _measure(drawn, theirs, pair, unit, partner)
        if fate is Fate.SAME and measured["transfer"] < _TRANSFER_LEAST:
            fate = Fate.MOVED
            reason += f", but its portrait reaches only {measured['transfer']:.0%} of its activation there"
    elif recipe.steps:
        measured = {"no_portrait_here": mine}
        if isinstance(theirs, str):
            measured["no_portrait_there"] = theirs
    strongest = int(own.argmax())
    constant = bool(pair.found.constant[unit])  # then there is no spread to measure in
    return Picture(
        target=target,
        recipe=recipe,
        model_digest=pair.here.model.digest,
        inputs=inputs,
        image=_sheet(pair, unit, partner, drawn, theirs, dataset, recipe),
        activation=drawn.activation if drawn is not None else float(own[strongest]),
        activation_augmented=drawn.activation_augmented if drawn is not None else float("nan"),
        activation_augmented_spread=(
            drawn.activation_augmented_spread if drawn is not None else float("nan")
        ),
        first_activation=float(np.median(own)),
        history=drawn.history if drawn is not None else (),
        findings={
            "fate": fate.value,
            "fate_on_images": on_images.value,
            "reason": reason,
            "other": {
                "model": recipe.other,
                "digest": pair.there.model.digest,
                "layer": pair.there.layer.layer,
                "unit": partner,
            },
            "dataset": {"name": dataset.name, "digest": dataset.digest, "images": len(own)},
            "correlation": _number(pair.found.own[unit]),
            "best": int(pair.found.best[unit]),
            "best_correlation": _number(pair.found.best_value[unit]),
            "median_shift": None if constant else _number(pair.found.shift[unit]),
            "spread_ratio": None if constant else _number(pair.found.scale[unit]),
            "portraits": measured,
            "layer": pair.summary,
        },
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measure(
    drawn: Picture, theirs: Picture | str, pair: _Pair, unit: int, partner: int
) -> dict[str, Any]:
    """Return how far a portrait carries over, and how alike the two portraits are."""
    here, there = pair.here, pair.there
    carried = _seen(there, drawn.image)
    found: dict[str, Any] = {
        "activation_here": drawn.activation,
        "activation_there": float(carried[partner]),
        "transfer": float(carried[partner] / drawn.activation) if drawn.activation else 0.0,
        "rank_there": 1 + int((carried > carried[partner]).sum()),
        "percentile_there": float((there.values[:, partner] <= carried[partner]).mean() * 100),
    }
    if isinstance(theirs, str):
        return found | {"no_portrait_there": theirs}
    back = _seen(here, theirs.image)
    mine = _seen(here, drawn.image)
    usual, spread = here.values.mean(0), here.values.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    a, b = (mine - usual) / spread, (back - usual) / spread
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return found | {
        "own_activation_there": theirs.activation,
        "transfer_back": float(back[unit] / theirs.activation) if theirs.activation else 0.0,
        "feature_similarity": float(a @ b) / length if length else 0.0,
    }


def _seen(side: _Side, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return every unit of a side's layer on one picture, shape ``(width,)``."""
    with torch.no_grad():
        whole = resize_whole(colours(image[None], side.model), side.model.input_size)
        maps = forward_to(side.model, side.layer.layer, whole)
    found: NDArray[np.float64] = _all_values(side.model, side.layer, maps)[0]
    return found


def _sheet(
    pair: _Pair,
    unit: int,
    partner: int,
    drawn: Picture | None,
    theirs: Picture | str,
    dataset: Dataset,
    recipe: Comparison,
) -> NDArray[np.uint8]:
    blank = np.full((recipe.canvas, recipe.canvas, 3), 235, np.uint8)
    tiles = []
    for side, index, picture, where in (
        (pair.here, unit, drawn, "here"),
        (pair.there, partner, theirs, recipe.other),
    ):
        if recipe.steps:
            image = picture.image if isinstance(picture, Picture) else blank
            said = "portrait" if isinstance(picture, Picture) else "no portrait"
            tiles.append(Tile(image, (f"{where}, unit {index}", said)))
        values = side.values[:, index]
        for place in np.argsort(-values, kind="stable")[:2]:
            image = read_square(dataset, int(place), recipe.canvas)
            tiles.append(Tile(image, (f"{where}, unit {index}", f"{values[place]:.4g}")))
    half = len(tiles) // 2
    return draw_sheet([tiles[:half], tiles[half:]], recipe.canvas, columns=1)
