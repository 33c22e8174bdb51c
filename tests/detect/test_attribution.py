"""Leave one slice out: the cause is named where there is one, and nothing where there is none."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.detect import Attribution, SliceCount, attribute
from sidecar.detect.attribution import SHARE_LEAST, SHARE_TIE
from sidecar.errors import InvalidInput

pytestmark = pytest.mark.unit

BASELINE, TOLERATED = 0.001, 0.004


def say(requests: int, exceedances: int, *pairs: SliceCount, **more: Any) -> Attribution:
    """Attribute at the usual rates."""
    rates = {"baseline_rate": BASELINE, "tolerated_rate": TOLERATED} | more
    return attribute(requests, exceedances, pairs, **rates)


def count(traffic: list[tuple[dict[str, str], bool]]) -> tuple[int, int, list[SliceCount]]:
    """Count requests one by one, as the naive twin of the book."""
    requests, exceedances = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for slice_, exceeds in traffic:
        requests.update(slice_.items())
        exceedances.update(slice_.items() if exceeds else ())
    pairs = [SliceCount(*pair, n, exceedances[pair]) for pair, n in requests.items()]
    return len(traffic), sum(exceeds for _, exceeds in traffic), pairs


def test_the_route_that_spikes_is_named_with_its_numbers() -> None:
    """The sentence says what is gone without it, the share, and the counts behind both."""
    found = say(
        640,
        44,
        SliceCount("route", "/v1/us", 580, 3),
        SliceCount("route", "/v1/eu", 60, 41),
        SliceCount("canary", "no", 640, 44),
    )

    assert "route=/v1/eu" == found.cause
    assert (
        "Without route=/v1/eu the spike is gone: 94 % of the excess. 41 of its 60 requests exceed, "
        "3 of the other 580."
    ) == found.words
    assert found.share == pytest.approx(1 - (3 - 0.58) / (44 - 0.64))
    assert ["route=/v1/eu", "route=/v1/us"] == [one.left.name for one in found.ranked]


def test_of_nested_slices_the_narrower_is_named() -> None:
    """The region holds the route that spikes and explains as much, but says less."""
    found = say(
        2000, 63, SliceCount("region", "eu", 1000, 63), SliceCount("route", "/v1/eu", 100, 60)
    )

    assert "route=/v1/eu" == found.cause
    assert "region=eu" == found.ranked[0].left.name


def test_slices_with_equal_counts_are_all_named() -> None:
    """Route and tenant are the same requests: the sentence does not pretend to know which."""
    found = say(
        1000,
        50,
        SliceCount("tenant", "acme", 100, 50),
        SliceCount("route", "/v1/eu", 100, 50),
        SliceCount("route", "/v1/us", 900, 0),
    )

    assert "route=/v1/eu" == found.cause
    assert "also those of tenant=acme: which of them it is cannot be told" in found.words


def test_a_spike_of_all_traffic_is_blamed_on_nobody() -> None:
    """A slice that is nine tenths of the traffic takes nine tenths of the excess, and explains nothing."""
    found = say(
        1000, 100, SliceCount("canary", "no", 900, 90), SliceCount("canary", "yes", 100, 10)
    )

    assert "" == found.cause
    assert 0.0 == found.share
    assert "No single slice explains it: without canary=no" in found.words
    assert "still 10 % of requests exceed; 0.4 % would be tolerated" in found.words


def test_two_slices_that_spike_are_not_made_one() -> None:
    """Without either the other still spikes."""
    found = say(
        1000,
        100,
        SliceCount("route", "/a", 100, 50),
        SliceCount("route", "/b", 100, 50),
        SliceCount("route", "/c", 800, 0),
    )

    assert "" == found.cause
    assert "No single slice explains it" in found.words


def test_when_all_traffic_is_one_slice_it_is_said_so() -> None:
    """Nothing was left out, so nothing was compared."""
    found = say(640, 44, SliceCount("route", "/v1", 640, 44), SliceCount("canary", "no", 640, 44))

    assert "" == found.cause
    assert "All 640 requests have canary=no, route=/v1: there is no other traffic" in found.words
    assert () == found.ranked


def test_few_counts_that_may_be_chance_name_nobody() -> None:
    """Six of nine exceedances in half of the traffic is what coins do."""
    found = say(2000, 9, SliceCount("route", "/a", 1000, 6), SliceCount("route", "/b", 1000, 3))

    assert "" == found.cause
    assert "by chance" in found.words


def test_the_more_slices_are_tried_the_more_it_takes_to_blame_one() -> None:
    """Five of five exceedances in a fifth of the traffic: remarkable of two routes, not of five."""
    loud, calm = SliceCount("route", "/a", 200, 5), SliceCount("route", "/b", 800, 0)
    others = [SliceCount("route", f"/{name}", 200, 0) for name in "bcde"]

    assert "route=/a" == say(1000, 5, loud, calm).cause
    assert "" == say(1000, 5, loud, *others).cause


def test_a_slice_that_explains_a_small_part_is_not_the_cause() -> None:
    """Without it the rest falls just below what is tolerated, but most of the spike is in the rest."""
    found = say(10_000, 45, SliceCount("user", "u1", 20, 10))

    assert "" == found.cause
    assert (True, True) == (found.ranked[0].gone, found.ranked[0].telling)
    assert "leaving out user=u1 takes away most, 29 % of the excess" in found.words


@pytest.mark.parametrize(
    ("requests", "exceedances", "pairs", "more", "words"),
    [
        (500, 40, [], {}, "No request names its slice"),
        (500, 4, [SliceCount("a", "b", 10, 4)], {}, "4 exceedances are too few"),
        (0, 0, [], {}, "No request names its slice"),
        (90_000, 90, [SliceCount("a", "b", 10, 4)], {}, "there is no excess to explain"),
        (500, 40, [SliceCount("a", "b", 10, 4)], {"baseline_rate": math.nan}, "no baseline"),
        (500, 40, [SliceCount("a", "b", 250, 20)], {"uncounted": 7}, "7 requests have slices that"),
    ],
)
def test_what_cannot_be_said_is_said(
    requests: int, exceedances: int, pairs: list[SliceCount], more: dict[str, float], words: str
) -> None:
    """Each reason for silence has its own words, and none names a cause."""
    found = say(requests, exceedances, *pairs, **more)

    assert "" == found.cause
    assert words in found.words


@pytest.mark.parametrize(
    ("requests", "exceedances", "pair"),
    [
        (5, 6, None),
        (5, -1, None),
        (9, 3, (10, 1)),
        (9, 3, (5, 4)),
        (9, 3, (2, 3)),
        (9, 3, (-1, -1)),
    ],
)
def test_counts_that_cannot_be_are_refused(
    requests: int, exceedances: int, pair: tuple[int, int] | None
) -> None:
    """The message names the slice and its counts."""
    with pytest.raises(InvalidInput, match="exceedances of"):
        say(requests, exceedances, *([SliceCount("a", "b", *pair)] if pair else []))


SLICES = st.fixed_dictionaries(
    {},
    optional={
        "route": st.sampled_from(["/a", "/b", "/c"]),
        "tenant": st.sampled_from(["x", "y"]),
        "canary": st.just("no"),
    },
)
TRAFFIC = st.lists(st.tuples(SLICES, st.booleans()), max_size=300)


@given(traffic=TRAFFIC, seed=st.randoms())
def test_whatever_the_traffic_a_named_cause_keeps_its_promises(
    traffic: list[tuple[dict[str, str], bool]], seed: Any
) -> None:
    """Recounted request by request, the rest is calm, and the share is what went with the cause."""
    requests, exceedances, pairs = count(traffic)
    found = say(requests, exceedances, *pairs)
    seed.shuffle(pairs)

    assert found == say(requests, exceedances, *pairs)
    assert all(0 <= one.share <= 1 for one in found.ranked)
    assert bool(found.cause) == bool(found.share)
    if not found.cause:
        return
    key, _, value = found.cause.partition("=")
    rest = [exceeds for slice_, exceeds in traffic if slice_.get(key) != value]
    tolerated = TOLERATED * len(rest)
    assert rest
    assert sum(rest) <= tolerated + 2 * math.sqrt(tolerated)
    remaining = max(0.0, sum(rest) - BASELINE * len(rest))
    assert found.share == pytest.approx(1 - remaining / (exceedances - BASELINE * requests))
    assert found.share >= max(
        SHARE_LEAST, *(o.share for o in found.ranked if o.gone and o.telling)
    ) - (SHARE_TIE)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(200, 5000),
    share=st.floats(0.02, 0.6),
    rate=st.floats(0.4, 1.0),
)
def test_a_planted_cause_is_found(seed: int, size: int, share: float, rate: float) -> None:
    """One route spikes in a good part of its requests, the others keep to the baseline."""
    rng = np.random.default_rng(seed)
    routes = np.where(rng.random(size) < share, 0, rng.integers(1, 6, size))
    routes[:30] = 0
    exceeds = rng.random(size) < np.where(routes == 0, rate, BASELINE)
    tenants = rng.integers(0, 4, size)
    traffic = [
        ({"route": f"/{r}", "tenant": f"t{t}", "canary": "no"}, bool(e))
        for r, t, e in zip(routes, tenants, exceeds, strict=True)
    ]
    requests, exceedances, pairs = count(traffic)

    found = say(requests, exceedances, *pairs)

    # Chance may give the rest more than is tolerated; then, and only then, there is no cause.
    rest = exceeds[routes != 0]
    allowed = TOLERATED * len(rest) + 2 * math.sqrt(TOLERATED * len(rest))
    assert ("route=/0" if rest.sum() <= allowed else "") == found.cause


def test_random_spikes_are_blamed_on_a_slice_less_often_than_promised() -> None:
    """Over 3,000 spikes of all traffic at once, fewer than one in a thousand names a slice."""
    rng = np.random.default_rng(3)
    named = 0
    for _ in range(3000):
        size = int(rng.integers(50, 3000))
        rate = float(rng.uniform(0.004, 0.1))
        routes = rng.choice(12, size, p=(p := rng.dirichlet(np.full(12, 0.5))))
        exceeds = rng.random(size) < rate
        assert p.sum() == pytest.approx(1)
        whole = np.bincount(routes, minlength=12)
        beyond = np.bincount(routes[exceeds], minlength=12)
        pairs = [
            SliceCount("route", str(i), int(whole[i]), int(beyond[i]))
            for i in range(12)
            if whole[i]
        ]
        named += bool(say(size, int(exceeds.sum()), *pairs).cause)

    assert named < 3
