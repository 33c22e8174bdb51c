"""The kernels compiled by numba: one pass at about the speed of memory.

A tile of neighbouring features is taken eight rows at a time, so that rows, counters and bin numbers
stay in the first-level cache between the jobs done on them. Each job is a function of its own with few
arrays, because LLVM gives up on vectorising a loop over many: the checks that none overlaps another
would cost more than it thinks they save. Unsigned indices say that none counts from the end, which a
signed one must test. The last rows of a batch, and rows of a tile in which something is not finite, go
value by value through ``_each``.

Importing this module compiles it. Nothing here may use ``fastmath``: a NaN must stay one.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from sidecar.features import Values
from sidecar.stats.batch import decoded
from sidecar.stats.binning import Grid
from sidecar.stats.moments import REACH, scaling
from sidecar.stats.tally import Tally

_TILE = 256
"""Features of a tile: narrower ones defeat the prefetcher, wider ones push the counters of the tile
out of the second-level cache."""

_WIDE_TILE = 1024
"""Features of a tile where there are no counters to keep in cache: a fifth faster."""

_SCREEN_TILE = 4096
"""Features of a tile where each has a threshold alone: two fifths faster than 256, where a request
has few rows."""

_SCREEN_ROWS = 64
"""Rows of such a tile of halves that are read at once: 1 MiB as float32."""

_BLOCK = np.uint64(8)
"""Rows of a block: enough that a feature's accumulators are loaded once for eight values."""

_CARRY_ROWS = 64
"""Rows after which sums are carried into the tally: 64 squares of ``REACH`` are 2**62."""

_READ_ROWS = 1024
"""Rows of a tile of halves that are read at once: 1 MiB as float32."""

_REACH = np.float32(REACH)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_LOW = np.int64((1 << 32) - 1)
_HALF_BIAS = np.float32(2.0**112)
"""What float16 is multiplied by once its bits are in place: the exponents are biased by 15 and 127."""

_HALF_INFINITE = np.uint32(0x7C00 << 13)

_SUM, _HIGH, _SQUARES, _ZEROS = (np.uint64(row) for row in range(4))
"""Rows of a tile's accumulators: distances, squares as ``high * 2**32 + squares``, exact zeros."""

_NEGATED, _SCALE = np.uint64(0), np.uint64(1)
"""Rows of where a tile's features lie: minus their centres, and units to one."""

_LEAST, _MOST, _ODD = np.uint64(0), np.uint64(1), np.uint64(2)
"""Rows of a tile's extremes; in the last, zero as long as everything was finite."""


class _Tile(NamedTuple):
    """What is kept of the features of a tile while its rows go by; all ``(…, width)``."""

    place: Any  # float32: _NEGATED, _SCALE
    base: Any  # int32, see ``Grid.base``
    extremes: Any  # float32: _LEAST, _MOST, _ODD
    before: Any  # the extremes before a batch of rows that may have to be taken back
    sums: Any  # int64: _SUM, _HIGH, _SQUARES, _ZEROS
    bins: Any  # int32, the bin of each value of a block


class _Form(NamedTuple):
    """What is counted, and how bins are numbered."""

    weighed: Any  # whether rows stand for several
    binned: Any  # whether zeros and bins are counted
    shift: Any
    last: Any


class _State(NamedTuple):
    """The arrays of a tally, of all features."""

    total: Any
    high: Any
    low: Any
    odd: Any
    zeros: Any
    # Counters of each width, of which two have no features: one compilation serves all.
    narrow: Any
    wide: Any
    widest: Any


# -- jobs on one block: rows r to r + 8 and columns a to a + n of x, and columns 0 to n of all else ----


