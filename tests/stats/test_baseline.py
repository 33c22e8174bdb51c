"""Baselines as bytes: taken along, adopted, and refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BaselineNotReady, CorruptState, LayerConflict, UnknownLayer
from sidecar.features import LayerKey, LayerSample, Slice
from sidecar.stats import Bank, Binning, Budget, Distribution, Kernels, OwnCount, Period, compiled
from sidecar.stats.distribution import merge
from sidecar.stats.encoding import pack, unpack
from sidecar.stats.kernels import NUMPY

pytestmark = pytest.mark.unit

LAYER = LayerKey("m", "r", "layer")
SETTINGS = {"warmup_rows": 16, "history_seconds": 1e3, "layer_limit": 4, "feature_limit": 64}
WIDTH = 3


def empty_bank(width: int = WIDTH, binning: Binning | None = None, **changed: Any) -> Bank:
    """Return a bank with one layer that has seen nothing."""
    bank = Bank(binning or Binning(), **{**SETTINGS, **changed})
    bank.register(LAYER, width)
    return bank


def feed(bank: Bank, rows: np.ndarray, at: float = 1.0) -> None:
    """Send rows, two to a request."""
    index = np.arange(len(rows), dtype=np.int32) // 2
    bank.update(LayerSample(LAYER, rows.astype(np.float32), index, ()), at)


def learned_bank(*, screened: bool = True, **changed: Any) -> Bank:
    """Return a bank whose baseline was learned in two halves and is frozen."""
    bank, rng = empty_bank(**changed), np.random.default_rng(0)
    width = bank.width(LAYER)
    feed(bank, rng.normal(5, 2, (300, width)))
    bank.close(LAYER, 2.0)
    if screened:
        bank.place_thresholds(LAYER, 0.9)
    for at in range(3):
        rows = rng.normal(5, 2, (100, width)).round(1)
        rows[at, 0], rows[at + 1, 1], rows[:, 2] = np.nan, 0.0, 0.0
        feed(bank, rows, at + 3.0)
        bank.close(LAYER, at + 3.5)
    bank.freeze(LAYER)
    return bank


def adopt(bank: Bank, layer: LayerKey, payload: bytes) -> None:
    """Read a baseline for a layer of a bank, and continue the layer with it."""
    bank.adopt(layer, bank.reader(layer)(payload))


def same(a: Distribution, b: Distribution) -> bool:
    """Whether two distributions are equal in every bit."""
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        if isinstance(getattr(a, name), np.ndarray)
        else getattr(a, name) == getattr(b, name)
        for name in a.__slots__
    )


@pytest.mark.parametrize("screened", [True, False])
def test_an_adopted_baseline_is_the_one_that_was_taken_along(screened: bool) -> None:
    """Counts, bins, thresholds and what is expected of them; and it can be taken along again."""
    bank, found = learned_bank(screened=screened), empty_bank()
    feed(found, np.ones((5, WIDTH)))
    found.close(LAYER, 2.0)

    adopt(found, LAYER, bank.baseline(LAYER).encode())

    assert found.frozen(LAYER)
    assert same(bank.snapshot(LAYER, Period.BASELINE), found.snapshot(LAYER, Period.BASELINE))
    assert bank.baseline(LAYER).encode() == found.baseline(LAYER).encode()
    assert bank.baseline_rate(LAYER, 0.9) == found.baseline_rate(LAYER, 0.9)
    for period in (Period.CURRENT, Period.HISTORY):
        assert 0 == found.snapshot(LAYER, period).rows
    before, after = bank.expectation(LAYER), found.expectation(LAYER)
    assert screened is (after is not None) is (before is not None)
    if before is not None and after is not None:
        assert before.windows == after.windows == 3
        assert before.rate.tobytes() == after.rate.tobytes()
        assert before.dispersion.tobytes() == after.dispersion.tobytes()


OWN = (
    OwnCount(1, Slice.of({"route": "eu"}), 0.99, 2.5, -np.inf, 4000, 31),
    OwnCount(2, Slice(), 0.999, np.inf, -1.25, 0, 0),
)


def test_what_was_measured_for_flags_travels_with_a_baseline() -> None:
    """To the bit; a baseline of an earlier build has none."""
    payload = replace(learned_bank().baseline(LAYER), own=OWN).encode()

    assert OWN == empty_bank().reader(LAYER)(payload).own
    header, arrays = unpack(b"base", payload)
    del header["own"]
    assert () == empty_bank().reader(LAYER)(pack(b"base", header, arrays)).own


@pytest.mark.parametrize(
    "changed",
    [
        {"index": WIDTH},
        {"index": -1},
        {"index": 1.0},
        {"requests": 30},
        {"exceedances": -1},
        {"level": 1.5},
        {"level": "x"},
        {"high": None},
        {"high": 0.1},
        {"low": float("nan")},
        {"traffic": [["route", "no spaces"]]},
        {"traffic": None},
    ],
)
def test_counts_of_flags_that_cannot_be_are_corrupt(changed: dict[str, Any]) -> None:
    """Each number is checked before anything is compared with it."""
    header, arrays = unpack(b"base", replace(learned_bank().baseline(LAYER), own=OWN).encode())
    header["own"][0] |= changed

    with pytest.raises(CorruptState):
        empty_bank().reader(LAYER)(pack(b"base", header, arrays))


def test_what_comes_after_is_compared_with_the_adopted_baseline() -> None:
    """Every feature with its threshold, in the first window already; the baseline stays as it is."""
    found = empty_bank()
    adopt(found, LAYER, learned_bank().baseline(LAYER).encode())
    before = found.baseline(LAYER).encode()

    feed(found, np.full((8, WIDTH), 1e6))
    window = found.close(LAYER, 9.0)

    assert window.screened is not None
    assert ([4, 4, 4], 4) == (window.screened.tolist(), window.screened_requests)
    assert before == found.baseline(LAYER).encode()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_replicas_on_one_baseline_merge_to_the_bit(ratio: float) -> None:
    """Two banks and kernels share the traffic; a third one sees it all: windows and history agree."""
    budget = Budget(full_detail_ratio=ratio)
    payload = learned_bank(budget=budget).baseline(LAYER).encode()
    replicas = [empty_bank(budget=budget, kernels=one) for one in (NUMPY, compiled(), NUMPY)]
    for bank in replicas:
        adopt(bank, LAYER, payload)
    rng = np.random.default_rng(1)

    for at in range(6):
        rows = rng.standard_t(1.5, (40, WIDTH)) * 3
        rows[at, at % WIDTH] = np.inf
        feed(replicas[at % 2], rows, at + 10.0)
        feed(replicas[2], rows, at + 10.0)
        for bank in replicas if at % 2 else ():
            bank.close(LAYER, at + 10.5)

    periods = (Period.CURRENT, Period.HISTORY) if ratio else (Period.CURRENT,)
    for period in periods:
        one, two, whole = (bank.snapshot(LAYER, period) for bank in replicas)
        assert whole.rows
        assert same(whole, merge(one, two))
        assert same(whole, merge(two, one))


def test_only_a_frozen_baseline_is_taken_along() -> None:
    """One that still learns is none yet, in warm-up or not."""
    bank = empty_bank()

    for rows in (4, 40):
        feed(bank, np.ones((rows, WIDTH)))
        with pytest.raises(BaselineNotReady, match="not frozen"):
            bank.baseline(LAYER).encode()


def test_a_layer_nobody_registered_has_none_and_takes_none() -> None:
    """A baseline says nothing of which layer it is of: that is for who asks."""
    bank, stranger = learned_bank(), LayerKey("m", "r", "other")

    with pytest.raises(UnknownLayer):
        bank.baseline(stranger).encode()
    with pytest.raises(UnknownLayer):
        adopt(bank, stranger, bank.baseline(LAYER).encode())


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"width": WIDTH + 1}, "3 features and the layer has 4"),
        ({"binning": Binning(5)}, "mantissa_bits=4.*mantissa_bits=5"),
        ({"budget": Budget(full_detail_ratio=0.0)}, "as much memory"),
    ],
)
def test_a_baseline_of_another_layer_is_a_conflict(changed: dict[str, Any], match: str) -> None:
    """Another width, or other bins, because of the settings or the layer's detail: nothing changes."""
    bank = empty_bank(**changed)
    feed(bank, np.ones((20, bank.width(LAYER))))
    before = bank.encode()

    with pytest.raises(LayerConflict, match=match):
        adopt(bank, LAYER, learned_bank().baseline(LAYER).encode())

    assert before == bank.encode()


