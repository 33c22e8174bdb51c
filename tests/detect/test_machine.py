import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import (
    Direction,
    Observation,
    SpikePolicy,
    SpikeState,
    State,
    Transition,
    evidence,
    initial,
    rates,
    step,
)
from sidecar.errors import InvalidInput, ShapeMismatch
from tests import reference

pytestmark = pytest.mark.unit

RATE = 0.001
POLICY = SpikePolicy()
QUIET, LOUD, EMPTY, MILD = (64, 0), (64, 13), (0, 0), (64, 6)

LEGAL = {
    (State.UNKNOWN, State.NORMAL),
    (State.UNKNOWN, State.PENDING),
    (State.UNKNOWN, State.FIRING),
    (State.UNKNOWN, State.RESOLVED),
    (State.NORMAL, State.PENDING),
    (State.NORMAL, State.FIRING),
    (State.PENDING, State.NORMAL),
    (State.PENDING, State.FIRING),
    (State.FIRING, State.RESOLVED),
    (State.RESOLVED, State.FIRING),
    (State.RESOLVED, State.NORMAL),
    (State.NORMAL, State.UNKNOWN),
    (State.PENDING, State.UNKNOWN),
    (State.FIRING, State.UNKNOWN),
    (State.RESOLVED, State.UNKNOWN),
}


def window(
    *counts: tuple[int, int],
    baseline: float = RATE,
    share: float | None = None,
    factor: float = 4.0,
    judged: bool = True,
    directions: tuple[Direction, ...] = (),
) -> Observation:
    """Return a closed window of features with these requests and exceedances."""
    requests, exceedances = np.array(counts, np.int64).reshape(-1, 2).T
    n = len(counts)
    return Observation(
        requests,
        exceedances,
        np.full(n, baseline),
        np.full(n, baseline if share is None else share),
        np.full(n, factor),
        np.full(n, judged),
        directions,
    )


def run(
    windows: list[tuple[int, int]],
    policy: SpikePolicy = POLICY,
    baseline: float = RATE,
    *,
    state: SpikeState | None = None,
    flagged: int = 1,
) -> tuple[list[State], list[Transition], SpikeState]:
    """Return one feature's state after each window, what changed, and the last state."""
    state, states, transitions = state or initial(1, policy, 0.0), [], []
    for at, counts in enumerate(windows, 1):
        seen = window(counts, baseline=baseline)
        state, changed = step(state, seen, policy, float(at), flagged=flagged)
        states.append(state.state(0))
        transitions += changed
    return states, transitions, state


def spelled(states: list[State]) -> str:
    """Return states by their first letters."""
    return "".join(state[0] for state in states)


def test_policy_has_the_names_and_defaults_of_the_settings() -> None:
    """The settings' spike section is a policy, field by field, but for the length of a window."""
    length = StatisticsConfig().window_seconds

    assert SpikeConfig().model_dump() | {"window_seconds": length} == asdict(SpikePolicy())


def test_states_have_the_codes_of_the_metric() -> None:
    """Dashboards and rules rely on the numbers."""
    names = ["unknown", "normal", "pending", "firing", "resolved"]

    assert {name: at for at, name in enumerate(names)} == {s.value: s.code for s in State}


@pytest.mark.parametrize(
    ("policy", "flagged", "expected"),
    [
        (SpikePolicy(), 1, math.log10(8640 * 1000)),
        (SpikePolicy(), 0, math.log10(8640 * 1000)),
        (SpikePolicy(), 200, math.log10(8640 * 1000 * 200)),
        (SpikePolicy(window_seconds=2.0), 1, math.log10(43_200 * 1000)),
        (SpikePolicy(false_alarms_per_1000_days=10.0), 5, math.log10(8640 * 100 * 5)),
    ],
)
def test_the_threshold_follows_from_the_false_alarms(
    policy: SpikePolicy, flagged: int, expected: float
) -> None:
    """All windows of 1,000 days of all flagged features, over the false alarms one accepts."""
    assert expected == pytest.approx(policy.threshold_log10(flagged))


# -- the life of an alert -------------------------------------------------------------------------


def test_a_spike_goes_through_all_states_and_back() -> None:
    """Normal, pending, firing, calm for six windows, resolved for six, normal."""
    states, transitions, _ = run([QUIET] * 3 + [MILD] * 3 + [QUIET] * 14)

    assert "nnn" + "pff" + "ffffff" + "rrrrrr" + "nn" == spelled(states)
    assert [1.0, 4.0, 5.0, 13.0, 19.0] == [change.at for change in transitions]


