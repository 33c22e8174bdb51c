"""A ring of memory shared with the daemon: rows staged in it reach the daemon without another copy."""

import contextlib
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidecar.wire import PAYLOAD_ALIGNMENT

RING_BYTES = 8 << 20
"""Size of a ring, where the daemon takes that much: two bursts, one of which is staged while the daemon
takes the other out."""

SEALS = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW, which Python names on Linux only. Nobody can take memory
away from under the other side, which would kill it, nor unseal it."""

_ADD_SEALS = 1033  # F_ADD_SEALS


@dataclass(slots=True)
class _Place:
    """Bytes that were lent: ``start`` to ``end``, free when ``last`` payloads have been fetched."""

    start: int
    end: int
    last: int = 0


class Ring:
    """Where rows lie from their staging until the daemon has taken them out.

    Places are lent in turn, and come back in the same order. One thread uses a ring. The memory has no
    name and goes with its last user.

    Args:
        size: Bytes; all are allocated here, so that memory that is not there fails here.

    Raises:
        OSError: There is no such memory; AttributeError: nor is there on this system.
    """

    def __init__(self, size: int) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._descriptor = os.memfd_create("sidecar-ring", flags)
        try:
            os.posix_fallocate(self._descriptor, 0, size)
            fcntl.fcntl(self._descriptor, _ADD_SEALS, SEALS)
            self._memory = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.size = size
        self._address = _address(self._memory)
        self._lent: deque[_Place] = deque()
        self._open: list[_Place] = []  # those that payloads of the present burst may lie in
        self._placed = self._fetched = 0  # payloads, since the ring is there

    @property
    def descriptor(self) -> int:
        """Of the memory, for the daemon; ``shared`` closes it."""
        return self._descriptor

    def shared(self) -> None:
        """Say that the daemon has been sent the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Give the memory back; in a forked child too, where it is the parent's."""
        self.shared()
        # Rows that a batch still holds, or a thread that is not in this child: it goes with the last.
        with contextlib.suppress(BufferError):
            self._memory.close()

    @property
    def busy(self) -> bool:
        """Whether payloads lie in it that the daemon has not taken out."""
        return self._fetched < self._placed

    def lend(self, size: int) -> memoryview | None:
        """Lend memory for the present burst; None: there is no room now."""
        start = self._room(size)
        if start is None:
            return None
        place = _Place(start, start + size)
        self._lent.append(place)
        self._open.append(place)
        return memoryview(self._memory)[start : place.end]

    def _room(self, size: int) -> int | None:
        """Return the first byte of a place for so many."""
        if not self._lent:
            return 0 if size <= self.size else None
        oldest, newest = self._lent[0].start, self._lent[-1].end
        start = -(-newest // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT
        limit = oldest if newest <= oldest else self.size
        if start + size <= limit:
            return start
        # Behind the newest there is no room: before the oldest, perhaps.
        return 0 if oldest < newest and size <= oldest else None

    def place(self, pieces: Sequence[bytes | memoryview], size: int) -> int | None:
        """Say where in the ring a payload lies; None: not in it, or not in one piece.

        Args:
            pieces: The payload's, with the zeros between them.
            size: Bytes of all.
        """
        offset = _address(pieces[0]) - self._address
        found = [place for place in self._open if place.start <= offset < place.end]
        if not found or offset + size > self.size or not _adjacent(pieces):
            return None
        self._placed += 1
        found[0].last = self._placed
        return offset

    def end_burst(self) -> None:
        """Say that all messages of the present burst have been sent."""
        self._open.clear()

    def fetched(self, count: int) -> None:
        """Take places back: the daemon has taken out ``count`` payloads of all there ever were."""
        self._fetched = min(count, self._placed)
        while len(self._lent) > len(self._open) and self._lent[0].last <= self._fetched:
            self._lent.popleft()


def _address(data: bytes | memoryview | mmap.mmap) -> int:
    """Return where in this process's memory some bytes lie."""
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


def _adjacent(pieces: Sequence[bytes | memoryview]) -> bool:
    """Say whether tensors follow one another in memory just as they do in a payload.

    What lies between two of them is taken for the zeros, which nobody reads.
    """
    at = _address(pieces[0])
    for piece in pieces:
        if isinstance(piece, memoryview) and _address(piece) != at:
            return False
        at += len(piece)
    return True
