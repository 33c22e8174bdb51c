import base64
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import (
    CorruptState,
    LimitReached,
    UnknownFeature,
)
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request, Scope, Slice, View
from sidecar.stats import Bank, Binning, Distribution, Period, Watched
from sidecar.stats.encoding import pack, unpack

pytestmark = pytest.mark.unit

MakeBank = Callable[..., Bank]
MakeSample = Callable[..., LayerSample]

SETTINGS = {"warmup_rows": 4, "history_seconds": 100.0, "layer_limit": 4, "feature_limit": 64}
LAYER = LayerKey("m", "r", "layer", FeatureKind.NEURON, View.RAW, Scope.PROMPT)

TRAFFIC = Slice.of({"route": "a"})
REQUESTS = tuple(Request(traffic=TRAFFIC) for _ in range(6))


def same(a: Distribution, b: Distribution) -> bool:
    """Whether two distributions are equal in every array and number."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name in ("minimum", "maximum"))
        if isinstance(getattr(a, name), np.ndarray)
        else getattr(a, name) == getattr(b, name)
        for name in a.__slots__
    )


def busy_bank(warmup_rows: int) -> Bank:
    """Return a bank with every store filled, in one layer; the other is still in warm-up."""
    bank = Bank(Binning(), **{**SETTINGS, "warmup_rows": warmup_rows})
    rng = np.random.default_rng(0)
    keys = (LAYER, LayerKey("m", "r", "quiet"))
    for key in keys:
        bank.register(key, 3)
    plain = Watched.above(np.array([2, 0]), np.array([0.5, math.nan], np.float32))
    bank.watch(
        LAYER, replace(plain, traffic=(TRAFFIC, Slice()), levels=np.zeros((2, 2), np.float32))
    )
    for at in range(12):
        rows = rng.normal(size=(6, 3)).astype(np.float32)
        rows[0, at % 3] = math.nan
        bank.update(LayerSample(LAYER, rows, np.arange(6, dtype=np.int32), REQUESTS), at * 20.0)
        bank.close_window(at * 20.0 + 10)
        if at == 4:
            bank.place_thresholds(LAYER, 0.9)
        if at == 7 and warmup_rows < 100:
            bank.freeze(LAYER)
    for key in keys:
        bank.update(LayerSample(key, np.ones((2, 3), np.float32), np.zeros(2, np.int32), ()), 300.0)
    return bank


@pytest.mark.parametrize("warmup_rows", [4, 1000])
def test_a_bank_comes_back_whole(warmup_rows: int) -> None:
    """Windows, baseline, history, watch and frozen flags survive, and so does what follows."""
    bank = busy_bank(warmup_rows)

    found = Bank.decode(bank.encode(), Binning(), **{**SETTINGS, "warmup_rows": warmup_rows})

    assert bank.encode() == found.encode()
    for key in bank.layers():
        assert (bank.width(key), bank.frozen(key)) == (found.width(key), found.frozen(key))
    more = LayerSample(LAYER, np.full((9, 3), 2, np.float32), np.arange(9, dtype=np.int32), ())
    for one in (bank, found):
        one.update(more, 310.0)
    expected, actual = (one.close_window(320.0)[LAYER] for one in (bank, found))
    for name in ("exceedances", "level_exceedances", "watched_requests", "screened"):
        assert getattr(expected, name).tolist() == getattr(actual, name).tolist()
    before, after = bank.expectation(LAYER), found.expectation(LAYER)
    assert before is not None
    assert after is not None
    for name in before.__slots__:
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert (expected.requests, expected.rows) == (actual.requests, actual.rows)
    for period in Period:
        assert same(bank.snapshot(LAYER, period), found.snapshot(LAYER, period))


BEFORE_SCREENING = base64.b85decode(
    "Q$tf!0svxRZfnj100000005!rwLEwMeNoG9+b|Hc-JXIV=rQL#6NYWHK;nbz|1boHk=79riBw3+j~E8>Y5kUdMQ-h^Y73TA"
    "gct7a%<jyRzX!eEo^sY1dz$X)(O7HjlZ2(V(S)Fvk0u71P87K`>NO+2J18pjjy>YVo}PKvG`Nflno>!MJg-eK&LZ_l8#3a5"
    "x1wibGo+Sl500X>;f+xB21!U=#mFk}$|@4HHYSUCV<F?Hjfkx3q5wD5-W$fO(Qu@QE0=<|r<HfF4DppN0>k)PwmT-3=fE~D"
    "gRv=OECxX{I+Udq+GxZG<3ptBJ$7*$Ama&Gx~vLOlf?5&%|V`~fui=Yff^$=JH`i`1S`O&-pO+<Xf(w3CWV|Lb4O}1P7)>M"
    "n8QQvicFBz_cMgIDRZV__(M}`<6>B;x2CM+FFKP_tnT?#og9^UTR96v9Et9!E{`z`b=j(RftOmt@iI40xpc}d|0NVo{<Z#q"
    "m&TrZ?DSsv?_jU&omi^Jmx`&YExzOgsUP=Ak{tTI_WZm$hSzQBb}r%Dui5PV{ZDg{y<MG%E$=dTc(}Rg)Mk=>yPePby}_Ae"
    "hw~{g=zslk{VAg}>y$`G)A|?dKK6_"
)
"""Six requests in each of two open windows' worth of rows, feature 1 of 2 watched above 0.5."""


