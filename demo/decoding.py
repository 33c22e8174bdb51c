"""From the bytes of an image file to the network's input."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.lite0 import CENTRE, SIZE, SPREAD

PIXEL_LIMIT = 50_000_000
"""Most pixels of one picture: a small file may unpack to gigabytes."""


class NotAnImage(Exception):
    """The body is no JPEG or PNG picture that can be read."""


def decode(body: bytes) -> NDArray[np.float32]:
    """Return the network's input for a JPEG or PNG file.

    The largest centred square is scaled to the input size.

    Returns:
        Shape ``(3, SIZE, SIZE)``, float32, normalised.

    Raises:
        NotAnImage: The bytes are no JPEG or PNG, are damaged, or hold more than ``PIXEL_LIMIT``
            pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is no reason to refuse a picture
            image = Image.open(io.BytesIO(body), formats=("JPEG", "PNG"))
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise NotAnImage(f"{width} by {height} pixels: send at most {PIXEL_LIMIT}")
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NotAnImage(f"the body is no readable JPEG or PNG picture: {error}") from error
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = rgb.resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = (np.asarray(square, np.float32) - np.float32(CENTRE)) / np.float32(SPREAD)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (colour, row, column)
