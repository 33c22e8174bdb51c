"""From decoded pictures to their five likeliest classes, a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demo.lite0 import build, class_names
from sidecar.hooks import current_requests

TOP = 5


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded request.

    Attributes:
        request_id: The server's id of the request.
        route: The path it came in by.
        pixels: The network's input, shape ``(3, SIZE, SIZE)``, float32, normalised.
    """

    request_id: str
    route: str
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the network says of one picture.

    Attributes:
        classes: The five likeliest: name, index and probability, best first.
        batch_size: Pictures of the forward pass it shared.
    """

    classes: tuple[tuple[str, int, float], ...]
    batch_size: int

    def document(self, request_id: str) -> dict[str, Any]:
        """Return the JSON answer."""
        top = [{"name": n, "index": i, "probability": round(p, 6)} for n, i, p in self.classes]
        return {"request_id": request_id, "batch_size": self.batch_size, "top": top}


class Classifier:
    """The network and its class names; ``answer`` is meant for one thread."""

    def __init__(self) -> None:
        self.network = build()
        self._names = class_names()

    def answer(self, pictures: Sequence[Picture]) -> list[Verdict]:
        """Return the verdict on each picture, in order, from one forward pass."""
        batch = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        requests = [{"id": p.request_id, "traffic": {"route": p.route}} for p in pictures]
        with torch.inference_mode(), current_requests(requests):
            logits = self.network(batch)  # (batch, class)
        probabilities, indices = logits.softmax(1).topk(TOP)
        return [
            Verdict(self._classes(row, which), len(pictures))
            for row, which in zip(probabilities.tolist(), indices.tolist(), strict=True)
        ]

    def _classes(
        self, probabilities: list[float], indices: list[int]
    ) -> tuple[tuple[str, int, float], ...]:
        return tuple(
            (self._names[index], index, probability)
            for index, probability in zip(indices, probabilities, strict=True)
        )
