import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import (
    ShapeMismatch,
    UnknownFeature,
)
from sidecar.features import FeatureKind, LayerKey, LayerSample, Scope, View
from sidecar.stats import Bank, Binning, WindowCounts
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
    bank.watch(LAYER, np.array([2, 0]), np.array(thresholds, np.float32))

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
    bank.watch(layer, np.array([0]), np.array([1.0], np.float32))
    bank.update(make_sample([[5, 5], [0, 0]]), 1.0)

    bank.watch(layer, np.array([1, 0]), np.array([2.0, 1.0], np.float32))
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
    bank.watch(layer, np.array([0]), np.array([1.0], np.float32))
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
    bank.watch(layer, np.array([2, 0]), np.array([9.0, 9.0], np.float32))
    bank.update(make_sample([[1.0, 2.0, 3.0]] * 3), 1.0)
    warming = close(bank, layer)
    bank.update(make_sample([[1.0, 2.0, 5.0], [np.nan, 2.0, 7.0]]), 2.0)
    first = close(bank, layer)
    empty = close(bank, layer)
    bank.watch(layer, np.array([], np.int64), np.array([], np.float32))
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
    bank.watch(layer, np.array([1]), np.array([1.0], np.float32))

    with pytest.raises(UnknownFeature, match="0 to 1"):
        bank.watch(layer, np.array([2]), np.array([1.0], np.float32))
    with pytest.raises(ShapeMismatch):
        bank.watch(layer, np.array([0, 1]), np.array([1.0], np.float32))

    assert [1] == close(bank, layer).indices.tolist()
