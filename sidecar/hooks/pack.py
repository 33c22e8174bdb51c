"""Turns the rows of one forward pass into messages that fit the daemon's limits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.features import NAME_LIMIT, SLICE_LIMIT, FeatureKind, LayerKey, Request
from sidecar.hooks.batch import Batch, TappedRows
from sidecar.hooks.requests import clean
from sidecar.wire import REQUEST_LIMIT, OutgoingSparse, OutgoingTensor

ITEM_TYPES: dict[str, np.dtype[np.uint32] | np.dtype[np.uint16]] = {
    "f32": np.dtype(np.uint32),
    "f16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
}
"""Unsigned integers as wide as each dtype: rows are moved here, and only asked for zeros."""

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

    @property
    def size_bytes(self) -> int:
        """Bytes that they take in a message."""
        return self.payload.nbytes

    def cut(self, at: int) -> tuple["Rows", "Rows"]:
        """Return the first ``at`` rows, and the others."""
        offset = at * self.width * ITEM_TYPES[self.dtype].itemsize
        return (
            replace(self, payload=self.payload[:offset]),
            replace(self, payload=self.payload[offset:]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """The same of a layer of latents: what is not zero in them.

    Attributes:
        row_splits: Row ``i`` has the entries from ``row_splits[i]`` to ``row_splits[i + 1]``, shape
            ``(rows + 1,)``.
        latents: The latent of each entry, shape ``(nnz,)``.
        values: Little-endian values of all entries.
    """

    layer: LayerKey
    dtype: str
    width: int
    row_splits: NDArray[np.uint32]
    latents: NDArray[np.uint32]
    values: memoryview

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """List what is not zero: neither 0 nor -0, but NaN."""
        bits: NDArray[Any] = np.frombuffer(rows.payload, ITEM_TYPES[rows.dtype])
        # Without the sign. Flat and of truth values: a tenth of the time that rows of numbers take.
        found = np.flatnonzero((bits << 1) != 0)
        count = len(bits) // rows.width
        return cls(
            rows.layer,
            rows.dtype,
            rows.width,
            np.searchsorted(found, rows.width * np.arange(count + 1)).astype(np.uint32),
            (found % rows.width).astype(np.uint32),
            bits[found].view(np.uint8).data,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes that they take in a message."""
        return self.row_splits.nbytes + self.latents.nbytes + self.values.nbytes

    def cut(self, at: int) -> tuple["SparseRows", "SparseRows"]:
        """Return the first ``at`` rows, and the others."""
        entries = int(self.row_splits[at])
        offset = entries * ITEM_TYPES[self.dtype].itemsize
        return (
            replace(
                self,
                row_splits=self.row_splits[: at + 1],
                latents=self.latents[:entries],
                values=self.values[:offset],
            ),
            replace(
                self,
                row_splits=self.row_splits[at:] - self.row_splits[at],
                latents=self.latents[entries:],
                values=self.values[offset:],
            ),
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of several layers that belong to the same requests in the same way: one message.

    Attributes:
        rows: One for each layer; layers are distinct.
        requests: Whose rows they are.
        rows_per_request: Rows of each request, next to each other.
    """

    rows: tuple[Rows | SparseRows, ...]
    requests: tuple[Request, ...]
    rows_per_request: int

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum([item.size_bytes for item in self.rows])

    def outgoing(
        self, number: Callable[[Rows | SparseRows], int]
    ) -> tuple[tuple[OutgoingTensor, ...], tuple[OutgoingSparse, ...]]:
        """Return all rows as they are encoded.

        Args:
            number: Gives the number under which the rows' layer is registered.
        """
        count = len(self.requests) * self.rows_per_request
        tensors, sparse = [], []
        for rows in self.rows:
            layer_id = number(rows)
            if isinstance(rows, SparseRows):
                lists = (rows.row_splits, rows.latents, rows.values)
                sparse.append(OutgoingSparse(layer_id, rows.dtype, *lists))
            else:
                shape = (count, rows.width)
                tensors.append(OutgoingTensor(layer_id, rows.dtype, shape, rows.payload))
        return tuple(tensors), tuple(sparse)

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
        Groups whose payloads alias the batch's wherever nothing had to be merged or listed.
    """
    layouts: dict[tuple[int, int, bool, float], list[Rows | SparseRows]] = {}
    for one in _merged(tuple(staged)):
        dense = Rows(one.layer, one.dtype, one.width, one.payload)
        rows = SparseRows.of(dense) if one.layer.kind is FeatureKind.LATENT else dense
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
        first, second = group.rows[0].cut(middle * per)
        return (
            Group((first,), group.requests[:middle], per),
            Group((second,), group.requests[middle:], per),
        )
    if group.rows_per_request > 1:
        middle = group.rows_per_request // 2
        first, second = group.rows[0].cut(middle)
        rest = group.rows_per_request - middle
        return Group((first,), group.requests, middle), Group((second,), group.requests, rest)
    raise ValueError(f"one row of {group.payload_bytes} bytes is above the message limit")
