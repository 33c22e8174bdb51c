"""Dynamic batching: requests that arrive close together share one forward pass.

As in production servers: one model thread, a bounded queue, and a batch that leaves as soon as it is
full or its first request has waited long enough.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CLOSED = "the server is shutting down"


class Saturated(Exception):
    """The queue has no room: the caller should try again later."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: "Future[Answer]" = field(default_factory=Future)


class Batcher(Generic[Item, Answer]):
    """Runs one function over batches of what many threads submit.

    Args:
        run: Answers a batch, in order; called on one thread only. What it raises becomes the
            outcome of every request of that batch, and the thread goes on.
        max_batch: Most items of one call.
        max_wait_seconds: How long the first item of a batch waits for company.
        queue_limit: Most items waiting; one more is refused.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        max_batch: int = 8,
        max_wait_seconds: float = 0.005,
        queue_limit: int = 64,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._queue: queue.Queue[_Waiting[Item, Answer] | None] = queue.Queue(queue_limit)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Start the model thread."""
        self._thread.start()

    def submit(self, item: Item) -> "Future[Answer]":
        """Queue one item and return its future answer.

        Raises:
            Saturated: The queue is full, or ``close`` was called.
        """
        waiting: _Waiting[Item, Answer] = _Waiting(item)
        with self._lock:
            if self._closed:
                raise Saturated(CLOSED)
            try:
                self._queue.put_nowait(waiting)
            except queue.Full:
                raise Saturated(f"{self._queue.maxsize} requests are waiting already") from None
        return waiting.answer

    def close(self, timeout: float = 5.0) -> None:
        """Answer what is queued, refuse what comes, and stop the thread; again is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # The thread empties the queue, so room for the end mark always comes.
        self._queue.put(None, timeout=timeout)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = self._gather(first)
            self._answer([waiting for waiting in batch if _wanted(waiting.answer)])
            if ended:
                return

    def _gather(self, first: _Waiting[Item, Answer]) -> tuple[list[_Waiting[Item, Answer]], bool]:
        """Collect a batch, and say whether the end mark was met."""
        batch = [first]
        deadline = time.monotonic() + self._max_wait_seconds
        while len(batch) < self._max_batch:
            try:
                waiting = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
        return batch, False

    def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        if not batch:
            return
        try:
            answers = self._run([waiting.item for waiting in batch])
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer.set_result(answer)
        except Exception as error:  # noqa: BLE001 - the requests learn of it; the thread must live
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)


def _wanted(answer: "Future[Answer]") -> bool:
    """Claim a request, unless its client has gone away meanwhile."""
    return answer.set_running_or_notify_cancel()
