"""The daemon's life: one at a time, whole or not at all, and nothing that ends its threads."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
import yaml

from sidecar.config import SidecarConfig
from sidecar.daemon import PATIENCE_SECONDS, STALL_SECONDS, Daemon
from sidecar.errors import ConfigError, StorageError
from sidecar.features import Capture, LayerKey
from sidecar.monitor import Event
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.ingest.conftest import WIDTH, GrpcClient, open_client

pytestmark = pytest.mark.service

TINY = {"models": [{"name": "tiny"}]}


def threads() -> set[str]:
    """Return the names of the sidecar's threads that live."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("sidecar-", "job-slot"))}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon that saves its state often."""
    with running_daemon(tmp_path, {**TINY, "store": {"snapshot_seconds": 0.3}}) as found:
        yield found


def test_a_second_daemon_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    """Two would overwrite each other's snapshots; after the first has stopped there is room."""
    with running_daemon(tmp_path, TINY), pytest.raises(ConfigError, match="another daemon uses it"):
        Daemon(SidecarConfig(state_dir=tmp_path))

    with running_daemon(tmp_path, TINY) as again:
        assert again.grpc


def test_a_failed_start_leaves_nothing_running(tmp_path: Path) -> None:
    """All addresses that are taken are named, and those that were not are free again."""
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    before = threads()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = {"grpc": [f"127.0.0.1:{port}"], "metrics": address, "web": address}
        with pytest.raises(ConfigError) as caught, running_daemon(tmp_path, {"listen": listen}):
            pass

    assert [True, True] == [f"listen.{n}" in caught.value.message for n in ("metrics", "web")]
    assert before == threads()
    socket.create_server(("127.0.0.1", port)).close()
    with running_daemon(tmp_path) as again:
        assert again.grpc


