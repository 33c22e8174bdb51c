import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect import (
    Observation,
    SpikePolicy,
    SpikeState,
    State,
    evidence,
    initial,
    rates,
    step,
)
from sidecar.errors import CorruptState, ShapeMismatch

pytestmark = pytest.mark.unit

POLICY = SpikePolicy()


def seen(requests: list[int], exceedances: list[int], baseline: float = 0.001) -> Observation:
    """Return a window."""
    n = len(requests)
    return Observation(
        np.array(requests, np.int64),
        np.array(exceedances, np.int64),
        np.full(n, baseline),
        np.full(n, baseline),
        np.full(n, 4.0),
        np.ones(n, np.bool_),
    )


def lived(n: int, windows: int = 5) -> SpikeState:
    """Return the state of ``n`` features of which every other one spikes."""
    state = initial(n, POLICY, 0.0)
    for at in range(windows):
        exceedances = [20 * (j % 2) for j in range(n)]
        state, _ = step(state, seen([64] * n, exceedances), POLICY, float(at), flagged=n)
    return state


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("windows", [0, 5])
def test_a_saved_state_comes_back_through_json(n: int, windows: int) -> None:
    """The saved form is JSON and holds everything."""
    state = lived(n, windows)

    found = SpikeState.from_dict(json.loads(json.dumps(state.to_dict())))

    assert state.to_dict() == found.to_dict()
    for name in state.__slots__:
        expected, actual = getattr(state, name), getattr(found, name)
        assert (expected.dtype, expected.shape) == (actual.dtype, actual.shape)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("since"),
        lambda saved: saved.update(version=1),
        lambda saved: saved.update(states=["normal"]),
        lambda saved: saved.update(states=["normal", "asleep"]),
        lambda saved: saved.update(states=7),
        lambda saved: saved.update(calm=[0.5, 0]),
        lambda saved: saved.update(calm=[[0, 0]]),
        lambda saved: saved.update(calm=[2**70, 0]),
        lambda saved: saved.update(requests=[]),
        lambda saved: saved.update(requests=[[1, 2]]),
        lambda saved: saved.update(requests=[[1, 2], [3]]),
        lambda saved: saved["exceedances"][-1].__setitem__(0, 65),
        lambda saved: saved["exceedances"][-1].__setitem__(0, -1),
        lambda saved: saved.update(since=["yesterday", 0]),
        lambda saved: saved.update(recent=[]),
        lambda saved: saved.update(recent=[[0.1, 0.1], [0.1]]),
        lambda saved: saved.update(level=[0.1]),
        lambda saved: saved.update(level=[0.1, 1.5]),
        lambda saved: saved.update(onset=[-0.1, None]),
        lambda saved: saved.update(evidence=[[0, 0]] * 4),
        lambda saved: saved.update(evidence=[[0, None]] * 5),
        lambda saved: saved.update(evidence=[[0, -1]] * 5),
    ],
)
def test_a_damaged_state_is_corrupt(damage: Callable[[dict[str, Any]], Any]) -> None:
    """Whatever is missing, of another type or shape, or impossible, is CorruptState."""
    saved = lived(2).to_dict()
    damage(saved)

    with pytest.raises(CorruptState):
        SpikeState.from_dict(saved)


@settings(max_examples=60, deadline=None)
@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    ),
    name=st.sampled_from(sorted(lived(2).to_dict())),
)
def test_junk_never_raises_anything_else(junk: object, name: str) -> None:
    """A field of any JSON value gives a state or CorruptState."""
    try:
        found = SpikeState.from_dict({**lived(2).to_dict(), name: junk})
    except CorruptState:
        return

    assert 2 == len(found)


def test_other_flags_keep_the_state_of_those_that_stay() -> None:
    """Features may be dropped, reordered and added; new ones are unknown from now on."""
    state = lived(4)

    found = state.resized(np.array([3, -1, 0]), POLICY, 9.0)

    assert [State.FIRING, State.UNKNOWN, State.NORMAL] == [found.state(j) for j in range(3)]
    assert [state.since[3], 9.0, state.since[0]] == found.since.tolist()
    assert [128, 0, 128] == rates(found)[0].tolist()
    assert [state.onset[3], state.level[0]] == [found.onset[0], found.level[2]]
    assert evidence(state)[0] == evidence(found)[2]


def test_a_new_feature_is_judged_from_its_first_sample() -> None:
    """What was added steps like what was there from the start."""
    found = lived(1).resized(np.array([-1]))

    found, (change,) = step(found, seen([64], [0]), POLICY, 1.0, flagged=1)

    assert (State.UNKNOWN, State.NORMAL) == (change.before, change.after)


@pytest.mark.parametrize("keep", [[4], [-2]])
def test_a_place_that_does_not_exist_is_refused(keep: list[int]) -> None:
    """Resizing never hands one feature's state to another by wrapping around."""
    with pytest.raises(ShapeMismatch):
        lived(4).resized(np.array(keep))


@pytest.mark.parametrize("windows", [1, 3, 40])
def test_a_changed_policy_fits_the_remembered_windows(windows: int) -> None:
    """A state saved under other numbers of windows goes on under the new ones."""
    policy = SpikePolicy(short_windows=windows, lag_windows=windows)

    found, _ = step(lived(1), seen([64], [1]), policy, 9.0, flagged=1)

    assert [(windows, 1)] * 2 == [found.requests.shape, found.recent.shape]
    known = min(windows, 3)  # two were remembered
    assert 1 / (64 * known) == rates(found)[1][0]


def test_a_step_leaves_the_old_state_alone() -> None:
    """States are values: stepping and resizing make new ones."""
    state = lived(2)
    before = state.to_dict()

    step(state, seen([9, 9], [9, 9], 0.1), POLICY, 9.0, flagged=2)
    state.resized(np.array([0]))

    assert before == state.to_dict()
