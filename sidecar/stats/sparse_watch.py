"""Counts, request by request, how often watched latents of a sparse layer pass their thresholds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InvalidInput
from sidecar.stats.watch import Watch


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

    def set(self, indices: NDArray[np.int64], thresholds: NDArray[np.float32], width: int) -> None:
        """Watch exactly these latents; one with an unchanged threshold keeps its counts.

        Raises:
            ShapeMismatch: There are not as many thresholds as latents.
            UnknownFeature: The layer has no such latent.
            InvalidInput: A threshold is negative.
        """
        if np.any(np.asarray(thresholds) < 0):
            raise InvalidInput(
                f"threshold {np.min(thresholds)}: a latent is never below 0, so that every row would "
                "exceed it: use at least 0"
            )
        super().set(indices, thresholds, width)
        self._watched[:] = False
        self._watched[self.indices] = True

    def absorb_rows(self, rows: SparseRows) -> None:
        """Count new rows, at least one; each counts once, whatever it stands for.

        Complexity:
            One look-up an entry, and a sort of the entries that are watched.
        """
        if not len(self.indices):
            return
        entries = np.flatnonzero(self._watched.take(rows.latents))
        row = np.searchsorted(rows.splits, entries, side="right") - 1
        request, requests = np.searchsorted(rows.starts, row, side="right") - 1, len(rows.starts)
        known, place = np.unique(self.indices, return_inverse=True)
        column = np.searchsorted(known, rows.latents[entries])
        found = rows.values[entries]
        # The greatest value of each latent in each request, latent after latent.
        pair, group = np.unique(column * requests + request, return_inverse=True)
        peak = np.full(len(pair), -np.inf, np.float32)
        np.fmax.at(peak, group, found)
        ends = np.searchsorted(pair, np.arange(len(known) + 1) * requests)
        for at, (latent, limit) in enumerate(zip(place, self.thresholds, strict=True)):
            self.exceedances[at] += np.count_nonzero(peak[ends[latent] : ends[latent + 1]] > limit)
        self.requests += requests
        finite = np.isfinite(found)
        most = np.full(len(known), np.nan, np.float32)
        np.fmax.at(most, column[finite], found[finite])
        # In a row that does not list a latent it is zero.
        listed = np.bincount(column, minlength=len(known)) == rows.sampled
        most = np.where(listed, most, np.fmax(most, np.float32(0)))
        self.maximum = np.fmax(self.maximum, most[place])
