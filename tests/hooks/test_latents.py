"""Latent taps: of sampled rows by an encoder, and on the wire as what is not zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sidecar.features import FeatureKind, LayerKey
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.torch import attach
from sidecar.monitor import Window
from sidecar.testing import RunningDaemon, running_daemon, wait_until

LATENT = FeatureKind.LATENT
KEY = LayerKey("tiny", "rev", "sae", LATENT)
unit, service = pytest.mark.unit, pytest.mark.service


class Encoder(nn.Module):
    """The encoder of a sparse autoencoder, of which most latents are zero; says what it was given."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, latents)
        self.linear.bias.data.fill_(-0.3)
        self.given: list[tuple[int, ...]] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the activations of the latents."""
        self.given.append(tuple(rows.shape))
        activations: torch.Tensor = self.linear(rows).relu()
        return activations


def dense(sample: Any) -> np.ndarray[Any, Any]:
    """Return a sparse sample's rows with their zeros."""
    rows = np.zeros((len(sample.request_index), sample.width), sample.values.dtype)
    numbers = np.repeat(np.arange(len(rows)), np.diff(sample.row_splits))
    rows[numbers, sample.latents] = sample.values
    return rows


@unit
@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_arrives_in_whatever_messages(
    decode: Callable[..., list[Any]], data: st.DataObject
) -> None:
    """Also NaN, infinities and rows without any; what is 0 or -0 is not sent, nor is a row lost."""
    bits, dtype = data.draw(st.sampled_from([("<u4", "f32"), ("<u2", "f16"), ("<u2", "bf16")]))
    items, per_item, width = data.draw(st.tuples(*[st.integers(1, 5)] * 2, st.integers(1, 40)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    some = rng.integers(0, 1 << 8 * np.dtype(bits).itemsize, (items * per_item, width), np.uint64)
    rows = np.where(rng.random(some.shape) < data.draw(st.floats(0, 1)), some, 0).astype(bits)
    rows[rng.random(some.shape) < 0.1] = 1 << 8 * rows.itemsize - 1  # -0
    payload = memoryview(rows.tobytes())
    tapped = TappedRows(KEY, dtype, items, per_item, width, payload, named=False)
    limit = data.draw(st.sampled_from([1 << 20, 1600]))

    found = decode(ForwardBatch(lambda: (tapped,), held_bytes=rows.nbytes), limit)

    wanted = np.where(rows << 1, rows, 0)
    assert np.array_equal(wanted, np.concatenate([dense_bits(one) for one in found]))
    assert all(np.all(one.values.view(bits) << 1) for one in found)


def dense_bits(sample: Any) -> np.ndarray[Any, Any]:
    """Return the same as bits, which NaN is equal in."""
    sample_bits = sample.values.view(f"<u{sample.values.itemsize}")
    rows = np.zeros((len(sample.request_index), sample.width), sample_bits.dtype)
    rows[np.repeat(np.arange(len(rows)), np.diff(sample.row_splits)), sample.latents] = sample_bits
    return rows


@unit
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_encoder_sees_sampled_positions_only(memory_sink: Any, mode: Callable[[], Any]) -> None:
    """As many of each item as the plan says, and the latents are the encoder's."""
    torch.manual_seed(0)
    encoder, model = Encoder(8, 64), nn.Identity()
    inputs = torch.arange(2 * 20 * 8, dtype=torch.float32).reshape(2, 20, 8).sin()
    inputs.requires_grad_()
    tap = Tap("", LATENT, layer="sae", encoder=encoder)

    with attach(model, Plan("m", (tap,), max_rows=4, revision="r", seed=1), memory_sink), mode():
        model(inputs)
        output = model(inputs)

    assert output is inputs
    assert [(2, 1, 8), (2, 4, 8)] == encoder.given  # one, until the number of latents is known
    sample = memory_sink.last()["sae"]
    everything = encoder(inputs.detach()).detach().numpy().reshape(40, 64)
    taken = dense(sample)
    assert all(any(np.allclose(row, one, atol=1e-6) for one in everything) for row in taken)
    assert 0 < len(sample.values) < taken.size / 2
    assert [0, 0, 0, 0, 1, 1, 1, 1] == sample.request_index.tolist()
    assert [5.0, 5.0] == [request.weight for request in sample.requests]


@unit
def test_outputs_that_are_latents_already_need_no_encoder(memory_sink: Any) -> None:
    """A served autoencoder's own output, one row an item; a later change of it does not show."""

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder(8, 64)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            latents = self.encoder(rows)
            return latents.zero_()

    model, inputs = Served(), torch.randn(5, 8)
    with (
        torch.no_grad(),
        attach(model, Plan("m", (Tap("encoder", LATENT),), revision="r"), memory_sink),
    ):
        model(inputs)
        wanted = model.encoder(inputs).numpy()

    assert np.array_equal(wanted, dense(memory_sink.samples[0][0]))


@unit
@pytest.mark.parametrize(
    "encoder",
    [
        lambda rows: rows.sum(0),
        lambda rows: (rows, rows),
        lambda rows: rows.flatten(),
        lambda rows: rows.long(),
        lambda rows: rows.to_sparse(),
        lambda rows: rows.to("meta"),
        lambda rows: torch.empty(len(rows), (1 << 20) + 1, dtype=torch.half),
        lambda rows: rows / torch.zeros(3),
    ],
)
def test_an_encoder_that_fails_is_the_hooks_error(
    memory_sink: Any, encoder: Callable[[torch.Tensor], Any]
) -> None:
    """It is counted and told, switched off after a while, and no forward pass notices."""
    plan = Plan("m", (Tap("", LATENT, encoder=encoder),), revision="r", error_limit=3)
    model, rows = nn.Identity(), torch.ones(2, 4)
    with attach(model, plan, memory_sink) as attachment:
        for _ in range(5):
            assert model(rows) is rows

    assert 3 == memory_sink.report().errors
    assert ("output",) == attachment.statistics().disabled
    assert [] == memory_sink.samples


@unit
def test_latents_wait_in_memory_of_their_own(memory_sink: Any) -> None:
    """An encoder that uses its output again, or returns a view, changes nothing that was taken."""
    kept = torch.zeros(1, 1000)
    taken: list[ForwardBatch] = []
    memory_sink.offer = taken.append  # type: ignore[method-assign]

    def encode(rows: torch.Tensor) -> torch.Tensor:
        kept.fill_(rows.sum())
        return kept[:, :4]

    plan = Plan("m", (Tap("", LATENT, encoder=encode),), revision="r")
    model = nn.Identity()
    with torch.no_grad(), attach(model, plan, memory_sink):
        model(torch.ones(1, 1))
        model(2 * torch.ones(1, 1))

    staged = [np.frombuffer(batch.stage()[0].payload, "<f4").tolist() for batch in taken]
    assert [[1.0] * 4, [2.0] * 4] == staged
    assert all(batch.held_bytes < 2000 for batch in taken)


@unit
def test_long_sequences_of_many_latents_fit_the_queue(new_memory_sink: type[Any]) -> None:
    """Fewer positions are taken of each item, and weigh as much more; other layers are not lost."""
    sink, encoder = new_memory_sink(limit_bytes=1 << 20), Encoder(8, 4096)
    tap = Tap("", LATENT, layer="sae", encoder=encoder)
    other = Tap("0", FeatureKind.NEURON)
    model = nn.Sequential(nn.Identity())
    with attach(model, Plan("m", (tap, other), revision="r", max_rows=64), sink):
        for _ in range(3):
            model(torch.randn(4, 100, 8))

    assert {} == sink.report().dropped
    assert [(4, 1, 8), (4, 2, 8), (4, 2, 8)] == encoder.given
    assert [50.0] * 4 == [request.weight for request in sink.last()["sae"].requests]
    assert 4 * 64 == len(sink.last()["0"].request_index)


@unit
def test_taps_inside_an_encoder_see_the_model_only(memory_sink: Any) -> None:
    """A served autoencoder may encode another layer too; what the model does not compute is no sample."""

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.sae = nn.Linear(8, 8), Encoder(8, 16)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            latents: torch.Tensor = self.sae(self.first(rows))
            return latents

    model = Served()
    taps = (Tap("first", LATENT, encoder=model.sae), Tap("sae", FeatureKind.NEURON))
    with attach(model, Plan("m", taps, revision="r"), memory_sink):
        model(torch.randn(3, 8))

    assert ["first", "sae"] == [sample.layer.layer for sample in memory_sink.samples[0]]
    assert 3 == len(memory_sink.last()["sae"].request_index)


@service
def test_latents_reach_the_statistics(tmp_path: Path) -> None:
    """Every row counts for every latent, listed or not, through the real lane."""
    with running_daemon(tmp_path, {"models": [{"name": "tiny"}]}) as running:
        serve_latents(running)


def serve_latents(running: RunningDaemon) -> None:
    """Serve some passes, and compare what is known with what there was."""
    torch.manual_seed(0)
    encoder, model = Encoder(16, 2000), nn.Identity()
    tap = Tap("", LATENT, layer="sae", encoder=encoder)
    plan = Plan("tiny", (tap,), revision="r", overhead_budget=None)
    batches = torch.randn(30, 4, 16)
    sink = connect(running.lane)
    with torch.no_grad(), attach(model, plan, sink) as attachment:
        for batch in batches:
            model(batch)
            wait_until(lambda: sink.pending == 0, what="the sender")  # type: ignore[attr-defined]
        acts = encoder(batches.reshape(120, 16)).numpy()
    wait_until(lambda: running.daemon.ledger.counts().processed == 30, what="the last batch")

    assert sink.close(10.0)
    busiest = np.argsort(-np.count_nonzero(acts, axis=0))[:20].tolist()
    for latent in [*busiest, 0]:
        feature = attachment.layers[0].feature(latent)
        found = running.daemon.monitor.distribution(feature, Window.CURRENT)
        assert found.count == 120
        assert found.mean == pytest.approx(acts[:, latent].mean(), abs=1e-6)
        assert found.maximum == pytest.approx(acts[:, latent].max())
    assert {} == dict(running.daemon.ledger.counts().refused)
