"""What the recipes have in common that look at one image."""

import re
from dataclasses import dataclass

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, word

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OfImage(Recipe):
    """A recipe that looks at one image: a stored one, or the one of a dataset that drives the unit most.

    Attributes:
        image: sha256 of a stored image, see ``sidecar artifact put``.
        dataset: Name of a configured dataset; in place of ``image``.
    """

    image: str = word()
    dataset: str = word()

    def __post_init__(self) -> None:
        """Refuse a recipe that names no image, or two."""
        Recipe.__post_init__(self)
        if bool(self.image) == bool(self.dataset):
            given = (
                f"both given ({self.image[:12]}, {self.dataset})" if self.image else "both empty"
            )
            raise UnsupportedTarget(
                f"recipe.image and recipe.dataset are {given}: name a stored image by its sha256, which "
                "`sidecar artifact put` prints, or a dataset for its strongest one"
            )
        if self.image and not _DIGEST.fullmatch(self.image):
            raise UnsupportedTarget(
                f"recipe.image {self.image[:80]!r} is no sha256: use the 64 digits that "
                "`sidecar artifact put` prints"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is in the dataset; an image is named by its content already."""
        return (f"dataset:{self.dataset}",) if self.dataset else ()

    @property
    def images(self) -> tuple[str, ...]:
        """The stored image."""
        return (self.image,) if self.image else ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """The dataset."""
        return (self.dataset,) if self.dataset else ()
