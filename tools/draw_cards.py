"""Draws the cards that stand where a portrait is missing, or must not be shown without words.

Alerts carry the address of a portrait before there is one, and chat programmes show PNG only, so
the cards ship as files: the daemon has no drawing library. Run this after a change here.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent.parent / "sidecar" / "web" / "static"
SIDE = 512
GROUND, LINE, INK, SOFT = (233, 236, 240), (150, 160, 173), (38, 46, 57), (86, 96, 112)
CARDS = {
    "portrait-absent.png": ("No portrait yet", "Ask for one on the feature's page"),
    "portrait-rendering.png": ("Portrait in the making", "This address shows it when it is done"),
    "portrait-unreliable.png": ("Unreliable portrait", "The feature's page shows it, and says why"),
}


def draw_card(title: str, text: str) -> Image.Image:
    """Return a card with two lines of words under an empty frame."""
    card = Image.new("RGB", (SIDE, SIDE), GROUND)
    pen = ImageDraw.Draw(card)
    _dashes(pen, 24, SIDE - 24)
    # A hill and a sun, the sign people know for a picture that is not there.
    pen.rounded_rectangle((186, 120, 326, 240), 12, outline=LINE, width=5)
    pen.ellipse((210, 144, 236, 170), fill=LINE)
    pen.line(((196, 228), (240, 186), (266, 210), (292, 180), (316, 208)), LINE, 5, joint="curve")
    _centre(pen, title, 282, 34, INK)
    _centre(pen, text, 338, 22, SOFT)
    return card.quantize(32)


def _dashes(pen: ImageDraw.ImageDraw, low: int, high: int) -> None:
    for at in range(low, high, 20):
        end = min(at + 11, high)
        for line in (
            (at, low, end, low),
            (at, high, end, high),
            (low, at, low, end),
            (high, at, high, end),
        ):
            pen.line(line, LINE, 3)


def _centre(
    pen: ImageDraw.ImageDraw, text: str, top: int, size: int, colour: tuple[int, int, int]
) -> None:
    # Pillow's own typeface: the same bytes come out on every machine.
    font = ImageFont.load_default(size)
    pen.text((SIDE / 2, top), text, colour, font=font, anchor="ma")


def main() -> None:
    """Write every card."""
    for name, (title, text) in CARDS.items():
        draw_card(title, text).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
