from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.hooks.sampler import Sampler, mix

pytestmark = pytest.mark.unit


@given(st.integers(0, 2**64), st.floats(0.02, 0.98))
def test_the_share_of_sampled_passes_is_the_rate(seed: int, rate: float) -> None:
    """Over 4,000 draws the share is within 6 standard deviations of the rate."""
    sampler = Sampler(seed)

    share = sum(sampler.draw(rate) > 0 for _ in range(4000)) / 4000

    assert abs(share - rate) < 6 * (rate * (1 - rate) / 4000) ** 0.5


def test_the_ends_are_exact() -> None:
    """Rate 1 samples everything, rate 0 nothing."""
    sampler = Sampler(0)

    assert all(sampler.draw(1.0) for _ in range(1000))
    assert not any(sampler.draw(0.0) for _ in range(1000))


def test_equal_seeds_decide_alike_and_others_do_not() -> None:
    """A sequence can be repeated, and replicas with seeds of their own are not in step."""
    sequences = [[bool(s.draw(0.5)) for _ in range(64)] for s in map(Sampler, (7, 7, 8))]

    assert sequences[0] == sequences[1]
    assert sequences[0] != sequences[2]


def test_periodic_traffic_is_not_seen_at_one_phase() -> None:
    """Of traffic with period 10, a rate of 1/10 sees every phase."""
    sampler = Sampler(3)

    phases = {n % 10 for n in range(2000) if sampler.draw(0.1)}

    assert phases == set(range(10))


def test_threads_share_one_sequence() -> None:
    """Draws of several threads are those of one thread in some order: none twice, none lost."""
    shared, alone = Sampler(5), Sampler(5)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: shared.draw(1.0), range(2000)))

    assert sorted(together) == sorted(alone.draw(1.0) for _ in range(2000))


def test_mixing_spreads_neighbours() -> None:
    """Neighbouring numbers differ in about half of their 64 bits."""
    distances = [(mix(n) ^ mix(n + 1)).bit_count() for n in range(1000)]

    assert 30 < sum(distances) / 1000 < 34