@njit(nogil=True)
def _moments(x: Any, r: Any, a: Any, n: Any, place: Any, extremes: Any, sums: Any) -> None:
    """Add sums, squares and extremes, on trust: where something is not finite, ``_ODD`` becomes NaN.

    A false alarm, at values whose sum is above 3e38, only costs time.
    """
    for j in range(n):
        minus, by = place[_NEGATED, j], place[_SCALE, j]
        low, high, trust = extremes[_LEAST, j], extremes[_MOST, j], np.float32(0)
        total, squares = np.int64(0), np.int64(0)
        for i in range(_BLOCK):
            value = x[r + i, a + j]
            trust += value
            low = value if value < low else low
            high = value if value > high else high
            units = _units(value + minus, by)
            total += units
            squares += units * units
        sums[_SUM, j] += total
        sums[_SQUARES, j] += squares
        extremes[_LEAST, j], extremes[_MOST, j] = low, high
        extremes[_ODD, j] += trust - trust


@njit(nogil=True)
def _weighed(
    x: Any, r: Any, a: Any, n: Any, copies: Any, place: Any, extremes: Any, sums: Any
) -> None:
    """Do the same for rows that stand for several."""
    for j in range(n):
        minus, by = place[_NEGATED, j], place[_SCALE, j]
        low, high, trust = extremes[_LEAST, j], extremes[_MOST, j], np.float32(0)
        for i in range(_BLOCK):
            value = x[r + i, a + j]
            trust += value
            low = value if value < low else low
            high = value if value > high else high
            _weigh(_units(value + minus, by), np.int64(copies[i]), j, sums)
        extremes[_LEAST, j], extremes[_MOST, j] = low, high
        extremes[_ODD, j] += trust - trust


@njit(nogil=True)
def _weigh(units: Any, times: Any, j: Any, sums: Any) -> None:
    squares = units * units
    sums[_SUM, j] += times * units
    sums[_HIGH, j] += times * (squares >> np.int64(32))
    sums[_SQUARES, j] += times * (squares & _LOW)


@njit(nogil=True)
def _units(away: Any, by: Any) -> Any:
    scaled = away * by
    scaled = scaled if scaled < _REACH else _REACH
    scaled = scaled if scaled > -_REACH else -_REACH
    return np.int64(np.int32(np.rint(scaled)))


@njit(nogil=True)
def _zeros(x: Any, r: Any, a: Any, n: Any, copies: Any, sums: Any) -> None:
    for j in range(n):
        found = np.int32(0)
        for i in range(_BLOCK):
            found += copies[i] if x[r + i, a + j] == np.float32(0) else np.int32(0)
        sums[_ZEROS, j] += found


@njit(nogil=True)
def _index(x: Any, r: Any, a: Any, n: Any, tile: Any, form: Any) -> None:
    """Note the bin of every value."""
    place, base, bins, shift, last = tile.place, tile.base, tile.bins, form.shift, form.last
    for j in range(n):
        minus, below = place[_NEGATED, j], base[j]
        for i in range(_BLOCK):
            bins[i, j] = _bin(x[r + i, a + j] + minus, below, shift, last)


@njit(nogil=True)
def _bin(away: Any, below: Any, shift: Any, last: Any) -> Any:
    """See ``Grid.index``."""
    bits = np.float32(away).view(np.int32)
    negative = bits >> np.int32(31)  # 0 or -1
    found = (((bits & _MAGNITUDE) + negative) >> shift) - below
    found = found if found > np.int32(0) else np.int32(0)
    found = found if found < last else last
    return (found ^ negative) + last + np.int32(1)


@njit(nogil=True)
def _scatter(counts: Any, f: Any, n: Any, bins: Any, copies: Any) -> None:
    for j in range(n):
        for i in range(_BLOCK):
            counts[f + j, np.uint32(bins[i, j])] += copies[i]


@njit(nogil=True)
def _count(state: Any, feature: Any, found: Any, times: Any) -> None:
    """Count one value in whichever counters there are."""
    if len(state.narrow):
        state.narrow[feature, np.uint32(found)] += times
    elif len(state.wide):
        state.wide[feature, np.uint32(found)] += times
    else:
        state.widest[feature, np.uint32(found)] += times