def test_overwhelming_evidence_fires_in_one_window() -> None:
    """A fifth of 64 requests against a thousandth is beyond chance at once."""
    states, _, _ = run([QUIET] * 2 + [LOUD])

    assert "nnf" == spelled(states)


def test_a_twentieth_of_the_features_spiking_fires_only_those() -> None:
    """Features are judged apart from each other, in one step."""
    state = initial(40, POLICY, 0.0)
    loud = {7, 31}

    for at in range(6):
        counts = [LOUD if j in loud and at > 2 else QUIET for j in range(40)]
        state, _ = step(state, window(*counts), POLICY, float(at), flagged=40)

    assert loud == {j for j in range(40) if state.state(j) is State.FIRING}


def test_a_suspicion_that_does_not_last_is_dropped() -> None:
    """Calm windows eat up the evidence of a mild one."""
    states, transitions, _ = run([QUIET] * 2 + [MILD] + [QUIET] * 30)

    assert spelled(states).startswith("nnp")
    assert State.NORMAL is states[-1]
    assert transitions[-1].reason.startswith("no longer suspect: ")


def test_while_an_alarm_is_held_there_is_no_evidence() -> None:
    """It starts over at 0, so an alert ends by calm alone and cannot fire twice."""
    states, transitions, state = run([QUIET] + [LOUD] * 20)

    assert "n" + "f" * 20 == spelled(states)
    assert 2 == len(transitions)
    assert [0.0] == evidence(state).tolist()
    assert transitions[-1].evidence_log10 >= transitions[-1].threshold_log10


def test_a_resolved_feature_fires_again_at_a_new_alarm() -> None:
    """A relapse is a new alarm, and says that it is one."""
    states, transitions, _ = run([LOUD] + [QUIET] * 9 + [LOUD] * 2)

    assert "f" + "ffffff" + "rrr" + "ff" == spelled(states)
    assert transitions[-1].reason.startswith("again: 13 of 128 requests")


def test_few_loud_windows_between_calm_ones_keep_it_firing() -> None:
    """Calm windows count in a row: one that is not starts the count over."""
    policy = SpikePolicy(short_windows=1)
    nearly = [QUIET] * 5 + [(64, 2)]

    states, _, _ = run([LOUD] + nearly * 3, policy)

    assert "f" * 19 == spelled(states)


def test_a_level_that_rises_slowly_is_no_spike() -> None:
    """What grows by less than the factor within the memory of the level is tolerated."""
    slow = [(640, round(0.64 * 1.02**at)) for at in range(200)]

    states, _, state = run([(640, 1)] * 20 + slow)

    assert {State.NORMAL} == set(states)
    assert rates(state)[2][0] > 10 * RATE


def test_a_spike_that_lasts_stays_an_alert() -> None:
    """The level learns it, but calm is measured against the level at the onset."""
    states, _, state = run([QUIET] * 10 + [LOUD] * 500)

    assert spelled(states).endswith("f" * 499)
    assert [13 / 64] == pytest.approx(rates(state)[2].tolist(), rel=0.01)


def test_where_most_requests_exceed_an_alert_does_not_flap() -> None:
    """A level above one half at the onset does not count as calm."""
    states, transitions, _ = run([(64, 60)] * 300, baseline=0.3)

    assert 1 == sum(change.after is State.FIRING for change in transitions)
    assert State.FIRING is states[-1]


def test_a_smaller_factor_is_more_sensitive() -> None:
    """Each flag's own factor decides how far above the recent level an alarm begins."""
    state = initial(2, POLICY, 0.0)
    delays = [99, 99]
    for at in range(60):
        seen = window(*[(64, 1)] * 2 if at < 40 else [(64, 6)] * 2, baseline=0.0157)
        seen = replace(seen, factor=np.array([1.5, 4.0]))
        state, changed = step(state, seen, POLICY, float(at), flagged=2)
        for change in changed:
            if change.after is State.FIRING:
                delays[change.index] = at - 40

    assert delays[0] < 15
    assert 99 == delays[1]


# -- how many are flagged -------------------------------------------------------------------------


def test_more_flags_take_more_evidence() -> None:
    """All flagged features share the false alarms."""
    few, _, _ = run([(64, 10)], flagged=1)
    many, _, _ = run([(64, 10)], flagged=10**6)

    assert ("f", "p") == (spelled(few), spelled(many))


