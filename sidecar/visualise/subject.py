"""The image that a recipe looks at: a stored one, or a dataset's strongest."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import NonFiniteActivation
from sidecar.recipes import Side, Target
from sidecar.recipes.subject import OfImage
from sidecar.visualise.datasets import batches, fit_square, read_square
from sidecar.visualise.method import Materials
from sidecar.visualise.model import ImageModel
from sidecar.visualise.units import Site, Units
from sidecar.visualise.views import Stop, together


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """An image, as the network takes it.

    Attributes:
        image: RGB, shape ``(size, size, 3)``.
        file: Its path below the dataset's folder; empty for a stored one.
        digest: sha256 of its file.
        inputs: What the answer depends on, see ``Picture.inputs``.
    """

    image: NDArray[np.uint8]
    file: str
    digest: str
    inputs: dict[str, str]

    @property
    def found(self) -> dict[str, str]:
        """What findings say of it."""
        return {"file": self.file, "sha256": self.digest}


def check_subject(recipe: OfImage, materials: Materials) -> int:
    """Return how many images the network must see to find it.

    Raises:
        UnsupportedTarget: It was not handed over.
    """
    if recipe.image:
        materials.image(recipe.image)
        return 0
    return len(materials.dataset(recipe.dataset).files)


def find_subject(
    model: ImageModel,
    target: Target,
    site: Site,
    recipe: OfImage,
    materials: Materials,
    stop: Stop,
) -> Subject:
    """Return the image that a recipe looks at; of a dataset the one that drives the unit most.

    Raises:
        UnsupportedTarget: It was not handed over; or a file of the dataset cannot be read, or changed.
        NonFiniteActivation: An image of the dataset drives the unit to NaN or infinity.
        JobCancelled: As ``stop``, which is asked before every pass.
    """
    if recipe.image:
        image = fit_square(materials.image(recipe.image), model.input_size)
        return Subject(image, "", recipe.image, {})
    dataset = materials.dataset(recipe.dataset)
    sign = -1.0 if target.side is Side.NEGATIVE else 1.0
    units = Units.of([target], site, model.device)
    best, number = -np.inf, 0
    for numbers, images in batches(dataset, model, together(model)):
        stop.check()
        with torch.no_grad():
            maps = model.maps(target.feature.layer.layer, images)
        values = sign * units.repeated(len(images)).values(maps).cpu().numpy()
        if not np.isfinite(values).all():
            odd = numbers[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise NonFiniteActivation(
                f"{target.feature} is NaN or infinite on {dataset.files[odd][0]}: mend the model or take "
                "the image out of the dataset"
            )
        if values.max() > best:
            best, number = float(values.max()), numbers[int(values.argmax())]
    name, digest = dataset.files[number]
    image = read_square(dataset, number, model.input_size)
    return Subject(image, name, digest, {f"dataset:{dataset.name}": dataset.digest})
