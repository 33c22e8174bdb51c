"""One child process: started with a specification, listened to, and ended for certain."""

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from sidecar.errors import CorruptState, WorkerCrashed
from sidecar.jobs.spec import Event, decode_event

KILL_SECONDS = 1.5
"""Between the request to end and the kill: enough for an optimiser step on a CPU, and with the time it
takes to notice a cancellation within the two seconds that are promised."""

_TAIL_BYTES = 16 << 10  # of stdout and stderr: a long traceback is 4 kB
_LINE_LIMIT_BYTES = 1 << 20  # an event is some hundred bytes; beyond this the child is broken
_READ_BYTES = 1 << 16
_ERROR_LINES = 40  # the interpreter's account of a crash alone takes some twenty


class Child:
    """A child in its own session, with pipes for its input, its events and its output.

    ``close`` must be called; it kills whatever is left of the child's process group.
    """

    def __init__(
        self, command: Sequence[str], line: bytes, folder: Path, env: Mapping[str, str]
    ) -> None:
        """Start the child.

        Args:
            command: Programme and arguments; the number of the event descriptor is appended.
            line: What it reads from stdin; stdin then stays open until the daemon ends.
            folder: Its working directory.
            env: Its environment.

        Raises:
            WorkerCrashed: The programme cannot be started.
        """
        events, announce = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, str(announce)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(announce,),
                cwd=folder,
                env=dict(env),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            os.close(events)
            raise WorkerCrashed(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(announce)
        self._events = os.fdopen(events, "rb", buffering=0)
        self._unsent = memoryview(line)
        self._partial = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._kill_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._register()

    def _register(self) -> None:
        wanted = (
            (self._process.stdin, selectors.EVENT_WRITE),
            (self._process.stdout, selectors.EVENT_READ),
            (self._events, selectors.EVENT_READ),
        )
        for stream, mask in wanted:
            assert stream is not None  # noqa: S101 - all three were asked for
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, mask)

    @property
    def pid(self) -> int:
        """The child's process id, and that of its group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """The last lines of what the child printed."""
        text = b"".join(self._tail).decode("utf-8", "replace")
        return "\n".join(text.strip().splitlines()[-_ERROR_LINES:])

    def pump(self, seconds: float) -> list[Event]:
        """Move bytes both ways until there is an event, at most ``seconds``.

        Raises:
            CorruptState: The child wrote something that is no event.
        """
        if not self._selector.get_map():
            time.sleep(seconds)  # every pipe is closed; the child is about to end
            return []
        found: list[Event] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._process.stdin:
                self._send()
            elif key.fileobj is self._process.stdout:
                self._keep_output()
            else:
                found += self._read_events()
        return found

    def drain(self) -> list[Event]:
        """Return the events that were still in the pipe when the child ended."""
        if self._process.stdout in self._selector.get_map():
            self._keep_output()
        return self._read_events() if self._events in self._selector.get_map() else []

    def _send(self) -> None:
        stdin = self._stream(self._process.stdin)
        try:
            self._unsent = self._unsent[stdin.write(self._unsent) or 0 :]
        except BrokenPipeError:
            self._unsent = self._unsent[:0]  # it ended before it had read; its exit says why
        if not self._unsent:
            self._selector.unregister(stdin)  # but stays open: its end means our end

    def _keep_output(self) -> None:
        stdout = self._stream(self._process.stdout)
        while chunk := stdout.read(_READ_BYTES):
            self._tail.append(chunk)
            self._tail_bytes += len(chunk)
            while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES:
                self._tail_bytes -= len(self._tail.popleft())
            if len(chunk) < _READ_BYTES:
                return  # look at the other pipes before reading on
        if chunk is not None:
            self._selector.unregister(stdout)

    def _read_events(self) -> list[Event]:
        while chunk := self._events.read(_READ_BYTES):
            self._partial += chunk
            if len(self._partial) > _LINE_LIMIT_BYTES:
                raise CorruptState(f"the worker wrote {len(self._partial)} bytes of events at once")
        if chunk is not None:
            self._selector.unregister(self._events)
        *lines, rest = bytes(self._partial).split(b"\n")
        self._partial = bytearray(rest)
        return [decode_event(line) for line in lines]

    @property
    def exited(self) -> bool:
        """Whether the child has ended; it stays a zombie, so that its pid cannot be used again."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def terminate(self) -> None:
        """Ask the child to end; ``enforce`` kills it ``KILL_SECONDS`` later."""
        if not self._kill_at:
            self._kill_at = time.monotonic() + KILL_SECONDS
            self._signal(signal.SIGTERM)

    def terminate_later(self) -> None:
        """Let the child end by itself; ``enforce`` kills it ``KILL_SECONDS`` later."""
        self._kill_at = self._kill_at or time.monotonic() + KILL_SECONDS

    def enforce(self) -> None:
        """Kill the child's group where it was asked to end and did not."""
        if self._kill_at and time.monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)

    def close(self) -> int:
        """Kill what is left of the child's group, free its pipes and return its exit status."""
        if self._process.returncode is not None:
            return self._process.returncode  # waited for: its number may be somebody else's by now
        self._signal(signal.SIGKILL)
        status = self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._events):
            self._stream(stream).close()
        return status

    def _signal(self, number: int) -> None:
        # Its own process has not been waited for, so the group's number is still its own.
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # it ended between fork and setsid
        except PermissionError:
            self._process.send_signal(number)

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None  # noqa: S101 - all pipes were asked for
        return stream


def describe_exit(status: int) -> str:
    """Say in words how a process ended."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
