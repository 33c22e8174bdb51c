"""Counts, request by request, how often watched latents of a sparse layer pass their thresholds."""

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InvalidInput
from sidecar.stats.watch import Watch


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

    def absorb_entries(
        self,
        splits: NDArray[np.int64],
        latents: NDArray[np.uint32],
        values: NDArray[np.float32],
        starts: NDArray[np.int64],
    ) -> None:
        """Count new rows of a sparse layer.

        Args:
            splits: Where each row's entries begin, shape ``(rows + 1,)``, at least one row.
            latents: The latent of each entry, shape ``(nnz,)``.
            values: Their values, shape ``(nnz,)``.
            starts: The first row of each request, shape ``(requests,)``.

        Complexity:
            One look-up an entry, and a sort of the entries that are watched.
        """
        if not len(self.indices):
            return
        entries = np.flatnonzero(self._watched.take(latents))
        row = np.searchsorted(splits, entries, side="right") - 1
        request = np.searchsorted(starts, row, side="right") - 1
        known, place = np.unique(self.indices, return_inverse=True)
        column = np.searchsorted(known, latents[entries])
        found = values[entries]
        # The greatest value of each latent in each request, latent after latent.
        pair, group = np.unique(column * len(starts) + request, return_inverse=True)
        peak = np.full(len(pair), -np.inf, np.float32)
        np.fmax.at(peak, group, found)
        ends = np.searchsorted(pair, np.arange(len(known) + 1) * len(starts))
        for at, (latent, limit) in enumerate(zip(place, self.thresholds, strict=True)):
            self.exceedances[at] += np.count_nonzero(peak[ends[latent] : ends[latent + 1]] > limit)
        self.requests += len(starts)
        finite = np.isfinite(found)
        most = np.full(len(known), np.nan, np.float32)
        np.fmax.at(most, column[finite], found[finite])
        # In a row that does not list a latent it is zero.
        listed = np.bincount(column, minlength=len(known)) == len(splits) - 1
        most = np.where(listed, most, np.fmax(most, np.float32(0)))
        self.maximum = np.fmax(self.maximum, most[place])
