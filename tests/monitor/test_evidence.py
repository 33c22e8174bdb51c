"""The book of evidence: what it keeps, what it never keeps, and that it stays within its bytes."""

import gc
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import EvidenceConfig
from sidecar.detect import State, Transition
from sidecar.errors import CorruptState
from sidecar.features import LayerKey, LayerSample, Request, Slice, SparseSample
from sidecar.monitor import EvidenceBook, EvidenceRecord, Exposure
from sidecar.monitor.evidence import KEPT_WINDOWS
from tests.monitor.test_monitor import LAYER, OTHER, WIDTH, WINDOW

pytestmark = pytest.mark.unit

ON = EvidenceConfig(enabled=True)
FLAGGED = np.array([1, 4])
HIGH, LOW = np.array([2.0, 2.0]), np.array([-np.inf, -np.inf])
EU, US = Slice.of({"route": "/v1/eu"}), Slice.of({"route": "/v1/us"})


def batch(
    values: Sequence[Sequence[float]],
    requests: Sequence[Request],
    index: Sequence[int] | None = None,
    layer: LayerKey = LAYER,
) -> LayerSample:
    """Return rows that are 0 but for the two flagged features."""
    rows = np.zeros((len(values), WIDTH), np.float32)
    rows[:, FLAGGED] = values
    places = np.arange(len(rows)) if index is None else np.array(index)
    return LayerSample(layer, rows, places.astype(np.int32), tuple(requests))


def change(after: State, at: float = WINDOW, **more: Any) -> Transition:
    """Return what the detector says of the first flagged feature."""
    made = Transition(
        index=0,
        before=State.NORMAL,
        after=after,
        at=at,
        reason="because",
        evidence_log10=8.5,
        threshold_log10=7.0,
        short_rate=0.3,
        level=0.01,
        baseline_share=0.01,
        tolerated=0.05,
    )
    return replace(made, **more)


def fire(
    book: EvidenceBook, index: int = 1, layer: LayerKey = LAYER, **more: Any
) -> EvidenceRecord:
    """Let a feature fire and return the record."""
    said = change(State.FIRING, **more)
    found = book.follow(layer.feature(index), said, tolerated=0.05, above=2.0, below=-math.inf)
    assert found is not None
    return found


def absorb(book: EvidenceBook, sample: LayerSample | SparseSample, now: float = 1.0) -> None:
    """Let the book see a batch of the flagged features."""
    book.absorb(sample, FLAGGED, HIGH, LOW, now)


def charged(book: EvidenceBook) -> int:
    """Return what the parts that are held were charged."""
    layers = book._layers.values()  # noqa: SLF001 - what is held, against what is said
    windows = [w for one in layers for w in (*one.closed, one.open) if w is not None]
    return sum(w.nbytes for w in windows) + sum(size for _, size in book._waiting.values())  # noqa: SLF001


def test_the_rows_furthest_beyond_are_kept_with_request_position_and_slice() -> None:
    """Three a window, the furthest first, each with the row's place in its request."""
    book = EvidenceBook(ON)
    requests = [Request("a", EU), Request("b", US), Request("c", EU)]
    values = [[3, 0], [9, 0], [1, 0], [4, 0], [5, 0], [2, 0]]

    absorb(book, batch(values, requests, [0, 0, 1, 1, 1, 2]), 7.0)
    book.close(LAYER, WINDOW)
    found = fire(book)

    assert [
        (9.0, "a", 1, "route=/v1/eu", 7.0),
        (5.0, "b", 2, "route=/v1/us", 7.0),
        (4.0, "b", 1, "route=/v1/us", 7.0),
    ] == [(r.value, r.request_id, r.position, r.traffic, r.at) for r in found.rows]
    assert Exposure.KEEP is found.exposure
    assert (3, 2) == (found.requests, found.exceedances)


def test_over_batches_of_a_window_the_furthest_stay() -> None:
    """A later row takes the place of a lesser one, and an equal one does not."""
    book = EvidenceBook(EvidenceConfig(enabled=True, rows_per_window=2))
    for name, value in [("a", 3), ("b", 5), ("c", 4), ("d", 4), ("e", 2.5)]:
        absorb(book, batch([[value, 0]], [Request(name)]))
    book.close(LAYER, WINDOW)

    assert ["b", "c"] == [row.request_id for row in fire(book).rows]
    assert charged(book) == book.counts().used_bytes