# -- one tile: at most 64 rows of it from row r and column a of x, its first feature being f -----------


@njit(nogil=True)
def _each(
    x: Any, r: Any, rows: Any, a: Any, n: Any, f: Any, copies: Any, tile: Any, state: Any, form: Any
) -> None:
    """Count rows value by value, minding what is not finite."""
    for i in range(rows):
        times = np.int64(copies[i])
        for j in range(n):
            value = x[r + i, a + j]
            if not np.isfinite(value):
                state.odd[np.uint64(0) if np.isnan(value) else np.uint64(1), f + j] += times
                continue
            away = value + tile.place[_NEGATED, j]
            _weigh(_units(away, tile.place[_SCALE, j]), times, j, tile.sums)
            tile.extremes[_LEAST, j] = min(value, tile.extremes[_LEAST, j])
            tile.extremes[_MOST, j] = max(value, tile.extremes[_MOST, j])
            if form.binned:
                tile.sums[_ZEROS, j] += times if value == np.float32(0) else np.int64(0)
                found = _bin(away, tile.base[j], form.shift, form.last)
                _count(state, f + j, found, copies[i])


@njit(nogil=True)
def _rows(
    x: Any, r: Any, rows: Any, a: Any, n: Any, f: Any, copies: Any, tile: Any, state: Any, form: Any
) -> None:
    """Count rows in blocks, unless one of them is not finite, and carry."""
    whole = rows - rows % _BLOCK
    tile.before[:] = tile.extremes
    for i in range(np.uint64(0), whole, _BLOCK):
        here = copies[i : i + _BLOCK]
        if form.weighed:
            _weighed(x, r + i, a, n, here, tile.place, tile.extremes, tile.sums)
        else:
            _moments(x, r + i, a, n, tile.place, tile.extremes, tile.sums)
    if not _trusted(n, tile.extremes):
        tile.extremes[:] = tile.before
        tile.sums[:] = 0
        whole = np.uint64(0)
    if form.binned:
        for i in range(np.uint64(0), whole, _BLOCK):
            here = copies[i : i + _BLOCK]
            _zeros(x, r + i, a, n, here, tile.sums)
            _index(x, r + i, a, n, tile, form)
            if len(state.narrow):
                _scatter(state.narrow, f, n, tile.bins, here)
            elif len(state.wide):
                _scatter(state.wide, f, n, tile.bins, here)
            else:
                _scatter(state.widest, f, n, tile.bins, here)
    _each(x, r + whole, rows - whole, a, n, f, copies[whole:], tile, state, form)
    _carry(n, f, tile.sums, state)


@njit(nogil=True)
def _trusted(n: Any, extremes: Any) -> Any:
    odd = np.int32(0)
    for j in range(n):
        odd += np.int32(extremes[_ODD, j] != np.float32(0))
    return odd == 0


@njit(nogil=True)
def _carry(n: Any, f: Any, sums: Any, state: Any) -> None:
    """Add a tile's accumulators to the tally, and clear them."""
    for j in range(n):
        state.total[f + j] += sums[_SUM, j]
        state.zeros[f + j] += sums[_ZEROS, j]
        first = np.uint64(sums[_SQUARES, j])
        second = np.uint64(sums[_HIGH, j] & _LOW) << np.uint64(32)
        once = state.low[f + j] + first
        twice = once + second
        carried = np.int64(once < first) + np.int64(twice < second)
        state.high[f + j] += carried + (sums[_HIGH, j] >> np.int64(32))
        state.low[f + j] = twice
    sums[:] = 0


@njit(nogil=True)
def _tile_at(a: Any, n: Any, place: Any, base: Any, extremes: Any) -> Any:
    """Return the working arrays of a tile of ``n`` features."""
    tile = _Tile(
        np.empty((2, n), np.float32),
        base[a : a + n],
        np.zeros((3, n), np.float32),
        np.zeros((3, n), np.float32),
        np.zeros((4, n), np.int64),
        np.empty((_BLOCK, n), np.int32),
    )
    tile.place[:] = place[:, a : a + n]
    tile.extremes[:2] = extremes[:, a : a + n]
    return tile


