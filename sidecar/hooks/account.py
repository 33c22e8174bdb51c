"""The hook's own books: every batch offered is sent, dropped for a reason, or still queued."""

import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from sidecar.wire import HookReport


class Drop(StrEnum):
    """Why a batch never reached the daemon."""

    QUEUE_FULL = "queue_full"
    TOO_LARGE = "too_large"
    DISCONNECTED = "disconnected"
    BREAKER_OPEN = "breaker_open"
    NO_CREDIT = "no_credit"
    SHUTDOWN = "shutdown"
    ERROR = "error"


class Account:
    """Counts what happened to every forward pass and batch; any thread may write.

    Its lock is held for a few additions only, so no forward pass ever waits for the network here.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start at zero with a fresh lock, as a forked child must: the old one may be held."""
        self._lock = threading.Lock()
        self._forwards = 0
        self._sampled = 0
        self._offered = 0
        self._sent = 0
        self._errors = 0
        self._dropped: Counter[str] = Counter()
        self._hook_seconds = 0.0
        self._forward_seconds = 0.0

    @property
    def offered(self) -> int:
        """Batches that were offered or would have been, had the breaker not been open."""
        return self._offered

    @property
    def dropped(self) -> Mapping[str, int]:
        """Batches lost so far by reason, as a copy."""
        with self._lock:
            return dict(self._dropped)

    def forward(self, seconds: float, hook_seconds: float, *, sampled: bool) -> None:
        """Count a forward pass that ended."""
        with self._lock:
            self._forwards += 1
            self._sampled += sampled
            self._forward_seconds += seconds
            self._hook_seconds += hook_seconds

    def offer(self) -> None:
        """Count a batch that somebody wants to send."""
        with self._lock:
            self._offered += 1

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count offered batches that are lost."""
        if count:
            with self._lock:
                self._dropped[reason.value] += count

    def refuse(self, reason: Drop) -> None:
        """Count a batch that was wanted but is lost before it is built."""
        with self._lock:
            self._offered += 1
            self._dropped[reason.value] += 1

    def sent(self) -> None:
        """Count a batch handed to the transport."""
        with self._lock:
            self._sent += 1

    def error(self) -> None:
        """Count an exception that was caught."""
        with self._lock:
            self._errors += 1

    def report(self, sampling_rate: float) -> HookReport:
        """Return the books as they travel to the daemon."""
        with self._lock:
            return HookReport(
                forwards=self._forwards,
                sampled_forwards=self._sampled,
                batches_sent=self._sent,
                dropped=dict(self._dropped),
                errors=self._errors,
                hook_seconds=self._hook_seconds,
                forward_seconds=self._forward_seconds,
                sampling_rate=sampling_rate,
            )
