"""Distributions as bytes: one compressed block of arrays with a magic, a version and a checksum.

Counts are cut to the occupied bins and stored in the narrowest type that holds them, as differences
from bin to bin with the sign in the lowest bit, because neighbouring bins have like counts; and the
bytes of equal significance are put side by side. That is what makes a fast compressor do well.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import CorruptState, InvalidInput
from sidecar.stats.binning import Binning, Grid
from sidecar.stats.distribution import Distribution
from sidecar.stats.tally import Tally

_MAGIC = b"SCST"
_VERSION = 2
_HEAD = struct.Struct("<4sH4sQI")
"""Magic, version, what it holds, length before compression, CRC-32 of all else and the body."""

_LENGTH = struct.Struct("<I")
_DISTRIBUTION = b"dist"

_UNLIMITED = (1 << 64) - 1
_MOST_ROWS = 1 << 62

_LEVEL, _SMALL_LEVEL = 1, 6
"""Of zlib: 23 us a feature at the second, 10 at the first, for a tenth less."""

_TABLE = 2
"""Dimensions of arrays whose rows are counters of neighbouring bins."""

_DTYPES = frozenset({"u1", "u2", "u4", "u8", "i4", "i8", "f4", "f8"})
_UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
_SIGNED = ("sums", "squares_high", "squares_low", "minimum", "maximum")
_SPAN = ("rows", "sampled", "requests", "started", "ended")

Arrays = dict[str, NDArray[Any]]


def encode(distribution: Distribution) -> bytes:
    """Return the distribution as bytes that ``decode`` turns back into an equal one.

    Complexity:
        275 to 340 bytes a feature for 65,536 values each, normal, t3, t4 or lognormal; 400 where they
        have so heavy a tail (t1.5) that all bins are occupied; less for fewer. Some 20 us a feature.
    """
    arrays: Arrays = {"centre": distribution.centre, "exponent": distribution.exponent}
    header = {
        "mantissa_bits": distribution.binning.mantissa_bits,
        "octaves": distribution.binning.octaves,
        "span": put_counters(arrays, "", Tally.of(distribution)),
    }
    return pack(_DISTRIBUTION, header, arrays, small=True)


def decode(payload: bytes) -> Distribution:
    """Return what ``encode`` was given; its arrays are read-only.

    Raises:
        CorruptState: The bytes are not what ``encode`` makes: cut short, changed, or another format.
    """
    with corrupt_unless_read("distribution"):
        header, arrays = unpack(_DISTRIBUTION, payload)
        binning = Binning(header["mantissa_bits"], header["octaves"])
        centre = arrays["centre"]
        tally = take_counters(arrays, "", header["span"], len(centre), binning.bins)
        grid = Grid(binning, typed(centre, np.float32), typed(arrays["exponent"], np.int32))
        return tally.distribution(grid)


def put_counters(arrays: Arrays, prefix: str, tally: Tally) -> dict[str, Any]:
    """Add the arrays of a tally under ``prefix``; return its plain numbers."""
    for name in _SIGNED:
        arrays[prefix + name] = getattr(tally, name).copy()
    arrays[prefix + "zeros"] = _narrowed(tally.zeros)
    if tally.odd is not None:
        arrays[prefix + "odd"] = _narrowed(tally.odd)
    occupied = np.flatnonzero(tally.counts.any(axis=0))
    first, end = (int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else (0, 0)
    arrays[prefix + "counts"] = _narrowed(tally.counts[:, first:end])
    return {"first": first, **{name: getattr(tally, name) for name in _SPAN}}


def take_counters(
    arrays: Arrays, prefix: str, span: Mapping[str, Any], width: int, bins: int
) -> Tally:
    """Return the tally that ``put_counters`` was given.

    Raises:
        ValueError: The arrays do not describe ``width`` features and ``bins`` bins.
        KeyError: One is missing.
    """
    tally = Tally.empty(width, bins)
    for name in _SPAN:
        setattr(tally, name, type(getattr(tally, name))(span[name]))
    _check_span(tally, prefix)
    tally.reserve(tally.rows)
    for name in _SIGNED:
        found = _shaped(arrays, prefix + name, (width,))
        setattr(tally, name, typed(found, getattr(tally, name).dtype.type).copy())
    tally.zeros = _counter(arrays, prefix + "zeros", (width,)).astype(tally.zeros.dtype)
    if prefix + "odd" in arrays:
        tally.odd = _counter(arrays, prefix + "odd", (2, width)).astype(np.int64)
    kept, first = arrays[prefix + "counts"], int(span["first"])
    if kept.dtype.kind != "u":
        raise ValueError(f"{prefix}counts are {kept.dtype}")
    if kept.shape != (width, kept.shape[-1]) or not 0 <= first <= bins - kept.shape[-1]:
        raise ValueError(f"{prefix}counts of shape {kept.shape} from bin {first} of {bins}")
    tally.counts[:, first : first + kept.shape[-1]] = kept
    if np.any(tally.counts.sum(axis=1) != tally.rows - tally.nans - tally.infinities):
        raise ValueError(f"{prefix}counts do not add up to {tally.rows} rows")
    _check_extremes(tally, prefix)
    return tally


def take_grid(arrays: Arrays, prefix: str, binning: Binning, width: int) -> Grid:
    """Return the grid whose centres and exponents were put under ``prefix``.

    Raises:
        ValueError: The arrays do not place the bins of ``width`` features.
        KeyError: One is missing.
    """
    centre = typed(_shaped(arrays, prefix + "centre", (width,)), np.float32)
    exponent = typed(_shaped(arrays, prefix + "exponent", (width,)), np.int32)
    if not np.isfinite(centre).all():
        raise ValueError(f"{prefix}centre {centre[~np.isfinite(centre)][0]} is not finite")
    lowest, highest = binning.exponents
    if width and not lowest <= exponent.min() <= exponent.max() <= highest:
        raise ValueError(f"{prefix}exponent {exponent}: need {lowest} to {highest}")
    return Grid(binning, centre, exponent)


def _check_span(tally: Tally, prefix: str) -> None:
    if not 0 <= tally.requests <= tally.sampled <= tally.rows <= _MOST_ROWS:
        raise ValueError(
            f"{prefix}{tally.requests} requests in {tally.sampled} of {tally.rows} rows"
        )
    if not (math.isfinite(tally.started) and math.isfinite(tally.ended)):
        raise ValueError(f"{prefix}from {tally.started} to {tally.ended}")


def _check_extremes(tally: Tally, prefix: str) -> None:
    """Raise ValueError unless just those features have finite extremes that have finite values."""
    some = tally.nans + tally.infinities < tally.rows
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(tally.maximum - tally.minimum.astype(np.float64))
    if np.any(sound != some) or np.any(tally.minimum[some] > tally.maximum[some]):
        raise ValueError(f"{prefix}minimum and maximum are not those of {tally.rows} rows")


def _counter(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    found = _shaped(arrays, name, shape)
    if found.dtype.kind != "u":
        raise ValueError(f"{name} is {found.dtype}, need counters")
    return found


def _shaped(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    found = arrays[name]
    if found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}, need {shape}")
    return found


def typed(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Return the array if it has this dtype.

    Raises:
        ValueError: It has another.
    """
    if array.dtype != dtype:
        raise ValueError(f"array is {array.dtype}, need {np.dtype(dtype)}")
    return array


