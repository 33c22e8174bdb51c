"""The photographs: real, varied, reproducible, and fit to be sent."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from demo.decoding import decode
from demo.photos import (
    CROP_SIDE,
    Photo,
    ShuffledDeck,
    augment,
    encode,
    load_cats,
    load_everyday,
)

pytestmark = pytest.mark.service


def _deck(size: int, seed: int = 0) -> ShuffledDeck:
    pixel = Image.new("RGB", (1, 1))
    return ShuffledDeck([Photo(str(n), pixel) for n in range(size)], np.random.default_rng(seed))


def test_everyday_traffic_holds_no_cat() -> None:
    """The shift is new to the baseline: no photograph is in both kinds of traffic."""
    everyday = {photo.name for photo in load_everyday()}
    cats = {photo.name for photo in load_cats()}

    assert len(everyday) >= 13
    assert {"chelsea.png"} == cats
    assert set() == everyday & cats


def test_photographs_are_natural_pictures() -> None:
    """Every file is large and has the many shades of a photograph, not of a drawing."""
    for photo in (*load_everyday(), *load_cats()):
        grey = np.asarray(photo.image.convert("L"))

        assert "RGB" == photo.image.mode
        assert min(photo.image.size) >= 224, photo.name
        assert len(np.unique(grey)) > 60, photo.name


def test_crops_are_distinct_and_readable() -> None:
    """No two requests carry the same bytes, and the server reads each of them."""
    rng = np.random.default_rng(0)
    photos = load_everyday()
    bodies = [encode(augment(photos[n % len(photos)], rng), rng) for n in range(150)]

    assert 150 == len(set(bodies))
    assert all((3, 224, 224) == decode(body).shape for body in bodies[:20])
    assert all((CROP_SIDE,) * 2 == Image.open(io.BytesIO(body)).size for body in bodies[:20])


def test_a_seed_reproduces_a_request() -> None:
    """The same seed makes the same bytes, another seed others."""
    photo = load_cats()[0]

    def body(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return encode(augment(photo, rng), rng)

    assert body(7) == body(7)
    assert body(7) != body(8)


@given(size=st.integers(1, 20), rounds=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_deck_deals_every_photograph_once_a_round(size: int, rounds: int, seed: int) -> None:
    """No photograph comes twice before all have come once."""
    deck = _deck(size, seed)
    for _ in range(rounds):
        dealt = [deck.deal().name for _ in range(size)]

        assert sorted(str(n) for n in range(size)) == sorted(dealt)


def test_an_empty_deck_is_refused() -> None:
    """A deck without photographs says so at once."""
    with pytest.raises(ValueError, match="at least one"):
        _deck(0)