def test_a_baseline_that_was_read_for_a_layer_fits_no_other() -> None:
    """A layer may be registered anew, with another width, while its baseline is read."""
    bank = learned_bank()
    found = bank.reader(LAYER)(bank.baseline(LAYER).encode())

    with pytest.raises(LayerConflict, match="3 features and the layer has 4"):
        empty_bank(WIDTH + 1).adopt(LAYER, found)
    with pytest.raises(LayerConflict, match="mantissa_bits"):
        empty_bank(binning=Binning(5)).adopt(LAYER, found)


GOOD = learned_bank().baseline(LAYER).encode()


@settings(max_examples=80, deadline=None)
@given(garbage=st.binary(max_size=300), keep=st.integers(0, len(GOOD)))
def test_broken_baselines_are_corrupt_and_nothing_else(garbage: bytes, keep: int) -> None:
    """Truncated, extended and random bytes raise CorruptState only, and change nothing."""
    bank = empty_bank()
    before = bank.encode()

    for payload in (garbage, GOOD[:keep], GOOD[:keep] + garbage, GOOD + b"x"):
        if payload != GOOD:
            with pytest.raises(CorruptState):
                adopt(bank, LAYER, payload)

    assert before == bank.encode()


ODD = st.sampled_from(
    [
        None,
        -1,
        0,
        1,
        3,
        2**31,
        2**63,
        2**80,
        0.5,
        -0.5,
        1e308,
        float("nan"),
        float("inf"),
        "x",
        [],
        {},
    ]
)


