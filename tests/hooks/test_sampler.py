from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.hooks.sampler import Choice, Sampler

pytestmark = pytest.mark.unit

PASSES = 3000


def chosen(choice: Choice | None) -> list[int]:
    """Return the numbers of the chosen items."""
    runs = choice.runs if choice else ()
    return [number for start, stop in runs for number in range(start, stop)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64), st.floats(0.02, 1.0), st.integers(1, 70))
def test_every_item_is_sampled_at_the_rate(seed: int, rate: float, items: int) -> None:
    """Over many passes each item's share is within 6 standard deviations of the rate."""
    sampler = Sampler(seed)

    counts = np.zeros(items)
    for _ in range(PASSES):
        counts[chosen(sampler.choose(rate, items))] += 1

    assert np.abs(counts / PASSES - rate).max() <= 6 * (rate * (1 - rate) / PASSES) ** 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64), st.floats(0.0, 1.0))
def test_a_pass_is_sampled_whole_at_the_rate(seed: int, rate: float) -> None:
    """The share of passes is as near to the rate, and what they draw is spread from 0 to 1 evenly."""
    sampler = Sampler(seed)

    drawn = [draw for _ in range(PASSES) if (draw := sampler.draw(rate)) is not None]
    low = sum(draw < 0.5 for draw in drawn)

    assert all(0.0 <= draw < 1.0 for draw in drawn)
    # Rates so small that their variance is no number any more are why one pass is allowed for.
    assert abs(len(drawn) - rate * PASSES) <= 6 * (rate * (1 - rate) * PASSES) ** 0.5 + 1
    assert abs(low - len(drawn) / 2) <= 6 * (len(drawn) / 4) ** 0.5 + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64), st.floats(0.02, 0.98))
def test_every_request_is_sampled_at_the_rate(seed: int, rate: float) -> None:
    """Of many ids the share that is sampled is within 6 standard deviations of the rate."""
    sampler = Sampler(seed)

    count = len(chosen(sampler.choose_named(rate, [f"request-{n}" for n in range(PASSES)])))

    assert abs(count / PASSES - rate) < 6 * (rate * (1 - rate) / PASSES) ** 0.5


@settings(deadline=None)
@given(st.floats(1e-12, 1.0), st.integers(1, 300), st.integers())
def test_choices_are_runs_of_items(rate: float, items: int, seed: int) -> None:
    """Runs increase, do not touch, stay within the items, and add up to what is said."""
    sampler = Sampler(seed)

    for choice in (
        sampler.choose(rate, items),
        sampler.choose_named(rate, [str(n) for n in range(items)]),
    ):
        numbers = [edge for run in (choice.runs if choice else ()) for edge in run]
        assert numbers == sorted(set(numbers))
        assert choice is None or (0 <= numbers[0] < numbers[-1] <= items)
        assert choice is None or (choice.items == len(chosen(choice)) and 0 <= choice.draw < 1)


def test_rate_1_samples_everything() -> None:
    """At rate 1 nothing is left out."""
    sampler = Sampler(0)

    assert all(len(chosen(sampler.choose(1.0, 7))) == 7 for _ in range(1000))
    assert len(chosen(sampler.choose_named(1.0, ["a", "", "b"]))) == 3


def test_equal_seeds_decide_alike_and_others_do_not() -> None:
    """A sequence can be repeated, and replicas with seeds of their own are not in step."""
    names = [f"r{n}" for n in range(64)]
    sequences = [[bool(s.choose(0.5, 1)) for _ in range(64)] for s in map(Sampler, (7, 7, 8))]
    requests = [chosen(s.choose_named(0.5, names)) for s in map(Sampler, (7, 7, 8))]

    assert sequences[0] == sequences[1] != sequences[2]
    assert requests[0] == requests[1] != requests[2]


def test_periodic_traffic_is_not_seen_at_one_phase() -> None:
    """Of traffic with period 10, a rate of 1/10 sees every phase."""
    sampler = Sampler(3)

    phases = {n % 10 for n in range(2000) if sampler.choose(0.1, 1)}

    assert phases == set(range(10))


def test_a_lower_rate_keeps_a_part_of_the_requests() -> None:
    """Whoever is sampled at 1/10 is sampled at 1/2 too: a changing rate splits few requests."""
    sampler = Sampler(3)
    names = [f"r{n}" for n in range(500)]

    few, many = (set(chosen(sampler.choose_named(rate, names))) for rate in (0.1, 0.5))

    assert few < many


def test_requests_without_an_id_are_decided_anew_each_time() -> None:
    """An empty id names nobody: its fate in one pass says nothing about the next."""
    sampler = Sampler(3)

    fates = {0 in chosen(sampler.choose_named(0.5, ["", "named"])) for _ in range(64)}

    assert fates == {False, True}


@pytest.mark.parametrize("name", ["\ud800", "é" * 100_000, "a b\n", 7])
def test_any_id_can_be_decided(name: str) -> None:
    """What a server calls its requests is its own business."""
    first, second = (Sampler(1).choose_named(0.5, [name]) for _ in range(2))

    assert first == second


def test_many_ids_take_bounded_memory() -> None:
    """Ids that were forgotten are decided as before."""
    sampler = Sampler(1)
    names = [f"r{n}" for n in range(20_000)]

    first, again = (chosen(sampler.choose_named(0.5, names)) for _ in range(2))

    assert first == again
    assert len(sampler._known) <= 4096  # noqa: SLF001 - memory shows nowhere else


def test_threads_may_ask_at_once() -> None:
    """Four threads together are sampled at the rate."""
    sampler = Sampler(5)

    with ThreadPoolExecutor(4) as pool:
        count = sum(pool.map(lambda _: sampler.choose(0.3, 1) is not None, range(4000)))

    assert abs(count / 4000 - 0.3) < 6 * (0.21 / 4000) ** 0.5