def test_localhost_is_one_address_and_taken_when_that_is(tmp_path: Path) -> None:
    """Left to itself gRPC would listen on ::1 and leave 127.0.0.1 to whoever has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        listen = {"grpc": [address], "metrics": "127.0.0.1:0", "web": "127.0.0.1:0"}
        with (
            pytest.raises(ConfigError, match=f"listen.grpc {address}"),
            running_daemon(tmp_path, {"listen": listen}),
        ):
            pass


def test_a_start_that_fails_late_leaves_nothing_running_either(tmp_path: Path) -> None:
    """A job table that cannot be read is found after the servers listen; they stop again."""
    before = threads()
    listen = {"grpc": ["127.0.0.1:0"], "metrics": "127.0.0.1:0", "web": "127.0.0.1:0"}
    daemon = Daemon(SidecarConfig.model_validate({"listen": listen, "state_dir": tmp_path}))
    daemon.storage.database.close()

    with pytest.raises(StorageError, match="is closed"):
        asyncio.run(daemon.start())

    assert before == threads()


@pytest.mark.parametrize("transport", ["lane", "grpc"])
def test_stopping_ends_open_streams_at_once_and_without_a_warning(
    tmp_path: Path, transport: str
) -> None:
    """Hooks never end their streams; a stop must neither wait for them nor call them broken."""
    with structlog.testing.capture_logs() as logs:
        with running_daemon(tmp_path, TINY) as running:
            client = open_client(running, transport)
            client.hello()
            client.read_until_settled(client.batch(np.ones((2, WIDTH))))
            daemon, began = running.daemon, time.monotonic()
        seconds = time.monotonic() - began
        with pytest.raises(StopIteration):
            client.read()
        client.close()

    assert [] == [line for line in logs if line["log_level"] in ("warning", "error")]
    assert 0 == daemon.ledger.counts().streams
    # The test's daemon waits a second for open calls; the stream was none by then.
    assert seconds < 2.0


def test_a_clock_that_jumps_does_not_look_like_a_dead_writer(tmp_path: Path) -> None:
    """The probe measures by a clock that nobody sets."""
    clock = FakeClock()
    with running_daemon(tmp_path, TINY, clock=clock) as running:
        clock.advance(100 * STALL_SECONDS)
        answer = urllib.request.urlopen(f"{running.metrics_url}/livez", timeout=5)

    assert 200 == answer.status


def test_a_snapshot_folder_that_vanishes_costs_snapshots_only(running: RunningDaemon) -> None:
    """A disk that fails is counted, and the next snapshot is written once it is mended."""
    storage = running.daemon.storage
    folder = running.daemon.config.state_dir / "snapshots"
    wait_until(lambda: storage.snapshot_at, what="the first snapshot")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    wait_until(lambda: storage.snapshot_failures, what="a failure")
    failed_at = storage.snapshot_at
    folder.unlink()
    folder.mkdir()

    wait_until(lambda: storage.snapshot_at > failed_at, what="a snapshot again")
    assert [] == list(running.daemon.why_dead())


def test_an_audit_entry_that_cannot_be_written_costs_itself_only(running: RunningDaemon) -> None:
    """Whatever is wrong with one entry, those after it are written and housekeeping goes on."""
    operations = running.daemon.operations
    operations.record((Event(1.0, "odd", "\ud800", ""), Event(2.0, "even", "s", "with \ud800")))

    found = wait_until(lambda: operations.events(None, 10), PATIENCE_SECONDS + 10, "the entry")

    assert [("even", "with ?")] == [(event.what, event.detail) for event in found]
    assert [] == list(running.daemon.why_dead())


def test_flags_that_match_nothing_are_named_in_the_scrape(tmp_path: Path) -> None:
    """A layer nobody registered and an index beyond its width are the same kind of mistake."""
    flags = [{"feature": f"tiny/{name}"} for name in ("a/channel/3", "a/channel/4", "b/channel/0")]
    with running_daemon(tmp_path, {**TINY, "flags": flags}) as running:
        running.daemon.monitor.register(LayerKey("tiny", "r", "a"), 4, Capture(), 0.0)
        with urllib.request.urlopen(f"{running.metrics_url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()

    unmatched = sorted(line for line in lines if line.startswith("sidecar_flag_unmatched{"))
    assert [
        f'sidecar_flag_unmatched{{flag="tiny/{n}"}} 1.0' for n in ("a/channel/4", "b/channel/0")
    ] == (unmatched)


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    """Every line to the log fails, and the daemon serves and stops as ever."""
    port = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{port.getsockname()[1]}"
    port.close()
    path = tmp_path / "sidecar.yaml"
    listen = {"grpc": ["127.0.0.1:0"], "metrics": address, "web": "127.0.0.1:0"}
    path.write_text(yaml.safe_dump({"listen": listen, "state_dir": "state"}))
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(path)]

    def ready() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://{address}/readyz", timeout=5).status)
        except OSError:
            return False

    with Path("/dev/full").open("wb") as full, subprocess.Popen(command, stderr=full) as process:
        try:
            wait_until(ready, 30, "the daemon")
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        finally:
            process.kill()

    assert 0 == code


def frozen_layer(running: RunningDaemon) -> None:
    """Give a daemon a layer with some traffic, and freeze its baseline."""
    client = GrpcClient(running.grpc)
    client.hello()
    client.read_until_settled(client.batch(np.random.default_rng(0).normal(size=(400, WIDTH))))
    client.close()
    running.daemon.operations.freeze("tiny", "", "")


def test_a_change_of_state_is_saved_at_once(tmp_path: Path) -> None:
    """What was told survives kill -9, however long the interval of snapshots."""
    with running_daemon(tmp_path, {**TINY, "store": {"snapshot_seconds": 3600}}) as running:
        frozen_layer(running)

        wait_until(lambda: running.daemon.storage.snapshot_at, 10, "a snapshot")


def test_a_snapshot_of_other_settings_is_set_aside_and_not_overwritten(tmp_path: Path) -> None:
    """A change of the bins starts anew, and the old state can be had back with the old settings."""
    with running_daemon(tmp_path, TINY) as first:
        frozen_layer(first)
    with running_daemon(tmp_path, {**TINY, "statistics": {"mantissa_bits": 3}}) as second:
        layers = second.daemon.monitor.layers()
        quarantined = second.daemon.storage.snapshots.quarantined

    assert () == layers
    assert quarantined >= 1
    assert list((tmp_path / "snapshots").glob("*.corrupt-*"))