def hostile(data: st.DataObject) -> bytes:
    """Return a baseline of which some numbers or arrays were replaced, behind a right checksum."""
    header, arrays = unpack(b"base", GOOD)
    changed: dict[str, Any] = dict(arrays)
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            inside = [header, header["span"], header["expectation"]]
            one = data.draw(
                st.sampled_from([one for one in inside if isinstance(one, dict) and one])
            )
            one[data.draw(st.sampled_from(sorted(one)))] = data.draw(ODD)
        else:
            name = data.draw(st.sampled_from(sorted(changed)))
            array = changed[name].copy()
            what = data.draw(st.sampled_from(["swap", "drop", "cast", "value", "shape"]))
            if what == "swap":
                array = changed[data.draw(st.sampled_from(sorted(changed)))]
            elif what == "cast":
                with np.errstate(all="ignore"):
                    array = array.astype(data.draw(st.sampled_from(["u1", "i8", "f4", "f8"])))
            elif what == "value" and array.size:
                top = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else np.nan
                array.flat[data.draw(st.integers(0, array.size - 1))] = top
            elif what == "shape":
                array = array[..., :-1]
            changed[name] = array
            if what == "drop":
                del changed[name]
    return pack(b"base", header, changed)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_hostile_baseline_is_corrupt_or_sound(data: st.DataObject) -> None:
    """Whatever is behind a right checksum never becomes a layer that breaks later."""
    bank = empty_bank()

    try:
        adopt(bank, LAYER, hostile(data))
    except (CorruptState, LayerConflict):
        assert not bank.frozen(LAYER)
        return

    for kernels in (NUMPY, compiled()):
        bank.use(kernels)
        feed(bank, np.random.default_rng(0).normal(size=(20, WIDTH)))
        window = bank.close(LAYER, 9.0)
    expected = bank.expectation(LAYER)
    if expected is not None:
        assert ((expected.rate > 0) & (expected.rate <= 1)).all() or not expected.windows
        assert (expected.dispersion >= 1).all()
        assert window.screened is not None
    for period in Period:
        seen = bank.snapshot(LAYER, period)
        seen.quantile(np.array([0.0, 0.5, 0.999]))
        seen.threshold(0.999)
        assert seen.rank(np.zeros(WIDTH)).shape == (WIDTH,)
    assert not np.isnan(bank.baseline_rate(LAYER, 0.999))
    assert bank.encode() == Bank.decode(bank.encode(), Binning(), **SETTINGS).encode()
    adopt(empty_bank(), LAYER, bank.baseline(LAYER).encode())


def test_a_baseline_that_promises_gigabytes_is_refused_unread() -> None:
    """What it would become is bounded by what a layer of that width can need."""
    arrays = {"centre": np.zeros(20 << 20, np.float32)}
    bomb = pack(b"base", {"version": 1, "width": WIDTH}, arrays)

    with pytest.raises(CorruptState, match="need at most"):
        adopt(empty_bank(), LAYER, bomb)


@pytest.mark.parametrize("kernels", [NUMPY, compiled()], ids=lambda one: one.name)
def test_a_baseline_says_the_same_whichever_kernels_counted(kernels: Kernels) -> None:
    """To the byte: replicas that learned from the same rows have the same baseline."""
    learned: Callable[..., Bank] = learned_bank

    assert GOOD == learned(kernels=kernels).baseline(LAYER).encode()
