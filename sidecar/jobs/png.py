"""Reads the PNGs that the worker wrote, where there is no image library: their texts and pixels.

The daemon and the command line load neither torch nor Pillow; to check a picture they need its text
chunks, and to compare two of them their pixels. Read is what ``visualise.encode_png`` writes: 8 bits a
channel, grey, RGB or RGBA, not interlaced.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import CorruptState

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 6: 4}  # colour type of the header: grey, RGB, RGBA
_HEADER = struct.Struct(">IIBBBBB")
_SIDE_LIMIT = 1 << 14  # a small file must not ask for gigabytes
_TEXT_LIMIT_BYTES = 1 << 20


def read_texts(content: bytes) -> dict[str, str]:
    """Return the text chunks of a PNG by keyword.

    Raises:
        CorruptState: It is no PNG, or a chunk of it is damaged.
    """
    texts: dict[str, str] = {}
    for kind, data in _chunks(content):
        if kind == b"tEXt":
            keyword, _, text = data.partition(b"\0")
            texts[keyword.decode("latin-1")] = text.decode("latin-1")
        elif kind == b"iTXt":
            keyword, _, rest = data.partition(b"\0")
            packed, language_and_text = rest[:1] == b"\1", rest[2:]
            text = language_and_text.split(b"\0", 2)[-1]
            plain = _inflate(text, _TEXT_LIMIT_BYTES) if packed else text
            texts[keyword.decode("latin-1")] = plain.decode("utf-8", "replace")
    return texts


def read_pixels(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, shape ``(height, width, channels)``.

    Raises:
        CorruptState: It is no PNG, is damaged, or is none of those this reads.
    """
    chunks = list(_chunks(content))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != _HEADER.size:
        raise CorruptState("the PNG has no header")
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack(chunks[0][1])
    if depth != 8 or colour not in _CHANNELS or interlaced:  # noqa: PLR2004 - bits a channel
        raise CorruptState("the PNG is interlaced, or has not 8 bits of grey, RGB or RGBA")
    if not (0 < width <= _SIDE_LIMIT and 0 < height <= _SIDE_LIMIT):
        raise CorruptState(f"the PNG is {width} by {height}, at most {_SIDE_LIMIT} are read")
    channels = _CHANNELS[colour]
    stride = width * channels
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    raw = _inflate(packed, height * (stride + 1))
    if len(raw) != height * (stride + 1):
        raise CorruptState("the PNG has fewer rows than its header says")
    rows = np.frombuffer(raw, np.uint8).reshape(height, stride + 1)
    return _unfiltered(rows, channels).reshape(height, width, channels)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and data of every chunk up to the end of the picture."""
    if not content.startswith(SIGNATURE):
        raise CorruptState("this is no PNG")
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        check = content[at + 8 + size : at + 12 + size]
        if len(check) != 4 or zlib.crc32(kind + data) != int.from_bytes(check):  # noqa: PLR2004 - a CRC
            raise CorruptState(f"chunk {kind!r} of the PNG is damaged")
        yield kind, data
        if kind == b"IEND":
            return
        at += 12 + size
    raise CorruptState("the PNG ends in the middle")


def _inflate(data: bytes, limit: int) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise CorruptState(f"the PNG cannot be unpacked: {error}") from error
    if unpacker.unconsumed_tail:
        raise CorruptState(f"the PNG unpacks to more than {limit} bytes")
    return found


def _unfiltered(rows: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Undo the filter of each row: the first byte of a row names it.

    Source:
        PNG specification, third edition, section 9.
    """
    above = np.zeros((rows.shape[1] - 1) // channels * channels, np.uint8)
    found = np.empty((rows.shape[0], above.size), np.uint8)
    for number, row in enumerate(rows):
        kind, line = int(row[0]), row[1:]
        if kind == 0:
            found[number] = line
        elif kind == 1:  # the sum over the pixels to the left, modulo 256
            pixels = line.reshape(-1, channels)
            found[number] = np.cumsum(pixels, axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:  # noqa: PLR2004 - the filter's number
            found[number] = line + above
        elif kind in (3, 4):
            found[number] = _predicted(line, above, channels, average=kind == 3)  # noqa: PLR2004 - as above
        else:
            raise CorruptState(f"row {number} of the PNG has filter {kind}, there is none")
        above = found[number]
    return found


def _predicted(
    line: NDArray[np.uint8], above: NDArray[np.uint8], channels: int, *, average: bool
) -> NDArray[np.uint8]:
    """Undo a filter in which each byte depends on the one before; Python, byte by byte."""
    found, up = bytearray(line.tobytes()), above.tobytes()
    for place, byte in enumerate(found):
        left = found[place - channels] if place >= channels else 0
        corner = up[place - channels] if place >= channels else 0
        guess = (left + up[place]) // 2 if average else _paeth(left, up[place], corner)
        found[place] = (byte + guess) & 0xFF
    return np.frombuffer(bytes(found), np.uint8)


def _paeth(left: int, above: int, corner: int) -> int:
    """Return whichever of the three is nearest to ``left + above - corner``; ties in that order."""
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    if to_left <= to_above and to_left <= to_corner:
        return left
    return above if to_above <= to_corner else corner
