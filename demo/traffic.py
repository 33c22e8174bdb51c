"""A client that sends photographs at a steady rate over a few connections.

In phase ``EVERYDAY`` it sends the usual mix; in phase ``CATS`` a second kind of client has joined in
and a share of the requests are its pictures.
"""

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

import numpy as np

from demo.photos import Photo, ShuffledDeck, augment, encode

TIMEOUT_SECONDS = 10.0
"""Longest wait for one answer; a forward pass takes some 20 ms, and 64 may wait in the queue."""


class Phase(StrEnum):
    """Which traffic is sent."""

    EVERYDAY = "everyday"
    CATS = "cats"


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the requests so far.

    Attributes:
        answered: Answered with 200.
        refused: Answered with 503.
        failed: Anything else: another status, a broken connection, no answer in time.
        cats: How many of the answered were the new client's.
        latency_seconds: Running mean of the answered requests, weighted to the newest.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    cats: int = 0
    latency_seconds: float = 0.0

    @property
    def sent(self) -> int:
        """All requests that came to an end."""
        return self.answered + self.refused + self.failed


@dataclass(frozen=True, slots=True)
class _Shot:
    """One request to send: when, and which picture."""

    due: float
    photo: Photo
    is_cat: bool
    seed: int


class Traffic:
    """Sends photographs from threads until it is closed; a context manager.

    The rate is kept by a common timetable, so a slow answer on one connection does not slow the
    others. When all connections are busy for more than a second the timetable moves on: the client
    offers what the server can take rather than a burst afterwards.

    Args:
        url: The address to post to.
        everyday: The usual mix.
        cats: What the new client sends.
        rate: Requests a second.
        connections: Requests in flight at most.
        cat_share: Share of the new client's requests in phase ``CATS``.
        seed: Seed of the pictures and their order.
    """

    def __init__(
        self,
        url: str,
        everyday: Sequence[Photo],
        cats: Sequence[Photo],
        *,
        rate: float,
        connections: int = 4,
        cat_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = parts.path or "/"
        self._rng = np.random.default_rng(seed)
        self._everyday = ShuffledDeck(everyday, self._rng)
        self._cats = ShuffledDeck(cats, self._rng)
        self._interval = 1.0 / rate
        self._cat_share = cat_share
        self._phase = Phase.EVERYDAY
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._next = 0.0
        self._tally = Tally()
        self._threads = [
            threading.Thread(target=self._send_all, name=f"client-{n}", daemon=True)
            for n in range(connections)
        ]

    def __enter__(self) -> Self:
        """Start to send."""
        self._next = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to send, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS + 1)

    def enter(self, phase: Phase) -> None:
        """Send another kind of traffic from the next request on."""
        with self._lock:
            self._phase = phase

    @property
    def tally(self) -> Tally:
        """What became of the requests so far."""
        with self._lock:
            return self._tally

    def _draw(self) -> _Shot:
        with self._lock:
            now = time.monotonic()
            due = self._next if self._next > now - 1.0 else now
            self._next = due + self._interval
            is_cat = self._phase is Phase.CATS and self._rng.random() < self._cat_share
            photo = (self._cats if is_cat else self._everyday).deal()
            return _Shot(due, photo, is_cat, int(self._rng.integers(2**63)))

    def _send_all(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            while not self._stop.is_set():
                shot = self._draw()
                rng = np.random.default_rng(shot.seed)
                body = encode(augment(shot.photo, rng), rng)
                if self._stop.wait(max(0.0, shot.due - time.monotonic())):
                    break
                self._send(connection, body, is_cat=shot.is_cat)
        finally:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, body: bytes, *, is_cat: bool) -> None:
        start = time.monotonic()
        try:
            connection.request("POST", self._path, body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it anew
            status = 0
        self._note(status, time.monotonic() - start, is_cat=is_cat)
        if status == 0:
            self._stop.wait(0.2)  # a server that is away is asked again, but not in a tight loop

    def _note(self, status: int, seconds: float, *, is_cat: bool) -> None:
        with self._lock:
            seen = self._tally
            if status == http.client.OK:
                # Averages over about the last twenty answers; the first one stands for itself.
                share = 1.0 if not seen.answered else 0.05
                mean = seen.latency_seconds + share * (seconds - seen.latency_seconds)
                self._tally = replace(
                    seen,
                    answered=seen.answered + 1,
                    cats=seen.cats + is_cat,
                    latency_seconds=mean,
                )
            elif status == http.client.SERVICE_UNAVAILABLE:
                self._tally = replace(seen, refused=seen.refused + 1)
            else:
                self._tally = replace(seen, failed=seen.failed + 1)
