"""Sampling with weights against full capture, through real hooks and the wire's own codec."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.features import FeatureKind, LayerSample, Request
from sidecar.hooks import Plan, Tap, current_requests
from sidecar.hooks.torch import attach

pytestmark = pytest.mark.unit

LEVELS = (0.1, 0.5, 0.9, 0.99)
ERRORS = 4.0  # standard errors: one chance in 16,000 a comparison, and the seeds are fixed
TAP = (Tap("", FeatureKind.NEURON),)
FREE: Any = {
    "overhead_budget": None
}  # else the machine's load would move the rate, and the figures


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread, and put it back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Estimate:
    """Sampled rows of one feature with their weights, in clusters that were sampled together."""

    values: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray

    def share(self, hit: np.ndarray) -> tuple[float, float]:
        """Return a weighted mean and its standard error over clusters, by linearisation."""
        total = self.weights.sum()
        mean = float((self.weights * hit).sum() / total)
        sums = np.bincount(self.clusters, self.weights * (hit - mean))
        return mean, float(np.sqrt((sums**2).sum()) / total)

    def unweighted(self) -> "Estimate":
        """Return the same rows as if each stood for itself only."""
        return Estimate(self.values, np.ones_like(self.weights), self.clusters)


def estimate(samples: list[list[LayerSample]], layer: str = "output") -> Estimate:
    """Gather the rows of a layer; rows with the same id, or of the same pass, are a cluster."""
    values, weights, owners = [], [], []
    for number, forward in enumerate(samples):
        for sample in forward:
            if sample.layer.layer == layer:
                requests = [sample.requests[n] for n in sample.request_index]
                values += sample.values[:, 0].tolist()
                weights += [request.weight for request in requests]
                owners += [request.id or f"pass {number}" for request in requests]
    clusters = np.unique(owners, return_inverse=True)[1]
    return Estimate(np.array(values), np.array(weights), clusters)


def worst(found: Estimate, full: np.ndarray) -> float:
    """Return the largest distance from full capture in standard errors: mean and quantiles."""
    distances = []
    mean, error = found.share(found.values)
    distances.append(abs(mean - full.mean()) / error)
    for level in LEVELS:
        below, error = found.share((found.values <= np.quantile(full, level)).astype(float))
        distances.append(abs(below - level) / error)
    return max(distances)


class Longer(nn.Module):
    """Another layer of the same pass that sees five times the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Identity()
        self.narrow = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input after both layers have seen it."""
        self.narrow(x)
        return self.wide(x.repeat_interleave(5, 1))


def sequences(lengths: list[int], seed: int) -> list[torch.Tensor]:
    """Return sequences (1, T, 1) whose values rise with their length, and along them."""
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(
            (rng.normal(np.log(n), 1.0, n) + np.linspace(0.0, 1.0, n)).astype(np.float32)
        ).reshape(1, n, 1)
        for n in lengths
    ]


def test_sequences_of_very_different_lengths_count_by_their_length(memory_sink: Any) -> None:
    """Sixteen positions of 4 or of 700 give the distribution of all positions; unweighted do not."""
    inputs = sequences([4, 30, 700] * 150, 1)
    model = nn.Identity()
    with attach(model, Plan("m", TAP, max_rows=16, seed=1, **FREE), memory_sink):
        for sequence in inputs:
            model(sequence)
    full = np.concatenate([x.numpy().ravel() for x in inputs])
    found = estimate(memory_sink.samples)

    assert worst(found, full) < ERRORS
    assert worst(found.unweighted(), full) > 5 * ERRORS
    assert found.weights.sum() == pytest.approx(full.size, rel=1e-5)


def test_each_layer_has_its_own_weights(memory_sink: Any) -> None:
    """Layers of one pass with different numbers of positions are each right."""
    model = Longer()
    inputs = sequences([10, 60] * 150, 2)
    taps = (Tap("wide", FeatureKind.NEURON), Tap("narrow", FeatureKind.NEURON))
    with attach(model, Plan("m", taps, max_rows=20, seed=1, **FREE), memory_sink):
        for sequence in inputs:
            model(sequence)
    full = np.concatenate([x.numpy().ravel() for x in inputs])

    for layer, most in (("wide", 15.0), ("narrow", 3.0)):
        found = estimate(memory_sink.samples, layer)
        assert worst(found, full) < ERRORS
        assert found.weights.max() == most


@pytest.mark.parametrize("batch", [1, 16])
def test_a_rate_that_changes_in_mid_stream_leaves_estimates_right(
    memory_sink: Any, batch: int
) -> None:
    """Traffic that shifts while the daemon lowers the rate is not under-counted."""
    rng, model = np.random.default_rng(3), nn.Identity()
    everything = []
    with attach(model, Plan("m", TAP, sampling_rate=0.8, seed=1, **FREE), memory_sink):
        for number, rate in enumerate(np.repeat([0.8, 0.1, 0.45], 1600 // batch)):
            memory_sink.sampling_rate = rate
            values = rng.normal(3.0 * np.sin(number * batch / 600), 1.0, (batch, 1))
            everything.append(values.astype(np.float32))
            model(torch.from_numpy(everything[-1]))
    full = np.concatenate(everything).ravel()
    found = estimate(memory_sink.samples)

    assert worst(found, full) < ERRORS
    assert worst(found.unweighted(), full) > 2 * ERRORS
    assert {1.0, 8.0} < set(found.weights.tolist())


def test_requests_that_are_sampled_whole_estimate_without_bias(memory_sink: Any) -> None:
    """Decode steps of one request share its fate; means over requests stay right while rates move."""
    rng, model = np.random.default_rng(5), nn.Identity()
    everything = []
    plan = Plan("m", TAP, sampling_rate=0.9, seed=9, **FREE)
    with attach(model, plan, memory_sink):
        for wave in range(60):
            memory_sink.sampling_rate = 0.9 if wave < 30 else 0.2
            levels = rng.normal(wave / 20, 1.0, 12)
            for _ in range(8):
                values = (levels + rng.normal(0.0, 0.1, 12)).astype(np.float32).reshape(12, 1)
                everything.append(values)
                with current_requests([Request(f"{wave}-{n}") for n in range(12)]):
                    model(torch.from_numpy(values))
    full = np.concatenate(everything).ravel()
    found = estimate(memory_sink.samples)
    # What one would believe who takes rows for independent.
    naive = Estimate(found.values, found.weights, np.arange(found.values.size))

    assert worst(found, full) < ERRORS
    assert worst(found.unweighted(), full) > ERRORS
    assert naive.share(naive.values)[1] < 0.5 * found.share(found.values)[1]
    assert set(np.bincount(found.clusters)) == {8}


class Tick(nn.Module):
    """A model whose forward takes as long as it is told, by a clock that obeys."""

    def __init__(self, clock: "Clock") -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take 10 ms."""
        self.clock.now += 0.01
        return x


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_estimates_stay_right_while_the_governor_moves_the_rate(
    new_memory_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling that costs 5 % of a pass is cut to a tenth, and rises when it gets cheaper."""
    clock, rng = Clock(), np.random.default_rng(7)
    monkeypatch.setattr("sidecar.hooks.torch._clock", clock)
    costs = itertools.chain(itertools.repeat(0.0005, 600), itertools.repeat(0.00001))

    class Costly(new_memory_sink):  # type: ignore[misc]
        def offer(self, batch: Any) -> bool:
            clock.now += next(costs)
            return bool(super().offer(batch))

    sink, model, everything, rates = Costly(), Tick(clock), [], []
    with attach(model, Plan("m", TAP, overhead_budget=0.005, seed=3), sink):
        for number in range(12_000):
            values = rng.normal(3.0 * np.sin(number / 2500), 1.0, (1, 1)).astype(np.float32)
            everything.append(values)
            model(torch.from_numpy(values))
            if number % 100 == 0:  # the sender thread asks for a report with every batch
                rates.append(sink.report().sampling_rate)
    report, full = sink.report(), np.concatenate(everything).ravel()
    found = estimate(sink.samples)

    assert min(rates) < 0.15
    assert max(rates[40:]) > 0.9
    assert 0 < report.governed_forwards < 12_000
    assert report.overhead_ratio < 0.006
    assert worst(found, full) < ERRORS
    assert worst(found.unweighted(), full) > 2 * ERRORS


@pytest.mark.parametrize("make", [dict, list])
def test_a_server_without_tensor_arguments_is_sampled_by_passes(
    memory_sink: Any, make: Callable[[], Any]
) -> None:
    """Where nobody can tell the items, a pass is sampled whole or not at all, at the rate."""

    class Opaque(nn.Module):
        def forward(self, _: Any) -> torch.Tensor:
            return torch.ones(6, 2)

    model = Opaque()
    with attach(model, Plan("m", TAP, sampling_rate=0.5, seed=1, **FREE), memory_sink):
        for _ in range(200):
            model(make())

    assert 60 < len(memory_sink.samples) < 140
    assert {6} == {len(samples[0].requests) for samples in memory_sink.samples}
