"""A GPU that is shared with a model server: how much of it a job takes, and that the server goes first.

None of this has ever run on a GPU: it is tested with stand-ins for the functions of ``torch.cuda``.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_CUDA: Any = torch.cuda

CONTEXT_BYTES = 512 << 20
"""What a process takes on a GPU before its first tensor: 300 to 600 MB are told of. Not measured here."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a GPU a job may take.

    Attributes:
        memory_fraction: Most of its memory that torch takes in this process.
        reserve_bytes: Memory that must stay free beside the job; None: nobody asks.
    """

    memory_fraction: float = 1.0
    reserve_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """There is no room for a job.

    Attributes:
        reason: In words, and what to do where it can be helped.
        needs_bytes: What the job takes in all.
        lasting: Whether waiting would not help.
    """

    reason: str
    needs_bytes: int
    lasting: bool


@contextlib.contextmanager
def sharing(name: str, share: Share, cuda: Any = _CUDA) -> Iterator[None]:
    """Cap what this process takes of the GPU, and put its work behind others', within the block.

    The stream's priority orders kernels of one process, and under MPS those of several; without MPS
    processes take turns by time, whatever their priority. On a CPU nothing happens.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        share: The cap.
        cuda: ``torch.cuda``, or what stands in for it.
    """
    number = _number(name, cuda)
    if number is None:
        yield
        return
    cuda.set_per_process_memory_fraction(share.memory_fraction, number)
    least, _ = cuda.Stream.priority_range()
    with cuda.stream(cuda.Stream(number, priority=least)):
        yield


def _number(name: str, cuda: Any) -> int | None:
    """Return the GPU that a name stands for; None for a CPU, or where loading will say what is wrong."""
    if name == "cpu" or not cuda.is_available():
        return None
    number = int(name.partition(":")[2] or 0)
    return number if number < cuda.device_count() else None


def shortage(
    device: torch.device, wanted_bytes: int, share: Share, cuda: Any = _CUDA
) -> Shortage | None:
    """Say whether there is room for what a job is about to take; None: there is, or it is no GPU.

    Args:
        device: Where the model is.
        wanted_bytes: From the plan: what the pictures take beyond the models, which are loaded.
        share: The bounds.
        cuda: ``torch.cuda``, or what stands in for it.
    """
    if device.type != "cuda" or share.reserve_bytes is None:
        return None
    free, total = cuda.mem_get_info(device)
    held = cuda.memory_allocated(device)
    pooled = (
        cuda.memory_reserved(device) - held
    )  # torch's own, which it takes before any of what is free
    allowed = int(share.memory_fraction * total)
    words = f"the pictures take {wanted_bytes // _MIB} MiB beside {held // _MIB} MiB of the model"
    needs = held + wanted_bytes + CONTEXT_BYTES
    if held + wanted_bytes > allowed:
        return Shortage(
            f"{words}, and jobs.gpu.memory_fraction {share.memory_fraction:g} allows {allowed // _MIB} MiB: "
            "ask for a smaller canvas or fewer features, or raise it",
            needs,
            lasting=True,
        )
    if needs + share.reserve_bytes > total:
        return Shortage(
            f"{words}, and {CONTEXT_BYTES // _MIB} MiB of CUDA: with jobs.gpu.reserve_bytes that is more than "
            f"the GPU's {total // _MIB} MiB: ask for a smaller canvas or fewer features, or lower it",
            needs,
            lasting=True,
        )
    if free + pooled - wanted_bytes >= share.reserve_bytes:
        return None
    return Shortage(
        f"{words}, and of the {free // _MIB} MiB that are free jobs.gpu.reserve_bytes keeps "
        f"{share.reserve_bytes // _MIB} MiB",
        needs,
        lasting=False,
    )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the GPU had no memory left."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
