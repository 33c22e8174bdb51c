"""What the monitor keeps under its one lock, and which bank and order it is kept in."""

import threading
from collections.abc import Callable, Sequence

from sidecar.config import ScreenConfig, SpikeConfig, StatisticsConfig
from sidecar.detect import ScreenPolicy, SpikePolicy
from sidecar.features import FeatureKey, FeatureSelector, LayerKey
from sidecar.monitor.banks import new_banks
from sidecar.monitor.evidence import EvidenceBook
from sidecar.monitor.layer import MonitoredLayer
from sidecar.monitor.views import Event, Flag
from sidecar.stats import Bank, Expectation, SparseBank
from sidecar.store import WindowRecord

DIGEST_SHOWN = 12
"""Hexadecimal digits of a digest that people see."""


class Books:
    """The state of a monitor, which everything it does and answers shares."""

    def __init__(
        self,
        statistics: StatisticsConfig,
        spike: SpikeConfig,
        *,
        now: float,
        activation_limit: int = 1000,
        screen: ScreenConfig | None = None,
        evidence: EvidenceBook | None = None,
        on_window: Callable[[WindowRecord], None] | None = None,
        levels: Sequence[float] = (),
    ) -> None:
        """Start empty.

        Args:
            statistics: How distributions are kept.
            spike: When a flagged feature counts as spiking.
            now: Unix seconds; the first window starts here.
            activation_limit: Most watched features whose activations are added up for scrapes.
            screen: When a whole layer counts as shifted; None: the default settings.
            evidence: What keeps slices and rows; None: one with the default settings.
            on_window: Given every closed window of flagged features, under the lock; must not wait.
            levels: Baseline quantiles at which requests of flagged features are counted for it too.
        """
        self._evidence = evidence or EvidenceBook()
        self._evidence_ids: dict[FeatureKey, str] = {}
        self._activation_limit = activation_limit
        self._on_window, self._levels = on_window, tuple(levels)
        self._settings = statistics
        self._policy = SpikePolicy(**spike.model_dump(), window_seconds=statistics.window_seconds)
        self._screen = ScreenPolicy(**(screen or ScreenConfig()).model_dump())
        self._lock = threading.RLock()
        self._bank, self._sparse = new_banks(statistics)
        self._layers: dict[LayerKey, MonitoredLayer] = {}
        self._flags: dict[FeatureSelector, Flag] = {}
        # Worked out when a scrape asks; None after any change of what they depend on.
        self._unmatched: tuple[FeatureSelector, ...] | None = None
        self._order: tuple[LayerKey, ...] | None = None
        self._followed = 0  # features whose activations are added up
        self._window_began = now
        self._retired: list[Event] = []

    def _bank_of(self, key: LayerKey) -> Bank | SparseBank:
        """Return the bank that counts a registered layer."""
        return self._sparse if key in self._sparse.layers() else self._bank

    def _frozen(self, key: LayerKey) -> bool:
        return self._bank_of(key).frozen(key)

    def _expected(self, key: LayerKey) -> Expectation | None:
        """Return what was measured of a layer; None of a sparse one, or before there were thresholds."""
        return self._bank.expectation(key) if key in self._bank.layers() else None

    def _tested(self) -> int:
        """Return how many features are tested for spikes: they share the false alarms."""
        return sum(int(layer.watch.tested.sum()) for layer in self._layers.values())

    def _ordered(self) -> tuple[LayerKey, ...]:
        """Return the known layers in order; there may be thousands, and every scrape asks."""
        if self._order is None:
            self._order = tuple(sorted(self._layers))
        return self._order
