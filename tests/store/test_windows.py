"""The bytes of a recording: what goes in comes out, and what is damaged is found."""

import contextlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import CorruptState, ShapeMismatch
from sidecar.features import FeatureKind, LayerKey, Scope, View
from sidecar.store import Screened, Subject, WindowRecord
from sidecar.store.windows import (
    FRAME_HEAD_BYTES,
    SEGMENT_HEAD_BYTES,
    Kind,
    check_segment_head,
    decode_subject,
    decode_window,
    encode_subject,
    encode_window,
    frame,
    segment_head,
    split_frames,
    subjects_and_windows,
)

pytestmark = pytest.mark.unit

LAYER = LayerKey("tiny", "v1", "conv")


def subject(n: int = 2, levels: tuple[float, ...] = (0.99,), **changes: Any) -> Subject:
    """A layer of ``n`` flagged features."""
    given = {
        "layer": LAYER,
        "capture": "c0ffee",
        "window_seconds": 10.0,
        "quantile": 0.999,
        "indices": np.arange(n) * 3,
        "thresholds": np.linspace(1.0, 2.0, n),
        "baseline_rate": np.full(n, 0.015),
        "baseline_share": np.full(n, 0.01),
        "factor": np.full(n, np.nan),
        "judged": np.ones(n, np.bool_),
        "baseline": "abc",
        "baseline_requests": 10_000,
        "baseline_seconds": 3600.0,
        "levels": np.array(levels),
        "level_rates": np.full((n, len(levels)), 0.1),
        "level_shares": np.full((n, len(levels)), 0.05),
    }
    return Subject(**(given | changes))


def window(of: Subject, at: float = 1000.0, **changes: Any) -> WindowRecord:
    """A window of a subject."""
    n, k = len(of), len(of.levels)
    given = {
        "flagged": n,
        "requests": 64,
        "rows": 1024,
        "compared": np.full(n, 64),
        "exceedances": np.arange(n) % 60,
        "level_exceedances": np.arange(n * k).reshape(n, k) % 60,
        "rows_beyond": np.arange(n) % 60 * 2,
        "maximum": np.linspace(3.0, 4.0, n).astype(np.float32),
        "minimum": np.full(n, np.nan, np.float32),
        "zeros": np.zeros(n, np.int64),
        "nonfinite": np.zeros(n, np.int64),
    }
    return WindowRecord(of, at, **(given | changes))


def same(a: Subject | WindowRecord, b: Subject | WindowRecord) -> bool:
    """Whether all but the subject of a window is equal."""

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, np.ndarray):
            return one.dtype == other.dtype and np.array_equal(
                one, other, equal_nan=one.dtype.kind == "f"
            )
        return bool(one == other)

    names = [name for name in type(a).__slots__ if name != "subject"]
    return all(equal(getattr(a, name), getattr(b, name)) for name in names)


def test_the_bytes_are_those_of_the_document() -> None:
    """The format is a promise to other programs: a change of it is a new version."""
    known = {"thresholds": np.array([1.5]), "baseline_rate": np.array([0.25])}
    of = subject(1, levels=(), **known, baseline_share=np.array([0.125]), sides=np.array([2]))
    record = window(of, 2.0, maximum=np.array([3.0], np.float32), exceedances=np.array([3]))
    about = (
        b'{"baseline":"abc","baseline_requests":10000,"baseline_seconds":3600.0,"capture":"c0ffee",'
        b'"features":1,"layer":"tiny@v1/conv/channel/0","levels":[],"minor":1,'
        b'"quantile":0.999,'
        b'"window_seconds":10.0}'
    )
    columns = [
        b"\x02\x38\x08" + struct.pack("<d", 1.5),  # threshold, a float for all
        b"\x03\x38\x08" + struct.pack("<d", 0.25),
        b"\x05\x11\x01\x01",
        b"\x07\x38\x08" + struct.pack("<d", 0.125),
        b"\x09\x11\x01\x02",
    ]
    named = b"\x00" + bytes([0x80 | len(about) & 0x7F, len(about) >> 7]) + about
    counted = b"\x00" + struct.pack("<d", 2.0) + b"\x01\x40\x80\x08"
    counts = [
        b"\x14\x11\x01\x40",  # 64 requests compared
        b"\x15\x11\x01\x03",
        b"\x18\x34\x04" + struct.pack("<f", 3.0),
    ]
    head = b"SCREC\r\n\x1a\x01\x00\x01\x00"

    assert head + struct.pack("<I", zlib.crc32(head)) == segment_head()
    body = encode_subject(0, of)
    assert named + b"\x01" == body[: len(named) + 1]
    assert b"".join(columns) == zlib.decompress(body[len(named) + 1 :])
    assert counted + b"\x00" + b"".join(counts) == encode_window(0, record)
    assert (
        b"\x02\x00\x00\x00\x02" + struct.pack("<I", zlib.crc32(b"\x02\x00\x00\x00\x02hi")) + b"hi"
    ) == frame(Kind.WINDOW, b"hi")