# -- entries, compiled when this is imported -----------------------------------------------------------


_FLOATS = types.Array(types.float32, 2, "C", readonly=True)
_HALVES = types.Array(types.uint16, 2, "C", readonly=True)
"""What came over the wire is read-only, and other arrays may stand for such."""

_LIMITS = types.Array(types.float32, 1, "C", readonly=True)
"""Thresholds are shared with whoever asks for them."""

_COUNTING = types.void(
    _FLOATS, types.uint64, types.int32[::1], types.float32[:, ::1], types.int32[::1],
    types.float32[:, ::1], types.int64[::1], types.int64[::1], types.uint64[::1],
    types.int64[:, ::1], types.int64[::1], types.uint16[:, ::1], types.uint32[:, ::1],
    types.uint64[:, ::1], types.boolean, types.boolean, types.int32, types.int32,
)  # fmt: skip


@njit(_COUNTING, nogil=True, cache=True)
def _counting(
    x: Any, first: Any, copies: Any, place: Any, base: Any, extremes: Any, total: Any, high: Any,
    low: Any, odd: Any, zeros: Any, narrow: Any, wide: Any, widest: Any, weighed: Any, binned: Any,
    shift: Any, last: Any,
) -> None:  # fmt: skip
    """Count rows of the features from ``first`` on, tile by tile."""
    state = _State(total, high, low, odd, zeros, narrow, wide, widest)
    form = _Form(weighed, binned, shift, last)
    width = np.uint64(_TILE if binned else _WIDE_TILE)
    for a in range(np.uint64(0), np.uint64(x.shape[1]), width):
        n, f = min(width, np.uint64(x.shape[1]) - a), first + a
        tile = _tile_at(f, n, place, base, extremes)
        for r in range(np.uint64(0), np.uint64(x.shape[0]), np.uint64(_CARRY_ROWS)):
            here = copies[r : r + np.uint64(_CARRY_ROWS)]
            _rows(x, r, np.uint64(len(here)), a, n, f, here, tile, state, form)
        extremes[:, f : f + n] = tile.extremes[:2]


