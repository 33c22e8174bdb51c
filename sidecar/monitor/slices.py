"""One window of a layer's flagged features: which slices exceed, and the rows furthest beyond."""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sidecar.monitor.record import EvidenceRow

WINDOW_BYTES = 2048
"""Memory of a window's object, its containers and its place among the others, generously."""

FEATURE_BYTES = 256
"""Memory of one feature in a window: six numbers, and an empty list of rows."""

PAIR_BYTES = 320
"""Memory of one pair beside its text and its counts: two strings' heads, a tuple, a place in a table."""

ROW_BYTES = 512
"""Memory of one row beside its texts: an object with five fields, a tuple, a place in a list."""

TRAFFIC_LIMIT = 400
"""Characters of a row's slice; a whole slice may have thousands."""

KEY_SHARE = 4
"""One key may take a quarter of the places: a key with a value for each user must not push out the
route."""

Pair = tuple[str, str]
Ranked = tuple[float, EvidenceRow]


class SliceWindow:
    """Counts and rows of one window, of ``n`` features with the same thresholds throughout.

    The arrays it is made of become its own: nobody may change them later.

    Attributes:
        features: Their indices, shape ``(n,)``.
        high: A row is beyond above this, shape ``(n,)``; infinite: never.
        low: Or below this, shape ``(n,)``; minus infinity: never.
        started: Unix seconds.
        ended: Unix seconds; 0 while the window is open.
        turn: Which of the layer's windows it is.
        requests: Requests seen.
        exceedances: Those with a row beyond, shape ``(n,)``.
        places: The place of each pair in the counts.
        pair_requests: Requests with each pair, then those with pairs beyond the limit, shape
            ``(pairs + 1,)``; empty until a slice was seen.
        pair_exceedances: Those with a row beyond, shape ``(pairs + 1, n)``.
        rows: Of each feature the rows furthest beyond and by how much, the furthest first.
        floors: How far a row must be beyond to be among them, shape ``(n,)``.
        nbytes: Memory charged for it.
    """

    def __init__(
        self,
        features: NDArray[np.int64],
        high: NDArray[np.float32],
        low: NDArray[np.float32],
        now: float,
        turn: int,
    ) -> None:
        n = len(features)
        self.features, self.high, self.low = features, high, low
        self.started, self.ended, self.turn = now, 0.0, turn
        self.requests = 0
        self.exceedances = np.zeros(n, np.int64)
        self.places: dict[Pair, int] = {}
        self.keys: dict[str, int] = {}
        self.pair_requests = np.zeros(0, np.int64)
        self.pair_exceedances = np.zeros((0, n), np.uint32)
        self.rows: list[list[Ranked]] = [[] for _ in range(n)]
        self.floors = np.full(n, -np.inf)
        self.nbytes = WINDOW_BYTES + FEATURE_BYTES * n

    def fits(
        self, features: NDArray[np.int64], high: NDArray[np.float32], low: NDArray[np.float32]
    ) -> bool:
        """Whether these features with these thresholds are the window's."""
        return (
            np.array_equal(self.features, features)
            and np.array_equal(self.high, high)
            and np.array_equal(self.low, low)
        )

    def place(self, feature: int, high: float, low: float) -> int:
        """Return a feature's place in the arrays; -1 where it was not watched at these thresholds."""
        found = np.flatnonzero((self.features == feature) & (self.high == high) & (self.low == low))
        return int(found[0]) if len(found) else -1

    @property
    def two_sided(self) -> bool:
        """Whether any feature has a threshold below."""
        return bool(np.isfinite(self.low).any())

    @property
    def sliced(self) -> bool:
        """Whether any slice was seen."""
        return bool(len(self.pair_requests))

    def slice_bytes(self, limit: int) -> int:
        """Return what it takes to begin counting up to ``limit`` pairs."""
        return (limit + 1) * (8 + 4 * len(self.features))

    def begin_slices(self, limit: int) -> None:
        """Make room for the counts of ``limit`` pairs, and of those beyond."""
        self.pair_requests = np.zeros(limit + 1, np.int64)
        self.pair_exceedances = np.zeros((limit + 1, len(self.features)), np.uint32)

    def admit(self, pairs: Sequence[Pair], limit: int, room: int) -> tuple[list[int], int]:
        """Find the places of one slice's pairs, giving new ones to those that have none.

        Args:
            pairs: The slice.
            limit: Most pairs of the window.
            room: Bytes that may be taken.

        Returns:
            The places, in which ``limit`` stands for all pairs without a place of their own, each
            once; and the bytes taken.
        """
        found, taken = set(), 0
        for pair in pairs:
            place = self.places.get(pair)
            if place is None:
                cost = PAIR_BYTES + sys.getsizeof(pair[0]) + sys.getsizeof(pair[1])
                mine, place = self.keys.get(pair[0], 0), limit
                if len(self.places) < limit and mine * KEY_SHARE < limit and taken + cost <= room:
                    place, taken = len(self.places), taken + cost
                    self.places[pair], self.keys[pair[0]] = place, mine + 1
            found.add(place)
        return sorted(found), taken

    def count(self, by_request: NDArray[np.bool_]) -> None:
        """Count requests.

        Args:
            by_request: Whether each request has a row beyond each threshold, shape
                ``(requests, n)``.
        """
        self.requests += len(by_request)
        self.exceedances += np.count_nonzero(by_request, axis=0)

    def count_slices(
        self,
        by_request: NDArray[np.bool_],
        of_request: NDArray[np.int64],
        places: Sequence[Sequence[int]],
    ) -> int:
        """Count the same requests for every pair of their slices.

        Args:
            by_request: As for ``count``.
            of_request: Which slice each request has, shape ``(requests,)``; every slice is there.
            places: The places of each slice's pairs, see ``admit``.

        Returns:
            How many requests have a pair without a place of its own.
        """
        order = np.argsort(of_request, kind="stable")
        sizes = np.bincount(of_request)  # (slices,)
        starts = np.cumsum(sizes) - sizes
        # One sum for each slice first: there are few, and a spike may be thousands of exceedances.
        sums = np.add.reduceat(by_request[order], starts, axis=0, dtype=np.uint32)  # (slices, n)
        loud = np.count_nonzero(sums, axis=1)
        for number, own in enumerate(places):
            for place in own:
                self.pair_requests[place] += sizes[number]
                if loud[number]:
                    self.pair_exceedances[place] += sums[number]
        rest = len(self.pair_requests) - 1
        return int(sum(sizes[number] for number, own in enumerate(places) if rest in own))

    def close(self, now: float) -> int:
        """End the window, and return the bytes that are free again."""
        self.ended = now
        if not self.sliced:
            return 0
        before = self.pair_requests.nbytes + self.pair_exceedances.nbytes
        kept = [*range(len(self.places)), len(self.pair_requests) - 1]
        self.pair_requests = self.pair_requests[kept]
        self.pair_exceedances = self.pair_exceedances[kept]
        freed = before - self.pair_requests.nbytes - self.pair_exceedances.nbytes
        self.nbytes -= freed
        return freed


def row_bytes(row: EvidenceRow) -> int:
    """Return what a row is charged."""
    return ROW_BYTES + sys.getsizeof(row.request_id) + sys.getsizeof(row.traffic)
