"""Counts every batch exactly once on its way through the daemon."""

import threading
from collections import Counter
from types import MappingProxyType

from sidecar.monitor import IngestCounts
from sidecar.wire import HookReport

CLIENT_LIMIT = 1024
"""Hook processes whose last report is remembered, to add up increments; the oldest is forgotten."""

SHED_REASONS = ("no_credit", "queue_full")
"""Hooks' drop reasons that say the daemon is slower than its hooks: no credit came back in time."""

REASON_LIMIT = 32
"""Distinct reasons of hooks' drops; what comes beyond is summed as ``other``, for ever the same way."""


class Ledger:
    """The counters behind ``IngestCounts``; every method is atomic."""

    def __init__(self, *, queue_limit_bytes: int, sampling_rate: float) -> None:
        """Start at zero.

        Args:
            queue_limit_bytes: Bytes of batches that may be in flight.
            sampling_rate: Share of forward passes hooks are asked for at first.
        """
        self._lock = threading.Lock()
        self._limit = queue_limit_bytes
        self._received = self._accepted = self._processed = self._in_flight = 0
        self._payload_bytes = self._queue_bytes = self._streams = 0
        self._refused: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._hooks = _HookTotals()
        self._sampling_rate = sampling_rate

    def accept(self, payload_bytes: int, held_bytes: int) -> bool:
        """Count a batch in and into the queue if it fits; say whether.

        One that does not fit is not counted here: the caller refuses it.

        Args:
            payload_bytes: Of its tensors.
            held_bytes: What it takes in the queue.
        """
        with self._lock:
            fits = self._queue_bytes + held_bytes <= self._limit
            if fits:
                self._received += 1
                self._accepted += 1
                self._in_flight += 1
                self._queue_bytes += held_bytes
                self._payload_bytes += payload_bytes
            return fits

    def refuse(self, reason: str) -> None:
        """Count a batch in, or a message that cannot be read, and as turned away."""
        with self._lock:
            self._received += 1
            self._refused[reason] += 1

    def finish(self, held_bytes: int, dropped: str = "") -> None:
        """Count an accepted batch out of the queue: processed, or dropped for a reason."""
        with self._lock:
            self._in_flight -= 1
            self._queue_bytes -= held_bytes
            if dropped:
                self._dropped[dropped] += 1
            else:
                self._processed += 1

    def report(self, client_id: str, report: HookReport) -> None:
        """Take the account that a hook gives of itself; ``client_id`` names whose books these are."""
        with self._lock:
            self._hooks.add(client_id, report)

    def open_stream(self, limit: int) -> bool:
        """Count a stream in if there are fewer than ``limit``; say whether."""
        with self._lock:
            fits = self._streams < limit
            self._streams += fits
            return fits

    def close_stream(self) -> None:
        """Count a stream out."""
        with self._lock:
            self._streams -= 1

    @property
    def fill_ratio(self) -> float:
        """Share of the queue's bytes that is taken."""
        with self._lock:
            return self._queue_bytes / self._limit

    @property
    def shed(self) -> int:
        """Batches that hooks dropped because the daemon did not keep up with them."""
        with self._lock:
            return sum(self._hooks.dropped[reason] for reason in SHED_REASONS)

    @property
    def sampling_rate(self) -> float:
        """Share of forward passes the daemon asks hooks for."""
        with self._lock:
            return self._sampling_rate

    @sampling_rate.setter
    def sampling_rate(self, rate: float) -> None:
        with self._lock:
            self._sampling_rate = rate

    def counts(self) -> IngestCounts:
        """Return all counters as they stand at one moment."""
        with self._lock:
            hooks = self._hooks
            return IngestCounts(
                received=self._received,
                accepted=self._accepted,
                refused=MappingProxyType(dict(self._refused)),
                processed=self._processed,
                dropped=MappingProxyType(dict(self._dropped)),
                in_flight=self._in_flight,
                payload_bytes=self._payload_bytes,
                queue_bytes=self._queue_bytes,
                queue_limit_bytes=self._limit,
                streams=self._streams,
                sampling_rate=self._sampling_rate,
                hook_batches_sent=int(hooks.total["batches_sent"]),
                hook_dropped=MappingProxyType(dict(hooks.dropped)),
                hook_errors=int(hooks.total["errors"]),
                forwards=int(hooks.total["forwards"]),
                sampled_forwards=int(hooks.total["sampled_forwards"]),
                hook_seconds=hooks.total["hook_seconds"],
                forward_seconds=hooks.total["forward_seconds"],
                governed_forwards=int(hooks.total["governed_forwards"]),
                hook_sampling_rate=hooks.newest.sampling_rate,
                hook_overhead_ratio=hooks.newest.overhead_ratio,
            )


class _HookTotals:
    """Sums of what hook processes report, as increments: a restarted process takes nothing away."""

    FIELDS = (
        "forwards",
        "sampled_forwards",
        "batches_sent",
        "errors",
        "hook_seconds",
        "forward_seconds",
        "governed_forwards",
    )

    def __init__(self) -> None:
        self.total = dict.fromkeys(self.FIELDS, 0.0)
        self.dropped: Counter[str] = Counter()
        self.newest = HookReport()
        self._last: dict[str, HookReport] = {}

    def add(self, client_id: str, report: HookReport) -> None:
        # A process reports before its first batch is sent. One that is unknown and has sent some
        # told them to a daemon of before: its history is no news, and no alert.
        elsewhere = report if report.batches_sent else HookReport()
        last = self._last.pop(client_id, elsewhere)
        self._last[client_id] = self.newest = report
        for name in self.FIELDS:
            self.total[name] += _increment(getattr(last, name), getattr(report, name))
        for reason, count in report.dropped.items():
            known = reason in self.dropped or len(self.dropped) < REASON_LIMIT
            grown = int(_increment(last.dropped.get(reason, 0), count))
            self.dropped[reason if known else "other"] += grown
        while len(self._last) > CLIENT_LIMIT:
            del self._last[next(iter(self._last))]


def _increment(before: float, now: float) -> float:
    """Return the growth of a counter, which starts again at 0 with its process."""
    return now - before if now >= before else now
