import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.hooks.account import Account, Drop
from sidecar.hooks.batch import ForwardBatch
from sidecar.hooks.queue import ByteQueue

pytestmark = pytest.mark.unit

Make = Callable[..., ForwardBatch]


def never() -> bool:
    """Say that the consumer goes on."""
    return False


def test_the_newest_is_dropped_when_the_bytes_are_used_up(forward_batch: Make) -> None:
    """What was there first stays, in order; what does not fit is released and counted."""
    account = Account()
    queue = ByteQueue(100, account)
    released: list[int] = []
    batches = [
        forward_batch(held_bytes=40, release=lambda n=n: released.append(n)) for n in range(3)
    ]

    taken = [queue.offer(batch, 0.0) for batch in batches]

    assert [True, True, False] == taken
    assert released == [2]
    assert account.dropped == {"queue_full": 1}
    first = queue.take(0.0, never)
    assert first is not None
    assert first[1] is batches[0]


def test_a_batch_larger_than_the_queue_is_told_apart(forward_batch: Make) -> None:
    """It could never fit, so it counts as too large, not as a full queue."""
    account = Account()

    assert not ByteQueue(100, account).offer(forward_batch(held_bytes=101), 0.0)
    assert account.dropped == {"too_large": 1}


def test_a_batch_in_hand_still_counts_as_held(forward_batch: Make) -> None:
    """Room comes back when a batch is settled, not when it is taken."""
    queue = ByteQueue(100, Account())
    batch = forward_batch(held_bytes=100)
    queue.offer(batch, 0.0)
    queue.take(0.0, never)

    refused = queue.offer(batch, 0.0)
    queue.settle(batch, None)

    assert not refused
    assert queue.offer(batch, 0.0)


def test_what_is_taken_at_once_waits_already_and_is_small_enough(forward_batch: Make) -> None:
    """Nothing is waited for, and a batch that is too large stays the oldest."""
    queue = ByteQueue(100, Account())
    small, large = forward_batch(held_bytes=10), forward_batch(held_bytes=50)
    queue.offer(small, 0.0)
    queue.offer(large, 1.0)

    assert queue.take_ready(10, lambda: True) is None
    assert queue.take_ready(10, never) == (0.0, small)
    assert queue.take_ready(49, never) is None
    assert queue.take(0.0, never) == (1.0, large)
    assert queue.take_ready(100, never) is None
    assert queue.pending == 2


def test_an_ended_consumer_takes_nothing_from_its_successor(forward_batch: Make) -> None:
    """A consumer whose stream is over leaves the batch for the next one."""
    queue = ByteQueue(100, Account())
    queue.offer(forward_batch(held_bytes=1), 0.0)

    assert queue.take(0.0, lambda: True) is None
    assert queue.take(0.0, never) is not None


def test_closing_lets_the_rest_out_and_nothing_in(forward_batch: Make) -> None:
    """After closing, what waits can be taken; new offers are dropped as shutdown."""
    account = Account()
    queue = ByteQueue(100, account)
    queue.offer(forward_batch(held_bytes=1), 0.0)
    queue.close()

    refused = queue.offer(forward_batch(held_bytes=1), 0.0)

    assert not refused
    assert account.dropped == {"shutdown": 1}
    assert queue.take(10.0, never) is not None
    assert queue.take(10.0, never) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.integers(1, 80),
            st.sampled_from(["take", "sent", "dropped", "clear", "close"]),
        ),
        max_size=60,
    )
)
def test_every_batch_is_accounted_for_once(forward_batch: Make, actions: list[Any]) -> None:
    """After any history: offered = sent + dropped + pending, and everything settled is released."""
    account = Account()
    queue = ByteQueue(100, account)
    in_hand: list[ForwardBatch] = []
    released: list[bool] = []
    for action in actions:
        if isinstance(action, int):
            queue.offer(
                forward_batch(held_bytes=action, release=lambda: released.append(True)), 0.0
            )
        elif action == "take":
            found = queue.take(0.0, never)
            in_hand += [found[1]] if found else []
        elif action == "clear":
            queue.clear(Drop.BREAKER_OPEN)
        elif action == "close":
            queue.close()
        elif in_hand:
            queue.settle(in_hand.pop(), None if action == "sent" else Drop.NO_CREDIT)

    report = account.report(1.0)
    gone = report.batches_sent + sum(report.dropped.values())
    assert account.offered == gone + queue.pending
    assert len(released) == gone


