from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from sidecar.errors import InvalidInput
from sidecar.testing import SCENARIOS, Injection, Marginal, Scenario, Traffic

pytestmark = pytest.mark.unit

N = 40
INJECTIONS = {
    "none": (),
    "spike": (Injection.spike(0.2, height=2.0, tokens=0.25),),
    "shift": (Injection.shift(0.5),),
    "nonfinite": (Injection.nonfinite(0.5, tokens=0.5),),
}


def counted(traffic: Traffic, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return requests, shape ``(windows,)``, and exceedances, ``(windows, n)``, as counted."""
    found = list(traffic.counts(windows))
    return np.array([w.requests for w in found]), np.array([w.exceedances for w in found])


def drawn(
    traffic: Traffic, windows: int, marginal: Marginal = Marginal.NORMAL
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same, counted in tokens that were drawn one by one."""
    threshold, requests, exceedances = marginal.quantile(traffic.level), [], []
    for values in traffic.values(windows, marginal):
        requests.append(len(values))
        exceedances.append((values > threshold).any(axis=1).sum(axis=0))
    return np.array(requests), np.array(exceedances)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_counts_are_distributed_as_if_every_token_was_drawn(name: str, injection: str) -> None:
    """Equal windows, equal totals within their error, and equal spread between windows."""
    traffic = Traffic(SCENARIOS[name], N, level=0.99, seed=4, injections=INJECTIONS[injection])

    fast_requests, fast = counted(traffic, 50)
    slow_requests, slow = drawn(traffic, 50)

    assert fast_requests.tolist() == slow_requests.tolist()
    # Given its window's mix each count is binomial, so the difference of totals is at most as
    # uncertain as their sum.
    assert abs(int(fast.sum()) - int(slow.sum())) < 4 * np.sqrt(fast.sum() + slow.sum())
    spread = (fast / fast_requests[:, None]).var() / (slow / slow_requests[:, None]).var()
    assert 1.0 == pytest.approx(spread, abs=0.2)


@pytest.mark.parametrize("level", [0.99, 0.999])
def test_the_chance_of_independent_tokens_is_the_closed_form(level: float) -> None:
    """In scenario A a request of 16 tokens exceeds with chance 1 - level ** 16."""
    requests, exceedances = counted(Traffic(SCENARIOS["A"], 500, level=level, seed=1), 200)

    chance = 1 - level**16
    trials = int(requests.sum()) * 500
    error = 4 * np.sqrt(chance * (1 - chance) / trials)
    assert chance == pytest.approx(exceedances.sum() / trials, abs=error)


@pytest.mark.parametrize("name", ["A", "C"])
def test_a_threshold_of_ones_own_is_another_quantile(name: str) -> None:
    """Counts against the value of another quantile are those of traffic at that level."""
    scenario, level = SCENARIOS[name], np.array([0.99, 0.999, 0.9999])
    own = np.array([NormalDist().inv_cdf(one) for one in level])
    traffic = Traffic(scenario, 3, level=0.999, seed=1, thresholds=own)

    found = counted(traffic, 4000)[1].sum(axis=0)
    others = [
        counted(Traffic(scenario, 3, level=one, seed=1), 4000)[1].sum(axis=0) for one in level
    ]

    for feature in range(3):
        assert others[feature][feature] == pytest.approx(found[feature], rel=0.01, abs=4)


def test_the_scenarios_are_as_hard_as_they_say() -> None:
    """Requests make no bursts; a drifting mix does, and in E the rate varies by more than its mean."""
    dispersion = {}
    for name, scenario in SCENARIOS.items():
        requests, found = counted(Traffic(scenario, 60, seed=2), 3000)
        expected = requests[:, None] * found.sum(axis=0) / requests.sum()
        dispersion[name] = float(((found - expected) ** 2 / expected).mean())

    assert 0.98 == pytest.approx(dispersion["A"], abs=0.03)
    assert 0.98 == pytest.approx(dispersion["B"], abs=0.03)
    assert 1.2 == pytest.approx(dispersion["C"], abs=0.05)
    assert 1.2 == pytest.approx(dispersion["D"], abs=0.05)
    assert 1.5 < dispersion["E"] < 2.3


def test_features_share_as_much_of_the_mix_as_asked() -> None:
    """A shared burst comes to all features at once, own bursts come to each at its time."""
    together = {}
    for shared in (0.0, 1.0):
        scenario = replace(SCENARIOS["C"], shared=shared)
        _, found = counted(Traffic(scenario, 200, seed=5), 400)
        together[shared] = found.sum(axis=1).var() / found.sum(axis=1).mean()

    assert together[0.0] < 2
    assert together[1.0] > 20


@pytest.mark.parametrize("marginal", Marginal)
def test_exceedances_are_the_same_for_all_marginals(marginal: Marginal) -> None:
    """A value is beyond a quantile exactly when the Gaussian number behind it is."""
    traffic = Traffic(SCENARIOS["E"], 10, seed=6, injections=[Injection.spike(0.3).during(5)])

    _, expected = drawn(traffic, 10, Marginal.NORMAL)
    _, found = drawn(traffic, 10, marginal)

    assert expected.tolist() == found.tolist()
    assert expected[5:].sum() > 2 * expected[:5].sum()


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.5, 0.0), (0.9, 1.637744), (0.975, 3.182446), (0.999, 10.214532), (0.9999, 22.203742)],
)
def test_students_t_has_the_quantiles_of_the_tables(level: float, expected: float) -> None:
    """Up and down, with 3 degrees of freedom."""
    assert expected == pytest.approx(Marginal.T3.quantile(level), rel=1e-4, abs=1e-9)
    assert -expected == pytest.approx(Marginal.T3.quantile(1 - level), rel=1e-4, abs=1e-9)


