import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect import DriftChange, DriftMemory, DriftPolicy, Places, Reference, drift_step
from sidecar.detect.drift import BINS, js_distance, wasserstein_distance
from sidecar.errors import CorruptState, ShapeMismatch
from tests import reference

pytestmark = pytest.mark.unit

POLICY = DriftPolicy(least_values=100, learning_hours=3)
HOUR = 3600.0


def places(values: np.ndarray) -> Places:
    """Return where values ``(rows, features)`` are, each a place of its own."""
    rows, width = values.shape
    flat = values.T.ravel().astype(np.float64)
    return Places(np.repeat(np.arange(width), rows), flat, flat, np.ones(len(flat), np.int64))


def divided(values: np.ndarray) -> Reference:
    """Return baselines of these values."""
    return Reference.of(places(values), values.std(axis=0))


BASE = np.random.default_rng(0).normal(size=(8000, 2))
REFERENCE = divided(BASE)


def hour_of(shift: float, rows: int = 2000, seed: int = 1) -> np.ndarray:
    """Return an hour's occupancy of which the second feature is shifted."""
    values = np.random.default_rng(seed).normal(size=(rows, 2))
    return REFERENCE.occupancy(places(values + np.array([0.0, shift])))


def run(
    hours: list[np.ndarray], policy: DriftPolicy = POLICY, memory: DriftMemory | None = None
) -> tuple[DriftMemory, list[DriftChange]]:
    """Return the memory after hours of one window each, the last one still open, and what changed."""
    memory, changes = memory or DriftMemory.initial(2), []
    start = memory.hour + 1
    for at, window in enumerate(hours, start):
        memory, changed = drift_step(memory, window, REFERENCE, policy, at * HOUR + 5)
        changes += changed
    return memory, changes


QUIET = [hour_of(0.0, seed=seed) for seed in range(60)]


# -- bins -----------------------------------------------------------------------------------------


def test_bins_hold_equal_shares_of_the_baseline() -> None:
    """Each of 32 bins holds a 32nd of what a baseline of different values holds."""
    assert [[250] * BINS] * 2 == REFERENCE.counts.tolist()


def test_zeros_of_a_rectified_feature_share_one_bin() -> None:
    """A value with more than a bin's share keeps all of it, and the rest are divided."""
    values = np.maximum(BASE[:, :1] - 1.2816, 0.0)  # 90 % zeros

    found = divided(values)

    assert int((values == 0).sum()) == found.counts[0].max()
    assert 5 == np.count_nonzero(found.counts)
    assert len(values) == found.counts.sum()


def test_a_constant_baseline_has_one_bin() -> None:
    """Anything else is far from it; its standard deviation measures nothing."""
    found = divided(np.full((50, 1), 2.0))
    moved = found.occupancy(places(np.array([[1.0], [2.0], [3.0]])))

    assert 1 == np.count_nonzero(found.counts)
    assert [3] == moved.sum(axis=1).tolist()
    assert np.isnan(wasserstein_distance(moved, found)).all()


def test_without_a_baseline_there_is_no_distance() -> None:
    """A feature of which nothing was learned has NaN, beside others that have numbers."""
    flat = places(BASE[:, :1])
    found = Reference.of(flat, np.array([1.0, np.nan]))
    window = np.ones((2, BINS), np.int64)

    assert [False, True] == np.isnan(js_distance(window, found.counts)).tolist()
    assert [False, True] == np.isnan(wasserstein_distance(window, found)).tolist()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([-3.0, 0.0, 0.0, 0.5, 1.0, 7.0]) | st.floats(-9, 9), min_size=1
    ),
    more=st.lists(st.floats(-20, 20), max_size=20),
)
def test_every_value_has_one_bin_in_order(values: list[float], more: list[float]) -> None:
    """Nothing is lost, and a greater value is never in a lower bin."""
    found = divided(np.array(values)[:, None])
    window = sorted(values + more)

    bins = [int(np.flatnonzero(found.occupancy(places(np.array([[x]])))[0])[0]) for x in window]

    assert sorted(bins) == bins
    assert len(values) == found.counts.sum()
    assert np.all(np.diff(found.values[0]) >= 0)


# -- distances ------------------------------------------------------------------------------------

