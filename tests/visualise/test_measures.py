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


def test_the_way_of_the_photographs_is_taken_or_not() -> None:
    """One waypoint: through the same channel, through another, and through both."""
    photographs = np.array([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, -0.1, 0.0]])

    def along(picture: list[float]) -> float:
        found = measures.path_agreement([np.array([picture])], [photographs])
        assert found is not None
        return found

    assert along([1.0, 0.0, 0.0]) == pytest.approx(1.0, abs=0.02)
    assert along([0.0, 0.0, 1.0]) < 0.1
    assert 0.6 < along([1.0, 0.0, 1.0]) < 0.8


def test_a_way_that_is_hardly_used_is_not_taken() -> None:
    """Whatever the angle: what counts a hundredth, or a hundred times, is another way."""
    photographs = np.array([[1.0, 0.0], [1.0, 0.1]])

    for times in (0.01, 100.0):
        found = measures.path_agreement([np.array([[times, 0.0]])], [photographs])
        assert found == pytest.approx(0.04, abs=0.01)


def test_photographs_without_a_common_way_say_nothing() -> None:
    """Neither do waypoints that the unit does not depend on, nor a single photograph."""
    unlike = np.eye(4)
    silent = np.zeros((4, 4))
    one = np.ones((1, 4))

    for photographs in (unlike, silent, one):
        assert measures.path_agreement([np.ones((1, 4))], [photographs]) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_probabilities_add_up(logits: list[float]) -> None:
    """Whatever the logits."""
    assert measures.softmax(np.array(logits)).sum() == pytest.approx(1.0)
