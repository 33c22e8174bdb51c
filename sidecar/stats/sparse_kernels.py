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
        count: ``(words, latents, values, octaves)``: count values, shape ``(n,)`` float32, of
            latents, ``(n,)`` uint32, all below ``len(words)``, into records of shape
            ``(latents, 8)``. A zero is not counted.
        fold: ``(words, latents, added)``: add records ``added``, shape ``(hit, 8)``, to those of
            ``latents``, shape ``(hit,)`` int64, distinct.
    """

    name: str
    count: Callable[[Words, NDArray[np.uint32], NDArray[np.float32], Octaves], Counted]
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
    words: Words, latents: NDArray[np.uint32], values: NDArray[np.float32], octaves: Octaves
) -> Counted:
    bits = values.view(np.int32)
    listed = (bits & np.int32(0x7FFFFFFF)) != 0
    bits, values = bits[listed], values[listed]
    hit, place = np.unique(latents[listed].astype(np.int64), return_inverse=True)
    valid = (bits > 0) & (bits < octaves.limit_bits)
    counter = np.where(valid, 1 + np.clip((bits >> 23) - octaves.base, 0, BINS - 1), 0)
    fresh = hit[~_used(words, hit)]
    added = np.zeros((len(hit), words.shape[1]), np.int64)
    counted = np.bincount(place * (BINS + 1) + counter, minlength=len(hit) * (BINS + 1))
    carried = [_add_counters(words, hit, counted.reshape(len(hit), BINS + 1))]
    place, exact = place[valid], values[valid].astype(np.float64)
    np.maximum.at(added.view(np.float32)[:, MAXIMUM], place, values[valid])
    _raise_maximum(words, hit, added)
    for word, slot, units in (
        (SUM, SUM_SLOT, exact / octaves.sum_unit),
        (SQUARES, SQUARES_SLOT, exact * exact / octaves.square_unit),
    ):
        whole = np.rint(units).astype(np.int64)
        high, low = np.zeros(len(hit), np.int64), np.zeros(len(hit), np.int64)
        np.add.at(high, place, whole >> _HALF_BITS)
        np.add.at(low, place, whole & _HALF)
        carried.append(_add_halves(words, hit, word, slot, high, low))
    return Counted(_joined(carried), fresh, int(np.count_nonzero(~valid)))


def _fold(words: Words, latents: NDArray[np.int64], added: Words) -> Carried:
    counters = added.view(np.uint16)[:, INVALID:].astype(np.int64)
    carried = [_add_counters(words, latents, counters)]
    _raise_maximum(words, latents, added)
    for word, slot in ((SUM, SUM_SLOT), (SQUARES, SQUARES_SLOT)):
        high, low = added[:, word] >> _HALF_BITS, added[:, word] & _HALF
        carried.append(_add_halves(words, latents, word, slot, high, low))
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


def _add_halves(
    words: Words,
    latents: NDArray[np.int64],
    word: int,
    slot: int,
    high: NDArray[np.int64],
    low: NDArray[np.int64],
) -> Carried:
    """Add ``high * 2**31 + low``, which itself may be more than int64 holds, to one of the sums."""
    total = words[latents, word] + low + ((high & _HALF) << _HALF_BITS)  # below 2**63
    rounds = (high >> _HALF_BITS) + (total >> LIMB_BITS)
    words[latents, word] = total & _LIMB
    full = np.flatnonzero(rounds)
    return latents[full] * SLOTS + slot, rounds[full]


def _joined(carried: list[Carried]) -> Carried:
    codes, amounts = zip(*carried, strict=True)
    return np.concatenate(codes), np.concatenate(amounts)


NUMPY = SparseKernels("numpy", _count, _fold)
"""What serves until the compiled kernels are there, and where they never are."""
