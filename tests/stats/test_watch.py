import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import (
    ShapeMismatch,
    UnknownFeature,
)
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request, Scope, Slice, View
from sidecar.stats import Bank, Binning, Watched, WindowCounts
from sidecar.stats.batch import decoded
from tests import reference

pytestmark = pytest.mark.unit

MakeBank = Callable[..., Bank]
MakeSample = Callable[..., LayerSample]

SETTINGS = {"warmup_rows": 4, "history_seconds": 100.0, "layer_limit": 4, "feature_limit": 64}
LAYER = LayerKey("m", "r", "layer", FeatureKind.NEURON, View.RAW, Scope.PROMPT)


def rows_of(*values: float) -> list[list[float]]:
    """Return one-feature rows."""
    return [[value] for value in values]


@settings(max_examples=60, deadline=None)
@given(
    rows=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(width=32)
    ),
    lengths=st.lists(st.integers(1, 4), min_size=12, max_size=12),
    thresholds=st.lists(st.floats(width=32), min_size=2, max_size=2),
)
def test_exceedances_are_counted_request_by_request(
    rows: np.ndarray, lengths: list[int], thresholds: list[float]
) -> None:
    """A request exceeds once if any of its rows does, whatever the values, as in the naive twin."""
    requests = np.repeat(np.arange(12), lengths)[: len(rows)].astype(np.int32)
    bank = Bank(Binning(), **SETTINGS)
    bank.register(LAYER, 3)
    bank.watch(LAYER, Watched.above(np.array([2, 0]), np.array(thresholds, np.float32)))

    bank.update(LayerSample(LAYER, rows, requests, ()), 1.0)
    found = bank.close_window(2.0)[LAYER]

    expected = [
        reference.request_exceedances(rows[:, j].tolist(), requests.tolist(), threshold)
        for j, threshold in zip((2, 0), thresholds, strict=True)
    ]
    assert expected == found.exceedances.tolist()
    assert len(set(requests.tolist())) == found.requests == found.watched_requests[0]
    for at, j in enumerate((2, 0)):
        finite = rows[np.isfinite(rows[:, j]), j]
        np.testing.assert_array_equal(
            found.maximum[at], finite.max(initial=-np.inf) if len(finite) else math.nan
        )


def close(bank: Bank, layer: LayerKey) -> WindowCounts:
    """End the window and return one layer's counts."""
    return bank.close_window(9.0)[layer]


def test_a_new_threshold_counts_from_now_on(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Requests seen before a threshold was set are not held against it; kept ones stay counted."""
    bank = make_bank()
    bank.register(layer, 2)
    bank.watch(layer, Watched.above(np.array([0]), np.array([1.0], np.float32)))
    bank.update(make_sample([[5, 5], [0, 0]]), 1.0)

    bank.watch(layer, Watched.above(np.array([1, 0]), np.array([2.0, 1.0], np.float32)))
    bank.update(make_sample([[5, 5]]), 1.0)

    found = close(bank, layer)
    assert ([1, 0], [1, 2], [1, 3]) == (
        found.indices.tolist(),
        found.exceedances.tolist(),
        found.watched_requests.tolist(),
    )
    assert 3 == found.requests


def test_each_window_counts_anew(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Closing a window empties its counts; an unsampled window has none and no maximum."""
    bank = make_bank()
    bank.register(layer, 1)
    bank.watch(layer, Watched.above(np.array([0]), np.array([1.0], np.float32)))
    bank.update(make_sample(rows_of(5)), 1.0)

    first, second = close(bank, layer), close(bank, layer)

    assert (1, 1, 5.0) == (first.requests, first.exceedances[0], first.maximum[0])
    assert (0, 0) == (second.requests, second.exceedances[0])
    assert math.isnan(second.maximum[0])


def test_a_closed_window_has_the_distribution_of_the_watched_features(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """Only of these, only of this window, and not while the bins are not placed."""
    bank = make_bank(warmup_rows=4)
    bank.register(layer, 3)
    bank.watch(layer, Watched.above(np.array([2, 0]), np.array([9.0, 9.0], np.float32)))
    bank.update(make_sample([[1.0, 2.0, 3.0]] * 3), 1.0)
    warming = close(bank, layer)
    bank.update(make_sample([[1.0, 2.0, 5.0], [np.nan, 2.0, 7.0]]), 2.0)
    first = close(bank, layer)
    empty = close(bank, layer)
    bank.watch(layer, Watched.above(np.array([], np.int64), np.array([], np.float32)))
    nothing = close(bank, layer)

    assert warming.watched is None
    assert first.watched is not None
    assert [2, 1] == first.watched.count.tolist()
    assert [6.0, 1.0] == first.watched.mean.tolist()
    assert empty.watched is not None
    assert 0 == empty.watched.rows
    assert nothing.watched is None


def test_watching_what_does_not_exist_is_refused(make_bank: MakeBank, layer: LayerKey) -> None:
    """A wrong index or an uneven pair of arrays leaves the watch as it was."""
    bank = make_bank()
    bank.register(layer, 2)
    bank.watch(layer, Watched.above(np.array([1]), np.array([1.0], np.float32)))

    with pytest.raises(UnknownFeature, match="0 to 1"):
        bank.watch(layer, Watched.above(np.array([2]), np.array([1.0], np.float32)))
    with pytest.raises(ShapeMismatch):
        bank.watch(layer, Watched.above(np.array([0, 1]), np.array([1.0], np.float32)))

    assert [1] == close(bank, layer).indices.tolist()


# -- low thresholds, slices, levels --------------------------------------------------------------

TRAFFIC = tuple(
    Slice.of(pairs)
    for pairs in ({}, {"route": "a"}, {"route": "b"}, {"route": "a", "canary": "yes"})
)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), form=st.sampled_from(["f32", "f16", "bf16"]))
def test_whatever_is_watched_is_counted_as_the_definition_says(
    data: st.DataObject, form: str
) -> None:
    """High and low thresholds, slices and levels together, feature by feature, request by request."""
    values = st.floats(width=32)
    rows = data.draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=values)
    )
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=12, max_size=12))
    index = np.repeat(np.arange(12), lengths)[: len(rows)].astype(np.int32)
    requests = tuple(Request(traffic=data.draw(st.sampled_from(TRAFFIC))) for _ in range(12))
    n, k = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    limits = {
        name: data.draw(hnp.arrays(np.float32, shape, elements=values))
        for name, shape in (("high", n), ("low", n), ("levels", (n, k)))
    }
    traffic = data.draw(st.lists(st.sampled_from(TRAFFIC), min_size=n, max_size=n) | st.just([]))
    indices = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2)))
    sent = rows if form == "f32" else (rows.view(np.uint32) >> 16).astype(np.uint16)
    if form == "f16":
        with np.errstate(over="ignore", invalid="ignore"):
            sent = rows.astype(np.float16)
    bank = Bank(Binning(), **SETTINGS)
    bank.register(LAYER, 3)
    bank.watch(LAYER, Watched(indices, traffic=tuple(traffic), **limits))

    bank.update(LayerSample(LAYER, sent, index, requests), 1.0)
    found = close(bank, LAYER)

    seen = decoded(sent)
    for at, feature in enumerate(indices):
        wanted = set(traffic[at].pairs) if traffic else set()
        mine = [i for i, request in enumerate(requests) if wanted <= set(request.traffic.pairs)]
        groups = [seen[index == i, feature] for i in mine if (index == i).any()]
        beyond = [((g > limits["high"][at]) | (g < limits["low"][at])).any() for g in groups]
        assert (len(groups), sum(beyond)) == (found.watched_requests[at], found.exceedances[at])
        above = [[(g > level).any() for g in groups] for level in limits["levels"][at]]
        assert [sum(one) for one in above] == found.level_exceedances[at].tolist()
        finite = [x for group in groups for x in group if np.isfinite(x)]
        assert np.array_equal(max(finite, default=math.nan), found.maximum[at], equal_nan=True)
        looked = limits["low"][at] > -np.inf
        least = min(finite, default=math.nan) if looked else math.nan
        assert np.array_equal(least, found.minimum[at], equal_nan=True)
    assert found.requests == len(set(index.tolist()))


