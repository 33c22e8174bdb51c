"""Turns the rows of one forward pass into messages that fit the daemon's limits."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sidecar.features import NAME_LIMIT, SLICE_LIMIT, LayerKey, Request
from sidecar.hooks.batch import Batch, TappedRows
from sidecar.hooks.requests import clean
from sidecar.wire import REQUEST_LIMIT

ITEM_TYPES: dict[str, np.dtype[np.uint32] | np.dtype[np.uint16]] = {
    "f32": np.dtype(np.uint32),
    "f16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
}
"""Unsigned integers as wide as each dtype: rows are only moved here, never read."""

REPORT_BYTES = 1024
"""Room for the sequence number and the hook's report in a message; a report of all reasons with
20-digit counts takes less than half of it."""

_TENSOR_BYTES = 48  # five varints of up to 5 bytes with their tags, twice a length
_REQUEST_BYTES = 24  # tags, lengths, slice number, weight
_PAIR_BYTES = 12  # tags and lengths of one slice pair
_MOST_REQUEST_BYTES = (  # one with the longest id, and a slice of its own that is full
    _REQUEST_BYTES + NAME_LIMIT + _PAIR_BYTES + SLICE_LIMIT * (2 * NAME_LIMIT + _PAIR_BYTES)
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one layer: ``len(requests) * rows_per_request`` of them in their ``Group``."""

    layer: LayerKey
    dtype: str
    width: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of several layers that belong to the same requests in the same way: one message.

    Attributes:
        rows: One for each layer; layers are distinct.
        requests: Whose rows they are.
        rows_per_request: Rows of each request, next to each other.
    """

    rows: tuple[Rows, ...]
    requests: tuple[Request, ...]
    rows_per_request: int

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum([item.payload.nbytes for item in self.rows])

    def fits(self, limit_bytes: int) -> bool:
        """Say whether the encoded message surely has no more bytes than that."""
        # Most messages are far from the limit: then nobody has to look at every request.
        most = self.payload_bytes + _TENSOR_BYTES * len(self.rows) + REPORT_BYTES
        return most + _MOST_REQUEST_BYTES * len(self.requests) <= limit_bytes or (
            self.bound_bytes <= limit_bytes
        )

    @property
    def bound_bytes(self) -> int:
        """Upper bound of the encoded message's length, report included."""
        slices = {request.traffic for request in self.requests if request.traffic.pairs}
        texts = sum([len(request.id) + _REQUEST_BYTES for request in self.requests])
        pairs = sum(
            len(key) + len(value) + _PAIR_BYTES for s in slices for key, value in s.pairs
        ) + _PAIR_BYTES * len(slices)
        overhead = texts + pairs + _TENSOR_BYTES * len(self.rows) + REPORT_BYTES
        return self.payload_bytes + overhead


def groups(batch: Batch, staged: Iterable[TappedRows]) -> tuple[Group, ...]:
    """Gather a forward pass into groups of equal row layout.

    A layer that ran several times in the pass gives each of its requests the rows of every run; runs
    whose rows weigh differently stay apart.

    Args:
        batch: What ``staged`` came from.
        staged: Its rows, from ``Batch.stage``.

    Returns:
        Groups whose payloads alias the batch's wherever nothing had to be merged.
    """
    layouts: dict[tuple[int, int, bool, float], list[Rows]] = {}
    for one in _merged(tuple(staged)):
        rows = Rows(one.layer, one.dtype, one.width, one.payload)
        layout = (one.items, one.rows_per_item, one.named, one.weight)
        layouts.setdefault(layout, []).append(rows)
    return tuple(
        [
            Group(tuple(rows), _requests(batch, items, weight, named=named), per_item)
            for (items, per_item, named, weight), rows in layouts.items()
        ]
    )


def _requests(batch: Batch, items: int, weight: float, *, named: bool) -> tuple[Request, ...]:
    """Return whose rows they are, weighted by how much of the traffic the rows stand for."""
    whole = weight * batch.weight
    if named:
        return tuple([clean(request, whole) for request in batch.requests[:items]])
    return (clean(Request(), whole),) * items


def _merged(staged: tuple[TappedRows, ...]) -> Iterable[TappedRows]:
    """Return the rows with the runs of each layer joined."""
    if len({tapped.layer for tapped in staged}) == len(staged):
        return staged  # the usual case: every layer ran once
    runs: dict[tuple[LayerKey, int, bool, float], list[TappedRows]] = {}
    for tapped in staged:
        key = (tapped.layer, tapped.items, tapped.named, tapped.weight)
        runs.setdefault(key, []).append(tapped)
    return [_join(parts) for parts in runs.values()]


def _join(parts: list[TappedRows]) -> TappedRows:
    """Join the runs of one layer so that each item's rows stay next to each other."""
    if len(parts) == 1:
        return parts[0]
    arrays = [
        np.frombuffer(part.payload, ITEM_TYPES[part.dtype]).reshape(
            part.items, part.rows_per_item, part.width
        )  # (items, rows, width)
        for part in parts
    ]
    payload = np.concatenate(arrays, axis=1).reshape(-1).view(np.uint8).data
    rows_per_item = sum([part.rows_per_item for part in parts])
    return replace(parts[0], payload=payload, rows_per_item=rows_per_item)


def split(group: Group, limit_bytes: int) -> Iterable[Group]:
    """Cut a group into messages of at most ``limit_bytes``.

    Cuts between layers first, then between requests, then between the rows of one request, which
    the daemon then counts once a message.

    Raises:
        ValueError: One row alone is above the limit.
    """
    if len(group.requests) <= REQUEST_LIMIT and group.fits(limit_bytes):
        return (group,)
    return [part for half in _halves(group) for part in split(half, limit_bytes)]


def _halves(group: Group) -> Iterable[Group]:
    if len(group.rows) > 1:
        middle = len(group.rows) // 2
        return replace(group, rows=group.rows[:middle]), replace(group, rows=group.rows[middle:])
    count = len(group.requests)
    if count > 1:
        middle = count // 2
        per = group.rows_per_request
        first, second = _cut(group.rows[0], middle * per)
        return (
            Group((first,), group.requests[:middle], per),
            Group((second,), group.requests[middle:], per),
        )
    if group.rows_per_request > 1:
        middle = group.rows_per_request // 2
        first, second = _cut(group.rows[0], middle)
        rest = group.rows_per_request - middle
        return Group((first,), group.requests, middle), Group((second,), group.requests, rest)
    raise ValueError(f"one row of {group.payload_bytes} bytes is above the message limit")


def _cut(rows: Rows, at: int) -> tuple[Rows, Rows]:
    offset = at * rows.width * ITEM_TYPES[rows.dtype].itemsize
    return (
        replace(rows, payload=rows.payload[:offset]),
        replace(rows, payload=rows.payload[offset:]),
    )
