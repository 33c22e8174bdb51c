"""How the banks' cost grows with rows, features, layers and non-zero values; draws it for the docs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bank import NANO, PER_HIT, PER_VALUE, dense_sample, each, fast
from benchmarks.latents import LAYER, batches
from benchmarks.row import Row, least_cpu_seconds
from sidecar.features import LayerSample
from sidecar.stats import SparseBank, compile_sparse_kernels

PICTURE = Path("docs/images/bank-scaling.svg")
COPY = "a copy of the batch"
REPEATS = 5

DENSE = {
    "rows": [(rows, rows, 1024, 1) for rows in (16, 64, 256, 1024, 4096)],
    "features": [(width, 256, width, 1) for width in (64, 256, 1024, 4096, 16_384)],
    "layers": [(layers, 256, 1024, layers) for layers in (1, 4, 16, 64)],
}
"""Curves as ``(size, rows of a batch, features of a layer, layers)``; one size of each grows."""

ROWS_OF_NONZEROS = (16, 64, 256, 1024, 4096)
WIDTHS = {"16k latents": 1 << 14, "262k latents": 1 << 18, "1m latents": 1 << 20}


def run() -> Sequence[Row]:
    """Measure every curve, draw them, and return a row a point, named ``scaling.<curve>.<size>``."""
    rows = [_dense(curve, *point) for curve, points in DENSE.items() for point in points]
    for name, width in WIDTHS.items():
        rows += _sparse(name.replace(" latents", ""), width)
    draw(rows, PICTURE)
    return rows


def _dense(curve: str, size: int, rows: int, width: int, layers: int) -> Row:
    samples = [dense_sample(rows, width, f"layer.{number}") for number in range(layers)]
    targets = [np.empty_like(sample.values) for sample in samples]
    values = rows * width * layers
    ours = NANO * least_cpu_seconds(fast(*samples), REPEATS) / values
    copy = NANO * least_cpu_seconds(_copy(samples, targets), REPEATS) / values
    return Row(f"scaling.{curve}.{size}", ours, PER_VALUE, COPY, copy, copy / ours)


def _copy(samples: Sequence[LayerSample], targets: Sequence[np.ndarray]) -> Callable[[], object]:
    pairs = list(zip(targets, (sample.values for sample in samples), strict=True))
    return lambda: [np.copyto(target, values) for target, values in pairs]


def _sparse(curve: str, width: int) -> Sequence[Row]:
    bank = SparseBank(
        history_seconds=3600, layer_limit=1, latent_limit=width, kernels=compile_sparse_kernels()
    )
    bank.register(LAYER, width)
    rows = []
    for count in ROWS_OF_NONZEROS:
        samples = batches(width, rows=count, count=3)
        hits = len(samples[0].latents)
        ours = NANO * each(samples, lambda sample: bank.update(sample, 1.0), REPEATS) / hits
        copy = NANO * each(samples, lambda sample: sample.values.copy(), REPEATS) / hits
        rows.append(Row(f"scaling.{curve}.{hits}", ours, PER_HIT, COPY, copy, copy / ours))
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the curves as four panels into an SVG file, the same bytes for the same rows."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for axis, curve in zip(axes, DENSE, strict=False):
        points = _points(rows, curve)
        axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label="full update")
        axis.plot([x for x, _, _ in points], [y for _, _, y in points], "s--", label=COPY)
        _label(axis, curve, PER_VALUE)
    for name in WIDTHS:
        points = _points(rows, name.replace(" latents", ""))
        axes[3].plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=name)
    _label(axes[3], "non-zero values of a batch", PER_HIT)
    with mpl.rc_context({"svg.hashsalt": "sidecar", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _points(rows: Sequence[Row], curve: str) -> list[tuple[int, float, float]]:
    prefix = f"scaling.{curve}."
    mine = [row for row in rows if row.name.startswith(prefix)]
    return [(int(row.name.removeprefix(prefix)), row.value, row.peer_value) for row in mine]


def _label(axis: Axes, what: str, unit: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=what, ylabel=unit)
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(frameon=False)
