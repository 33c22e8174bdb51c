"""Measures how far finished pictures can be believed, whatever method made them.

A picture that excites its unit enormously may still show nothing a person should trust: random
networks give such pictures too. So each finished picture is shown to the network again, beside
pictures of nothing, beside the same request with other seeds, and, where there are any, beside
photographs and through a sibling network. ``verdict.py`` turns the numbers into words.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sidecar.errors import JobCancelled
from sidecar.features import FeatureKind
from sidecar.recipes import (
    Accentuation,
    Atlas,
    Attribution,
    Caricature,
    Comparison,
    Dataset,
    DeepDream,
    Examples,
    Recipe,
    Side,
    Target,
    recipe_like,
)
from sidecar.visualise import measures
from sidecar.visualise.augmentation import resize_whole, square
from sidecar.visualise.datasets import colours, read_square
from sidecar.visualise.directions import vectors_of
from sidecar.visualise.generic import GENERIC_PICTURES, VIEWS, fresh_views, generic_pictures
from sidecar.visualise.looking import Look, Seen, deep_features, deepest_map
from sidecar.visualise.method import AnyMethod, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.parts import Part, parts_of
from sidecar.visualise.pictures import Cost, Picture
from sidecar.visualise.reruns import RIVALS, Rerunner, Reruns, rerun_steps
from sidecar.visualise.units import dry_run
from sidecar.visualise.verdict import Report, judge, weakest

_UNMEASURED: Mapping[type[Recipe], str] = {
    Examples: "photographs are shown as they are: nothing was computed",
    Comparison: "two models were shown the same photographs: the findings have their numbers",
    Attribution: "a map of one image: the findings say how far it holds (deletion, insertion, completeness)",
    Caricature: "a picture of one image as a layer has it: the findings say how alike they are (cosine)",
    Atlas: "a map of many activations: the findings say how many each cell stands for",
}
"""Why there is no verdict on the results of some recipes."""

_WHOLE_LAYER = "a whole layer: there is no unit beside it that the picture could be held against"

_JPEG_QUALITY = 75
"""Pillow's default, and about what chat programs and wikis keep of a picture."""

_FELL_SHORT = 0.0
"""Rise from which on a picture is held to be robust: the best picture of nothing must be beaten."""

_EXAMPLES = 8
"""Photographs that count as a unit's natural examples."""

_FEWEST_PHOTOGRAPHS = 20
"""Below this the "best" photographs of a unit are half of all, and need not excite it at all."""

_MOST_PHOTOGRAPHS = 128
"""Enough that eight of them are better than the rest, in seconds on a CPU."""

_BEST_VIEWS = 3

