"""The book of evidence: which traffic, and which rows, make flagged features exceed."""

import hashlib
import hmac
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sidecar.config import EvidenceConfig
from sidecar.detect import Attribution, SliceCount, State, Transition, attribute
from sidecar.features import FeatureKey, LayerKey, LayerSample, Request, Slice, SparseSample
from sidecar.monitor.record import EvidenceRecord, EvidenceRow, exposure_of
from sidecar.monitor.slices import TRAFFIC_LIMIT, Pair, Ranked, SliceWindow, row_bytes
from sidecar.stats import decoded

KEPT_WINDOWS = 30
"""Closed windows that are kept of a layer, five minutes of the usual ten seconds: a spike is found in
far less, and a longer look back would mix in what was before it."""

ROWS_RECORDED, SLICES_RECORDED = 20, 20
"""Rows and slices of one record: what a person reads. A record is then below 50 KB."""

WAITING_SHARE = 4
"""Records that wait for the disk may take a quarter of the memory; then the oldest of them goes."""

HASH_DIGITS = 16
"""Hexadecimal digits of a hashed request id: two of a million ids are alike once in 40 million times."""

_DROPS = ("windows", "slices", "uncounted", "rows", "records")

_PAIRS = attrgetter("traffic.pairs")  # over a thousand requests three times as fast as a loop


