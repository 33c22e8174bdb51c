import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import SpikeConfig
from sidecar.detect import (
    Observation,
    SpikePolicy,
    SpikeState,
    State,
    Transition,
    initial,
    rates,
    step,
)
from sidecar.errors import InvalidInput, ShapeMismatch
from tests import reference

pytestmark = pytest.mark.unit

RATE = 0.001
POLICY = SpikePolicy()
QUIET, LOUD, EMPTY = (64, 0), (64, 13), (0, 0)

LEGAL = {
    (State.UNKNOWN, State.NORMAL),
    (State.UNKNOWN, State.PENDING),
    (State.NORMAL, State.PENDING),
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


def window(*counts: tuple[int, int], baseline: float = RATE) -> Observation:
    """Return a closed window of features with these requests and exceedances."""
    requests, exceedances = np.array(counts, np.int64).reshape(-1, 2).T
    return Observation(requests, exceedances, np.full(len(counts), baseline))


def run(
    windows: list[tuple[int, int]], policy: SpikePolicy = POLICY, baseline: float = RATE
) -> tuple[list[State], list[Transition], SpikeState]:
    """Return one feature's state after each window, what changed, and the last state."""
    state, states, transitions = initial(1, policy, 0.0), [], []
    for at, counts in enumerate(windows, 1):
        state, changed = step(state, window(counts, baseline=baseline), policy, float(at))
        states.append(state.state(0))
        transitions += changed
    return states, transitions, state


def spelled(states: list[State]) -> str:
    """Return states by their first letters."""
    return "".join(state[0] for state in states)


def test_policy_has_the_names_and_defaults_of_the_settings() -> None:
    """The settings' spike section is a policy, field by field."""
    assert SpikeConfig().model_dump() == asdict(SpikePolicy())


def test_states_have_the_codes_of_the_metric() -> None:
    """Dashboards and rules rely on the numbers."""
    names = ["unknown", "normal", "pending", "firing", "resolved"]

    assert {name: at for at, name in enumerate(names)} == {s.value: s.code for s in State}


# -- the life of an alert -------------------------------------------------------------------------


def test_a_spike_goes_through_all_states_and_back() -> None:
    """Normal, pending, firing, calm for six windows, resolved for six, normal."""
    states, transitions, _ = run([QUIET] * 3 + [LOUD] * 4 + [QUIET] * 14)

    assert "nnn" + "pfff" + "ffffff" + "rrrrrr" + "nn" == spelled(states)
    assert [1.0, 4.0, 5.0, 14.0, 20.0] == [change.at for change in transitions]


def test_a_twentieth_of_the_features_spiking_fires_only_those() -> None:
    """Features are judged apart from each other, in one step."""
    state = initial(40, POLICY, 0.0)
    loud = {7, 31}

    for at in range(6):
        counts = [LOUD if j in loud and at > 2 else QUIET for j in range(40)]
        state, _ = step(state, window(*counts), POLICY, float(at))

    assert loud == {j for j in range(40) if state.state(j) is State.FIRING}


@pytest.mark.parametrize(("pending", "expected"), [(1, "npffff"), (2, "nppfff"), (3, "npppff")])
def test_firing_waits_for_pending_windows(pending: int, expected: str) -> None:
    """A feature is pending for as many suspect windows as the policy says."""
    states, _, _ = run([QUIET] + [LOUD] * 5, SpikePolicy(pending_windows=pending))

    assert expected == spelled(states)


def test_a_suspicion_that_does_not_last_is_dropped() -> None:
    """A single loud window only makes a feature pending, whatever the length of the short rate."""
    for short_windows, counted in ((1, "0 of 64"), (2, "13 of 128")):
        policy = SpikePolicy(short_windows=short_windows)

        states, transitions, _ = run([QUIET] * 2 + [LOUD] + [QUIET] * 2, policy)

        assert "nnpnn" == spelled(states)
        assert transitions[-1].reason.startswith(f"no longer suspect: {counted} requests")


def test_a_resolved_feature_fires_again_at_once() -> None:
    """A relapse does not wait as pending."""
    states, transitions, _ = run([LOUD] * 3 + [QUIET] * 8 + [LOUD])

    assert "pff" + "ffffff" + "rr" + "f" == spelled(states)
    assert transitions[-1].reason.startswith("again: 13 of 128 requests")


def test_few_loud_windows_between_calm_ones_keep_it_firing() -> None:
    """Calm windows count in a row: one that is not starts the count over."""
    policy = SpikePolicy(short_windows=1)
    nearly = [QUIET] * 5 + [(64, 2)]

    states, _, _ = run([LOUD] * 2 + nearly * 3, policy)

    assert "p" + "f" * 19 == spelled(states)


@pytest.mark.parametrize(
    ("counts", "changed"),
    [
        ((64, 2), {}),  # 4 of 128: fewer than five requests exceed
        ((1000, 9), {"factor": 10.0}),  # nine times the baseline rate
        ((20, 3), {"false_alarm_probability": 1e-12}),
    ],
)
def test_one_missing_condition_suffices_for_normal(
    counts: tuple[int, int], changed: dict[str, float]
) -> None:
    """Suspicion needs the factor, the number, and the improbability, all of them."""
    states, _, _ = run([counts] * 6, SpikePolicy(**changed))

    assert "nnnnnn" == spelled(states)


def test_the_long_rate_must_be_raised_too() -> None:
    """After much calm traffic a brief rise of the short rate is not enough."""
    policy = SpikePolicy(long_factor=20.0)
    quiet = [(6400, 6)] * 12

    patient, _, _ = run([*quiet, (640, 64), (640, 64)], policy)
    hasty, _, _ = run([*quiet, (640, 64), (640, 64)], SpikePolicy(long_factor=1.1))

    assert ("nn", "pf") == (spelled(patient[-2:]), spelled(hasty[-2:]))


def test_a_baseline_that_exceeds_often_can_still_be_exceeded() -> None:
    """Where five times the baseline rate is no rate, far fewer quiet requests are a spike."""
    normal, _, _ = run([(64, 19)] * 6, baseline=0.3)
    spiking, _, _ = run([(64, 19)] * 3 + [(64, 62)] * 4, baseline=0.3)

    assert "nnnnnn" == spelled(normal)
    assert State.FIRING is spiking[-1]


def test_a_baseline_that_was_never_exceeded_is_handled() -> None:
    """A baseline rate of zero fires on enough requests and resolves again."""
    states, transitions, _ = run([LOUD] * 2 + [QUIET] * 8, baseline=0.0)

    assert "pf" + "ffffff" + "rr" == spelled(states)
    assert "the baseline never passed; chance 0" in transitions[0].reason


# -- not knowing ----------------------------------------------------------------------------------


def test_a_firing_feature_without_samples_becomes_unknown_late_and_says_so() -> None:
    """Silence is not calm: it stays firing for six windows, then unknown, never resolved."""
    states, transitions, _ = run([LOUD] * 2 + [EMPTY] * 7)

    assert "pf" + "fffff" + "uu" == spelled(states)
    assert "no request sampled for 6 windows (was firing)" == transitions[-1].reason
    assert math.isnan(transitions[-1].short_rate)


def test_silence_neither_confirms_nor_clears_a_suspicion() -> None:
    """A window without requests leaves a pending feature pending."""
    states, _, _ = run([LOUD, EMPTY, LOUD])

    assert "ppf" == spelled(states)


def test_without_a_baseline_nothing_is_known() -> None:
    """However loud, a feature without a baseline is unknown."""
    states, transitions, _ = run([LOUD] * 4, baseline=math.nan)

    assert "uuuu" == spelled(states)
    assert [] == transitions


def test_losing_the_baseline_makes_a_firing_feature_unknown_at_once() -> None:
    """A reset baseline ends the alert as unknown, and its counts are not held against the next."""
    _, _, state = run([LOUD] * 3)

    state, (lost,) = step(state, window(LOUD, baseline=math.nan), POLICY, 4.0)
    state, _ = step(state, window(QUIET), POLICY, 5.0)

    assert (State.UNKNOWN, "no baseline to compare with (was firing)") == (lost.after, lost.reason)
    assert State.NORMAL is state.state(0)
    assert [64] == rates(state, POLICY)[0].tolist()


# -- words and numbers ----------------------------------------------------------------------------


def test_the_reason_carries_the_numbers() -> None:
    """People read why, with counts, factor and chance."""
    _, transitions, _ = run([(32, 0), (32, 20)], SpikePolicy(short_windows=2))

    (_, pending) = transitions
    assert (
        "20 of 64 requests above the baseline's 99.9 % quantile, 312 times the baseline rate; "
        "chance 1e-44" == pending.reason
    )
    assert (20 / 64, 20 / 64, RATE) == (
        pending.short_rate,
        pending.long_rate,
        pending.baseline_rate,
    )
    assert math.exp(reference.binomial_log_tail(20, 64, RATE)) == pytest.approx(pending.probability)


def test_a_chance_below_every_float_is_still_told() -> None:
    """The number underflows to zero; the words keep its power of ten."""
    _, transitions, _ = run([(500, 500)] * 2)

    assert 0.0 == transitions[-1].probability
    assert transitions[-1].reason.endswith("chance 1e-3000")


def test_rates_are_those_of_the_last_windows() -> None:
    """Short and long shares cover the policy's windows, NaN where nothing was sampled."""
    policy = SpikePolicy(short_windows=1, long_windows=3)

    _, _, state = run([(10, 10), (10, 0), (10, 0), (10, 5)], policy)
    requests, short, long = rates(state, policy)
    nothing = rates(initial(1, policy, 0.0), policy)

    assert ([10], [0.5], [5 / 30]) == (requests.tolist(), short.tolist(), long.tolist())
    assert 0 == nothing[0][0]
    assert np.isnan(nothing[1:]).all()


# -- bad input ------------------------------------------------------------------------------------


def test_observations_of_other_features_are_refused() -> None:
    """A state is never stepped with somebody else's counts."""
    with pytest.raises(ShapeMismatch, match="resize"):
        step(initial(2, POLICY, 0.0), window(QUIET), POLICY, 1.0)


@pytest.mark.parametrize("counts", [(3, 4), (3, -1), (-2, -2)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    """More exceedances than requests, or negative ones, are an error."""
    with pytest.raises(InvalidInput):
        step(initial(1, POLICY, 0.0), window(counts), POLICY, 1.0)


@pytest.mark.parametrize("baseline", [-0.1, 1.1, math.inf])
def test_a_baseline_that_is_no_rate_is_no_baseline(baseline: float) -> None:
    """An impossible rate makes the feature unknown rather than judged against it."""
    states, _, _ = run([LOUD] * 3, baseline=baseline)

    assert "uuu" == spelled(states)


def test_no_watched_feature_is_no_problem() -> None:
    """A layer without flags steps like any other."""
    state, changed = step(initial(0, POLICY, 0.0), window(), POLICY, 1.0)

    assert (0, ()) == (len(state), changed)


# -- any stream -----------------------------------------------------------------------------------

COUNTS = st.integers(0, 64).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n))
) | st.sampled_from([QUIET, LOUD, EMPTY])
BASELINES = st.sampled_from([math.nan, 0.0, 1e-3, 1e-3, 1e-3, 0.05, 0.4, 1.0])
STREAMS = st.lists(
    st.tuples(
        st.lists(COUNTS, min_size=3, max_size=3), st.lists(BASELINES, min_size=3, max_size=3)
    ),
    max_size=25,
) | st.lists(
    st.tuples(
        st.lists(st.sampled_from([QUIET, QUIET, LOUD, EMPTY]), min_size=3, max_size=3),
        st.just([RATE] * 3),
    ),
    max_size=40,
)
POLICIES = st.builds(
    SpikePolicy,
    short_windows=st.integers(1, 4),
    long_windows=st.integers(1, 6),
    min_exceedances=st.integers(1, 8),
    pending_windows=st.integers(1, 3),
    clear_windows=st.integers(1, 3),
    resolved_windows=st.integers(1, 3),
    unsampled_windows=st.integers(1, 3),
    false_alarm_probability=st.sampled_from([1e-6, 1e-2]),
)

