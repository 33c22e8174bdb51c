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
"""Layers on the way to a unit among which those of its later half are looked at: further back the
photographs of one unit have no way in common either."""

_MAP_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network makes of ``n`` pictures.

    Attributes:
        units: Every unit of the layer in the view of its key, shape ``(n, width)``.
    """

    units: NDArray[np.float64]

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

    def __init__(
        self, model: ImageModel, target: Target, site: Site, vectors: torch.Tensor | None = None
    ) -> None:
        """Take what is looked at; ``vectors`` are the layer's directions, where it is of one."""
        self._model = model
        self._site = site
        self._vectors = vectors
        self._units = Units.of([target], site, model.device, vectors)
        passed = find_waypoints(model, target.feature.layer.layer)
        # The last is the layer itself, or what it reads: nearer to the unit there is but one way.
        self._waypoints = passed[len(passed) // 2 : -1]

    def __call__(self, colours: torch.Tensor) -> Seen:
        """Look at pictures of any size.

        Args:
            colours: From 0 to 1, shape ``(n, 3, side, side)``.
        """
        found = [self._pass(part) for part in self._parts(colours)]
        return Seen(torch.cat(found).cpu().double().numpy())

    def ways(self, colours: torch.Tensor, target: Target) -> tuple[NDArray[np.float64], ...]:
        """Return along which channels what is asked for is reached, for pictures of any size.

        At each waypoint in the later half of the way that is the gradient of what the optimiser climbs
        with respect to the channel, over all positions: what each channel counts there.

        Args:
            colours: From 0 to 1, shape ``(n, 3, side, side)``.
            target: Of the same layer.

        Returns:
            Shapes ``(n, channels)``, in the order in which the waypoints run; zero where none reaches it.
        """
        units = Units.of([target], self._site, self._model.device, self._vectors)
        found = [self._climb(part, units) for part in self._parts(colours)]
        return tuple(torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))

    def _parts(self, colours: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in _parts(colours, pass_images(self._model)):
            yield resize_whole(part.to(self._model.device), self._model.input_size)

    @torch.no_grad()
    def _pass(self, images: torch.Tensor) -> torch.Tensor:
        maps = forward_to(self._model, self._units.layer.layer, images)
        return self._units.repeated(len(images)).all_values(maps)

    def _climb(self, images: torch.Tensor, units: Units) -> list[torch.Tensor]:
        noted: dict[str, torch.Tensor] = {}
        with torch.enable_grad(), _noting(self._model, self._waypoints, noted):
            maps = forward_to(self._model, units.layer.layer, images.detach().requires_grad_())
            own = units.repeated(len(images)).objective(maps).sum()
        reached = [noted[name] for name in self._waypoints]
        steps = torch.autograd.grad(own, reached, materialize_grads=True) if reached else ()
        return [step.float().sum((2, 3)).cpu() for step in steps]


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
                noted[name] = output

            stack.callback(model.find(name).register_forward_hook(note).remove)
        yield
