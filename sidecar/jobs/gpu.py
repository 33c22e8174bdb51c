"""Whether the GPU has room for a job: what NVML says is free, against what the job is known to take.

The daemon asks NVML, which needs no CUDA context and no torch; the job's child asks CUDA once it has
planned, when what it takes is known, and tells. A job without room waits and has lost nothing. NVML is
nvidia-ml-py, an optional package. None of this has ever run on a GPU: it is tested with stand-ins that
raise what NVIDIA documents.
"""

import importlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from sidecar.config import JobsConfig
from sidecar.errors import ConfigError
from sidecar.jobs.protocol import Job, Priority
from sidecar.jobs.spec import ModelSpec

GPU_MEMORY, PRESSURE = "gpu_memory", "pressure"
"""What a job may be held back for, as the metric's label says it."""

_log = structlog.get_logger(__name__)

_HELD_POLLS = 3.0  # a job that was held back and has not come again after so many is gone
_KNOWN_LIMIT = 1024  # jobs whose need is remembered; they would be planned once more
_MIB = 1 << 20
_CONTROL = Path("/dev/nvidiactl")  # made by the driver


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """The memory of one GPU.

    Attributes:
        name: What NVML calls it.
        free_bytes: Not taken by any process.
        total_bytes: All there is.
    """

    name: str
    free_bytes: int
    total_bytes: int


def import_nvml() -> Any:
    """Return the module of nvidia-ml-py.

    Raises:
        ImportError: It is not installed.
    """
    return importlib.import_module("pynvml")


class GpuMemory:
    """Reads the memory of the GPU that jobs run on. Safe to use from several threads."""

    def __init__(
        self, device: str, env: Mapping[str, str], load: Callable[[], Any] = import_nvml
    ) -> None:
        """Choose the device; NVML is not loaded yet.

        Args:
            device: ``auto``, ``cuda`` or ``cuda:N``, numbered as the child's torch does.
            env: The child's environment: ``CUDA_VISIBLE_DEVICES`` hides and reorders devices.
            load: Imports NVML.
        """
        self._index = int(device.partition(":")[2] or 0)
        self._visible = env.get("CUDA_VISIBLE_DEVICES")
        self._load = load
        self._guard = threading.Lock()
        self._nvml: Any = None

    def read(self) -> tuple[GpuRoom | None, str]:
        """Return the memory as it is now, or None and why it cannot be known."""
        with self._guard:
            try:
                nvml = self._begin()
            except ImportError:
                return None, "nvidia-ml-py is not installed: pip install 'feature-sidecar[gpu]'"
            except Exception as error:  # noqa: BLE001 - NVMLError is a class of the module that failed
                return None, f"NVML does not start: {error}"
            try:
                return self._look(nvml), ""
            except LookupError as error:
                return None, str(error)
            except nvml.NVMLError as error:
                self._end(nvml)  # the driver may have been loaded anew: begin again next time
                return None, f"NVML does not answer: {error}"

    def _begin(self) -> Any:
        if self._nvml is None:
            nvml = self._load()
            nvml.nvmlInit()
            self._nvml = nvml
        return self._nvml

    def _end(self, nvml: Any) -> None:
        self._nvml = None
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    def _look(self, nvml: Any) -> GpuRoom:
        handle = self._handle(nvml)
        memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
        shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        return GpuRoom(shown, int(memory.free), int(memory.total))

    def _handle(self, nvml: Any) -> Any:
        if self._visible is None:
            return nvml.nvmlDeviceGetHandleByIndex(self._index)
        seen = [one.strip() for one in self._visible.split(",") if one.strip()]
        if self._index >= len(seen) or seen[self._index] == "-1":
            raise LookupError(
                f"CUDA_VISIBLE_DEVICES {self._visible[:80]!r} shows no device {self._index}"
            )
        chosen = seen[self._index]
        if chosen.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
        return nvml.nvmlDeviceGetHandleByUUID(chosen)


