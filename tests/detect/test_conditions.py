import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect import Condition, ConditionChange, ConditionMemory, Extremes, conditions
from sidecar.detect.certain import CHANCE, HOLD_WINDOWS, requests_needed
from sidecar.errors import CorruptState, ShapeMismatch
from tests import reference

pytestmark = pytest.mark.unit

BASE = {"least": -2.0, "most": 3.0, "nonzero": 1.0, "varying": 0.99}
"""Facts of a baseline of continuous values."""

Window = dict[str, float]


def seen(values: list[float], requests: int = 8, **base: float) -> Window:
    """Return what a window of these values says of one feature, on a baseline like BASE."""
    finite = [x for x in values if math.isfinite(x)]
    return {
        "requests": requests,
        "rows": len(values),
        "zeros": sum(x == 0 for x in values),
        "nonfinite": len(values) - len(finite),
        "minimum": min(finite, default=math.nan),
        "maximum": max(finite, default=math.nan),
        **(BASE | base),
    }


def extremes(*windows: Window) -> Extremes:
    """Return one window of several features."""

    def column(name: str) -> np.ndarray:
        return np.array([one[name] for one in windows], np.float64)

    whole = {n: column(n).astype(np.int64) for n in ("requests", "rows", "zeros", "nonfinite")}
    return Extremes(
        **whole,
        minimum=column("minimum"),
        maximum=column("maximum"),
        baseline_minimum=column("least"),
        baseline_maximum=column("most"),
        baseline_nonzero_ratio=column("nonzero"),
        baseline_varying_ratio=column("varying"),
    )


def run(windows: list[Window]) -> tuple[list[tuple[Condition, ...]], list[ConditionChange]]:
    """Return what holds for one feature after each window, and all that began or ended."""
    memory, held, changes = ConditionMemory.initial(1), [], []
    for at, window in enumerate(windows, 1):
        memory, changed = conditions(memory, extremes(window), float(at))
        held.append(memory.holding()[0])
        changes += changed
    return held, changes


USUAL, UNSAMPLED = seen([-1.0, 0.5, 1.0]), seen([], requests=0)
NEVER, BAD, SILENT, STUCK = ((one,) for one in Condition)


def test_usual_values_are_no_condition() -> None:
    """Nothing is said, however long it goes on."""
    held, changes = run([USUAL] * 50)

    assert {()} == set(held)
    assert [] == changes


# -- never seen -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [
        (6.0, {}, ()),  # exactly twice the greatest
        (6.1, {}, NEVER),
        (-4.1, {}, NEVER),
        (11.0, {"least": 9.0, "most": 10.0}, ()),  # by exactly the range
        (11.1, {"least": 9.0, "most": 10.0}, NEVER),
        (7.9, {"least": 9.0, "most": 10.0}, NEVER),
        (-8.1, {"least": -10.0, "most": -9.0}, ()),
        (-7.9, {"least": -10.0, "most": -9.0}, NEVER),
        (1e-30, {"least": 0.0, "most": 0.0}, NEVER),  # dead in the baseline
        (0.0, {"least": 0.0, "most": 0.0}, ()),
        (math.inf, {}, BAD),
        (1e30, {"least": math.nan, "most": math.nan}, ()),  # no baseline
    ],
)
def test_values_far_beyond_the_baseline_were_never_seen(
    value: float, base: dict[str, float], expected: tuple[Condition, ...]
) -> None:
    """Above twice its greatest, or by more than its range beyond it; below likewise."""
    usual = np.nan_to_num(base.get("most", 1.0))

    held, _ = run([seen([value, usual], **base)])

    assert expected == held[0]


def test_a_record_is_told_again_only_when_it_doubles() -> None:
    """What was reported counts as seen once it is over; while it lasts, it lasts."""
    high, higher = seen([1.0, 7.0]), seen([1.0, 13.0])
    calm = [USUAL] * HOLD_WINDOWS

    held, changes = run([high] * 9 + calm + [high] * 3 + calm + [seen([1.0, 14.1])])

    assert [NEVER] * 9 == held[:9]
    assert ((), NEVER) == (held[9 + HOLD_WINDOWS], held[-1])
    assert [1.0, 15.0, 25.0] == [change.at for change in changes]
    assert {()} == set(run([high, *calm, higher])[0][HOLD_WINDOWS:])