def test_a_change_in_the_number_of_flags_does_not_end_an_alert() -> None:
    """An alarm is held whatever the threshold becomes, and is not told again."""
    _, _, state = run([LOUD], flagged=1)

    for flagged in (10**9, 1, 10**9):
        state, changed = step(state, window(LOUD), POLICY, 9.0, flagged=flagged)
        assert ((), State.FIRING) == (changed, state.state(0))


# -- what a baseline may be -----------------------------------------------------------------------


def test_a_baseline_that_exceeds_often_can_still_be_exceeded() -> None:
    """Up to a third of the baseline's requests leave room above them."""
    normal, _, _ = run([(64, 19)] * 60, baseline=0.3)
    spiking, _, _ = run([(64, 19)] * 3 + [(64, 62)] * 4, baseline=0.3)

    assert {State.NORMAL} == set(normal)
    assert State.FIRING is spiking[-1]


@pytest.mark.parametrize("baseline", [0.34, 0.9, 1.0])
def test_a_feature_that_exceeds_in_most_requests_is_unknown_and_says_so(baseline: float) -> None:
    """There is no rate above its own that could be told from it: no silent normal."""
    before, _, state = run([LOUD] * 2)
    state, (change,) = step(state, window(LOUD, baseline=baseline), POLICY, 3.0, flagged=1)
    after, _, _ = run([LOUD] * 20, baseline=baseline)

    assert "ff" == spelled(before)
    assert change.reason.startswith(f"{100 * baseline:.3g} % of the baseline's requests are beyond")
    assert change.reason.endswith("raise spike.quantile (was firing)")
    assert {State.UNKNOWN} == set(after)
    assert 128 == rates(state)[0][0]  # it is sampled, which is not what is wrong with it


def test_a_baseline_that_was_never_exceeded_is_handled() -> None:
    """A baseline share of zero fires on enough requests and resolves again."""
    states, transitions, _ = run([LOUD] * 2 + [QUIET] * 8, baseline=0.0)

    assert "ff" + "ffffff" + "rr" == spelled(states)
    assert "a baseline share of 0" in transitions[0].reason


def test_a_baseline_of_zero_forgives_a_rare_request() -> None:
    """No baseline is large enough to prove that nothing ever exceeds."""
    states, _, _ = run(([QUIET] * 199 + [(64, 1)]) * 10, baseline=0.0)

    assert {State.NORMAL} == set(states)


def test_a_feature_whose_flag_does_not_ask_is_unknown_and_counted() -> None:
    """However loud, it never fires; its requests are shown all the same."""
    state = initial(1, POLICY, 0.0)

    for at in range(9):
        state, changed = step(state, window(LOUD, judged=False), POLICY, float(at), flagged=0)
        assert ((), State.UNKNOWN) == (changed, state.state(0))
    assert [128] == rates(state)[0].tolist()


# -- not knowing ----------------------------------------------------------------------------------


def test_a_firing_feature_without_samples_becomes_unknown_late_and_says_so() -> None:
    """Silence is not calm: it stays firing for six windows, then unknown, never resolved."""
    states, transitions, state = run([LOUD] * 2 + [EMPTY] * 8)

    assert "ff" + "fffff" + "uuu" == spelled(states)
    assert "no request sampled for 6 windows (was firing)" == transitions[-1].reason
    assert math.isnan(transitions[-1].short_rate)
    assert [0] == rates(state)[0].tolist()


@pytest.mark.parametrize(
    ("back", "expected", "words"),
    [(LOUD, State.FIRING, "and not calm"), (QUIET, State.RESOLVED, "and calm")],
)
def test_an_alarm_outlasts_a_gap_in_sampling(
    back: tuple[int, int], expected: State, words: str
) -> None:
    """What fired before the gap is firing or resolved after it, never silently normal."""
    _, _, state = run([LOUD] * 2 + [EMPTY] * 9)

    state, (change,) = step(state, window(back), POLICY, 20.0, flagged=1)

    assert (State.UNKNOWN, expected) == (change.before, state.state(0))
    assert change.reason.startswith(f"sampled again {words}, after an alarm that was held: ")


def test_without_a_baseline_nothing_is_known() -> None:
    """However loud, a feature without a baseline is unknown."""
    states, transitions, _ = run([LOUD] * 4, baseline=math.nan)

    assert "uuuu" == spelled(states)
    assert [] == transitions


