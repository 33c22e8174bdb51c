"""The inner loops as a value: which implementation counts is the caller's choice, not the core's.

Both implementations leave bit for bit the same state behind: every float operation is on one value at
a time, and everything that is summed is a whole number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.features import Values
from sidecar.stats import plain
from sidecar.stats.batch import Batch
from sidecar.stats.binning import Grid
from sidecar.stats.tally import Tally

Counting = Callable[[Tally, Values, NDArray[np.int64], Grid], None]
Exceeding = Callable[
    [
        Values,
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.float32],
        NDArray[np.int64],
        NDArray[np.float32],
    ],
    None,
]
Screening = Callable[[Values, NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]], None]


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of the inner loops.

    Attributes:
        name: ``numpy`` or ``numba``.
        count: Adds values of shape ``(rows, width)`` to a tally whose counters have been reserved:
            moments, extremes, zeros, what is not finite, and bins. Its third argument says how often
            each row counts; empty: once.
        moments: The same without zeros and bins, for who needs no quantiles.
        exceed: Counts the requests that pass thresholds. Takes values, the first row of each
            request, the ``n`` features looked at, their thresholds ``(n, k)``, and adds to how many
            requests have a row above each ``(n, k)`` and to each feature's greatest finite value
            ``(n,)``. An infinity passes, a NaN does not.
        screen: The same of every feature and one threshold each, without the greatest value and
            several times as fast. Takes values, the first row of each request, thresholds
            ``(width,)``, and adds to how many requests have a row above each ``(width,)``.
    """

    name: str
    count: Counting
    moments: Counting
    exceed: Exceeding
    screen: Screening

    def absorb(self, tally: Tally, batch: Batch, grid: Grid) -> None:
        """Count a batch of at least one row; ``grid`` is the same at every call for one tally."""
        tally.reserve(tally.rows + batch.rows)
        self.count(tally, batch.values, batch.copies, grid)
        tally.saw(batch)


NUMPY = Kernels("numpy", plain.count, plain.moments, plain.exceed, plain.screen)
"""Always there; the reference of the others."""


def compiled() -> Kernels:
    """Return the compiled kernels.

    Loads numba and compiles: under a second where its cache is warm, else tens of seconds of one
    core, so call it beside the work and not in its way.

    Raises:
        Exception: Whatever numba raises where it is missing, or cannot compile or cache.
    """
    from sidecar.stats import loops  # noqa: PLC0415 - numba costs a second and 60 MB

    return Kernels("numba", loops.count, loops.moments, loops.exceed, loops.screen)
