"""The loops over sparse records, compiled. Importing this compiles them or reads them from a cache.

Plain loops, because each non-zero value is one random access: what costs is the cache line, not the
arithmetic, and the processor fetches the next lines while it counts the present one.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sidecar.stats.sparse_kernels import Carried, Counted, Words
from sidecar.stats.sparse_record import (
    BINS,
    INVALID,
    LIMB_BITS,
    MAXIMUM,
    ROUND,
    SLOTS,
    SQUARES,
    SQUARES_SLOT,
    SUM,
    SUM_SLOT,
    Octaves,
)

_LIMB = 1 << LIMB_BITS
_HALF_BITS = LIMB_BITS // 2
_HALF = (1 << _HALF_BITS) - 1
_FIELDS = 3
"""Fields of a record that one value can fill: a counter and two sums."""


def count(
    words: Words,
    latents: NDArray[np.uint32],
    values: NDArray[np.float32],
    copies: NDArray[np.int64],
    octaves: Octaves,
) -> Counted:
    """Count values; see ``SparseKernels``."""
    # Pages of these are taken only where something is written.
    codes, amounts = (np.empty(_FIELDS * len(latents), np.int64) for _ in range(2))
    fresh = np.empty(len(latents), np.int64)
    carried, new, invalid = _count(
        words,
        words.view(np.float32),
        words.view(np.uint16),
        latents,
        values,
        values.view(np.int32),
        copies if len(copies) else None,
        octaves.base,
        octaves.limit_bits,
        1.0 / octaves.sum_unit,
        1.0 / octaves.square_unit,
        codes,
        amounts,
        fresh,
    )
    found = codes[:carried].copy(), amounts[:carried].copy()
    return Counted(found, fresh[:new].copy(), invalid)


def fold(words: Words, latents: NDArray[np.int64], added: Words) -> Carried:
    """Add records; see ``SparseKernels``."""
    codes = np.empty(SLOTS * len(latents), np.int64)
    carried = _fold(
        words,
        words.view(np.float32),
        words.view(np.uint16),
        latents,
        added,
        added.view(np.float32),
        added.view(np.uint16),
        codes,
    )
    return codes[:carried].copy(), np.ones(carried, np.int64)


def _count_loop(  # noqa: C901, PLR0913, PLR0917 - one loop, for it costs one cache miss a turn
    words: Any,
    floats: Any,
    shorts: Any,
    latents: Any,
    values: Any,
    bits: Any,
    copies: Any,
    base: int,
    limit: int,
    per_sum: float,
    per_square: float,
    codes: Any,
    amounts: Any,
    fresh: Any,
) -> tuple[int, int, int]:
    carried = new = invalid = 0
    times = np.int64(1)
    for i in range(len(latents)):
        pattern = bits[i]
        if pattern & 0x7FFFFFFF == 0:
            continue
        if copies is not None:
            times = copies[i]
        at = np.int64(latents[i])
        most = floats[at, MAXIMUM]
        if most == 0 and shorts[at, INVALID] == 0:
            fresh[new] = at
            new += 1
        slot = 0
        if 0 < pattern < limit:
            value = values[i]
            slot = 1 + min(max((pattern >> 23) - base, 0), BINS - 1)
            if value > most:
                floats[at, MAXIMUM] = value
            exact = np.float64(value)
            total = words[at, SUM] + times * np.int64(np.rint(exact * per_sum))
            if total >= _LIMB:
                total -= _LIMB
                codes[carried], amounts[carried] = at * SLOTS + SUM_SLOT, 1
                carried += 1
            words[at, SUM] = total
            square = np.int64(np.rint(exact * exact * per_square))
            rounds = np.int64(0)
            if copies is not None:  # a product may be beyond 64 bits: multiply its halves
                high, low = (square >> _HALF_BITS) * times, (square & _HALF) * times
                high += low >> _HALF_BITS
                rounds = high >> _HALF_BITS
                square = ((high & _HALF) << _HALF_BITS) | (low & _HALF)
            total = words[at, SQUARES] + square
            if total >= _LIMB:
                total -= _LIMB
                rounds += 1
            if rounds > 0:
                codes[carried], amounts[carried] = at * SLOTS + SQUARES_SLOT, rounds
                carried += 1
            words[at, SQUARES] = total
        else:
            invalid += int(times)
        counter = np.int64(shorts[at, INVALID + slot]) + times
        if counter > ROUND:
            rounds = (counter - 1) // ROUND
            counter -= rounds * ROUND
            codes[carried], amounts[carried] = at * SLOTS + slot, rounds
            carried += 1
        shorts[at, INVALID + slot] = counter
    return carried, new, invalid


def _fold_loop(
    words: Any,
    floats: Any,
    shorts: Any,
    latents: Any,
    added: Any,
    added_floats: Any,
    added_shorts: Any,
    codes: Any,
) -> int:
    carried = 0
    for i in range(len(latents)):
        at = latents[i]
        floats[at, MAXIMUM] = max(floats[at, MAXIMUM], added_floats[i, MAXIMUM])
        for word, slot in ((SUM, SUM_SLOT), (SQUARES, SQUARES_SLOT)):
            total = words[at, word] + added[i, word]
            if total >= _LIMB:
                total -= _LIMB
                codes[carried] = at * SLOTS + slot
                carried += 1
            words[at, word] = total
        for slot in range(BINS + 1):
            total = np.int64(shorts[at, INVALID + slot]) + np.int64(added_shorts[i, INVALID + slot])
            if total > ROUND:
                total -= ROUND
                codes[carried] = at * SLOTS + slot
                carried += 1
            shorts[at, INVALID + slot] = total
    return carried


# Signatures, so that the compile is done when this module is there. Arrays of a batch may be views
# of received bytes, which are read-only, and of any stride numpy can make contiguous for us.
_COUNT = (
    "UniTuple(int64, 3)(int64[:, ::1], float32[:, ::1], uint16[:, ::1], "
    "Array(uint32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True), "
    "Array(int32, 1, 'C', readonly=True), {copies}, int64, int64, float64, float64, "
    "int64[::1], int64[::1], int64[::1])"
)
_COUNTS = [_COUNT.format(copies=copies) for copies in ("none", "int64[::1]")]
_FOLD = (
    "int64(int64[:, ::1], float32[:, ::1], uint16[:, ::1], Array(int64, 1, 'C', readonly=True), "
    "int64[:, ::1], float32[:, ::1], uint16[:, ::1], int64[::1])"
)
_count = numba.njit(_COUNTS, nogil=True, cache=True)(_count_loop)
_fold = numba.njit(_FOLD, nogil=True, cache=True)(_fold_loop)