def test_losing_the_baseline_makes_a_firing_feature_unknown_at_once() -> None:
    """A reset baseline ends the alert as unknown, and nothing is held against the next baseline."""
    _, _, state = run([LOUD] * 9)

    state, (lost,) = step(state, window(LOUD, baseline=math.nan), POLICY, 4.0, flagged=1)
    state, _ = step(state, window(QUIET), POLICY, 5.0, flagged=1)

    assert (State.UNKNOWN, "no baseline to compare with (was firing)") == (lost.after, lost.reason)
    assert State.NORMAL is state.state(0)
    assert ([64], [0.0], [2 * RATE]) == tuple(found.tolist() for found in rates(state))


# -- words and numbers ----------------------------------------------------------------------------


def test_the_reason_carries_the_numbers() -> None:
    """People read why, with counts, factors, what is tolerated, and the evidence."""
    _, transitions, _ = run([(32, 0), (32, 20)])

    (_, firing) = transitions
    assert (
        "20 of 64 requests beyond the baseline's 99.9 % quantile, 312 times the baseline share, 156 "
        "times the recent level; tolerated 0.8 %; evidence 10^18.9, an alarm takes 10^6.9"
        == firing.reason
    )
    assert (20 / 64, 2 * RATE, RATE, 0.008) == (
        firing.short_rate,
        firing.level,
        firing.baseline_share,
        firing.tolerated,
    )
    assert 18.9 == pytest.approx(firing.evidence_log10, abs=0.05)
    assert math.log10(8.64e6) == pytest.approx(firing.threshold_log10)


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        (Direction.ABOVE, "20 of 64 requests beyond the baseline's 99.9 % quantile, "),
        (Direction.BELOW, "20 of 64 requests below the baseline's 0.1 % quantile, "),
        (Direction.BOTH, "20 of 64 requests outside the baseline's 0.05 % and 99.95 % quantiles, "),
    ],
)
def test_the_reason_names_the_side_and_its_quantile(direction: Direction, words: str) -> None:
    """Watched on both sides, half of the rest beyond the quantile is on each."""
    seen = window((64, 20), directions=(direction,))

    _, (change,) = step(initial(1, POLICY, 0.0), seen, POLICY, 1.0, flagged=1)

    assert State.FIRING is change.after
    assert change.reason.startswith(words)


def test_people_are_told_the_share_and_what_was_granted_holds_the_alarm_back() -> None:
    """After a baseline with few exceeding requests the two differ: the first is what was measured."""
    granted = window((64, 10), baseline=0.06, share=0.01)

    _, (change,) = step(initial(1, POLICY, 0.0), granted, POLICY, 1.0, flagged=1)

    assert State.NORMAL is change.after
    assert (0.01, 0.09) == pytest.approx((change.baseline_share, change.tolerated))
    assert "15.6 times the baseline share" in change.reason
    assert "tolerated 9 %" in change.reason


def test_a_spike_right_after_a_short_baseline_is_not_taken_for_the_level() -> None:
    """The level starts at twice the share that was measured, not at twice what was granted for it."""
    state, states = initial(1, POLICY, 0.0), []
    for at in range(1, 4):
        seen = window((64, 19), baseline=0.06, share=0.01, factor=3.0)
        state, _ = step(state, seen, POLICY, float(at), flagged=1)
        states.append(state.state(0))

    # Held to twice what was granted, 36 % would be tolerated, and 30 % be no spike at all.
    assert [State.PENDING, State.FIRING, State.FIRING] == states


@pytest.mark.parametrize(("requests", "exceedances"), [(10**15, 10**15), (10**15, 0)])
def test_no_number_of_requests_overflows(requests: int, exceedances: int) -> None:
    """Evidence is kept as logarithms: more than any float holds, and less."""
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        states, transitions, state = run([(requests, exceedances)] * 3)

    assert math.isfinite(transitions[-1].evidence_log10)
    assert (State.FIRING if exceedances else State.NORMAL) is states[-1]
    assert 0.0 == evidence(state)[0]


def test_rates_are_those_of_the_last_sampled_windows() -> None:
    """The short share covers the policy's windows with samples, NaN where there was none."""
    policy = SpikePolicy(short_windows=3)

    _, _, state = run([(10, 10), (10, 0), EMPTY, (10, 0), EMPTY, (10, 5)], policy)
    requests, short, _ = rates(state)
    nothing = rates(initial(1, policy, 0.0))

    assert ([30], [5 / 30]) == (requests.tolist(), short.tolist())
    assert 0 == nothing[0][0]
    assert np.isnan(nothing[1:]).all()