def test_threads_lose_nothing(forward_batch: Make) -> None:
    """Four producers and one consumer at once: the books still balance to the last batch."""
    account = Account()
    queue = ByteQueue(50, account)
    taken = []

    def produce() -> None:
        for _ in range(500):
            queue.offer(forward_batch(held_bytes=10), 0.0)

    def consume() -> None:
        while (found := queue.take(10.0, never)) is not None:
            taken.append(found)
            queue.settle(found[1], None)

    producers = [threading.Thread(target=produce) for _ in range(4)]
    consumer = threading.Thread(target=consume)
    for thread in (*producers, consumer):
        thread.start()
    for thread in producers:
        thread.join()
    queue.close()
    consumer.join()

    report = account.report(1.0)
    assert account.offered == 2000
    assert report.batches_sent == len(taken)
    assert report.batches_sent + sum(report.dropped.values()) == 2000
    assert queue.pending == 0


def taken_when(
    queue: "WatchedQueue",
    happens: Callable[[], object],
    wait_for: Any,
    ended: Callable[[], bool] = never,
) -> float:
    """Return how long a waiting consumer took to come back once something had happened."""
    consumer = threading.Thread(target=queue.take, args=(20.0, ended))
    consumer.start()
    wait_for(queue.watched)
    started = time.monotonic()
    happens()
    consumer.join()
    return time.monotonic() - started


class WatchedQueue(ByteQueue):
    """Says whether a consumer waits."""

    def watched(self) -> bool:
        """Return whether one does, in its nap or after it."""
        return bool(self._changed._waiters)  # type: ignore[attr-defined]  # noqa: SLF001


def test_a_batch_within_steady_traffic_wakes_nobody(
    forward_batch: Make, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies there until the consumer's nap is over; the forward pass pays for no wake-up."""
    monkeypatch.setattr("sidecar.hooks.queue.NAP_SECONDS", 1.0)
    queue = WatchedQueue(100, Account())

    waited = taken_when(queue, lambda: queue.offer(forward_batch(held_bytes=1), 0.0), wait_for)

    assert 0.5 < waited < 10.0
    assert queue.pending == 1  # in hand


def test_the_first_batch_after_a_pause_wakes_the_consumer(
    forward_batch: Make, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its nap a consumer sleeps until a batch comes, which is then taken at once."""
    monkeypatch.setattr("sidecar.hooks.queue.NAP_SECONDS", 0.0)
    queue = WatchedQueue(100, Account())

    assert taken_when(queue, lambda: queue.offer(forward_batch(), 0.0), wait_for) < 10.0


@pytest.mark.parametrize("what", ["crowded", "closed", "woken"])
def test_a_nap_ends_early_where_it_would_cost_something(
    forward_batch: Make, wait_for: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A queue that fills, that is closed, or whose consumer is to end waits for no nap."""
    monkeypatch.setattr("sidecar.hooks.queue.NAP_SECONDS", 20.0)
    queue = WatchedQueue(100, Account())
    ends: list[bool] = []

    def happens() -> None:
        if what == "crowded":
            queue.offer(forward_batch(held_bytes=26), 0.0)
        elif what == "closed":
            queue.close()
        else:
            ends.append(True)
            queue.wake()

    assert taken_when(queue, happens, wait_for, lambda: bool(ends)) < 10.0