_BACKWARD_RATIO = 3.0
"""Forward and backward against forward alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """How much is done to find out.

    Attributes:
        seeds: Further pictures of each unit; 0 leaves out the agreement of seeds.
        share: Of the request's optimiser steps that those may take.
        photographs: Pictures from the model's world; None: there are none. At most 128 are looked at.
        sibling: Another model with the same classes; None: there is none.
    """

    seeds: int = 3
    share: float = 0.5
    photographs: Dataset | None = None
    sibling: ImageModel | None = None


def with_reliability(
    cost: Cost, targets: Sequence[Target], recipe: Recipe, settings: Settings
) -> Cost:
    """Return what a request takes together with its reports.

    Args:
        cost: From the method's ``plan``.
        targets: Of the request.
        recipe: Of the request.
        settings: As for ``assess``.
    """
    measured = [target for target in targets if not unmeasured(target, recipe)]
    if not measured:
        return cost
    steps = rerun_steps(recipe, settings.seeds, settings.share)
    layers = len({target.feature.layer for target in measured})
    seeds = settings.seeds if steps else 0
    reruns = steps * (len(measured) * seeds + layers * (RIVALS + 1))
    tiles = int(getattr(recipe, "tiles", 1))
    each = (VIEWS + 2) * tiles + (seeds + RIVALS if steps else 0)
    begun = (VIEWS + 1) * bool(_begun_with(recipe))
    looks = len(measured) * each + layers * (2 * GENERIC_PICTURES + len(_chosen(settings)) + begun)
    extra = reruns + looks
    seconds = cost.seconds_estimate
    if seconds is not None and cost.forwards:
        one = seconds / (_BACKWARD_RATIO * cost.forwards)
        seconds += one * (_BACKWARD_RATIO * reruns + looks)
    return replace(cost, forwards=cost.forwards + extra, seconds_estimate=seconds)


def assess(
    method: AnyMethod,
    model: ImageModel,
    pictures: Sequence[Picture],
    recipe: Recipe,
    materials: Materials,
    settings: Settings,
    *,
    on_layer: Callable[[str], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Report | None]:
    """Report on finished pictures.

    A report depends on its picture, target, recipe and settings, not on the other pictures.

    Args:
        method: What made them.
        model: What they were made with; left without hooks.
        pictures: From ``method.run``.
        recipe: As for ``method.run``.
        materials: As for ``method.run``.
        settings: How much is done.
        on_layer: Told the path of each layer as its pictures are looked at.
        cancelled: Asked between looks.

    Returns:
        One report a picture, of a sheet that on its weakest picture; None where ``unmeasured`` says why.

    Raises:
        JobCancelled: ``cancelled`` said so.
    """
    found: list[Report | None] = [None] * len(pictures)
    groups = _by_layer(pictures, recipe)
    if not groups:
        return found
    steps = rerun_steps(recipe, settings.seeds, settings.share)
    again = recipe_like(recipe, {"steps": steps}) if steps else recipe
    rerunner = Rerunner(method, model, again, materials, cancelled)
    photographs, depth = _read(settings, model), _Depth.of(model) if steps else None
    begun = _begun(recipe, materials, model)
    for members in groups:
        layer = pictures[members[0]].target.feature.layer
        on_layer(layer.layer)
        site = dry_run(model, [layer.layer]).sites[layer.layer]
        targets = [pictures[member].target for member in members]
        look = Look(model, targets[0], site, vectors_of(layer, site, materials))
        natural = _Natural(photographs, look(photographs)) if photographs is not None else None
        generic = look(generic_pictures(model.input_size))
        bench = _Bench(
            model, look, generic, natural, depth, settings.sibling, _Begun.of(begun, look, model)
        )
        reruns = rerunner(targets, settings.seeds, site) if steps else [None] * len(members)
        for member, further in zip(members, reruns, strict=True):
            if cancelled():
                raise JobCancelled("cancelled while its pictures were looked at")
            parts = parts_of(pictures[member])
            found[member] = weakest([judge(bench.measure(part, further)) for part in parts])
    return found


def unmeasured(target: Target, recipe: Recipe) -> str:
    """Return why there are no measures for what a recipe makes of a target, in words; empty: there are.

    What begins with an image is measured against that image. There is none for what shows photographs
    or maps of them, which is believed for what it is, and none for whole layers.
    """
    if type(recipe) in _UNMEASURED:
        return _UNMEASURED[type(recipe)]
    return _WHOLE_LAYER if target.feature.layer.kind is FeatureKind.NORM else ""


def _begun_with(recipe: Recipe) -> str:
    """Return the digest of the image that a picture began with; empty for noise."""
    return recipe.start if isinstance(recipe, Accentuation | DeepDream) else ""


def _begun(recipe: Recipe, materials: Materials, model: ImageModel) -> torch.Tensor | None:
    digest = _begun_with(recipe)
    return square(materials.image(digest), model.input_size)[None] if digest else None


def _chosen(settings: Settings) -> list[int]:
    """Return numbers of the photographs that are looked at, evenly spread over the dataset."""
    count = 0 if settings.photographs is None else len(settings.photographs.files)
    return sorted({int(n) for n in np.linspace(0, count - 1, min(count, _MOST_PHOTOGRAPHS))})


def _read(settings: Settings, model: ImageModel) -> torch.Tensor | None:
    chosen = _chosen(settings)
    if settings.photographs is None or len(chosen) < _FEWEST_PHOTOGRAPHS:
        return None
    squares = [read_square(settings.photographs, one, model.input_size) for one in chosen]
    return colours(np.stack(squares), model)


def _by_layer(pictures: Sequence[Picture], recipe: Recipe) -> list[list[int]]:
    """Return indices of pictures whose units are read at the same place, together."""
    places: dict[object, list[int]] = {}
    for number, picture in enumerate(pictures):
        target = picture.target
        if not unmeasured(target, recipe):
            places.setdefault((target.feature.layer, target.position), []).append(number)
    return list(places.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Depth:
    """The network's last maps, in which pictures of the same thing are alike."""

    model: ImageModel
    layer: str
    generic: NDArray[np.float64]

    @classmethod
    def of(cls, model: ImageModel) -> "_Depth | None":
        layer = deepest_map(model)
        if not layer:
            return None
        return cls(model, layer, deep_features(model, layer, generic_pictures(model.input_size)))

    def __call__(self, shown: torch.Tensor) -> NDArray[np.float64]:
        return deep_features(self.model, self.layer, shown)


@dataclass(frozen=True, slots=True, eq=False)
class _Natural:
    """Photographs, shape ``(n, 3, side, side)``, and what the units make of them."""

    photographs: torch.Tensor
    seen: Seen


