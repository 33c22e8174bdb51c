"""Our reader of PNGs against Pillow's."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sidecar.errors import CorruptState
from sidecar.jobs.png import read_pixels, read_texts
from sidecar.visualise.pictures import encode_png

pytestmark = pytest.mark.unit


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Return a picture in which neighbours are alike, so that every filter pays somewhere."""
    walk = np.random.default_rng(seed).integers(-9, 10, size=(height, width, 3))
    return (np.cumsum(np.cumsum(walk, 0), 1) % 256).astype(np.uint8)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_pixels_are_those_that_were_written(height: int, width: int, seed: int) -> None:
    """Whatever filters the writer chose, the same pixels come back."""
    image = smooth(height, width, seed)

    assert np.array_equal(image, read_pixels(encode_png(image, {})))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_every_colour_type_agrees_with_pillow(mode: str) -> None:
    """Grey, RGB and RGBA are read as Pillow reads them."""
    out = io.BytesIO()
    Image.fromarray(smooth(33, 21, 4)).convert(mode).save(out, format="PNG")
    expected = np.asarray(Image.open(io.BytesIO(out.getvalue())))

    assert np.array_equal(expected.reshape(33, 21, -1), read_pixels(out.getvalue()))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80))
def test_texts_come_back(text: str) -> None:
    """Latin-1 and everything else, in whichever kind of chunk."""
    assert {"k": text} == read_texts(encode_png(smooth(2, 2, 0), {"k": text}))


@given(place=st.integers(8, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(place: int, bit: int) -> None:
    """No damage behind the signature goes unnoticed, and none raises anything else."""
    whole = bytearray(encode_png(smooth(9, 9, 1), {"k": "text"}))
    whole[place % (len(whole) - 8) + 8] ^= 1 << bit

    with pytest.raises(CorruptState):
        read_texts(bytes(whole))


def test_what_is_no_png_is_refused() -> None:
    """Other files, and a PNG cut short."""
    whole = encode_png(smooth(9, 9, 1), {})

    for content in (b"", b"GIF89a", whole[:-6], whole[:40]):
        with pytest.raises(CorruptState):
            read_pixels(content)