@njit(nogil=True)
def _float16(bits: Any) -> Any:
    """Return the value of a float16; ``_HALF_BIAS`` makes normal ones of its denormals too."""
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    whole = np.float32(np.uint32(size).view(np.float32) * _HALF_BIAS).view(np.uint32)
    whole = np.uint32(size | np.uint32(_INFINITE)) if size >= _HALF_INFINITE else whole
    return np.uint32(whole | ((bits & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)


@njit(
    types.void(_HALVES, types.uint64, types.boolean, types.float32[:, ::1]), nogil=True, cache=True
)
def _decode(x: Any, first: Any, half: Any, into: Any) -> None:
    """Read columns of float16 if ``half``, else of bfloat16, from their bits."""
    for r in range(np.uint64(into.shape[0])):
        for j in range(np.uint64(into.shape[1])):
            bits = np.uint32(x[r, first + j])
            wide = np.uint32(bits << np.uint32(16))
            into[r, j] = _float16(bits) if half else np.uint32(wide).view(np.float32)


@njit(nogil=True)
def _largest(x: Any, r: Any, largest: Any, maximum: Any) -> None:
    for j in range(np.uint64(len(largest))):
        value = x[r, j]
        largest[j] = value if value > largest[j] else largest[j]
        finite = value if value < np.float32(np.inf) else np.float32(-np.inf)
        maximum[j] = finite if finite > maximum[j] else maximum[j]


@njit(
    types.void(
        _FLOATS,
        types.int64[::1],
        types.float32[:, ::1],
        types.int64[:, ::1],
        types.float32[::1],
    ),
    nogil=True,
    cache=True,
)
def _exceed(x: Any, ends: Any, thresholds: Any, exceedances: Any, maximum: Any) -> None:
    """Count requests above thresholds ``(k, n)``; request ``q`` ends before row ``ends[q]``."""
    n, first = np.uint64(x.shape[1]), np.uint64(0)
    largest = np.empty(n, np.float32)
    for end in ends:
        largest[:] = -np.inf
        for r in range(first, np.uint64(end)):
            _largest(x, r, largest, maximum)
        for k in range(np.uint64(len(thresholds))):
            for j in range(n):
                exceedances[k, j] += np.int64(largest[j] > thresholds[k, j])
        first = np.uint64(end)


@njit(nogil=True)
def _above(x: Any, r: Any, a: Any, limits: Any, hits: Any) -> None:
    """Count eight rows that are a request each."""
    for j in range(np.uint64(len(limits))):
        limit, found = limits[j], np.int32(0)
        for i in range(_BLOCK):
            found += np.int32(x[r + i, a + j] > limit)
        hits[j] += found


@njit(nogil=True)
def _mark(x: Any, r: Any, a: Any, limits: Any, passed: Any) -> None:
    """Note which features are above their limits in one of eight rows of a request."""
    for j in range(np.uint64(len(limits))):
        limit, found = limits[j], passed[j]
        for i in range(_BLOCK):
            found |= np.int32(x[r + i, a + j] > limit)
        passed[j] = found


@njit(nogil=True)
def _mark_one(x: Any, r: Any, a: Any, limits: Any, passed: Any) -> None:
    for j in range(np.uint64(len(limits))):
        passed[j] |= np.int32(x[r, a + j] > limits[j])


@njit(nogil=True)
def _mark_last(x: Any, r: Any, a: Any, limits: Any, passed: Any, hits: Any) -> None:
    """Note the same of the last row of a request, and count the request."""
    for j in range(np.uint64(len(limits))):
        hits[j] += passed[j] | np.int32(x[r, a + j] > limits[j])
        passed[j] = 0


@njit(
    types.void(_FLOATS, types.uint8[::1], _LIMITS, types.int32[::1], types.int64[::1]),
    nogil=True,
    cache=True,
)
def _screen(x: Any, last: Any, thresholds: Any, passed: Any, exceedances: Any) -> None:
    """Count requests above thresholds; row ``r`` is the last of its request where ``last[r]``.

    What an unfinished request has passed is left in ``passed``, and taken from there.
    """
    tile, rows = np.uint64(_SCREEN_TILE), np.uint64(len(last))
    for a in range(np.uint64(0), np.uint64(x.shape[1]), tile):
        n = min(tile, np.uint64(x.shape[1]) - a)
        limits, seen, hits = thresholds[a : a + n], passed[a : a + n], np.zeros(n, np.int32)
        r, whole = np.uint64(0), False  # whether no request is unfinished before row r
        while r < rows:
            block = last[r : r + _BLOCK]
            ends = block.sum() if np.uint64(len(block)) == _BLOCK else np.uint64(1)
            if ends == _BLOCK and whole:
                _above(x, r, a, limits, hits)
                r += _BLOCK
            elif ends == 0:
                _mark(x, r, a, limits, seen)
                r += _BLOCK
                whole = False
            elif last[r]:
                _mark_last(x, r, a, limits, seen, hits)
                r += np.uint64(1)
                whole = True
            else:
                _mark_one(x, r, a, limits, seen)
                r += np.uint64(1)
                whole = False
        for j in range(n):
            exceedances[a + j] += hits[j]


def count(tally: Tally, values: Values, copies: NDArray[np.int64], grid: Grid) -> None:
    """See ``Kernels.count``."""
    _run(tally, values, copies, grid, binned=True)


def moments(tally: Tally, values: Values, copies: NDArray[np.int64], grid: Grid) -> None:
    """See ``Kernels.moments``."""
    _run(tally, values, copies, grid, binned=False)


def _run(
    tally: Tally, values: Values, copies: NDArray[np.int64], grid: Grid, *, binned: bool
) -> None:
    width = values.shape[1]
    extremes = np.stack((tally.minimum, tally.maximum))
    odd, zeros = np.zeros((2, width), np.int64), np.zeros(width, np.int64)
    arguments = (
        np.stack((grid.negated, scaling(grid.exponent))), grid.base, extremes,
        tally.sums, tally.squares_high, tally.squares_low, odd, zeros, *_by_width(tally.counts),
        bool(len(copies)), binned, np.int32(grid.shift), np.int32(grid.binning.half - 1),
    )  # fmt: skip
    for part, first, times in _parts(np.require(values, requirements=("C", "A")), copies):
        _counting(part, first, times, *arguments)
    tally.minimum, tally.maximum = extremes[0].copy(), extremes[1].copy()
    tally.zeros += zeros.astype(tally.zeros.dtype)
    if odd.any():
        tally.add_nonfinite(odd[0], odd[1], slice(None))


def _parts(
    values: Values, copies: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float32], int, NDArray[np.int32]]]:
    """Yield rows as float32, which feature is their first, and how often each counts.

    Halves are read a tile at a time, so that a core's cache still holds what it has read.
    """
    times = copies.astype(np.int32) if len(copies) else np.ones(len(values), np.int32)
    if values.dtype == np.float32:
        yield np.asarray(values, np.float32), 0, times
        return
    half, bits = values.dtype == np.float16, values.view(np.uint16)
    for top in range(0, len(bits), _READ_ROWS):
        rows = bits[top : top + _READ_ROWS]
        for first in range(0, bits.shape[1], _TILE):
            read = np.empty((len(rows), min(_TILE, bits.shape[1] - first)), np.float32)
            _decode(rows, first, half, read)
            yield read, first, times[top : top + _READ_ROWS]


