import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar.errors import ShapeMismatch, UnsupportedTarget
from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Maximisation, Target, content_key
from sidecar.visualise import Picture, TypicalRange, read_image

pytestmark = pytest.mark.unit

LAYER = LayerKey("lite0", "3fa1", "_blocks.14")


@pytest.fixture
def picture() -> Picture:
    """A picture of random pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Picture(
        target=Target(LAYER.feature(33)),
        recipe=Maximisation(canvas=40, seed=9),
        model_digest="a" * 64,
        inputs={},
        image=pixels,
        activation=41.5,
        activation_augmented=39.25,
        activation_augmented_spread=2.0,
        first_activation=0.5,
        history=(1.0, 20.0),
    )


def test_the_png_decodes_to_the_very_pixels(picture: Picture) -> None:
    """Nothing is lost between the numbers and the file they are shown beside."""
    with Image.open(io.BytesIO(picture.png())) as decoded:
        pixels = np.asarray(decoded)

    assert "RGB" == decoded.mode
    assert np.array_equal(picture.image, pixels)


def test_the_png_says_where_it_comes_from(picture: Picture) -> None:
    """Method, unit, weights, recipe, seed and activations travel inside the file."""
    with Image.open(io.BytesIO(picture.png())) as decoded:
        decoded.load()
        texts = dict(decoded.info)

    assert "lite0@3fa1/_blocks.14/channel/33" == texts["sidecar.feature"] == texts["Title"]
    assert "feature-sidecar" == texts["Software"]
    assert "activation_maximisation/2" == texts["sidecar.method"]
    assert "a" * 64 == texts["sidecar.model_digest"]
    assert picture.recipe.values() == json.loads(texts["sidecar.recipe"])
    assert "9" == texts["sidecar.seed"]
    assert "41.5" == texts["sidecar.activation"]
    assert content_key(picture.target, picture.recipe) == texts["sidecar.content_key"]
    assert "sidecar.position" not in texts


def test_a_neurons_position_is_in_the_png() -> None:
    """Two positions of one channel are two pictures."""
    layer = LayerKey("lite0", "3fa1", "_blocks.14", FeatureKind.NEURON, View.RAW)
    image = np.zeros((32, 32, 3), np.uint8)
    target = Target(FeatureKey(layer, 3), (2, 5))
    made = Picture(target, Maximisation(), "b" * 64, {}, image, 0.0, 0.0, 0.0, 0.0, ())

    assert "2,5" == made.provenance()["sidecar.position"]


def test_equal_pictures_have_equal_bytes(picture: Picture) -> None:
    """No clock in the file, so the artifact store keeps it once."""
    assert picture.png() == picture.png()


def test_typical_ranges_refuse_ends_that_do_not_belong_together() -> None:
    """Other layers, other widths, other ranks."""
    one, two = np.zeros(4, np.float32), np.ones(5, np.float32)

    with pytest.raises(ShapeMismatch, match="only one end"):
        TypicalRange({"a": one}, {"b": one})
    with pytest.raises(ShapeMismatch, match=r"\(4,\) and high \(5,\)"):
        TypicalRange({"a": one}, {"a": two})
    with pytest.raises(ShapeMismatch):
        TypicalRange({"a": one[None]}, {"a": one[None]})


def test_the_digest_of_a_range_follows_its_numbers() -> None:
    """It is the sha256 over low then high, so that other processes can compute it."""
    low, high = np.arange(4, dtype=np.float32), np.arange(4, dtype=np.float32) + 2
    name = str(LAYER)

    known = TypicalRange({name: low}, {name: high})

    assert hashlib.sha256(low.tobytes() + high.tobytes()).hexdigest() == known.digest(LAYER)
    assert known.digest(LAYER) != TypicalRange({name: low}, {name: high + 1}).digest(LAYER)
    assert "" == TypicalRange({}, {}).digest(LAYER)


def test_an_image_is_read_as_a_person_sees_it(tmp_path: Path) -> None:
    """Upright, without its transparency, and never as something that is no picture."""
    tall = Image.new("RGBA", (4, 6), (255, 0, 0, 0))
    turned = tall.getexif()
    turned[0x0112] = 6  # taken with the camera on its side
    tall.save(tmp_path / "a.png", exif=turned)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno")

    found = read_image(tmp_path / "a.png")

    assert (4, 6, 3) == found.shape
    assert 255 == found.min()
    with pytest.raises(UnsupportedTarget, match=r"image b\.png cannot be read"):
        read_image(tmp_path / "b.png")