def test_a_slice_takes_the_requests_that_have_all_its_pairs(
    make_bank: MakeBank, layer: LayerKey
) -> None:
    """More pairs than asked for do no harm, other values and missing ones do; undescribed has none."""
    bank = make_bank()
    bank.register(layer, 1)
    slices = (Slice(), TRAFFIC[1], TRAFFIC[3])
    plain = Watched.above(np.zeros(3, np.int64), np.zeros(3, np.float32))
    bank.watch(layer, replace(plain, traffic=slices))
    rows, index = np.ones((4, 1), np.float32), np.arange(4, dtype=np.int32)

    bank.update(LayerSample(layer, rows, index, tuple(Request(traffic=t) for t in TRAFFIC)), 1.0)
    described = close(bank, layer)
    bank.update(LayerSample(layer, rows, index, ()), 1.0)
    undescribed = close(bank, layer)

    assert [4, 2, 1] == described.watched_requests.tolist() == described.exceedances.tolist()
    assert [4, 0, 0] == undescribed.watched_requests.tolist()
    assert [False, True, True] == np.isnan(undescribed.maximum).tolist()


def test_counts_outlast_a_new_watch_only_where_nothing_changed(
    make_bank: MakeBank, make_sample: MakeSample, layer: LayerKey
) -> None:
    """A low threshold, a slice or a level that changed begins anew."""
    bank = make_bank()
    bank.register(layer, 1)
    four = Watched(
        np.zeros(4, np.int64),
        np.zeros(4, np.float32),
        np.full(4, -5, np.float32),
        (Slice(),) * 4,
        np.full((4, 1), 2, np.float32),
    )
    bank.watch(layer, four)
    bank.update(make_sample(rows_of(1, 1)), 1.0)

    low, levels = four.low.copy(), four.levels.copy()
    low[1], levels[2] = -6, 3
    bank.watch(
        layer, replace(four, low=low, levels=levels, traffic=(*four.traffic[:3], TRAFFIC[1]))
    )

    assert [2, 0, 0, 0] == close(bank, layer).watched_requests.tolist()


@pytest.mark.parametrize(
    "changed",
    [
        {"low": np.zeros(1, np.float32)},
        {"high": np.zeros((2, 1), np.float32)},
        {"levels": np.zeros((3, 1), np.float32)},
        {"traffic": (Slice(),)},
        {"indices": np.array(0)},
    ],
)
def test_a_watch_of_uneven_parts_is_refused(changed: dict[str, Any]) -> None:
    """Each feature needs one of each."""
    with pytest.raises(ShapeMismatch, match="give one of each"):
        replace(Watched.above(np.arange(2), np.zeros(2, np.float32)), **changed)