# -- the others -----------------------------------------------------------------------------------


def test_a_nan_is_told_at_once_and_without_a_baseline() -> None:
    """One NaN among many values is one too many."""
    nothing = dict.fromkeys(BASE, math.nan)

    held, (change,) = run([seen([1.0, math.nan, -math.inf], **nothing)])

    assert BAD == held[0]
    assert "2 of 3 values are NaN or infinite" == change.reason


@pytest.mark.parametrize(("nonzero", "windows"), [(1.0, 8), (0.1, 25), (0.01, 258)])
def test_silence_takes_as_long_as_the_baseline_makes_it_certain(
    nonzero: float, windows: int
) -> None:
    """The rarer a value other than zero was, the more requests of zeros prove something."""
    zeros = seen([0.0, 0.0], nonzero=nonzero, least=0.0)

    held, (change,) = run([zeros] * windows)

    assert [()] * (windows - 1) + [SILENT] == held
    assert f"only zeros in {8 * windows} requests; in the baseline {100 * nonzero:g} %" in (
        change.reason
    )


def test_one_value_breaks_the_silence() -> None:
    """Zeros count in a row."""
    zeros, value = seen([0.0] * 2, nonzero=0.5), seen([0.0, 1.0], nonzero=0.5)

    held, _ = run([*[zeros] * 7, value] * 9)

    assert {()} == set(held)


@pytest.mark.parametrize("nonzero", [0.0, math.nan])
def test_what_was_always_silent_is_never_told(nonzero: float) -> None:
    """Without a value in the baseline, or without a baseline, zeros prove nothing."""
    zeros = seen([0.0] * 2, requests=10**9, nonzero=nonzero, varying=nonzero)

    held, _ = run([zeros] * 20)

    assert {()} == set(held)


def test_a_constant_other_than_zero_is_saturated() -> None:
    """The same value over requests enough, and only if it stays the same."""
    one, other = seen([0.7, 0.7]), seen([0.8, 0.8])

    held, (change,) = run([one] * 7 + [other] * 8)

    assert [()] * 14 + [STUCK] == held
    assert "the same value, 0.8, in 64 requests" == change.reason


def test_values_that_stay_at_the_top_are_saturated() -> None:
    """None below the baseline's greatest, however they vary above it."""
    held, changes = run([seen([3.0, 3.0 + 0.1 * at]) for at in range(10)])

    assert [()] * 7 + [STUCK] * 3 == held
    assert "no value below the baseline's greatest, 3, in 64 requests" == changes[0].reason


def test_a_feature_that_hardly_varies_takes_longer() -> None:
    """A latch that has one value in 99 % of its baseline is no surprise for 2,000 requests."""
    held, _ = run([seen([1.0, 1.0], varying=0.01)] * 258)

    assert [()] * 257 + [STUCK] == held


# -- not sampled, and over ------------------------------------------------------------------------


def test_a_condition_holds_for_some_windows_and_says_when_it_is_over() -> None:
    """Scrapes that come seldom still see it; windows without a sample do not count."""
    held, changes = run([seen([math.nan])] + [USUAL, UNSAMPLED] * HOLD_WINDOWS)

    assert [BAD] * (2 * HOLD_WINDOWS - 1) + [()] * 2 == held
    assert [(True, 1.0), (False, 12.0)] == [(change.holds, change.at) for change in changes]
    assert "not seen for 6 windows" == changes[1].reason


def test_not_sampled_is_not_silent() -> None:
    """Without requests nothing is counted, whatever else the window claims."""
    held, _ = run([UNSAMPLED] * 1000 + [seen([0.0], requests=0)] * 1000)

    assert {()} == set(held)


def test_the_certain_number_is_certain() -> None:
    """That many requests without a varying value have the stated chance, and no fewer do."""
    ratios = np.array([0.001, 0.02, 0.25])

    found = requests_needed(ratios)

    assert np.all((1 - ratios) ** found <= CHANCE)
    assert np.all(((1 - ratios) ** (found - 1) > CHANCE) | (found == 64))


# -- any stream -----------------------------------------------------------------------------------

