"""The statistics banks against the sketches, metrics libraries and array code one would use instead.

Everything in one run on the same values, one thread, CPU seconds, the least of several runs. Peers
that take values one by one are given fewer of them, and the same at every call.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from benchmarks import peers
from benchmarks.latents import LAYER, batches
from benchmarks.row import Row, least_cpu_seconds
from sidecar.features import FeatureKind, LayerKey, LayerSample, Request
from sidecar.stats import (
    NUMPY,
    Bank,
    Binning,
    Kernels,
    SparseBank,
    compile_sparse_kernels,
    compiled,
)
from sidecar.stats.batch import Batch
from sidecar.stats.binning import learn_grid
from sidecar.stats.tally import Tally

ROWS, WIDTH = 1024, 4096
NANO, MILLI = 1e9, 1e3
PER_VALUE, PER_HIT, PER_BATCH = "ns per value", "ns per non-zero", "ms per batch"
KLL = "datasketches vector_of_kll"


def run() -> Sequence[Row]:
    """Measure a (1024, 4096) batch of normal values, and batches of 51,200 non-zero latents."""
    return [*_dense(), *_sparse("bank.sparse_1m", 1 << 20), *_sparse("bank.sparse_16k", 1 << 14)]


# -- the three ways to count a dense batch ----------------------------------------------------------


def fast(*samples: LayerSample) -> Callable[[], object]:
    """Return what counts samples of distinct layers in full with compiled kernels."""
    return _updating(samples, compiled())


def fallback(*samples: LayerSample) -> Callable[[], object]:
    """Return what counts samples of distinct layers in full with numpy alone."""
    return _updating(samples, NUMPY)


def moments(sample: LayerSample) -> Callable[[], object]:
    """Return what adds a sample to mean, variance and extremes, and to no bins."""
    rows, width = sample.values.shape
    grid, kernels = learn_grid(sample.values[:256].astype(np.float32), Binning()), compiled()
    tally = Tally.empty(width, Binning().bins)
    batch = Batch(sample.values, np.arange(rows), np.empty(0, np.int64), 1.0)

    def work() -> None:
        kernels.moments(tally, batch.values, batch.copies, grid)
        tally.saw(batch)

    return work


def screening(sample: LayerSample, rows_per_request: int) -> Callable[[], object]:
    """Return what compares every feature with its threshold, which 0.1 % of values pass."""
    rows, width = sample.values.shape
    kernels, starts = compiled(), np.arange(0, rows, rows_per_request)
    thresholds, found = np.full(width, 3.09, np.float32), np.zeros(width, np.int64)
    return lambda: kernels.screen(sample.values, starts, thresholds, found)


def dense_sample(rows: int, width: int, layer: str = "layer") -> LayerSample:
    """Return normal values of one layer, a request a row."""
    values = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
    requests = tuple(Request() for _ in range(rows))
    key = LayerKey("bench", "0", layer, FeatureKind.CHANNEL)
    return LayerSample(key, values, np.arange(rows, dtype=np.int32), requests)


def _updating(samples: Sequence[LayerSample], kernels: Kernels) -> Callable[[], object]:
    rows = min(len(sample.values) for sample in samples)
    bank = Bank(
        Binning(),
        warmup_rows=min(rows, 256),
        history_seconds=3600,
        layer_limit=len(samples),
        feature_limit=sum(sample.values.shape[1] for sample in samples),
        kernels=kernels,
    )
    for sample in samples:
        bank.register(sample.layer, sample.values.shape[1])
        bank.update(sample, 0.0)  # ends the warm-up
    return lambda: [bank.update(sample, 1.0) for sample in samples]


# -- rows -------------------------------------------------------------------------------------------


def _dense() -> Sequence[Row]:
    sample = dense_sample(ROWS, WIDTH)
    values = sample.values
    target = np.empty_like(values)
    full = _per_value(fast(sample))
    plain = _per_value(fallback(sample))
    least = _per_value(moments(sample))
    copy = _per_value(lambda: np.copyto(target, values))
    kll = _per_value(peers.vector_of_kll(values), 3)
    bincount = _per_value(peers.numpy_bincount(values, Binning().mantissa_bits), 3)
    rows = [
        _row("bank.full", full, PER_VALUE, KLL, kll),
        _row("bank.moments", least, PER_VALUE, "a copy of the batch", copy),
        _row("bank.fallback", plain, PER_VALUE, KLL, kll),
        _row("bank.full_vs_copy", full, PER_VALUE, "a copy of the batch", copy),
        _row("bank.full_vs_bincount", full, PER_VALUE, "numpy bits and bincount", bincount),
    ]
    for length in (1, 2, 16):
        screen = _per_value(screening(sample, length))
        rows.append(_row(f"bank.screen_{length}", screen, PER_VALUE, "the update itself", full))
    for name, peer, measured in peers.one_by_one(values):
        rows.append(_row(f"bank.full_vs_{name}", full, PER_VALUE, peer, NANO * measured))
    return rows


def _sparse(name: str, width: int) -> Sequence[Row]:
    samples = batches(width)
    unit, scale = (PER_BATCH, MILLI) if name.endswith("1m") else (PER_HIT, NANO / 51_200)
    bank = SparseBank(
        history_seconds=3600, layer_limit=1, latent_limit=width, kernels=compile_sparse_kernels()
    )
    bank.register(LAYER, width)
    ours = scale * each(samples, lambda sample: bank.update(sample, 1.0))
    found = {
        peer: (label, scale * each(samples, work(width)))
        for peer, (label, work) in peers.SPARSE.items()
    }
    first, *others = found
    rows = [_row(name, ours, unit, *found[first])]
    rows += [_row(f"{name}_vs_{peer}", ours, unit, *found[peer]) for peer in others]
    check = scale * each(samples, lambda sample: replace(sample, width=width))
    rows.append(_row(f"{name}_check", check, unit, "the update itself", ours))
    bank.use(SparseBank.FALLBACK)
    plain = scale * each(samples, lambda sample: bank.update(sample, 1.0), repeats=3)
    return [*rows, _row(f"{name}_fallback", plain, unit, *found[first])]


def each(samples: Sequence[object], work: Callable[..., object], repeats: int = 9) -> float:
    """Return the least CPU seconds for one sample; each call gets the next of them."""
    calls = iter(range(1 << 30))
    return least_cpu_seconds(lambda: work(samples[next(calls) % len(samples)]), 6 * repeats)


def _per_value(work: Callable[[], object], repeats: int = 9) -> float:
    return NANO * least_cpu_seconds(work, repeats) / (ROWS * WIDTH)


def _row(name: str, value: float, unit: str, peer: str, peer_value: float) -> Row:
    return Row(name, value, unit, peer, peer_value, peer_value / value)