def test_infinite_rows_are_beyond_and_nan_is_not() -> None:
    """As the detector counts; an infinity is the furthest of all."""
    book = EvidenceBook(ON)

    values = [[math.nan, 0], [3, 0], [math.inf, 0], [-math.inf, 0]]
    absorb(book, batch(values, [Request(n) for n in "abcd"]))
    book.close(LAYER, WINDOW)
    found = fire(book)

    assert [math.inf, 3.0] == [row.value for row in found.rows]
    assert 2 == found.exceedances
    assert found == EvidenceRecord.decode(found.encode())


def test_a_feature_may_be_watched_below() -> None:
    """With two thresholds the rows furthest beyond either are kept."""
    book = EvidenceBook(ON)
    sample = batch([[-7, 0], [3, 0], [0, 0]], [Request(n) for n in "abc"])

    book.absorb(sample, FLAGGED, HIGH, np.array([-5.0, math.nan]), 1.0)
    book.close(LAYER, WINDOW)
    said = change(State.FIRING)
    found = book.follow(LAYER.feature(1), said, tolerated=0.05, above=2.0, below=-5.0)

    assert found is not None
    assert ["a", "b"] == [row.request_id for row in found.rows]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_what_it_is(dtype: str) -> None:
    """The value in the record is the activation, not its bits."""
    book = EvidenceBook(ON)
    whole = batch([[3.5, 0]], [Request("a")])
    bits = (whole.values.view(np.uint32) >> 16).astype(np.uint16)
    values = bits if dtype == "bfloat16" else whole.values.astype(np.float16)

    absorb(book, replace(whole, values=values))
    book.close(LAYER, WINDOW)

    assert [3.5] == [row.value for row in fire(book).rows]


def test_a_sparse_layer_is_read_without_its_zeros() -> None:
    """Latents that a row does not list are zero and never beyond."""
    book = EvidenceBook(ON)
    sample = SparseSample(
        LAYER,
        100,
        np.array([0, 2, 2, 4]),
        np.array([1, 3, 1, 4], np.uint32),
        np.array([5.0, 9.0, 3.0, 8.0], np.float32),
        np.array([0, 0, 1], np.int32),
        (Request("a", EU), Request("b", US)),
    )

    absorb(book, sample)
    book.close(LAYER, WINDOW)
    first, second = fire(book), fire(book, index=4)

    assert [("a", 0, 5.0), ("b", 0, 3.0)] == [
        (r.request_id, r.position, r.value) for r in first.rows
    ]
    assert [("b", 0, 8.0)] == [(r.request_id, r.position, r.value) for r in second.rows]


def test_what_is_kept_does_not_change_when_the_receive_buffer_is_used_again() -> None:
    """The sample's arrays alias what was received; nothing of the book does."""
    book = EvidenceBook(ON)
    sample = batch([[3, 0], [9, 5]], [Request("a", EU), Request("b", US)])
    high, features = HIGH.copy(), FLAGGED.copy()

    book.absorb(sample, features, high, LOW, 1.0)
    sample.values[:] = -1
    sample.request_index[:] = 0
    high[:], features[:] = 99, 0
    book.close(LAYER, WINDOW)

    assert [9.0, 3.0] == [row.value for row in fire(book).rows]


def test_without_enabled_nothing_but_counts_by_slice_is_kept() -> None:
    """No row and no request id, anywhere in the book; without slices not even a window."""
    book = EvidenceBook()

    absorb(book, batch([[9, 9]], [Request("somebody")]))
    empty = book.counts().used_bytes
    absorb(book, batch([[9, 9]] * 8, [Request("somebody", EU)] * 8))
    book.close(LAYER, WINDOW)
    found = fire(book)

    assert 0 == empty
    assert ((), Exposure.NONE) == (found.rows, found.exposure)
    assert "somebody" not in str(found)
    held = [w for one in book._layers.values() for w in one.closed]  # noqa: SLF001 - all there is
    assert [[[], []]] == [w.rows for w in held]
    assert 8 == found.requests


def test_traffic_without_a_slice_is_counted_beside_that_with_one() -> None:
    """Once a slice was seen, batches without one are the rest it is compared with."""
    book = EvidenceBook()
    absorb(book, batch([[9, 0]] * 20, [Request("", EU)] * 20, list(range(20))))
    absorb(book, batch([[0, 0]] * 300, [Request("")] * 300))
    book.close(LAYER, WINDOW)
    found = fire(book)

    assert (320, 20) == (found.requests, found.exceedances)
    assert "route=/v1/eu" == found.attribution.cause