def test_zeros_are_as_many_as_the_marginals_say() -> None:
    """A ReLU unit is zero nine times of ten, a sparse latent but once in a thousand is not."""
    traffic = Traffic(SCENARIOS["C"], 50, seed=7)

    relu, sparse = (
        np.mean([(v == 0).mean() for v in traffic.values(40, marginal)])
        for marginal in (Marginal.RELU, Marginal.SPARSE)
    )

    assert 0.9 == pytest.approx(relu, abs=0.01)
    assert 0.999 == pytest.approx(sparse, abs=0.0005)


def test_injections_keep_to_their_windows_and_features() -> None:
    """Before, after and beside them the traffic is what it is without them."""
    injections = [
        Injection.spike(1.0, height=9.0).during(2, 3).on([1]),
        Injection.silence().during(1, 2).on([0]),
    ]
    plain, struck = (Traffic(SCENARIOS["B"], 3, seed=8, injections=i) for i in ((), injections))

    requests, found = counted(struck, 8)

    assert requests[2:5].tolist() == found[2:5, 1].tolist()
    assert [0, 0] == found[1:3, 0].tolist()
    before = [v.tolist() for v in plain.values(1, Marginal.RELU)]
    assert before == [v.tolist() for v in struck.values(1, Marginal.RELU)]
    values = list(struck.values(3, Marginal.LOGNORMAL))
    assert 0.0 == values[1][..., 0].max() == values[2][..., 0].max()
    assert values[1][..., 1:].min() > 0


def test_values_that_are_no_numbers_hit_a_share_of_requests() -> None:
    """Every token of some requests, and none of the others."""
    traffic = Traffic(SCENARIOS["A"], 20, seed=9, injections=[Injection.nonfinite(0.25)])

    values = np.concatenate(list(traffic.values(20, Marginal.T3)))

    bad = np.isnan(values)
    assert (bad.all(axis=1) == bad.any(axis=1)).all()
    assert 0.25 == pytest.approx(bad.mean(), abs=0.02)


def test_the_seed_is_all_there_is() -> None:
    """The same traffic again for the same seed, another one for another."""
    same, again, other = (Traffic(SCENARIOS["E"], 5, seed=s) for s in (1, 1, 2))

    assert repr(counted(same, 20)) == repr(counted(same, 20)) == repr(counted(again, 20))
    assert repr(counted(same, 20)) != repr(counted(other, 20))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Scenario("x", correlation=1.0), "correlation is 1.0"),
        (lambda: Scenario("x", memory=-0.1), "memory is -0.1"),
        (lambda: Scenario("x", drift=float("nan")), "drift is nan"),
        (lambda: Scenario("x", requests=0), "requests is 0"),
        (lambda: Injection.spike(1.5), "share is 1.5"),
        (lambda: Injection.shift(float("inf")), "height is inf"),
        (lambda: Injection.silence().during(-1), "first is -1"),
        (lambda: Traffic(SCENARIOS["A"], 0), "features is 0"),
        (lambda: Traffic(SCENARIOS["A"], 1, level=1.0), "level is 1.0"),
        (lambda: Traffic(SCENARIOS["A"], 2, injections=[Injection.spike(0.1).on([2])]), "of 2"),
        (lambda: Traffic(SCENARIOS["A"], 2, thresholds=np.zeros(3)), "give 2 finite numbers"),
        (
            lambda: Traffic(
                SCENARIOS["A"], 2, injections=[Injection.spike(0.1), Injection.silence()]
            ),
            "meet",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Scenario | Injection], word: str) -> None:
    """With the name of the field and its value."""
    with pytest.raises(InvalidInput, match=word):
        make()
