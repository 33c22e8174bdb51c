"""What each process loads, and what that costs: the budgets of the roles."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sidecar.testing import wait_until

pytestmark = pytest.mark.service

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""

DAEMON_RSS_MIB = 250
"""Budget of an idle daemon; measured 205 MiB, of which 80 before the kernels are loaded."""


def loaded(module: str) -> set[str]:
    """Return the top-level packages that importing a module loads in a new process."""
    command = [sys.executable, "-c", PROBE, module]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # The daemon loads numba once it is ready, from what a child of it has compiled.
        ("sidecar.daemon", {"torch", "onnxruntime", "PIL", "numba", "fsspec", "jsonschema"}),
        (
            "sidecar.hooks",
            {"torch", "grpc", "structlog", "pydantic", "yaml", "prometheus_client", "numba"},
        ),
        ("sidecar.cli", {"torch", "grpc", "numpy", "pydantic", "uvicorn", "numba"}),
        # Recordings are read where no daemon is.
        (
            "sidecar.cli.replay",
            {"torch", "grpc", "google", "uvicorn", "prometheus_client", "numba"},
        ),
        ("sidecar.cli.calibrate", {"torch", "grpc", "google", "uvicorn", "matplotlib", "numba"}),
        ("sidecar.wire", {"torch", "grpc", "pydantic"}),
        ("sidecar.detect", {"torch", "grpc", "google", "structlog", "sqlite3", "asyncio"}),
        ("sidecar.stats", {"torch", "grpc", "google", "structlog", "sqlite3", "asyncio", "numba"}),
    ],
)
def test_a_role_loads_none_of_what_it_does_not_need(module: str, absent: set[str]) -> None:
    """Each process pays only for its own work."""
    assert set() == loaded(module) & absent


def test_an_idle_daemon_stays_within_its_memory_budget(tmp_path: Path) -> None:
    """The sidecar is small beside any model server, with its kernels compiled and loaded."""
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "listen: {grpc: ['127.0.0.1:0'], metrics: '127.0.0.1:0', web: '127.0.0.1:0'}\n"
        "state_dir: state\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            wait_until(lambda: b"kernels_compiled" in log.read_bytes(), 240, "the kernels")
            resident = psutil.Process(process.pid).memory_info().rss / 2**20
        finally:
            process.terminate()
            code = process.wait(30)

    assert resident < DAEMON_RSS_MIB
    assert 0 == code
