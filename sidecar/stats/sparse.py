"""The sparse bank: the distributions of every latent of every sparse layer."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import (
    BaselineNotReady,
    CorruptState,
    InvalidInput,
    ShapeMismatch,
)
from sidecar.features import LayerKey, SparseSample
from sidecar.stats.batch import decoded, traffic_of
from sidecar.stats.budget import Detail
from sidecar.stats.encoding import Arrays, corrupt_unless_read, pack, unpack
from sidecar.stats.epoch import Period
from sidecar.stats.registry import Registry, read_key, weights_of
from sidecar.stats.sparse_distribution import SparseDistribution
from sidecar.stats.sparse_kernels import NUMPY, SparseKernels
from sidecar.stats.sparse_layer import LATENT_BYTES, SparseLayer
from sidecar.stats.sparse_record import Octaves
from sidecar.stats.sparse_watch import SparseRows
from sidecar.stats.watch import Watched, WindowCounts

_KIND = b"spba"


class SparseBank:
    """Keeps, for every latent of every sparse layer, what was seen now, before, and in the baseline.

    For dictionaries in which a row has some dozens of non-zero activations among up to millions of
    latents: an update costs as much as there are non-zero values, whatever the width, and a latent
    takes one cache line for each stretch of time. There is no warm-up: the octaves in which values
    are counted are the same for every layer.

    Not thread-safe: one writer. Snapshots are immutable copies that anybody may keep.

    Args:
        exponent: Values are told apart by factors of two from ``2.0**exponent`` over 19 octaves;
            from -60 to 60.
        history_seconds: The history covers between one and two of these.
        layer_limit: Most layers that may be registered.
        latent_limit: Most latents over all layers, at ``LATENT_BYTES`` at most each.
        kernels: The loops to count with.

    Attributes:
        LATENT_BYTES: Most bytes of memory a latent takes.
        FALLBACK: The loops with numpy alone, which a bank is made with.

    Raises:
        InvalidInput: The exponent is out of range.
    """

    LATENT_BYTES = LATENT_BYTES
    FALLBACK = NUMPY

    def __init__(
        self,
        *,
        exponent: int = -8,
        history_seconds: float,
        layer_limit: int,
        latent_limit: int,
        kernels: SparseKernels = NUMPY,
    ) -> None:
        try:
            self._octaves = Octaves(exponent)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        self._history_seconds = history_seconds
        self._kernels = kernels
        advice = f"raise statistics.latent_limit, at {LATENT_BYTES} bytes each"
        self._layers: Registry[SparseLayer] = Registry("latents", layer_limit, latent_limit, advice)

    @property
    def kernels(self) -> str:
        """Name of the loops it counts with."""
        return self._kernels.name

    def use(self, kernels: SparseKernels) -> None:
        """Count with other loops from now on; what was counted stays as it is."""
        self._kernels = kernels

    def register(self, layer: LayerKey, width: int) -> None:
        """Announce a layer; announcing it again with the same width changes nothing.

        Raises:
            LayerConflict: It is known with another width.
            LimitReached: There is no room for another layer or for so many latents.
            ShapeMismatch: The width is not positive.
        """
        if self._layers.admits(layer, width):
            self._layers[layer] = self._new(width)

    def forget(self, layer: LayerKey) -> None:
        """Drop a layer with its baseline and history, and make room for others.

        Raises:
            UnknownLayer: It was never registered.
        """
        del self._layers[layer]

    def _new(self, width: int) -> SparseLayer:
        return SparseLayer(width, self._octaves, self._history_seconds)

    def layers(self) -> tuple[LayerKey, ...]:
        """Return the registered layers, in the order they were announced."""
        return tuple(self._layers)

    def width(self, layer: LayerKey) -> int:
        """Return how many latents a layer has.

        Raises:
            UnknownLayer: It was never registered.
        """
        return self._layers[layer].width

    def detail(self, layer: LayerKey) -> Detail:
        """Return how much is kept of a layer: of a latent there is one level of detail.

        Raises:
            UnknownLayer: It was never registered.
        """
        self._layers[layer]
        return Detail.FULL

    def layer_bytes(self, layer: LayerKey) -> int:
        """Return the bytes reserved for a layer; pages of latents that were never hit take none.

        Raises:
            UnknownLayer: It was never registered.
        """
        return self._layers[layer].memory_bytes

    def update(self, sample: SparseSample, now: float) -> None:
        """Count a sample: every value, and each request of it once; what is not listed is zero.

        A row counts as many times as its request's weight says it stands for, rounded so that the
        counts of any stretch of rows add up to their weights.

        Args:
            sample: Rows of one registered layer; a request's rows are adjacent.
            now: Unix seconds.

        Raises:
            UnregisteredLayer: The layer was never registered.
            ShapeMismatch: The sample is of another width than the layer, or ``request_index`` points
                beyond its requests.
            InvalidInput: A request's weight is not from 1 to 2**20.

        Complexity:
            O(rows + non-zero values), whatever the width; about one cache miss a non-zero value.
        """
        known = self._layers.sampled(sample)
        if sample.width != known.width:
            raise ShapeMismatch(
                f"layer {sample.layer}: rows of {sample.width} latents, need {known.width}"
            )
        if not len(sample.request_index):
            return
        changes = np.flatnonzero(sample.request_index[1:] != sample.request_index[:-1]) + 1
        starts = np.concatenate(([0], changes))  # (requests,)
        rows = SparseRows(
            splits=sample.row_splits.astype(np.int64),
            latents=np.ascontiguousarray(sample.latents),
            values=np.ascontiguousarray(decoded(sample.values)),
            starts=starts,
        )
        weights = weights_of(sample)
        known.watch.absorb_rows(rows, traffic_of(sample, starts) if known.watch.sliced else ())
        known.absorb(rows, weights, now, self._kernels)

    def watch(self, layer: LayerKey, watched: Watched) -> None:
        """Count, from now on, the requests in which these latents pass these thresholds.

        Exactly these are watched; one that was watched in the same way keeps its counts of the open
        window. A latent that a row does not list is zero, and so below every positive low threshold.
        Others are not compared with anything: there is no ``expectation`` of a sparse layer, and its
        windows have no ``screened``.

        Raises:
            UnknownLayer: It was never registered.
            UnknownFeature: It has no such latent.
            InvalidInput: A high threshold or a further one is negative.
        """
        known = self._layers[layer]
        known.watch.set(watched, known.width)

    def close_window(self, now: float) -> dict[LayerKey, WindowCounts]:
        """End every layer's window, see ``close``."""
        return {key: self.close(key, now) for key in self._layers}

    def close(self, layer: LayerKey, now: float) -> WindowCounts:
        """End a layer's window, fold it into history and a learning baseline, start the next.

        Returns:
            What the window held, sampled or not; ``nonfinite`` counts every value that no latent
            may have, negative ones too.

        Raises:
            UnknownLayer: It was never registered.

        Complexity:
            O(latents hit in the window).
        """
        known = self._layers[layer]
        counts = known.window()
        known.close(now, self._kernels)
        return known.watch.close(*counts, watched=None)

    def snapshot(
        self, layer: LayerKey, period: Period, features: NDArray[np.int64] | None = None
    ) -> SparseDistribution:
        """Return an immutable copy of what was seen of a layer over a period.

        Args:
            layer: A registered layer.
            period: Over which stretch of time.
            features: Only these latents, in this order, at the cost of these alone; None: all, at
                about 200 bytes each.

        Raises:
            UnknownLayer: The layer was never registered.
            UnknownFeature: It has no such latent.
        """
        known = self._layers[layer]
        self._layers.check_within(layer, features)
        return known.snapshot(period, features)

    def idle_rows(
        self, layer: LayerKey, features: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return for how long latents have not fired: a latent that never does again is dead.

        Args:
            layer: A registered layer.
            features: Which latents; None: all.

        Returns:
            Rows since the end of the window in which each last had an entry that is not zero, or
            since the layer was registered or reset; 0 where that is the open window. Shape ``(n,)``.

        Raises:
            UnknownLayer: The layer was never registered.
            UnknownFeature: It has no such latent.
        """
        known = self._layers[layer]
        self._layers.check_within(layer, features)
        return known.idle_rows(features)

    def baseline_rate(self, layer: LayerKey, level: float) -> float:
        """Return how often a request should pass a latent's baseline quantile; see ``Bank``.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        rows, requests = self._layers[layer].learned()
        return min(1.0, 1.0 - level ** (rows / requests)) if requests else math.nan

    def freeze(self, layer: LayerKey) -> None:
        """End the baseline of a layer with what was seen up to now; again changes nothing.

        Raises:
            UnknownLayer: The layer was never registered.
            BaselineNotReady: Nothing was seen of it since it was registered or reset.
        """
        known = self._layers[layer]
        if not any(known.learned()):
            raise BaselineNotReady(
                f"layer {layer}: no sample seen yet, so there is no baseline to freeze: send traffic"
            )
        known.freeze(self._kernels)

    def reset(self, layer: LayerKey) -> None:
        """Start a layer over, as if it had just been registered: it learns a new baseline.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        self._layers[layer] = self._new(self._layers[layer].width)

    def frozen(self, layer: LayerKey) -> bool:
        """Return whether the baseline of a layer is frozen.

        Raises:
            UnknownLayer: The layer was never registered.
        """
        return self._layers[layer].frozen

    def encode(self) -> bytes:
        """Return the whole bank as bytes for ``decode``: windows, baselines, history, watches."""
        return self.encoder()()

    def encoder(self) -> Callable[[], bytes]:
        """Copy the whole bank; what is returned turns the copy into bytes for ``decode``.

        Compressing takes many times as long as copying, and the writer need not wait for it.
        """
        arrays: Arrays = {}
        layers = [
            {"key": asdict(key), **layer.put(arrays, f"{number}.")}
            for number, (key, layer) in enumerate(
                zip(self._layers, self._layers.values(), strict=True)
            )
        ]
        header = {"exponent": self._octaves.exponent, "layers": layers}
        return partial(pack, _KIND, header, arrays)

    @classmethod
    def decode(
        cls,
        payload: bytes,
        *,
        exponent: int = -8,
        history_seconds: float,
        layer_limit: int,
        latent_limit: int,
        kernels: SparseKernels = NUMPY,
    ) -> Self:
        """Return the bank that ``encode`` saw, under the given settings.

        Layers beyond lowered limits are kept; the limits hold for new ones.

        Raises:
            CorruptState: The bytes are not what ``encode`` makes, or were counted in other octaves.
        """
        bank = cls(
            exponent=exponent,
            history_seconds=history_seconds,
            layer_limit=layer_limit,
            latent_limit=latent_limit,
            kernels=kernels,
        )
        with corrupt_unless_read("statistics of sparse layers"):
            header, arrays = unpack(_KIND, payload)
            if header["exponent"] != exponent:
                raise CorruptState(
                    f"sparse layers were counted from 2**{header['exponent']}, and the configuration "
                    f"says {exponent}: they start anew"
                )
            for number, saved in enumerate(header["layers"]):
                bank._layers[read_key(saved["key"])] = SparseLayer.take(
                    arrays, f"{number}.", saved, bank._octaves, history_seconds
                )
        return bank
