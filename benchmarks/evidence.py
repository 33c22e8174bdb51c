"""What the evidence of flagged features adds to taking in a batch."""

from collections.abc import Sequence

import numpy as np

from benchmarks.row import Row, least_cpu_seconds
from sidecar.config import EvidenceConfig, SpikeConfig, StatisticsConfig
from sidecar.features import (
    Capture,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Slice,
)
from sidecar.monitor import EvidenceBook, Flag, Monitor
from sidecar.stats import compiled

ROWS, WIDTH = 1024, 4096
ROUTES, TENANTS = 20, 7
SPIKE = 0.3
"""Share of the requests that exceed in a spike, of all flagged features at once."""

LAYER = LayerKey("bench", "a" * 64, "blocks.0.hook_resid_post")
UNIT = "ms of CPU a batch"
MILLI = 1e3


def run() -> Sequence[Row]:
    """Measure one batch of 1,024 requests by 4,096 features, beside all of ``Monitor.apply``."""
    on = EvidenceConfig(enabled=True)
    return [
        _row("evidence.idle", 16, EvidenceConfig()),
        _row("evidence.slices", 16, EvidenceConfig(), sliced=True),
        _row("evidence.slices_spike", 16, EvidenceConfig(), sliced=True, loud=True),
        _row("evidence.rows", 16, on),
        _row("evidence.rows_spike", 16, on, sliced=True, loud=True),
        _row("evidence.rows_spike_1000", 1000, on, sliced=True, loud=True),
    ]


def _row(
    name: str, flagged: int, settings: EvidenceConfig, *, sliced: bool = False, loud: bool = False
) -> Row:
    book = EvidenceBook(settings)
    monitor, indices = _monitor(book, flagged)
    rng = np.random.default_rng(1)
    batch = _batch(rng, indices, sliced=sliced, loud=loud)
    high, low = np.full(flagged, 15.0), np.full(flagged, -np.inf)

    def ended() -> None:
        book.close(LAYER, 0.0)  # so that each batch finds an empty window, its dearest

    alone = least_cpu_seconds(lambda: book.absorb(batch, indices, high, low, 0.0), before=ended)
    whole = least_cpu_seconds(lambda: monitor.apply(batch, 0.0), before=ended)
    value, peer = MILLI * alone, MILLI * whole
    return Row(name, value, UNIT, "the whole of Monitor.apply", peer, peer / value)


def _monitor(book: EvidenceBook, flagged: int) -> tuple[Monitor, np.ndarray]:
    """Return a monitor with a frozen baseline, compiled kernels, and evenly flagged features."""
    monitor = Monitor(StatisticsConfig(), SpikeConfig(), now=0.0, evidence=book)
    monitor.use(compiled())
    monitor.register(LAYER, WIDTH, Capture(), 0.0)
    indices = np.arange(flagged, dtype=np.int64) * (WIDTH // flagged)
    names = (f"bench/{LAYER.layer}/channel/{i}" for i in indices.tolist())
    monitor.set_flags({FeatureSelector.parse(name): Flag() for name in names}, 0.0)
    monitor.apply(_batch(np.random.default_rng(0), indices), 0.0)
    monitor.freeze((LAYER,), 0.0)
    return monitor, indices


def _batch(
    rng: np.random.Generator, indices: np.ndarray, *, sliced: bool = False, loud: bool = False
) -> LayerSample:
    values = rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
    values[: int(SPIKE * ROWS * loud), indices] += 20
    slices = [Slice.of({"route": f"/v{i}", "tenant": f"t{i % TENANTS}"}) for i in range(ROUTES)]
    requests = tuple(
        Request(f"request-{i:08d}", slices[i % ROUTES] if sliced else Slice()) for i in range(ROWS)
    )
    return LayerSample(LAYER, values, np.arange(ROWS, dtype=np.int32), requests)
