"""Contact sheets: real images and pictures in rows, with a few words below each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP = 6
_LINE = 14
_FONT_PIXELS = 12
_GROUND = (255, 255, 255)
_INK = (60, 60, 60)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One image of a sheet, and what is written below it.

    Attributes:
        image: RGB, shape ``(height, width, 3)``; fitted into a square.
        caption: Lines.
    """

    image: NDArray[np.uint8]
    caption: tuple[str, ...] = ()


def draw_sheet(
    groups: Sequence[Sequence[Tile]], side: int, *, columns: int = 3
) -> NDArray[np.uint8]:
    """Draw groups of tiles beside each other, ``columns`` groups in a row.

    Args:
        groups: What belongs together; all of equal length.
        side: Side of a tile in pixels.
        columns: Groups in a row.

    Returns:
        RGB, shape ``(height, width, 3)``.
    """
    lines = max(len(tile.caption) for group in groups for tile in group)
    wide = len(groups[0]) * (side + 1) + _GAP
    high = side + lines * _LINE + _GAP
    rows = -(-len(groups) // columns)
    sheet = Image.new("RGB", (min(columns, len(groups)) * wide + _GAP, rows * high + _GAP), _GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PIXELS)
    for number, group in enumerate(groups):
        down, across = divmod(number, columns)
        top = _GAP + down * high
        for place, tile in enumerate(group):
            left = _GAP + across * wide + place * (side + 1)
            _paste(sheet, tile.image, left, top, side)
            for line, text in enumerate(tile.caption):
                pen.text((left, top + side + line * _LINE), text, fill=_INK, font=font)
    return np.asarray(sheet)


def _paste(sheet: Image.Image, image: NDArray[np.uint8], left: int, top: int, side: int) -> None:
    """Fit an image into its square without changing its proportions."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    fitted = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    sheet.paste(fitted, (left + (side - width) // 2, top + (side - height) // 2))