# -- bad input ------------------------------------------------------------------------------------


def test_observations_of_other_features_are_refused() -> None:
    """A state is never stepped with somebody else's counts."""
    with pytest.raises(ShapeMismatch, match="resize"):
        step(initial(2, POLICY, 0.0), window(QUIET), POLICY, 1.0, flagged=1)


@pytest.mark.parametrize("counts", [(3, 4), (3, -1), (-2, -2)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    """More exceedances than requests, or negative ones, are an error."""
    with pytest.raises(InvalidInput):
        step(initial(1, POLICY, 0.0), window(counts), POLICY, 1.0, flagged=1)


@pytest.mark.parametrize("factor", [1.0, -3.0, math.nan, math.inf])
def test_factors_that_are_none_are_refused(factor: float) -> None:
    """A factor of 1 would tolerate nothing above the level itself."""
    with pytest.raises(InvalidInput, match="factor"):
        step(initial(1, POLICY, 0.0), window(QUIET, factor=factor), POLICY, 1.0, flagged=1)


@pytest.mark.parametrize("baseline", [-0.1, 1.1, math.inf])
def test_a_baseline_that_is_no_rate_is_no_baseline(baseline: float) -> None:
    """An impossible rate makes the feature unknown rather than judged against it."""
    states, _, _ = run([LOUD] * 3, baseline=baseline)

    assert "uuu" == spelled(states)


def test_no_watched_feature_is_no_problem() -> None:
    """A layer without flags steps like any other."""
    state, changed = step(initial(0, POLICY, 0.0), window(), POLICY, 1.0, flagged=0)

    assert (0, ()) == (len(state), changed)


# -- any stream -----------------------------------------------------------------------------------

COUNTS = st.integers(0, 64).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n))
) | st.sampled_from([QUIET, LOUD, EMPTY, MILD])
BASELINES = st.sampled_from([math.nan, 0.0, 1e-3, 1e-3, 1e-3, 0.05, 0.3, 0.4, 1.0])
STREAMS = st.lists(
    st.tuples(
        st.lists(COUNTS, min_size=3, max_size=3), st.lists(BASELINES, min_size=3, max_size=3)
    ),
    max_size=25,
) | st.lists(
    st.tuples(
        st.lists(st.sampled_from([QUIET, QUIET, MILD, LOUD, EMPTY]), min_size=3, max_size=3),
        st.just([RATE] * 3),
    ),
    max_size=40,
)
POLICIES = st.builds(
    SpikePolicy,
    factor=st.just(4.0),
    baseline_factor=st.sampled_from([1.5, 1.1]),
    level_windows=st.integers(1, 30),
    lag_windows=st.integers(1, 6),
    false_alarms_per_1000_days=st.sampled_from([1.0, 1e5]),
    short_windows=st.integers(1, 4),
    clear_windows=st.integers(1, 3),
    resolved_windows=st.integers(1, 3),
    unsampled_windows=st.integers(1, 3),
)

Stream = list[tuple[list[tuple[int, int]], list[float]]]


GRANTED = 2.5
"""Of a baseline's share: as after some 50 exceeding requests."""


def observed(
    counts: list[tuple[int, int]], baselines: list[float], order: list[int] | None = None
) -> Observation:
    """Return a window of features with their own baselines, in another order if one is given.

    What is granted is ``GRANTED`` times the share of each baseline.
    """
    requests, exceedances = np.array(counts, np.int64).T
    places = order if order is not None else list(range(len(counts)))
    n = len(places)
    return Observation(
        requests[places],
        exceedances[places],
        np.array(baselines)[places],
        np.array(baselines)[places] / GRANTED,
        np.full(n, 4.0),
        np.full(n, True),  # noqa: FBT003 - an array's content
    )


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, policy=POLICIES)
def test_the_machine_matches_its_naive_twin(stream: Stream, policy: SpikePolicy) -> None:
    """For any stream, each feature has the state and evidence that plain Python, alone, gives it."""
    state, twins = initial(3, policy, 0.0), [reference.SpikeMachine(policy) for _ in range(3)]

    for at, (counts, baselines) in enumerate(stream):
        state, _ = step(state, observed(counts, baselines), policy, float(at), flagged=3)
        expected = [
            twin.step(*counts[j], baselines[j], baselines[j] / GRANTED, flagged=3)
            for j, twin in enumerate(twins)
        ]
        assert expected == state.states()
        sums = [math.log10(1 + twin.evidence()) for twin in twins]
        assert sums == pytest.approx(evidence(state).tolist(), abs=1e-9)
        levels = [math.nan if twin.level is None else twin.level for twin in twins]
        assert levels == pytest.approx(rates(state)[2].tolist(), rel=1e-9, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, policy=POLICIES)
