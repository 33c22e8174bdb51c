"""Shows finished pictures to the network again, and notes what every part of it makes of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sidecar.recipes import Side, Target
from sidecar.visualise.ascent import pass_images
from sidecar.visualise.augmentation import resize_whole
from sidecar.visualise.model import ImageModel
from sidecar.visualise.units import Site, Units, forward_to

WAYPOINTS = 8
"""Most layers on the way to a unit that are compared: enough to see where two paths part."""

_MAP_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network makes of ``n`` pictures.

    Attributes:
        units: Every unit of the layer in the view of its key, shape ``(n, width)``.
        path: Mean over positions of every channel of each waypoint, in the order in which they run;
            shapes ``(n, channels)``.
    """

    units: NDArray[np.float64]
    path: tuple[NDArray[np.float64], ...]

    def of(self, target: Target) -> NDArray[np.float64]:
        """How strongly each picture shows what was asked for, shape ``(n,)``.

        That is the unit's value, with the target's terms, and the sign turned for the negative side.
        """
        values = self.units[:, target.feature.index].copy()  # (n,)
        for term in target.terms:
            values += term.weight * self.units[:, term.feature.index]
        return -values if target.side is Side.NEGATIVE else values


class Look:
    """Shows pictures to a model, up to the layer of a target, and at the target's position."""

    def __init__(self, model: ImageModel, target: Target, site: Site) -> None:
        self._model = model
        self._units = Units.of([target], site, model.device)
        self._layer = target.feature.layer.layer
        self.waypoints = find_waypoints(model, target.feature.layer.layer)

    @property
    def ends_at_unit(self) -> bool:
        """Whether the last waypoint is the target's own layer, so that the unit is among its channels."""
        return self.waypoints[-1:] == (self._layer,)

    def __call__(self, colours: torch.Tensor) -> Seen:
        """Look at pictures of any size.

        Args:
            colours: From 0 to 1, shape ``(n, 3, side, side)``.
        """
        size = self._model.input_size
        found = [
            self._pass(resize_whole(part.to(self._model.device), size))
            for part in _parts(colours, pass_images(self._model))
        ]
        units, *path = (
            torch.cat(parts).cpu().double().numpy() for parts in zip(*found, strict=True)
        )
        return Seen(units, tuple(path))

    @torch.no_grad()
    def _pass(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        noted: dict[str, torch.Tensor] = {}
        with _noting(self._model, self.waypoints, noted):
            maps = forward_to(self._model, self._units.layer.layer, images)
        units = self._units.repeated(len(images))
        return units.all_values(maps), *(noted[name] for name in self.waypoints)


def find_waypoints(model: ImageModel, layer: str) -> tuple[str, ...]:
    """Return at most ``WAYPOINTS`` modules that give maps on the way to a layer, evenly spread."""
    once = _maps(model, lambda grey: forward_to(model, layer, grey))
    picked = np.linspace(0, len(once) - 1, min(WAYPOINTS, len(once))).round().astype(int)
    return tuple(once[number] for number in picked)


def deepest_map(model: ImageModel) -> str:
    """Return the last module that gives maps in a whole forward pass; empty where none does."""
    return next(iter(_maps(model, lambda grey: model.module(model.normalise(grey)))[::-1]), "")


def deep_features(model: ImageModel, layer: str, colours: torch.Tensor) -> NDArray[np.float64]:
    """Return the mean over positions of a layer's channels.

    Args:
        model: The model.
        layer: From ``deepest_map``.
        colours: From 0 to 1, shape ``(n, 3, side, side)``.

    Returns:
        Shape ``(n, channels)``.
    """
    with torch.no_grad():
        found = [
            forward_to(model, layer, resize_whole(part.to(model.device), model.input_size))
            for part in _parts(colours, pass_images(model))
        ]
    return torch.cat([maps.mean((2, 3)) for maps in found]).cpu().double().numpy()


def _parts(colours: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    for first in range(0, len(colours), most):
        yield colours[first : first + most]


@torch.no_grad()
def _maps(model: ImageModel, forward: Callable[[torch.Tensor], object]) -> list[str]:
    """Return the modules that run once and give maps, in the order in which they finish."""
    order: list[str] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == _MAP_DIMENSIONS:
            order.append(name)

    grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
    with contextlib.ExitStack() as stack:
        for name in model.layers():
            hook = model.find(name).register_forward_hook(
                lambda _m, _i, o, name=name: note(name, o)
            )
            stack.callback(hook.remove)
        forward(grey)
    return [name for name in order if order.count(name) == 1]


@contextlib.contextmanager
def _noting(
    model: ImageModel, names: Sequence[str], noted: dict[str, torch.Tensor]
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in names:

            def note(_m: nn.Module, _i: object, output: torch.Tensor, name: str = name) -> None:
                noted[name] = output.float().mean((2, 3))  # (n, channels)

            stack.callback(model.find(name).register_forward_hook(note).remove)
        yield
