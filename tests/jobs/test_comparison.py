"""How far two pictures of one request are apart, and what differs between their runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ShapeMismatch
from sidecar.jobs import compare
from sidecar.visualise.pictures import encode_png
from tests.jobs.pictures import facts_of

pytestmark = pytest.mark.unit

IMAGE = np.random.default_rng(3).integers(2, 250, size=(12, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0, "identical"), (1, "equal within 1/255"), (-1, "equal within 1/255"), (2, "different")],
)
def test_the_verdict_is_that_of_the_furthest_pixel(change: int, verdict: str) -> None:
    """One channel of one pixel decides, and the numbers say by how much."""
    other = IMAGE.copy()
    other[5, 4, 1] = int(other[5, 4, 1]) + change

    found = compare(encode_png(IMAGE, {}), encode_png(other, {"k": "v"}), {}, {})

    assert (verdict, verdict != "different") == (found.verdict, found.equal)
    assert abs(change) / 255 == pytest.approx(found.max_difference)
    assert abs(change) / 255 / IMAGE.size == pytest.approx(found.mean_difference)


@given(first=st.integers(0, 2**32), second=st.integers(0, 2**32))
def test_differences_are_those_of_a_plain_loop(first: int, second: int) -> None:
    """The same as floating-point arithmetic on every pixel, whichever picture comes first."""
    images = [
        np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
        for seed in (first, second)
    ]
    apart = np.abs(images[0].astype(float) - images[1].astype(float)) / 255
    pngs = [encode_png(image, {}) for image in images]

    for found in (compare(*pngs, {}, {}), compare(*pngs[::-1], {}, {})):
        assert apart.max() == pytest.approx(found.max_difference)
        assert apart.mean() == pytest.approx(found.mean_difference)


def test_what_differs_between_the_runs_is_named() -> None:
    """Versions and device, but neither times nor jobs; what one manifest lacks is no change."""
    before, after = facts_of(), facts_of(duration_seconds=99.0, job={"id": "02"})
    after["code"] = {**after["code"], "torch": "2.14.0"}
    after["device"] = {**after["device"], "threads": 8}
    after["activation"] = {**after["activation"], "plain": 1.5}
    del before["code"]["pillow"]
    png = encode_png(IMAGE, {})

    found = compare(png, png, before, after)

    assert (("code.torch", "2.13.0", "2.14.0"), ("device.threads", "1", "8")) == found.changed
    assert 0.25 == found.activation_difference


def test_pictures_of_other_sizes_are_refused() -> None:
    """They are not of the same request."""
    with pytest.raises(ShapeMismatch, match="not the same request"):
        compare(encode_png(IMAGE, {}), encode_png(IMAGE[:4], {}), {}, {})
