"""What a server may hand to ``current_requests``: anything."""

from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidecar.features import NAME_LIMIT, SLICE_LIMIT, WEIGHT_LIMIT, FeatureKind, Request, Slice
from sidecar.hooks import Plan as AnyPlan
from sidecar.hooks import Tap, current_requests
from sidecar.hooks.requests import active_requests, clean
from sidecar.hooks.torch import attach

pytestmark = pytest.mark.unit

# Without a budget: a busy machine would move the sampling rate.
Plan = partial(AnyPlan, overhead_budget=None)


class Hostile:
    """An object that answers nothing."""

    def __str__(self) -> str:
        """Raise."""
        raise RuntimeError

    def __iter__(self) -> Iterator[Any]:
        """Raise."""
        raise RuntimeError


def requests_seen(sink: Any, requests: Any, rows: int) -> list[Request]:
    """Run one pass for what a server says, and return the requests the daemon would see."""
    plan = Plan("m", (Tap("", FeatureKind.NEURON),), revision="r", error_limit=1)
    model = nn.Identity()
    with attach(model, plan, sink) as attachment:
        with current_requests(requests):
            model(torch.ones(rows, 2))
        statistics = attachment.statistics()
    assert statistics.disabled == ()
    assert statistics.report.errors == 0
    return list(sink.samples[-1][0].requests)


def test_ids_and_mappings_are_requests(memory_sink: Any) -> None:
    """An id, a mapping and a Request say the same; what the wire does not allow is cleaned."""
    spoken = [
        "plain",
        7,
        {"id": "two words", "traffic": {"tenant": "Acme Corp", "route": "/v1"}},
        Request("value", Slice.of({"route": "/v1"})),
    ]

    seen = requests_seen(memory_sink, spoken, 4)

    assert ["plain", "7", "two_words", "value"] == [request.id for request in seen]
    assert ["", "", "route=/v1,tenant=Acme_Corp", "route=/v1"] == [str(r.traffic) for r in seen]


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        3.5,
        Hostile(),
        [None],
        [Hostile()],
        [b"x"],
        [{"id": Hostile()}],
        [{"id": 10**5000}],
        [{"traffic": {Hostile(): 1}}],
        [{"traffic": 3}],
        [Request([])],
        [Request("", 3, "x")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_garbage_is_anonymous_and_never_raises(memory_sink: Any, garbage: Any) -> None:
    """Nothing a server says reaches it as an exception, or costs the batch, or switches a hook off."""
    assert [Request()] == requests_seen(memory_sink, garbage, 1)


@pytest.mark.parametrize("lone", ["req-1", {"id": "req-1"}, Request("req-1")])
def test_one_request_needs_no_list(memory_sink: Any, lone: Any) -> None:
    """A single request is one, not a sequence of letters or keys."""
    assert [Request("req-1")] == requests_seen(memory_sink, lone, 1)


def test_micro_batches_are_anonymous(memory_sink: Any) -> None:
    """Two passes of two rows for four requests: nobody says whose they are, so they are nobody's."""
    model = nn.Identity()
    plan = Plan("m", (Tap("", FeatureKind.NEURON),), revision="r")
    with attach(model, plan, memory_sink), current_requests(["a", "b", "c", "d"]):
        model(torch.ones(2, 2))
        model(torch.ones(2, 2))
        model(torch.ones(4, 2))

    first, second, whole = ([r.id for r in batch[0].requests] for batch in memory_sink.samples)
    assert ["", ""] == first == second
    assert ["a", "b", "c", "d"] == whole


def test_a_block_may_be_left_in_another_context() -> None:
    """Frameworks enter and leave their dependencies in different tasks."""
    block = current_requests(["r"])
    copy_context().run(block.__enter__)

    block.__exit__(None, None, None)

    assert active_requests() == ()


@given(
    st.text(),
    st.dictionaries(st.text() | st.integers(), st.text() | st.none(), max_size=12),
    st.floats(),
    st.floats(1.0, 1e9),
)
def test_whatever_is_cleaned_is_valid(
    identifier: str, traffic: dict[Any, Any], own: float, weight: float
) -> None:
    """Every id, slice and weight comes out as the daemon takes it, and clean ones stay."""
    cleaned = clean(Request(identifier, Slice(tuple(traffic.items())), own), weight)

    assert len(cleaned.id) <= NAME_LIMIT
    assert all("!" <= character <= "~" for character in cleaned.id)
    assert Slice.of(dict(cleaned.traffic.pairs)) == cleaned.traffic
    assert len(cleaned.traffic.pairs) <= SLICE_LIMIT
    assert 1.0 <= cleaned.weight <= WEIGHT_LIMIT
    assert clean(cleaned, 1.0) == cleaned
