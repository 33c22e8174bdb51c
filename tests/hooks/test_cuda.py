"""The way of rows off a CUDA device: the order of operations on a fake one, and a real one if any."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sidecar.features import FeatureKind
from sidecar.hooks import Plan, Tap
from sidecar.hooks.cuda import SideStreams
from sidecar.hooks.staging import Pool
from sidecar.hooks.torch import attach

CPU = torch.device("cpu")


class FakeEvent:
    """Notes who records and who waits."""

    def __init__(self, cuda: "FakeCuda", name: str) -> None:
        self.cuda = cuda
        self.name = name

    def synchronize(self) -> None:
        """Note that the host waits."""
        self.cuda.log.append(f"host waits for {self.name}")


class FakeStream:
    """Notes what is enqueued; knows no call that would wait, save on the side stream."""

    def __init__(self, cuda: "FakeCuda", name: str) -> None:
        self.cuda = cuda
        self.name = name

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        """Note an event; a new one where none is given."""
        event = event or FakeEvent(self.cuda, f"mark of {self.name}")
        self.cuda.log.append(f"{self.name} records {event.name}")
        return event

    def wait_event(self, event: FakeEvent) -> None:
        """Note that the stream waits, on the device."""
        self.cuda.log.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        """Note that the host waits; the server's stream must never be waited for."""
        assert self.name == "side"
        self.cuda.log.append("host waits for all of side")

    def __enter__(self) -> None:
        self.cuda.log.append(f"enter {self.name}")

    def __exit__(self, *_: object) -> None:
        self.cuda.log.append(f"leave {self.name}")


class FakeCuda:
    """Stands for ``torch.cuda``: any other attribute, ``synchronize`` above all, is an error."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def current_stream(self, _device: torch.device) -> FakeStream:
        """Return the stream the server works in."""
        return FakeStream(self, "server")

    def Stream(self, _device: torch.device) -> FakeStream:  # noqa: N802 - torch's name
        """Return a new stream."""
        self.log.append("create side")
        return FakeStream(self, "side")

    def Event(self, *, blocking: bool) -> FakeEvent:  # noqa: N802 - torch's name
        """Return a new event."""
        assert blocking, "the sender must sleep, not spin"
        return FakeEvent(self, "done")

    def stream(self, stream: FakeStream) -> FakeStream:
        """Return what makes a stream the current one."""
        return stream


class LoggedPool(Pool):
    """Notes when host memory is allocated, which for pinned memory stops the whole device."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(1 << 20, SideStreams(cuda))
        self.cuda = cuda

    def _allocate(self, room: int, *, pinned: bool) -> torch.Tensor:
        self.cuda.log.append("allocate pinned" if pinned else "allocate")
        return super()._allocate(room, pinned=False)


class Spy(TorchDispatchMode):
    """Notes operations on tensors."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operations that move values."""
        if func is torch.ops.aten.copy_.default:
            asynchronous = bool((*args, False)[2])
            self.cuda.log.append(f"copy to host, {'asynchronous' if asynchronous else 'waiting'}")
        elif func is torch.ops.aten.cat.default:
            self.cuda.log.append("gather")
        return func(*args, **(kwargs or {}))


@pytest.mark.unit
def test_the_forward_pass_leaves_an_event_and_nothing_else() -> None:
    """In the server's thread: no allocation, no wait, no stream but its own."""
    cuda = FakeCuda()

    marks = SideStreams(cuda).mark({CPU})

    assert ["server records mark of server"] == cuda.log
    assert [CPU] == list(marks)


@pytest.mark.unit
def test_the_sender_copies_on_its_own_stream_in_order() -> None:
    """The side stream waits for the mark on the device; the host waits for the side stream only."""
    cuda = FakeCuda()
    pool = LoggedPool(cuda)
    parts = [torch.arange(6.0).reshape(2, 3), torch.arange(4.0)]
    marks = SideStreams(cuda).mark({CPU})

    with Spy(cuda):
        buffer = pool.stage(parts, "f32", marks)

    assert [
        "server records mark of server",
        "allocate pinned",
        "create side",
        "enter side",
        "side waits for mark of server",
        "gather",
        "copy to host, asynchronous",
        "side records done",
        "leave side",
        "host waits for done",
    ] == cuda.log
    expected = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert expected == buffer[:40].view(torch.float32).tolist()


@pytest.mark.unit
def test_a_copy_that_fails_is_waited_for_before_its_rows_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was enqueued may still read the rows: their memory must not go back to the server yet."""
    cuda = FakeCuda()
    pool = LoggedPool(cuda)
    marks = SideStreams(cuda).mark({CPU})
    monkeypatch.setattr(FakeStream, "record_event", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        pool.stage([torch.ones(3)], "f16", marks)

    assert "host waits for all of side" == cuda.log[-1]


@pytest.mark.unit
def test_rows_on_the_host_take_no_stream() -> None:
    """Without a mark rows are copied plainly, into ordinary memory."""
    cuda = FakeCuda()

    buffer = LoggedPool(cuda).stage([torch.ones(3)], "bf16", {})

    assert ["allocate"] == cuda.log
    assert [1, 1, 1] == buffer[:6].view(torch.bfloat16).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_rows_come_off_a_real_device(memory_sink: Any, mode: Any) -> None:
    """On a real device rows are bit-equal, also when the model overwrites them right away."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(inplace=True), nn.Linear(256, 8)).cuda()
    inputs = torch.randn(32, 64, device="cuda")
    with attach(model, Plan("m", (Tap("0", FeatureKind.NEURON),)), memory_sink), mode():
        for _ in range(20):
            model(inputs)

    expected = model[0](inputs).detach().cpu().numpy()
    assert memory_sink.report().errors == 0
    assert len(memory_sink.samples) == 20
    assert all(np.array_equal(expected, batch[0].values) for batch in memory_sink.samples)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_forward_pass_waits_for_nothing_on_a_real_device(memory_sink: Any) -> None:
    """Torch's own check finds no synchronising call in a sampled pass."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 8)).cuda()
    inputs = torch.randn(32, 64, device="cuda")
    batches: list[Any] = []
    memory_sink.offer = lambda batch: batches.append(batch) or True
    with attach(model, Plan("m", (Tap("*", FeatureKind.NEURON),)), memory_sink):
        model(inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert memory_sink.report().errors == 0
    assert 2 == len(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pass_under_graph_capture_is_not_sampled(memory_sink: Any) -> None:
    """A CUDA graph must not hold the hooks' copies."""
    model = nn.Linear(64, 8).cuda()
    inputs = torch.randn(32, 64, device="cuda")
    with (
        attach(model, Plan("m", (Tap("", FeatureKind.NEURON),)), memory_sink),
        torch.inference_mode(),
    ):
        model(inputs)
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            model(inputs)

    assert 1 == len(memory_sink.samples)
    assert memory_sink.report().errors == 0