def test_request_ids_are_hashed_or_dropped_before_they_are_kept() -> None:
    """A hash is equal for equal ids under one key, another under another, and never the id."""
    seen: dict[str, list[str]] = {}
    for name, ids, key in [("one", "hash", b"x"), ("two", "hash", b"y"), ("none", "drop", b"x")]:
        book = EvidenceBook(EvidenceConfig(enabled=True, ids=ids), key=key)
        absorb(book, batch([[5, 0], [4, 0], [3, 0]], [Request(n) for n in ("u-1", "u-2", "u-1")]))
        book.close(LAYER, WINDOW)
        found = fire(book)
        seen[name] = [row.request_id for row in found.rows]
        assert "u-1" not in found.encode()

    first, other, again = seen["one"]
    assert first == again != other
    assert 16 == len(first)
    assert seen["one"] != seen["two"]
    assert ["", "", ""] == seen["none"]


def test_the_windows_of_a_record_begin_where_the_spike_began() -> None:
    """Those since it became pending, and the loud ones just before; the calm ones are left out."""
    book = EvidenceBook(ON)
    now = 0.0
    for loud in (0, 0, 6, 0, 6, 6):
        values = [[9.0, 0]] * loud + [[0.0, 0]] * (20 - loud)
        absorb(book, batch(values, [Request(f"w{now}")] * 20), now + 1)
        now += WINDOW
        book.close(LAYER, now)
        if now == 5 * WINDOW:
            pending = book.follow(
                LAYER.feature(1),
                change(State.PENDING, now),
                tolerated=0.05,
                above=2.0,
                below=-math.inf,
            )
            assert pending is None
    found = fire(book, at=now)

    assert (2, 40, 12) == (found.windows, found.requests, found.exceedances)
    assert 4 * WINDOW + 1 == found.since


def test_a_slice_that_came_later_is_added_up_under_its_name() -> None:
    """In each window a pair may have another place."""
    book = EvidenceBook()
    for first, second, now in ((EU, US, 10.0), (US, EU, 20.0)):
        requests = [Request("", s) for s in (first,) * 30 + (second,) * 30]
        values = [[9.0 if r.traffic is EU else 0.0, 0] for r in requests]
        absorb(book, batch(values, requests), now - 9)
        book.close(LAYER, now)
    found = fire(book, at=20.0).attribution

    assert "route=/v1/eu" == found.cause
    assert [(60, 60), (60, 0)] == [
        (one.left.requests, one.left.exceedances) for one in found.ranked
    ]


def test_a_new_threshold_does_not_mix_with_what_an_old_one_counted() -> None:
    """After a new baseline the windows of the old one are no evidence."""
    book = EvidenceBook(ON)
    absorb(book, batch([[9, 0]], [Request("old")]))
    book.close(LAYER, 10.0)
    book.absorb(batch([[9, 0]], [Request("new")]), FLAGGED, HIGH + 1, LOW, 11.0)
    book.close(LAYER, 20.0)
    said = change(State.FIRING, 20.0)
    found = book.follow(LAYER.feature(1), said, tolerated=0.05, above=3.0, below=-math.inf)

    assert found is not None
    assert ["new"] == [row.request_id for row in found.rows]


def test_nothing_from_before_a_break_is_evidence() -> None:
    """A threshold that comes back does not bring back what it counted long ago."""
    book = EvidenceBook(ON)
    for name, high in (("old", HIGH), ("between", HIGH + 1), ("new", HIGH)):
        book.absorb(batch([[9, 0]], [Request(name)]), FLAGGED, high, LOW, 1.0)
        book.close(LAYER, 10.0)

    assert ["new"] == [row.request_id for row in fire(book).rows]


def test_a_row_expires_even_where_its_window_has_not() -> None:
    """The time allowed may be shorter than a window."""
    book = EvidenceBook(EvidenceConfig(enabled=True, expire_seconds=5))
    absorb(book, batch([[9, 0]], [Request("early")]), 1.0)
    absorb(book, batch([[8, 0]], [Request("late")]), 8.0)
    book.close(LAYER, 10.0)

    assert ["late"] == [row.request_id for row in fire(book, at=10.0).rows]


def test_flagging_another_feature_keeps_what_is_known_of_the_first() -> None:
    """The open window is ended early; its counts stay evidence."""
    book = EvidenceBook(ON)
    absorb(book, batch([[9, 0]], [Request("before")]))
    book.absorb(batch([[8, 0]], [Request("after")]), FLAGGED[:1], HIGH[:1], LOW[:1], 2.0)
    book.close(LAYER, WINDOW)

    assert ["before", "after"] == [row.request_id for row in fire(book, at=1.5).rows]


