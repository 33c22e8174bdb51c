"""Frames: how messages travel over a stream socket of one machine.

A frame is a header of 20 bytes, little-endian, then a protobuf message, then the payload::

    magic     4  b"SCLN"
    version   1  of this layout
    kind      1  1 StreamRequest, 2 StreamResponse, 3 about the ring
    flags     2  1: the payload is in the ring; others are refused, and the frame passed over
    message   4  bytes of the protobuf message
    payload   4  bytes after it
    checksum  4  CRC-32 of the 16 bytes above and the message

A payload begins at a multiple of ``PAYLOAD_ALIGNMENT`` from the frame's first byte, after zeros where
the message ends before: the kernel copies from and to aligned memory nearly twice as fast. It holds
the tensors of a batch in their order, each filled up with zeros to a multiple of
``ALIGNMENT``, while their ``payload`` fields are empty. It is not part of the checksum: the kernel
copies it from one process to the other, and a checksum would cost more than that copy. What the
checksum guards against is a reader that has lost its place.

A hook may hand over a *ring*, memory that both processes map, where the daemon's welcome says so. A
frame of kind 3 then holds one number of 8 bytes instead of a protobuf message: from the hook, which
sends the memory's descriptor with it, the size of the ring; from the daemon, how many payloads it has
taken out of the ring since, 0 at first. With flag 1 a payload does not follow its frame: it lies in the
ring, and the message begins with 8 more bytes, which say where. Nothing here opens a socket.
"""

import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from sidecar.errors import (
    BrokenFrame,
    MalformedMessage,
    MessageTooLarge,
    TruncatedFrame,
    UnsupportedVersion,
)

MAGIC = b"SCLN"
"""First bytes of every frame."""

VERSION = 1
"""Of the layout; a reader of another version cannot know where a frame ends."""

ALIGNMENT = 8
"""Tensors start at multiples of this in a payload, so that values of any dtype are aligned."""

PAYLOAD_ALIGNMENT = 64
"""Bytes of a cache line. Copying a MiB to the kernel and back took 150 us where both sides were so
aligned, and 240 us where a header of 70 bytes had moved them."""

PATIENCE_SECONDS = 30.0
"""Longest time from the first byte of a frame to its last; local peers need microseconds."""

SKIP_FACTOR = 4
"""Frames up to this many times the limit are read and thrown away; beyond it the length is taken for
a lie. The gRPC end draws the same line."""

AHEAD_BYTES = 4096
"""Read at once where a frame begins: a header and most messages, and several of those whose payloads
lie in the ring, so that all cost one system call."""

IN_RING = 1
"""The flag of a frame whose payload lies in the ring."""

_HEADER = struct.Struct("<4sBBHII")
_CHECKSUM = struct.Struct("<I")
_WHOLE = struct.Struct("<4sBBHIII")
_NUMBER = struct.Struct("<Q")
_SCRATCH_BYTES = 65_536
_LENGTH_LIMIT = 1 << 32

HEADER_BYTES = _HEADER.size + _CHECKSUM.size
"""Length of a header, checksum included."""

_PADDING = tuple(bytes(count) for count in range(PAYLOAD_ALIGNMENT))


class FrameKind(IntEnum):
    """Which message a frame holds."""

    REQUEST = 1
    RESPONSE = 2
    RING = 3


