"""The promises of the room, as numbers: tail quantiles, memory, merging, weights."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.lite0 import build
from demo.photos import augment, load_everyday
from sidecar.features import LayerKey, LayerSample, Request
from sidecar.stats import NUMPY, Bank, Binning, Distribution, Kernels, Period, Watched, compiled
from sidecar.stats.batch import EVERY, Batch, Rounding
from sidecar.stats.binning import Grid, learn_grid
from sidecar.stats.distribution import merge
from sidecar.stats.tally import Tally
from tests import reference

pytestmark = pytest.mark.unit

TAIL = np.array([0.9, 0.99, 0.999])
SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t3": lambda rng, n: rng.standard_t(3, n),
    "t1.5": lambda rng, n: rng.standard_t(1.5, n),
    "lognormal1.5": lambda rng, n: rng.lognormal(0, 1.5, n),
    "relu90": lambda rng, n: np.maximum(rng.normal(-1.2816, 1, n), 0),
    "mean100": lambda rng, n: rng.normal(100, 1, n),
}


def counted(rows: np.ndarray, grid: Grid, kernels: Kernels = NUMPY) -> Distribution:
    """Return the distribution of rows on a grid."""
    tally = Tally.empty(rows.shape[1], grid.binning.bins)
    if len(rows):
        kernels.absorb(tally, Batch(rows, np.arange(len(rows)), EVERY, 1.0), grid)
    return tally.distribution(grid)


def errors(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return errors of quantiles as ratios of the distance from the centre, ``(features, levels)``.

    Near the centre a value is known to half the near-zero width: there that counts as two per cent.
    """
    seen = counted(rows, learn_grid(rows[:256], Binning()))
    ranks = np.ceil(levels * len(rows)).astype(int) - 1
    exact = np.sort(rows.astype(np.float64), axis=0)[ranks].T
    width = 2.0 ** seen.exponent[:, None].astype(np.float64)
    away = np.maximum(np.abs(exact - seen.centre[:, None]), 25 * width)
    return np.asarray(np.abs(seen.quantile(levels) - exact) / away)


@pytest.mark.parametrize("name", SHAPES)
def test_tail_quantiles_are_within_two_per_cent(name: str) -> None:
    """p90, p99 and p99.9 of 100,000 values, each of eight features, against the sorted sample."""
    rng = np.random.default_rng(11)
    rows = np.stack([SHAPES[name](rng, 100_000) for _ in range(8)], axis=1).astype(np.float32)

    assert errors(rows, TAIL).max() <= 0.02


@functools.cache
def activations() -> list[np.ndarray]:
    """Return what channels of EfficientNet-Lite0 show for photographs, at three depths."""
    import torch  # noqa: PLC0415 - this test alone needs a model

    rng, photos, kept = np.random.default_rng(0), load_everyday(), {}
    model = build().eval()
    for number in (0, 2, 4):
        block = model.get_submodule(f"_blocks.{number}")
        block.register_forward_hook(lambda _, __, output, at=number: kept.update({at: output}))
    images = [np.asarray(augment(photos[n % len(photos)], rng), np.float32) for n in range(12)]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1.0
    with torch.inference_mode():
        model(batch)
    # Every position is a row, as in a hook that takes all of them.
    return [
        np.ascontiguousarray(output.permute(0, 2, 3, 1).reshape(-1, output.shape[1]).numpy())
        for output in kept.values()
    ]


