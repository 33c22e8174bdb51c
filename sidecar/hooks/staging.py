"""Pooled host memory through which the sender takes rows off the model's device."""

from collections import deque
from typing import Any

import torch

_SMALLEST_BYTES = 4096
"""Smallest buffer: below a page nothing is saved."""

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Pool:
    """Reuses host buffers, in sizes of powers of two; pinned ones for CUDA devices.

    At most ``limit_bytes`` of each size wait for reuse. Any thread may stage and give back; there
    is no lock that a fork could leave held.

    Args:
        limit_bytes: Bytes of one size that are kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        # deque's own append and pop are atomic.
        self._free: dict[tuple[int, bool], deque[torch.Tensor]] = {}

    def stage(self, parts: list[torch.Tensor], dtype: str, events: list[Any]) -> torch.Tensor:
        """Copy rows into one pooled buffer, converted to the dtype of the wire.

        Waits for the device, so it has no place in a forward pass.

        Args:
            parts: Rows of the layers, in order; private to the caller, on any devices.
            dtype: ``f32``, ``f16`` or ``bf16``.
            events: CUDA events after which the parts are complete; empty on other devices.

        Returns:
            A uint8 buffer that starts with all values one after another, little-endian; for
            ``give_back``.
        """
        wanted = _DTYPES[dtype]
        size = sum(part.numel() for part in parts) * wanted.itemsize
        with torch.inference_mode():
            # Other streams than the model's would race with it; its own are free after the event.
            for event in events:
                event.synchronize()
            buffer = self._lease(size, pinned=bool(events))
            view = buffer[:size].view(wanted)  # (values,)
            flats = [part.reshape(-1) for part in parts]
            if len({part.device for part in parts}) > 1:  # a model split over devices: rare
                flats = [flat.to("cpu") for flat in flats]
            # Gathered and converted on the device: one copy, of the bytes that are sent.
            view.copy_(torch.cat(flats).to(wanted))
        return buffer

    def _lease(self, size: int, *, pinned: bool) -> torch.Tensor:
        room = max(_SMALLEST_BYTES, 1 << (size - 1).bit_length())
        try:
            return self._free[room, pinned].pop()
        except (KeyError, IndexError):
            return torch.empty(room, dtype=torch.uint8, device="cpu", pin_memory=pinned)

    def give_back(self, buffer: torch.Tensor) -> None:
        """Let a buffer be used again."""
        room = buffer.numel()
        most = max(self._limit_bytes // room, 1)
        kept = self._free.setdefault((room, buffer.is_pinned()), deque(maxlen=most))
        kept.append(buffer)
