"""The recipe of DeepDream."""

from dataclasses import dataclass
from typing import ClassVar

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.recipe import Recipe, digest, number


@dataclass(frozen=True, slots=True)
class DeepDream(Recipe):
    """How an image is changed so that a layer or unit is stirred more, at several scales in turn.

    Attributes:
        start: Digest of the image; empty: grey noise.
        canvas: Side of the square picture in pixels.
        octaves: Scales, from coarse to the canvas.
        octave_scale: Ratio of the sides of two scales that follow each other.
        steps: Steps at each scale.
        learning_rate: Change of a colour, in units of the full 0 to 1 range, that a gradient of mean
            size makes in one step.
        jitter: Largest shift between steps, in pixels; hides the borders of the tiles that a canvas
            larger than the network's input is seen in.
    """

    method: ClassVar[str] = "deep_dream"
    version: ClassVar[int] = 1

    start: str = digest()
    canvas: int = number(384, 32, 2048)
    octaves: int = number(4, 1, 8)
    octave_scale: float = number(1.3, 1.0, 3.0)
    steps: int = number(10, 1, 1000)
    learning_rate: float = number(0.012, 1e-6, 1.0)
    jitter: int = number(32, 0, 512)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        Recipe.__post_init__(self)
        least = round(self.canvas / self.octave_scale ** (self.octaves - 1))
        if least < 8:  # noqa: PLR2004 - below that a picture is a few dots
            raise UnsupportedTarget(
                f"recipe.octaves {self.octaves} of scale {self.octave_scale} begin at {least} pixels: "
                "use fewer octaves or a larger canvas"
            )

    @property
    def images(self) -> tuple[str, ...]:
        """The image it begins with, if any."""
        return (self.start,) if self.start else ()

    def sides(self) -> tuple[int, ...]:
        """Return the side of the picture at each scale, in pixels, from coarse to fine."""
        return tuple(
            round(self.canvas / self.octave_scale**left) for left in reversed(range(self.octaves))
        )
