"""The demo's child processes: started in groups of their own, and gone when the demo is gone.

However the demo ends (well, with an error, by Ctrl-C, by kill -9), no child outlives it: it stops
their process groups itself, and the kernel signals them should it not come to that.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

STOP_SECONDS = 8.0
"""How long a child may take to end by itself; the daemon drains and saves for at most 5 s."""

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 12


class ChildEnded(Exception):
    """A process the demo needs has ended; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """One child process.

    Attributes:
        name: What the demo calls it.
        process: The process, leader of its own group.
        log: Where its output goes.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path


class Children:
    """Starts and ends processes; a context manager. ``start`` belongs on the main thread.

    Args:
        folder: Where the children run.
        logs: Folder of their logs; created.
        environment: Their environment.
    """

    def __init__(self, folder: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._logs = folder, logs
        self._environment = dict(environment)
        self._children: list[Child] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every child, newest first."""
        self.stop()

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process.

        Raises:
            ChildEnded: The program cannot be run.
        """
        log = self._logs / f"{name}.log"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    list(command),
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_DieWithParent(os.getpid()),  # noqa: PLW1509 - it takes no lock
                )
        except OSError as error:
            raise ChildEnded(f"{name} cannot be started: {command[0]}: {error}") from error
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Look after all children.

        Raises:
            ChildEnded: One of them has ended.
        """
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                raise ChildEnded(f"{child.name} ended with {_words(status)}.\n{tail(child.log)}")

    def stop(self) -> None:
        """End every child: SIGTERM, time to finish, then SIGKILL to whatever is left of its group."""
        for child in reversed(self._children):
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in reversed(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
        self._children.clear()


def tail(log: Path) -> str:
    """Return the last lines of a log, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines or ["(empty)"])])


class _DieWithParent:
    """Runs in the child between fork and exec: asks the kernel for SIGTERM when the parent dies."""

    def __init__(self, parent: int) -> None:
        # Loaded before the fork: afterwards only calls that need no lock are safe.
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._parent = parent

    def __call__(self) -> None:
        if self._libc is None:
            return
        self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != self._parent:  # it died in between, so no signal will come
            os._exit(1)


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
        os.killpg(child.process.pid, number)


def _words(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
