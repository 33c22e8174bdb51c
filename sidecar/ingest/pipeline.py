"""The queue between the streams and the statistics, and the one thread that writes to the bank."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from sidecar.config import IngestConfig
from sidecar.errors import QueueFull, SidecarError
from sidecar.features import LayerSample, SparseSample
from sidecar.ingest.accounting import Ledger
from sidecar.monitor import Event, Monitor
from sidecar.wire import Batch

TICK_SECONDS = 0.2
"""How often the writer looks whether a window is over; the error of a window's length."""

HIGH_WATER, LOW_WATER = 0.5, 0.1
"""Shares of the queue's bytes above which sampling halves, and below which it recovers."""

STEER_SECONDS = 1.0
"""Least time between two halvings of the sampling rate, so that one burst does not stop sampling."""

CALM_SECONDS = 10.0
"""Time without pressure before the sampling rate doubles: every attempt that fails costs samples."""

LEAST_RATE = 1.0 / 1024
"""Ten halvings: low enough for any overload, high enough that a feature stays sampled."""

ENTRY_LIMIT = 16_384
"""Batches that may wait, whatever their bytes: one without a tensor has no payload, but takes memory."""


@dataclass(frozen=True, slots=True)
class _Entry:
    batch: Batch
    done: Callable[[], None]


class Pipeline:
    """Takes batches from any thread and writes them to the monitor from its own."""

    def __init__(
        self,
        monitor: Monitor,
        ledger: Ledger,
        config: IngestConfig,
        *,
        clock: Callable[[], float],
        on_events: Callable[[tuple[Event, ...]], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            monitor: Where batches go; its windows are closed from here.
            ledger: Where every batch is counted.
            config: Bounds.
            clock: Returns Unix seconds.
            on_events: Called from the writer thread with what a closed window changed.
            monotonic: Seconds, never going back; tells how long the writer has been silent.
        """
        self._monitor, self._ledger, self._config = monitor, ledger, config
        self._clock, self._monotonic, self._on_events = clock, monotonic, on_events
        self._queue: deque[_Entry] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._next_steer = 0.0
        self._shed = 0
        self._calm_since = monotonic()
        self._thread = threading.Thread(target=self._run, name="sidecar-writer", daemon=True)
        self._turned = monotonic()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the writer last turned; the wall clock may jump meanwhile."""
        return self._monotonic() - self._turned

    def start(self) -> None:
        """Start the writer thread."""
        self._turned = self._monotonic()
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write what is queued and stop; what is left after ``timeout`` seconds counts as dropped.

        May be called without ``start``.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        while entry := self._pop():
            self._finish(entry, dropped="shutdown")

    def offer(self, batch: Batch, done: Callable[[], None]) -> None:
        """Queue a batch; never waits.

        Args:
            batch: What to write.
            done: Called from the writer thread once the batch was written or dropped; its arrays may
                be overwritten from then on.

        Raises:
            QueueFull: The queue has no room for it; the caller counts the refusal.
        """
        size, limit = batch.held_bytes, self._config.queue_bytes
        with self._wake:
            # Under the lock with which ``stop`` begins: what is accepted is written or dropped there.
            open_ = not self._stopping and len(self._queue) < ENTRY_LIMIT
            if open_ and self._ledger.accept(batch.payload_bytes, size):
                self._queue.append(_Entry(batch, done))
                self._wake.notify()
                return
        raise QueueFull(
            f"batch of {size} bytes does not fit into the queue of {limit} bytes: sampling is "
            "lowered; raise ingest.queue_bytes if this goes on"
        )

    def _pop(self) -> _Entry | None:
        with self._wake:
            return self._queue.popleft() if self._queue else None

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._stopping:
                    self._wake.wait(TICK_SECONDS)
                if self._stopping and not self._queue:
                    return
            entry = self._pop()
            if entry:
                self._write(entry)
            self._turn()

    def _write(self, entry: _Entry) -> None:
        now = self._clock()
        reasons = [self._apply(sample, now) for sample in entry.batch.samples]
        # One layer that was turned away, for example at a limit, must not cost the others.
        self._finish(entry, next(filter(None, reasons), ""))

    def _apply(self, sample: LayerSample | SparseSample, now: float) -> str:
        """Write one layer's rows; return why that failed, or nothing."""
        try:
            self._monitor.apply(sample, now)
        except SidecarError as error:
            return error.reason
        except Exception:  # noqa: BLE001 - rule 1: after start-up nothing may end the writer
            structlog.get_logger().exception("batch_failed")
            return SidecarError.reason
        return ""

    def _finish(self, entry: _Entry, dropped: str) -> None:
        self._ledger.finish(entry.batch.held_bytes, dropped)
        entry.done()

    def _turn(self) -> None:
        """Close the window when it is over, and steer the hooks."""
        now = self._clock()
        self._turned = self._monotonic()
        try:
            events = self._monitor.tick(now)
            if events:
                self._on_events(events)
        except Exception:  # noqa: BLE001 - as above
            structlog.get_logger().exception("tick_failed")
        if not self._next_steer - STEER_SECONDS <= now < self._next_steer:
            self._next_steer = now + STEER_SECONDS
            self._steer()

    def _steer(self) -> None:
        """Halve the sampling rate under pressure, double it after a while without.

        Hooks never have more in flight than their credit, so a few of them can be far too fast for
        the writer and still not fill the queue. What they drop for want of credit says so.
        """
        fill, shed, now = self._ledger.fill_ratio, self._ledger.shed, self._monotonic()
        rate, ceiling = self._ledger.sampling_rate, self._config.sampling_rate
        pressed = fill > HIGH_WATER or shed > self._shed
        self._shed = shed
        if pressed:
            rate = max(rate / 2, min(LEAST_RATE, ceiling))
        if pressed or fill >= LOW_WATER:
            self._calm_since = now
        elif now - self._calm_since >= CALM_SECONDS:
            rate, self._calm_since = min(rate * 2, ceiling), now
        self._ledger.sampling_rate = rate