def pack(kind: bytes, header: Mapping[str, Any], arrays: Arrays, *, small: bool = False) -> bytes:
    """Return a header and named arrays as one checksummed, compressed block.

    Args:
        kind: Four bytes that say what is inside; ``unpack`` must be given the same.
        header: JSON-able.
        arrays: Of unsigned, int32, int64 or floating dtype.
        small: Whether to take twice as long for a tenth less: for what is sent or kept for good, and
            not for what is written over every few seconds.
    """
    little = {name: np.ascontiguousarray(_little(array)) for name, array in arrays.items()}
    table = [[name, array.dtype.str[1:], array.shape] for name, array in little.items()]
    text = json.dumps({"header": header, "arrays": table}, separators=(",", ":")).encode()
    parts = [_LENGTH.pack(len(text)), text, *(_shuffled(_stepped(a)) for a in little.values())]
    raw = b"".join(parts)
    # Steps between counts are mostly small and random: what the filtered strategy is made for.
    squeezer = zlib.compressobj(
        _SMALL_LEVEL if small else _LEVEL, strategy=zlib.Z_FILTERED, memLevel=9
    )
    body = squeezer.compress(raw) + squeezer.flush()
    head = _HEAD.pack(_MAGIC, _VERSION, kind, len(raw), 0)
    return _HEAD.pack(_MAGIC, _VERSION, kind, len(raw), zlib.crc32(body, zlib.crc32(head))) + body


