"""Measures how far finished pictures can be believed, whatever method made them.

A picture that excites its unit enormously may still show nothing a person should trust: random
networks give such pictures too. So each finished picture is shown to the network again, beside
pictures of nothing, beside the same request with other seeds, and, where there are any, beside
photographs and through a sibling network. ``verdict.py`` turns the numbers into words.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sidecar.errors import JobCancelled
from sidecar.features import FeatureKind
from sidecar.recipes import Dataset, Maximisation, Recipe, Side, Target, recipe_like
from sidecar.visualise import measures
from sidecar.visualise.augmentation import resize_whole
from sidecar.visualise.datasets import colours, read_square
from sidecar.visualise.generic import GENERIC_PICTURES, VIEWS, fresh_views, generic_pictures
from sidecar.visualise.looking import Look, Seen, deep_features, deepest_map
from sidecar.visualise.method import AnyMethod, Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.pictures import Cost, Picture
from sidecar.visualise.reruns import RIVALS, Rerunner, Reruns, rerun_steps
from sidecar.visualise.units import dry_run
from sidecar.visualise.verdict import Report, judge

_KINDS = frozenset({FeatureKind.CHANNEL, FeatureKind.NEURON, FeatureKind.LOGIT})
"""Kinds of unit that a picture can be held against."""

_JPEG_QUALITY = 75
"""Pillow's default, and about what chat programs and wikis keep of a picture."""

_FELL_SHORT = 0.0
"""Rise from which on a picture is held to be robust: the best picture of nothing must be beaten."""

_EXAMPLES = 5
"""Photographs that count as a unit's natural examples."""

_FEWEST_PHOTOGRAPHS = 4 * _EXAMPLES
"""Below this the "best" photographs of a unit are a fourth of all, and need not show it at all."""

_OWN_WAY = 0.9
"""Share of pairs from which on a unit's natural examples are taken to have a way of their own."""

_MOST_PHOTOGRAPHS = 128
"""Enough that five of them are clearly better than the rest, in seconds on a CPU."""

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
    if not is_measured(recipe):
        return cost
    steps = rerun_steps(recipe, settings.seeds, settings.share)
    layers = len({target.feature.layer for target in targets})
    reruns = steps * (len(targets) * settings.seeds + layers * (RIVALS + 1))
    each = VIEWS + settings.seeds + RIVALS + 2
    looks = len(targets) * each + layers * (2 * GENERIC_PICTURES + len(_chosen(settings)))
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
        One report a picture; None for those of no unit, such as whole layers, and for recipes that
        ``is_measured`` refuses.

    Raises:
        JobCancelled: ``cancelled`` said so.
    """
    found: list[Report | None] = [None] * len(pictures)
    if not is_measured(recipe):
        return found
    steps = rerun_steps(recipe, settings.seeds, settings.share)
    again = recipe_like(recipe, {"steps": steps}) if steps else recipe
    rerunner = Rerunner(method, model, again, materials, cancelled)
    photographs, depth = _read(settings, model), _Depth.of(model) if steps else None
    for members in _by_layer(pictures):
        layer = pictures[members[0]].target.feature.layer.layer
        on_layer(layer)
        site = dry_run(model, [layer]).sites[layer]
        targets = [pictures[member].target for member in members]
        look = Look(model, targets[0], site)
        natural = look(photographs) if photographs is not None else None
        generic = look(generic_pictures(model.input_size))
        bench = _Bench(model, look, generic, natural, depth, settings.sibling)
        reruns = rerunner(targets, settings.seeds, site) if steps else [None] * len(members)
        for member, further in zip(members, reruns, strict=True):
            if cancelled():
                raise JobCancelled("cancelled while its pictures were looked at")
            found[member] = judge(bench.measure(pictures[member], further))
    return found


def is_measured(recipe: Recipe) -> bool:
    """Whether there are measures for a recipe's pictures: single ones, computed from noise.

    Sheets, dreams and what begins with an image have none yet, and what shows photographs needs none.
    """
    return type(recipe) is Maximisation and recipe.tiles == 1


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


def _by_layer(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return indices of pictures whose units are read at the same place, together."""
    places: dict[object, list[int]] = {}
    for number, picture in enumerate(pictures):
        target = picture.target
        if target.feature.layer.kind in _KINDS:
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
class _Bench:
    """What the pictures of one layer are measured with."""

    model: ImageModel
    look: Look
    generic: Seen
    natural: Seen | None
    depth: "_Depth | None"
    sibling: ImageModel | None

    def measure(self, picture: Picture, reruns: Reruns | None) -> dict[str, float]:
        """Return every measure that can be taken, by name."""
        whole, target = colours(picture.image[None], self.model), picture.target
        own, index = self.look(whole), target.feature.index
        value, nothing = float(own.of(target)[0]), self.generic.of(target)
        views = self.look(fresh_views(whole, self.model.input_size)).of(target)
        jpeg = float(self.look(colours(_jpeg(picture.image)[None], self.model)).of(target)[0])
        kept = [measures.kept(view, value, nothing) for view in views.tolist()]
        moved = picture.activation - picture.first_activation
        found = {
            "rise": measures.rise(value, nothing),
            "stirred": measures.stirred(-moved if target.side is Side.NEGATIVE else moved, nothing),
            "selectivity": measures.selectivity(
                value, nothing, own.units[0], self.generic.units, index
            ),
        }
        if found["rise"] > _FELL_SHORT:  # of no rise no share can be left
            found["robustness"] = float(np.mean(kept))
            found["robustness_spread"] = float(np.std(kept))
            found["reencoded"] = measures.kept(jpeg, value, nothing)
        if reruns is not None:
            found |= self._agreement(whole, value, target, reruns)
        if self.natural is not None:
            found |= self._beside_photographs(own, self.natural, target)
        if self.sibling is not None and target.feature.layer.kind is FeatureKind.LOGIT:
            found |= _transfer(self.sibling, whole, index)
        return found

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

    def _beside_photographs(self, own: Seen, natural: Seen, target: Target) -> dict[str, float]:
        responses = natural.of(target)
        best, value = float(responses.max()), float(own.of(target)[0])
        found = {"best_example": value / best} if best > 0 else {}
        mine, theirs = list(own.path), list(natural.path)
        if self.look.ends_at_unit:  # that the unit itself is excited is no news
            for way in (mine, theirs):
                way[-1] = np.delete(way[-1], target.feature.index, axis=1)
        path, ceiling = measures.path_agreement(mine, theirs, responses, _EXAMPLES)
        later = np.arange(len(path)) >= len(path) // 2
        known = later & (ceiling >= _OWN_WAY)
        return {**found, "path": float(path[known].mean())} if known.any() else found


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
