"""Real photographs as traffic, from files that installed packages carry.

Nothing is downloaded and nothing is drawn: every picture is a random crop of a photograph, flipped,
lightened or darkened, given a little sensor noise and encoded as JPEG, as a client would send it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageEnhance

from demo.lite0 import package_folder

CROP_SIDE = 256
"""Side of the pictures sent, in pixels: a little above the network's 224, so the server resizes."""

_SKIMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
_SKLEARN = ("china.jpg", "flower.jpg")
_CATS = ("chelsea.png",)


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph.

    Attributes:
        name: Its file name.
        image: The whole picture, RGB.
    """

    name: str
    image: Image.Image


def load_everyday() -> tuple[Photo, ...]:
    """Return the photographs of normal traffic: people, vehicles, food, buildings, textures.

    There is no cat among them. Twenty ImageNet photographs join where ``foolbox`` is installed.

    Raises:
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    photos = _load("skimage", "data", _SKIMAGE) + _load("sklearn", "datasets/images", _SKLEARN)
    if find_spec("foolbox") is None:
        return photos
    folder = package_folder("foolbox") / "data"
    return photos + _load(
        "foolbox", "data", sorted(path.name for path in folder.glob("imagenet_*.jpg"))
    )


def load_cats() -> tuple[Photo, ...]:
    """Return the photographs that a new client starts to send.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    return _load("skimage", "data", _CATS)


def _load(package: str, folder: str, names: Sequence[str]) -> tuple[Photo, ...]:
    root = package_folder(package) / folder
    return tuple(Photo(name, Image.open(root / name).convert("RGB")) for name in names)


class ShuffledDeck:
    """Deals photographs so that each comes once before any comes twice.

    Drawing with replacement would make one photograph rare in one window and frequent in the next,
    which is noise the story does not need.
    """

    def __init__(self, photos: Sequence[Photo], rng: np.random.Generator) -> None:
        if not photos:
            raise ValueError("a deck needs at least one photograph")
        self._photos = tuple(photos)
        self._rng = rng
        self._left: list[int] = []

    def deal(self) -> Photo:
        """Return the next photograph."""
        if not self._left:
            self._left = [int(i) for i in self._rng.permutation(len(self._photos))]
        return self._photos[self._left.pop()]


def augment(photo: Photo, rng: np.random.Generator) -> Image.Image:
    """Return a random view of a photograph, ``CROP_SIDE`` pixels square.

    A square crop of 55 to 100 % of the shorter side, flipped half of the time, brightness and
    contrast changed by up to a fifth, Gaussian noise of up to 6 of 255.
    """
    width, height = photo.image.size
    side = min(width, height) * rng.uniform(0.55, 1.0)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    view = photo.image.resize(
        (CROP_SIDE, CROP_SIDE),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
    )
    if rng.random() < 0.5:  # noqa: PLR2004 - half of the time
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.8, 1.2))
    view = ImageEnhance.Contrast(view).enhance(rng.uniform(0.8, 1.2))
    noise = rng.standard_normal((CROP_SIDE, CROP_SIDE, 3), dtype=np.float32) * rng.uniform(0, 6)
    pixels = np.asarray(view, np.float32) + noise  # (row, column, colour)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return the picture as a JPEG of quality 70 to 95."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    return buffer.getvalue()
