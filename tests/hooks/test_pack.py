import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.features import WEIGHT_LIMIT, Request, Slice
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.pack import groups, split
from sidecar.wire import HookReport, OutgoingBatch, OutgoingTensor, encode_request

pytestmark = pytest.mark.unit

Rows = Callable[..., TappedRows]
Make = Callable[..., ForwardBatch]
Decode = Callable[..., list[Any]]


def test_layers_of_one_layout_travel_together(tapped: Rows, forward_batch: Make) -> None:
    """Layers with one row a request share a message; those with more get their own."""
    batch = forward_batch(tapped("a"), tapped("b", width=5), tapped("c", rows_per_item=4))

    found = groups(batch, batch.stage())

    assert [["a", "b"], ["c"]] == [[rows.layer.layer for rows in group.rows] for group in found]
    assert [1, 4] == [group.rows_per_request for group in found]


def test_a_module_that_ran_twice_gives_its_requests_rows_of_both_runs(
    tapped: Rows, forward_batch: Make, decode: Decode
) -> None:
    """Rows are gathered by request, in the order of the runs."""
    batch = forward_batch(tapped("a", width=2), tapped("a", width=2, start=100))

    (sample,) = decode(batch)

    assert [0, 0, 1, 1] == sample.request_index.tolist()
    assert [[0, 1], [100, 101], [2, 3], [102, 103]] == sample.values.tolist()


def test_rows_of_unequal_weight_travel_apart(
    tapped: Rows, forward_batch: Make, decode: Decode
) -> None:
    """A layer with combed positions weighs more than one with all of them, and so its requests."""
    batch = forward_batch(
        tapped("a", rows_per_item=2, weight=5.0), tapped("b", rows_per_item=2), weight=3.0
    )

    samples = decode(batch)

    assert {"a": 15.0, "b": 3.0} == {s.layer.layer: s.requests[0].weight for s in samples}


def test_runs_of_unequal_weight_stay_apart(
    tapped: Rows, forward_batch: Make, decode: Decode
) -> None:
    """A module that ran on a long and on a short sequence gives rows that weigh differently."""
    batch = forward_batch(tapped("a", rows_per_item=2, weight=5.0), tapped("a", rows_per_item=2))

    assert [5.0, 1.0] == [sample.requests[0].weight for sample in decode(batch)]


def test_named_rows_carry_their_requests(tapped: Rows, forward_batch: Make, decode: Decode) -> None:
    """Ids and slices are those of current_requests; the weights are multiplied by the sampler's."""
    requests = (Request("r-1", Slice.of({"route": "a"}), 2.0), Request("r-2"))

    (named,) = decode(forward_batch(tapped(named=True), requests=requests, weight=10.0))
    (anonymous,) = decode(forward_batch(tapped(named=False), requests=requests, weight=10.0))

    assert ("r-1", "r-2") == tuple(request.id for request in named.requests)
    assert (20.0, 10.0) == tuple(request.weight for request in named.requests)
    assert named.requests[0].traffic == requests[0].traffic
    assert (Request("", Slice(), 10.0),) * 2 == anonymous.requests


@pytest.mark.parametrize(
    "request_",
    [
        Request("spaces and\nlines and é" * 50),
        Request("a", Slice((("bad key", "v"),))),
        Request("a", Slice((("k", ""),))),
        Request("a", weight=0.0),
        Request("a", weight=math.nan),
        Request("a", weight=math.inf),
        Request("a", weight=-3.0),
        Request("a", weight=1e300),
    ],
)
def test_what_the_daemon_would_refuse_is_mended(
    tapped: Rows, forward_batch: Make, decode: Decode, request_: Request
) -> None:
    """A server's odd request id, slice or weight never costs the batch."""
    (sample,) = decode(forward_batch(tapped(items=1, named=True), requests=(request_,)))

    assert 1.0 <= sample.requests[0].weight <= WEIGHT_LIMIT
    assert len(sample.requests[0].id) <= 200


