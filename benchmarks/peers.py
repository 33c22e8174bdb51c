"""What people use instead: each peer as a function that takes in the same values once."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasketches import vector_of_kll_floats_sketches
from ddsketch import DDSketch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from prometheus_client import CollectorRegistry, Histogram
from scipy import sparse

from benchmarks.row import least_cpu_seconds
from sidecar.features import SparseSample

WHYLOGS = Path(".venv-whylogs/bin/python")
"""whylogs needs numpy below 2, so it lives in an environment of its own; see the Makefile."""

KLL_K = 200
"""The library's default: about 1.65 % of rank."""

FEW, FEWEST = 20_000, 4_000
"""Values for peers that take a microsecond, or ten, for each."""

Work = Callable[[], object]
SparseWork = Callable[[SparseSample], object]


def vector_of_kll(values: np.ndarray) -> Work:
    """Return one update of a vector of KLL sketches, one for each feature."""
    sketches = vector_of_kll_floats_sketches(KLL_K, values.shape[1])
    return lambda: sketches.update(values)


def numpy_bincount(values: np.ndarray, bits: int) -> Work:
    """Return counting into log-linear bins, and moments, as one would write it with numpy."""
    width = values.shape[1]
    first = np.arange(width, dtype=np.int64) << (9 + bits)  # sign, exponent, mantissa

    def work() -> object:
        bins = (values.view(np.uint32) >> np.uint32(23 - bits)).astype(np.int64) + first
        counts = np.bincount(bins.ravel(), minlength=width << (9 + bits))
        return counts, values.mean(0), values.var(0), values.min(0), values.max(0)

    return work


def one_by_one(values: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Yield ``(name, peer, seconds for a value)`` of libraries that take values singly or slowly."""
    column = [float(x) for x in values.ravel()[:FEW]]
    sketch = DDSketch(0.01)
    yield "ddsketch", "ddsketch add", _each(sketch.add, column)
    histogram = Histogram("bench", "Benchmark.", registry=CollectorRegistry())
    yield "prometheus", "prometheus_client observe", _each(histogram.observe, column)
    view = View(instrument_name="bench", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([InMemoryMetricReader()], views=[view], shutdown_on_exit=False)
    record = provider.get_meter("bench").create_histogram("bench").record
    sizes = [abs(x) for x in column[:FEWEST]]  # it refuses negative values
    yield "otel", "OpenTelemetry exponential histogram", _each(record, sizes)
    provider.shutdown()
    if (seconds := _whylogs(values)) is not None:
        yield "whylogs", "whylogs log(pandas)", seconds


def _each(take: Callable[[float], object], column: list[float]) -> float:
    def work() -> None:
        for value in column:
            take(value)

    return least_cpu_seconds(work, 5) / len(column)


def _whylogs(values: np.ndarray) -> float | None:
    """Return whylogs' seconds for a value, measured in its own process; None: it is not there."""
    if not WHYLOGS.exists():
        print("whylogs: skipped, there is no .venv-whylogs (run: make bench)", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "values.npy", values[:, :64])
        script = Path(__file__).with_name("whylogs_peer.py")
        done = subprocess.run(
            [WHYLOGS, script, Path(folder) / "values.npy"],
            capture_output=True,
            check=False,
            text=True,
        )
    if done.returncode:
        print(f"whylogs: skipped, it ended with {done.stderr[-300:]}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


# -- sparse: count, sum, sum of squares and maximum of every latent, but no histogram ---------------


def _bincount(width: int) -> SparseWork:
    count = np.zeros(width, np.int64)
    total, squares = np.zeros(width), np.zeros(width)
    most = np.zeros(width, np.float32)

    def work(sample: SparseSample) -> object:
        nonlocal count, total, squares
        latents, values = sample.latents, sample.values
        count += np.bincount(latents, minlength=width)
        total += np.bincount(latents, values, width)
        squares += np.bincount(latents, values * values, width)
        np.maximum.at(most, latents, values)
        return most

    return work


def _add_at(width: int) -> SparseWork:
    count = np.zeros(width, np.int64)
    total, squares = np.zeros(width), np.zeros(width)
    most = np.zeros(width, np.float32)

    def work(sample: SparseSample) -> object:
        latents, values = sample.latents, sample.values
        np.add.at(count, latents, 1)
        np.add.at(total, latents, values)
        np.add.at(squares, latents, values * values)
        np.maximum.at(most, latents, values)
        return most

    return work


def _scipy(width: int) -> SparseWork:
    count = np.zeros(width, np.int64)
    total, squares = np.zeros(width), np.zeros(width)
    most = np.zeros(width, np.float32)

    def work(sample: SparseSample) -> object:
        nonlocal count, total, squares
        rows = len(sample.request_index)
        parts = (sample.values, sample.latents.view(np.int32), sample.row_splits)
        matrix = sparse.csr_array(parts, shape=(rows, width))
        count += matrix.count_nonzero(axis=0)
        total += matrix.sum(axis=0)
        squares += matrix.power(2).sum(axis=0)
        return np.maximum(most, matrix.max(axis=0).toarray(), out=most)

    return work


def _torch(width: int) -> SparseWork:
    import torch  # noqa: PLC0415 - seconds to import, and one peer of many

    torch.set_num_threads(1)
    count, total, squares, most = (torch.zeros(width) for _ in range(4))

    def work(sample: SparseSample) -> object:
        index = torch.from_numpy(sample.latents.astype(np.int64))
        values = torch.from_numpy(sample.values)
        count.index_add_(0, index, torch.ones_like(values))
        total.index_add_(0, index, values)
        squares.index_add_(0, index, values * values)
        return most.scatter_reduce_(0, index, values, "amax")

    return work


SPARSE: dict[str, tuple[str, Callable[[int], SparseWork]]] = {
    "bincount": ("numpy bincount and maximum.at", _bincount),
    "add_at": ("numpy add.at and maximum.at", _add_at),
    "scipy": ("scipy csr_array sums and max", _scipy),
    "torch": ("torch index_add and scatter_reduce", _torch),
}
"""Peers of the sparse bank by name: a label, and what makes one for a width. The first leads: it is the
fastest that needs no deep-learning library."""
