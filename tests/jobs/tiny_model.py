"""Model factories for the worker: a tiny network, and some that misbehave."""

import os
import sys
import time

import torch
from torch import nn


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


def vanish() -> nn.Module:
    """End the process from inside, as a failing C library does."""
    print("fatal: out of device memory", file=sys.stderr, flush=True)  # noqa: T201 - its last words
    os.abort()
