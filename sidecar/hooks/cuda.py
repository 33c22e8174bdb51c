"""Takes rows off CUDA devices beside the model server's stream, never in it.

The forward pass leaves an event in the server's stream and goes on. The sender's own stream waits for
that event on the device, gathers, and copies into pinned memory; the sender alone waits for the end.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class SideStreams:
    """One stream of the sender's own for each device.

    Args:
        api: ``torch.cuda``, or what stands for it in a test; ``current_stream``, ``Stream``,
            ``stream`` and ``Event`` are all that is used of it.
    """

    def __init__(self, api: Any = torch.cuda) -> None:
        self._api = api
        self._streams: dict[torch.device, Any] = {}

    def mark(self, devices: Iterable[torch.device]) -> Mapping[torch.device, Any]:
        """Leave an event in the stream the calling thread works in, for each device.

        Called in the forward pass: two launches that wait for nothing, and no allocation of pinned
        memory.

        Returns:
            The event of each device; what was enqueued before it is complete when it is.
        """
        return {device: self._api.current_stream(device).record_event() for device in devices}

    def copy(self, parts: list[torch.Tensor], target: torch.Tensor, mark: Any) -> Any:
        """Enqueue the copy of one device's rows into pinned memory.

        Args:
            parts: Rows on one device, complete after ``mark``; must be kept until the returned
                event is complete, for their memory belongs to the server's stream.
            target: Where their values go one after another, in the dtype that is wanted; pinned.
            mark: The device's event, from ``mark``.

        Returns:
            An event; the copy is done when it is. Waiting for it lets other threads run.
        """
        device = parts[0].device
        side = self._streams.get(device)
        if side is None:
            side = self._streams[device] = self._api.Stream(device)
        # Blocking: the sender sleeps instead of spinning on one of the server's processors.
        done = self._api.Event(blocking=True)
        try:
            with self._api.stream(side):
                side.wait_event(mark)
                # Gathered and converted on the device: one copy, of the bytes that are sent.
                flat = torch.cat([part.reshape(-1) for part in parts]).to(target.dtype)  # (values,)
                target.copy_(flat, non_blocking=True)
                side.record_event(done)
        except Exception:
            # The caller lets go of the parts now; what was enqueued may still read them.
            side.synchronize()
            raise
        return done