def _by_width(counts: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return arrays of every width of counters, all empty but the one of the right width."""
    widths = (np.uint16, np.uint32, np.uint64)
    return tuple(counts if counts.dtype == width else np.empty((0, 1), width) for width in widths)


def exceed(
    values: Values,
    starts: NDArray[np.int64],
    indices: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    exceedances: NDArray[np.int64],
    maximum: NDArray[np.float32],
) -> None:
    """See ``Kernels.exceed``."""
    whole = len(indices) == values.shape[1] and np.array_equal(indices, np.arange(len(indices)))
    chosen = values if whole else values.take(indices, axis=1)
    seen = np.require(decoded(chosen), requirements=("C", "A"))
    found = np.zeros(thresholds.T.shape, np.int64)  # (k, n)
    most = np.full(len(indices), -np.inf, np.float32)
    _exceed(seen, np.append(starts[1:], len(seen)), thresholds.T.copy(), found, most)
    exceedances += found.T
    np.fmax(maximum, np.where(np.isneginf(most), np.float32(np.nan), most), out=maximum)


def screen(
    values: Values,
    starts: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    exceedances: NDArray[np.int64],
) -> None:
    """See ``Kernels.screen``."""
    last = np.zeros(len(values), np.uint8)
    last[starts[1:] - 1] = last[-1] = 1
    passed = np.zeros(values.shape[1], np.int32)
    seen = np.require(values, requirements=("C", "A"))
    if seen.dtype == np.float32:
        _screen(np.asarray(seen, np.float32), last, thresholds, passed, exceedances)
        return
    half, bits = seen.dtype == np.float16, seen.view(np.uint16)
    for top in range(0, len(bits), _SCREEN_ROWS):
        rows, ends = bits[top : top + _SCREEN_ROWS], last[top : top + _SCREEN_ROWS]
        for first in range(0, bits.shape[1], _SCREEN_TILE):
            part = slice(first, first + _SCREEN_TILE)
            read = np.empty((len(rows), len(thresholds[part])), np.float32)
            _decode(rows, first, half, read)
            _screen(read, ends, thresholds[part], passed[part], exceedances[part])
