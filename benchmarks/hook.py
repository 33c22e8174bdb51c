"""What the hooks add to a forward pass of EfficientNet-Lite0 with 16 tapped layers."""

import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from benchmarks.row import Row, least_cpu_seconds
from demo.lite0 import BLOCKS, build
from sidecar.hooks import Plan, Sink, Tap, connect
from sidecar.hooks.torch import attach
from sidecar.testing import running_daemon, wait_until

PASSES = 300
PAIRS = 400
LOOPS = 2000
UNIT = "% of a forward pass"
EMPTY = "a hook that does nothing, on each layer"
PLAIN = "a user's hook: float().cpu(), mean, var, max"
NEVER = 1e-12  # a rate at which every pass is decided on and none is sampled


class _Replay(torch.nn.Module):
    """Stands for a block whose work is already done."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """Return the same output each time."""
        return self._output


def run() -> Sequence[Row]:
    """Measure the share of a forward pass that hooks take, dormant and at three rates.

    The same pass takes times that differ by several per cent on a shared machine, more than hooks
    cost, so each part is measured where it can be told from the noise:

    - *dormant* (rate 0) and *passed over* (a rate, but not this pass): the CPU seconds that hooks add
      to a tight loop over 16 modules that do nothing, torch's own price of having hooks included. Its
      caches are warm.
    - *sampled*: what the hooks account for by their own clock in real passes against a real daemon,
      from the decision to the hand-over to the sender, reductions included; the median share of
      ``PASSES`` passes. Caches are as cold as the model leaves them.

    A line says what sampling every pass costs at the least: hooks that call ``amax`` and keep what it
    returns, measured in the same two ways. The same 16 calls take about a third of that in a loop, which
    has a row of its own: the least of the hooks' account of turns that replay the blocks' outputs. Between
    two layers of a model code and data are out of the caches: there a call that makes a tensor and
    enters an empty C function, with two pointers, takes seven eighths of what ``amax`` does. Copies of small
    maps, to be reduced by the sender, are hardly cheaper, and hold 49 to 196 times the memory.

    A rate's cost is that of a pass passed over, plus the rate times the sampled share. The peers are
    measured in the same run in the same two ways.

    Not included: the sender thread, which encodes and sends on another core and takes the
    interpreter's lock meanwhile; the few instructions of each hook outside its two looks at the
    clock; and what hooks push out of the caches, which the model pays for. The paired row has the
    last two: the median difference in CPU seconds of this thread between neighbouring passes with
    and without hooks. Its standard error is printed with it, for it is large; so is what hooks that
    keep ``amax`` take by that measure.
    """
    torch.set_num_threads(1)
    model, image = build().eval(), torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        forward = least_cpu_seconds(lambda: model(image), repeats=30)
        dormant, passed_over = (
            100.0 * _loop_seconds(lambda idle, rate=rate: _attached(idle, rate)) / forward
            for rate in (0.0, NEVER)
        )
        empty = 100.0 * _loop_seconds(lambda idle: _hooked(idle, _nothing)) / forward
        with _daemon() as sink:
            sampled = 100.0 * _sampled_share(model, image, sink)
            loop = 100.0 * _least_seconds(_idle(_outputs(model, image)), image, sink) / forward
            plain = 100.0 * _hook_share(model, image, _four_statistics)
            floor = empty + 100.0 * _hook_share(model, image, _maximum)
            paired, error, least, least_error = _paired_share(image, sink)
    _compare(passed_over + sampled, paired, error)
    print(
        f"a hook that keeps amax((2, 3)) and no more: {floor:.2f} % by its own clock, "
        f"{least:.2f} % ± {least_error:.2f} % by paired passes"
    )
    rows = [Row("hook.dormant", dormant, UNIT, EMPTY, empty, empty / dormant)]
    for name, rate in (("hook.1_100", 0.01), ("hook.1_10", 0.1), ("hook.1_1", 1.0)):
        ours, peer = passed_over + rate * sampled, empty + rate * plain
        rows.append(Row(name, ours, UNIT, PLAIN, peer, peer / ours))
    peer = empty + plain
    for name, ours in (("hook.1_1_loop", passed_over + loop), ("hook.1_1_paired", paired)):
        rows.append(Row(name, ours, UNIT, PLAIN, peer, peer / ours))
    return rows


def _compare(counted: float, paired: float, error: float) -> None:
    verdict = "agrees" if abs(paired - counted) <= 3.0 * error else "DISAGREES"
    print(
        f"\nhook.1_1 by paired passes: {paired:.2f} % ± {error:.2f} %, which {verdict} with "
        f"{counted:.2f} % by the hooks' own account"
    )


def _nothing(*_: object) -> None:
    """Be a hook."""


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [model.get_submodule(f"_blocks.{number}") for number in range(BLOCKS)]


def _idle(outputs: Sequence[torch.Tensor]) -> torch.nn.Sequential:
    return torch.nn.Sequential(*map(_Replay, outputs))


def _outputs(model: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return what the tapped blocks put out."""
    kept: list[torch.Tensor] = []
    with _hooked(_blocks(model), lambda _module, _args, output: kept.append(output.clone())):
        model(image)
    return kept


