"""One cache line for each latent: the layout of what is counted, and how nothing in it overflows.

An update of a sparse layer touches latents in no order, so its price is one cache miss for each
non-zero value. A record is therefore exactly one line of 64 bytes, and everything an update changes
lies in it:

====== ======== =====================================================================
bytes  type     what
====== ======== =====================================================================
0-7    int64    sum of the values, in units of ``2.0**(exponent - 12)``
8-15   int64    sum of their squares, in units of ``2.0**(2 * exponent - 12)``
16-19  float32  greatest value; 0: none
20-21  uint16   values that no latent may have: NaN, infinities, negative, too great
22-63  uint16   21 counters of the octaves from ``(0, 2.0**exponent)`` upwards
====== ======== =====================================================================

Sums are whole numbers, so adding them is exact in any order. A field that is full is carried over
into a table beside the records: a counter cycles from 1 to 65,535, a sum stays below ``2**62``, and
each round is one more in the table. One entry stands for 65,535 hits or more, so the table stays
small, and a total is exact however long the counting goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_BYTES = 64
"""A cache line of every processor this runs on."""

WORDS, HALVES, SHORTS = RECORD_BYTES // 8, RECORD_BYTES // 4, RECORD_BYTES // 2
SUM, SQUARES = 0, 1
"""Where the sums are, counted in 8-byte words."""

MAXIMUM = 4
"""Where the greatest value is, counted in 4-byte halves of a word."""

INVALID = 10
"""Where the counters begin, counted in 2-byte shorts: first the invalid values, then the octaves."""

BINS = SHORTS - INVALID - 1
"""Octave counters: everything below the range, 19 octaves of it, everything above."""

SLOTS = BINS + 3
"""Fields of a record that can be carried over: the counters, then the two sums."""

SUM_SLOT, SQUARES_SLOT = BINS + 1, BINS + 2

ROUND = 65_535
"""Hits that one round of a counter stands for. Not 65,536: a counter that was ever used is then
never 0, which tells a used record from a new one, and equal totals have equal records."""

LIMB_BITS = 62
"""A sum stays below ``2**62``: one more value, which is below that too, cannot overflow int64."""

UNIT_BITS = 12
"""Bits of a value at the foot of the lowest octave that its sum keeps: rounding is at most one part
in 8,192 there and less for every greater value."""

RANGE_BITS = 25
"""Values reach up to ``2.0**(exponent + 25)``: beyond that a square would not fit into 62 bits."""

_FLOAT_BIAS, _FLOAT_MANTISSA = 127, 23
_LEAST, _MOST = -60, 60


def counter_type(rows: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the type of a distribution's counters that no number of ``rows`` rows can overflow."""
    return np.dtype(np.uint32 if rows <= np.iinfo(np.uint32).max else np.uint64)


@dataclass(frozen=True, slots=True)
class Octaves:
    """Where the octave counters lie, the same for every latent of every replica.

    Nothing is learned from the data, so that any two distributions merge.

    Attributes:
        exponent: The lowest octave begins at ``2.0**exponent``; from -60 to 60.
    """

    exponent: int = -8

    def __post_init__(self) -> None:
        """Refuse a range that float32 does not reach."""
        if not _LEAST <= self.exponent <= _MOST:
            raise ValueError(f"exponent {self.exponent}: use {_LEAST} to {_MOST}")

    @property
    def base(self) -> int:
        """What to take from a float32's exponent field to get its counter."""
        return _FLOAT_BIAS + self.exponent - 1

    @property
    def limit_bits(self) -> int:
        """The bits of the least float32 that is too great; valid values have bits from 1 below it."""
        return (_FLOAT_BIAS + self.exponent + RANGE_BITS) << _FLOAT_MANTISSA

    @property
    def sum_unit(self) -> float:
        """What a sum counts in."""
        return 2.0 ** (self.exponent - UNIT_BITS)

    @property
    def square_unit(self) -> float:
        """What a sum of squares counts in."""
        return 2.0 ** (2 * self.exponent - UNIT_BITS)

    def edges(self) -> NDArray[np.float64]:
        """Return the lower edge of every counter, shape ``(BINS,)``: 0, then powers of two."""
        return np.concatenate(([0.0], 2.0 ** (self.exponent + np.arange(BINS - 1))))


@dataclass(frozen=True, slots=True)
class Span:
    """What is known of a stretch of rows beside what they held.

    Attributes:
        rows: Rows of traffic: each sampled row counts as many as it stands for.
        sampled: Rows sampled.
        requests: Requests they belonged to; one split over several samples counts for each.
        invalid: Values that no latent may have, of all latents together.
        started: Unix seconds of the first row; 0: none.
        ended: Unix seconds of the last.
    """

    rows: int = 0
    sampled: int = 0
    requests: int = 0
    invalid: int = 0
    started: float = 0.0
    ended: float = 0.0

    def plus(self, other: "Span") -> "Span":
        """Return the two stretches as one; an empty one changes nothing."""
        starts = [one.started for one in (self, other) if one.sampled]
        return Span(
            rows=self.rows + other.rows,
            sampled=self.sampled + other.sampled,
            requests=self.requests + other.requests,
            invalid=self.invalid + other.invalid,
            started=min(starts, default=0.0),
            ended=max(self.ended, other.ended),
        )


@dataclass(slots=True, eq=False)
class Records:
    """What was counted of the latents of one layer over one stretch of time, growing in place.

    Attributes:
        words: The records, shape ``(latents, 8)``, int64, each on a cache line of its own.
        carries: Rounds of full fields, by ``latent * SLOTS + slot``.
        span: The rows.
    """

    words: NDArray[np.int64]
    carries: dict[int, int] = field(default_factory=dict)
    span: Span = field(default_factory=Span)

    @classmethod
    def empty(cls, latents: int) -> "Records":
        """Return records that have seen nothing; memory is taken as latents are first hit."""
        space = np.zeros((latents + 1) * WORDS, np.int64)
        skipped = -space.ctypes.data % RECORD_BYTES // 8
        return cls(space[skipped : skipped + latents * WORDS].reshape(latents, WORDS))

    @property
    def maximum(self) -> NDArray[np.float32]:
        """The greatest values, a view of shape ``(latents,)``."""
        return self.words.view(np.float32)[:, MAXIMUM]

    @property
    def counters(self) -> NDArray[np.uint16]:
        """Invalid values and octaves, a view of shape ``(latents, 1 + BINS)``."""
        return self.words.view(np.uint16)[:, INVALID:]

    def used(self) -> NDArray[np.int64]:
        """Return the latents that were ever hit, in increasing order."""
        return np.flatnonzero((self.maximum > 0) | (self.counters[:, 0] > 0))

    def carry(self, codes: NDArray[np.int64], amounts: NDArray[np.int64]) -> None:
        """Add rounds to the table."""
        for code, amount in zip(codes.tolist(), amounts.tolist(), strict=True):
            self.carries[code] = self.carries.get(code, 0) + amount


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """A closed window: the records of the latents that were hit in it, and of no other.

    Attributes:
        latents: In increasing order, shape ``(hit,)``, int64.
        words: Their records, shape ``(hit, 8)``.
        carries: As in ``Records``, by latent, not by place.
        span: The rows.
    """

    latents: NDArray[np.int64]
    words: NDArray[np.int64]
    carries: Mapping[int, int]
    span: Span

    @classmethod
    def of(cls, records: Records, latents: NDArray[np.int64]) -> "Hits":
        """Copy the records of these latents, which are all that were hit."""
        return cls(latents, records.words[latents], dict(records.carries), records.span)