layouts = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from([1, 2, 5]),
        st.integers(1, 6),
        st.sampled_from([1, 3, 40]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda entry: (entry[0], entry[1], entry[4]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.integers(1300, 5000))
def test_splitting_loses_and_changes_nothing(
    tapped: Rows, forward_batch: Make, layout: list[Any], limit: int
) -> None:
    """Parts fit the limit as encoded, and together hold every row of every layer in order."""
    widths: dict[str, int] = {}
    rows = tuple(
        tapped(name, items, per, widths.setdefault(name, width), named=named)
        for name, items, per, width, named in layout
    )
    requests = tuple(Request(f"request-{n}", Slice.of({"n": str(n)})) for n in range(5))
    batch = forward_batch(*rows, requests=requests)

    for group in groups(batch, batch.stage()):
        parts = list(split(group, limit))

        assert all(length(part) <= part.bound_bytes <= limit for part in parts)
        for whole in group.rows:
            pieces = [r.payload for part in parts for r in part.rows if r.layer == whole.layer]
            assert bytes(whole.payload) == b"".join(pieces)


@pytest.mark.parametrize("count", [1, 50])
def test_the_longest_requests_fit_where_they_are_said_to(
    tapped: Rows, forward_batch: Make, count: int
) -> None:
    """A message that is not looked at closely is within its bound, whatever its requests say."""
    full = [
        {f"{n}{key}".ljust(200, "k"): f"{n}".ljust(200, "v") for key in range(8)}
        for n in range(count)
    ]
    requests = tuple(
        Request(f"{n}".ljust(200, "i"), Slice.of(pairs), 2.0**20) for n, pairs in enumerate(full)
    )
    batch = forward_batch(tapped(items=count, named=True), requests=requests)

    (group,) = groups(batch, batch.stage())

    limits = [limit for limit in range(1000, 400_000, 500) if group.fits(limit)]
    assert length(group) <= group.bound_bytes <= min(limits) < group.bound_bytes + 500


def length(part: Any) -> int:
    """Return the encoded length of a part with the longest report there can be."""
    top = 2**64 - 1
    lots = 0.1
    reasons = ("queue_full", "too_large", "disconnected", "breaker_open", "no_credit", "shutdown")
    report = HookReport(
        top, top, top, dict.fromkeys((*reasons, "error"), top), top, lots, lots, lots, top, lots
    )
    count = len(part.requests) * part.rows_per_request
    tensors = tuple(
        OutgoingTensor(2**32 - 1, rows.dtype, (count, rows.width), rows.payload)
        for rows in part.rows
    )
    batch = OutgoingBatch(
        top, tensors, part.requests, report=report, rows_per_request=part.rows_per_request
    )
    return len(encode_request(batch))


def test_split_parts_stay_decodable(tapped: Rows, forward_batch: Make, decode: Decode) -> None:
    """A batch cut into many messages arrives with each row under its own request."""
    requests = tuple(Request(f"r{n}") for n in range(8))
    batch = forward_batch(
        tapped("a", 8, 4, 30, named=True), tapped("b", 8, 1, 30, named=True), requests=requests
    )

    samples = decode(batch, limit_bytes=2000)

    assert len(samples) > 2
    for layer, per in (("a", 4), ("b", 1)):
        owners = [
            (sample.requests[index].id, row.tolist())
            for sample in samples
            if sample.layer.layer == layer
            for index, row in zip(sample.request_index, sample.values, strict=True)
        ]
        values = np.arange(8 * per * 30, dtype=np.float32).reshape(-1, 30).tolist()
        assert [(f"r{n // per}", values[n]) for n in range(8 * per)] == owners


def test_a_row_that_cannot_be_cut_is_refused(tapped: Rows, forward_batch: Make) -> None:
    """One row above the limit can only be dropped."""
    batch = forward_batch(tapped(items=1, width=10_000))
    (group,) = groups(batch, batch.stage())

    with pytest.raises(ValueError, match="one row"):
        list(split(group, 4096))
