"""The first rows of a layer, kept until there are enough of them to place the bins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.binning import Binning, learn_grid
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.epoch import Epoch


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Rows that came in."""

    values: NDArray[np.float32]
    requests: int
    at: float


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
        self._events: list[_Arrived | _Closed] = []

    @property
    def complete(self) -> bool:
        """Whether there are enough rows to place the bins for good."""
        return self.rows >= self._wanted

    @property
    def rows(self) -> int:
        """Rows kept."""
        return sum(len(event.values) for event in self._events if isinstance(event, _Arrived))

    @property
    def arrived(self) -> list[_Arrived]:
        """What came in since the last window ended."""
        ends = [i for i, event in enumerate(self._events) if isinstance(event, _Closed)]
        newest = self._events[ends[-1] + 1 if ends else 0 :]
        return [event for event in newest if isinstance(event, _Arrived)]

    def absorb(self, values: NDArray[np.float32], requests: int, now: float) -> None:
        """Keep a copy of new rows."""
        self._events.append(_Arrived(values.copy(), requests, now))

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
        features: NDArray[np.int64] | None = None,
    ) -> Epoch:
        """Place the bins from the first ``rows_wanted`` rows and count everything that happened.

        Args:
            binning: How finely.
            history_seconds: Length of a history generation.
            features: Only of these; None: of all. A feature's bins depend on its own rows alone.
        """
        rows = _columns(self._stacked()[: self._wanted], features)
        epoch = Epoch(learn_grid(rows, binning), history_seconds)
        for event in self._events:
            if isinstance(event, _Closed):
                epoch.close(event.at)
            else:
                epoch.absorb(_columns(event.values, features), event.requests, event.at)
        return epoch

    def put(self, arrays: Arrays, prefix: str) -> list[list[float | int]]:
        """Add the rows under ``prefix``; return the events as ``[rows, requests, at]``."""
        arrays[prefix + "rows"] = self._stacked()
        return [
            [len(event.values), event.requests, event.at]
            if isinstance(event, _Arrived)
            else [0, 0, event.at]
            for event in self._events
        ]

    def take(self, arrays: Arrays, prefix: str, events: list[list[Any]]) -> None:
        """Become what ``put`` saw.

        Raises:
            ValueError: Rows and events do not fit together; so may KeyError and TypeError.
        """
        rows = typed(arrays[prefix + "rows"], np.float32)
        if rows.shape != (sum(event[0] for event in events), self._width):
            raise ValueError(f"{prefix}rows have shape {rows.shape}")
        used = 0
        for count, requests, at in events:
            if count:
                kept = rows[used : used + count]
                self._events.append(_Arrived(kept, int(requests), float(at)))
                used += count
            else:
                self._events.append(_Closed(float(at)))

    def _stacked(self) -> NDArray[np.float32]:
        parts = [event.values for event in self._events if isinstance(event, _Arrived)]
        return np.concatenate([np.empty((0, self._width), np.float32), *parts])


def _columns(
    values: NDArray[np.float32], features: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    return values if features is None else values.take(features, axis=1)