def test_a_snapshot_from_before_every_feature_was_screened_is_read() -> None:
    """Its watch goes on with what it has counted; there are no thresholds yet."""
    found = Bank.decode(BEFORE_SCREENING, Binning(2, 8), **SETTINGS)

    window = found.close_window(3.0)[LAYER]
    # (1, 3, 5, …, 11) / 8, and the same plus one: two of the first are not above 0.5.
    assert ([1], [10], [12]) == (
        window.indices.tolist(),
        window.exceedances.tolist(),
        window.watched_requests.tolist(),
    )
    assert (1, 0) == window.level_exceedances.shape
    assert (window.screened, found.expectation(LAYER)) == (None, None)


def test_a_snapshot_of_a_later_version_is_refused() -> None:
    """What it holds beside what is known here must not be dropped silently."""
    header, arrays = unpack(b"bank", busy_bank(4).encode())

    with pytest.raises(CorruptState, match="reads up to"):
        Bank.decode(pack(b"bank", {**header, "version": 4}, arrays), Binning(), **SETTINGS)


@pytest.mark.parametrize("warmup_rows", [4, 1000])
@pytest.mark.parametrize("period", list(Period))
def test_a_snapshot_of_some_features_is_a_part_of_the_whole(
    warmup_rows: int, period: Period
) -> None:
    """Asking for two features of a wide layer costs two, and says what the whole would."""
    bank = busy_bank(warmup_rows)
    wanted = np.array([2, 0])

    found = bank.snapshot(LAYER, period, wanted)

    assert same(bank.snapshot(LAYER, period).select(wanted), found)
    with pytest.raises(UnknownFeature):
        bank.snapshot(LAYER, period, np.array([3]))


@pytest.mark.parametrize("warmup_rows", [4, 1000])
def test_what_comes_after_the_copy_is_not_in_the_encoding(warmup_rows: int) -> None:
    """The copy is encoded later, in another thread, while the bank goes on."""
    bank = busy_bank(warmup_rows)
    expected = bank.encode()

    copies = [bank.copy(layer) for layer in bank.layers()]
    rows = np.full((9, 3), 2, np.float32)
    bank.update(LayerSample(LAYER, rows, np.arange(9, dtype=np.int32), ()), 310.0)
    bank.close_window(320.0)

    assert expected == bank.pack(copies)


def test_a_restored_warm_up_ends_where_the_settings_say() -> None:
    """A bank restored with a shorter warm-up goes on with it, losing nothing."""
    bank = busy_bank(1000)

    found = Bank.decode(bank.encode(), Binning(), **SETTINGS)
    found.update(LayerSample(LAYER, np.ones((1, 3), np.float32), np.zeros(1, np.int32), ()), 301.0)

    assert 12 * 6 + 2 + 1 == found.snapshot(LAYER, Period.BASELINE).rows


def test_lowered_limits_keep_what_is_there() -> None:
    """Restoring under lower limits drops no layer; only new ones are refused."""
    bank = busy_bank(4)

    found = Bank.decode(bank.encode(), Binning(), **{**SETTINGS, "layer_limit": 1})

    assert bank.layers() == found.layers()
    with pytest.raises(LimitReached):
        found.register(LayerKey("m", "r", "new"), 1)


def test_statistics_in_other_bins_are_refused() -> None:
    """A bank counted with other bins cannot be continued, and the message says why."""
    with pytest.raises(CorruptState, match="configuration"):
        Bank.decode(busy_bank(4).encode(), Binning(5), **SETTINGS)


PAYLOADS = {warmup: busy_bank(warmup).encode() for warmup in (4, 1000)}


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(max_size=300), keep=st.integers(0, 400))
def test_broken_banks_are_corrupt_and_nothing_else(garbage: bytes, keep: int) -> None:
    """Truncated, extended and random bytes raise CorruptState only."""
    for good in PAYLOADS.values():
        for payload in (garbage, good[:keep], good[:keep] + garbage, good + b"x"):
            with pytest.raises(CorruptState):
                Bank.decode(payload, Binning(), **SETTINGS)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_bank_with_parts_missing_or_swapped_is_corrupt_or_sound(data: st.DataObject) -> None:
    """Behind a right checksum, arrays that do not fit never become a bank that breaks later."""
    header, arrays = unpack(b"bank", PAYLOADS[data.draw(st.sampled_from([4, 1000]))])
    name = data.draw(st.sampled_from(sorted(arrays)))
    other = data.draw(st.sampled_from(sorted(arrays)))
    changed = {**arrays, name: arrays[other]}
    if data.draw(st.booleans()):
        del changed[name]

    try:
        found = Bank.decode(pack(b"bank", header, changed), Binning(), **SETTINGS)
    except CorruptState:
        return

    for key in found.layers():
        found.snapshot(key, Period.CURRENT)
    found.close_window(1e4)


def test_a_snapshot_of_sixteen_layers_is_compact() -> None:
    """16 layers of 112 features, all stores filled, take at most 600 bytes a feature."""
    bank = Bank(Binning(), warmup_rows=64, history_seconds=1e3, layer_limit=16, feature_limit=1792)
    rng = np.random.default_rng(0)
    keys = [LayerKey("m", "r", f"layer{i}") for i in range(16)]
    for key in keys:
        bank.register(key, 112)
    for at in range(60):
        for key in keys:
            rows = rng.normal(size=(64, 112)).astype(np.float32)
            bank.update(LayerSample(key, rows, np.arange(64, dtype=np.int32), ()), at * 10.0)
        bank.close_window(at * 10.0 + 10)

    size = len(bank.encode()) / 1792

    assert size <= 600
