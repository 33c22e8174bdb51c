"""The statistics bank against what a user would write with numpy."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.row import Row, least_cpu_seconds
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request
from sidecar.stats import Bank, Binning

ROWS, WIDTH = 1024, 4096
UNIT = "ns per value"
NANO = 1e9


def run() -> Sequence[Row]:
    """Measure one full update of a (1024, 4096) batch."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
    layer = LayerKey("bench", "0", "layer", FeatureKind.CHANNEL)
    requests = tuple(Request() for _ in range(ROWS))
    sample = LayerSample(layer, values, np.arange(ROWS, dtype=np.int32), requests)
    bank = Bank(Binning(), warmup_rows=256, history_seconds=3600, layer_limit=4, feature_limit=8192)
    bank.register(layer, WIDTH)
    bank.update(sample, 0.0)
    target = np.empty_like(values)

    full = _per_value(lambda: bank.update(sample, 1.0))
    copy = _per_value(lambda: np.copyto(target, values))
    moments = _per_value(lambda: (values.mean(0), values.var(0), values.min(0), values.max(0)))
    histogram = _per_value(lambda: _histogram(values))
    return [
        Row("bank.full", full, UNIT, "numpy moments and np.histogram", histogram, histogram / full),
        Row(
            "bank.full_vs_moments", full, UNIT, "numpy mean, var, min, max", moments, moments / full
        ),
        Row("bank.full_vs_copy", full, UNIT, "a copy of the batch", copy, copy / full),
    ]


def _per_value(work: Callable[[], object]) -> float:
    return NANO * least_cpu_seconds(work, repeats=5) / (ROWS * WIDTH)


def _histogram(values: np.ndarray) -> None:
    """Moments, and one histogram a feature over the same number of bins."""
    edges = np.linspace(-8, 8, Binning().bins + 1)
    values.mean(0), values.var(0), values.min(0), values.max(0)
    for column in values.T:
        np.histogram(column, edges)
