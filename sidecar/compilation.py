"""Compiling the statistics' kernels beside the work, and handing them over when they are ready.

Compiling is ten seconds of one core and hundreds of megabytes, so a child process does it: the daemon
answers meanwhile, the memory is freed, and a stop need not wait. What the child leaves in numba's cache
the daemon loads within a second. Until then, and for ever where any of this fails, numpy counts.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from sidecar.stats import NUMPY, Kernels, SparseKernels, compile_sparse_kernels, compiled

CACHE_VARIABLE = "NUMBA_CACHE_DIR"
"""Where numba keeps what it compiled; beside the source, which may be read-only, if nobody says."""

_PROGRAM = """
import os, threading
os.nice(19)  # the model server on the same cores comes first
from sidecar.compilation import load_compiled
# The daemon holds the other end: whatever ends it, kill -9 too, ends this.
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
load_compiled()
"""

_CHILD = (sys.executable, "-c", _PROGRAM)

_LAST_WORDS = 2000
"""Bytes of a failed child's last words that are logged: the end of a traceback."""


@dataclass(frozen=True, slots=True)
class Loops:
    """What both kinds of statistics run.

    Attributes:
        dense: Of layers whose rows hold every feature.
        sparse: Of layers whose rows list what is not zero.
    """

    dense: Kernels
    sparse: SparseKernels


def load_compiled() -> Loops:
    """Return the compiled kernels; ten seconds without numba's cache, under one with it.

    Raises:
        ImportError: numba is not installed.
        RuntimeError: There is no folder in which numba may keep its cache.
    """
    return Loops(compiled(), compile_sparse_kernels())


class Compilation:
    """Kernels that are being compiled.

    Args:
        cache: Folder for compiled code where the environment names none; made when needed.
        hand_over: Called with the compiled kernels, from a thread of this.
        command: What fills the cache, ends with 0, and may be killed at any time.
        load: Returns the kernels, from the cache.
        environment: Of this process, in which the cache is named.

    Attributes:
        kernels: Name of what counts now.
        failed: Whether compiling came to nothing.
    """

    def __init__(
        self,
        cache: Path,
        hand_over: Callable[[Loops], None],
        *,
        command: tuple[str, ...] = _CHILD,
        load: Callable[[], Loops] = load_compiled,
        environment: MutableMapping[str, str] = os.environ,
    ) -> None:
        self._cache, self._hand_over = cache, hand_over
        self._command, self._load, self._environment = command, load, environment
        self._lock = threading.Lock()
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="sidecar-compilation", daemon=True)
        self.kernels = NUMPY.name
        self.failed = False

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the child if there is one, and wait for at most ``timeout`` seconds."""
        with self._lock:
            self._stopping = True
            if self._child is not None:
                self._child.kill()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def running(self) -> bool:
        """Whether the outcome is still open."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._compile()
        except Exception as error:  # noqa: BLE001 - whatever it is, numpy goes on counting
            if not self._stopping:
                self.failed = True
                structlog.get_logger().warning("kernels_not_compiled", error=str(error))

    def _compile(self) -> None:
        if CACHE_VARIABLE not in self._environment:
            # Code is loaded from here, so nobody else may write it.
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment[CACHE_VARIABLE] = str(self._cache)
        self._fill_cache()
        loops = self._load()
        if not self._stopping:
            self._hand_over(loops)
            self.kernels = loops.dense.name
            structlog.get_logger().info("kernels_compiled", kernels=self.kernels)

    def _fill_cache(self) -> None:
        with self._lock:
            if self._stopping:
                return
            self._child = subprocess.Popen(  # noqa: S603 - this interpreter, and nothing from outside
                self._command,
                env=dict(self._environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        with self._child as child:
            words = child.stderr.read() if child.stderr else b""
        if child.returncode:
            last = words[-_LAST_WORDS:].decode(errors="replace").strip()
            raise RuntimeError(f"compiling ended with {child.returncode}: {last}")