class Admission:
    """Says which jobs must wait for memory of the GPU, and remembers what they take.

    Safe to use from several threads. Two children that start together are each admitted to the same
    free memory; what is then missing is refused by the cap in the child, and tried again.
    """

    def __init__(
        self,
        config: JobsConfig,
        env: Mapping[str, str],
        *,
        load: Callable[[], Any] = import_nvml,
        driver_is_there: Callable[[], bool] = _CONTROL.exists,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the bounds; nothing is asked yet.

        Args:
            config: Device and bounds.
            env: The children's environment.
            load: Imports NVML.
            driver_is_there: Whether this machine has a GPU; without one ``auto`` means the CPU.
            clock: Seconds from any start.
        """
        self._config, self._clock = config.gpu, clock
        required = config.gpu.admission == "require"
        there = required or config.device != "auto" or driver_is_there()
        self._asks = config.device != "cpu" and config.gpu.admission != "off" and there
        self._memory = GpuMemory(config.device, env, load) if self._asks else None
        self._guard = threading.Lock()
        self._known: dict[str, int] = {}
        self._waiting: dict[str, float] = {}
        self._counts = {GPU_MEMORY: 0, PRESSURE: 0}
        self._told = False
        self._room: GpuRoom | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """How often jobs were held back since the daemon started, by what for."""
        with self._guard:
            return dict(self._counts)

    @property
    def room(self) -> GpuRoom | None:
        """The memory when it was last read; None where it cannot be known."""
        return self._room

    def start(self) -> None:
        """Read the memory once.

        Raises:
            ConfigError: It must be known, and is not.
        """
        problem = self._read()[1]
        if problem and self._config.admission == "require":
            raise ConfigError(
                f"jobs.gpu.admission require: {problem}; mend that, or use jobs.gpu.admission: auto"
            )
        if self._room is not None:
            _log.info("gpu_found", name=self._room.name, total_bytes=self._room.total_bytes)

    def why_not(self, job_id: str, model: ModelSpec) -> str:
        """Return why a job cannot start now; empty where it may.

        What it takes is what its child said the last time; before that, the size of the model's file.
        """
        room, problem = self._read()
        if room is None:
            required = self._asks and self._config.admission == "require"
            return f"jobs.gpu.admission require: {problem}" if required else ""
        with self._guard:
            needs = self._known.get(job_id)
        if needs is None:
            needs = _file_bytes(model)
        wanted = needs + self._config.reserve_bytes
        # Of more than there is at all no waiting makes room: the child ends the job, and says why.
        if room.free_bytes >= wanted or wanted > room.total_bytes:
            with self._guard:
                self._waiting.pop(job_id, None)
            return ""
        return (
            f"{room.free_bytes // _MIB} MiB are free on {room.name}, and it takes {needs // _MIB} MiB beside "
            f"jobs.gpu.reserve_bytes, {self._config.reserve_bytes // _MIB} MiB"
        )

    def hold(self, job: Job, held: str, needs_bytes: int) -> float:
        """Take note that a job goes back into the queue.

        Args:
            job: Which.
            held: What it waits for, one of the words above; empty: it made way, and waits for nothing.
            needs_bytes: Memory that it takes, where its child has said so, or 0.

        Returns:
            Seconds after which it should look again.
        """
        if not held:
            return 0.0
        with self._guard:
            self._counts[held] += 1
            if needs_bytes:
                self._known[job.id] = needs_bytes
                while len(self._known) > _KNOWN_LIMIT:
                    del self._known[next(iter(self._known))]
            if held == GPU_MEMORY and job.request.priority is Priority.INTERACTIVE:
                self._waiting[job.id] = self._clock() + _HELD_POLLS * self._config.poll_seconds
        return self._config.poll_seconds

    def held_for(self) -> str:
        """Return for which person's job audits must leave the GPU; empty where none waits for it."""
        now = self._clock()
        with self._guard:
            self._waiting = {job: until for job, until in self._waiting.items() if until > now}
            first = next(iter(self._waiting), "")
        return f"job {first} waits for memory of the GPU" if first else ""

    def _read(self) -> tuple[GpuRoom | None, str]:
        if self._memory is None:
            return None, ""
        found, problem = self._memory.read()
        if problem and not self._told:
            _log.warning("gpu_memory_unknown", problem=problem)
        self._told, self._room = bool(problem), found
        return found, problem


def _file_bytes(model: ModelSpec) -> int:
    """Return the size of a model's file; 0 where its factory has weights of its own."""
    path = model.onnx or model.weights
    try:
        return Path(path).stat().st_size if path else 0
    except OSError:
        return 0  # the child will say what is wrong with it