@dataclass(frozen=True, slots=True)
class Lease:
    """Memory lent for one payload.

    Attributes:
        view: Exactly the bytes asked for.
        release: Gives the memory back; nothing may look at ``view`` from then on.
    """

    view: memoryview
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came in.

    Attributes:
        message: The protobuf message, whole by its checksum; eight bytes in a frame about the ring.
        payload: What follows it, or lay in the ring; valid until ``release``.
        release: Gives the payload's memory back; whoever takes the frame calls it once.
        kind: What the message is.
    """

    message: bytes
    payload: memoryview
    release: Callable[[], None]
    kind: FrameKind


def _nothing() -> None:
    pass


def unpooled(size: int) -> Lease:
    """Lend fresh memory, which nobody wants back."""
    return Lease(memoryview(bytearray(size)), _nothing)


def padding(size: int) -> bytes:
    r"""Return the zeros that follow ``size`` bytes of a tensor in a payload.

    Example:
        >>> padding(8), padding(13)
        (b'', b'\x00\x00\x00')
    """
    return _PADDING[-size % ALIGNMENT]


def _gap(message_bytes: int, payload_bytes: int) -> int:
    """Return how many zeros there are between a message and its payload."""
    return -(HEADER_BYTES + message_bytes) % PAYLOAD_ALIGNMENT if payload_bytes else 0


Place = Callable[[Sequence[bytes | memoryview], int], int | None]
"""Says where in the ring the pieces of a payload lie, of so many bytes together; None: not in it, and
they travel behind their frame."""


def encode_frame(
    kind: FrameKind,
    message: bytes,
    payload: Sequence[bytes | memoryview] = (),
    place: Place | None = None,
) -> list[bytes | memoryview]:
    """Return the pieces of a frame, to be sent one after another; no payload is copied.

    Args:
        kind: What the message is.
        message: Encoded protobuf.
        payload: Tensors, without padding.
        place: Asked where the payload is, if there is one and there is a ring.

    Raises:
        MessageTooLarge: Message or payload has 4 GiB or more.

    Example:
        >>> pieces = encode_frame(FrameKind.REQUEST, b"message", [b"123"])
        >>> [len(piece) for piece in pieces]
        [64, 3, 5]
    """
    pieces: list[bytes | memoryview] = []
    size = 0
    for tensor in payload:
        length = memoryview(tensor).nbytes
        filling = padding(length)
        pieces += (tensor, filling) if filling else (tensor,)
        size += length + len(filling)
    if max(size, len(message)) >= _LENGTH_LIMIT:
        raise MessageTooLarge(f"a frame of {len(message)} + {size} bytes: send less at once")
    offset = place(pieces, size) if place and size else None
    if offset is not None:
        return [_head(kind, IN_RING, _NUMBER.pack(offset) + message, size)]
    return [_head(kind, 0, message, size) + _PADDING[_gap(len(message), size)], *pieces]


def _head(kind: FrameKind, flags: int, message: bytes, payload_bytes: int) -> bytes:
    """Return header and message."""
    head = _HEADER.pack(MAGIC, VERSION, kind, flags, len(message), payload_bytes)
    return head + _CHECKSUM.pack(zlib.crc32(message, zlib.crc32(head))) + message


def encode_ring_frame(number: int) -> bytes:
    """Return a frame about the ring: its size, or how many payloads were taken out of it."""
    return _head(FrameKind.RING, 0, _NUMBER.pack(number), 0)


def decode_ring_frame(message: bytes) -> int:
    """Read the message of a frame about the ring.

    Raises:
        MalformedMessage: It does not have 8 bytes.
    """
    if len(message) != _NUMBER.size:
        raise MalformedMessage(f"a frame about the ring has {len(message)} bytes, not 8")
    return int(_NUMBER.unpack(message)[0])


class _Header(NamedTuple):
    kind: int
    flags: int
    message_bytes: int
    payload_bytes: int
    crc: int  # of the header alone: where the message's begins
    checksum: int

    @property
    def total_bytes(self) -> int:
        return self.message_bytes + self.payload_bytes

    @property
    def in_ring(self) -> bool:
        return self.flags == IN_RING

    @property
    def gap_bytes(self) -> int:
        return 0 if self.in_ring else _gap(self.message_bytes, self.payload_bytes)

    @property
    def behind_bytes(self) -> int:
        return 0 if self.in_ring else self.gap_bytes + self.payload_bytes


def _read_header(data: bytes) -> _Header:
    magic, version, kind, flags, message_bytes, payload_bytes, checksum = _WHOLE.unpack(data)
    if magic != MAGIC:
        hint = ": gRPC is served at listen.grpc" if data.startswith(b"PRI ") else ""
        raise BrokenFrame(f"a frame begins with {magic!r}, not with {MAGIC!r}{hint}")
    if version != VERSION:
        raise UnsupportedVersion(
            f"a frame of version {version}, but this end reads version {VERSION}: update the older"
        )
    crc = zlib.crc32(data[: _HEADER.size])
    return _Header(kind, flags, message_bytes, payload_bytes, crc, checksum)


class FrameReader:
    """Takes frames of one kind off a blocking byte stream.

    Args:
        receive: Reads some bytes into a view and returns how many; 0 at the end. It may raise
            BlockingIOError after a while without any, and another OSError when the stream broke.
        fill: Like ``receive``, but waits until the view is full as long as it can: what is left of
            a frame then comes in one call. None: ``receive``.
        kind: The only kind that is taken, beside frames about the ring.
        limit_bytes: Largest message and payload together.
        lease: Lends memory for a payload.
        fetch: Copies what lies from a place in the ring on into a view, filling it; may raise
            MalformedMessage. None: there is no ring, and frames that need one are refused.
        clock: Seconds, never going back.
        patience_seconds: Longest time a frame may take to arrive.
    """

    def __init__(
        self,
        receive: Callable[[memoryview], int],
        *,
        kind: FrameKind,
        limit_bytes: int,
        fill: Callable[[memoryview], int] | None = None,
        lease: Callable[[int], Lease] = unpooled,
        fetch: Callable[[int, memoryview], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._receive = receive
        self._fill = fill or receive
        self._kinds = (kind, FrameKind.RING)
        self._fetch = fetch
        self._limit_bytes = limit_bytes
        self._lease = lease
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._deadline = 0.0
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._at = self._end = 0  # what of it was received and not yet looked at

    @property
    def begun(self) -> bool:
        """Whether a part of the next frame, or all of it, was received with the one before."""
        return self._at < self._end

    def read(self) -> Frame | None:
        """Wait for the next frame.

        Returns:
            The frame, whose payload the caller releases; None when the stream ended between two.

        Raises:
            BrokenFrame: Where this frame ends, or whether it is one, cannot be known: the stream is
                of no use any more. UnsupportedVersion and TruncatedFrame are such.
            MessageTooLarge: The frame was passed over; the next can be read.
            MalformedMessage: Likewise, for another kind of frame or unknown flags.
        """
        header = self._next_header()
        if header is None:
            return None
        if header.total_bytes > self._limit_bytes:
            raise self._pass_over(header)
        message = self._taken(header.message_bytes)
        _check_crc(header, zlib.crc32(message, header.crc))
        if header.kind not in self._kinds or header.flags not in (0, IN_RING):
            self._discard(header.behind_bytes)
            raise MalformedMessage(
                f"a frame of kind {header.kind} with flags {header.flags:#x}: this end takes kind "
                f"{self._kinds[0]:d} without flags, or {IN_RING} for a payload in a ring"
            )
        fill: Callable[[memoryview], object] = self._filled
        if header.in_ring:
            message, fill = self._from_ring(message)
        self._taken(header.gap_bytes)
        lease = self._lease(header.payload_bytes)
        try:
            fill(lease.view)
        except BaseException:
            lease.release()
            raise
        return Frame(message, lease.view.toreadonly(), lease.release, FrameKind(header.kind))

    def _from_ring(self, message: bytes) -> tuple[bytes, Callable[[memoryview], object]]:
        """Return the message proper, and what copies its payload out of the ring."""
        if self._fetch is None or len(message) < _NUMBER.size:
            raise MalformedMessage("a payload in a ring, but there is none, or it says not where")
        (offset,) = _NUMBER.unpack_from(message)
        return message[_NUMBER.size :], partial(self._fetch, offset)

    def _next_header(self) -> _Header | None:
        if self._at == self._end:
            self._at, self._end = 0, self._wait_first()
            if not self._end:
                return None
        self._deadline = self._clock() + self._patience_seconds
        return _read_header(self._taken(HEADER_BYTES))

    def _wait_first(self) -> int:
        """Wait for however long the other side is silent between two frames."""
        while True:
            try:
                return self._receive(self._ahead)
            except BlockingIOError:
                continue
            except OSError:  # reset by a peer that left answers unread: as good as an end
                return 0

    def _taken(self, size: int) -> bytes:
        """Read so many bytes, which have mostly been received already."""
        at, end = self._at, self._at + size
        if end > self._end:
            return bytes(self._filled(memoryview(bytearray(size))))
        self._at = end
        return bytes(self._ahead[at:end])

    def _filled(self, view: memoryview) -> memoryview:
        """Read exactly as many bytes as the view has."""
        size = view.nbytes
        at = min(self._end - self._at, size)
        view[:at] = self._ahead[self._at : self._at + at]
        self._at += at
        while at < size:
            try:
                got = self._fill(view[at:])
            except BlockingIOError:
                got = 0
            except OSError as error:
                raise TruncatedFrame(f"the stream broke inside a frame: {error}") from error
            at += got
            if at < size and not (got and self._clock() < self._deadline):
                raise TruncatedFrame(
                    f"a frame ended {size - at} bytes early, or took longer than "
                    f"{self._patience_seconds:g} s"
                )
        return view

    def _pass_over(self, header: _Header) -> MessageTooLarge:
        """Read an oversized frame to its end, and return what to raise."""
        claim = f"a frame of {header.total_bytes} bytes: send at most {self._limit_bytes}"
        if header.total_bytes > SKIP_FACTOR * self._limit_bytes:
            raise BrokenFrame(claim)
        _check_crc(header, self._discard(header.message_bytes, header.crc))
        self._discard(header.behind_bytes)
        return MessageTooLarge(claim)

    def _discard(self, size: int, crc: int = 0) -> int:
        """Read ``size`` bytes; return their CRC-32, continued from ``crc``."""
        scratch = memoryview(bytearray(min(size, _SCRATCH_BYTES)))
        while size:
            part = self._filled(scratch[:size])
            crc = zlib.crc32(part, crc)
            size -= part.nbytes
        return crc


def _check_crc(header: _Header, crc: int) -> None:
    if crc != header.checksum:
        raise BrokenFrame(
            f"a frame's checksum is {header.checksum:08x}, but its header and message have {crc:08x}"
        )