@dataclass(frozen=True, slots=True, eq=False)
class _Begun:
    """The image that pictures began with, and views of it like those of the pictures."""

    whole: Seen
    views: Seen

    @classmethod
    def of(cls, image: torch.Tensor | None, look: Look, model: ImageModel) -> "_Begun | None":
        if image is None:
            return None
        return cls(look(image), look(fresh_views(image, model.input_size)))


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """What the pictures of one layer are measured with."""

    model: ImageModel
    look: Look
    generic: Seen
    natural: "_Natural | None"
    depth: "_Depth | None"
    sibling: ImageModel | None
    begun: "_Begun | None"

    def measure(self, part: Part, reruns: Reruns | None) -> dict[str, float]:
        """Return every measure that can be taken, by name."""
        whole, target = colours(part.image[None], self.model), part.target
        own = self.look(whole)
        value, nothing = float(own.of(target)[0]), self.generic.of(target)
        found = {"rise": measures.rise(value, self._best_of_nothing(target))}
        if part.moved is not None:
            moved = -part.moved if target.side is Side.NEGATIVE else part.moved
            found["stirred"] = measures.stirred(moved, nothing)
        if own.units.shape[1] > 1:
            found["selectivity"] = self._selectivity(own, target)
        if found["rise"] > _FELL_SHORT:  # of no rise no share can be left
            found |= self._robustness(part, whole, value)
        if reruns is not None:
            found |= self._agreement(whole, value, target, reruns)
        if self.natural is not None:
            found |= self._beside_photographs(whole, value, self.natural, target)
        if self.sibling is not None and target.feature.layer.kind is FeatureKind.LOGIT:
            found |= _transfer(self.sibling, whole, target.feature.index)
        return found

    def _best_of_nothing(self, target: Target) -> NDArray[np.float64]:
        """What must be beaten: generic pictures, and the image that the picture began with."""
        nothing = self.generic.of(target)
        if self.begun is None:
            return nothing
        return np.append(nothing, self.begun.whole.of(target))

    def _selectivity(self, own: Seen, target: Target) -> float:
        """Of a picture that began with an image it is asked which units were excited most since."""
        value, units = float(own.of(target)[0]), own.units[0]
        if self.begun is not None:
            value += float(np.median(self.generic.of(target)) - self.begun.whole.of(target)[0])
            units = units + np.median(self.generic.units, 0) - self.begun.whole.units[0]
        nothing, index = self.generic.of(target), target.feature.index
        return measures.selectivity(value, nothing, units, self.generic.units, index)

    def _robustness(self, part: Part, whole: torch.Tensor, value: float) -> dict[str, float]:
        target, nothing = part.target, self.generic.of(part.target)
        views = self.look(fresh_views(whole, self.model.input_size)).of(target)
        jpeg = float(self.look(colours(_jpeg(part.image)[None], self.model)).of(target)[0])
        if self.begun is not None:  # what is left of the change, in the same views of both
            start = float(self.begun.whole.of(target)[0])
            views, jpeg = views - self.begun.views.of(target), jpeg - start
            value, nothing = value - start, np.zeros(1)
        kept = [measures.kept(view, value, nothing) for view in views.tolist()]
        return {
            "robustness": float(np.mean(kept)),
            "robustness_spread": float(np.std(kept)),
            "reencoded": measures.kept(jpeg, value, nothing),
        }

    def _agreement(
        self, whole: torch.Tensor, value: float, target: Target, reruns: Reruns
    ) -> dict[str, float]:
        found = {"seeds_stirred": float(len(reruns.own))}
        if not reruns.own or not reruns.rivals:
            return found
        again, beside = (
            colours(np.stack(images), self.model) for images in (reruns.own, reruns.rivals)
        )
        mine = np.append(self.look(again).of(target), value)
        found["preference"] = measures.preference(mine, self.look(beside).of(target))
        if self.depth is not None:
            own, others = self.depth(torch.cat([whole, again])), self.depth(beside)
            found["agreement"] = measures.agreement(own, others, self.depth.generic)
        return found

    def _beside_photographs(
        self, whole: torch.Tensor, value: float, natural: "_Natural", target: Target
    ) -> dict[str, float]:
        responses = natural.seen.of(target)
        best = float(responses.max())
        found = {"best_example": value / best} if best > 0 else {}
        top = np.argsort(-responses, kind="stable")[:_EXAMPLES].copy()
        examples = self.look.ways(natural.photographs[top], target)
        path = measures.path_agreement(self.look.ways(whole, target), examples)
        return found if path is None else {**found, "path": path}


def _transfer(sibling: ImageModel, whole: torch.Tensor, index: int) -> dict[str, float]:
    size = sibling.input_size
    views = torch.cat([resize_whole(whole, size), fresh_views(whole, size)]).to(sibling.device)
    with torch.no_grad():
        logits = sibling.module(sibling.normalise(views)).float().cpu().double().numpy()
    if logits.ndim != 2 or index >= logits.shape[1]:  # noqa: PLR2004 - (views, classes)
        return {}
    chances = measures.softmax(logits)[:, index].tolist()
    return {"transfer": measures.mean_of_best(chances, _BEST_VIEWS)}


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(Image.open(out))
