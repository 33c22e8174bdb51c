"""Rows as the bank takes them in: their values as they came, and how many rows each stands for."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.features import LayerSample, Slice, SparseSample, Values

EVERY = np.empty(0, np.int64)
"""The ``copies`` of a batch in which every row stands for itself alone: the usual case, and faster."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one layer.

    Attributes:
        values: Shape ``(sampled, width)``: float32, float16, or the bits of bfloat16 as uint16.
        starts: The first row of each request, shape ``(requests,)``.
        copies: How many rows of traffic each row stands for, at least 1, shape ``(sampled,)``; or
            ``EVERY``.
        at: Unix seconds.
    """

    values: Values
    starts: NDArray[np.int64]
    copies: NDArray[np.int64]
    at: float

    @property
    def sampled(self) -> int:
        """Rows at hand."""
        return len(self.values)

    @property
    def rows(self) -> int:
        """Rows of traffic they stand for."""
        return int(self.copies.sum()) if len(self.copies) else self.sampled

    @property
    def requests(self) -> int:
        """Requests they belong to."""
        return len(self.starts)

    @property
    def counted(self) -> NDArray[np.int64]:
        """``copies``, spelled out: shape ``(sampled,)`` always."""
        return self.copies if len(self.copies) else np.ones(self.sampled, np.int64)

    def columns(self, features: NDArray[np.int64]) -> "Batch":
        """Return the same rows of some features, as float32."""
        return replace(self, values=decoded(self.values.take(features, axis=1)))

    def kept(self) -> "Batch":
        """Return a copy as float32 that shares no memory with whoever sent it."""
        return replace(self, values=np.array(decoded(self.values), np.float32))


def decoded(values: Values) -> NDArray[np.float32]:
    """Return values as float32, which holds every float16 and bfloat16 exactly."""
    if values.dtype == np.uint16:
        # bfloat16 is the upper half of a float32.
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is data here, not a mistake
        return np.asarray(values, np.float32)


def traffic_of(sample: LayerSample | SparseSample, starts: NDArray[np.int64]) -> list[Slice]:
    """Return the slice of each request of a sample, given the first row of each.

    Those of a sample that describes none belong to the empty slice.
    """
    if not sample.requests:
        return [Slice()] * len(starts)
    return [sample.requests[i].traffic for i in sample.request_index[starts].tolist()]


class Rounding:
    """Turns weights into whole numbers of rows, so that their sums stay within one of the exact.

    Weights are whole only by chance. Rounding each would favour some requests for ever; here the
    fraction that was cut off a row is carried to the next, so that over any stretch of rows the
    counts add up to the weights.

    Example:
        >>> Rounding().copies(np.array([1.5, 1.5, 2.25, 1.75])).tolist()
        [1, 2, 2, 2]
    """

    __slots__ = ("carried",)

    def __init__(self, carried: float = 0.0) -> None:
        if not 0.0 <= carried < 1.0:
            raise ValueError(f"carried {carried}: need a fraction")
        self.carried = carried

    def copies(self, weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how often each row counts: its weight rounded down or up.

        Args:
            weights: Of the rows in order, each at least 1, shape ``(rows,)``; empty: all are 1.
        """
        if not len(weights):
            return EVERY
        reached = self.carried + np.cumsum(weights)
        whole = np.floor(reached)
        self.carried = float(reached[-1] - whole[-1])
        return np.diff(whole, prepend=0.0).astype(np.int64)