def test_pairs_beyond_the_limit_are_counted_together_and_said() -> None:
    """One key gets a quarter of the places, so that it cannot push out another."""
    book = EvidenceBook(EvidenceConfig(slices_limit=8))
    requests = [Request("", Slice.of({"user": f"u{i}", "route": f"/{i % 2}"})) for i in range(40)]
    values = [[9.0 if i % 2 else 0.0, 0] for i in range(40)]
    absorb(book, batch(values, requests))
    book.close(LAYER, WINDOW)
    found = fire(book)

    assert 38 == found.uncounted == book.counts().dropped["uncounted"]
    assert "route=/1" == found.attribution.cause
    names = {one.left.key for one in found.attribution.ranked}
    assert {"user", "route"} == names
    assert 4 == len(found.attribution.ranked)


def test_no_slices_are_counted_where_that_is_switched_off() -> None:
    """slices_limit 0 keeps nothing at all while evidence is off."""
    book = EvidenceBook(EvidenceConfig(slices_limit=0))

    absorb(book, batch([[9, 0]] * 9, [Request("", EU)] * 9))

    assert 0 == book.counts().used_bytes


def test_what_expired_is_in_no_record_and_no_memory() -> None:
    """Windows go when they are too old, or too many."""
    book = EvidenceBook(EvidenceConfig(enabled=True, expire_seconds=25))
    absorb(book, batch([[9, 0]], [Request("old")]), 1.0)
    book.close(LAYER, 10.0)
    absorb(book, batch([[9, 0]], [Request("new")]), 35.0)
    book.close(LAYER, 40.0)
    rows = [row.request_id for row in fire(book, at=40.0).rows]
    for now in range(50, 90, 10):
        book.close(LAYER, float(now))
    book.saved(book.waiting()[0].id)

    assert ["new"] == rows
    assert 0 == book.counts().used_bytes


def test_silent_windows_age_as_loud_ones_do() -> None:
    """A layer without traffic keeps nothing after the windows it may look back."""
    book = EvidenceBook(ON)
    absorb(book, batch([[9, 0]], [Request("old")]), 1.0)
    for turn in range(KEPT_WINDOWS + 1):
        assert (turn < KEPT_WINDOWS) == bool(book.counts().used_bytes)
        book.close(LAYER, (turn + 1) * WINDOW)

    assert 0 == book.counts().used_bytes


def test_a_retired_layer_leaves_nothing() -> None:
    """Its windows, open and closed, are given back."""
    book = EvidenceBook(ON)
    for now in (1.0, 2.0):
        absorb(book, batch([[9, 0]], [Request("x", EU)]))
        book.close(LAYER, now)
    absorb(book, batch([[9, 0]], [Request("x", EU)]))

    book.forget(LAYER)
    book.forget(OTHER)

    assert 0 == book.counts().used_bytes


HOSTILE = EvidenceConfig(enabled=True, rows_per_window=100, limit_bytes=1 << 18, slices_limit=1024)


def hostile(count: int, layers: int) -> Iterator[LayerSample]:
    """Yield batches in which every id is new and as long as may be, and every slice, too."""
    rng = np.random.default_rng(1)
    for number in range(count):
        layer = replace(LAYER, layer=f"layer-{number % layers}")
        requests = [
            Request(
                f"{number}-{i}-".ljust(200, "x"),
                Slice.of(
                    {f"k{number}-{i}-{j}".ljust(200, "k"): f"{j}".ljust(200, "v") for j in range(8)}
                ),
            )
            for i in range(16)
        ]
        values = 3 + number + rng.random((16, 2))  # each batch further beyond than all before it
        yield batch(values.tolist(), requests, layer=layer)


@pytest.mark.parametrize("layers", [1, 60])
def test_memory_stays_below_its_limit_whatever_ids_and_slices_come(layers: int) -> None:
    """Measured by the allocator, not by the book's own account of it."""
    book = EvidenceBook(HOSTILE)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, sample in enumerate(hostile(150, layers)):
            absorb(book, sample, float(number))
            if number % 7 == 6:
                book.close(sample.layer, float(number))
            if number % 20 == 19:
                record = fire(book, layer=sample.layer, at=float(number))
                assert len(record.encode()) < 50_000
            assert book.counts().used_bytes <= HOSTILE.limit_bytes
        del sample
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert held <= HOSTILE.limit_bytes
    assert held >= HOSTILE.limit_bytes / 8, "the limit was never under pressure"
    assert charged(book) == book.counts().used_bytes
    assert book.counts().dropped["rows"] or book.counts().dropped["records"]


