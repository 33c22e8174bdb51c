"""One decision per forward pass: which of its items are sampled?"""

import hashlib
import os
import random
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidecar.features import NAME_LIMIT

_KNOWN_LIMIT = 4096  # ids whose hash is remembered: a second's worth of a busy language model


class Choice(NamedTuple):
    """The items of one forward pass that are sampled.

    Every item is in with the same probability, the rate, but not independently of the others.

    Attributes:
        runs: ``(start, stop)`` of neighbouring chosen items, increasing and apart. Runs and not
            numbers, so that slices can take them: an index tensor would have to be sent to the
            model's device.
        items: How many are chosen; at least 1.
        draw: A random number from 0 to below 1 for further choices within the pass.
    """

    runs: tuple[tuple[int, int], ...]
    items: int
    draw: float


class Sampler:
    """Decides by random numbers, or by a hash of the requests' ids.

    Random and not every n-th forward: periodic traffic would be seen always at the same phase. Any
    number of threads may ask at once; equal seeds give equal sequences.

    Args:
        seed: Start of the random numbers, and key of the ids' hash. None: drawn from the operating
            system, and anew in each forked child, so that workers do not sample in step.
    """

    def __init__(self, seed: int | None) -> None:
        self._start(_drawn() if seed is None else seed)
        if seed is None:
            _start_anew_in_children(weakref.ref(self))

    def _start(self, seed: int) -> None:
        # Atomic and in C: no lock and no Python arithmetic in the forward pass.
        self._random = random.Random(seed).random  # noqa: S311 - nobody gains by guessing it
        self._key = (seed & (1 << 64) - 1).to_bytes(8)
        self._known: dict[str, int] = {}
        self._blocks = (1.0, 1, 1.0)

    def start_anew(self) -> None:
        """Go on with a seed of this process's own; called by the interpreter in a forked child."""
        self._start(_drawn())

    def draw(self, rate: float) -> float | None:
        """Decide on a forward pass that is sampled as a whole or not at all.

        Returns:
            A random number from 0 to below 1 for further choices within the pass, or None.
        """
        number = self._random
        return number() if number() < rate else None

    def choose(self, rate: float, items: int) -> Choice | None:
        """Decide on the items of one forward pass of which nothing else is known.

        The items are cut into about ``1 / rate`` blocks of neighbours and one block is chosen, so
        that a single slice holds it.

        Args:
            rate: Probability with which each item is sampled, above 0 to 1.
            items: How many there are; at least 1.

        Returns:
            The sampled items, or None.
        """
        chance = self._random()
        blocks, share = self._cut(rate)
        blocks += chance >= share
        block = int(self._random() * blocks)
        start, stop = block * items // blocks, (block + 1) * items // blocks
        return None if start == stop else Choice(((start, stop),), stop - start, self._random())

    def _cut(self, rate: float) -> tuple[int, float]:
        """Return a number n of blocks, and the share of passes with n blocks; others have n + 1.

        One of n blocks holds an item with probability 1/n; mixing n and n + 1 gives any rate exactly.
        """
        known, blocks, share = self._blocks
        if known != rate:
            blocks = int(1.0 / rate)
            share = rate * blocks * (blocks + 1) - blocks
            self._blocks = (rate, blocks, share)
        return blocks, share

    def choose_named(self, rate: float, ids: Sequence[str]) -> Choice | None:
        """Decide on the requests of one forward pass by their ids.

        The same id is decided alike in every pass as long as the rate stays, so that all passes of a
        request, such as the decode steps of a language model, are sampled or none; a lower rate
        keeps a part of the requests that a higher one keeps. An empty id is decided by chance.

        Args:
            rate: Probability with which each request is sampled, above 0 to 1.
            ids: The requests' ids in the order of the rows; at least one.

        Returns:
            The sampled requests, or None.
        """
        if rate >= 1.0:
            return Choice(((0, len(ids)),), len(ids), self._random())
        limit = rate * 2.0**64
        known = self._known
        chosen = [
            number
            for number, name in enumerate(ids)
            if (known.get(name) or self._hash(name)) < limit
        ]
        if not chosen:
            return None
        return Choice(tuple(_runs(chosen)), len(chosen), self._random())

    def _hash(self, name: str) -> float:
        """Return a number from 0 to 2**64 that is the same for the same name."""
        if not name:
            return self._random() * 2.0**64
        # A server may hand over any text, lone surrogates included, or even a number.
        data = str(name).encode("utf-8", "surrogatepass")
        value = int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest())
        if len(data) <= NAME_LIMIT:  # bounds the memory of what is remembered
            if len(self._known) >= _KNOWN_LIMIT:
                self._known = {}  # replaced, not cleared: another thread may be reading
            self._known[name] = value
        return value


def _drawn() -> int:
    return int.from_bytes(os.urandom(8))


def _start_anew_in_children(reference: "weakref.ref[Sampler]") -> None:
    """Tell a sampler of forks for as long as it lives; such handlers cannot be unregistered."""

    def handler() -> None:
        sampler = reference()
        if sampler is not None:
            sampler.start_anew()

    os.register_at_fork(after_in_child=handler)


def _runs(numbers: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Join increasing numbers into runs of neighbours."""
    start = stop = -1
    for number in numbers:
        if number != stop:
            if stop > start:
                yield start, stop
            start = number
        stop = number + 1
    if stop > start:
        yield start, stop
