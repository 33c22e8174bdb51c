"""Reused memory for the payloads of the lane."""

import threading
from functools import partial

import numpy as np

from sidecar.wire import PAYLOAD_ALIGNMENT, Lease

SMALLEST_BYTES = 4096
"""Smallest buffer: below a page nothing is saved."""


class BufferPool:
    """Lends buffers and keeps returned ones for reuse, up to a number of bytes.

    Fresh memory costs a page fault for every 4 KiB, which is more than the copy into it. What is lent
    is bounded by who borrows: the ingest queue, and one payload a stream. Any thread may borrow and
    give back.

    Args:
        limit_bytes: Most bytes kept for reuse; 0 keeps none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._free: dict[int, list[memoryview]] = {}
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for reuse."""
        with self._lock:
            return self._kept_bytes

    def lease(self, size: int) -> Lease:
        """Lend ``size`` bytes of whatever content; the newest returned first, its cache is warm."""
        room = rounded(size)
        with self._lock:
            found = self._free.get(room)
            buffer = found.pop() if found else None
            self._kept_bytes -= room if buffer is not None else 0
        if buffer is None:
            buffer = _aligned(room)
        return Lease(buffer[:size], partial(self._give_back, buffer))

    def _give_back(self, buffer: memoryview) -> None:
        with self._lock:
            if self._kept_bytes + len(buffer) <= self._limit_bytes:
                self._kept_bytes += len(buffer)
                self._free.setdefault(len(buffer), []).append(buffer)
            elif self._kept_bytes:
                # Sizes that nobody asks for any more must not keep out those that are in use.
                self._free.clear()
                self._kept_bytes = 0


def _aligned(size: int) -> memoryview:
    """Return fresh memory that begins at a multiple of ``PAYLOAD_ALIGNMENT``, as payloads do."""
    memory = np.empty(size + PAYLOAD_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % PAYLOAD_ALIGNMENT
    return memory.data[start : start + size]


def rounded(size: int) -> int:
    """Return the size of buffer that ``size`` bytes are lent from: at most a quarter more.

    Example:
        >>> rounded(1), rounded(1 << 20), rounded((1 << 20) + 1)
        (4096, 1048576, 1310720)
    """
    if size <= SMALLEST_BYTES:
        return SMALLEST_BYTES
    step = 1 << ((size - 1).bit_length() - 1) >> 2
    return -(-size // step) * step
