"""Views of pictures: how strongly units answer to a whole picture, and to fresh random crops of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import JobCancelled, NonFiniteActivation, UnsupportedTarget
from sidecar.recipes import Maximisation, Target
from sidecar.visualise.ascent import MEASURING_CROPS
from sidecar.visualise.augmentation import cut_crops, draw_crop, generator_for, resize_whole
from sidecar.visualise.model import VisionModel
from sidecar.visualise.units import Site, Units, check_target

MEASURING_VIEWS = MEASURING_CROPS + 1
"""Images that ``measure`` sends through the network: the whole picture and its crops."""

_PASS_IMAGES = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a unit makes of a picture.

    Attributes:
        whole: Of the whole picture.
        crops: Mean over fresh random crops.
        spread: Their standard deviation.
    """

    whole: float
    crops: float
    spread: float


class Stop:
    """Counts steps, and ends a run where somebody asked for it."""

    def __init__(self, cancelled: Callable[[], bool], steps: int) -> None:
        self._cancelled = cancelled
        self.step = 0
        self.steps = steps

    def check(self) -> None:
        """Ask, without counting.

        Raises:
            JobCancelled: It was asked for.
        """
        if self._cancelled():
            raise JobCancelled(f"cancelled at step {self.step} of {self.steps}")

    def skip(self, steps: int) -> None:
        """Count steps that an earlier attempt took."""
        self.step = min(self.step + steps, self.steps)

    def next(self) -> None:
        """Ask, and count a step; never beyond what was planned.

        Raises:
            JobCancelled: It was asked for.
        """
        self.check()
        self.step = min(self.step + 1, self.steps)


def together(model: VisionModel) -> int:
    """Return the most images that go through the network at once on the model's device."""
    return _PASS_IMAGES.get(model.device.type, _PASS_IMAGES["cpu"])


def sites_of(model: VisionModel, targets: Sequence[Target]) -> dict[str, Site]:
    """Find the sites of targets' layers by forward passes alone, and refuse what they do not have.

    Raises:
        UnsupportedTarget: There are no targets; or as ``VisionModel.maps`` and ``check_target``.
        UnknownLayer, UnknownFeature: As those.
    """
    if not targets:
        raise UnsupportedTarget("no targets: name at least one unit to make a picture of")
    grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
    found: dict[str, Site] = {}
    for target in targets:
        path = target.feature.layer.layer
        if path not in found:
            with torch.no_grad():
                found[path] = Site(*model.maps(path, grey).shape[1:])
        check_target(target, found[path])
    return found


def refuse_terms(targets: Sequence[Target], what: str) -> None:
    """Refuse targets that weigh several units.

    Raises:
        UnsupportedTarget: One does; the message says ``what`` is of one unit.
    """
    for target in targets:
        if target.terms:
            raise UnsupportedTarget(
                f"{target.feature}: {what} is of one unit; leave the further units out"
            )


def measure(
    model: VisionModel, target: Target, site: Site, image: NDArray[np.uint8], seed: int, stop: Stop
) -> Measured:
    """Show a unit a picture, whole and in the same fresh crops that a finished ascent is measured on.

    Args:
        model: Of what.
        target: Its unit.
        site: Its layer's.
        image: Shape ``(side, side, 3)``.
        seed: Of the crops.
        stop: Asked before every pass.

    Raises:
        NonFiniteActivation: The unit is NaN or infinite on it.
        JobCancelled: As ``stop``.
    """
    units = Units.of([target], site, model.device)
    stream = generator_for(target, seed, "measure")
    canvas = as_colours(image, model)
    crops = [draw_crop(Maximisation(), model.input_size, stream) for _ in range(MEASURING_CROPS)]
    path = target.feature.layer.layer
    values: list[float] = []
    with torch.no_grad():
        whole = model.maps(path, resize_whole(canvas, model.input_size))
        values += units.values(whole).tolist()
        for first in range(0, MEASURING_CROPS, together(model)):
            stop.check()
            few = crops[first : first + together(model)]
            views = cut_crops(canvas.expand(len(few), -1, -1, -1), few)
            values += units.repeated(len(few)).values(model.maps(path, views)).tolist()
    if not np.isfinite(values).all():
        raise NonFiniteActivation(
            f"{target.feature}: the activation of the finished picture is NaN or infinite: mend the model"
        )
    return Measured(values[0], float(np.mean(values[1:])), float(np.std(values[1:])))


def as_colours(image: NDArray[np.uint8], model: VisionModel) -> torch.Tensor:
    """Return a picture as colours on the model's device, shape ``(1, 3, height, width)``."""
    found = torch.from_numpy(np.array(image)).to(model.device)
    return found.permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)


def as_picture(colours: torch.Tensor) -> NDArray[np.uint8]:
    """Return colours of shape ``(3, h, w)`` as a picture of 8 bits, shape ``(h, w, 3)``."""
    found: NDArray[np.uint8] = (
        colours.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    )
    return np.ascontiguousarray(found)