def test_every_stream_keeps_the_promises(stream: Stream, policy: SpikePolicy) -> None:
    """Only legal changes, each with its numbers; an alarm has its evidence; unknown means unknown."""
    state, silent = initial(3, policy, 0.0), [10**6] * 3

    for at, (counts, baselines) in enumerate(stream):
        before = state
        state, changes = step(state, observed(counts, baselines), policy, float(at), flagged=3)
        assert [c.index for c in changes] == np.flatnonzero(before.codes != state.codes).tolist()
        for change in changes:
            j = change.index
            assert (change.before, change.after) in LEGAL
            assert (before.state(j), state.state(j)) == (change.before, change.after)
            assert change.at == float(at) == state.since[j]
            assert change.reason
            held = not math.isnan(before.onset[j])
            if change.after is State.FIRING and not held:
                assert change.evidence_log10 >= change.threshold_log10
                assert counts[j][0] > 0
            if change.after is State.PENDING:
                assert change.evidence_log10 >= change.threshold_log10 / 2
        assert np.all(evidence(state)[state.codes == State.FIRING.code] == 0)
        for j in range(3):
            silent[j] = 0 if counts[j][0] else silent[j] + 1
            nothing = math.isnan(baselines[j]) or silent[j] >= policy.unsampled_windows
            nothing |= policy.baseline_factor * baselines[j] > 0.5
            if nothing or counts[j][0]:  # an unsampled window leaves it as it was
                assert nothing == (state.state(j) is State.UNKNOWN)


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, cut=st.integers(0, 25))
def test_a_replay_and_a_restart_give_the_same(stream: Stream, cut: int) -> None:
    """Nothing but the inputs matters, and the saved state is all of it."""
    once, again = initial(3, POLICY, 0.0), initial(3, POLICY, 0.0)

    for at, (counts, baselines) in enumerate(stream):
        if at == cut:
            again = SpikeState.from_dict(again.to_dict())
        seen = observed(counts, baselines)
        once, expected = step(once, seen, POLICY, float(at), flagged=3)
        again, actual = step(again, seen, POLICY, float(at), flagged=3)
        assert repr(expected) == repr(actual)  # repr, because NaN is not equal to itself

    assert once.to_dict() == again.to_dict()


@settings(max_examples=40, deadline=None)
@given(stream=STREAMS, order=st.permutations(range(3)), parts=st.integers(0, 3))
def test_features_know_nothing_of_each_other(stream: Stream, order: list[int], parts: int) -> None:
    """Another order, or two calls instead of one, gives every feature the same."""
    whole, mixed = initial(3, POLICY, 0.0), initial(3, POLICY, 0.0)
    left, right = initial(parts, POLICY, 0.0), initial(3 - parts, POLICY, 0.0)
    sides = list(range(parts)), list(range(parts, 3))

    for at, (counts, baselines) in enumerate(stream):
        now = float(at)
        whole, _ = step(whole, observed(counts, baselines), POLICY, now, flagged=3)
        mixed, _ = step(mixed, observed(counts, baselines, order), POLICY, now, flagged=3)
        left, _ = step(left, observed(counts, baselines, sides[0]), POLICY, now, flagged=3)
        right, _ = step(right, observed(counts, baselines, sides[1]), POLICY, now, flagged=3)

    for state, places in ((mixed, order), (left, sides[0]), (right, sides[1])):
        assert whole.resized(np.array(places, np.int64)).to_dict() == state.to_dict()


