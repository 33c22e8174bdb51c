import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect.layers import LayerScreen, LayerTransition, layer_step
from sidecar.detect.policy import State
from sidecar.detect.screen import ScreenPolicy
from sidecar.errors import CorruptState, InvalidInput

pytestmark = pytest.mark.unit

POLICY = ScreenPolicy(pending_windows=3)
N = 1000
LOUD, MIDDLE, QUIET, EMPTY = (51, N), (40, N), (25, N), (0, 0)


def run(
    windows: list[tuple[int, int]], layer: LayerScreen | None = None
) -> tuple[LayerScreen, list[LayerTransition]]:
    """Step through windows of ``(significant, judged)`` features; the time is their number."""
    layer, changes = layer or LayerScreen(), []
    for at, (significant, judged) in enumerate(windows, 1):
        layer, change = layer_step(layer, significant, judged, POLICY, float(at))
        changes += [change] if change else []
    return layer, changes


def states(windows: list[tuple[int, int]]) -> list[State]:
    """Return the states a new layer goes through."""
    return [change.after for change in run(windows)[1]]


def test_a_layer_fires_after_three_loud_windows_in_a_row() -> None:
    """And only then: a window that is not loud begins the row anew."""
    assert [State.PENDING, State.FIRING] == states([LOUD] * 3)
    assert [State.PENDING, State.NORMAL, State.PENDING] == states([LOUD, LOUD, MIDDLE, LOUD, LOUD])


def test_five_per_cent_is_not_enough_and_a_few_features_never_are() -> None:
    """More than the share, and at least the minimum, must be significant."""
    assert [State.NORMAL] == states([(50, N)] * 5)
    assert [State.NORMAL] == states([(4, 5)] * 5)
    assert [State.PENDING, State.FIRING] == states([(5, 5)] * 3)


def test_it_resolves_after_six_calm_windows_and_is_normal_six_later() -> None:
    """Between the two shares nothing changes: that is the hysteresis."""
    _, changes = run([LOUD] * 3 + [MIDDLE] * 20 + [QUIET] * 12)

    expected = [State.PENDING, State.FIRING, State.RESOLVED, State.NORMAL]
    assert expected == [change.after for change in changes]
    assert [1.0, 3.0, 29.0, 35.0] == [change.at for change in changes]


def test_a_resolved_layer_fires_again_on_a_new_row() -> None:
    """One loud window does not, three do."""
    assert State.FIRING is states([LOUD] * 3 + [QUIET] * 6 + [LOUD] * 3)[-1]
    assert State.RESOLVED is states([LOUD] * 3 + [QUIET] * 6 + [LOUD] * 2)[-1]


def test_windows_that_judge_nothing_neither_add_nor_break() -> None:
    """Until there are six of them in a row; then nothing is known, of a firing layer too."""
    assert [State.PENDING, State.FIRING] == states([LOUD, EMPTY, LOUD, EMPTY, LOUD])
    layer, changes = run([LOUD] * 3 + [EMPTY] * 6 + [LOUD])
    assert [State.UNKNOWN, State.PENDING] == [change.after for change in changes[-2:]]
    assert 1 == layer.loud
    assert [] == states([EMPTY] * 9)


def test_a_change_says_why_with_its_numbers() -> None:
    """A reader needs no other source."""
    _, (_, fired) = run([LOUD] * 3)
    _, (*_, lost) = run([LOUD] * 3 + [EMPTY] * 6)

    assert (51, N, 3.0) == (fired.significant, fired.judged, fired.at)
    assert (
        "51 of 1000 features significant, the 3. loud window in a row; "
        "5 % of them, and 5, count as loud" == fired.reason
    )
    assert "no feature was judged for 6 windows (was firing)" == lost.reason


WINDOWS = st.lists(st.sampled_from([LOUD, LOUD, MIDDLE, QUIET, QUIET, EMPTY]), max_size=40)
LEGAL = {
    State.UNKNOWN: {State.NORMAL, State.PENDING},
    State.NORMAL: {State.UNKNOWN, State.PENDING},
    State.PENDING: {State.UNKNOWN, State.NORMAL, State.FIRING},
    State.FIRING: {State.UNKNOWN, State.RESOLVED},
    State.RESOLVED: {State.UNKNOWN, State.NORMAL, State.FIRING},
}


@settings(max_examples=100, deadline=None)
@given(windows=WINDOWS, cut=st.integers(0, 40))
def test_a_restart_changes_nothing_and_every_change_is_legal(
    windows: list[tuple[int, int]], cut: int
) -> None:
    """What is saved is all there is, and states follow each other as they may."""
    once, changes = run(windows)
    layer, _ = run(windows[:cut])
    back = LayerScreen.from_dict(json.loads(json.dumps(layer.to_dict())))
    again, _ = run(windows[cut:], back)

    assert layer == back
    assert replace(once, since=0.0) == replace(again, since=0.0)  # time begins anew in ``run``
    assert all(change.after in LEGAL[change.before] for change in changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("since"),
        lambda saved: saved.update(version=2),
        lambda saved: saved.update(state="asleep"),
        lambda saved: saved.update(loud=-1),
        lambda saved: saved.update(calm=0.5),
        lambda saved: saved.update(calm=True),
        lambda saved: saved.update(unsampled=2**70),
        lambda saved: saved.update(since="yesterday"),
    ],
)
def test_a_damaged_state_is_corrupt(damage: Callable[[dict[str, Any]], Any]) -> None:
    """Whatever is missing, of another type, or impossible."""
    saved = run([LOUD] * 2)[0].to_dict()
    damage(saved)

    with pytest.raises(CorruptState):
        LayerScreen.from_dict(saved)


@pytest.mark.parametrize(("significant", "judged"), [(2, 1), (-1, 5)])
def test_an_impossible_window_is_refused(significant: int, judged: int) -> None:
    """More significant features than judged ones, or fewer than none."""
    with pytest.raises(InvalidInput, match="judged"):
        layer_step(LayerScreen(), significant, judged, POLICY, 0.0)
