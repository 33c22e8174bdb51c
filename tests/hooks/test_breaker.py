import random

import pytest

from sidecar.hooks.breaker import BACKOFF_CAP_SECONDS, FAILURE_LIMIT, Breaker

pytestmark = pytest.mark.unit


class Longest(random.Random):
    """Jitter that always draws the longest wait."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the interface of Random
        """Return the upper end."""
        return b


def test_waits_double_up_to_the_cap() -> None:
    """The longest waits are 0.1 s, 0.2 s and so on up to 30 s, however long the outage."""
    breaker = Breaker(Longest())

    waits = [breaker.failed() for _ in range(5000)]

    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert waits[-1] == BACKOFF_CAP_SECONDS


def test_jitter_is_full() -> None:
    """Waits are spread from zero to the longest, so a fleet does not come back in step."""
    waits = []
    for seed in range(400):
        breaker = Breaker(random.Random(seed))  # noqa: S311 - jitter
        breaker.failures = 20
        waits.append(breaker.failed())

    assert min(waits) < 0.05 * BACKOFF_CAP_SECONDS
    assert max(waits) > 0.95 * BACKOFF_CAP_SECONDS
    assert sum(waits) / 400 == pytest.approx(BACKOFF_CAP_SECONDS / 2, rel=0.15)


def test_it_opens_after_failures_in_a_row_and_closes_with_a_success() -> None:
    """Four failures leave it closed, the fifth opens it, one success closes it."""
    breaker = Breaker(random.Random(0))  # noqa: S311 - jitter

    states = []
    for _ in range(FAILURE_LIMIT):
        states.append(breaker.open)
        breaker.failed()
    opened = breaker.open
    breaker.succeeded()

    assert states == [False] * FAILURE_LIMIT
    assert opened
    assert not breaker.open
