"""A daemon records the windows it closes, and goes on where it cannot."""

import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.store import ReadCounts, WindowRecord, find_segments, read_recordings
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from tests.ingest.conftest import GrpcClient

pytestmark = pytest.mark.service

SETTINGS: dict[str, Any] = {
    "models": [{"name": "tiny"}],
    "flags": [{"feature": "tiny/conv/channel/1"}],
    "statistics": {"window_seconds": 0.2, "warmup_rows": 8},
}


def send(running: RunningDaemon, rows: int = 50) -> None:
    """Send one batch and wait until it is counted."""
    client = GrpcClient(running.grpc)
    client.hello()
    client.read_until_settled(client.batch(np.random.default_rng(0).normal(size=(rows, 4))))
    client.close()


def metric(running: RunningDaemon, name: str) -> float:
    """Return the value of a sample by its name and labels."""
    with urllib.request.urlopen(f"{running.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[-1])


def windows(state_dir: Path) -> list[WindowRecord]:
    """Return everything that was recorded."""
    return list(read_recordings(find_segments([state_dir / "recordings"]), ReadCounts()))


def test_closed_windows_are_on_the_disk_and_in_the_metrics(tmp_path: Path) -> None:
    """Each window is there once, those of the last moment too."""
    with running_daemon(tmp_path, SETTINGS) as running:
        send(running)
        wait_until(lambda: metric(running, "sidecar_windows_recorded_total") >= 5)
        used = metric(running, "sidecar_recording_bytes")
        limit = metric(running, "sidecar_recording_limit_bytes")
        dropped = [
            metric(running, f'sidecar_windows_dropped_total{{reason="{reason}"}}')
            for reason in ("backlog", "disk")
        ]

    found = windows(tmp_path)
    assert 50 == sum(one.requests for one in found)
    assert len({one.at for one in found}) == len(found) >= 5
    assert 0 < used <= limit == 256 << 20
    assert [0.0, 0.0] == dropped


def test_nothing_is_recorded_where_the_limit_is_0(tmp_path: Path) -> None:
    """No folder is made, and the metrics say so."""
    with running_daemon(tmp_path, {**SETTINGS, "recording": {"limit_bytes": 0}}) as running:
        send(running)
        limit = metric(running, "sidecar_recording_limit_bytes")

    assert 0.0 == limit
    assert not (tmp_path / "recordings").exists()


def test_a_folder_that_cannot_be_written_is_counted_and_the_daemon_goes_on(
    tmp_path: Path,
) -> None:
    """Where the recording cannot be written windows are lost, and nothing else is."""
    with running_daemon(tmp_path, SETTINGS) as running:
        folder = tmp_path / "recordings"
        folder.rmdir()
        folder.write_text("in the way")
        send(running)
        name = 'sidecar_windows_dropped_total{reason="disk"}'
        wait_until(lambda: metric(running, name) >= 3)
        send(running)
        dead, rows = running.daemon.why_dead(), running.daemon.monitor.layers()[0].rows

    assert [] == list(dead)
    assert 100 == rows