def unpack(kind: bytes, payload: bytes, limit: int = _UNLIMITED) -> tuple[dict[str, Any], Arrays]:
    """Return what ``pack`` was given; arrays are read-only.

    Args:
        kind: As ``pack`` was given it.
        payload: What it returned.
        limit: Most bytes that it may be before compression.

    Raises:
        CorruptState: Magic, version, kind, length or checksum is wrong.
        ValueError: The checksum is right and the content is not; so may KeyError and TypeError.
    """
    raw = _checked(kind, payload, limit)
    (length,) = _LENGTH.unpack_from(raw)
    document = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
    arrays: Arrays = {}
    at = _LENGTH.size + length
    for name, dtype, shape in document["arrays"]:
        array, at = _unshuffled(raw, at, dtype, tuple(shape))
        arrays[name] = array
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes after the last array")
    return document["header"], arrays


@contextmanager
def corrupt_unless_read(what: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading state into ``CorruptState``."""
    try:
        yield
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
        struct.error,
        zlib.error,
        InvalidInput,
    ) as error:
        raise CorruptState(f"{what} cannot be read back: {error!r}") from error


def _checked(kind: bytes, payload: bytes, limit: int) -> bytes:
    """Return the uncompressed block of a payload whose head and checksum are right."""
    if len(payload) < _HEAD.size:
        raise CorruptState(f"{len(payload)} bytes: shorter than the head of {_HEAD.size}")
    magic, version, found, length, crc = _HEAD.unpack_from(payload)
    if (magic, version, found) != (_MAGIC, _VERSION, kind):
        raise CorruptState(
            f"starts with {magic!r} version {version} {found!r}, need {_MAGIC!r} version {_VERSION} "
            f"{kind!r}"
        )
    if length > limit:
        raise CorruptState(f"block of {length} bytes: need at most {limit}")
    body = payload[_HEAD.size :]
    head = _HEAD.pack(magic, version, found, length, 0)
    if zlib.crc32(body, zlib.crc32(head)) != crc:
        raise CorruptState("checksum is wrong: the bytes were cut short or changed")
    reader = zlib.decompressobj()
    raw = reader.decompress(body, length + 1)  # never more than what the head promised
    if len(raw) != length or not reader.eof or reader.unused_data:
        raise CorruptState(f"block is not {length} bytes long")
    return raw


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    most = int(array.max(initial=0))
    return array.astype(next(kind for kind in _UNSIGNED if most <= np.iinfo(kind).max))


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _stepped(array: NDArray[Any]) -> NDArray[Any]:
    """Replace counters by the steps between neighbours: 0, -1, 1, -2 … become 0, 1, 2, 3 …."""
    if array.ndim != _TABLE or array.dtype.kind != "u":
        return array
    steps = np.diff(array, axis=1, prepend=np.zeros((len(array), 1), array.dtype)).view(
        f"<i{array.itemsize}"
    )
    return np.asarray(((steps << 1) ^ (steps >> (8 * array.itemsize - 1))).view(array.dtype))


def _summed(array: NDArray[Any]) -> NDArray[Any]:
    """Undo ``_stepped``."""
    if array.ndim != _TABLE or array.dtype.kind != "u":
        return array
    one = array.dtype.type(1)
    steps = (array >> one) ^ (~(array & one) + one)
    return np.cumsum(steps, axis=1, dtype=array.dtype)


def _shuffled(array: NDArray[Any]) -> bytes:
    octets = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)  # (values, itemsize)
    return octets.T.tobytes()


def _unshuffled(
    raw: bytes, at: int, dtype: str, shape: tuple[int, ...]
) -> tuple[NDArray[Any], int]:
    """Return the array that begins at byte ``at``, and where the next one begins."""
    if dtype not in _DTYPES or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"array of {dtype!r} with shape {shape}")
    kind = np.dtype("<" + dtype)
    size = int(np.prod(shape, dtype=object))
    octets = np.frombuffer(raw, np.uint8, size * kind.itemsize, at).reshape(kind.itemsize, size)
    array = np.ascontiguousarray(octets.T).reshape(-1).view(kind).reshape(shape)
    array = _summed(array.astype(kind.newbyteorder("="), copy=False))
    array.setflags(write=False)
    return array, at + size * kind.itemsize