@contextmanager
def _hooked(layers: Any, hook: Callable[..., None]) -> Iterator[None]:
    handles: list[RemovableHandle] = [layer.register_forward_hook(hook) for layer in layers]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _attached(idle: torch.nn.Module, rate: float) -> Iterator[None]:
    sink = connect("127.0.0.1:9")  # nobody listens: hooks that sample nothing never ask
    taps = tuple(Tap(str(number)) for number in range(BLOCKS))
    with attach(idle, Plan("lite0", taps, sampling_rate=rate, revision="bench"), sink):
        yield
    sink.close(0.0)


def _loop_seconds(hooks: Callable[[torch.nn.Sequential], Any]) -> float:
    """Return the CPU seconds that hooks which copy nothing add to one pass."""
    idle = _idle([torch.zeros(1, 64, 14, 14)] * BLOCKS)
    image = torch.zeros(1)

    def loop() -> None:
        for _ in range(LOOPS):
            idle(image)

    bare = least_cpu_seconds(loop)
    with hooks(idle):
        hooked = least_cpu_seconds(loop)
    return (hooked - bare) / LOOPS


@contextmanager
def _daemon() -> Iterator[Sink]:
    """Run a daemon in a process of its own, as in production: here it would take our interpreter."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    sink = connect(ours.recv())
    yield sink
    sink.close(1.0)
    ours.send("stop")
    process.join()


def _serve(parent: Connection) -> None:
    settings = {"models": [{"name": "lite0"}]}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_daemon(Path(folder), settings) as running,
    ):
        parent.send(running.grpc)
        parent.recv()


def _plan() -> Plan:
    taps = tuple(Tap(f"_blocks.{number}") for number in range(BLOCKS))
    # Without a budget: with one the hooks would lower the rate that is to be measured.
    return Plan("lite0", taps, revision="bench", overhead_budget=None)


def _sampled_share(model: torch.nn.Module, image: torch.Tensor, sink: Sink) -> float:
    """Return the share of forward time that hooks account for when every pass is sampled."""
    shares = []
    with attach(model, _plan(), sink):
        wait_until(lambda: model(image) is not None and sink.report().batches_sent, 60)
        for _ in range(PASSES):
            before = sink.report()
            model(image)
            after = sink.report()
            hooks = after.hook_seconds - before.hook_seconds
            shares.append(hooks / (after.forward_seconds - before.forward_seconds))
    return statistics.median(shares)


def _least_seconds(idle: torch.nn.Module, image: torch.Tensor, sink: Sink) -> float:
    """Return the least time that hooks account for in a loop of which every turn is sampled."""
    seconds = []
    taps = tuple(Tap(str(number)) for number in range(BLOCKS))
    plan = Plan("lite0", taps, revision="bench", overhead_budget=None)
    with attach(idle, plan, sink):
        for _ in range(PASSES):
            before = sink.report().hook_seconds
            idle(image)
            seconds.append(sink.report().hook_seconds - before)
    return min(seconds)


def _four_statistics(output: torch.Tensor) -> object:
    """Do what hooks do as people write them."""
    values = output.detach().float().cpu()
    return values.mean((0, 2, 3)), values.var((0, 2, 3)), values.amax((0, 2, 3))


def _maximum(output: torch.Tensor) -> object:
    """Do the one thing that cannot be left out."""
    return output.amax((2, 3))


def _hook_share(
    model: torch.nn.Module, image: torch.Tensor, reduce: Callable[[torch.Tensor], object]
) -> float:
    """Return the share of forward time that hooks take which keep what ``reduce`` returns."""
    spent = 0.0
    kept: list[object] = []

    def hook(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
        nonlocal spent
        started = time.perf_counter()
        kept.append(reduce(output))
        spent += time.perf_counter() - started

    shares = []
    with _hooked(_blocks(model), hook):
        for _ in range(PASSES):
            kept.clear()
            spent = 0.0
            started = time.perf_counter()
            model(image)
            shares.append(spent / (time.perf_counter() - started))
    return statistics.median(shares)


def _paired_share(image: torch.Tensor, sink: Sink) -> tuple[float, float, float, float]:
    """Return how much longer a sampled pass takes in per cent, and the standard error of that.

    Three networks over the same weights, one with our hooks and one with hooks that keep ``amax``, take
    turns in random order; the median of the differences in CPU seconds to the one without hooks, with
    the error of a median of a normal sample. The second pair is that of ``amax``.
    """
    bare, hooked, least = (build().eval() for _ in range(3))
    for model in (hooked, least):
        model.load_state_dict(bare.state_dict(), assign=True)
    order = random.Random(0)  # noqa: S311 - a shuffle
    seconds: dict[torch.nn.Module, list[float]] = {bare: [], hooked: [], least: []}
    kept: list[object] = []
    with (
        attach(hooked, _plan(), sink),
        _hooked(_blocks(least), lambda _module, _args, output: kept.append(_maximum(output))),
    ):
        for _ in range(PAIRS):
            for model in order.sample((bare, hooked, least), 3):
                kept.clear()
                started = time.thread_time()
                model(image)
                seconds[model].append(time.thread_time() - started)
    return *_longer(seconds[hooked], seconds[bare]), *_longer(seconds[least], seconds[bare])


def _longer(hooked: list[float], bare: list[float]) -> tuple[float, float]:
    """Return the median of the differences in per cent, and its error."""
    differences = [with_hooks - without for with_hooks, without in zip(hooked, bare, strict=True)]
    typical, middle = statistics.median(bare), statistics.median(differences)
    spread = statistics.median(abs(d - middle) for d in differences) * 1.4826  # to a normal sigma
    return 100.0 * middle / typical, 100.0 * 1.2533 * spread / PAIRS**0.5 / typical
