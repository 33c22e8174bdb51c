"""One measured line, and how time is measured: CPU seconds, the least of several runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement beside its peer, both from the same run.

    Attributes:
        name: Stable name, ``suite.what``.
        value: Ours.
        unit: Of both values.
        peer: What it is compared with.
        peer_value: The peer's, in the same unit.
        ratio: How many times better than the peer; above 1 is better.
    """

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float


def least_cpu_seconds(
    work: Callable[[], object], repeats: int = 9, before: Callable[[], object] = bool
) -> float:
    """Return the CPU seconds of this thread for one call: the least of ``repeats``, after one more.

    ``before`` is called before each, and is not part of it. The least is what the work costs; everything above it is the neighbours on a shared machine.
    """
    work()
    times = []
    for _ in range(repeats):
        before()
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)
