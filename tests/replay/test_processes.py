"""A daemon that is killed leaves a recording that can be replayed, gap and all."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml

from sidecar.store import ReadCounts, WindowRecord, find_segments, read_recordings
from sidecar.testing import wait_until
from tests.ingest.conftest import GrpcClient

pytestmark = pytest.mark.e2e

WINDOW = 0.2


def configuration(folder: Path) -> Path:
    """Write a configuration whose daemon listens on a socket of this test."""
    path = folder / "sidecar.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "listen": {
                    "grpc": [f"unix://{folder}/s"],
                    "metrics": "127.0.0.1:0",
                    "web": "127.0.0.1:0",
                },
                "state_dir": "state",
                "models": [{"name": "tiny"}],
                "flags": [{"feature": "tiny/conv/channel/1"}],
                "spike": {"quantile": 0.99},
                "statistics": {
                    "window_seconds": WINDOW,
                    "warmup_rows": 32,
                    "baseline_min_requests": 1000,
                    "baseline_min_seconds": 1,
                },
            }
        )
    )
    return path


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sidecar serve`` until it answers; it is dead afterwards whatever happened."""
    with (config.parent / "log").open("ab") as log:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            with grpc.insecure_channel(f"unix://{config.parent}/s") as channel:
                grpc.channel_ready_future(channel).result(60)
            yield process
        finally:
            process.kill()
            process.wait(10)


def windows(config: Path) -> list[WindowRecord]:
    """Return what is recorded so far."""
    folder = config.parent / "state" / "recordings"
    if not folder.is_dir() or not list(folder.iterdir()):
        return []
    return list(read_recordings(find_segments([folder]), ReadCounts()))


def send(config: Path, rng: np.random.Generator, *, until: int, loud: bool = False) -> None:
    """Send batches until so many windows are recorded."""
    client = GrpcClient(f"unix://{config.parent}/s")
    client.hello()

    def enough() -> bool:
        values = rng.normal(size=(100, 4))
        values[:40, 1] += 9.0 * loud
        client.read_until_settled(client.batch(values))
        return len(windows(config)) >= until

    wait_until(enough, 60, f"{until} recorded windows")
    client.close()


def test_a_killed_daemon_leaves_a_recording_with_a_gap(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every window before the kill is there, the spike is found, and the time without a daemon told."""
    folder = tmp_path_factory.mktemp("k")
    config, rng = configuration(folder), np.random.default_rng(3)
    with daemon(config) as process:
        send(config, rng, until=15)
        before = windows(config)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with daemon(config):
        send(config, rng, until=len(before) + 10)
        send(config, rng, until=len(before) + 16, loud=True)

    command = [sys.executable, "-m", "sidecar", "replay", str(folder / "state" / "recordings")]
    found = subprocess.run(
        [*command, "--policy", str(config), "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert 0 == found.returncode, found.stderr
    answer = json.loads(found.stdout)
    (layer,) = answer["recording"]["layers"]
    after = windows(config)
    assert [one.at for one in before] == [one.at for one in after[: len(before)]]
    assert len(after) == layer["windows"]
    assert any(gap["from"] >= before[-1].at for gap in layer["gaps"])
    assert ["channel/1"] == [one["feature"][-9:] for one in answer["features"]]
    assert all(alarm["start"] > before[-1].at for alarm in answer["alarms"])
