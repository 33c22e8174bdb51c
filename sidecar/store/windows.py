"""Closed windows of flagged features as values, and as the bytes of a recording.

The format is described byte by byte in docs/recordings.md.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import CorruptState, InvalidName, ShapeMismatch
from sidecar.features import FeatureKey, LayerKey

MAGIC = b"SCREC\r\n\x1a"  # the line end shows a copy that went through a text conversion
MAJOR, MINOR = 1, 1

_SEGMENT = struct.Struct("<8sHH")  # magic, major, minor; then the CRC of these twelve bytes
_FRAME = struct.Struct("<IB")  # bytes of the body, kind; then the CRC of these and the body
_CHECK = struct.Struct("<I")
_TIME = struct.Struct("<d")

SEGMENT_HEAD_BYTES = _SEGMENT.size + _CHECK.size
FRAME_HEAD_BYTES = _FRAME.size + _CHECK.size

BODY_LIMIT_BYTES = 64 << 20
"""Most bytes of a body, also once it is unpacked: a window of a million features has fewer."""

_SHARES_SINCE = 1
"""Minor version from which on a subject holds shares of the baseline beside its rates."""

_LAST_SIDE = 2
"""Greatest code of a side: both."""

_FEATURE_LIMIT = 1 << 20
"""Most flagged features of a layer that a reader believes in."""

_PLAIN, _DEFLATED = 0, 1
_LEVEL = 6  # measured: 9 is slower and no smaller, 1 a fiftieth larger
_FLOATS: Mapping[int, np.dtype[Any]] = {4: np.dtype("<f4"), 8: np.dtype("<f8")}
_WHOLE, _SAME, _FLOAT = 0x00, 0x10, 0x20  # the high half of a form; the low half is the width
_VARINT_BYTES = 10  # of the largest 64-bit number


class Kind(IntEnum):
    """What a frame of a recording holds."""

    SUBJECT = 1
    WINDOW = 2


class _Column(IntEnum):
    """What an array of a body is; numbers are never used again."""

    INDICES = 1
    THRESHOLDS = 2
    BASELINE_RATE = 3
    FACTOR = 4
    JUDGED = 5
    LEVEL_RATES = 6
    BASELINE_SHARE = 7
    LEVEL_SHARES = 8
    SIDES = 9
    COMPARED = 20
    EXCEEDANCES = 21
    LEVEL_EXCEEDANCES = 22
    ROWS_BEYOND = 23
    MAXIMUM = 24
    MINIMUM = 25
    ZEROS = 26
    NONFINITE = 27
    SCREENED = 28


def _no_numbers() -> NDArray[np.float64]:
    return np.empty(0)


def _no_rates() -> NDArray[np.float64]:
    return np.empty((0, 0))


def _no_sides() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What the windows of one layer are about, for as long as none of it changes.

    Attributes:
        layer: Which layer.
        capture: Digest of how it is measured; windows of different ones are not comparable.
        window_seconds: Configured length of a window.
        quantile: Level of the baseline quantiles in ``thresholds``.
        indices: The flagged features in increasing order, shape ``(n,)``.
        thresholds: A request exceeds when one of its rows is beyond, shape ``(n,)``; NaN: no baseline.
        baseline_rate: Rate that is granted because of the baseline, shape ``(n,)``; NaN without one.
        baseline_share: Share of requests that exceed in the baseline, shape ``(n,)``; recordings before
            1.1 hold none, and it reads as the rate.
        factor: The flag's own minimum factor over the recent level, shape ``(n,)``; NaN: the policy's.
        judged: Whether the flag asks for the spike test, shape ``(n,)``.
        baseline: Names the baseline; empty without one.
        baseline_requests: Requests it was learned from.
        baseline_seconds: Seconds it covers.
        levels: Further quantile levels counted, shape ``(k,)``.
        level_rates: Rate that is granted at each of those, shape ``(n, k)``; NaN where the feature is
            not compared with that level.
        level_shares: Share of requests beyond each in the baseline, shape ``(n, k)``, as ``baseline_share``.
        sides: Where a request exceeds: 0 above the threshold, 1 below it, 2 on both sides, shape ``(n,)``;
            recordings before 1.1 hold none, and it reads as above.
    """

    layer: LayerKey
    capture: str
    window_seconds: float
    quantile: float
    indices: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    baseline_rate: NDArray[np.float64]
    baseline_share: NDArray[np.float64]
    factor: NDArray[np.float64]
    judged: NDArray[np.bool_]
    baseline: str = ""
    baseline_requests: int = 0
    baseline_seconds: float = 0.0
    levels: NDArray[np.float64] = field(default_factory=_no_numbers)
    level_rates: NDArray[np.float64] = field(default_factory=_no_rates)
    level_shares: NDArray[np.float64] = field(default_factory=_no_rates)
    sides: NDArray[np.int64] = field(default_factory=_no_sides)

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together; without levels the shape of their rates is mended."""
        n, k = len(self.indices), len(self.levels)
        for name in ("level_rates", "level_shares") if not k else ():
            object.__setattr__(self, name, np.empty((n, 0)))
        if not len(self.sides):
            object.__setattr__(self, "sides", np.zeros(n, np.int64))
        each = (
            self.indices,
            self.thresholds,
            self.baseline_rate,
            self.baseline_share,
            self.factor,
            self.judged,
            self.sides,
        )
        levels = (self.level_rates, self.level_shares)
        if {array.shape for array in each} != {(n,)} or {a.shape for a in levels} != {(n, k)}:
            raise ShapeMismatch(
                f"{self.layer}: arrays of {n} features and {k} levels have shapes "
                f"{[array.shape for array in (*each, *levels)]}"
            )

    def __len__(self) -> int:
        """Return the number of flagged features."""
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Screened:
    """One window of all features of a layer, in sum.

    Attributes:
        features: Features that were compared with a threshold each.
        requests: Requests that were compared.
        exceedances: Requests beyond, added up over the features.
    """

    features: int
    requests: int
    exceedances: int


@dataclass(frozen=True, slots=True, eq=False)
class WindowRecord:
    """One closed window of the flagged features of one layer.

    Attributes:
        subject: What it is about; the same object as long as nothing changed.
        at: Unix seconds of its end.
        flagged: Features tested for spikes then, over all layers; they share the false alarms.
        requests: Requests of the layer sampled.
        rows: Rows of the layer sampled.
        compared: Requests compared with each feature's threshold, shape ``(n,)``.
        exceedances: Those that exceeded, shape ``(n,)``.
        level_exceedances: Requests beyond the subject's further levels, shape ``(n, k)``.
        rows_beyond: Rows beyond each threshold, shape ``(n,)``; 0 where rows were not counted.
        maximum: Greatest finite value, shape ``(n,)``, float32; NaN without one.
        minimum: Least finite value, likewise.
        zeros: Rows that were exactly zero, shape ``(n,)``.
        nonfinite: NaN and infinite rows, shape ``(n,)``.
        screened: The layer in sum; None where it was not screened.
    """

    subject: Subject
    at: float
    flagged: int
    requests: int
    rows: int
    compared: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    level_exceedances: NDArray[np.int64]
    rows_beyond: NDArray[np.int64]
    maximum: NDArray[np.float32]
    minimum: NDArray[np.float32]
    zeros: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    screened: Screened | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the subject."""
        n, k = len(self.subject), len(self.subject.levels)
        each = [getattr(self, name) for name in _WINDOW_COLUMNS if name != "level_exceedances"]
        if {array.shape for array in each} != {(n,)} or self.level_exceedances.shape != (n, k):
            raise ShapeMismatch(
                f"window of {self.subject.layer}: arrays of {n} features and {k} levels have shapes "
                f"{[array.shape for array in (*each, self.level_exceedances)]}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of its own arrays."""
        return sum(int(getattr(self, name).nbytes) for name in _WINDOW_COLUMNS)


_WINDOW_COLUMNS: Mapping[str, tuple[_Column, type[np.generic]]] = {
    "compared": (_Column.COMPARED, np.int64),
    "exceedances": (_Column.EXCEEDANCES, np.int64),
    "level_exceedances": (_Column.LEVEL_EXCEEDANCES, np.int64),
    "rows_beyond": (_Column.ROWS_BEYOND, np.int64),
    "maximum": (_Column.MAXIMUM, np.float32),
    "minimum": (_Column.MINIMUM, np.float32),
    "zeros": (_Column.ZEROS, np.int64),
    "nonfinite": (_Column.NONFINITE, np.int64),
}


# -- frames ---------------------------------------------------------------------------------------


def segment_head() -> bytes:
    """Return the first bytes of a segment."""
    head = _SEGMENT.pack(MAGIC, MAJOR, MINOR)
    return head + _CHECK.pack(zlib.crc32(head))


def check_segment_head(data: bytes) -> None:
    """Refuse a segment that this release cannot read; a newer minor version it can.

    Raises:
        CorruptState: It is no recording, its head is damaged, or it has another major version.
    """
    magic, major, minor = _SEGMENT.unpack_from(data)
    (expected,) = _CHECK.unpack_from(data, _SEGMENT.size)
    if magic != MAGIC:
        raise CorruptState(f"starts with {magic!r}: no recording of a sidecar")
    if expected != zlib.crc32(data[: _SEGMENT.size]):
        raise CorruptState(
            "its head does not match its checksum: it was changed after it was written"
        )
    if major != MAJOR:
        raise CorruptState(
            f"recording format {major}.{minor}: this release reads {MAJOR}.x; read it with the release "
            "that wrote it"
        )


def frame(kind: Kind, body: bytes) -> bytes:
    """Return a body as it stands in a segment."""
    head = _FRAME.pack(len(body), kind)
    return head + _CHECK.pack(zlib.crc32(body, zlib.crc32(head))) + body


@dataclass(frozen=True, slots=True)
class Frames:
    """The whole frames of a segment.

    Attributes:
        frames: Kind and body of each, in order.
        lost_bytes: Bytes at the end in which there is no whole frame: a torn or damaged tail.
    """

    frames: tuple[tuple[int, bytes], ...]
    lost_bytes: int


def split_frames(data: bytes) -> Frames:
    """Return the frames of a segment up to the first that is cut short or damaged.

    Behind a damaged frame nothing is read: its length cannot be trusted.
    """
    found: list[tuple[int, bytes]] = []
    at = SEGMENT_HEAD_BYTES
    while len(data) - at >= FRAME_HEAD_BYTES:
        length, kind = _FRAME.unpack_from(data, at)
        (expected,) = _CHECK.unpack_from(data, at + _FRAME.size)
        begin, end = at + FRAME_HEAD_BYTES, at + FRAME_HEAD_BYTES + length
        body = data[begin:end]
        if end > len(data) or expected != zlib.crc32(body, zlib.crc32(data[at : at + _FRAME.size])):
            break
        found.append((kind, body))
        at = end
    return Frames(tuple(found), max(0, len(data) - at))


# -- bodies ---------------------------------------------------------------------------------------


def encode_subject(number: int, subject: Subject) -> bytes:
    """Return the body of a subject that windows of the segment will name by ``number``."""
    about = {
        "minor": MINOR,
        "layer": str(subject.layer.feature(0)),
        "features": len(subject),
        "capture": subject.capture,
        "window_seconds": subject.window_seconds,
        "quantile": subject.quantile,
        "baseline": subject.baseline,
        "baseline_requests": subject.baseline_requests,
        "baseline_seconds": subject.baseline_seconds,
        "levels": subject.levels.tolist(),
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    columns = _packed(
        (
            (_Column.INDICES, subject.indices),
            (_Column.THRESHOLDS, subject.thresholds),
            (_Column.BASELINE_RATE, subject.baseline_rate),
            (_Column.FACTOR, subject.factor),
            (_Column.JUDGED, subject.judged.astype(np.int64)),
            (_Column.LEVEL_RATES, subject.level_rates.T),
            (_Column.BASELINE_SHARE, subject.baseline_share),
            (_Column.LEVEL_SHARES, subject.level_shares.T),
            (_Column.SIDES, subject.sides),
        )
    )
    return _varint(number) + _varint(len(text)) + text + columns


def decode_subject(body: bytes) -> tuple[int, Subject]:
    """Return the number and the subject of a body.

    Raises:
        CorruptState: It is not what ``encode_subject`` makes.
    """
    try:
        number, at = _read_varint(body, 0)
        length, at = _read_varint(body, at)
        about = json.loads(body[at : at + length])
        n, levels = _sizes(about)
        columns = _unpacked(body[at + length :])
        if int(about.get("minor", 0)) < _SHARES_SINCE:
            columns = _as_shares(columns)
        rates, shares = (
            _floats(columns, one, n * len(levels)).reshape(len(levels), n).T
            for one in (_Column.LEVEL_RATES, _Column.LEVEL_SHARES)
        )
        return number, Subject(
            layer=FeatureKey.parse(about["layer"]).layer,
            capture=str(about["capture"]),
            window_seconds=float(about["window_seconds"]),
            quantile=float(about["quantile"]),
            indices=_numbers(columns, _Column.INDICES, n),
            thresholds=_floats(columns, _Column.THRESHOLDS, n),
            baseline_rate=_floats(columns, _Column.BASELINE_RATE, n),
            baseline_share=_floats(columns, _Column.BASELINE_SHARE, n),
            factor=_floats(columns, _Column.FACTOR, n),
            judged=_numbers(columns, _Column.JUDGED, n) > 0,
            baseline=str(about["baseline"]),
            baseline_requests=int(about["baseline_requests"]),
            baseline_seconds=float(about["baseline_seconds"]),
            levels=levels,
            level_rates=rates,
            level_shares=shares,
            sides=_sides(columns, n),
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
        InvalidName,
        ShapeMismatch,
    ) as error:
        raise CorruptState(f"a recorded subject cannot be read: {error!r}") from error


def _as_shares(columns: dict[int, tuple[int, bytes]]) -> dict[int, tuple[int, bytes]]:
    """Return the columns of an older release with its rates for shares: it knew no others."""
    older = {
        _Column.BASELINE_SHARE: columns.get(_Column.BASELINE_RATE),
        _Column.LEVEL_SHARES: columns.get(_Column.LEVEL_RATES),
    }
    return columns | {int(column): found for column, found in older.items() if found is not None}


def _sides(columns: Mapping[int, tuple[int, bytes]], n: int) -> NDArray[np.int64]:
    """Return the sides, once they are some that there are."""
    sides = _numbers(columns, _Column.SIDES, n)
    if np.any(sides > _LAST_SIDE):
        raise ValueError(f"side {int(sides.max())}: there are 0 to {_LAST_SIDE}")
    return sides


def _sizes(about: Mapping[str, Any]) -> tuple[int, NDArray[np.float64]]:
    """Return the number of features and the levels, once they are believable."""
    n, levels = int(about["features"]), np.array(about["levels"], np.float64)
    if not 0 <= n <= _FEATURE_LIMIT or levels.ndim != 1:
        raise ValueError(f"{n} features with levels of shape {levels.shape}")
    return n, levels


def encode_window(number: int, window: WindowRecord) -> bytes:
    """Return the body of a window of the subject that was given ``number``."""
    arrays: list[tuple[_Column, NDArray[Any]]] = [
        (column, getattr(window, name).T) for name, (column, _) in _WINDOW_COLUMNS.items()
    ]
    if window.screened is not None:
        seen = window.screened
        summed = np.array([seen.features, seen.requests, seen.exceedances], np.int64)
        arrays.append((_Column.SCREENED, summed))
    counts = (window.flagged, window.requests, window.rows)
    head = _varint(number) + _TIME.pack(window.at) + b"".join(_varint(count) for count in counts)
    return head + _packed(arrays)


def decode_window(body: bytes, subjects: Mapping[int, Subject]) -> WindowRecord:
    """Return the window of a body.

    Args:
        body: As ``encode_window`` makes it.
        subjects: The subjects of the segment so far by their numbers.

    Raises:
        CorruptState: It is something else, or of a subject that is not there.
    """
    try:
        number, at = _read_varint(body, 0)
        (ended,) = _TIME.unpack_from(body, at)
        at += _TIME.size
        flagged, at = _read_varint(body, at)
        requests, at = _read_varint(body, at)
        rows, at = _read_varint(body, at)
        subject = subjects[number]
        n, k = len(subject), len(subject.levels)
        columns = _unpacked(body[at:])
        arrays: dict[str, Any] = {}
        for name, (column, kind) in _WINDOW_COLUMNS.items():
            size = n * k if name == "level_exceedances" else n
            read = _floats if kind is np.float32 else _numbers
            arrays[name] = read(columns, column, size).astype(kind)
        arrays["level_exceedances"] = arrays["level_exceedances"].reshape(k, n).T
        arrays["screened"] = _screened(columns.get(_Column.SCREENED))
        return WindowRecord(subject, ended, flagged, requests, rows, **arrays)
    except (ValueError, KeyError, TypeError, OverflowError, struct.error, ShapeMismatch) as error:
        raise CorruptState(f"a recorded window cannot be read: {error!r}") from error


def _screened(found: tuple[int, bytes] | None) -> Screened | None:
    if found is None:
        return None
    features, requests, exceedances = _integers(*found, 3).tolist()
    return Screened(features, requests, exceedances)


# -- columns --------------------------------------------------------------------------------------


def _packed(columns: Any) -> bytes:
    """Return arrays as a block of columns, deflated where that makes it smaller.

    Whole numbers are never negative. An array of zeros, or of NaN, is left out: a column that is not
    there reads as that.
    """
    block = b"".join(_column(number, np.asarray(array)) for number, array in columns)
    deflated = zlib.compress(block, _LEVEL)
    if len(deflated) < len(block):
        return bytes([_DEFLATED]) + deflated
    return bytes([_PLAIN]) + block


def _column(number: int, array: NDArray[Any]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1)
    floats = flat.dtype.kind == "f"
    if not flat.size or (np.isnan(flat).all() if floats else not flat.any()):
        return b""
    if floats:
        width, form = flat.itemsize, _FLOAT
        flat = flat.astype(_FLOATS[width])
    else:
        width, form = _width(int(flat.max())), _WHOLE
        flat = flat.astype(np.dtype(f"<u{width}"))
    if (flat == flat[0]).all():
        flat, form = flat[:1], form | _SAME
    payload = flat.view(np.uint8).reshape(-1, width).T.tobytes()
    return bytes([number, form | width]) + _varint(len(payload)) + payload


def _width(largest: int) -> int:
    return next(width for width in (1, 2, 4, 8) if largest < 256**width)


def _unpacked(block: bytes) -> dict[int, tuple[int, bytes]]:
    """Return form and payload of each column by its number; those of newer releases are there too.

    Raises:
        ValueError: It is no block of columns.
    """
    if not block:
        raise ValueError("no columns")
    data = block[1:]
    if block[0] == _DEFLATED:
        data = _inflated(data)
    elif block[0] != _PLAIN:
        raise ValueError(f"columns packed in way {block[0]}")
    found: dict[int, tuple[int, bytes]] = {}
    at = 0
    while at < len(data):
        if len(data) - at < 3:  # noqa: PLR2004 - number, form and a length
            raise ValueError("a column is cut short")
        number, form = data[at], data[at + 1]
        length, at = _read_varint(data, at + 2)
        if at + length > len(data):
            raise ValueError("a column is cut short")
        found[number] = (form, data[at : at + length])
        at += length
    return found


def _inflated(data: bytes) -> bytes:
    try:
        unpacking = zlib.decompressobj()
        found = unpacking.decompress(data, BODY_LIMIT_BYTES)
    except zlib.error as error:
        raise ValueError(f"deflated columns: {error}") from error
    if not unpacking.eof:
        raise ValueError(f"deflated columns are cut short, or larger than {BODY_LIMIT_BYTES} bytes")
    return found


def _numbers(
    columns: Mapping[int, tuple[int, bytes]], column: _Column, size: int
) -> NDArray[np.int64]:
    if column not in columns:
        return np.zeros(size, np.int64)
    return _integers(*columns[column], size)


def _integers(form: int, payload: bytes, size: int) -> NDArray[np.int64]:
    width = form & 0x0F
    if form & 0xF0 & ~_SAME != _WHOLE or width not in (1, 2, 4, 8):
        raise ValueError(f"whole numbers in form {form:#x}")
    found = _restored(payload, np.dtype(f"<u{width}"), form, size)
    if len(found) and found.max() > np.iinfo(np.int64).max:
        raise ValueError("a number beyond 2**63")
    return found.astype(np.int64)


def _floats(
    columns: Mapping[int, tuple[int, bytes]], column: _Column, size: int
) -> NDArray[np.float64]:
    if column not in columns:
        return np.full(size, np.nan)
    form, payload = columns[column]
    width = form & 0x0F
    if form & 0xF0 & ~_SAME != _FLOAT or width not in _FLOATS:
        raise ValueError(f"floats in form {form:#x}")
    return _restored(payload, _FLOATS[width], form, size).astype(np.float64)


def _restored(payload: bytes, dtype: np.dtype[Any], form: int, size: int) -> NDArray[Any]:
    """Return the numbers of a column, whose lowest bytes come first, then the next, and so on."""
    wanted = 1 if form & _SAME else size
    if len(payload) != wanted * dtype.itemsize:
        raise ValueError(f"{len(payload)} bytes in a column of {wanted} times {dtype.itemsize}")
    planes = np.frombuffer(payload, np.uint8).reshape(dtype.itemsize, wanted)
    found = np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
    return np.repeat(found, size) if form & _SAME else found


def _varint(value: int) -> bytes:
    """Return a whole number in base 128, lowest digit first; the high bit says that more follow."""
    if value < 0:
        raise ValueError(f"{value} is negative: counts are not")
    found = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - the largest digit
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(data):
            break
        digit = data[at + place]
        value |= (digit & 0x7F) << (7 * place)
        if digit <= 0x7F:  # noqa: PLR2004 - the last digit
            return value, at + place + 1
    raise ValueError("a number is cut short")


def subjects_and_windows(frames: Frames) -> Iterator[WindowRecord | None]:
    """Yield the windows of a segment; None for a frame that cannot be read.

    Frames of kinds that this release does not know are passed over.
    """
    subjects: dict[int, Subject] = {}
    for kind, body in frames.frames:
        try:
            if kind == Kind.SUBJECT:
                number, subject = decode_subject(body)
                subjects[number] = subject
            elif kind == Kind.WINDOW:
                yield decode_window(body, subjects)
        except CorruptState:
            yield None
