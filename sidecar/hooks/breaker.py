"""When to try again, and when to stop copying until somebody answers."""

import random

FAILURE_LIMIT = 5
"""Failures in a row after which the breaker opens: about 3 s of trying on average."""

BACKOFF_SECONDS = 0.1
"""Longest wait after the first failure; doubles with each further one."""

BACKOFF_CAP_SECONDS = 30.0
"""Longest wait at all."""


class Breaker:
    """Counts failures in a row and draws the wait before the next attempt.

    While open, each attempt to connect is the half-open probe: it costs the forward pass nothing,
    since copying is switched off, and its success closes the breaker.

    Args:
        rng: Source of the jitter.

    Attributes:
        failures: In a row.
        open: Whether so many attempts failed that copying is a waste. Kept, not worked out: every
            sampled forward pass looks at it.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0
        self.open = False

    def failed(self) -> float:
        """Count a failure and return the seconds to wait before the next attempt.

        Source:
            "Exponential backoff and jitter", AWS architecture blog 2015: full jitter spreads a
            fleet's reconnects best.
        """
        # The exponent is clipped: 2.0**1024 overflows after an outage of half a day.
        ceiling = min(BACKOFF_CAP_SECONDS, BACKOFF_SECONDS * 2.0 ** min(self.failures, 32))
        self.failures += 1
        self.open = self.failures >= FAILURE_LIMIT
        return self._rng.uniform(0.0, ceiling)

    def succeeded(self) -> None:
        """Forget the failures: the daemon took something."""
        self.failures = 0
        self.open = False