@dataclass(frozen=True, slots=True)
class EvidenceCounts:
    """How the book stands.

    Attributes:
        used_bytes: Memory charged now.
        limit_bytes: Memory that may be charged.
        dropped: What found no room since the daemon started: ``windows``, ``slices`` (of so many
            requests), ``rows``, ``records``; and ``uncounted``, requests with pairs beyond
            ``slices_limit``.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(_DROPS, 0))


@dataclass(slots=True)
class _Layer:
    """The windows of one layer, oldest first, and since when its features are pending."""

    open: SliceWindow | None = None
    closed: deque[SliceWindow] = field(default_factory=deque)
    pending: dict[int, float] = field(default_factory=dict)
    turn: int = 0

    @property
    def sliced(self) -> bool:
        """Whether a slice was seen in any window at hand."""
        return any(w.sliced for w in (*self.closed, self.open) if w is not None)


class EvidenceBook:
    """Windows of slices and rows, bounded in bytes over all layers; not safe for several threads.

    Without ``evidence.enabled`` nothing but counts by slice is kept, and of traffic without slices
    nothing at all.
    """

    def __init__(self, settings: EvidenceConfig | None = None, *, key: bytes = b"") -> None:
        """Start empty.

        Args:
            settings: The ``evidence`` section; None: its defaults.
            key: Secret of hashed request ids.
        """
        self._settings = settings or EvidenceConfig()
        self._key = key
        # Of each slice that a flag is restricted to, windows of its own; the empty slice is all traffic.
        self._layers: dict[tuple[LayerKey, Slice], _Layer] = {}
        self._waiting: dict[str, tuple[EvidenceRecord, int]] = {}
        self._used = self._waiting_bytes = 0
        self._dropped = dict.fromkeys(_DROPS, 0)

    def counts(self) -> EvidenceCounts:
        """Return how the book stands."""
        return EvidenceCounts(self._used, self._settings.limit_bytes, dict(self._dropped))

    # -- what is seen -----------------------------------------------------------------------

    def absorb(
        self,
        sample: LayerSample | SparseSample,
        indices: NDArray[np.int64],
        high: NDArray[np.float64],
        low: NDArray[np.float64],
        now: float,
        traffic: Slice = Slice(),  # noqa: B008 - immutable
    ) -> None:
        """Take in the flagged features of a batch; what is kept shares no memory with it.

        Args:
            sample: The batch; a request's rows are adjacent.
            indices: Flagged features, shape ``(n,)``.
            high: A row is beyond where it is above; NaN and infinity: never, shape ``(n,)``.
            low: Or where it is below; NaN and minus infinity: never, shape ``(n,)``.
            now: Unix seconds.
            traffic: Only requests with all these pairs are looked at.

        Complexity:
            O(requests) while neither evidence is enabled nor a slice was seen lately; else
            O(rows * n), and a step for each slice and each row that is among the furthest.
        """
        known = np.isfinite(high) | np.isfinite(low)
        if traffic.pairs and known.any():
            sample = _only(sample, traffic)
        if not len(sample.request_index) or not known.any():
            return
        layer = self._layers.get((sample.layer, traffic))
        sliced = bool(self._settings.slices_limit) and any(map(_PAIRS, sample.requests))
        if not (sliced or self._settings.enabled or (layer and layer.sliced)):
            return
        limits = (_limit(high[known], np.inf), _limit(low[known], -np.inf))
        window = self._window((sample.layer, traffic), indices[known], *limits, now)
        if window is None:
            return
        values = _columns(sample, window.features)  # (rows, n)
        beyond = values > window.high  # never a NaN
        if window.two_sided:
            beyond |= values < window.low
        changes = np.flatnonzero(sample.request_index[1:] != sample.request_index[:-1]) + 1
        starts = np.concatenate(([0], changes))  # (requests,)
        requests = [sample.requests[i] for i in sample.request_index[starts].tolist()]
        plain = len(starts) == len(beyond)  # one row a request
        by_request = beyond if plain else np.logical_or.reduceat(beyond, starts, axis=0)
        window.count(by_request)
        if sliced:
            self._count_slices(window, by_request, requests)
        if self._settings.enabled and by_request.any():
            self._keep_rows(window, values, beyond, starts, requests, now)

    def _window(
        self,
        key: tuple[LayerKey, Slice],
        features: NDArray[np.int64],
        high: NDArray[np.float32],
        low: NDArray[np.float32],
        now: float,
    ) -> SliceWindow | None:
        """Return the layer's open window of these features, opening one; None where none has room."""
        layer = self._layers.setdefault(key, _Layer())
        if layer.open is not None and layer.open.fits(features, high, low):
            return layer.open
        self._end(layer, now)
        window = SliceWindow(features, high, low, now, layer.turn)
        if not self._take(window.nbytes):
            self._dropped["windows"] += 1
            return None
        layer.open = window
        return window

    def _count_slices(
        self, window: SliceWindow, by_request: NDArray[np.bool_], requests: list[Request]
    ) -> None:
        limit = self._settings.slices_limit
        if not window.sliced:
            cost = window.slice_bytes(limit)
            if not self._take(cost):
                self._dropped["slices"] += len(requests)
                return
            window.nbytes += cost
            window.begin_slices(limit)
        # By object first: a batch has few slices, and the wire makes each of them once.
        slices = list(map(_PAIRS, requests))
        objects = list(map(id, slices))
        distinct = dict(zip(objects, slices, strict=True))
        order = dict(zip(distinct, range(len(distinct)), strict=True))
        of_request = np.fromiter(map(order.__getitem__, objects), np.int64, len(objects))
        places = [self._admit(window, pairs, limit) for pairs in distinct.values()]
        self._dropped["uncounted"] += window.count_slices(by_request, of_request, places)

    def _admit(self, window: SliceWindow, pairs: tuple[Pair, ...], limit: int) -> list[int]:
        places, taken = window.admit(pairs, limit, self._settings.limit_bytes - self._used)
        self._used += taken
        window.nbytes += taken
        return places

    def _keep_rows(
        self,
        window: SliceWindow,
        values: NDArray[np.float32],
        beyond: NDArray[np.bool_],
        starts: NDArray[np.int64],
        requests: list[Request],
        now: float,
    ) -> None:
        # inf - inf is NaN: of a row that is not beyond, or what fmax passes over.
        with np.errstate(invalid="ignore", over="ignore"):
            distance = values - window.high
            if window.two_sided:
                distance = np.fmax(distance, window.low - values)
        distance = np.where(beyond, distance, -np.inf)  # (rows, n)
        better = distance > window.floors
        for at in np.flatnonzero(better.any(axis=0)).tolist():
            rows = np.flatnonzero(better[:, at])
            order = np.argsort(-distance[rows, at], kind="stable")
            for row in rows[order[: self._settings.rows_per_window]].tolist():
                owner = int(np.searchsorted(starts, row, side="right")) - 1
                request, position = requests[owner], row - int(starts[owner])
                made = EvidenceRow(
                    value=float(values[row, at]),
                    at=now,
                    request_id=self._redacted(request.id),
                    position=position,
                    traffic=str(request.traffic)[:TRAFFIC_LIMIT],
                )
                self._rank(window, at, (float(distance[row, at]), made))

    def _rank(self, window: SliceWindow, at: int, ranked: Ranked) -> None:
        """Put a row among the furthest of its feature, and the least of them out."""
        rows, most = window.rows[at], self._settings.rows_per_window
        if len(rows) == most and ranked[0] <= rows[-1][0]:
            return
        cost = row_bytes(ranked[1])
        if not self._take(cost):
            self._dropped["rows"] += 1
            return
        window.nbytes += cost
        rows.append(ranked)
        rows.sort(key=lambda one: -one[0])
        if len(rows) > most:
            freed = row_bytes(rows.pop()[1])
            self._used -= freed
            window.nbytes -= freed
        if len(rows) == most:
            window.floors[at] = rows[-1][0]

    def _redacted(self, request_id: str) -> str:
        if self._settings.ids == "keep" or not request_id:
            return request_id
        if self._settings.ids == "drop":
            return ""
        digest = hmac.new(self._key, request_id.encode("utf-8", "replace"), hashlib.sha256)
        return digest.hexdigest()[:HASH_DIGITS]

    # -- time -------------------------------------------------------------------------------

    def close(self, key: LayerKey, now: float) -> None:
        """End a layer's window; windows that are too old go."""
        for of in [of for of in self._layers if of[0] == key]:
            self._close(of, now)

    def _close(self, of: tuple[LayerKey, Slice], now: float) -> None:
        layer = self._layers[of]
        self._end(layer, now)
        layer.turn += 1
        oldest = now - self._settings.expire_seconds
        while layer.closed and (
            layer.closed[0].turn <= layer.turn - KEPT_WINDOWS or layer.closed[0].ended < oldest
        ):
            self._used -= layer.closed.popleft().nbytes
        if not layer.closed:  # nor does a spike that is pending have anything to look back at
            del self._layers[of]

    def _end(self, layer: _Layer, now: float) -> None:
        if layer.open is not None:
            self._used -= layer.open.close(now)
            layer.closed.append(layer.open)
            layer.open = None
        while len(layer.closed) > KEPT_WINDOWS:
            self._used -= layer.closed.popleft().nbytes

    def forget(self, key: LayerKey) -> None:
        """Drop everything of a layer."""
        for of in [of for of in self._layers if of[0] == key]:
            layer = self._layers.pop(of)
            windows = [*layer.closed, *([layer.open] if layer.open else [])]
            self._used -= sum(window.nbytes for window in windows)

    def _take(self, cost: int) -> bool:
        """Charge some bytes, if need be at the cost of the oldest closed windows; False: no room."""
        limit = self._settings.limit_bytes
        while self._used + cost > limit:
            held = [layer for layer in self._layers.values() if layer.closed]
            if not held:
                return False
            oldest = min(held, key=lambda layer: layer.closed[0].ended)
            self._used -= oldest.closed.popleft().nbytes
        self._used += cost
        return True

    # -- what is made of it -----------------------------------------------------------------

    def follow(
        self,
        key: FeatureKey,
        change: Transition,
        *,
        tolerated: float,
        above: float,
        below: float,
        traffic: Slice = Slice(),  # noqa: B008 - immutable
    ) -> EvidenceRecord | None:
        """Take note of a change of state, after ``close``; return the record of one to firing.

        The record also waits for the disk, see ``waiting``.

        Args:
            key: Which feature.
            change: What the detector says.
            tolerated: Exceedance rate from which on it is a spike.
            above: Threshold of the feature; infinite where there is none.
            below: The same below.
            traffic: The slice that its flag is restricted to.
        """
        layer = self._layers.get((key.layer, traffic))
        began = layer.pending.pop(key.index, change.at) if layer else change.at
        if change.after is State.PENDING and layer is not None:
            layer.pending[key.index] = change.at
        if change.after is not State.FIRING:
            return None
        found = self._since(layer, key.index, began, tolerated, above, below)
        record = self._record(key, change, found, tolerated, above, below)
        self._wait(record)
        return record

    @staticmethod
    def _since(
        layer: _Layer | None,
        index: int,
        began: float,
        tolerated: float,
        above: float,
        below: float,
    ) -> list[tuple[SliceWindow, int]]:
        """Return the feature's windows since the spike began, oldest first, with its place in them.

        Those are the windows from the one in which it became pending on, and before it as many as
        were without a break above what is tolerated.
        """
        found: list[tuple[SliceWindow, int]] = []
        high = float(np.float32(above)) if math.isfinite(above) else math.inf
        low = float(np.float32(below)) if math.isfinite(below) else -math.inf
        for window in reversed(layer.closed if layer else ()):
            at = window.place(index, high, low)
            if at < 0:
                break
            loud = window.exceedances[at] >= tolerated * window.requests
            if window.ended < began and not (loud and window.exceedances[at]):
                break
            found.append((window, at))
        return found[::-1]

    def _record(
        self,
        key: FeatureKey,
        change: Transition,
        found: list[tuple[SliceWindow, int]],
        tolerated: float,
        above: float,
        below: float,
    ) -> EvidenceRecord:
        requests = sum(window.requests for window, _ in found)
        exceedances = sum(int(window.exceedances[at]) for window, at in found)
        uncounted = sum(int(w.pair_requests[-1]) for w, _ in found if w.sliced)
        said = attribute(
            requests,
            exceedances,
            _sum_pairs(found),
            baseline_rate=change.baseline_share,
            tolerated_rate=tolerated,
            uncounted=uncounted,
        )
        numbers = {f.name: getattr(change, f.name) for f in fields(change)}
        return EvidenceRecord(
            feature=key,
            at=change.at,
            reason=change.reason,
            numbers={n: v for n, v in numbers.items() if isinstance(v, float) and n != "at"},
            above=above,
            below=below,
            since=found[0][0].started if found else 0.0,
            windows=len(found),
            requests=requests,
            exceedances=exceedances,
            uncounted=uncounted,
            attribution=_shortened(said),
            rows=self._rows(found, change.at),
            exposure=exposure_of(self._settings),
        )

    def _rows(self, found: list[tuple[SliceWindow, int]], now: float) -> tuple[EvidenceRow, ...]:
        oldest = now - self._settings.expire_seconds
        ranked = [one for window, at in found for one in window.rows[at] if one[1].at >= oldest]
        ranked.sort(key=lambda one: (-one[0], one[1].at))
        return tuple(row for _, row in ranked[:ROWS_RECORDED])

    def _wait(self, record: EvidenceRecord) -> None:
        size = 2 * len(record.encode()) + 4096  # its text, and about as much as objects
        while self._waiting and (
            self._waiting_bytes + size > self._settings.limit_bytes // WAITING_SHARE
        ):
            self.saved(next(iter(self._waiting)))
            self._dropped["records"] += 1
        if size > self._settings.limit_bytes // WAITING_SHARE or not self._take(size):
            self._dropped["records"] += 1
            return
        self.saved(record.id)  # the same once more
        self._waiting[record.id] = (record, size)
        self._waiting_bytes += size

    def waiting(self) -> tuple[EvidenceRecord, ...]:
        """Return the records that are not on the disk yet, oldest first."""
        return tuple(record for record, _ in self._waiting.values())

    def saved(self, record_id: str) -> None:
        """Let go of a record that is on the disk."""
        _, size = self._waiting.pop(record_id, (None, 0))
        self._waiting_bytes -= size
        self._used -= size


