"""Pooled host memory through which the sender takes rows off the model's device."""

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from sidecar.hooks.cuda import SideStreams

_SMALLEST_BYTES = 4096
"""Smallest buffer: below a page nothing is saved."""

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Pool:
    """Reuses host buffers, in sizes of powers of two; pinned ones for CUDA devices.

    At most ``limit_bytes`` of each size wait for reuse. Any thread may stage and give back; there
    is no lock that a fork could leave held.

    Args:
        limit_bytes: Bytes of one size that are kept.
        streams: How rows leave CUDA devices.
    """

    def __init__(self, limit_bytes: int, streams: SideStreams) -> None:
        self._limit_bytes = limit_bytes
        self._streams = streams
        # deque's own append and pop are atomic.
        self._free: dict[tuple[int, bool], deque[torch.Tensor]] = {}

    def stage(
        self,
        parts: list[torch.Tensor],
        dtype: str,
        marks: Mapping[torch.device, Any],
        lent: memoryview | None = None,
    ) -> torch.Tensor:
        """Copy rows into one buffer, converted to the dtype of the wire.

        Waits for the device, so it has no place in a forward pass.

        Args:
            parts: Rows of the layers, in order; private to the caller, on any devices.
            dtype: ``f32``, ``f16`` or ``bf16``.
            marks: For each CUDA device the event after which its parts are complete.
            lent: Memory to copy them to, of just their size; None: pooled memory.

        Returns:
            A uint8 buffer that starts with all values one after another, little-endian; for
            ``give_back``, unless it was lent.
        """
        wanted = _DTYPES[dtype]
        size = sum(part.numel() for part in parts) * wanted.itemsize
        with torch.inference_mode():
            if lent is None:
                buffer = self._lease(size, pinned=bool(marks))
            else:
                buffer = torch.frombuffer(lent, dtype=torch.uint8)
            self._fill(buffer[:size].view(wanted), parts, marks)
        return buffer

    def _fill(
        self, view: torch.Tensor, parts: list[torch.Tensor], marks: Mapping[torch.device, Any]
    ) -> None:
        """Copy device by device: a model split over devices has its layers in runs."""
        offset = 0
        pending = []
        try:
            for device, run in itertools.groupby(parts, lambda part: part.device):
                together = list(run)
                count = sum(part.numel() for part in together)
                target = view[offset : offset + count]  # (values,)
                offset += count
                if device in marks:
                    pending.append(self._streams.copy(together, target, marks[device]))
                elif device.type == "cuda":  # it came up in the middle of the very first pass
                    raise RuntimeError(f"rows on {device} without an event to wait for")
                else:
                    flats = [part.reshape(-1) for part in together]
                    target.copy_(torch.cat(flats))
        finally:
            # Also after an error: what was enqueued still reads the parts and writes the buffer.
            for done in pending:
                done.synchronize()

    def _lease(self, size: int, *, pinned: bool) -> torch.Tensor:
        room = max(_SMALLEST_BYTES, 1 << (size - 1).bit_length())
        try:
            return self._free[room, pinned].pop()
        except (KeyError, IndexError):
            return self._allocate(room, pinned=pinned)

    def _allocate(self, room: int, *, pinned: bool) -> torch.Tensor:
        return torch.empty(room, dtype=torch.uint8, device="cpu", pin_memory=pinned)

    def give_back(self, buffer: torch.Tensor) -> None:
        """Let a buffer be used again."""
        room = buffer.numel()
        most = max(self._limit_bytes // room, 1)
        kept = self._free.setdefault((room, buffer.is_pinned()), deque(maxlen=most))
        kept.append(buffer)
