"""One registered layer: what was seen of it, what is watched, and how much is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.features import Slice
from sidecar.stats.baseline import Baseline, check_fits
from sidecar.stats.batch import Batch, Rounding
from sidecar.stats.binning import Binning
from sidecar.stats.budget import Budget, Detail
from sidecar.stats.distribution import Distribution
from sidecar.stats.encoding import Arrays
from sidecar.stats.epoch import Epoch, Period
from sidecar.stats.fine import Fine, WatchedWindow
from sidecar.stats.kernels import Kernels
from sidecar.stats.screen import Expectation, Screen, placed
from sidecar.stats.warmup import Warmup
from sidecar.stats.watch import Watch, Watched, WindowCounts


@dataclass(frozen=True, slots=True)
class Settings:
    """How all layers are kept; see ``Bank``."""

    binning: Binning
    warmup_rows: int
    history_seconds: float
    budget: Budget


class Layer:
    """One layer from its registration on.

    Args:
        width: Its features.
        detail: How much is kept.
        settings: How.
    """

    def __init__(self, width: int, detail: Detail, settings: Settings) -> None:
        self.width, self.detail, self._settings = width, detail, settings
        self.rounding = Rounding()
        self._seen: Warmup | Epoch = Warmup(width, settings.warmup_rows)
        self._watch = Watch()
        self._screen: Screen | None = None
        self._fine: Fine | None = None

    @property
    def frozen(self) -> bool:
        """Whether its baseline is frozen."""
        return isinstance(self._seen, Epoch) and self._seen.frozen

    @property
    def cost(self) -> int:
        """Bytes set aside for it, without those of flagged features."""
        return self._settings.budget.cost(self.width, self.detail, self._settings.binning)

    @property
    def flagged_cost(self) -> int:
        """Bytes set aside for the finer bins of what is watched."""
        if self._fine is None:
            return 0
        each = self._settings.budget.flagged_feature_bytes(self._settings.binning)
        return len(self._fine.indices) * each

    @property
    def nbytes(self) -> int:
        """Bytes of its stores or, before its bins are placed, of the rows kept."""
        return self._seen.nbytes + (0 if self._screen is None else self._screen.nbytes)

    @property
    def sliced(self) -> bool:
        """Whether ``update`` has to be told the traffic of each request."""
        return self._watch.sliced

    @property
    def expectation(self) -> Expectation | None:
        """What a window is expected to hold; None before thresholds were placed."""
        return None if self._screen is None else self._screen.expectation

    def update(self, batch: Batch, traffic: Sequence[Slice], kernels: Kernels) -> None:
        """Count rows, given the slice of each request where ``sliced``."""
        self._watch.absorb(batch, traffic, kernels)
        if self._screen is not None:
            self._screen.absorb(batch, kernels)
        if self._fine is not None:
            self._fine.absorb(batch, kernels)
        self._seen.absorb(batch, kernels)
        if isinstance(self._seen, Warmup) and self._seen.complete:
            self._seen = self.placed(kernels)

    def placed(self, kernels: Kernels, features: NDArray[np.int64] | None = None) -> Epoch:
        """Return what was seen; during warm-up, of all or some features on provisional bins."""
        if isinstance(self._seen, Epoch):
            return self._seen
        return self._seen.replay(
            self.binning, self._settings.history_seconds, kernels, self.detail, features
        )

    def snapshot(
        self, period: Period, features: NDArray[np.int64] | None, kernels: Kernels
    ) -> Distribution:
        """Return what was seen of all or some features over a period."""
        epoch = self.placed(kernels, features)
        return epoch.snapshot(period, features if epoch is self._seen else None)

    def freeze(self, kernels: Kernels) -> None:
        """End its baseline, placing its bins for good if they were not yet."""
        epoch = self.placed(kernels)
        epoch.freeze()
        self._seen = epoch

    def place_thresholds(self, level: float, kernels: Kernels) -> None:
        """Screen every feature from now on, at a quantile of what its baseline has learned."""

        def learned(features: NDArray[np.int64]) -> Distribution:
            return self.snapshot(Period.BASELINE, features, kernels)

        bound = self.baseline_rate(level)
        self._screen = Screen(placed(learned, self.width, level, bound))

    def learned(self) -> tuple[int, int]:
        """Return the baseline's sampled rows and requests, the open window's while it still learns."""
        return self._seen.learned()

    def baseline_rate(self, level: float) -> float:
        """Return the rate of requests above a baseline quantile if rows were independent."""
        rows, requests = self.learned()
        return min(1.0, 1.0 - level ** (rows / requests)) if requests else math.nan

    def watch(self, watched: Watched, room_bytes: int) -> None:
        """Watch exactly these features, in finer bins if they fit into ``room_bytes``."""
        self._watch.set(watched, self.width)
        self._refine(room_bytes)

    def _refine(self, room_bytes: int) -> None:
        """Watch what is watched in finer bins too, once there are bins and as far as there is room."""
        settings, indices = self._settings, self._watch.indices
        if not isinstance(self._seen, Epoch):
            return
        if len(indices) * settings.budget.flagged_feature_bytes(settings.binning) > room_bytes:
            indices = indices[:0]
        if self._fine is None:
            self._fine = self._finer(self._seen)
        if not np.array_equal(self._fine.indices, indices):
            self._fine.watch(indices.copy())

    def _finer(self, epoch: Epoch) -> Fine:
        budget = self._settings.budget
        binning = budget.flagged_binning(self._settings.binning)
        return Fine(epoch.grid, binning, budget.flagged_windows)

    def close(self, now: float, room_bytes: int) -> WindowCounts:
        """End the window, and return what it held."""
        requests, rows, nonfinite = self._window()
        watched = self._watched()
        self._seen.close(now)
        if self._fine is not None:
            self._fine.close(now)
        self._refine(room_bytes)
        counts = self._watch.close(requests, rows, nonfinite, watched)
        if self._screen is None:
            return counts
        exceedances, compared = self._screen.close(learning=not self.frozen)
        return replace(counts, screened=exceedances, screened_requests=compared)

    def _watched(self) -> Distribution | None:
        """Return the open window of what is watched: in finer bins if they saw all of it."""
        indices = self._watch.indices
        if isinstance(self._seen, Warmup) or not len(indices):
            return None
        if self._fine is not None and np.array_equal(self._fine.indices, indices):
            found = self._fine.window()
            if found.rows == self._seen.open.rows:
                return found
        return self._seen.window(indices)

    def windows(self) -> tuple[WatchedWindow, ...]:
        """Return the last closed windows of watched features, oldest first."""
        return () if self._fine is None else self._fine.windows()

    def _window(self) -> tuple[int, int, int]:
        """Return the requests, sampled rows and non-finite values of the open window."""
        if isinstance(self._seen, Epoch):
            tally = self._seen.open
            return tally.requests, tally.sampled, tally.nonfinite
        arrived = self._seen.arrived
        return (
            sum(one.requests for one in arrived),
            sum(one.sampled for one in arrived),
            sum(int(one.counted @ (~np.isfinite(one.values)).sum(axis=1)) for one in arrived),
        )

    def baseline(self) -> Baseline | None:
        """Return its frozen baseline, which nothing changes any more; None before there is one."""
        if not isinstance(self._seen, Epoch) or not self.frozen:
            return None
        return Baseline(self._seen.grid, self._seen.baseline, self.expectation)

    @property
    def binning(self) -> Binning:
        """How finely its baseline is counted."""
        return self.detail.binning(self._settings.binning)

    def adopting(self, found: Baseline) -> "Layer":
        """Return a layer like this one that has seen nothing but a baseline.

        Raises:
            LayerConflict: It does not fit the layer.
        """
        check_fits(len(found.grid.centre), found.grid.binning, self.width, self.binning)
        layer = Layer(self.width, self.detail, self._settings)
        seconds = self._settings.history_seconds
        layer._seen = Epoch.adopting(
            found.grid, found.tally, history_seconds=seconds, detail=self.detail
        )
        layer._screen = None if found.expectation is None else Screen(found.expectation)
        return layer

    def put(self, arrays: Arrays) -> dict[str, Any]:
        """Add copies of all arrays; return the plain values."""
        saved: dict[str, Any] = {"width": self.width, "detail": self.detail}
        saved["traffic"] = self._watch.put(arrays, "")
        if self._screen is not None:
            saved["screen"] = self._screen.put(arrays, "screen.")
        saved["carried"] = self.rounding.carried
        if self._fine is not None:
            saved["fine"] = self._fine.put(arrays, "fine.")
        name = "epoch" if isinstance(self._seen, Epoch) else "warmup"
        return {**saved, name: self._seen.put(arrays, "")}

    @classmethod
    def take(
        cls, arrays: Arrays, prefix: str, saved: dict[str, Any], settings: Settings
    ) -> "Layer":
        """Return what ``put`` saw.

        Raises:
            ValueError: The parts do not fit together; so may KeyError and TypeError.
        """
        width, detail = int(saved["width"]), Detail(saved["detail"])
        if width < 1:
            raise ValueError(f"width {width}")
        layer = cls(width, detail, settings)
        layer.rounding = Rounding(float(saved["carried"]))
        layer._watch.take(arrays, prefix, saved.get("traffic", []), width)
        if "screen" in saved:
            layer._screen = Screen.take(arrays, prefix + "screen.", saved["screen"], width)
        if "epoch" in saved:
            layer._seen = Epoch.take(
                arrays,
                prefix,
                saved["epoch"],
                width=width,
                binning=detail.binning(settings.binning),
                history_seconds=settings.history_seconds,
                detail=detail,
            )
            if "fine" in saved:
                layer._fine = layer._finer(layer._seen)
                layer._fine.take(arrays, prefix + "fine.", saved["fine"])
        elif isinstance(layer._seen, Warmup):
            layer._seen.take(arrays, prefix, saved["warmup"])
        return layer
