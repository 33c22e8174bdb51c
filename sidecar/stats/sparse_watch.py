"""Counts, request by request, how often watched latents of a sparse layer pass their thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InvalidInput
from sidecar.features import Slice
from sidecar.stats.watch import Watch, Watched

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """Rows of a sparse layer as they are counted.

    Attributes:
        splits: Where each row's entries begin, and the last one's end, shape ``(rows + 1,)``.
        latents: The latent of each entry, shape ``(nnz,)``, uint32.
        values: Their values, shape ``(nnz,)``, float32.
        starts: The first row of each request, shape ``(requests,)``.
    """

    splits: NDArray[np.int64]
    latents: NDArray[np.uint32]
    values: NDArray[np.float32]
    starts: NDArray[np.int64]

    @property
    def sampled(self) -> int:
        """How many rows there are."""
        return len(self.splits) - 1


class SparseWatch(Watch):
    """The watched latents of one sparse layer and their counts in the open window.

    Counts what a ``Watch`` would of the same rows with every zero written out.
    """

    def __init__(self, width: int) -> None:
        self._watched = np.zeros(width, np.bool_)
        super().__init__()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the mark that every latent has."""
        return self._watched.nbytes

    def set(self, watched: Watched, width: int) -> None:
        """Watch exactly these latents; one that was watched in the same way keeps its counts.

        Raises:
            UnknownFeature: The layer has no such latent.
            InvalidInput: A high threshold or a further one is negative.
        """
        for limits in (np.asarray(watched.high), np.asarray(watched.levels)):
            if np.any(limits < 0):
                raise InvalidInput(
                    f"threshold {np.min(limits)}: a latent is never below 0, so that every row would "
                    "exceed it: use at least 0"
                )
        super().set(watched, width)
        self._watched[:] = False
        self._watched[self.indices] = True

    def absorb_rows(self, rows: SparseRows, traffic: Sequence[Slice]) -> None:
        """Count new rows, at least one; each counts once, whatever it stands for.

        Args:
            rows: Of the whole layer.
            traffic: The slice of each request; looked at only where ``sliced``.

        Complexity:
            One look-up an entry, and a sort of the entries that are watched.
        """
        if not len(self.indices):
            return
        peaks = _Peaks.of(rows, np.flatnonzero(self._watched.take(rows.latents)))
        for wanted, at in self._groups.items():
            if not wanted.pairs:
                self._count_group(at, peaks)
                continue
            chosen = np.array([one.contains(wanted) for one in traffic], np.bool_)  # (requests,)
            self._count_group(at, peaks.among(chosen))

    def _count_group(self, at: NDArray[np.int64], peaks: "_Peaks") -> None:
        """Count requests of the latents watched at the places ``at``."""
        first, end = (
            np.searchsorted(peaks.latents, self.indices[at], side=side) for side in _SIDES
        )
        lengths = end - first  # requests in which each is listed, shape (m,)
        owner = np.repeat(np.arange(len(at)), lengths)  # (pairs,)
        offset = np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        seen = peaks.part(np.arange(len(owner)) + offset)
        above = seen.most[:, None] > self.limits[at][owner]  # (pairs, 1 + k)
        np.add.at(self.passed, at[owner], above)
        # Where a latent is not listed it is zero.
        low, unlisted = self.low[at], peaks.requests - lengths
        fallen = (seen.zeros & (low > 0)[owner]) | (seen.least < low[owner])
        np.add.at(self.passed[:, 0], at[owner], fallen & ~above[:, 0])
        self.passed[at, 0] += np.where(low > 0, unlisted, 0)
        most = np.where(unlisted > 0, np.float32(0), np.float32(np.nan))
        np.fmax.at(most, owner, np.where(seen.zeros, np.fmax(seen.finite, 0), seen.finite))
        self.maximum[at] = np.fmax(self.maximum[at], most)
        self.requests[at] += peaks.requests


@dataclass(frozen=True, slots=True, eq=False)
class _Peaks:
    """What some requests show of watched latents: a latent's requests side by side, zeros left out.

    Attributes:
        latents: Of which latent, in increasing order, shape ``(pairs,)``.
        request: In which request, shape ``(pairs,)``.
        most: Its greatest entry there, shape ``(pairs,)``; NaN where there is only NaN.
        least: Its least entry, likewise.
        finite: Its greatest finite entry; NaN without one.
        zeros: Whether it was zero in some row of the request, shape ``(pairs,)``.
        requests: How many requests there are.
    """

    latents: NDArray[np.int64]
    request: NDArray[np.int64]
    most: NDArray[np.float32]
    least: NDArray[np.float32]
    finite: NDArray[np.float32]
    zeros: NDArray[np.bool_]
    requests: int

    @classmethod
    def of(cls, rows: SparseRows, entries: NDArray[np.int64]) -> "_Peaks":
        """Return what all requests of ``rows`` show in some of their entries."""
        requests = len(rows.starts)
        row = np.searchsorted(rows.splits, entries, side="right") - 1
        request = np.searchsorted(rows.starts, row, side="right") - 1
        values = rows.values[entries]
        pair, group = np.unique(
            rows.latents[entries].astype(np.int64) * requests + request, return_inverse=True
        )
        most, least, finite = (np.full(len(pair), np.nan, np.float32) for _ in range(3))
        np.fmax.at(most, group, values)
        np.fmin.at(least, group, values)
        known = np.isfinite(values)
        np.fmax.at(finite, group[known], values[known])
        lengths = np.diff(rows.starts, append=rows.sampled)
        zeros = np.bincount(group, minlength=len(pair)) < lengths[pair % requests]
        return cls(pair // requests, pair % requests, most, least, finite, zeros, requests)

    def among(self, chosen: NDArray[np.bool_]) -> "_Peaks":
        """Return what the chosen requests show."""
        return replace(self.part(chosen[self.request]), requests=int(np.count_nonzero(chosen)))

    def part(self, pairs: NDArray[np.int64] | NDArray[np.bool_]) -> "_Peaks":
        """Return some of the pairs."""
        names = ("latents", "request", "most", "least", "finite", "zeros")
        return replace(self, **{name: getattr(self, name)[pairs] for name in names})
