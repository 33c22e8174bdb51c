"""Everything counted of one sparse layer: windows, baseline, history, and when each latent last fired."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.stats.batch import Rounding
from sidecar.stats.encoding import Arrays, typed
from sidecar.stats.epoch import Period
from sidecar.stats.sparse_distribution import SparseDistribution, gather
from sidecar.stats.sparse_kernels import SparseKernels
from sidecar.stats.sparse_record import (
    INVALID,
    LIMB_BITS,
    RECORD_BYTES,
    SLOTS,
    SQUARES,
    SUM,
    Hits,
    Octaves,
    Records,
    Span,
)
from sidecar.stats.sparse_watch import SparseRows, SparseWatch

_STORES = ("open", "baseline", "present", "past")

LATENT_BYTES = 4 * RECORD_BYTES + (RECORD_BYTES + 8) + 8 + 8 + 1
"""Most bytes a latent takes: four stores, a last window in which every latent was hit, the list of
those that are hit in the open one, when each was hit last, and whether it is watched."""


class SparseLayer:
    """The counts of one sparse layer.

    Closed windows go to the baseline until it freezes, and always to the history, which is two
    generations as in ``Epoch``. Closing a window costs as much as there were latents hit in it.

    Attributes:
        width: Latents of the layer.
        frozen: Whether the baseline is.
        watch: The watched latents.
    """

    def __init__(self, width: int, octaves: Octaves, history_seconds: float) -> None:
        self.width = width
        self.frozen = False
        self.watch = SparseWatch(width)
        self._octaves = octaves
        self._history_seconds = history_seconds
        self._open, self._baseline, self._present, self._past = (
            Records.empty(width) for _ in _STORES
        )
        self._last = Hits.of(self._open, np.empty(0, np.int64))
        self._fresh: list[NDArray[np.int64]] = []
        self._rows = 0  # since the layer was announced or reset
        self._hit_at = np.zeros(width, np.int64)  # of those, how many there were at the last hit
        self._present_since = math.nan
        self._rounding = Rounding()

    @property
    def memory_bytes(self) -> int:
        """Bytes of all its arrays."""
        stores = (self._open, self._baseline, self._present, self._past, self._last)
        arrays = [*(one.words for one in stores), self._last.latents, *self._fresh, self._hit_at]
        return sum(array.nbytes for array in arrays) + self.watch.memory_bytes

    def absorb(
        self,
        rows: SparseRows,
        weights: NDArray[np.float64],
        now: float,
        kernels: SparseKernels,
    ) -> None:
        """Count new rows in the open window.

        Args:
            rows: At least one.
            weights: How many rows of traffic each stands for, shape ``(rows,)``; empty: one each.
            now: Unix seconds.
            kernels: The loops to count with.
        """
        copies = self._rounding.copies(weights)  # (rows,), or empty
        total = int(copies.sum()) if len(copies) else rows.sampled
        repeated = np.repeat(copies, np.diff(rows.splits)) if len(copies) else copies  # (nnz,)
        counted = kernels.count(
            self._open.words, rows.latents, rows.values, repeated, self._octaves
        )
        self._open.carry(*counted.carried)
        span = Span(total, rows.sampled, len(rows.starts), counted.invalid, now, now)
        self._open.span = self._open.span.plus(span)
        if len(counted.fresh):
            self._fresh.append(counted.fresh)
        self._rows += total

    def window(self) -> tuple[int, int, int]:
        """Return the requests, sampled rows and invalid values of the open window."""
        span = self._open.span
        return span.requests, span.sampled, span.invalid

    def close(self, now: float, kernels: SparseKernels) -> None:
        """End the open window and start an empty one."""
        self._turn_history(now)
        hit = self._hit()
        window = Hits.of(self._open, hit)
        _add(self._present, window, kernels)
        if not self.frozen:
            _add(self._baseline, window, kernels)
        self._hit_at[hit] = self._rows
        self._open.words[hit] = 0
        self._open = Records(self._open.words)
        self._last, self._fresh = window, []

    def freeze(self, kernels: SparseKernels) -> None:
        """End the baseline with what was counted up to now, the open window included."""
        if not self.frozen:
            _add(self._baseline, Hits.of(self._open, self._hit()), kernels)
            self.frozen = True

    def snapshot(self, period: Period, latents: NDArray[np.int64] | None) -> SparseDistribution:
        """Return an immutable copy of what was counted over a period, of all or some latents."""
        chosen = np.arange(self.width) if latents is None else latents
        first, *others = (gather(one, self._octaves, chosen) for one in self._counted(period))
        for other in others:
            first = first.merge(other)
        return first

    def learned(self) -> tuple[int, int]:
        """Return the baseline's sampled rows and requests, the open window's while it still learns."""
        spans = [one.span for one in self._counted(Period.BASELINE)]
        return sum(one.sampled for one in spans), sum(one.requests for one in spans)

    def idle_rows(self, latents: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return how many rows came since the end of the window in which each latent last fired."""
        chosen = np.arange(self.width) if latents is None else latents
        idle = self._rows - self._hit_at[chosen]
        idle[np.isin(chosen, self._hit())] = 0
        return idle

    def _counted(self, period: Period) -> tuple[Records | Hits, ...]:
        if period is Period.CURRENT:
            return self._last, self._open
        if period is Period.HISTORY:
            return self._past, self._present
        return (self._baseline,) if self.frozen else (self._baseline, self._open)

    def _hit(self) -> NDArray[np.int64]:
        """Return the latents hit in the open window, in increasing order."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self._fresh]))

    def _turn_history(self, now: float) -> None:
        since = self._present_since
        if math.isnan(since) or now < since:  # first window, or the clock was put back
            self._present_since = now
            return
        turns = math.floor((now - since) / self._history_seconds)
        if not turns:
            return
        # After a silence of two lengths or more even the present generation is too old.
        self._past = self._present if turns == 1 else Records.empty(self.width)
        self._present = Records.empty(self.width)
        self._present_since = since + turns * self._history_seconds

    def put(self, arrays: Arrays, prefix: str) -> dict[str, Any]:
        """Add all arrays under ``prefix``, copied; return the plain values."""
        traffic = self.watch.put(arrays, f"{prefix}watch.")
        arrays[f"{prefix}hit_at"] = self._hit_at.copy()
        stores = zip(_STORES, (self._open, self._baseline, self._present, self._past), strict=True)
        saved = {
            name: _put(arrays, f"{prefix}{name}.", Hits.of(store, store.used()))
            for name, store in stores
            if store.span.sampled
        }
        if self._last.span.sampled:
            saved["last"] = _put(arrays, f"{prefix}last.", self._last)
        since = self._present_since
        return {
            "width": self.width,
            "traffic": traffic,
            "frozen": self.frozen,
            "rows": self._rows,
            "carried": self._rounding.carried,
            "present_since": None if math.isnan(since) else since,
            "stores": saved,
        }

    @classmethod
    def take(
        cls, arrays: Arrays, prefix: str, saved: Mapping[str, Any], octaves: Octaves, seconds: float
    ) -> "SparseLayer":
        """Return what ``put`` saw.

        Raises:
            ValueError: The arrays do not fit together; so may KeyError and TypeError.
        """
        width = int(saved["width"])
        if width < 1:
            raise ValueError(f"width {width}")
        layer = cls(width, octaves, seconds)
        layer.watch.take(arrays, f"{prefix}watch.", saved.get("traffic", []), width)
        layer._rows, layer._rounding = int(saved["rows"]), Rounding(float(saved["carried"]))
        layer._hit_at = typed(arrays[f"{prefix}hit_at"], np.int64).copy()
        if layer._hit_at.shape != (width,):
            raise ValueError(f"{prefix}hit_at has shape {layer._hit_at.shape}, need ({width},)")
        if not 0 <= layer._hit_at.min() <= layer._hit_at.max() <= layer._rows:
            raise ValueError(f"{prefix}hit_at is not within the {layer._rows} rows")
        found = {
            name: _take(arrays, f"{prefix}{name}.", span, width)
            for name, span in saved["stores"].items()
        }
        layer._open, layer._baseline, layer._present, layer._past = (
            _spread(found[name], width) if name in found else Records.empty(width)
            for name in _STORES
        )
        layer._last = found.get("last", layer._last)
        layer._fresh = [layer._open.used()]
        layer.frozen = bool(saved["frozen"])
        since = saved["present_since"]
        layer._present_since = math.nan if since is None else float(since)
        return layer


def _add(store: Records, window: Hits, kernels: SparseKernels) -> None:
    if not window.span.sampled:
        return
    store.carry(*kernels.fold(store.words, window.latents, window.words))
    for code, amount in window.carries.items():
        store.carries[code] = store.carries.get(code, 0) + amount
    store.span = store.span.plus(window.span)


def _spread(hits: Hits, width: int) -> Records:
    """Return records of all latents that hold what a window's do."""
    records = Records.empty(width)
    records.words[hits.latents] = hits.words
    records.carries, records.span = dict(hits.carries), hits.span
    return records


