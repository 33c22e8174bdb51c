"""Dynamic batching: what shares a forward pass, what is refused, and what an error reaches."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.batching import Batcher, Saturated

pytestmark = pytest.mark.unit

DEADLINE = 10.0


class Gate:
    """A function over batches that waits to be let through, and remembers what it saw."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        """Return the negatives, once the gate is open."""
        self.entered.release()
        assert self.open.wait(DEADLINE)
        self.batches.append(list(items))
        return [-item for item in items]


@contextmanager
def running(batcher: Batcher[int, int]) -> Iterator[Batcher[int, int]]:
    """Start a batcher and close it."""
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.close()


def negate(items: Sequence[int]) -> list[int]:
    """Return the negatives."""
    return [-item for item in items]


def test_requests_that_wait_together_share_full_batches() -> None:
    """What queues up during one forward pass leaves in batches of the largest size."""
    gate = Gate()
    with running(Batcher(gate, max_batch=8, max_wait_seconds=0.0)) as batcher:
        first = batcher.submit(0)
        assert gate.entered.acquire(timeout=DEADLINE)
        others = [batcher.submit(item) for item in range(1, 20)]
        gate.open.set()
        answers = [future.result(DEADLINE) for future in [first, *others]]

    assert [-item for item in range(20)] == answers
    assert [1, 8, 8, 3] == [len(batch) for batch in gate.batches]


def test_a_batch_waits_for_company() -> None:
    """A second request within the waiting time joins the first one's batch."""
    gate = Gate()
    gate.open.set()
    with running(Batcher(gate, max_batch=2, max_wait_seconds=DEADLINE)) as batcher:
        first = batcher.submit(1)
        assert not first.done()
        batcher.submit(2)
        first.result(DEADLINE)

    assert [[1, 2]] == gate.batches


def test_a_lonely_request_leaves_after_the_wait() -> None:
    """A batch that never fills still leaves."""
    with running(Batcher(negate, max_batch=8, max_wait_seconds=0.005)) as batcher:
        assert -7 == batcher.submit(7).result(DEADLINE)


def test_a_full_queue_refuses() -> None:
    """One request more than the queue holds is refused, and the others are answered."""
    gate = Gate()
    with running(Batcher(gate, max_batch=1, queue_limit=2)) as batcher:
        running_one = batcher.submit(0)
        assert gate.entered.acquire(timeout=DEADLINE)
        waiting = [batcher.submit(1), batcher.submit(2)]
        with pytest.raises(Saturated, match="2 requests"):
            batcher.submit(3)
        gate.open.set()

        assert [0, -1, -2] == [future.result(DEADLINE) for future in [running_one, *waiting]]


def test_an_error_reaches_its_own_batch_only() -> None:
    """A forward pass that raises fails its requests, and the next ones are answered."""

    def run(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise ArithmeticError("thirteen")
        return negate(items)

    with running(Batcher(run, max_batch=1)) as batcher:
        with pytest.raises(ArithmeticError, match="thirteen"):
            batcher.submit(13).result(DEADLINE)
        assert -1 == batcher.submit(1).result(DEADLINE)


def test_too_few_answers_are_an_error() -> None:
    """A function that loses an answer leaves nobody waiting for ever."""
    with (
        running(Batcher(lambda _: [], max_batch=1)) as batcher,
        pytest.raises(ValueError, match="shorter"),
    ):
        batcher.submit(1).result(DEADLINE)


def test_a_cancelled_request_is_not_computed() -> None:
    """A request whose client has gone away takes no place in a batch."""
    gate = Gate()
    with running(Batcher(gate, max_batch=8, max_wait_seconds=0.0)) as batcher:
        batcher.submit(0)
        assert gate.entered.acquire(timeout=DEADLINE)
        gone, kept = batcher.submit(1), batcher.submit(2)
        assert gone.cancel()
        gate.open.set()
        kept.result(DEADLINE)

    assert [[0], [2]] == gate.batches


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    """A stopping server drops no accepted request."""
    gate = Gate()
    batcher = Batcher(gate, max_batch=1, queue_limit=4)
    batcher.start()
    futures = [batcher.submit(item) for item in range(3)]
    gate.open.set()
    batcher.close(DEADLINE)

    assert [0, -1, -2] == [future.result(0) for future in futures]
    with pytest.raises(Saturated, match="shutting down"):
        batcher.submit(9)


@given(
    items=st.lists(st.integers(), max_size=40),
    max_batch=st.integers(1, 9),
    wait=st.sampled_from([0.0, 0.001]),
)
def test_everybody_gets_their_own_answer(items: list[int], max_batch: int, wait: float) -> None:
    """However batches form, each request gets the answer to its own item."""
    sizes: list[int] = []

    def run(batch: Sequence[int]) -> list[int]:
        sizes.append(len(batch))
        return negate(batch)

    with running(Batcher(run, max_batch=max_batch, max_wait_seconds=wait)) as batcher:
        answers = [future.result(DEADLINE) for future in [batcher.submit(item) for item in items]]

    assert negate(items) == answers
    assert max(sizes, default=0) <= max_batch
    assert len(items) == sum(sizes)
