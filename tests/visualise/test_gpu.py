"""Sharing a GPU, with a stand-in for ``torch.cuda``: no GPU is touched."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from sidecar.errors import UnsupportedTarget
from sidecar.visualise.gpu import CONTEXT_BYTES, Share, is_out_of_memory, sharing, shortage

pytestmark = pytest.mark.unit

GIB = 1 << 30
GPU = torch.device("cuda", 0)


@dataclass
class Cuda:
    """The functions of ``torch.cuda`` that are used, with the memory they show."""

    free: int = 8 * GIB
    total: int = 16 * GIB
    allocated: int = GIB
    reserved: int = 2 * GIB
    devices: int = 1
    said: list[object] = field(default_factory=list)

    class Stream:
        """A stream; of the two priorities 0 is the least."""

        def __init__(self, device: int, priority: int) -> None:
            self.device, self.priority = device, priority

        @staticmethod
        def priority_range() -> tuple[int, int]:
            """Return the least and the greatest priority."""
            return 0, -5

    @contextlib.contextmanager
    def stream(self, chosen: "Cuda.Stream") -> Iterator[None]:
        """Put what follows on a stream."""
        self.said.append(("on", chosen.device, chosen.priority))
        yield
        self.said.append("off")

    def is_available(self) -> bool:
        """Whether there is a GPU."""
        return self.devices > 0

    def device_count(self) -> int:
        """How many there are."""
        return self.devices

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None:
        """Cap torch's allocator."""
        self.said.append(("cap", fraction, device))

    def mem_get_info(self, _: torch.device) -> tuple[int, int]:
        """Return free and total memory."""
        return self.free, self.total

    def memory_allocated(self, _: torch.device) -> int:
        """Return what tensors take."""
        return self.allocated

    def memory_reserved(self, _: torch.device) -> int:
        """Return what torch took, for tensors or to come."""
        return self.reserved


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_job_on_a_gpu_is_capped_and_stands_behind(name: str, number: int) -> None:
    """The cap before anything is allocated, the stream of least priority around all of it."""
    cuda = Cuda(devices=2)

    with sharing(name, Share(0.25), cuda):
        cuda.said.append("work")

    assert [("cap", 0.25, number), ("on", number, 0), "work", "off"] == cuda.said


@pytest.mark.parametrize(("name", "devices"), [("cpu", 1), ("auto", 0), ("cuda", 0), ("cuda:3", 1)])
def test_without_that_gpu_nothing_is_set(name: str, devices: int) -> None:
    """On a CPU; and where the GPU is not there, loading the model says so."""
    cuda = Cuda(devices=devices)

    with sharing(name, Share(0.25), cuda):
        pass

    assert [] == cuda.said


def test_this_machine_is_left_alone_too() -> None:
    """With the real ``torch.cuda`` of whoever runs this on a CPU."""
    with sharing("cpu", Share()):
        assert shortage(torch.device("cpu"), 1 << 60, Share(0.1, 1)) is None


def test_a_job_takes_what_torch_holds_before_what_is_free() -> None:
    """On the byte: free, and torch's own, less what is wanted, is the reserve."""
    cuda, share = Cuda(free=3 * GIB), Share(1.0, 2 * GIB)

    assert shortage(GPU, 2 * GIB, share, cuda) is None
    short = shortage(GPU, 2 * GIB + 1, share, cuda)

    assert short is not None
    assert not short.lasting
    assert 3 * GIB + 1 + CONTEXT_BYTES == short.needs_bytes
    assert "take 2048 MiB beside 1024 MiB of the model, and of the 3072 MiB" in short.reason


def test_what_the_cap_never_allows_is_not_waited_for() -> None:
    """It is refused with what to do, however much is free."""
    cuda = Cuda(free=16 * GIB)

    assert shortage(GPU, 3 * GIB, Share(0.25, 0), cuda) is None
    short = shortage(GPU, 3 * GIB + 1, Share(0.25, 0), cuda)

    assert short is not None
    assert short.lasting
    assert "jobs.gpu.memory_fraction 0.25 allows 4096 MiB: ask for a smaller canvas" in short.reason


def test_what_the_reserve_never_leaves_is_not_waited_for() -> None:
    """A reserve of nearly the whole GPU would hold a job back for ever."""
    short = shortage(GPU, 2 * GIB, Share(1.0, 13 * GIB), Cuda(free=16 * GIB))

    assert short is not None
    assert short.lasting
    assert "with jobs.gpu.reserve_bytes that is more than the GPU's 16384 MiB" in short.reason


def test_nobody_asks_where_admission_is_off() -> None:
    """Then the cap alone holds, in torch."""
    assert shortage(GPU, 1 << 60, Share(0.1, None), Cuda(free=0)) is None


def test_a_gpu_without_memory_is_told_from_other_errors() -> None:
    """Also behind an error that explains it; not a CPU without memory."""
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    explained = UnsupportedTarget("the model's forward pass fails")
    explained.__cause__ = full

    assert is_out_of_memory(full)
    assert is_out_of_memory(explained)
    assert not is_out_of_memory(RuntimeError("can't allocate memory"))
    assert not is_out_of_memory(MemoryError())
