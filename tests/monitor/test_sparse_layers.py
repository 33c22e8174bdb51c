"""Sparse layers through the monitor: flags, baselines, alerts and survival, as for any layer."""

from dataclasses import replace

import numpy as np
import pytest

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.detect import State
from sidecar.errors import CorruptState, LayerConflict, UnregisteredLayer
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    SparseSample,
    View,
)
from sidecar.monitor import Flag, Monitor, Window
from sidecar.stats import compile_sparse_kernels

pytestmark = pytest.mark.unit

WIDTH = 4096
WINDOW = 10.0
SAE = LayerKey("m", "a" * 64, "sae", FeatureKind.LATENT, View.RAW)
DENSE = LayerKey("m", "a" * 64, "fc", FeatureKind.LATENT, View.RAW)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=32, baseline_min_requests=300, baseline_min_seconds=20
)
SPIKE = SpikeConfig(quantile=0.99, clear_windows=2, resolved_windows=2, unsampled_windows=3)
FLAGS = {FeatureSelector.parse("m/sae/latent/2"): Flag("deception")}


def monitor() -> Monitor:
    """Return a monitor of one sparse and one dense layer."""
    made = Monitor(STATISTICS, SPIKE, now=0.0)
    made.register(SAE, WIDTH, Capture(), 0.0, sparse=True)
    made.register(DENSE, 3, Capture(), 0.0)
    return made


def rows(rng: np.random.Generator, count: int = 64, loud: float = 0.005) -> SparseSample:
    """Return rows of 20 latents; latent 2 fires in a share of them."""
    listed = [np.sort(rng.choice(np.arange(3, WIDTH), 20, replace=False)) for _ in range(count)]
    listed = [np.append(2, row) if rng.random() < loud else row for row in listed]
    splits = np.cumsum([0, *map(len, listed)])
    values = rng.lognormal(size=splits[-1]).astype(np.float32)
    latents = np.concatenate(listed).astype(np.uint32)
    requests = tuple(Request() for _ in range(count))
    index = np.arange(count, dtype=np.int32)
    return SparseSample(SAE, WIDTH, splits, latents, values, index, requests)


def learn(made: Monitor, rng: np.random.Generator) -> float:
    """Feed ordinary traffic until the baseline is frozen; return the time."""
    now = 0.0
    for _ in range(8):
        made.apply(rows(rng), now + 1)
        now += WINDOW
        made.tick(now)
    return now


def test_a_latent_that_fires_too_often_is_an_alert() -> None:
    """A latent that hardly fires in its baseline fires, resolves, and comes to rest again."""
    rng, made = np.random.default_rng(0), monitor()
    made.set_flags(FLAGS, 0.0)
    now = learn(made, rng)
    states = []

    for step in range(30):
        made.apply(rows(rng, loud=0.4 if step < 4 else 0.005), now + 1)
        now += WINDOW
        states += [e.what for e in made.tick(now) if e.what.startswith("feature_")]

    assert ["feature_firing", "feature_resolved", "feature_normal"] == states
    assert State.NORMAL is made.feature(SAE.feature(2)).state
    assert 0.0 == made.feature(SAE.feature(2)).threshold


def test_the_distribution_of_a_latent_is_whole() -> None:
    """Zeros that nobody sent are in it, and its histogram holds every value."""
    rng, made = np.random.default_rng(1), monitor()
    made.use_sparse(compile_sparse_kernels())
    sent = [rows(rng, loud=0.5) for _ in range(3)]
    for number, sample in enumerate(sent):
        made.apply(sample, float(number + 1))

    found = made.distribution(SAE.feature(2), Window.CURRENT)

    values = np.concatenate([sample.values[sample.latents == 2] for sample in sent])
    assert 192 == found.count == found.counts.sum()
    assert found.zero_ratio == pytest.approx(1 - len(values) / 192)
    assert found.mean == pytest.approx(values.sum() / 192, rel=1e-5)
    assert (0.0, values.max()) == (found.minimum, found.maximum)
    assert len(found.edges) == len(found.counts) + 1
    assert np.all(np.diff(found.edges) > 0)
    assert (1.0, 3.0) == (found.started, found.ended)
    assert found.quantiles[0] == 0.0
    assert found.relative_error == pytest.approx(1 / 3)


def test_values_that_no_latent_may_have_are_counted_with_its_layer() -> None:
    """NaN, infinity and negative values show in the layer's account."""
    made = monitor()
    listed = np.array([1, 2, 3, 4], np.uint32)
    values = np.array([np.nan, -1.0, np.inf, 1.0], np.float32)
    index = np.zeros(1, np.int32)
    made.apply(SparseSample(SAE, WIDTH, np.array([0, 4]), listed, values, index, (Request(),)), 1.0)

    made.tick(WINDOW)

    assert {SAE: 3, DENSE: 0} == {one.key: one.nonfinite for one in made.layers()}
    assert 1 == made.distribution(SAE.feature(2), Window.CURRENT).nonfinite


def test_a_layer_is_sparse_or_dense() -> None:
    """It is not announced as the other, and takes no samples of the other."""
    made = monitor()
    dense = LayerSample(SAE, np.zeros((1, WIDTH), np.float32), np.zeros(1, np.int32), (Request(),))

    with pytest.raises(LayerConflict, match="sparse"):
        made.register(SAE, WIDTH, Capture(), 1.0)
    with pytest.raises(LayerConflict, match="dense"):
        made.register(DENSE, 3, Capture(), 1.0, sparse=True)
    with pytest.raises(UnregisteredLayer):
        made.apply(dense, 1.0)


def test_sparse_layers_survive_a_restart() -> None:
    """Distributions, baselines and states are as they were, and detection goes on."""
    rng, made = np.random.default_rng(2), monitor()
    made.set_flags(FLAGS, 0.0)
    now = learn(made, rng)
    made.apply(rows(rng, loud=0.3), now + 1)
    made.tick(now + WINDOW)

    again = Monitor(STATISTICS, SPIKE, now=now)
    again.restore(made.encode(), now)
    again.set_flags(FLAGS, now)

    assert made.layers() == tuple(replace(one, restored=(0, 0, 0)) for one in again.layers())
    for window in Window:
        before, after = (one.distribution(SAE.feature(2), window) for one in (made, again))
        assert (before.count, before.mean, before.counts.tolist()) == (
            after.count,
            after.mean,
            after.counts.tolist(),
        )
    assert State.PENDING is again.feature(SAE.feature(2)).state
    again.apply(rows(rng, loud=0.3), now + WINDOW + 1)
    assert "feature_firing" in [event.what for event in again.tick(now + 2 * WINDOW)]


def test_a_snapshot_cut_within_the_sparse_statistics_is_corrupt() -> None:
    """Half of the state is no state."""
    made = monitor()
    saved = made.encode()

    with pytest.raises(CorruptState):
        Monitor(STATISTICS, SPIKE, now=0.0).restore(saved[:-10], 0.0)


def test_sparse_layers_freeze_reset_and_have_no_typical_range() -> None:
    """Baselines are handled as anywhere; no picture asks for a million ranges."""
    rng, made = np.random.default_rng(3), monitor()
    made.apply(rows(rng), 1.0)

    assert 1 == len(made.freeze([SAE], 2.0))
    assert made.typical_range(SAE) is None
    assert 1 == len(made.reset([SAE], 3.0))
    assert 0 == made.distribution(SAE.feature(2), Window.BASELINE).count