Stream = list[tuple[list[tuple[int, int]], list[float]]]


def observed(counts: list[tuple[int, int]], baselines: list[float]) -> Observation:
    """Return a window of three features with their own baselines."""
    requests, exceedances = np.array(counts, np.int64).T
    return Observation(requests, exceedances, np.array(baselines))


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, policy=POLICIES)
def test_the_machine_matches_its_naive_twin(stream: Stream, policy: SpikePolicy) -> None:
    """For any stream, each feature has the state that plain Python, alone, gives it."""
    state, twins = initial(3, policy, 0.0), [reference.SpikeMachine(policy) for _ in range(3)]

    for at, (counts, baselines) in enumerate(stream):
        state, _ = step(state, observed(counts, baselines), policy, float(at))
        expected = [
            twin.step(*pair, rate)
            for twin, pair, rate in zip(twins, counts, baselines, strict=True)
        ]
        assert expected == [state.state(j).value for j in range(3)]


@settings(max_examples=60, deadline=None)
@given(stream=STREAMS, policy=POLICIES)
def test_every_stream_keeps_the_rules(stream: Stream, policy: SpikePolicy) -> None:
    """Only legal changes; firing has its evidence; unknown exactly without samples or baseline."""
    state, silent = initial(3, policy, 0.0), [policy.unsampled_windows] * 3

    for at, (counts, baselines) in enumerate(stream, 1):
        before = state
        state, changed = step(before, observed(counts, baselines), policy, float(at))
        assert [c.index for c in changed] == np.flatnonzero(state.codes != before.codes).tolist()
        for change in changed:
            j = change.index
            assert (change.before, change.after) in LEGAL
            assert (before.state(j), state.state(j)) == (change.before, change.after)
            assert float(at) == change.at == state.since[j]
            assert change.reason
            if change.after in (State.PENDING, State.FIRING):
                kept = state.exceedances[-policy.short_windows :, j].sum()
                assert kept >= policy.min_exceedances
                assert change.probability <= policy.false_alarm_probability * (1 + 1e-9)
                assert counts[j][0] > 0
        for j in range(3):
            silent[j] = 0 if counts[j][0] else silent[j] + 1
            nothing = math.isnan(baselines[j]) or silent[j] >= policy.unsampled_windows
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
        once, expected = step(once, seen, POLICY, float(at))
        again, actual = step(again, seen, POLICY, float(at))
        assert repr(expected) == repr(actual)  # repr, because NaN is not equal to itself

    assert once.to_dict() == again.to_dict()


