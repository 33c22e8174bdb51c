"""What the hooks add to a forward pass of EfficientNet-Lite0 with 16 tapped layers."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.row import Row, least_cpu_seconds
from demo.lite0 import BLOCKS, build
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.torch import attach
from sidecar.testing import running_daemon, wait_until

PASSES = 300
LOOPS = 2000
UNIT = "% of a forward pass"
PEER = "the forward pass itself"


class _Replay(torch.nn.Module):
    """Stands for a block whose work is already done."""

    def __init__(self) -> None:
        super().__init__()
        self._output = torch.zeros(1, 64, 14, 14)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """Return the same output each time."""
        return self._output


def run() -> Sequence[Row]:
    """Measure the share of a forward pass that hooks take, dormant, at 1/10 and at 1/1.

    The same pass takes times that differ by several per cent on a shared machine, more than hooks
    cost, so no difference of whole passes can show it. What dormant hooks cost is the difference of
    two tight loops over modules that do nothing. What sampling adds is what the hooks account for
    themselves, against a real daemon in this process, as a share of the passes they were in. Both
    are lower bounds: what hooks push out of the caches is paid by the model, and not seen here.
    """
    torch.set_num_threads(1)
    model, image = build().eval(), torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        forward = least_cpu_seconds(lambda: model(image), repeats=30)
        dormant = 100.0 * _dormant_seconds() / forward
        sampled = dormant + 100.0 * _sampled_share(model, image)
    shares = {
        "hook.dormant": dormant,
        "hook.1_10": dormant + (sampled - dormant) / 10,
        "hook.1_1": sampled,
    }
    return [Row(n, share, UNIT, PEER, 100.0, 100.0 / share) for n, share in shares.items()]


def _dormant_seconds() -> float:
    """Return the CPU seconds that hooks which sample nothing add to one pass."""
    idle = torch.nn.Sequential(*(_Replay() for _ in range(BLOCKS)))
    image = torch.zeros(1)
    sink = connect("127.0.0.1:9")  # nobody listens: dormant hooks never ask
    taps = tuple(Tap(str(number)) for number in range(BLOCKS))
    plan = Plan("lite0", taps, sampling_rate=0.0, revision="bench")

    def loop() -> None:
        for _ in range(LOOPS):
            idle(image)

    bare = least_cpu_seconds(loop)
    with attach(idle, plan, sink):
        hooked = least_cpu_seconds(loop)
    sink.close(0.0)
    return (hooked - bare) / LOOPS


def _sampled_share(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Return the share of forward time that hooks account for when every pass is sampled."""
    taps = tuple(Tap(f"_blocks.{number}") for number in range(BLOCKS))
    shares = []
    settings = {"models": [{"name": "lite0"}]}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_daemon(Path(folder), settings) as running,
    ):
        sink = connect(running.grpc)
        with attach(model, Plan("lite0", taps, revision="bench"), sink):
            wait_until(lambda: model(image) is not None and sink.report().batches_sent, 60)
            for _ in range(PASSES):
                before = sink.report()
                model(image)
                after = sink.report()
                hooks = after.hook_seconds - before.hook_seconds
                shares.append(hooks / (after.forward_seconds - before.forward_seconds))
        sink.close(1.0)
    return statistics.median(shares)
