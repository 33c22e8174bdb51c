"""The recipe of feature accentuation."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.maximisation import Maximisation
from sidecar.recipes.recipe import digest, layer_path, number


@dataclass(frozen=True, slots=True)
class Accentuation(Maximisation):
    """How an image is changed so that it shows what a unit sees in it.

    It is maximised from that image and not from noise, and pays for moving away from it in the space
    of a layer, where texture that no photograph has is far away.

    Attributes:
        start: Digest of the image.
        layer: Layer in whose space the picture stays near the image; empty: the target's own.
        closeness: How strongly, as a ratio of the activation that may be given up for it.
        learning_rate: As for ``Maximisation``; smaller, because there is something to keep.
        steps: As for ``Maximisation``.
        zoom_min: As for ``Maximisation``; larger, for the image is whole already.
        noise: As for ``Maximisation``.
    """

    method: ClassVar[str] = "feature_accentuation"
    version: ClassVar[int] = 1

    start: str = digest()
    layer: str = layer_path()
    closeness: float = number(0.5, 0.0, 1e3)
    learning_rate: float = number(0.03, 1e-6, 10.0)
    steps: int = number(64, 1, 10_000)
    zoom_min: float = number(0.6, 0.05, 1.0)
    noise: float = number(0.05, 0.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        Maximisation.__post_init__(self)
        if not self.start:
            raise UnsupportedTarget(
                "recipe.start is empty: name the digest of an image to begin with"
            )
        if self.parametrisation == "maco":
            raise UnsupportedTarget(
                "recipe.parametrisation maco has its own magnitudes, so it cannot begin with an image: "
                "use fourier or pixel"
            )

    @property
    def images(self) -> tuple[str, ...]:
        """The image it begins with."""
        return (self.start,)
