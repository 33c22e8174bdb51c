"""Sums of distances and of their squares in whole numbers, so that order cannot matter.

A float64 sum depends on the order of its terms, and replicas see traffic in different orders. Here
each distance from the centre is rounded once, to a multiple of a unit that is frozen with the bins,
and whole numbers are added: any split and any order of merging gives the same bits. A square needs up
to 56 bits and a sum of squares more than 64, so those are kept in two halves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 8
"""The unit is the near-zero width over this power of two: a 16,000th to a 32,000th of the scale."""

REACH = 1 << 28
"""Units beyond which a distance counts as this many, in the moments only: 2**20 near-zero widths, at
least 8,192 times the scale and 16 times what the bins tell apart. The square of it times 64 rows still
fits into 64 bits, which is what makes a fast kernel possible."""

_LEAST_UNIT = -126
"""The smallest power of two whose inverse is a finite float32 and which is no denormal."""

_LOW = (1 << 32) - 1

_EXACT = 2.0**53
"""Up to here float64 holds every whole number."""


def unit_exponent(exponent: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the power of two that is each feature's unit, from that of its near-zero width."""
    unit: NDArray[np.int32] = np.maximum(exponent - np.int32(FRACTION_BITS), np.int32(_LEAST_UNIT))
    return unit


def scaling(exponent: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return what distances are multiplied by to be in units; exact, being a power of two."""
    return np.asarray(np.ldexp(np.float32(1.0), -unit_exponent(exponent)), np.float32)


def summed(
    away: NDArray[np.float32], scale: NDArray[np.float32], copies: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Add up rows of distances in whole units, and their squares.

    Args:
        away: Distances, shape ``(rows, features)``; infinite ones count as ``REACH``, no NaN.
        scale: From ``scaling``, shape ``(features,)``.
        copies: How often each row counts, shape ``(rows,)``, together at most 2**30; empty: once.

    Returns:
        ``(sums, high, low)``, each ``(features,)``: sums of distances, and of squares in halves.
    """
    units = _in_units(away, scale)
    farthest = float(max(units.max(), -units.min()))
    if farthest**2 * (int(copies.sum()) if len(copies) else len(units)) <= _EXACT:
        # Whole numbers in float64: faster than int64, and as exact up to here.
        wide = units.astype(np.float64)
        times = wide * copies[:, None] if len(copies) else wide
        low = np.einsum("rf,rf->f", times, wide).astype(np.uint64)
        return times.sum(axis=0).astype(np.int64), np.zeros(len(low), np.int64), low
    whole = units.astype(np.int64)
    once = copies[:, None] if len(copies) else np.int64(1)
    squares = whole * whole
    halves = ((squares >> 32) * once).sum(axis=0), ((squares & _LOW) * once).sum(axis=0)
    return (whole * once).sum(axis=0), *_widened(*halves)


def _in_units(away: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return distances in whole units, half to even, at most ``REACH`` either way."""
    with np.errstate(over="ignore"):
        units: NDArray[np.float32] = away * scale
    np.clip(units, np.float32(-REACH), np.float32(REACH), out=units)
    np.rint(units, out=units)
    return units


def add_wide(
    high: NDArray[np.int64],
    low: NDArray[np.uint64],
    more_high: NDArray[np.int64],
    more_low: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Add whole numbers of 128 bits, each standing for ``high * 2**64 + low``."""
    total = low + more_low
    return high + more_high + (total < low), total


def _widened(
    high: NDArray[np.int64], low: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Turn ``high * 2**32 + low``, neither of them negative, into halves of 64 bits."""
    upper, lower = high >> 32, (high & _LOW).astype(np.uint64) << np.uint64(32)
    return add_wide(upper, lower, np.zeros_like(upper), low.astype(np.uint64))


def to_float(
    high: NDArray[np.int64], low: NDArray[np.uint64], exponent: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return sums of squares as float64, from halves in squared units."""
    units = high.astype(np.float64) * 2.0**64 + low.astype(np.float64)
    return np.asarray(np.ldexp(units, 2 * unit_exponent(exponent)), np.float64)


def to_halves(whole: list[int]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return Python's whole numbers as halves of 64 bits."""
    high: NDArray[Any] = np.array([number >> 64 for number in whole], np.int64)
    low: NDArray[Any] = np.array([number & ((1 << 64) - 1) for number in whole], np.uint64)
    return high, low
