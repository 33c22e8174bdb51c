"""A tiny network with weights in a file, its twin, images of noise, and an audit of the two."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sidecar.config import SidecarConfig
from sidecar.daemon import Daemon
from sidecar.testing import FakeClock
from tests.jobs import tiny_model

HALF_PAST_TWO = 1_790_303_400.0  # 2026-09-25 02:30 UTC
HOUR, DAY = 3600.0, 86_400.0

JOBS = Path(tiny_model.__file__).parent


def write_weights(path: Path, factory: str) -> None:
    """Write the weights of what a factory returns, in place of those that are there."""
    module = getattr(tiny_model, factory)()
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """What ``settings_in`` makes, for one test."""
    return settings_in(tmp_path)


def settings_in(root: Path) -> dict[str, Any]:
    """Night after night ``tiny`` is held against ``twin``; its weights are in ``tiny.safetensors``."""
    folder = root / "noise"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(40):
        ground = 100 + rng.integers(0, 30, 3) + rng.integers(0, 60, (36, 40, 3))
        Image.fromarray(ground.astype(np.uint8)).save(folder / f"{number:02d}.png")
    weights = root / "tiny.safetensors"
    write_weights(weights, "make")
    small = {"size": 32}
    return {
        "models": [
            {
                "name": "tiny",
                "factory": "tiny_model:make",
                "weights": str(weights),
                "input": small,
            },
            {"name": "twin", "factory": "tiny_model:make", "input": small},
        ],
        "flags": [{"feature": "tiny/2/channel/5"}],
        "datasets": [{"name": "noise", "folder": str(folder)}],
        "jobs": {
            "python_path": [str(JOBS)],
            "threads": 1,
            "device": "cpu",
            "recipe": {"steps": 8, "canvas": 32},
            "reliability": {"seeds": 1},
        },
        "audits": [
            {
                "name": "nightly",
                "model": "tiny",
                "against": "twin",
                "dataset": "noise",
                "schedule": "30 2 * * *",
                "features": 3,
                "fail_on": "lost,moved=5%",
                "reproduced": 1,
                "compare_steps": 2,
            }
        ],
    }


@pytest.fixture
def clock() -> FakeClock:
    """An hour before the first night."""
    return FakeClock(HALF_PAST_TWO - HOUR)


@contextmanager
def built(tmp_path: Path, settings: dict[str, Any], clock: FakeClock) -> Iterator[Daemon]:
    """Build a daemon of which nothing runs, so that each step is the test's; leave it as kill -9 would."""
    config = SidecarConfig.model_validate({**settings, "state_dir": tmp_path / "state"})
    daemon = Daemon(config, clock=clock, load_kernels=None)
    try:
        yield daemon
    finally:
        daemon.storage.close()