def test_real_activations_are_within_two_per_cent() -> None:
    """The channels of a convolutional network at photographs, each position a row.

    p99.9 where the sample has tens of values beyond it, p99 in the smaller layers: with fewer the
    quantile is a matter of single values, and only the bound that holds for every sample is left.
    """
    for rows in activations():
        shuffled = np.random.default_rng(1).permutation(rows)
        level = 0.999 if len(rows) >= 40_000 else 0.99

        assert errors(shuffled, np.array([0.5, 0.9, level])).max() <= 0.02
        assert errors(shuffled, np.array([0.9999])).max() <= Binning().relative_error


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_split_and_any_order_of_merging_gives_the_same_bits(data: st.DataObject) -> None:
    """Windows, replicas, kernels: however rows were dealt out, the sum of the parts is the whole."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = (rng.standard_t(1.5, (200, 3)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.02] = np.nan
    grid = learn_grid(rows[:64], Binning())
    replica = rng.integers(0, data.draw(st.integers(1, 6)), len(rows))
    parts = [
        counted(rows[replica == n], grid, data.draw(st.sampled_from([NUMPY, compiled()])))
        for n in rng.permutation(replica.max() + 1)
    ]

    while len(parts) > 1:  # a random tree of merges
        a, b = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(merge(a, b))

    whole = counted(rows, grid)
    for name in whole.__slots__:
        expected, actual = getattr(whole, name), getattr(parts[0], name)
        if isinstance(expected, np.ndarray):
            assert (expected.dtype, expected.tobytes()) == (actual.dtype, actual.tobytes()), name
        else:
            assert expected == actual, name


# -- weights -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(1.0, 2.0**20), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_rounded_weights_add_up(weights: list[float], cuts: list[int]) -> None:
    """Over any stretch of rows the whole numbers are within one of the weights, batches or not."""
    rounding, copies = Rounding(), []
    for part in np.split(np.array(weights), sorted(cuts)):
        copies += rounding.copies(part).tolist()

    assert all(int(w) <= n <= int(w) + 1 for w, n in zip(weights, copies, strict=True))
    assert np.all(np.abs(np.cumsum(copies) - np.cumsum(weights)) < 1.001)


def test_weighted_samples_estimate_the_full_capture() -> None:
    """Rows sampled at different rates, weighted by one over them: mean and quantiles come out right.

    Every tenth row is kept of the half of traffic that is quiet, and all of the other: without weights
    the mean would be off by 40 standard errors.
    """
    rng = np.random.default_rng(4)
    quiet, loud = rng.normal(0, 1, 40_000), rng.normal(3, 2, 40_000)
    layer = LayerKey("m", "r", "layer")
    bank = Bank(Binning(), warmup_rows=256, history_seconds=1e3, layer_limit=1, feature_limit=1)
    bank.register(layer, 1)
    requests = (Request(weight=10.0), Request())
    for part in range(100):
        kept = quiet[part * 400 : part * 400 + 400][rng.permutation(400)[:40]]
        values = np.concatenate((kept, loud[part * 400 : part * 400 + 400])).astype(np.float32)
        index = np.repeat([0, 1], [40, 400]).astype(np.int32)
        bank.update(LayerSample(layer, values[:, None], index, requests), float(part))

    seen = bank.snapshot(layer, Period.CURRENT)

    full = np.concatenate((quiet, loud))
    assert (80_000, 44_000, 200) == (seen.rows, seen.sampled, seen.requests)
    # Four standard errors of a mean of 4,000 quiet rows at half the weight.
    assert abs(seen.mean[0] - full.mean()) <= 4 * 0.5 / np.sqrt(4_000)
    for level in (0.1, 0.5, 0.9, 0.99):
        exact = reference.quantile(full.tolist(), level)
        rank = np.mean(full <= seen.quantile(np.array([level]))[0, 0])
        assert abs(rank - level) <= 4 * 0.5 * np.sqrt(level * (1 - level) / 4_000) + 0.003, exact


def test_weights_do_not_touch_the_counts_of_requests() -> None:
    """A request that stands for a million rows is one request, and exceeds once."""
    layer = LayerKey("m", "r", "layer")
    bank = Bank(Binning(), warmup_rows=1, history_seconds=1e3, layer_limit=1, feature_limit=1)
    bank.register(layer, 1)
    bank.watch(layer, Watched.above(np.array([0]), np.array([0.5], np.float32)))
    values, index = np.array([[0.0], [1.0], [1.0]], np.float32), np.array([0, 1, 1], np.int32)
    heavy = (Request(weight=2.0**20), Request(weight=2.0**20))

    for at in range(3):
        bank.update(LayerSample(layer, values, index, heavy), float(at))

    seen = bank.snapshot(layer, Period.CURRENT)
    window = bank.close_window(9.0)[layer]
    assert (9 << 20, 9, 6) == (seen.rows, seen.sampled, seen.requests)
    assert (6, 9, [3], [6]) == (
        window.requests,
        window.rows,
        window.exceedances.tolist(),
        window.watched_requests.tolist(),
    )
    assert 6 << 20 == seen.counts.max()