def test_a_recording_of_before_shares_reads_its_rates_as_such() -> None:
    """Format 1.0 held what was granted alone, and everything as if it exceeded above."""
    about = (
        b'{"baseline":"abc","baseline_requests":10000,"baseline_seconds":3600.0,"capture":"c0ffee",'
        b'"features":2,"layer":"tiny@v1/conv/channel/0","levels":[0.99],"quantile":0.999,'
        b'"window_seconds":10.0}'
    )
    columns = b"".join(
        (
            b"\x01\x01\x02\x03\x05",
            b"\x03\x38\x08" + struct.pack("<d", 0.25),
            b"\x06\x38\x08" + struct.pack("<d", 0.5),
        )
    )
    named = b"\x00" + bytes([0x80 | len(about) & 0x7F, len(about) >> 7]) + about

    _, found = decode_subject(named + b"\x00" + columns)

    assert [0.25, 0.25] == found.baseline_rate.tolist() == found.baseline_share.tolist()
    assert [[0.5], [0.5]] == found.level_rates.tolist() == found.level_shares.tolist()
    assert [0, 0] == found.sides.tolist()


def test_a_side_that_there_is_not_is_refused() -> None:
    """As everything else that no release writes."""
    body = encode_subject(0, subject(1, sides=np.array([3])))

    with pytest.raises(CorruptState, match="side 3"):
        decode_subject(body)


def test_numbers_of_several_bytes_lie_plane_by_plane() -> None:
    """The lowest bytes of all come first; that is what makes them compress."""
    record = window(subject(2, levels=()), exceedances=np.array([0x0102, 0x0304]))
    record = window(record.subject, compared=np.array([0x0102, 0x0304]), flagged=300)

    body = encode_window(0, record)

    assert b"\x14\x02\x04\x02\x04\x01\x03" in body


counts = st.integers(0, 2**63 - 1)
floats = st.floats(allow_nan=True, width=64)


@st.composite
def records(draw: st.DrawFn) -> WindowRecord:
    """Any window that can be."""
    n, k = draw(st.integers(0, 5)), draw(st.integers(0, 3))

    def array(values: st.SearchStrategy[Any], dtype: Any, *shape: int) -> Any:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype).reshape(shape)

    layer = LayerKey(
        draw(st.sampled_from(["a", "model.b-1"])),
        draw(st.sampled_from(["v1", "0" * 64])),
        draw(st.sampled_from(["l", "blocks.3:x"])),
        draw(st.sampled_from(FeatureKind)),
        draw(st.sampled_from(View)),
        draw(st.sampled_from(Scope)),
    )
    small = st.floats(width=32, allow_nan=True)
    of = Subject(
        layer=layer,
        capture=draw(st.text(max_size=5)),
        window_seconds=draw(st.floats(0.01, 1e6)),
        quantile=draw(st.floats(0, 1)),
        indices=array(counts, np.int64, n),
        thresholds=array(floats, np.float64, n),
        baseline_rate=array(floats, np.float64, n),
        baseline_share=array(floats, np.float64, n),
        factor=array(floats, np.float64, n),
        judged=array(st.booleans(), np.bool_, n),
        baseline=draw(st.text(max_size=5)),
        baseline_requests=draw(counts),
        baseline_seconds=draw(st.floats(0, 1e9)),
        levels=array(st.floats(0, 1), np.float64, k),
        level_rates=array(floats, np.float64, n, k),
        level_shares=array(floats, np.float64, n, k),
        sides=array(st.integers(0, 2), np.int64, n),
    )
    return WindowRecord(
        of,
        draw(st.floats(allow_nan=False, allow_infinity=False)),
        *(draw(counts) for _ in range(3)),
        compared=array(counts, np.int64, n),
        exceedances=array(counts, np.int64, n),
        level_exceedances=array(counts, np.int64, n, k),
        rows_beyond=array(counts, np.int64, n),
        maximum=array(small, np.float32, n),
        minimum=array(small, np.float32, n),
        zeros=array(counts, np.int64, n),
        nonfinite=array(counts, np.int64, n),
        screened=draw(st.none() | st.builds(Screened, counts, counts, counts)),
    )


@given(record=records(), number=st.integers(0, 2**32))
def test_what_is_encoded_comes_back(record: WindowRecord, number: int) -> None:
    """Every number of a subject and of a window is there again, to the last bit."""
    found, of = decode_subject(encode_subject(number, record.subject))
    back = decode_window(encode_window(number, record), {number: of})

    assert number == found
    assert same(record.subject, of)
    assert same(record, back)


@given(body=st.binary(max_size=200))
def test_any_other_bytes_are_refused(body: bytes) -> None:
    """Garbage that passes a checksum is a ``CorruptState``, and nothing else."""
    for read in (decode_subject, lambda data: decode_window(data, {0: subject()})):
        with contextlib.suppress(CorruptState):
            read(body)