@settings(max_examples=60, deadline=None)
@given(
    windows=st.lists(st.sampled_from([QUIET, MILD, LOUD, (5, 1), (1, 1)]), max_size=40),
    gaps=st.lists(st.integers(0, 5), min_size=40, max_size=40),
)
def test_unsampled_windows_change_nothing(windows: list[tuple[int, int]], gaps: list[int]) -> None:
    """Up to five windows without a request, anywhere, and everything goes on as without them."""
    _, expected, whole = run(windows)
    stretched = [one for at, each in enumerate(windows) for one in [each, *[EMPTY] * gaps[at]]]

    _, actual, found = run(stretched)

    assert [c.reason for c in expected] == [c.reason for c in actual]
    different = {"since", "unsampled"}
    assert all(
        whole.to_dict()[name] == found.to_dict()[name]
        for name in whole.to_dict()
        if name not in different
    )


# -- how often it is wrong, and how late ----------------------------------------------------------


SHORT_RUNS = SpikePolicy(
    # So many that B is 200 windows of 10 s; and a level too slow to move.
    false_alarms_per_1000_days=1000 * 8640 / 200,
    level_windows=10**6,
)


def alarms(rate: float, requests: int, features: int, windows: int, policy: SpikePolicy) -> int:
    """Return how often features fire that exceed independently; a hundredth is their baseline."""
    rng = np.random.default_rng(11)
    state, fired = initial(features, policy, 0.0), 0
    for at in range(windows):
        exceedances = rng.binomial(requests, rate, features)
        counts = list(zip([requests] * features, exceedances.tolist(), strict=True))
        seen = window(*counts, baseline=0.01, factor=1.001)
        state, changes = step(state, seen, policy, float(at), flagged=1)
        fired += sum(change.after is State.FIRING for change in changes)
    return fired


@pytest.mark.parametrize("requests", [8, 64, 256])
def test_as_long_as_the_tolerance_holds_alarms_are_as_rare_as_promised(requests: int) -> None:
    """Exceeding exactly as often as is tolerated, fewer than T/B of the features fire within T."""
    features, windows = 3000, 60
    assert 200 == pytest.approx(10 ** SHORT_RUNS.threshold_log10(1))

    found = alarms(0.015, requests, features, windows, SHORT_RUNS)

    assert 0 < found < features * windows / 200  # without any the bound would prove nothing


def test_the_promise_needs_no_independence() -> None:
    """Bursts, and more requests whenever evidence is about: still below T/B, and not by being idle."""
    rng = np.random.default_rng(12)
    features, windows, fired = 3000, 60, 0
    state, loud = initial(features, SHORT_RUNS, 0.0), np.zeros(features, bool)
    for at in range(windows):
        rate = np.where(
            loud | (rng.random(features) < 0.3), 0.015, 0.0
        )  # never above the tolerated
        requests = np.where(evidence(state) > 1.0, 8, 64)
        exceedances = rng.binomial(requests, rate)
        loud = exceedances > 1
        counts = list(zip(requests.tolist(), exceedances.tolist(), strict=True))
        seen = window(*counts, baseline=0.01, factor=1.001)
        state, changes = step(state, seen, SHORT_RUNS, float(at), flagged=1)
        fired += sum(change.after is State.FIRING for change in changes)

    assert 0 < fired < features * windows / 200


def test_beyond_the_tolerance_the_bound_does_not_hold() -> None:
    """At three times the tolerated rate nearly every feature fires."""
    assert alarms(0.045, 64, 500, 60, SHORT_RUNS) > 490


def test_at_the_default_threshold_independent_requests_raise_no_alarm() -> None:
    """In 200,000 feature-windows at exactly the baseline's rate nothing fires."""
    assert 0 == alarms(0.01, 64, 1000, 200, POLICY)


@pytest.mark.parametrize(("requests", "median", "late"), [(64, 2, 0.02), (256, 1, 0.0)])
def test_a_fifth_of_requests_spiking_fires_within_two_windows(
    requests: int, median: int, late: float
) -> None:
    """Of 1,000 features at usual counts of requests half fire by then, nearly all within four."""
    rng = np.random.default_rng(5)
    n = 1000
    state = initial(n, POLICY, 0.0)
    delays = np.full(n, 99)

    for at in range(-30, 10):
        rate = 0.01 if at < 0 else 0.01 + 0.2 * 0.99
        counts = list(zip([requests] * n, rng.binomial(requests, rate, n).tolist(), strict=True))
        state, changed = step(state, window(*counts, baseline=0.01), POLICY, float(at), flagged=1)
        for change in changed:
            if change.after is State.FIRING:
                delays[change.index] = at + 1

    assert np.median(delays) <= median
    assert np.mean(delays > 4) <= late