def _put(arrays: Arrays, prefix: str, hits: Hits) -> dict[str, Any]:
    arrays[prefix + "latents"] = hits.latents.astype(np.uint32)
    arrays[prefix + "words"] = hits.words
    arrays[prefix + "codes"] = np.array(list(hits.carries), np.int64)
    arrays[prefix + "amounts"] = np.array(list(hits.carries.values()), np.int64)
    return asdict(hits.span)


def _take(arrays: Arrays, prefix: str, span: Mapping[str, Any], width: int) -> Hits:
    latents = typed(arrays[prefix + "latents"], np.uint32).astype(np.int64)
    words = np.ascontiguousarray(typed(arrays[prefix + "words"], np.int64)).copy()
    codes, amounts = (typed(arrays[prefix + name], np.int64) for name in ("codes", "amounts"))
    if words.shape != (len(latents), RECORD_BYTES // 8) or codes.shape != amounts.shape:
        raise ValueError(f"{prefix}words have shape {words.shape} for {len(latents)} latents")
    if np.any(np.diff(latents) <= 0) or latents.max(initial=-1) >= width:
        raise ValueError(f"{prefix}latents do not increase up to {width - 1}")
    if not np.isin(codes // SLOTS, latents).all() or np.any(amounts < 1):
        raise ValueError(f"{prefix}carries are of latents that were not hit")
    sums = words[:, [SUM, SQUARES]]
    if np.any((sums < 0) | (sums >> LIMB_BITS > 0)):
        raise ValueError(f"{prefix}words hold sums beyond 62 bits")
    hits = Hits(
        latents=latents,
        words=words,
        carries=dict(zip(codes.tolist(), amounts.tolist(), strict=True)),
        span=Span(
            rows=int(span["rows"]),
            sampled=int(span["sampled"]),
            requests=int(span["requests"]),
            invalid=int(span["invalid"]),
            started=float(span["started"]),
            ended=float(span["ended"]),
        ),
    )
    _check_totals(hits, prefix)
    return hits


def _check_totals(hits: Hits, prefix: str) -> None:
    """Raise ValueError unless every latent has been seen, and no more often than there were rows."""
    if not 0 <= hits.span.rows < 1 << LIMB_BITS:
        raise ValueError(f"{prefix}rows {hits.span.rows}")
    shorts = hits.words.view(np.uint16)[:, INVALID:]
    most = gather(hits, Octaves(), hits.latents)
    if not shorts.any(axis=1).all() or most.zeros.min(initial=0) < 0:
        raise ValueError(f"{prefix}counters do not add up to {hits.span.rows} rows")