# -- how often it is wrong, and how late ----------------------------------------------------------


@pytest.mark.parametrize(("requests", "rate"), [(64, 0.001), (8, 0.001), (256, 0.0157), (64, 0.3)])
def test_independent_requests_raise_no_alarm(requests: int, rate: float) -> None:
    """In 400,000 feature-windows of the null hypothesis nothing fires."""
    rng = np.random.default_rng(11)
    n = 2000
    state, fired = initial(n, POLICY, 0.0), 0

    for at in range(200):
        exceedances = rng.binomial(requests, rate, n)
        seen = Observation(np.full(n, requests), exceedances, np.full(n, rate))
        state, changed = step(state, seen, POLICY, float(at))
        fired += sum(change.after is State.FIRING for change in changed)

    assert 0 == fired


def test_a_fifth_of_requests_spiking_fires_within_three_windows() -> None:
    """Of 2,000 features at 64 requests a window all fire by the third, most by the second."""
    rng = np.random.default_rng(5)
    n = 2000
    state = initial(n, POLICY, 0.0)
    delays = np.full(n, 99)

    for at in range(-20, 4):
        rate = RATE if at < 0 else 0.2
        seen = Observation(np.full(n, 64), rng.binomial(64, rate, n), np.full(n, RATE))
        state, changed = step(state, seen, POLICY, float(at))
        for change in changed:
            if change.after is State.FIRING:
                delays[change.index] = at + 1

    assert delays.max() <= 3
    assert np.mean(delays <= 2) >= 0.99