def _only(sample: LayerSample | SparseSample, traffic: Slice) -> LayerSample | SparseSample:
    """Return the rows of the requests of a slice."""
    wanted = np.array([one.traffic.contains(traffic) for one in sample.requests], np.bool_)
    rows = wanted[sample.request_index] if len(wanted) else np.zeros(0, np.bool_)
    index = sample.request_index[rows]
    if isinstance(sample, LayerSample):
        return replace(sample, values=sample.values[rows], request_index=index)
    lengths = np.diff(sample.row_splits)
    entries = np.repeat(rows, lengths)
    return replace(
        sample,
        row_splits=np.concatenate(([0], np.cumsum(lengths[rows]))),
        latents=sample.latents[entries],
        values=sample.values[entries],
        request_index=index,
    )


def _limit(thresholds: NDArray[np.float64], never: float) -> NDArray[np.float32]:
    return np.where(np.isfinite(thresholds), thresholds, never).astype(np.float32)


def _columns(
    sample: LayerSample | SparseSample, features: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the rows of some features as a copy, shape ``(rows, n)``; what is not listed is 0."""
    if isinstance(sample, LayerSample):
        return decoded(sample.values.take(features, axis=1))
    known, place = np.unique(features, return_inverse=True)
    entries = np.flatnonzero(np.isin(sample.latents, known))
    row = np.searchsorted(sample.row_splits, entries, side="right") - 1
    found = np.zeros((len(sample.request_index), len(known)), np.float32)
    found[row, np.searchsorted(known, sample.latents[entries])] = decoded(sample.values[entries])
    return found[:, place]


def _sum_pairs(found: list[tuple[SliceWindow, int]]) -> list[SliceCount]:
    """Add the counts of each pair over windows in which it may have other places."""
    sums: dict[Pair, list[int]] = {}
    for window, at in found:
        for pair, place in window.places.items():
            total = sums.setdefault(pair, [0, 0])
            total[0] += int(window.pair_requests[place])
            total[1] += int(window.pair_exceedances[place, at])
    return [SliceCount(*pair, *total) for pair, total in sums.items()]


def _shortened(said: Attribution) -> Attribution:
    """Keep the first slices, and the cause wherever it stands."""
    ranked = said.ranked[:SLICES_RECORDED]
    cause = [one for one in said.ranked[SLICES_RECORDED:] if one.left.name == said.cause]
    return replace(said, ranked=(*ranked, *cause))
