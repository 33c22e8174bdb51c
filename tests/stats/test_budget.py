import json
import subprocess
import sys

import numpy as np
import pytest

from sidecar.errors import LimitReached
from sidecar.features import LayerKey, LayerSample
from sidecar.stats import Bank, Binning, Budget, Detail, Period, Watched

pytestmark = pytest.mark.unit

SETTINGS = {"warmup_rows": 8, "history_seconds": 1e3, "layer_limit": 64, "feature_limit": 1 << 20}
FULL, SCREENED = (detail.feature_bytes(Binning()) for detail in Detail)


def bank_of(budget: Budget) -> Bank:
    """Return an empty bank."""
    return Bank(Binning(), **SETTINGS, budget=budget)


def key(name: object) -> LayerKey:
    """Return the key of a layer."""
    return LayerKey("m", "r", f"layer{name}")


def feed(bank: Bank, layer: LayerKey, at: float, rows: int = 8, scale: float = 1.0) -> np.ndarray:
    """Send normal rows to a layer and return them."""
    rng = np.random.default_rng(int(at * 10))
    values = (scale * rng.normal(size=(rows, bank.width(layer)))).astype(np.float32)
    bank.update(LayerSample(layer, values, np.arange(rows, dtype=np.int32), ()), at)
    return values


def test_full_detail_comes_first_then_screening_then_refusal() -> None:
    """In the order of registration: half of the memory in full, the rest screened, then no more."""
    bank = bank_of(Budget(memory_bytes=4 * 10 * FULL))

    for number in range(2):
        bank.register(key(number), 10)
    for number in range(2, 12):
        bank.register(key(number), 10)

    assert [Detail.FULL] * 2 + [Detail.SCREENED] * 10 == [bank.detail(k) for k in bank.layers()]
    with pytest.raises(LimitReached, match=r"statistics\.memory_bytes"):
        bank.register(key("last"), 10)
    assert 12 == len(bank.layers())


def test_the_memory_that_is_set_aside_is_what_is_kept() -> None:
    """With every store of every layer in use, and lasting counters wide, no more than was said."""
    bank = bank_of(Budget(memory_bytes=2 * 20 * FULL))
    for number, width in enumerate((20, 30)):
        bank.register(key(number), width)
        for at in range(3):
            # Wide counters in what lasts, by one window that is folded in twice.
            feed(bank, key(number), at * 2e3, rows=40_000)
            bank.close_window(at * 2e3 + 1)
            bank.place_thresholds(key(number), 0.999)
        bank.freeze(key(number))
        feed(bank, key(number), 9e3)

    assert [Detail.FULL, Detail.SCREENED] == [bank.detail(layer) for layer in bank.layers()]
    assert 20 * FULL + 30 * SCREENED == bank.memory().used_bytes
    # The places of the bins are accounted for, but not counters; history is narrow still.
    assert bank.held_bytes() <= bank.memory().used_bytes


def test_a_screened_layer_keeps_its_newest_window_and_its_baseline() -> None:
    """The last window is shown until the next has rows; the baseline learns; there is no history."""
    bank = bank_of(Budget(memory_bytes=10 * SCREENED, full_detail_ratio=0.0))
    bank.register(key(0), 2)
    first = feed(bank, key(0), 1.0)

    closed = bank.close_window(2.0)[key(0)]
    shown = bank.snapshot(key(0), Period.CURRENT)
    empty = bank.close_window(3.0)[key(0)]
    second = feed(bank, key(0), 4.0)

    assert (8, 0) == (closed.rows, empty.rows)
    assert first.max() == shown.maximum.max()
    assert second.max() == bank.snapshot(key(0), Period.CURRENT).maximum.max()
    assert 16 == bank.snapshot(key(0), Period.BASELINE).rows
    assert 0 == bank.snapshot(key(0), Period.HISTORY).rows
    assert 3 == shown.binning.mantissa_bits
    bank.freeze(key(0))
    feed(bank, key(0), 5.0)
    assert 16 == bank.snapshot(key(0), Period.BASELINE).rows


def test_flagged_features_keep_finer_bins_and_their_last_windows() -> None:
    """Of screened layers too: the ring holds the newest windows, each within the finer error."""
    budget = Budget(full_detail_ratio=0.0, flagged_windows=3, flagged_mantissa_bits=6)
    bank = bank_of(budget)
    bank.register(key(0), 5)
    feed(bank, key(0), 0.0, rows=300)
    bank.watch(key(0), Watched.above(np.array([3, 1]), np.full(2, np.inf, np.float32)))
    kept = []
    for at in range(5):
        kept.append(feed(bank, key(0), 10.0 * at + 1, rows=2_000))
        closed = bank.close_window(10.0 * at + 10)[key(0)]

    windows = bank.watched_windows(key(0))

    assert [30.0, 40.0, 50.0] == [window.closed for window in windows]
    assert closed.watched is not None
    for window, values in zip(windows, kept[2:], strict=True):
        assert ([3, 1], 2_000) == (window.indices.tolist(), window.distribution.rows)
        exact = np.sort(values[:, [3, 1]], axis=0)[1979]
        found = window.distribution.quantile(np.array([0.99]))[:, 0]
        assert np.all(np.abs(found - exact) <= 0.012 * np.abs(exact))
    assert 2 * budget.flagged_feature_bytes(Binning()) == bank.memory().used_bytes - 5 * SCREENED