COUNTS = st.lists(st.integers(0, 50), min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(one=COUNTS, other=COUNTS)
def test_the_distance_is_that_of_its_definition(one: list[int], other: list[int]) -> None:
    """It agrees with plain Python, both ways round, and is between 0 and 1."""
    found = js_distance(np.array([one]), np.array([other]))[0]
    back = js_distance(np.array([other]), np.array([one]))[0]

    assert reference.js_distance(one, other) == pytest.approx(found, abs=1e-7, nan_ok=True)
    assert found == pytest.approx(back, abs=1e-12, nan_ok=True)
    assert math.isnan(found) or 0 <= found <= 1


@settings(max_examples=60, deadline=None)
@given(
    one=st.lists(st.integers(0, BINS - 1), min_size=64, max_size=64),
)
def test_the_move_is_that_of_two_ordered_samples(one: list[int]) -> None:
    """Where a bin is a single value the distance is exact."""
    base = np.repeat(np.arange(BINS) ** 1.5, 2)[:, None]
    found = divided(base)
    window = [float(base[2 * at, 0]) for at in one]

    actual = wasserstein_distance(found.occupancy(places(np.array(window)[:, None])), found)

    expected = reference.wasserstein(base[:, 0].tolist(), window) / base.std()
    assert expected == pytest.approx(actual[0], abs=1e-9)


@pytest.mark.parametrize("shift", [0.1, 0.5])
def test_a_shift_is_measured_in_standard_deviations(shift: float) -> None:
    """As long as values stay within the baseline's bins, the number is the shift."""
    found = wasserstein_distance(hour_of(shift, rows=40_000), REFERENCE)

    assert shift == pytest.approx(found[1], abs=0.02)
    assert found[0] < 0.03


# -- tickets --------------------------------------------------------------------------------------


def test_ordinary_hours_are_no_drift() -> None:
    """Two days of the same traffic, and of what chance adds to it."""
    memory, changes = run(QUIET)

    assert [] == changes
    assert [3, 3] == memory.learned.tolist()
    assert np.all(memory.js_yesterday < 0.1)


def test_a_shift_drifts_after_two_hours_and_ends_after_two() -> None:
    """One ticket for the feature that moved, with its numbers, and its end."""
    moved = [hour_of(0.6, seed=seed) for seed in range(7)]

    memory, (began, ended) = run(QUIET[:30] + moved + QUIET[:4])

    assert [(1, True, 32 * HOUR + 5), (1, False, 39 * HOUR + 5)] == [
        (change.index, change.drifting, change.at) for change in (began, ended)
    ]
    assert began.reason.startswith("for 2 hours too far from the baseline: Jensen-Shannon distance")
    assert "from the same hour yesterday; moved by 0.58" in began.reason
    assert ended.reason.startswith("for 2 hours near the baseline")
    assert not memory.drifting.any()


def test_one_strange_hour_is_no_drift() -> None:
    """Neither is an hour on, an hour off."""
    strange = hour_of(0.6)

    _, changes = run(QUIET[:10] + [strange, QUIET[10]] * 10)

    assert [] == changes


def test_a_feature_that_varies_by_the_hour_needs_more() -> None:
    """What the first hours are apart from the baseline sets how far is too far."""
    tides = [hour_of(0.3 * (at % 2), seed=at) for at in range(30)]

    _, changes = run([*tides, hour_of(0.3), hour_of(0.3)])
    _, far = run(tides + [hour_of(1.2)] * 3)

    assert [] == changes
    assert [(1, True)] == [(change.index, change.drifting) for change in far]


def test_the_first_hours_only_teach() -> None:
    """Before there are enough of them nothing is said."""
    _, changes = run([hour_of(0.6)] * 3, POLICY)

    assert [] == changes


def test_hours_of_few_values_break_nothing() -> None:
    """They are not judged: a drift goes on through them, and they do not teach."""
    few = hour_of(0.0, rows=50)
    moved = hour_of(0.6)

    memory, changes = run([*QUIET[:5], few, moved, few, moved, few, few, moved])

    assert [True] == [change.drifting for change in changes]
    assert [3, 3] == memory.learned.tolist()
    assert np.isnan(memory.js).all()


def test_yesterday_is_the_same_hour_of_the_day_before() -> None:
    """A drift of two days is near yesterday; without that hour there is no such number."""
    moved = [hour_of(0.6, seed=seed) for seed in range(40)]

    early, _ = run(QUIET[:20])
    first, _ = run(QUIET[:30] + moved[:5])
    later, _ = run(QUIET[:30] + moved)

    assert np.isnan(early.js_yesterday).all()
    assert first.js_yesterday[1] > 0.2
    assert later.js_yesterday[1] < 0.1 < later.js[1]


@pytest.mark.parametrize(("jump", "comparable"), [(-3, False), (5, True), (1000, False)])
def test_a_clock_that_jumps_compares_no_wrong_hours(jump: int, comparable: bool) -> None:
    """An hour is compared with the one 24 hours before it or with none."""
    memory, _ = run(QUIET[:30])

    for at in range(30 + jump, 33 + jump):
        memory, changes = drift_step(memory, QUIET[at % 60], REFERENCE, POLICY, at * HOUR)
        assert () == changes

    assert [comparable] * 2 == np.isfinite(memory.js_yesterday).tolist()
    assert np.isfinite(memory.js).all()


# -- any stream -----------------------------------------------------------------------------------

WINDOWS = st.tuples(
    st.sampled_from([0.0, 10.0, 1800.0, HOUR, 2 * HOUR, -HOUR, 25 * HOUR]),
    st.sampled_from([0.0, 0.0, 0.6, 2.0]),
    st.sampled_from([40, 2000, 2000]),
)


@settings(max_examples=40, deadline=None)
@given(stream=st.lists(WINDOWS, max_size=40), cut=st.integers(0, 40))
def test_order_and_restarts_change_nothing(
    stream: list[tuple[float, float, int]], cut: int
) -> None:
    """Features know nothing of each other, and the saved memory is all of it."""
    swap = np.array([1, 0])
    mixed = Reference(*(getattr(REFERENCE, name)[swap] for name in Reference.__slots__))
    one, other, now = DriftMemory.initial(2), DriftMemory.initial(2), 1e6
    policy = DriftPolicy(least_values=100, learning_hours=1)

    for at, (later, shift, rows) in enumerate(stream):
        now += later
        window = hour_of(shift, rows, seed=at)
        one, expected = drift_step(one, window, REFERENCE, policy, now)
        other, actual = drift_step(other, window[swap], mixed, policy, now)
        if at == cut:
            other = DriftMemory.from_dict(json.loads(json.dumps(other.to_dict())))
        told = [(1 - change.index, change.drifting, change.reason) for change in actual]
        assert sorted(told) == sorted((c.index, c.drifting, c.reason) for c in expected)

    assert one.resized(swap).to_dict() == other.to_dict()


# -- memory ---------------------------------------------------------------------------------------


def test_counts_stop_at_the_top_instead_of_starting_over() -> None:
    """Four billion values in a bin and an hour are as many as it tells."""
    much = np.full((2, BINS), 2**32 - 2, np.int64)

    memory, _ = drift_step(DriftMemory.initial(2), much, REFERENCE, POLICY, 1.0)
    memory, _ = drift_step(memory, much, REFERENCE, POLICY, 2.0)

    assert {2**32 - 1} == set(memory.open.ravel().tolist())


def test_other_flags_keep_the_memory_of_those_that_stay() -> None:
    """Features may be dropped, reordered and added; new ones begin to learn."""
    memory, _ = run(QUIET[:30])

    found = memory.resized(np.array([1, -1]))

    assert memory.js[1] == found.js[0]
    assert memory.ring[:, 1].tolist() == found.ring[:, 0].tolist()
    assert [3, 0] == found.learned.tolist()
    with pytest.raises(ShapeMismatch):
        memory.resized(np.array([2]))


def test_windows_of_other_features_are_refused() -> None:
    """A memory is never joined with somebody else's window."""
    with pytest.raises(ShapeMismatch, match="resize"):
        drift_step(DriftMemory.initial(3), QUIET[0], REFERENCE, POLICY, 0.0)


def test_no_feature_is_no_problem() -> None:
    """A layer without flags goes through, and through JSON."""
    nothing = divided(np.empty((1, 0)))
    empty = np.empty((0, BINS), np.int64)

    memory, _ = drift_step(DriftMemory.initial(0), empty, nothing, POLICY, 1.0)
    memory, changes = drift_step(memory, empty, nothing, POLICY, 2 * HOUR)

    assert (0, ()) == (len(memory), changes)
    assert memory.to_dict() == DriftMemory.from_dict(memory.to_dict()).to_dict()


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("ring"),
        lambda saved: saved.update(version=2),
        lambda saved: saved.update(hour="noon"),
        lambda saved: saved.update(stamps=[1]),
        lambda saved: saved.update(learned=[1]),
        lambda saved: saved.update(above=[0.5, 1]),
        lambda saved: saved.update(js=["far", 0]),
        lambda saved: saved.update(ring="no base64"),
        lambda saved: saved.update(ring="AAAA"),
        lambda saved: saved.update(ring=saved["open"]),
        lambda saved: saved.update(open=saved["ring"]),
        lambda saved: saved.update(drifting=[True]),
    ],
)
def test_a_damaged_memory_is_corrupt(damage: Callable[[dict[str, Any]], Any]) -> None:
    """Whatever is missing, of another type or shape, or too large, is CorruptState."""
    saved = run(QUIET[:3])[0].to_dict()
    damage(saved)

    with pytest.raises(CorruptState):
        DriftMemory.from_dict(saved)
