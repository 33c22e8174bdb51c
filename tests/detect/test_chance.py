import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.detect.chance import (
    greatest_rate,
    least_log_overdispersed_tail,
    log_overdispersed_tail,
    log_tail,
    measured_rate,
)
from tests import reference

pytestmark = pytest.mark.unit


def tail(successes: int, trials: int, rate: float) -> float:
    """Return the log tail of one count."""
    return float(log_tail(np.array([successes]), np.array([trials]), np.array([rate]))[0])


@settings(max_examples=60, deadline=None)
@given(
    trials=st.integers(1, 120),
    share=st.floats(0, 1),
    rate=st.floats(1e-9, 1 - 1e-9),
)
def test_the_tail_is_the_exact_sum(trials: int, share: float, rate: float) -> None:
    """The chance agrees with a sum in exact fractions, near the mean and far from it."""
    successes = round(share * trials)

    found = tail(successes, trials, rate)

    assert reference.binomial_log_tail(successes, trials, rate) == pytest.approx(
        found, rel=1e-9, abs=1e-11
    )


@pytest.mark.parametrize(
    ("successes", "trials", "rate", "expected"),
    [
        (0, 10, 0.3, 0.0),
        (0, 0, 0.3, 0.0),
        (1, 10, 0.0, -math.inf),
        (10, 10, 1.0, 0.0),
        (64, 64, 1e-3, 64 * math.log(1e-3)),
        (2000, 2000, 1e-9, 2000 * math.log(1e-9)),
        (1, 10**9, 1e-12, math.log(-math.expm1(10**9 * math.log1p(-1e-12)))),
    ],
)
def test_the_ends_are_right(successes: int, trials: int, rate: float, expected: float) -> None:
    """Certain, impossible, and far below what a float holds."""
    assert expected == pytest.approx(tail(successes, trials, rate), rel=1e-6)


def test_without_a_rate_there_is_no_chance() -> None:
    """An unknown rate gives NaN, with and without successes."""
    assert math.isnan(tail(3, 10, math.nan))
    assert math.isnan(tail(0, 10, math.nan))


@settings(max_examples=30, deadline=None)
@given(trials=st.integers(1, 10**6), rate=st.floats(1e-6, 0.999))
def test_more_successes_are_never_more_likely(trials: int, rate: float) -> None:
    """The tail falls from 0 as the count grows, without a jump where the method changes."""
    counts = np.unique(np.linspace(0, trials, 60).astype(int))

    found = log_tail(counts, np.full(len(counts), trials), np.full(len(counts), rate))

    assert 0.0 == found[0]
    assert not np.isnan(found).any()
    assert np.all(np.diff(found) <= 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    successes=st.integers(1, 150),
    mean=st.floats(1e-3, 60),
    size=st.floats(1e-2, 1e4),
)
def test_the_overdispersed_tail_is_the_sum_of_its_terms(
    successes: int, mean: float, size: float
) -> None:
    """For few and many, steady and bursty counts; and the cheap bound is never above it."""
    arguments = np.array([successes]), np.array([mean]), np.array([size])

    (found,), (least,) = (
        work(*arguments) for work in (log_overdispersed_tail, least_log_overdispersed_tail)
    )

    assert reference.overdispersed_log_tail(successes, mean, size) == pytest.approx(
        found, rel=1e-8, abs=1e-8
    )
    assert least <= found + 1e-9


def test_a_steady_count_is_a_poisson_count() -> None:
    """With a great size the negative binomial has the Poisson distribution's tail."""
    (found,) = log_overdispersed_tail(np.array([1]), np.array([0.5]), np.array([1e9]))

    assert math.log(-math.expm1(-0.5)) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "slack"), [(0, 1.19), (1, 1.12), (5, 1.05), (20, 1.02), (100, 1.002), (5000, 1.0001)]
)
def test_the_greatest_rate_is_garwoods(count: int, slack: float) -> None:
    """Against the exact Poisson bound: the chance of so few or fewer is 1e-10, and never more."""
    found = greatest_rate(np.array([count]), 1_000_000)[0] * 1_000_000

    def chance(mean: float) -> float:
        return sum(
            math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)
        )

    assert chance(found) < 1.01e-10
    assert chance(found / slack) > 1e-10


def test_a_rate_measured_on_few_is_granted_more_and_never_above_one() -> None:
    """The fewer requests, the more; with many it is what was measured."""
    few, many = (
        greatest_rate(np.array([3]), 300)[0],
        greatest_rate(np.array([30_000]), 3_000_000)[0],
    )

    assert 0.11 < few < 0.12
    assert many == pytest.approx(0.01, rel=0.04)
    assert greatest_rate(np.array([0]), 1)[0] == 1.0


def test_what_is_tolerated_is_what_was_measured_or_what_cannot_be_ruled_out() -> None:
    """Each feature by the requests of its own; many need no more than the factor."""
    counts, requests = np.array([0, 5, 4000]), np.array([1000, 5000, 400_000])

    found = measured_rate(counts, requests, 1.5)

    assert found[:2].tolist() == pytest.approx((greatest_rate(counts, requests) / 1.5)[:2].tolist())
    assert found[2] == pytest.approx(0.01, rel=1e-3)
