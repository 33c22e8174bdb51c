"""Images of a dataset as a network takes them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sidecar.errors import UnsupportedTarget
from sidecar.recipes import Dataset
from sidecar.visualise.model import VisionModel
from sidecar.visualise.pictures import read_image


def read_square(dataset: Dataset, number: int, size: int) -> NDArray[np.uint8]:
    """Return one image as models are trained on: its shorter side resized, the middle cut out.

    Args:
        dataset: Where it lies.
        number: Which of ``dataset.files``.
        size: Side of the result.

    Returns:
        RGB, shape ``(size, size, 3)``.

    Raises:
        UnsupportedTarget: The file is gone, is no picture, or is another than when the job began.
    """
    name, digest = dataset.files[number]
    path = Path(dataset.folder, name)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnsupportedTarget(f"dataset {dataset.name}: {name}: {error.strerror}") from error
    if found != digest:
        raise UnsupportedTarget(
            f"dataset {dataset.name}: {name} has changed since the job was claimed: ask again"
        )
    return fit_square(read_image(path), size)


def fit_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image's shorter side and cut the middle out, as models are trained on.

    Args:
        image: RGB, shape ``(height, width, 3)``.
        size: Side of the result.

    Returns:
        RGB, shape ``(size, size, 3)``.
    """
    whole = Image.fromarray(image)
    scale = size / min(whole.size)
    width, height = (max(size, round(side * scale)) for side in whole.size)
    resized = whole.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def batches(
    dataset: Dataset, model: VisionModel, together: int, begin: int = 0
) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Yield a dataset's images as colours, a few at a time, from number ``begin`` on.

    Returns:
        Numbers of the images, and colours of shape ``(n, 3, input_size, input_size)``.
    """
    for first in range(begin, len(dataset.files), together):
        numbers = range(first, min(first + together, len(dataset.files)))
        squares = np.stack([read_square(dataset, one, model.input_size) for one in numbers])
        yield numbers, colours(squares, model)


def colours(images: NDArray[np.uint8], model: VisionModel) -> torch.Tensor:
    """Return images of shape ``(n, h, w, 3)`` as colours, shape ``(n, 3, h, w)``, on the model's device."""
    found = torch.from_numpy(np.array(images)).to(model.device)  # a copy: torch wants to own it
    return found.permute(0, 3, 1, 2).float() / 255  # (n, 3, h, w)
