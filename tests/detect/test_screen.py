import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect.screen import Expected, ScreenPolicy, screen
from sidecar.errors import InvalidInput, ShapeMismatch
from tests import reference

pytestmark = pytest.mark.unit

POLICY = ScreenPolicy()
RATES = st.sampled_from([1e-4, 0.0157, 0.2, 0.6, 0.95, math.nan, 0.0, 1.0])
DISPERSIONS = st.sampled_from([0.9, 1.0, 1.2, 5.0, math.nan])


def expected(rates: list[float], dispersions: list[float], requests: float = 64.0) -> Expected:
    """Return an expectation of lists."""
    return Expected(np.array(rates), np.array(dispersions), requests, 360)


def naive(counts: list[int], requests: int, known: Expected) -> list[bool]:
    """Return what is significant when every tail is computed, one at a time."""
    chances, judged = [], []
    pairs = zip(counts, known.rate.tolist(), known.dispersion.tolist(), strict=True)
    for count, rate, dispersion in pairs:
        judged.append(0 < rate < 1 and math.isfinite(dispersion) and requests > 0)
        if not judged[-1]:
            continue
        loud = min(2 * rate, 1 - (1 - rate) / 2)
        if count < max(1, requests * loud):
            chances.append(1.0)
            continue
        size = known.requests * rate / max(dispersion - 1, 1e-4)
        chances.append(math.exp(reference.overdispersed_log_tail(count, requests * rate, size)))
    rejected = iter(reference.step_up(chances, 0.05))
    return [next(rejected) if known_ else False for known_ in judged]


@settings(max_examples=80, deadline=None)
@given(
    features=st.lists(st.tuples(st.floats(0, 1), RATES, DISPERSIONS), min_size=1, max_size=30),
    requests=st.integers(0, 90),
    typical=st.sampled_from([16.0, 64.0]),
)
def test_leaving_tails_out_changes_nothing(
    features: list[tuple[float, float, float]], requests: int, typical: float
) -> None:
    """The screen names what it would name if it computed every tail."""
    counts = [round(requests * share**4) for share, _, _ in features]
    known = expected([r for _, r, _ in features], [d for _, _, d in features], typical)

    found = screen(np.array(counts), requests, known, POLICY)

    assert naive(counts, requests, known) == found.significant.tolist()
    assert not np.isnan(found.log_p[found.significant]).any()
    assert np.all(found.log_p[found.significant] <= math.log(0.05))


@settings(max_examples=80, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=30), share=st.sampled_from([0.01, 0.05])
)
def test_a_q_value_is_the_least_bound_under_which_a_feature_is_significant(
    shares: list[float], share: float
) -> None:
    """At a bound just above it the screen names the feature, at one just below it does not."""
    counts = np.array([round(64 * one**4) for one in shares])
    known = expected([0.0157] * len(shares), [1.2] * len(shares))
    found = screen(counts, 64, known, replace(POLICY, false_discoveries=share))

    assert np.isnan(found.log_q[~found.significant]).all()
    for at in np.flatnonzero(found.significant):
        bound = math.exp(found.log_q[at])
        assert bound <= share * (1 + 1e-9)
        for near, verdict in ((bound * (1 + 1e-6), True), (bound * (1 - 1e-6), False)):
            again = screen(counts, 64, known, replace(POLICY, false_discoveries=near))
            assert verdict == again.significant[at]


def test_only_features_with_an_expectation_are_judged() -> None:
    """No baseline or dispersion, a rate of 0 or 1, no requests, too few windows: nothing is said."""
    known = expected([0.01, math.nan, 0.01, 0.0, 1.0], [1.0, 1.0, math.nan, 1.0, 1.0])

    some = screen(np.full(5, 40), 64, known, POLICY)
    none = screen(np.zeros(5, np.int64), 0, known, POLICY)
    early = screen(np.full(5, 40), 64, replace(known, windows=359), POLICY)

    assert (1, 0, 0) == (some.judged, none.judged, early.judged)
    assert [True, False, False, False, False] == some.significant.tolist()
    assert not none.significant.any()
    assert not early.significant.any()


def test_a_small_difference_is_not_significant_however_many_requests() -> None:
    """Half as often again is far beyond chance in a million requests, and still is no finding."""
    million = 10**6
    known = expected([0.01], [1.0], million)

    below = screen(np.array([15_000]), million, known, POLICY)
    above = screen(np.array([20_000]), million, known, POLICY)

    assert (False, True) == (bool(below.significant[0]), bool(above.significant[0]))


def test_bursts_of_the_baseline_are_allowed_for() -> None:
    """The same count is significant for a steady feature and not for a bursty one."""
    known = expected([0.0157, 0.0157], [1.0, 10.0])

    found = screen(np.array([6, 6]), 64, known, POLICY)

    assert [True, False] == found.significant.tolist()


def test_a_greater_window_is_not_more_suspect() -> None:
    """Bursts multiply the rate: four times the requests may have four times the spread."""
    known = expected([0.0157], [1.8])

    found = screen(np.array([12]), 256, known, POLICY)
    as_if_typical = screen(np.array([12]), 256, expected([0.0157], [1.8], 256.0), POLICY)

    assert not found.significant[0]
    assert as_if_typical.significant[0]


@pytest.mark.parametrize(
    ("counts", "requests", "typical", "error", "word"),
    [
        ([1, 2], 64, 64.0, ShapeMismatch, "2 counts"),
        ([65], 64, 64.0, InvalidInput, "65"),
        ([-1], 64, 64.0, InvalidInput, "-1"),
        ([1], 64, 0.0, InvalidInput, "more than 0"),
    ],
)
def test_impossible_windows_are_refused(
    counts: list[int], requests: int, typical: float, error: type[Exception], word: str
) -> None:
    """Counts that cannot be, and expectations of other features."""
    with pytest.raises(error, match=word):
        screen(np.array(counts), requests, expected([0.01], [1.0], typical), POLICY)
