"""The hook's own books: every batch offered is sent, dropped for a reason, or still queued."""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from enum import StrEnum

from sidecar.hooks.governor import Governor
from sidecar.wire import HookReport

_FOLD = 256  # passes that may wait to be counted in


class Drop(StrEnum):
    """Why a batch never reached the daemon."""

    QUEUE_FULL = "queue_full"
    TOO_LARGE = "too_large"
    NO_ROWS = "no_rows"
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
        self._governor = Governor(None, 1.0)
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
        self._governed = 0
        self._passes: deque[tuple[float, float | None, float]] = deque()

    @property
    def offered(self) -> int:
        """Batches that were offered or would have been, had the breaker not been open."""
        return self._offered

    @property
    def dropped(self) -> Mapping[str, int]:
        """Batches lost so far by reason, as a copy."""
        with self._lock:
            return dict(self._dropped)

    def follow(self, governor: Governor) -> None:
        """Report the rate and the share of this governor from now on."""
        self._governor = governor

    def passed(self, seconds: float) -> None:
        """Count a forward pass that was not sampled: the one call every dormant pass pays for.

        Put down without a lock; the next report, which the sender asks for, counts it in.
        """
        self._passes.append((seconds, None, 0.0))
        if len(self._passes) >= _FOLD:
            self._fold_in()

    def sampled(self, seconds: float, hook_seconds: float, rate: float) -> None:
        """Count a sampled forward pass.

        Args:
            seconds: What the whole pass took, hooks included.
            hook_seconds: What the hooks took of it.
            rate: Sampling rate it was chosen with.
        """
        self._passes.append((seconds, hook_seconds, rate))
        if len(self._passes) >= _FOLD:
            self._fold_in()

    def _fold_in(self) -> None:
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        """Count in the passes put down so far; the lock is held."""
        passes, governor = self._passes, self._governor
        # Only here are entries taken out, so as many as there are now can be.
        for _ in range(len(passes)):
            seconds, hook_seconds, rate = passes.popleft()
            self._forwards += 1
            self._forward_seconds += seconds
            self._governed += governor.holding
            if hook_seconds is not None:
                self._sampled += 1
                self._hook_seconds += hook_seconds
                governor.note(hook_seconds, self._forward_seconds, rate)

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
        """Return the books as they travel to the daemon.

        Args:
            sampling_rate: What the sink allows; the governor may allow less.
        """
        with self._lock:
            self._fold()
            return HookReport(
                forwards=self._forwards,
                sampled_forwards=self._sampled,
                batches_sent=self._sent,
                dropped=dict(self._dropped),
                errors=self._errors,
                hook_seconds=self._hook_seconds,
                forward_seconds=self._forward_seconds,
                sampling_rate=min(sampling_rate, self._governor.rate),
                governed_forwards=self._governed,
                overhead_ratio=self._governor.ratio,
            )
