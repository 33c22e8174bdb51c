"""The first rows of a layer, kept until there are enough of them to place the bins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.features import WEIGHT_LIMIT
from sidecar.stats.batch import EVERY, Batch
from sidecar.stats.binning import Binning, learn_grid
from sidecar.stats.budget import Detail
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.epoch import Epoch
from sidecar.stats.kernels import Kernels

_MOST = int(WEIGHT_LIMIT)


@dataclass(frozen=True, slots=True)
class _Closed:
    """A window that ended."""

    at: float


class Warmup:
    """Everything that happened to a layer before its bins were placed.

    Holds fewer than ``rows_wanted`` rows and one more sample, and no more than two ends of windows
    for each sample, so it is bounded however long the layer stays quiet.
    """

    def __init__(self, width: int, rows_wanted: int) -> None:
        self._width = width
        self._wanted = rows_wanted
        self._events: list[Batch | _Closed] = []

    @property
    def complete(self) -> bool:
        """Whether there are enough rows to place the bins for good."""
        return self.rows >= self._wanted

    @property
    def rows(self) -> int:
        """Rows kept."""
        return sum(event.sampled for event in self._events if isinstance(event, Batch))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows kept."""
        return sum(event.values.nbytes for event in self._events if isinstance(event, Batch))

    def learned(self) -> tuple[int, int]:
        """Return the rows and requests kept: all are of the baseline."""
        batches = [event for event in self._events if isinstance(event, Batch)]
        return self.rows, sum(one.requests for one in batches)

    @property
    def arrived(self) -> list[Batch]:
        """What came in since the last window ended."""
        ends = [i for i, event in enumerate(self._events) if isinstance(event, _Closed)]
        newest = self._events[ends[-1] + 1 if ends else 0 :]
        return [event for event in newest if isinstance(event, Batch)]

    def absorb(self, batch: Batch, _: Kernels) -> None:
        """Keep a copy of new rows."""
        self._events.append(batch.kept())

    def close(self, now: float) -> None:
        """Note that a window ended."""
        end = _Closed(now)
        newest = self._events[-2:]
        # Two ends in a row mean "the last window was empty"; a third one only moves the time.
        if len(newest) > 1 and all(isinstance(event, _Closed) for event in newest):
            self._events[-1] = end
        else:
            self._events.append(end)

    def replay(
        self,
        binning: Binning,
        history_seconds: float,
        kernels: Kernels,
        detail: Detail,
        features: NDArray[np.int64] | None = None,
    ) -> Epoch:
        """Place the bins from the first ``rows_wanted`` rows and count everything that happened.

        Args:
            binning: How finely.
            history_seconds: Length of a history generation.
            kernels: What counts.
            detail: How much is kept.
            features: Only of these; None: of all. A feature's bins depend on its own rows alone.
        """
        first = self._stacked()[: self._wanted]
        rows = first if features is None else first.take(features, axis=1)
        epoch = Epoch(learn_grid(rows, binning), history_seconds, detail)
        for event in self._events:
            if isinstance(event, _Closed):
                epoch.close(event.at)
            else:
                epoch.absorb(event if features is None else event.columns(features), kernels)
        return epoch

    def put(self, arrays: Arrays, prefix: str) -> list[list[float | int]]:
        """Add rows, starts and copies under ``prefix``; return events as ``[rows, requests, at]``."""
        batches = [event for event in self._events if isinstance(event, Batch)]
        arrays[prefix + "rows"] = self._stacked()
        arrays[prefix + "starts"] = np.concatenate([EVERY, *(batch.starts for batch in batches)])
        arrays[prefix + "copies"] = np.concatenate([EVERY, *(batch.counted for batch in batches)])
        return [
            [event.sampled, event.requests, event.at]
            if isinstance(event, Batch)
            else [0, 0, event.at]
            for event in self._events
        ]

    def take(self, arrays: Arrays, prefix: str, events: list[list[Any]]) -> None:
        """Become what ``put`` saw.

        Raises:
            ValueError: Rows and events do not fit together; so may KeyError and TypeError.
        """
        rows = typed(arrays[prefix + "rows"], np.float32)
        starts, copies = (typed(arrays[prefix + name], np.int64) for name in ("starts", "copies"))
        wanted = tuple(sum(event[at] for event in events) for at in (0, 1))
        if rows.shape != (wanted[0], self._width) or starts.shape != wanted[1:]:
            raise ValueError(f"{prefix}rows have shape {rows.shape}, starts {starts.shape}")
        if copies.shape != wanted[:1] or copies.min(initial=1) < 1 or copies.max(initial=1) > _MOST:
            raise ValueError(f"{prefix}copies have shape {copies.shape} or are out of range")
        row = request = 0
        for sampled, requests, at in events:
            if not sampled:
                self._events.append(_Closed(float(at)))
                continue
            here = copies[row : row + sampled]
            first = starts[request : request + requests]
            if not len(first) or first[0] or np.any(np.diff(first) < 1) or first[-1] >= sampled:
                raise ValueError(f"{prefix}starts {first} of {sampled} rows")
            kept = EVERY if (here == 1).all() else here
            self._events.append(Batch(rows[row : row + sampled], first, kept, float(at)))
            row, request = row + sampled, request + requests

    def _stacked(self) -> NDArray[np.float32]:
        parts = [event.values for event in self._events if isinstance(event, Batch)]
        return np.concatenate([np.empty((0, self._width), np.float32), *parts])