VALUES = st.lists(
    st.sampled_from([0.0, 0.0, 0.7, 1.0, -1.0, 3.0, 6.5, 20.0, -9.0, math.nan, math.inf]),
    max_size=4,
)
WINDOWS = (
    st.builds(
        seen,
        VALUES,
        requests=st.sampled_from([0, 1, 30, 64, 700]),
        nonzero=st.sampled_from([1.0, 0.5, 0.01, 0.0]),
        varying=st.sampled_from([0.9, 0.01, 0.0]),
    )
    | st.just(seen([0.0, 0.0], requests=64))
    | st.just(seen([3.0, 3.0], requests=64))
    | st.just(UNSAMPLED)
)
STREAMS = st.lists(st.lists(WINDOWS, min_size=3, max_size=3), max_size=30)


@settings(max_examples=80, deadline=None)
@given(stream=STREAMS)
def test_it_matches_its_naive_twin(stream: list[list[Window]]) -> None:
    """For any stream each feature has the conditions that plain Python, alone, gives it."""
    memory, twins = ConditionMemory.initial(3), [reference.Conditions() for _ in range(3)]

    for at, windows in enumerate(stream):
        memory, _ = conditions(memory, extremes(*windows), float(at))
        expected = [twin.step(**one) for twin, one in zip(twins, windows, strict=True)]
        assert expected == [[str(one) for one in found] for found in memory.holding()]


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, cut=st.integers(0, 30), order=st.permutations(range(3)))
def test_order_restarts_and_gaps_change_nothing(
    stream: list[list[Window]], cut: int, order: list[int]
) -> None:
    """Another order, a saved memory, and windows without a sample give every feature the same."""
    whole, other = ConditionMemory.initial(3), ConditionMemory.initial(3)

    for at, windows in enumerate(stream):
        whole, expected = conditions(whole, extremes(*windows), float(at))
        mixed = extremes(*[windows[place] for place in order])
        other, actual = conditions(other, mixed, float(at))
        other, nothing = conditions(other, extremes(*[UNSAMPLED] * 3), float(at))
        if at == cut:
            other = ConditionMemory.from_dict(json.loads(json.dumps(other.to_dict())))
        assert () == nothing
        told = {(order[one.index], one.condition, one.holds, one.reason) for one in actual}
        assert told == {(one.index, one.condition, one.holds, one.reason) for one in expected}

    assert whole.resized(np.array(order)).to_dict() == other.to_dict()


# -- memory ---------------------------------------------------------------------------------------


def test_other_flags_keep_the_memory_of_those_that_stay() -> None:
    """Features may be dropped, reordered and added; new ones have no condition."""
    memory, _ = conditions(ConditionMemory.initial(2), extremes(USUAL, seen([math.nan])), 0.0)

    found = memory.resized(np.array([1, -1, 0]))

    assert [BAD, (), ()] == found.holding()
    with pytest.raises(ShapeMismatch):
        memory.resized(np.array([2]))


def test_a_window_of_other_features_is_refused() -> None:
    """A memory is never joined with somebody else's window."""
    with pytest.raises(ShapeMismatch, match="resize"):
        conditions(ConditionMemory.initial(2), extremes(USUAL), 0.0)


def test_no_feature_is_no_problem() -> None:
    """A layer without flags goes through, and through JSON."""
    memory, changes = conditions(ConditionMemory.initial(0), extremes(), 0.0)

    assert (0, ()) == (len(memory), changes)
    assert memory.to_dict() == ConditionMemory.from_dict(memory.to_dict()).to_dict()


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("ages"),
        lambda saved: saved.update(version=2),
        lambda saved: saved.update(zeros=[1]),
        lambda saved: saved.update(zeros=7),
        lambda saved: saved.update(stuck=[0.5, 1]),
        lambda saved: saved.update(top=[-1, 0]),
        lambda saved: saved.update(ages=[[0, 0]] * 3),
        lambda saved: saved.update(value=["high", 0]),
    ],
)
def test_a_damaged_memory_is_corrupt(damage: Callable[[dict[str, Any]], Any]) -> None:
    """Whatever is missing, of another type or shape, or impossible, is CorruptState."""
    saved = ConditionMemory.initial(2).to_dict()
    damage(saved)

    with pytest.raises(CorruptState):
        ConditionMemory.from_dict(saved)