@given(record=records(), place=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_read(record: WindowRecord, place: int, change: int) -> None:
    """Behind a checksum that was made to fit, too, a reader does nothing but refuse or read."""
    for whole, read in (
        (encode_subject(0, record.subject), decode_subject),
        (encode_window(0, record), lambda data: decode_window(data, {0: record.subject})),
    ):
        damaged = bytearray(whole)
        damaged[place % len(whole)] ^= change
        with contextlib.suppress(CorruptState):
            read(bytes(damaged))


@given(cut=st.integers(0, 400))
def test_a_torn_tail_costs_no_whole_frame(cut: int) -> None:
    """Wherever a write was cut off, all frames before it are read, and the rest is counted."""
    frames = [frame(Kind.WINDOW, bytes([i]) * (20 * i)) for i in range(1, 5)]
    data = segment_head() + b"".join(frames)
    torn = data[: max(SEGMENT_HEAD_BYTES, len(data) - cut)]

    found = split_frames(torn)

    whole, at = 0, SEGMENT_HEAD_BYTES
    for one in frames:
        if at + len(one) > len(torn):
            break
        whole, at = whole + 1, at + len(one)
    assert whole == len(found.frames)
    assert len(torn) - at == found.lost_bytes


@given(place=st.integers(0), change=st.integers(1, 255))
def test_a_damaged_frame_ends_what_is_read(place: int, change: int) -> None:
    """One flipped byte is found by the checksum, wherever it is."""
    frames = [frame(Kind.WINDOW, bytes([i]) * 20) for i in range(4)]
    data = bytearray(segment_head() + b"".join(frames))
    at = SEGMENT_HEAD_BYTES + place % (len(data) - SEGMENT_HEAD_BYTES)
    data[at] ^= change

    found = split_frames(bytes(data))

    assert (at - SEGMENT_HEAD_BYTES) // (FRAME_HEAD_BYTES + 20) == len(found.frames)
    assert found.lost_bytes > 0


def test_another_major_version_is_refused_and_a_newer_minor_read() -> None:
    """What a newer release adds is passed over; what it changed is said."""
    newer = struct.pack("<8sHH", b"SCREC\r\n\x1a", 1, 7)
    other = struct.pack("<8sHH", b"SCREC\r\n\x1a", 2, 0)

    check_segment_head(newer + struct.pack("<I", zlib.crc32(newer)))
    with pytest.raises(CorruptState, match=r"format 2\.0: this release reads 1\.x"):
        check_segment_head(other + struct.pack("<I", zlib.crc32(other)))
    with pytest.raises(CorruptState, match="no recording of a sidecar"):
        check_segment_head(b"PK\x03\x04" + bytes(20))
    with pytest.raises(CorruptState, match="does not match its checksum"):
        check_segment_head(newer + bytes(4))


def test_columns_and_kinds_of_newer_releases_are_passed_over() -> None:
    """A reader of today reads what it knows of a recording of tomorrow."""
    of = subject(1, levels=())
    extra = b"\xc8\x01\x03abc"  # column 200
    newer = encode_window(0, window(of)) + extra
    data = segment_head() + frame(Kind.SUBJECT, encode_subject(0, of))
    data += frame(9, b"?") + frame(Kind.WINDOW, newer)  # type: ignore[arg-type] - a kind of tomorrow

    found = list(subjects_and_windows(split_frames(data)))

    assert 1 == len(found)
    assert found[0] is not None
    assert same(window(of), found[0])


def test_a_window_whose_subject_is_missing_is_unreadable() -> None:
    """It is counted as that; its numbers would be nobody's."""
    data = segment_head() + frame(Kind.WINDOW, encode_window(5, window(subject())))

    assert [None] == list(subjects_and_windows(split_frames(data)))


def test_a_bomb_is_refused() -> None:
    """A few kilobytes that would unpack to more than any window are not unpacked."""
    body = b"\x00" + bytes(8) + b"\x01\x01\x01" + b"\x01" + zlib.compress(bytes(80 << 20))

    with pytest.raises(CorruptState, match="larger than"):
        decode_window(body, {0: subject()})


@pytest.mark.parametrize("claim", [b"1000000000000", b"-1", b"1e999", b"[" * 20_000])
def test_a_claim_beyond_reason_is_refused(claim: bytes) -> None:
    """What a body says of its size is checked before room is made for it."""
    text = b'{"features":' + claim + b"}"
    length = bytes([0x80 | len(text) & 0x7F, 0x80 | len(text) >> 7 & 0x7F, len(text) >> 14])

    with pytest.raises(CorruptState):
        decode_subject(b"\x00" + length + text + b"\x00")


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    """A record of the wrong shape would be read as other features' numbers."""
    with pytest.raises(ShapeMismatch):
        subject(2, thresholds=np.zeros(3))
    with pytest.raises(ShapeMismatch):
        window(subject(2), zeros=np.zeros(3, np.int64))
