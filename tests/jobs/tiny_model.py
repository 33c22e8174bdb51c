"""Model factories for the worker: a tiny network, and some that misbehave."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

OUTSIDE = Path(__file__).with_name("written-by-a-model")
"""What no model may write."""


def make() -> nn.Module:
    """Return a small convolutional network for 32 px images; always the same weights."""
    generator = torch.Generator().manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    print("the factory prints to stdout")  # noqa: T201 - as real ones do
    return module


def make_noted() -> nn.Module:
    """Return the network, and add a line to a file for each time it was made."""
    with open(os.environ["SIDECAR_TEST_LOADS"], "a", encoding="utf-8") as log:  # noqa: PTH123 - appends
        log.write("loaded\n")
    return make()


def silent() -> nn.Module:
    """Return the network with a second layer that nothing can stir."""
    module = make()
    with torch.no_grad():
        module[2].weight.zero_()
        module[2].bias.fill_(-1.0)
    return module


def hang() -> nn.Module:
    """Never return."""
    print(f"hanging as {os.getpid()}", flush=True)  # noqa: T201 - says which process
    time.sleep(600)
    raise AssertionError


def explode() -> nn.Module:
    """Raise what nobody foresaw."""
    raise RuntimeError("no GPU of this name")


def fill_the_gpu() -> nn.Module:
    """Find no memory on a GPU, as torch says it."""
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def vanish() -> nn.Module:
    """End the process from inside, as a failing C library does."""
    print("fatal: out of device memory", file=sys.stderr, flush=True)  # noqa: T201 - its last words
    os.abort()


def call_home() -> nn.Module:
    """Ask the network for something."""
    socket.create_connection(("127.0.0.1", 9), timeout=1)
    return make()


def write_outside() -> nn.Module:
    """Write beside the code."""
    OUTSIDE.write_text("x", encoding="ascii")
    return make()


def fork_many() -> nn.Module:
    """Start processes without end."""
    while True:
        if os.fork() == 0:
            time.sleep(600)


def run_a_tool() -> nn.Module:
    """Start another programme."""
    subprocess.run(["true"], check=True)
    return make()


def hoard() -> nn.Module:
    """Take more memory than there is."""
    torch.empty(1 << 42, dtype=torch.uint8)
    return make()


def fill() -> nn.Module:
    """Write a file that is too large, where files may be written."""
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 31)
    return make()


def kill_the_daemon() -> nn.Module:
    """Send a signal to the process that started this one."""
    os.kill(os.getppid(), signal.SIGTERM)
    return make()


def keep_to_itself() -> nn.Module:
    """Use a temporary file and a thread, as a model may."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    torch.set_num_threads(2)
    return make()
