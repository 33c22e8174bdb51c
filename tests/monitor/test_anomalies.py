"""What the screen finds in features that nobody flagged: which, by how much, since when, and no more."""

import math

import numpy as np
import pytest

from sidecar.detect import Expected, Screened
from sidecar.features import FeatureSelector
from sidecar.monitor import Flag
from sidecar.monitor.anomalies import HELD_LIMIT, SHOWN_LIMIT, Anomalies
from tests.monitor.test_screening import LAYER, REQUESTS, WINDOW, Traffic, learned

pytestmark = pytest.mark.unit


def shown(traffic: Traffic) -> list[int]:
    """Return the indices of the findings that are shown."""
    return [one.key.index for one in traffic.monitor.layers()[0].anomalies]


def test_an_unflagged_feature_that_moves_is_found_with_its_numbers() -> None:
    """How often it exceeds, how unlikely that is, and since when."""
    traffic = learned(flagged=0)
    began = traffic.now + WINDOW
    traffic.windows(3, slice(7, 8))

    (found,) = traffic.monitor.layers()[0].anomalies

    assert LAYER.feature(7) == found.key
    assert (began, began + 2 * WINDOW, 3) == (found.since, found.seen, found.windows)
    assert REQUESTS == found.requests
    assert found.factor > 10
    assert found.factor == pytest.approx(found.exceedances / REQUESTS / found.baseline_ratio)
    assert found.p_log10 <= found.q_log10 < math.log10(0.05)


def test_a_flagged_feature_is_no_finding_from_the_moment_it_is_flagged() -> None:
    """It has a detector of its own, whether it was flagged before or after it moved."""
    traffic = learned(flagged=1)
    traffic.windows(2, slice(0, 2))
    before = shown(traffic)

    traffic.monitor.set_flags({FeatureSelector.parse("m/conv/channel/1"): Flag()}, traffic.now)
    after = shown(traffic)
    traffic.windows(1, slice(0, 2))

    assert [1] == before
    assert [] == after
    assert [0] == shown(traffic)


def test_a_finding_ends_when_it_has_been_calm_for_some_windows() -> None:
    """It does not come and go with every window, and it does not stay for ever."""
    traffic = learned(flagged=0)
    traffic.windows(2, slice(7, 8))
    traffic.windows(3)
    held = shown(traffic)
    traffic.windows(1)

    assert [7] == held
    assert [] == shown(traffic)


def test_a_new_baseline_begins_without_findings() -> None:
    """They were found against the old one."""
    traffic = learned(flagged=0)
    traffic.windows(2, slice(7, 8))

    traffic.monitor.reset([LAYER], traffic.now)

    assert [] == shown(traffic)


def window(significant: list[int], width: int = 200) -> tuple[Screened, np.ndarray, int, Expected]:
    """Return a window in which some features are significant, the first the most."""
    log_p, mask = np.full(width, np.nan), np.zeros(width, np.bool_)
    log_p[significant], mask[significant] = np.linspace(-90, -20, len(significant)), True
    expected = Expected(np.full(width, 0.01), np.ones(width), 64.0, 360)
    return Screened(log_p, log_p + 1, mask, width), np.full(width, 8), 64, expected


def test_few_are_shown_and_not_many_more_remembered() -> None:
    """A whole layer that moves costs no more than a part of it."""
    found = Anomalies()
    for at in range(3):
        found.observe(
            *window(list(range(200))), flagged=np.empty(0, np.int64), quiet_windows=6, now=at
        )

    assert list(range(SHOWN_LIMIT)) == [one.key.index for one in found.top(LAYER, ())]
    # With all that are remembered flagged there is nothing left to show.
    assert () == found.top(LAYER, range(HELD_LIMIT))


def test_what_came_again_stands_before_what_came_once() -> None:
    """Of the findings of one window some are expected to be false."""
    found, none = Anomalies(), np.empty(0, np.int64)
    found.observe(*window([5]), flagged=none, quiet_windows=6, now=1.0)
    found.observe(*window([9, 5]), flagged=none, quiet_windows=6, now=2.0)

    assert [(5, 2), (9, 1)] == [(one.key.index, one.windows) for one in found.top(LAYER, ())]
