"""The two loops over sparse records, with numpy; and how to get the same ones compiled.

Both sets leave equal records behind, bit for bit, whatever came in: sums are whole numbers, so no
order of additions can show.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

Words = NDArray[np.int64]
Carried = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Codes ``latent * SLOTS + slot`` of fields that were full, and how many rounds of each."""

_LIMB = (1 << LIMB_BITS) - 1
_HALF_BITS = LIMB_BITS // 2
_HALF = (1 << _HALF_BITS) - 1


@dataclass(frozen=True, slots=True)
class Counted:
    """What one call of ``SparseKernels.count`` found.

    Attributes:
        carried: Fields that were full.
        fresh: Latents that were hit for the first time, each once, shape ``(hit,)``, int64.
        invalid: Values that no latent may have.
    """

    carried: Carried
    fresh: NDArray[np.int64]
    invalid: int


@dataclass(frozen=True, slots=True)
class SparseKernels:
    """The loops that a sparse bank runs; each holds no state and may be called from any thread.

    Attributes:
        name: ``numpy`` or ``numba``, for logs and metrics.
        count: ``(words, latents, values, copies, octaves)``: count values, shape ``(n,)`` float32,
            of latents, ``(n,)`` uint32, all below ``len(words)``, into records of shape
            ``(latents, 8)``; each as often as ``copies`` says, ``(n,)`` int64 from 1 to 2**20, or
            once where that is empty. A zero is not counted.
        fold: ``(words, latents, added)``: add records ``added``, shape ``(hit, 8)``, to those of
            ``latents``, shape ``(hit,)`` int64, distinct.
    """

    name: str
    count: Callable[
        [Words, NDArray[np.uint32], NDArray[np.float32], NDArray[np.int64], Octaves], Counted
    ]
    fold: Callable[[Words, NDArray[np.int64], Words], Carried]


def compile_sparse_kernels() -> SparseKernels:
    """Return the compiled kernels; from the second time on from a cache on disk.

    Blocks for a second or more without the cache, so a daemon calls it from a thread of its own and
    serves with ``NUMPY`` until it is back.

    Raises:
        ImportError: numba is not installed.
        RuntimeError: There is no directory in which numba may keep its cache: set NUMBA_CACHE_DIR.
    """
    from sidecar.stats import sparse_numba  # noqa: PLC0415 - numba takes 0.4 s and 80 MB to import

    return SparseKernels("numba", sparse_numba.count, sparse_numba.fold)


def _count(
    words: Words,
    latents: NDArray[np.uint32],
    values: NDArray[np.float32],
    copies: NDArray[np.int64],
    octaves: Octaves,
) -> Counted:
    bits = values.view(np.int32)
    listed = (bits & np.int32(0x7FFFFFFF)) != 0
    bits, values = bits[listed], values[listed]
    copies = copies[listed] if len(copies) else np.ones(len(values), np.int64)
    hit, place = np.unique(latents[listed].astype(np.int64), return_inverse=True)
    valid = (bits > 0) & (bits < octaves.limit_bits)
    counter = np.where(valid, 1 + np.clip((bits >> 23) - octaves.base, 0, BINS - 1), 0)
    fresh = hit[~_used(words, hit)]
    added = np.zeros((len(hit), words.shape[1]), np.int64)
    counted = np.zeros(len(hit) * (BINS + 1), np.int64)
    np.add.at(counted, place * (BINS + 1) + counter, copies)
    carried = [_add_counters(words, hit, counted.reshape(len(hit), BINS + 1))]
    invalid = int(copies[~valid].sum())
    place, exact, copies = place[valid], values[valid].astype(np.float64), copies[valid]
    np.maximum.at(added.view(np.float32)[:, MAXIMUM], place, values[valid])
    _raise_maximum(words, hit, added)
    for word, slot, units in (
        (SUM, SUM_SLOT, exact / octaves.sum_unit),
        (SQUARES, SQUARES_SLOT, exact * exact / octaves.square_unit),
    ):
        whole = np.rint(units).astype(np.int64)
        high, low = (whole >> _HALF_BITS) * copies, (whole & _HALF) * copies  # below 2**51 each
        sums = np.zeros((3, len(hit)), np.int64)  # a batch of weights may come to 2**78
        for part, limb in zip(sums, (high >> _HALF_BITS, high & _HALF, low), strict=True):
            np.add.at(part, place, limb)
        carried.append(_add_limbs(words, hit, word, slot, sums))
    return Counted(_joined(carried), fresh, invalid)


def _fold(words: Words, latents: NDArray[np.int64], added: Words) -> Carried:
    counters = added.view(np.uint16)[:, INVALID:].astype(np.int64)
    carried = [_add_counters(words, latents, counters)]
    _raise_maximum(words, latents, added)
    for word, slot in ((SUM, SUM_SLOT), (SQUARES, SQUARES_SLOT)):
        whole = added[:, word]
        sums = np.stack((np.zeros_like(whole), whole >> _HALF_BITS, whole & _HALF))
        carried.append(_add_limbs(words, latents, word, slot, sums))
    return _joined(carried)


def _used(words: Words, latents: NDArray[np.int64]) -> NDArray[np.bool_]:
    most = words.view(np.float32)[latents, MAXIMUM]
    return np.asarray((most > 0) | (words.view(np.uint16)[latents, INVALID] > 0))


def _add_counters(words: Words, latents: NDArray[np.int64], counted: NDArray[np.int64]) -> Carried:
    """Add ``(hit, 1 + BINS)`` counts; a counter in use stays between 1 and ``ROUND``."""
    shorts = words.view(np.uint16)
    total = shorts[latents, INVALID:] + counted  # (hit, 1 + BINS)
    rounds = np.maximum(total - 1, 0) // ROUND
    shorts[latents, INVALID:] = total - rounds * ROUND
    place, counter = np.nonzero(rounds)
    return latents[place] * SLOTS + counter, rounds[place, counter]


def _raise_maximum(words: Words, latents: NDArray[np.int64], added: Words) -> None:
    most = words.view(np.float32)
    most[latents, MAXIMUM] = np.maximum(most[latents, MAXIMUM], added.view(np.float32)[:, MAXIMUM])


def _add_limbs(
    words: Words, latents: NDArray[np.int64], word: int, slot: int, sums: NDArray[np.int64]
) -> Carried:
    """Add ``sums``, shape ``(3, hit)`` in units of ``2**62``, ``2**31`` and 1, to one of the sums."""
    top, high, low = sums
    high = high + (low >> _HALF_BITS)
    total = words[latents, word] + (low & _HALF) + ((high & _HALF) << _HALF_BITS)  # below 2**63
    rounds = top + (high >> _HALF_BITS) + (total >> LIMB_BITS)
    words[latents, word] = total & _LIMB
    full = np.flatnonzero(rounds)
    return latents[full] * SLOTS + slot, rounds[full]


def _joined(carried: list[Carried]) -> Carried:
    codes, amounts = zip(*carried, strict=True)
    return np.concatenate(codes), np.concatenate(amounts)


NUMPY = SparseKernels("numpy", _count, _fold)
"""What serves until the compiled kernels are there, and where they never are."""
