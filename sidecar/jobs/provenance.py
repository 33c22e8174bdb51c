"""What made a picture, beside the request: code, libraries, device, and how long each part took.

Only the worker child imports this; torch is loaded by then.
"""

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sidecar

if TYPE_CHECKING:
    import torch

PHASES = ("load", "plan", "optimise", "measure", "reliability")
"""The parts of an attempt that are timed, in their order."""

_LIBRARIES = ("pillow", "safetensors")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # one package directory, two distributions
_GIT_SECONDS = 5.0


class Phases:
    """Sums the seconds spent in each phase; a phase may be entered again."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start without a phase.

        Args:
            clock: Seconds from any start.
        """
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._current = ""
        self._since = 0.0

    @property
    def current(self) -> str:
        """The phase that runs; empty before the first and after the last."""
        return self._current

    def enter(self, phase: str) -> None:
        """End the phase that runs and begin another; an empty name begins none."""
        now = self._clock()
        if self._current:
            self._seconds[self._current] += now - self._since
        self._current, self._since = phase, now

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase, as ``<phase>_seconds``."""
        return {f"{phase}_seconds": seconds for phase, seconds in self._seconds.items()}


def code_facts() -> dict[str, str | None]:
    """Return the versions of everything that computes a picture; None: not installed, or unknown.

    Returns:
        ``sidecar``, ``commit`` (of a checkout, with ``-dirty`` where it was changed), ``python``,
        ``torch``, ``numpy``, ``pillow``, ``safetensors``, ``onnxruntime``.
    """
    import torch  # noqa: PLC0415 - loaded by now

    runtimes = [found for name in _RUNTIMES if (found := _version(name)) is not None]
    return {
        "sidecar": sidecar.__version__,
        "commit": _commit(Path(sidecar.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: _version(name) for name in _LIBRARIES},
        "onnxruntime": runtimes[0] if runtimes else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """Return the commit of a checkout; None where the code was installed as a package."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(  # noqa: S603 - constant but for our own folder
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a checkout without git is still the released code
    return found.stdout.strip() or None


def device_facts(device: "torch.device") -> dict[str, Any]:
    """Return where the picture was computed, and the switches on which its last bits depend."""
    import torch  # noqa: PLC0415 - loaded by now

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor()
    return {
        "type": device.type,
        "name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": _cuda_facts(device) if cuda else None,
        "flags": _flags(),
    }


def _cuda_facts(device: "torch.device") -> Mapping[str, Any]:
    import torch  # noqa: PLC0415 - loaded by now

    cudnn: Any = torch.backends.cudnn  # its functions have no types
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "runtime": torch.version.cuda,
        "cudnn": cudnn.version(),
        "capability": f"{major}.{minor}",
        "peak_bytes": torch.cuda.max_memory_allocated(device),  # of tensors, over the whole attempt
    }


def _flags() -> Mapping[str, Any]:
    import torch  # noqa: PLC0415 - loaded by now

    cudnn = torch.backends.cudnn
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_allow_tf32": cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
