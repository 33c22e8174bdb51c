"""What the statistics of a feature cost, and which layers get how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.stats.binning import Binning

_PLACE_BYTES = 8
"""Centre and exponent of a feature."""

_PLAIN_BYTES = 32
"""Of a feature in one store, beside its counters: sums, squares in two halves, extremes."""

_SCREEN_BYTES = 28
"""Of a feature: its threshold, and how many requests passed it in the open window and in the measured
part of the baseline, with their squares."""

_WINDOW, _LASTING = 2, 4
"""Bytes of a counter in the store of one window, of up to 65,535 rows, and in one that lasts."""

_SCREENED_BITS = 3
"""Mantissa bits of screened layers: half the counters of 4, and errors up to 9 %, usually 3 %."""


class Detail(StrEnum):
    """How much is kept of a layer."""

    FULL = "full"
    """The open window, the last one, the baseline and two generations of history."""

    SCREENED = "screened"
    """The newest window and the baseline, in at most 3 mantissa bits; no history."""

    def binning(self, configured: Binning) -> Binning:
        """Return how finely layers of this detail are binned."""
        if self is Detail.FULL:
            return configured
        return Binning(min(configured.mantissa_bits, _SCREENED_BITS), configured.octaves)

    def feature_bytes(self, configured: Binning) -> int:
        """Return what a feature costs.

        Windows of more than 65,535 rows cost as much again as their counters for as long as they
        last, and a layer that ever had a NaN 16 bytes a store.
        """
        binning = self.binning(configured)
        windows, lasting = (2, 3) if self is Detail.FULL else (1, 1)
        stores = windows * store_bytes(binning, _WINDOW) + lasting * store_bytes(binning, _LASTING)
        return stores + _PLACE_BYTES + _SCREEN_BYTES


def store_bytes(binning: Binning, counter_bytes: int) -> int:
    """Return what a feature costs in one store: bins, zeros, and the rest."""
    return (binning.bins + 1) * counter_bytes + _PLAIN_BYTES


@dataclass(frozen=True, slots=True)
class Budget:
    """How much memory distributions may take.

    Attributes:
        memory_bytes: Of all layers together.
        full_detail_ratio: Share of that which layers at full detail may take, first come, first
            served; the rest is for those that come later, which are screened.
        flagged_memory_bytes: Of the finer bins of flagged features, beside all that.
        flagged_mantissa_bits: How fine those are.
        flagged_windows: Closed windows of flagged features that are kept.
    """

    memory_bytes: int = 512 << 20
    full_detail_ratio: float = 0.5
    flagged_memory_bytes: int = 64 << 20
    flagged_mantissa_bits: int = 5
    flagged_windows: int = 12

    def choose(self, width: int, configured: Binning, used: Mapping[Detail, int]) -> Detail | None:
        """Return how much is kept of the next layer; None: there is no room for it at all.

        Args:
            width: Features of the layer.
            configured: How finely full detail is binned.
            used: Bytes that layers of each detail take already.
        """
        room = self.memory_bytes - sum(used.values())
        full = width * Detail.FULL.feature_bytes(configured)
        share = self.memory_bytes * self.full_detail_ratio - used.get(Detail.FULL, 0)
        if full <= min(room, share):
            return Detail.FULL
        return Detail.SCREENED if self.cost(width, Detail.SCREENED, configured) <= room else None

    def cost(self, width: int, detail: Detail, configured: Binning) -> int:
        """Return what a layer costs in bytes."""
        return width * detail.feature_bytes(configured)

    def fitting(self, detail: Detail, configured: Binning) -> int:
        """Return how many features fit at one detail if there is no other."""
        ratio = self.full_detail_ratio if detail is Detail.FULL else 1.0
        return int(self.memory_bytes * ratio) // detail.feature_bytes(configured)

    def flagged_binning(self, configured: Binning) -> Binning:
        """Return how finely flagged features are binned: never coarser than the others."""
        return Binning(
            max(self.flagged_mantissa_bits, configured.mantissa_bits), configured.octaves
        )

    def flagged_feature_bytes(self, configured: Binning) -> int:
        """Return what a flagged feature costs beside its layer."""
        one = store_bytes(self.flagged_binning(configured), _WINDOW)
        return (self.flagged_windows + 1) * one + _PLACE_BYTES


@dataclass(frozen=True, slots=True)
class Memory:
    """How a budget stands.

    Attributes:
        used_bytes: Set aside for registered layers and flagged features.
        limit_bytes: That may be.
    """

    used_bytes: int
    limit_bytes: int
