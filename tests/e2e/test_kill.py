"""kill -9 of the daemon in mid-stream: the server goes on, the hooks come back, the state too."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
import pytest
import torch
import yaml

from sidecar.daemon import HOUSEKEEPING_SECONDS
from sidecar.features import FeatureKind
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.torch import attach
from sidecar.testing import wait_until
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

pytestmark = pytest.mark.e2e

SNAPSHOT_SECONDS = 1.0
WRITE_SECONDS = 0.5
"""Room for one write to a busy disk: a snapshot counts once it is there, not when it is begun."""

SOCKET_LIMIT = 100  # a unix socket's path has at most 107 characters


def configuration(folder: Path, socket: str) -> Path:
    """Write a configuration whose daemon listens on a socket of this test."""
    path = folder / f"{socket}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "listen": {
                    "grpc": [f"unix://{folder}/{socket}"],
                    "lane": [f"unix://{folder}/lane-{socket}"],
                    "metrics": "127.0.0.1:0",
                    "web": "127.0.0.1:0",
                },
                "state_dir": "state",
                "models": [{"name": "tiny"}],
                "flags": [{"feature": "tiny/0/channel/1", "name": "one"}],
                "statistics": {"window_seconds": 0.2, "warmup_rows": 16},
                "store": {"snapshot_seconds": SNAPSHOT_SECONDS},
            }
        )
    )
    return path


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sidecar serve``; it is dead afterwards whatever happened."""
    log = (config.parent / "daemon.log").open("ab")
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        log.close()


def count(folder: Path, socket: str = "s.sock") -> int:
    """Return how many values of one channel the running daemon has in its history; 0: no daemon."""
    request = features_pb2.GetDistributionRequest(
        key="tiny/0/channel/1", window=features_pb2.WINDOW_HISTORY
    )
    try:
        with grpc.insecure_channel(f"unix://{folder}/{socket}") as channel:
            stub = features_pb2_grpc.FeatureServiceStub(channel)
            return int(stub.GetDistribution(request, timeout=5).count)
    except grpc.RpcError:
        return 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    import tempfile  # noqa: PLC0415 - only here

    with tempfile.TemporaryDirectory() as name:
        assert len(name) < SOCKET_LIMIT
        yield Path(name)


class Server:
    """A model under steady traffic in a thread of its own, and what went wrong in it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
        self._images = torch.rand(8, 3, 16, 16)
        self._expected = self.model(self._images).detach()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.passes = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            try:
                with torch.no_grad():
                    equal = torch.equal(self._expected, self.model(self._images))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
                self.wrong.append(repr(error))
            else:
                self.wrong += [] if equal else ["another output"]
            self.passes += 1


def watched_until_killed(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, int]:
    """Kill a daemon in mid-stream; return what it had one interval before, and at last."""
    seen: list[tuple[float, int]] = []

    def enough() -> bool:
        seen.append((time.monotonic(), count(folder)))
        started = next((at for at, found in seen if found), None)
        return started is not None and seen[-1][0] - started > 3.5 * SNAPSHOT_SECONDS

    wait_until(enough, 60, f"some intervals of traffic, see {folder}/daemon.log")
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    process.wait(10)
    safe = killed - SNAPSHOT_SECONDS - HOUSEKEEPING_SECONDS - WRITE_SECONDS
    return max(found for at, found in seen if at <= safe), seen[-1][1]


@pytest.mark.parametrize("scheme", ["unix://{}/lane-s.sock", "grpc+unix://{}/s.sock"])
def test_kill_minus_nine_harms_neither_server_nor_state(folder: Path, scheme: str) -> None:
    """Forward passes go on without an exception, hooks reconnect, and at most one interval is lost."""
    config = configuration(folder, "s.sock")
    # The hooks do not know this one: what it has can only come from the snapshot.
    apart = configuration(folder, "apart.sock")
    sink = connect(scheme.format(folder))
    server = Server()
    # No budget: in a model this small sampling is most of the pass.
    plan = Plan(model="tiny", taps=(Tap("0", FeatureKind.CHANNEL),), overhead_budget=None)

    with attach(server.model, plan, sink), server:
        with daemon(config) as first:
            safe, last = watched_until_killed(first, folder)
        passes = server.passes
        with daemon(apart):
            restored = wait_until(lambda: count(folder, "apart.sock"), 60)
        alone = server.passes - passes
        with daemon(config):
            grown = wait_until(lambda: (now := count(folder)) > last + 80 and now, 60)
    sink.close(2.0)

    assert [] == server.wrong
    assert 0 < safe <= restored
    assert alone > 0
    assert grown > last
