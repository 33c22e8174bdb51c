"""The bank: the distributions of every feature of every registered layer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import (
    BaselineNotReady,
    CorruptState,
    InvalidInput,
    LimitReached,
    ShapeMismatch,
    UnsupportedDtype,
)
from sidecar.features import LayerKey, LayerSample
from sidecar.stats.baseline import Baseline
from sidecar.stats.batch import Batch, traffic_of
from sidecar.stats.binning import Binning
from sidecar.stats.budget import Budget, Detail, Memory
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays, corrupt_unless_read, pack, unpack
from sidecar.stats.epoch import Period
from sidecar.stats.fine import WatchedWindow
from sidecar.stats.kernels import NUMPY, Kernels
from sidecar.stats.layer import Layer, Settings
from sidecar.stats.registry import Registry, read_key, weights_of
from sidecar.stats.screen import Expectation
from sidecar.stats.watch import Watched, WindowCounts

_BANK = b"bank"
_VERSION = 3
"""Of what is kept of a layer; before the third there were neither thresholds of all features nor low
ones, levels and slices, and no version."""

_DTYPES = (np.float32, np.float16, np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCopy:
    """A layer of a bank at one moment.

    Attributes:
        saved: JSON-able values.
        arrays: The others; nothing else refers to them.
    """

    saved: dict[str, Any]
    arrays: Arrays


class Bank:
    """Keeps, for every feature of every layer, what was seen now, before, and in the baseline.

    Not thread-safe: one writer. Snapshots are immutable copies that anybody may keep.

    Args:
        binning: How finely distances from a feature's centre are binned.
        warmup_rows: Rows of a layer after which its bins are placed for good; until then the rows
            themselves are kept, and snapshots place bins provisionally.
        history_seconds: The history covers between one and two of these.
        layer_limit: Most layers that may be registered.
        feature_limit: Most features over all layers.
        budget: How much memory distributions may take.
        kernels: What counts; ``use`` changes it at any time.
    """

    def __init__(
        self,
        binning: Binning,
        *,
        warmup_rows: int,
        history_seconds: float,
        layer_limit: int,
        feature_limit: int,
        budget: Budget | None = None,
        kernels: Kernels = NUMPY,
    ) -> None:
        self._settings = Settings(binning, warmup_rows, history_seconds, budget or Budget())
        self._kernels = kernels
        advice = "raise statistics.feature_limit or tap fewer layers"
        self._layers: Registry[Layer] = Registry("features", layer_limit, feature_limit, advice)

    @property
    def kernels(self) -> Kernels:
        """What counts now."""
        return self._kernels

    def use(self, kernels: Kernels) -> None:
        """Count with other kernels from now on; they leave the same state behind, bit for bit."""
        self._kernels = kernels

    def register(self, layer: LayerKey, width: int) -> None:
        """Announce a layer; announcing it again with the same width changes nothing.

        Raises:
            LayerConflict: It is known with another width.
            LimitReached: There is no room for another layer or for so many features: in number, or
                in bytes even if they are screened.
            ShapeMismatch: The width is not positive.
        """
        if self._layers.admits(layer, width):
            detail = self._detail_of_next(layer, width)
            self._layers[layer] = Layer(width, detail, self._settings)

    def _detail_of_next(self, layer: LayerKey, width: int) -> Detail:
        """Return how much is kept of a layer that is registered now."""
        used: Counter[Detail] = Counter()
        for known in self._layers.values():
            used[known.detail] += known.cost
        budget, binning = self._settings.budget, self._settings.binning
        detail = budget.choose(width, binning, used)
        if detail is None:
            need = budget.cost(width, Detail.SCREENED, binning)
            raise LimitReached(
                f"layer {layer}: {width} features take {need} bytes even if they are screened, and "
                f"{budget.memory_bytes - used.total()} of {budget.memory_bytes} are left: raise "
                "statistics.memory_bytes or tap fewer layers"
            )
        return detail

    def forget(self, layer: LayerKey) -> None:
        """Drop a layer with its baseline and history, and make room for others.

        Raises:
            UnknownLayer: It was never registered.
        """
        del self._layers[layer]

    def layers(self) -> tuple[LayerKey, ...]:
        """Return the registered layers, in the order they were announced."""
        return tuple(self._layers)

    def width(self, layer: LayerKey) -> int:
        """Return how many features a layer has.

        Raises:
            UnknownLayer: It was never registered.
        """
        return self._layers[layer].width

    def detail(self, layer: LayerKey) -> Detail:
        """Return how much is kept of a layer.

        Raises:
            UnknownLayer: It was never registered.
        """
        return self._layers[layer].detail

    def layer_bytes(self, layer: LayerKey) -> int:
        """Return the memory set aside for a layer, its flagged features included.

        Raises:
            UnknownLayer: It was never registered.
        """
        known = self._layers[layer]
        return known.cost + known.flagged_cost

    def memory(self) -> Memory:
        """Return how the budget stands."""
        budget = self._settings.budget
        used = sum(known.cost + known.flagged_cost for known in self._layers.values())
        return Memory(used, budget.memory_bytes + budget.flagged_memory_bytes)

    def held_bytes(self) -> int:
        """Return the bytes of layers' counters, or of rows in warm-up, that are kept now.

        At most what is set aside for layers, as long as no window has more than 65,535 rows.
        """
        return sum(known.nbytes for known in self._layers.values())

    def update(self, sample: LayerSample, now: float) -> None:
        """Count a sample: every value once, each request of it once.

        NaN and infinities are counted apart and touch neither moments nor bins.

        Args:
            sample: Rows of one registered layer; a request's rows are adjacent.
            now: Unix seconds.

        Raises:
            UnregisteredLayer: The layer was never registered.
            ShapeMismatch: The rows are not as wide as the layer, or ``request_index`` points beyond the
                requests.
            UnsupportedDtype: The values are neither float32, float16 nor uint16.
            InvalidInput: A request's weight is not from 1 to ``WEIGHT_LIMIT``.

        Complexity:
            O(values), vectorised over features; temporaries bounded whatever the batch.
        """
        known = self._layers.sampled(sample)
        _check_values(sample, known.width)
        weights = weights_of(sample)
        if not len(sample.values):
            return
        changes = np.flatnonzero(sample.request_index[1:] != sample.request_index[:-1]) + 1
        starts = np.concatenate(([0], changes))  # (requests,)
        batch = Batch(sample.values, starts, known.rounding.copies(weights), now)
        traffic = traffic_of(sample, starts) if known.sliced else ()
        known.update(batch, traffic, self._kernels)

    def watch(self, layer: LayerKey, watched: Watched) -> None:
        """Count, from now on, the requests in which these features pass these thresholds.

        Exactly these are watched; one that was watched in the same way keeps its counts of the open
        window. They are kept in finer bins too, with their last windows, unless that would exceed
        the budget for flagged features.

        Raises:
            UnknownLayer: It was never registered.
            UnknownFeature: It has no such feature.

        Complexity:
            A feature whose low threshold is in use costs an update some 10 ns a row more; rows of
            slices are copied out.
        """
        known = self._layers[layer]
        known.watch(watched, self._room_beside(known))

    def place_thresholds(self, layer: LayerKey, level: float) -> None:
        """Compare every feature of a layer with a threshold, from now on, in every window.

        The thresholds are quantiles of what the baseline has learned so far. Windows closed from now on
        until the baseline freezes make up the ``expectation``; placing again starts that anew.

        Args:
            layer: A registered layer.
            level: Of the quantile, from 0 to 1.

        Raises:
            UnknownLayer: It was never registered.
            InvalidInput: The level is not from 0 to 1.
            BaselineNotReady: Nothing was seen of it since it was registered or reset.

        Complexity:
            O(width * bins); 28 bytes a feature. After that 0.1 to 0.4 ns a value of every update.
        """
        if not 0.0 <= level <= 1.0:
            raise InvalidInput(f"level {level} of a quantile: use 0 to 1")
        self._learning(layer).place_thresholds(level, self._kernels)

    def expectation(self, layer: LayerKey) -> Expectation | None:
        """Return how often requests should pass the thresholds; None before these were placed.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        return self._layers[layer].expectation

    def _room_beside(self, layer: Layer) -> int:
        """Return the bytes left for flagged features of a layer."""
        others = sum(one.flagged_cost for one in self._layers.values() if one is not layer)
        return self._settings.budget.flagged_memory_bytes - others

    def close_window(self, now: float) -> dict[LayerKey, WindowCounts]:
        """End every layer's window, see ``close``."""
        return {key: self.close(key, now) for key in self._layers}

    def close(self, layer: LayerKey, now: float) -> WindowCounts:
        """End a layer's window, fold it into history and a learning baseline, start the next.

        Returns:
            What the window held, sampled or not.

        Raises:
            UnknownLayer: It was never registered.
        """
        known = self._layers[layer]
        return known.close(now, self._room_beside(known))

    def watched_windows(self, layer: LayerKey) -> tuple[WatchedWindow, ...]:
        """Return the last closed windows of a layer's watched features, oldest first.

        Raises:
            UnknownLayer: It was never registered.
        """
        return self._layers[layer].windows()

    def snapshot(
        self, layer: LayerKey, period: Period, features: NDArray[np.int64] | None = None
    ) -> Distribution:
        """Return an immutable copy of what was seen of a layer over a period.

        Before the bins of the layer are placed for good, they are placed provisionally from the
        rows at hand, so such snapshots are right but may not merge with later ones.

        Args:
            layer: A registered layer.
            period: Over which stretch of time.
            features: Only these, in this order, at the cost of these alone; None: all.

        Raises:
            UnknownLayer: The layer was never registered.
            UnknownFeature: It has no such feature.
        """
        self._layers.check_within(layer, features)
        return self._layers[layer].snapshot(period, features, self._kernels)

    def baseline_rate(self, layer: LayerKey, level: float) -> float:
        """Return how often a request should pass a feature's baseline quantile.

        Requests are not kept, so this is the rate for independent rows, ``1 - level ** rows`` at
        the baseline's mean number of sampled rows a request, for only those are compared. It is exact
        for one row a request, and an upper bound where rows of a request resemble each other or their
        number varies.

        Args:
            layer: A registered layer.
            level: Of the quantile, from 0 to 1.

        Returns:
            A rate from 0 to 1; NaN before anything was learned.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        return self._layers[layer].baseline_rate(level)

    def freeze(self, layer: LayerKey) -> None:
        """End the baseline of a layer with what was seen up to now; again changes nothing.

        Places the bins for good if they were not yet.

        Raises:
            UnknownLayer: The layer was never registered.
            BaselineNotReady: Nothing was seen of it since it was registered or reset.
        """
        self._learning(layer).freeze(self._kernels)

    def _learning(self, layer: LayerKey) -> Layer:
        """Return a layer of which something was seen."""
        known = self._layers[layer]
        if not any(known.learned()):
            raise BaselineNotReady(
                f"layer {layer}: no sample seen yet, so there is no baseline to freeze: send traffic"
            )
        return known

    def reset(self, layer: LayerKey) -> None:
        """Start a layer over, as if it had just been registered: it learns a new baseline.

        Its bins are placed anew too, because a layer is reset when it no longer looks like its
        baseline; windows and history lie on the old bins and go with them, and nothing is watched.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        known = self._layers[layer]
        self._layers[layer] = Layer(known.width, known.detail, self._settings)

    def frozen(self, layer: LayerKey) -> bool:
        """Return whether the baseline of a layer is frozen.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        return self._layers[layer].frozen

    def baseline(self, layer: LayerKey) -> Baseline:
        """Return the frozen baseline of a layer; its ``encode`` makes the bytes for ``adopt``.

        They hold the places of the bins, everything that was counted, and the expectation, under a
        version and a checksum. Nothing changes a frozen baseline, so it may be encoded, which takes
        longer than all else, at any time and in any thread.

        Raises:
            UnknownLayer: The layer was never registered.
            BaselineNotReady: Its baseline is not frozen.
        """
        found = self._layers[layer].baseline()
        if found is None:
            raise BaselineNotReady(
                f"layer {layer}: its baseline is not frozen yet, so there is none to take along: "
                "freeze it first, or wait until it has learned enough"
            )
        return found

    def reader(self, layer: LayerKey) -> Callable[[bytes], Baseline]:
        """Return what turns ``baseline(...).encode()`` of any bank into a baseline of a layer.

        Reading takes longer than all else and touches nothing of the bank, so it may be done in any
        thread and while others write. It raises CorruptState where the bytes are not what ``baseline``
        makes, and LayerConflict where they are of a layer of another width, or in other bins.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        known = self._layers[layer]
        return partial(Baseline.decode, width=known.width, binning=known.binning)

    def adopt(self, layer: LayerKey, found: Baseline) -> None:
        """Continue a layer with a baseline from elsewhere, as if it had been learned here.

        Its bins lie where the baseline's do, so that from now on its windows and history merge to the
        bit with those of every bank that adopted the same. Both start anew, nothing is watched, and the
        expectation is the baseline's. If the baseline cannot be used, nothing changes.

        Args:
            layer: A registered layer.
            found: What its ``reader`` returned; nothing else may refer to it afterwards.

        Raises:
            UnknownLayer: The layer was never registered.
            LayerConflict: It was registered with another width or detail since that was read.
        """
        self._layers[layer] = self._layers[layer].adopting(found)

    def encode(self) -> bytes:
        """Return the whole bank as bytes for ``decode``: windows, baselines, history, watches."""
        return self.pack([self.copy(layer) for layer in self._layers])

    def copy(self, layer: LayerKey) -> LayerCopy:
        """Copy everything that is kept of a layer, for ``pack``.

        Raises:
            UnknownLayer: It was never registered.
        """
        arrays: Arrays = {}
        return LayerCopy({"key": asdict(layer), **self._layers[layer].put(arrays)}, arrays)

    def pack(self, copies: Sequence[LayerCopy]) -> bytes:
        """Return copies of layers as bytes for ``decode``.

        Compressing takes many times as long as copying. It reads nothing but the copies, so the
        writer need not wait for it.
        """
        arrays = {
            f"{number}.{name}": array
            for number, copy in enumerate(copies)
            for name, array in copy.arrays.items()
        }
        layers = [copy.saved for copy in copies]
        binning = asdict(self._settings.binning)
        return pack(_BANK, {"version": _VERSION, "binning": binning, "layers": layers}, arrays)

    @classmethod
    def decode(
        cls,
        payload: bytes,
        binning: Binning,
        *,
        warmup_rows: int,
        history_seconds: float,
        layer_limit: int,
        feature_limit: int,
        budget: Budget | None = None,
        kernels: Kernels = NUMPY,
    ) -> Self:
        """Return the bank that ``encode`` saw, under the given settings.

        Layers beyond lowered limits are kept; the limits hold for new ones.

        Raises:
            CorruptState: The bytes are not what ``encode`` makes, or were counted in other bins.
        """
        bank = cls(
            binning,
            warmup_rows=warmup_rows,
            history_seconds=history_seconds,
            layer_limit=layer_limit,
            feature_limit=feature_limit,
            budget=budget,
            kernels=kernels,
        )
        with corrupt_unless_read("statistics"):
            header, arrays = unpack(_BANK, payload)
            if header.get("version", _VERSION) != _VERSION:
                raise CorruptState(
                    f"statistics have version {header['version']}, and this sidecar reads up to "
                    f"{_VERSION}: they start anew"
                )
            if header["binning"] != asdict(binning):
                raise CorruptState(
                    f"statistics were counted with {header['binning']}, and the configuration says "
                    f"{asdict(binning)}: they start anew"
                )
            for number, saved in enumerate(header["layers"]):
                key = read_key(saved["key"])
                bank._layers[key] = Layer.take(arrays, f"{number}.", saved, bank._settings)
        return bank


def _check_values(sample: LayerSample, width: int) -> None:
    if sample.values.dtype not in _DTYPES:
        raise UnsupportedDtype(
            f"layer {sample.layer}: values are {sample.values.dtype}: use float32, float16, or "
            "uint16 for the bits of bfloat16"
        )
    if sample.values.shape[1] != width:
        raise ShapeMismatch(
            f"layer {sample.layer}: rows of {sample.values.shape[1]} values, need {width}"
        )
