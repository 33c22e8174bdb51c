"""The measures on numbers small enough to check by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.visualise import measures

GENERIC = np.array([-1.0, 0.0, 0.0, 1.0])  # median 0, greatest 1, deviation sqrt(1/2)


def test_rise_is_measured_from_the_best_generic_picture() -> None:
    """In the deviations that the unit has on generic pictures."""
    assert measures.rise(3.0, GENERIC) == pytest.approx(2.0 / np.sqrt(0.5))
    assert measures.rise(0.0, GENERIC) < 0


def test_a_unit_that_generic_pictures_do_not_move_is_measured_all_the_same() -> None:
    """The yardstick has a floor, so the numbers stay finite."""
    assert np.isfinite(measures.rise(1.0, np.zeros(4)))


def test_kept_is_the_share_of_the_rise() -> None:
    """All, half, and none of it."""
    assert [1.0, 0.5, 0.0] == [measures.kept(after, 4.0, GENERIC) for after in (4.0, 2.0, 0.0)]


def test_selectivity_counts_units_that_are_excited_more() -> None:
    """Each in its own spread: a unit with larger numbers is not for that more excited."""
    generic = np.stack([GENERIC, GENERIC * 100, GENERIC], axis=1)
    shown = np.array([3.0, 100.0, 5.0])

    found = measures.selectivity(3.0, generic[:, 0], shown, generic, 0)

    assert found == 0.5  # unit 2 is excited more, unit 1 is not


def test_pictures_that_agree_are_told_from_those_that_do_not() -> None:
    """Two like pictures against unlike ones; then a set that is no more alike than any."""
    generic = np.random.default_rng(0).normal(size=(30, 8))
    one, other = np.eye(8)[0], np.eye(8)[1]

    alike = measures.agreement(np.stack([one, one * 1.1]), np.stack([other, other * 0.9]), generic)
    mixed = measures.agreement(np.stack([one, other]), np.stack([other, one]), generic)

    assert alike > 1.5
    assert mixed < 0.1


def test_preference_counts_pairs() -> None:
    """Three of four."""
    assert measures.preference(np.array([2.0, 4.0]), np.array([1.0, 3.0])) == 0.75


def test_the_way_of_the_examples_is_followed_or_not() -> None:
    """One waypoint: a picture like the examples, one like the others, one only faintly like them."""
    stream = np.random.default_rng(1)
    photographs = stream.normal(size=(40, 6)) * 0.1
    photographs[:5, 0] += 3.0
    responses = photographs[:, 0]

    def along(picture: list[float]) -> float:
        shown = np.array([picture])
        return float(measures.path_agreement([shown], [photographs], responses, 5)[0, 0])

    assert along([3.0, 0, 0, 0, 0, 0]) == pytest.approx(1.0, abs=0.1)
    assert along([0.0, 0, 0, 9.0, 0, 0]) < 0.5
    assert along([0.3, 0, 0, 0, 0, 0]) == pytest.approx(0.1, abs=0.1)


def test_examples_without_a_way_of_their_own_are_known() -> None:
    """The second row is near a half where the best photographs are as unlike as any."""
    stream = np.random.default_rng(2)
    photographs = stream.normal(size=(60, 20))
    responses = stream.normal(size=60)

    found = measures.path_agreement([photographs[:1]], [photographs], responses, 5)

    assert 0.2 < found[1, 0] < 0.8


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_probabilities_add_up(logits: list[float]) -> None:
    """Whatever the logits."""
    assert measures.softmax(np.array(logits)).sum() == pytest.approx(1.0)
