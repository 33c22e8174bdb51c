"""Time in tests: waiting with a deadline, and a clock that only moves when told."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """Return the first truthy value of ``condition``.

    Args:
        condition: Asked again and again.
        seconds: How long to wait for it.
        what: What was waited for, for the message.

    Raises:
        AssertionError: It stayed falsy; the message shows its last value.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what or condition}: last {found!r}")
        threading.Event().wait(POLL_SECONDS)


class FakeClock:
    """A clock in Unix seconds that stands still until it is moved; safe for use by many threads."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        """Start at ``now``."""
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock; a negative number makes it jump back."""
        with self._lock:
            self._now += seconds
