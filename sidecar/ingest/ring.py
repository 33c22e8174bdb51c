"""The daemon's end of a ring: memory that a hook shares, from which payloads are copied."""

import array
import contextlib
import fcntl
import mmap
import os
import socket
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import MalformedMessage
from sidecar.wire import decode_ring_frame, encode_ring_frame

RING_BYTES = 8 << 20
"""Largest ring of one connection."""

TELL_SHARE = 2
"""Part of its ring that a busy hook may wait for, before it is told that so much is free again."""

_DESCRIPTOR = array.array("i").itemsize
_ROOM = socket.CMSG_LEN(_DESCRIPTOR)  # for one descriptor; the kernel closes those beyond
_CLOSED_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class RingEnd:
    """What one connection shares, if anything; its reader thread uses it.

    The memory belongs to the peer, who may write to it at any time: it is read only by ``fetch``, once
    for each payload. It cannot take the memory away, as that would end this process.

    Args:
        limit_bytes: Largest ring that is taken; 0: none.

    Attributes:
        surplus: Descriptors that came and were not wanted, or that there was no room for.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.surplus = 0
        self._descriptor = -1
        self._memory: mmap.mmap | None = None
        self._bytes: NDArray[np.uint8] | None = None
        self._size = 0
        self._fetched = 0  # payloads, since the ring is there
        self._told: int | None = None
        self._untold_bytes = 0

    def receive(self, connection: socket.socket, view: memoryview) -> int:
        """Receive like ``recv_into``, and keep the descriptor that comes along."""
        size, ancillary, flags, _ = connection.recvmsg_into((view,), _ROOM, _CLOSED_ON_EXEC)
        for _, _, data in ancillary:  # nothing but descriptors was asked for
            self.keep(array.array("i", data[: len(data) // _DESCRIPTOR * _DESCRIPTOR]))
        self.surplus += bool(flags & socket.MSG_CTRUNC)
        return size

    def keep(self, descriptors: Iterable[int]) -> None:
        """Keep the first descriptor for a ring that is not there yet; close all others."""
        for descriptor in descriptors:
            if self._descriptor < 0 and self._memory is None and self.limit_bytes:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
                self.surplus += 1

    def attach(self, message: bytes) -> None:
        """Map the memory whose descriptor came with a frame about the ring.

        Raises:
            MalformedMessage: It is not what may be mapped; its descriptor is closed.
        """
        descriptor, self._descriptor = self._descriptor, -1
        try:
            size = decode_ring_frame(message)
            if self._memory is not None:
                raise MalformedMessage("this connection has a ring already")
            if not 0 < size <= self.limit_bytes:
                raise MalformedMessage(
                    f"a ring of {size} bytes: at most {self.limit_bytes} are mapped"
                )
            if descriptor < 0:
                raise MalformedMessage("no descriptor came with the ring: send exactly one")
            self._check(descriptor, size)
            try:
                self._memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise MalformedMessage(f"the ring cannot be mapped: {error}") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._size = size
        self._bytes = np.frombuffer(self._memory, np.uint8)

    def _check(self, descriptor: int, size: int) -> None:
        """Make sure that every byte of the ring can be read as long as it is mapped.

        Raises:
            MalformedMessage: It cannot, or has another size.
        """
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError as error:
            raise MalformedMessage(f"the ring is no memfd: {error}") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise MalformedMessage("the ring is not sealed: add F_SEAL_SHRINK before it is sent")
        # Huge pages that are not there kill who reads them, as a file that shrinks does.
        if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
            raise MalformedMessage("the ring is made of huge pages: use ordinary ones")
        if (there := os.fstat(descriptor).st_size) != size:
            raise MalformedMessage(f"the ring has {there} bytes, and its frame says {size}")

    def fetch(self, offset: int, view: memoryview) -> None:
        """Copy a payload out of the ring.

        Raises:
            MalformedMessage: There is no ring, or the payload is not inside it.
        """
        if self._bytes is None:
            raise MalformedMessage("a payload in a ring, but there is none")
        end = offset + len(view)
        try:
            if end > self._size:
                raise MalformedMessage(f"a payload up to byte {end} of a ring of {self._size}")
            np.copyto(np.frombuffer(view, np.uint8), self._bytes[offset:end])
        finally:
            # Last: another thread may tell the hook at any moment, which then overwrites the place.
            self._untold_bytes += len(view)
            self._fetched += 1

    @property
    def due(self) -> bool:
        """Whether a busy hook should be told what is free."""
        return self._untold_bytes * TELL_SHARE >= self._size and self._untold_bytes > 0

    @property
    def owes(self) -> bool:
        """Whether there is anything to tell."""
        return self._bytes is not None and self._told != self._fetched

    def news(self) -> bytes:
        """Return a frame about what has been taken out, if it was not told; from any thread."""
        if not self.owes:
            return b""
        self._untold_bytes = 0
        self._told = self._fetched
        return encode_ring_frame(self._told)

    def close(self) -> None:
        """Give the memory back, and a descriptor that nobody asked for."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._bytes = None
        with contextlib.suppress(BufferError):  # the reader is in the middle of a copy: it is last
            if self._memory is not None:
                self._memory.close()
