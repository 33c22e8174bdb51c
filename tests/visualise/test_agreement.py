"""Whether units of two layers are the same, moved, lost or new."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UnsupportedTarget
from sidecar.visualise.agreement import (
    CHANCE,
    LEAST_IMAGES,
    Fate,
    agreement,
    chance_limit,
    correlations,
    similarity,
    summary,
)

pytestmark = pytest.mark.unit

IMAGES = 200


@pytest.fixture
def layer() -> np.ndarray:
    """Eight units that have nothing to do with each other, shape ``(images, 8)``."""
    return np.random.default_rng(1).normal(10.0, 2.0, (IMAGES, 8))


def test_a_layer_is_the_same_as_itself(layer: np.ndarray) -> None:
    """Nothing moved where nothing changed, to the last digit of a noise a fifth as large."""
    noise = np.random.default_rng(2).normal(0.0, 0.4, layer.shape)

    assert [Fate.SAME] * 8 == agreement(layer, layer).fates()
    assert [Fate.SAME] * 8 == agreement(layer, layer + noise).fates()
    assert [] == agreement(layer, layer).new().tolist()


def test_units_that_changed_places_have_moved(layer: np.ndarray) -> None:
    """The partner is the unit that does it now."""
    other = layer.copy()
    other[:, [2, 5]] = other[:, [5, 2]]

    found = agreement(layer, other)

    assert [2, 5] == [unit for unit, fate in enumerate(found.fates()) if fate is Fate.MOVED]
    assert (5, 2) == (found.partner[2], found.partner[5])
    assert "unit 5 there does it now, correlation 1.00" in found.fate(2)[1]
    assert [] == found.new().tolist()


def test_a_unit_that_nothing_answers_for_is_lost_and_its_successor_new(layer: np.ndarray) -> None:
    """Exactly the unit that was replaced."""
    other = layer.copy()
    other[:, 3] = np.random.default_rng(9).normal(10.0, 2.0, IMAGES)

    found = agreement(layer, other)

    assert [3] == [unit for unit, fate in enumerate(found.fates()) if fate is Fate.LOST]
    assert [3] == found.new().tolist()
    assert {"same": 7, "moved": 0, "lost": 1, "new": 1} == summary(found)["counts"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 3.0, "other values: median moved by 1.62"),
        (lambda x: 10 + (x - 10) * 2.0, "spread times 2.0"),
        (lambda x: 10 + (x - 10) * 0.4, "spread times 0.40"),
    ],
)
def test_a_unit_at_other_values_has_moved(
    layer: np.ndarray, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    """Thresholds that were learned of it no longer fit, although the same images drive it."""
    found = agreement(layer, change(layer))

    assert [Fate.MOVED] * 8 == found.fates()
    assert words in found.fate(0)[1]


def test_constant_units_are_no_evidence(layer: np.ndarray) -> None:
    """A dead unit is the same while it is dead in both, and never somebody's partner."""
    dead = layer.copy()
    dead[:, 0] = 4.0

    assert Fate.SAME is agreement(dead, dead).fates()[0]
    assert Fate.MOVED is agreement(dead, layer).fates()[0]
    assert Fate.LOST is agreement(layer, dead).fates()[0]
    assert 0 not in agreement(layer, dead).partner[1:]


def test_layers_of_different_widths_are_matched(layer: np.ndarray) -> None:
    """Every unit has a partner among fewer or more units."""
    wider = np.concatenate([layer[:, ::-1], layer[:, :2] * 0.5], axis=1)

    found = agreement(layer, wider)
    narrow = agreement(layer, layer[:, :5])

    assert [7, 6, 5, 4, 3, 2] == found.partner[[0, 1, 2, 3, 4, 5]].tolist()
    assert [Fate.SAME] * 5 + [Fate.LOST] * 3 == narrow.fates()


def test_unrelated_units_are_not_related_by_chance() -> None:
    """Of a thousand unrelated units on few images the best one stays below the limit."""
    rng = np.random.default_rng(4)
    first, second = (rng.normal(size=(LEAST_IMAGES, 1000)) for _ in range(2))

    found = agreement(first, second)

    lost = found.fates().count(Fate.LOST)
    assert lost >= 1000 * (1 - 5 * CHANCE)
    assert found.limit > np.nanmedian(found.best_value) > 0.5


def test_too_few_images_are_refused(layer: np.ndarray) -> None:
    """A comparison that chance would decide is none."""
    with pytest.raises(UnsupportedTarget, match="31 images are too few to compare units on"):
        agreement(layer[:31], layer[:31])


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 9))
def test_correlations_are_those_of_numpy(n: int, m: int, seed: int) -> None:
    """Pair by pair."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(40, n)), rng.normal(size=(40, m))

    found = correlations(first, second)

    assert np.corrcoef(first.T, second.T)[:n, n:] == pytest.approx(found)


def test_similarity_knows_a_rotation_from_another_layer(layer: np.ndarray) -> None:
    """Linear CKA is 1 for any rotation, and small for what is unrelated."""
    rng = np.random.default_rng(5)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))

    assert similarity(layer, layer @ turn) == pytest.approx(1.0)
    assert similarity(layer, rng.normal(size=(IMAGES, 8))) < 0.2
    assert similarity(layer, np.ones((IMAGES, 8))) == 0.0


def test_more_units_or_fewer_images_need_more_correlation() -> None:
    """The limit pays for how many were looked through."""
    assert chance_limit(64, 1000) > chance_limit(64, 10) > chance_limit(640, 10)