def test_records_wait_for_the_disk_within_their_share_and_the_newest_stay() -> None:
    """A disk that refuses for hours costs the oldest records, and they are counted."""
    book = EvidenceBook(EvidenceConfig(limit_bytes=100_000))
    made = [fire(book, at=float(number)).id for number in range(50)]
    waiting = [record.id for record in book.waiting()]

    assert 0 < len(waiting) < 50
    assert made[-len(waiting) :] == waiting
    assert 50 - len(waiting) == book.counts().dropped["records"]
    assert book.counts().used_bytes <= 25_000


def test_a_record_is_named_by_its_content() -> None:
    """Equal records have equal ids, any other content another; damaged text is refused."""
    book = EvidenceBook()
    one, again, other = fire(book), fire(book), fire(book, at=11.0)

    assert one.id == again.id != other.id
    assert 2 == len(book.waiting())
    assert one == EvidenceRecord.decode(one.encode())
    for damaged in (
        "",
        "{}",
        "[]",
        "null",
        one.encode()[:-9],
        one.encode().replace('"at"', '"ta"'),
    ):
        with pytest.raises(CorruptState, match="evidence cannot be read back"):
            EvidenceRecord.decode(damaged)


PLAN = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([None, "a", "b", "c", "d", "e"]),
            st.sampled_from([None, "x", "y"]),
            st.sampled_from([0.0, 5.0, math.nan, math.inf]),
        ),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(plan=PLAN, limit=st.integers(1, 12))
def test_counts_by_slice_are_those_of_counting_one_by_one(
    plan: list[list[tuple[str | None, str | None, float]]], limit: int
) -> None:
    """Whatever comes in whichever batches, up to the limit every pair is counted exactly."""
    book = EvidenceBook(EvidenceConfig(enabled=True, slices_limit=limit))
    whole, beyond = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for rows in plan:
        requests = []
        for route, tenant, value in rows:
            named = {"route": route, "tenant": tenant}
            pairs = {key: text for key, text in named.items() if text is not None}
            requests.append(Request("", Slice.of(pairs)))
            whole.update(pairs.items())
            beyond.update(pairs.items() if value > 2 else ())
        absorb(book, batch([[value, 0] for *_, value in rows], requests))
    layer = book._layers[LAYER, Slice()]  # noqa: SLF001 - the counts themselves
    assert layer.open is not None
    layer.open.close(WINDOW)

    assert sum(map(len, plan)) == layer.open.requests
    assert sum(value > 2 for rows in plan for *_, value in rows) == layer.open.exceedances[0]
    assert len(layer.open.places) <= limit
    if limit == 12:
        assert set(whole) >= set(layer.open.places)
    for pair, place in layer.open.places.items():
        assert whole[pair] >= layer.open.pair_requests[place]
        assert beyond[pair] >= layer.open.pair_exceedances[place, 0]
    if not layer.open.sliced or not layer.open.pair_requests[-1]:
        assert dict(whole) == {
            pair: int(layer.open.pair_requests[place]) for pair, place in layer.open.places.items()
        }


def test_a_slices_flag_is_not_blamed_on_its_own_slice() -> None:
    """Only requests of the slice are counted, so that something within it may be the cause."""
    eu, de = Slice.of({"route": "eu"}), Slice.of({"route": "eu", "lang": "de"})
    book = EvidenceBook(ON)
    for turn in range(3):
        requests = [Request(f"{turn}-{i}", (de, eu, Slice())[i % 3]) for i in range(90)]
        values = [[9.0 if i % 3 == 0 else 0.0, 0.0] for i in range(90)]
        sample = batch(values, requests)
        book.absorb(sample, FLAGGED[:1], HIGH[:1], LOW[:1], turn * WINDOW + 1, eu)
        book.close(LAYER, (turn + 1) * WINDOW)

    found = book.follow(
        LAYER.feature(int(FLAGGED[0])),
        change(State.FIRING, 3 * WINDOW),
        tolerated=0.05,
        above=float(HIGH[0]),
        below=-math.inf,
        traffic=eu,
    )

    assert found is not None
    assert (180, 90) == (found.requests, found.exceedances)
    assert "lang=de" == found.attribution.cause