def test_what_is_watched_may_change_within_a_window() -> None:
    """Closed windows stay; the open one begins anew, and says of how many rows it speaks."""
    bank = bank_of(Budget())
    bank.register(key(0), 3)
    feed(bank, key(0), 0.0)
    bank.watch(key(0), Watched.above(np.array([0]), np.zeros(1, np.float32)))
    feed(bank, key(0), 1.0)
    bank.close_window(2.0)
    feed(bank, key(0), 3.0)

    bank.watch(key(0), Watched.above(np.array([0, 2]), np.zeros(2, np.float32)))
    feed(bank, key(0), 4.0, rows=5)
    bank.close_window(5.0)

    assert [([0], 8), ([0, 2], 5)] == [
        (window.indices.tolist(), window.distribution.rows)
        for window in bank.watched_windows(key(0))
    ]


def test_finer_bins_have_a_budget_of_their_own() -> None:
    """Beyond it a layer's flagged features are watched without them, and nothing is refused."""
    each = Budget().flagged_feature_bytes(Binning())
    bank = bank_of(Budget(flagged_memory_bytes=3 * each))
    for name in "ab":
        bank.register(key(name), 4)
        feed(bank, key(name), 0.0)
        bank.watch(key(name), Watched.above(np.arange(2), np.zeros(2, np.float32)))
        feed(bank, key(name), 1.0)

    closed = bank.close_window(2.0)

    assert [1, 0] == [len(bank.watched_windows(key(name))) for name in "ab"]
    assert all(closed[key(name)].watched is not None for name in "ab")
    assert [2, 2] == [len(closed[key(name)].exceedances) for name in "ab"]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_details_and_finer_windows_survive(ratio: float) -> None:
    """A restored bank keeps each layer's detail, its ring, and goes on as if nothing had been."""
    budget = Budget(full_detail_ratio=ratio, flagged_windows=3)
    bank = bank_of(budget)
    bank.register(key(0), 3)
    feed(bank, key(0), 0.0)
    bank.watch(key(0), Watched.above(np.array([1]), np.zeros(1, np.float32)))
    for at in range(1, 6):
        feed(bank, key(0), float(at))
        bank.close_window(at + 0.5)

    found = Bank.decode(bank.encode(), Binning(), **SETTINGS, budget=budget)

    assert bank.encode() == found.encode()
    assert bank.detail(key(0)) == found.detail(key(0))
    for one in (bank, found):
        feed(one, key(0), 9.0)
        one.close_window(9.5)
    expected, actual = (one.watched_windows(key(0)) for one in (bank, found))
    assert [w.closed for w in expected] == [w.closed for w in actual]
    for a, b in zip(expected, actual, strict=True):
        assert a.distribution.counts.tobytes() == b.distribution.counts.tobytes()
    assert bank.encode() == found.encode()


MEASURE = """
import gc, json, sys
import numpy as np, psutil
from sidecar.features import LayerKey, LayerSample
from sidecar.memory import give_back
from sidecar.stats import Bank, Binning, Budget, Detail

WIDTH, LAYERS = 4096, 32
budget = Budget(memory_bytes=250_000_000, full_detail_ratio=0.0)
bank = Bank(
    Binning(), warmup_rows=256, history_seconds=1e3, layer_limit=64, feature_limit=1 << 18,
    budget=budget,
)
keys = [LayerKey("m", "r", f"layer{number}") for number in range(LAYERS)]
rows = np.random.default_rng(0).normal(size=(256, WIDTH)).astype(np.float32)
index = np.arange(256, dtype=np.int32)
process = psutil.Process()
gc.collect()
before = process.memory_info().rss
for key in keys:
    bank.register(key, WIDTH)
    bank.update(LayerSample(key, rows, index, ()), 1.0)
# A baseline of more rows than 16 bits count, without waiting for them to be counted one by one.
for key in keys:
    layer = bank._layers[key]._seen
    layer._baseline.reserve(1 << 17)
    bank.close(key, 2.0)
    bank.place_thresholds(key, 0.999)
    bank.update(LayerSample(key, rows[:32], index[:32], ()), 3.0)
    bank.close(key, 4.0)
    bank.update(LayerSample(key, rows[:32], index[:32], ()), 5.0)
gc.collect()
give_back()  # as the daemon does every minute
after = process.memory_info().rss
print(json.dumps({
    "screened": sum(len(bank.expectation(key).squares) for key in keys),
    "details": sorted({bank.detail(key) for key in keys}),
    "accounted": bank.memory().used_bytes, "held": bank.held_bytes(), "grown": after - before,
}))
"""


def test_131072_screened_features_fit_into_250_megabytes() -> None:
    """32 layers of 4,096 features, fed, with wide baselines and thresholds: as accounted and as the system sees it."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)

    found = json.loads(done.stdout)

    assert ["screened"] == found["details"]
    assert 131_072 == found["screened"]
    assert found["held"] <= found["accounted"] <= 250_000_000
    assert found["grown"] <= 250_000_000


@pytest.mark.parametrize("detail", list(Detail))
def test_what_fits_is_what_is_admitted(detail: Detail) -> None:
    """The number that the configuration check prints is the number that registers."""
    ratio = 1.0 if detail is Detail.FULL else 0.0
    budget = Budget(memory_bytes=10_000_000, full_detail_ratio=ratio)
    fitting = budget.fitting(detail, Binning())

    bank = bank_of(budget)
    bank.register(key(0), fitting)

    assert detail is bank.detail(key(0))
    with pytest.raises(LimitReached):
        bank.register(key(1), fitting)
