"""Stands in for pynvml, the module of nvidia-ml-py: the same functions, raising what NVIDIA documents."""

from dataclasses import dataclass, field
from types import SimpleNamespace

UNINITIALIZED, INVALID_ARGUMENT, NOT_FOUND = 1, 2, 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST = 9, 12, 15

_WORDS = {
    UNINITIALIZED: "Uninitialized",
    INVALID_ARGUMENT: "Invalid Argument",
    NOT_FOUND: "Not Found",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    GPU_IS_LOST: "GPU is lost",
}


class NVMLError(Exception):
    """An NVML return code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        """Return the code's words."""
        return _WORDS[self.value]


@dataclass
class FakeNvml:
    """A machine with GPUs, as ``pynvml`` shows it.

    Attributes:
        free: Free bytes of each GPU.
        total: All bytes of each.
        uuids: Their names for ``CUDA_VISIBLE_DEVICES``.
        start: Code that ``nvmlInit`` raises; 0: it starts.
        fault: Code that reading the memory raises; 0: it is read.
        begun: How often it was started and not ended.
        starts: How often it was started.
    """

    free: list[int] = field(default_factory=lambda: [8 << 30])
    total: int = 16 << 30
    uuids: list[str] = field(default_factory=lambda: ["GPU-0", "GPU-1"])
    start: int = 0
    fault: int = 0
    begun: int = 0
    starts: int = 0
    NVMLError = NVMLError

    def __call__(self) -> "FakeNvml":
        """Import the module."""
        return self

    def nvmlInit(self) -> None:  # noqa: N802 - as NVIDIA names it
        """Start; LIBRARY_NOT_FOUND or DRIVER_NOT_LOADED on a machine without GPUs."""
        if self.start:
            raise NVMLError(self.start)
        self.begun += 1
        self.starts += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - as NVIDIA names it
        """End; UNINITIALIZED where it was not started."""
        self._check()
        self.begun -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - as NVIDIA names it
        """Return the GPU of an index; INVALID_ARGUMENT beyond the last."""
        self._check()
        if index >= len(self.free):
            raise NVMLError(INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802 - as NVIDIA names it
        """Return the GPU of a UUID; NOT_FOUND where there is none."""
        self._check()
        if uuid not in self.uuids[: len(self.free)]:
            raise NVMLError(NOT_FOUND)
        return self.uuids.index(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802 - as NVIDIA names it
        """Return the memory; GPU_IS_LOST where it fell off the bus."""
        self._check()
        if self.fault:
            raise NVMLError(self.fault)
        free = self.free[handle]
        return SimpleNamespace(free=free, total=self.total, used=self.total - free)

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802 - as NVIDIA names it
        """Return what it is called."""
        self._check()
        return f"Fake GPU {handle}"

    def _check(self) -> None:
        if not self.begun:
            raise NVMLError(UNINITIALIZED)
