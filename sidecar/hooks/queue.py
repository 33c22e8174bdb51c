"""A queue bounded in bytes that drops the newest and never makes a producer wait."""

import threading
from collections import deque
from collections.abc import Callable

from sidecar.hooks.account import Account, Drop
from sidecar.hooks.batch import Batch

NAP_SECONDS = 0.1
"""How long a consumer that finds nothing looks away before it asks to be woken. Under steady traffic
none of the batches then has to wake it: that is a system call in the forward pass, and a second thread
that wants the interpreter right behind it. As long as the least time between two reports."""

_CROWDED = (
    0.25  # of the bytes: from here on each batch wakes the consumer, so that none is lost to a nap
)


def _queue_full() -> Drop:
    return Drop.QUEUE_FULL


class ByteQueue:
    """Holds batches for the sender, up to a number of bytes.

    Every batch offered is counted in the account, and ends there as sent or dropped, or is still
    ``pending`` here.

    Args:
        limit_bytes: Most bytes held.
        account: Where offers and drops are counted.
    """

    def __init__(self, limit_bytes: int, account: Account) -> None:
        self.limit_bytes = limit_bytes
        self._crowded_bytes = int(_CROWDED * limit_bytes)
        self._account = account
        self.reset()

    def reset(self) -> None:
        """Forget everything with fresh locks, as a forked child must."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._items: deque[tuple[float, Batch]] = deque()
        self._held_bytes = 0
        self._in_hand = 0
        self._closed = False
        self._asleep = False  # whether a consumer waits to be woken by the next batch

    @property
    def pending(self) -> int:
        """Batches that are neither sent nor dropped yet."""
        with self._lock:
            return len(self._items) + self._in_hand

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken in."""
        return self._closed

    def offer(self, batch: Batch, now: float, when_full: Callable[[], Drop] = _queue_full) -> bool:
        """Take a batch in, or drop it and count why.

        Args:
            batch: Released at once when dropped.
            now: Seconds on the clock that ``take`` is asked with.
            when_full: Says what a full queue means at the moment.

        Returns:
            Whether the batch is in the queue.
        """
        self._account.offer()
        size = batch.held_bytes
        with self._lock:
            held_bytes = self._held_bytes + size
            if held_bytes <= self.limit_bytes and not self._closed:
                self._items.append((now, batch))
                self._held_bytes = held_bytes
                if self._asleep or held_bytes > self._crowded_bytes:
                    self._changed.notify_all()
                return True
            closed = self._closed
        batch.release()
        if closed:
            self._account.drop(Drop.SHUTDOWN)
        else:
            self._account.drop(Drop.TOO_LARGE if size > self.limit_bytes else when_full())
        return False

    def take(self, timeout_seconds: float, ended: Callable[[], bool]) -> tuple[float, Batch] | None:
        """Wait for the oldest batch; the caller settles it, see ``settle``.

        One that comes while the queue is empty is taken at once after a pause in the traffic, and up
        to ``NAP_SECONDS`` later within it.

        Args:
            timeout_seconds: Longest wait.
            ended: Looked at under the lock, so that a consumer which is no longer wanted cannot
                take what belongs to its successor.

        Returns:
            When it was offered, and the batch; None after the timeout, or when the consumer has
            ended or the queue is closed and empty.
        """
        with self._lock:
            if not self._items:
                self._wait(timeout_seconds, ended)
            if ended() or not self._items:
                return None
            offered_at, batch = self._items.popleft()
            self._in_hand += 1
            return offered_at, batch

    def take_ready(self, limit_bytes: int, ended: Callable[[], bool]) -> tuple[float, Batch] | None:
        """Take the oldest batch like ``take``, but only one that waits already and is small enough.

        Args:
            limit_bytes: Most bytes the batch may hold.
            ended: As in ``take``.
        """
        with self._lock:
            if not self._items or self._items[0][1].held_bytes > limit_bytes or ended():
                return None
            self._in_hand += 1
            return self._items.popleft()

    def _wait(self, timeout_seconds: float, ended: Callable[[], bool]) -> None:
        """Wait for a batch with the lock held: first without being woken by one, then with."""
        nap_seconds = min(timeout_seconds, NAP_SECONDS)
        self._changed.wait_for(
            lambda: ended() or self._closed or self._held_bytes > self._crowded_bytes, nap_seconds
        )
        if self._items or timeout_seconds <= nap_seconds:
            return
        self._asleep = True
        try:
            self._changed.wait_for(
                lambda: self._items or ended() or self._closed, timeout_seconds - nap_seconds
            )
        finally:
            self._asleep = False

    def settle(self, batch: Batch, reason: Drop | None) -> None:
        """Count a taken batch as sent, or as dropped for a reason, and release it."""
        if reason is None:
            self._account.sent()
        else:
            self._account.drop(reason)
        with self._lock:
            self._in_hand -= 1
            self._held_bytes -= batch.held_bytes
        batch.release()

    def clear(self, reason: Drop) -> None:
        """Drop everything that waits."""
        with self._lock:
            gone = [batch for _, batch in self._items]
            self._items.clear()
            self._held_bytes -= sum(batch.held_bytes for batch in gone)
        self._account.drop(reason, len(gone))
        for batch in gone:
            batch.release()

    def close(self) -> None:
        """Take nothing more in; what waits may still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Let consumers look at their ``ended`` again."""
        with self._lock:
            self._changed.notify_all()
