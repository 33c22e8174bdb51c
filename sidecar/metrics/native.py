"""Writes native histograms, a whole layer at a time: the buckets of a thousand features are many.

Fields of ``Histogram`` are sample_count 1, sample_sum 2, schema 5, zero_threshold 6, zero_count 7,
negative_span 9, negative_delta 10, positive_span 12 and positive_delta 13; of ``BucketSpan`` offset 1
and length 2. Buckets are stretches without a gap (spans) and the differences of their counts (deltas).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.monitor import LayerActivations

_SPAN, _DELTA = {False: b"\x4a", True: b"\x62"}, {False: b"\x52", True: b"\x6a"}


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """The buckets of one sign of all features, from zero outwards."""

    spans: Sequence[bytes]
    deltas: Sequence[bytes]


def histogram_messages(activations: LayerActivations) -> Sequence[bytes]:
    """Return a ``Histogram`` message for each feature of a layer, in the order of its keys."""
    positive, negative = _side(activations, positive=True), _side(activations, positive=False)
    zeros = np.zeros(len(activations.keys), np.int64)
    central = activations.bucket_ranks == 0
    zeros[activations.bucket_features[central]] = activations.bucket_counts[central]
    columns = (
        _varints(activations.count),
        [struct.pack("<d", value) for value in activations.sum.tolist()],
        _varints(_zigzag(activations.schema)),
        [struct.pack("<d", 2.0**value) for value in activations.zero_exponent.tolist()],
        _varints(zeros),
        negative.spans,
        negative.deltas,
        positive.spans,
        positive.deltas,
    )
    return [
        b"\x08"
        + count
        + b"\x11"
        + total
        + b"\x28"
        + schema
        + b"\x31"
        + border
        + b"\x38"
        + b"".join(rest)
        for count, total, schema, border, *rest in zip(*columns, strict=True)
    ]


def _side(activations: LayerActivations, *, positive: bool) -> _Side:
    ranks = activations.bucket_ranks
    chosen = np.flatnonzero(ranks > 0 if positive else ranks < 0)
    if not positive:
        # Ranks grow towards zero there, and buckets are written from zero outwards.
        chosen = chosen[np.lexsort((-ranks[chosen], activations.bucket_features[chosen]))]
    owners = activations.bucket_features[chosen]
    # The zero bucket ends at the border of bucket zero_exponent * 2**schema.
    last_in_zero = activations.zero_exponent << activations.schema
    buckets = np.abs(ranks[chosen]) + last_in_zero[owners]
    fresh = np.diff(owners, prepend=-1) != 0
    counts = activations.bucket_counts[chosen]
    deltas = np.where(fresh, counts, np.diff(counts, prepend=0))
    features = len(activations.keys)
    return _Side(
        _spans(owners, buckets, fresh, features, _SPAN[positive]),
        _packed(owners, deltas, features, _DELTA[positive]),
    )


def _spans(
    owners: NDArray[np.int64],
    buckets: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    features: int,
    tag: bytes,
) -> Sequence[bytes]:
    """Return each feature's spans: the first offset counts from bucket 0, others from the last span."""
    gaps = np.diff(buckets, prepend=0) - 1
    starts = np.flatnonzero(fresh | (gaps != 0))
    offsets = np.where(fresh[starts], buckets[starts], gaps[starts])
    lengths = np.diff(starts, append=len(buckets))
    found = [b""] * features
    rows = zip(owners[starts].tolist(), _varints(_zigzag(offsets)), _varints(lengths), strict=True)
    for owner, offset, length in rows:
        body = b"\x08" + offset + b"\x10" + length
        found[owner] += tag + bytes([len(body)]) + body
    return found


def _packed(
    owners: NDArray[np.int64], deltas: NDArray[np.int64], features: int, tag: bytes
) -> Sequence[bytes]:
    """Return each feature's deltas as one packed field; empty where it has none."""
    content, sizes = _written(_zigzag(deltas))
    ends = np.concatenate(([0], np.cumsum(sizes)))
    bounds = ends[np.searchsorted(owners, np.arange(features + 1))]
    lengths = _varints(np.diff(bounds))
    return [
        tag + length + content[start:end] if end > start else b""
        for start, end, length in zip(
            bounds[:-1].tolist(), bounds[1:].tolist(), lengths, strict=True
        )
    ]


def _varints(numbers: NDArray[np.int64]) -> list[bytes]:
    content, sizes = _written(numbers)
    ends = np.cumsum(sizes)
    starts = (ends - sizes).tolist()
    return [content[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def _written(numbers: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Return non-negative numbers as varints, one after the other, and the bytes each has."""
    longest = max(int(numbers.max(initial=1)).bit_length() + 6, 7) // 7
    place = np.arange(longest)
    sizes = 1 + (numbers[:, None] >> (7 * place[1:]) > 0).sum(axis=1)
    septets = (numbers[:, None] >> (7 * place)) & 0x7F  # (n, longest)
    found = (septets | (place < sizes[:, None] - 1) << 7).astype(np.uint8)
    return found[place < sizes[:, None]].tobytes(), sizes


def _zigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return (numbers << 1) ^ (numbers >> 63)
