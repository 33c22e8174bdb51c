"""What goes wrong around a real daemon process: disks, signals, damaged files, a daemon that hangs."""

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import psutil
import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.features import FeatureKind, LayerKey
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.torch import attach
from sidecar.testing import wait_until
from sidecar.weights import module_digest
from sidecar.wire import Hello, RegisterLayer
from tests.ingest.conftest import GrpcClient
from tests.jobs import tiny_model

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
WIDTH = 8
ROWS = 32
DIGEST = module_digest(tiny_model.make())
FEATURE = f"tiny@{DIGEST}/0/channel/1"
SETTINGS: dict[str, Any] = {
    "listen": {
        "grpc": ["127.0.0.1:0"],
        "metrics": "127.0.0.1:0",
        "web": "127.0.0.1:0",
    },
    "state_dir": "state",
    "models": [{"name": "tiny", "factory": "tiny_model:make", "input": {"size": 32}}],
    "flags": [{"feature": "tiny/0/channel/1", "name": "one"}],
    "statistics": {
        "window_seconds": 0.3,
        "warmup_rows": 16,
        "baseline_min_requests": 200,
        "baseline_min_seconds": 0,
    },
    "jobs": {
        "python_path": [str(ROOT / "tests" / "jobs")],
        "recipe": {"steps": 2, "canvas": 32, "crops": 1},
        "threads": 1,
        "lease_seconds": 3,
    },
    "store": {"snapshot_seconds": 0.3},
}


@dataclass
class Served:
    """A daemon in a process of its own, and where it answers."""

    process: subprocess.Popen[bytes]
    state: Path
    grpc: str
    lane: str
    metrics: str
    console: str

    def scrape(self) -> dict[str, float]:
        """Return every sample by name, summed over its labels."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def alive(self) -> bool:
        """Whether the liveness probe is content."""
        with urllib.request.urlopen(f"{self.metrics}/livez", timeout=10) as answer:
            return bool(answer.status == 200)

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the JSON answer of the API, also where it is an error."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.console}/api/v1/{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    def running_job(self) -> str:
        """Submit a portrait job and return its id once a child works on it."""
        job = self.ask("jobs", {"features": [FEATURE]})["id"]
        wait_until(lambda: self.ask(f"jobs/{job}")["state"] == "running", 20, "the job to run")
        wait_until(self.children, 20, "the child")
        return str(job)

    def children(self) -> list[psutil.Process]:
        """Return the job processes: all but the one that compiles kernels in the first seconds."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if "sidecar.jobs.worker" in command_of(process)]

    def ended(self, job: str) -> Any:
        """Wait for a job's end and return it."""
        over = ("done", "failed", "cancelled")
        wait_until(lambda: self.ask(f"jobs/{job}")["state"] in over, 60, f"the end of {job}")
        return self.ask(f"jobs/{job}")

    def limit_files(self, limit_bytes: int) -> None:
        """Let no file grow beyond this, which writers cannot tell from a full disk."""
        limits = (limit_bytes, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limits)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(15)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Run ``sidecar serve`` on a folder; it is dead afterwards whatever happened."""
    config, log = folder / "sidecar.yaml", folder / f"daemon-{time.monotonic_ns()}.log"
    listen = {**SETTINGS["listen"], "lane": [f"unix://{folder}/lane.sock"]}
    config.write_text(yaml.safe_dump({**SETTINGS, "listen": listen}))
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        event = wait_until(lambda: _started(log), 40, f"the start: {log}")
        yield Served(
            process,
            folder / "state",
            event["grpc"][0],
            event["lane"][0],
            event["metrics"],
            event["console"],
        )
    finally:
        process.kill()
        process.wait(10)


def _started(log: Path) -> Any:
    lines = [line for line in log.read_text().splitlines() if '"daemon_started"' in line]
    return json.loads(lines[0]) if lines else None


class Traffic:
    """Sends batches of one layer from a thread; ``scale`` drives the features up."""

    def __init__(self, served: Served) -> None:
        """Open a stream and register the layer."""
        self.scale = 1.0
        self.acknowledged_rows = 0
        self._client = GrpcClient(served.grpc)
        self._client.say(Hello("tiny", DIGEST))
        self._client.read()
        self._client.say(RegisterLayer(1, LayerKey("tiny", DIGEST, "0"), WIDTH))
        self._rng = np.random.default_rng(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def send(self) -> None:
        """Send one batch and wait for its acknowledgement."""
        values = np.abs(self._rng.normal(size=(ROWS, WIDTH))).astype(np.float32) * self.scale
        self._client.batch(values)
        self._client.read_until_settled(self._client.sequence)
        self.acknowledged_rows += ROWS

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                self.send()
            except (grpc.RpcError, StopIteration, ValueError):
                return  # the daemon is gone, as these tests intend

    def __enter__(self) -> Self:
        """Start sending."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sending."""
        self._over.set()
        self._thread.join(10)
        self._client.close()


def events(served: Served, what: str) -> int:
    """Return how often the audit log holds an event."""
    with closing(sqlite3.connect(served.state / "sidecar.sqlite3")) as database:
        query = "SELECT COUNT(*) FROM events WHERE what = ?"
        return int(database.execute(query, (what,)).fetchone()[0])


def command_of(process: psutil.Process) -> list[str]:
    """Return a process's command line; nothing of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; where nobody reaps orphans, it stays as a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_full_disk_costs_snapshots_and_nothing_else(tmp_path: Path) -> None:
    """The daemon counts, refuses and serves on; with room again the job ends and nothing is lost."""
    with serving(tmp_path) as served, Traffic(served) as traffic:
        wait_until(lambda: served.scrape()["sidecar_snapshot_timestamp_seconds"], 20)
        job = served.running_job()
        served.limit_files(1)
        before = served.scrape()
        wait_until(lambda: served.scrape()["sidecar_snapshot_failures_total"] >= 3, 20)
        refused = served.ask("jobs", {"features": [FEATURE.replace("/1", "/2")]})
        wait_until(lambda: not served.children(), 40, "the child's end")
        # With room a moment too early the daemon could record that its picture found none.
        tried = served.scrape()["sidecar_snapshot_failures_total"] + 3
        wait_until(lambda: served.scrape()["sidecar_snapshot_failures_total"] >= tried, 20)
        full, alive, sent = served.scrape(), served.alive(), traffic.acknowledged_rows
        served.limit_files(resource.RLIM_INFINITY)
        done = served.ended(job)
        wait_until(
            lambda: (
                served.scrape()["sidecar_snapshot_timestamp_seconds"]
                > full["sidecar_snapshot_timestamp_seconds"]
            ),
            20,
            "a snapshot",
        )

    assert alive
    assert "SC701" == refused["code"]
    assert "make room on the disk" in refused["message"]
    processed = "sidecar_batches_processed_total"
    assert full[processed] > before[processed]
    assert sent <= full[processed] * ROWS + ROWS
    assert ("done", 1) == (done["state"], len(done["portraits"]))


def test_kill_9_during_a_job_leaves_no_orphan_and_one_portrait(tmp_path: Path) -> None:
    """The child goes with the daemon, the next daemon runs the job again, once."""
    with serving(tmp_path) as first, Traffic(first) as traffic:
        wait_until(lambda: traffic.acknowledged_rows)
        job = first.running_job()
        wait_until(lambda: first.scrape().get("sidecar_snapshot_timestamp_seconds"), 20)
        children = first.children()
        first.stop(signal.SIGKILL)
        wait_until(lambda: all(map(gone, children)), 10, "the end of the child")
    with serving(tmp_path) as second:
        done = second.ended(job)
        feature = second.ask(f"features/{FEATURE}")
        scratch = list((second.state / "scratch").iterdir())

    assert children
    assert ("done", 2) == (done["state"], done["attempts"])
    assert 1 == len(done["portraits"]) == len(feature["portraits"])
    assert [] == scratch


def test_kill_9_while_firing_announces_nothing_twice(tmp_path: Path) -> None:
    """The next daemon fires from its first scrape on, and its audit log holds one beginning."""
    with serving(tmp_path) as first, Traffic(first) as traffic:
        wait_until(lambda: events(first, "baseline_frozen"), 30)
        wait_until(lambda: events(first, "feature_normal"), 30)
        traffic.scale = 10.0
        wait_until(lambda: events(first, "feature_firing"), 30)
        fired = time.time()
        wait_until(lambda: first.scrape()["sidecar_snapshot_timestamp_seconds"] > fired, 20)
        first.stop(signal.SIGKILL)
    with serving(tmp_path) as second:
        restored = second.scrape()["sidecar_feature_spiking"]
        with Traffic(second) as traffic:
            traffic.scale = 10.0
            enough = second.scrape()["sidecar_layer_rows_total"] + 40 * ROWS  # some windows
            wait_until(lambda: second.scrape()["sidecar_layer_rows_total"] > enough, 30)
            still = second.scrape()["sidecar_feature_spiking"]
        begun = events(second, "feature_firing")

    assert (1.0, 1.0, 1) == (restored, still, begun)


def test_sigterm_under_traffic_saves_everything_acknowledged(tmp_path: Path) -> None:
    """Exit status 0 within ten seconds, and every acknowledged row is there after the restart."""
    with serving(tmp_path) as first, Traffic(first) as traffic:
        wait_until(lambda: traffic.acknowledged_rows > 20 * ROWS, 20)
        began = time.monotonic()
        status = first.stop(signal.SIGTERM)
        seconds = time.monotonic() - began
    with serving(tmp_path) as second:
        rows = second.ask("layers")["layers"][0]["rows"]

    assert 0 == status
    assert 10.0 > seconds
    assert traffic.acknowledged_rows <= rows


@pytest.mark.parametrize("transport", ["lane", "grpc"])
def test_a_hanging_daemon_leaves_forward_passes_alone(tmp_path: Path, transport: str) -> None:
    """While the daemon is stopped nothing waits for it; when it goes on, samples arrive again."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, WIDTH, 3), torch.nn.ReLU(inplace=True)).eval()
    images = torch.rand(4, 3, 16, 16)
    # No budget: in a model this small sampling is most of the pass.
    plan = Plan(model="tiny", taps=(Tap("0", FeatureKind.CHANNEL),), overhead_budget=None)
    with torch.no_grad():
        expected = model(images)

    def forward() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            assert torch.equal(expected, model(images))
        return time.perf_counter() - began

    def arrived(served: Served) -> float:
        forward()
        return served.scrape().get("sidecar_layer_rows_total", 0.0)

    with serving(tmp_path) as served:
        sink = connect(getattr(served, transport), queue_bytes=64 << 10)
        with attach(model, plan, sink) as attachment:
            wait_until(lambda: arrived(served), 20, "samples")
            served.process.send_signal(signal.SIGSTOP)
            slowest = max(forward() for _ in range(3000))
            report = attachment.statistics().report
            served.process.send_signal(signal.SIGCONT)
            before = arrived(served)
            wait_until(lambda: arrived(served) > before, 40, "samples again")
        sink.close(2.0)

    assert 0.5 > slowest
    assert 0 == report.errors


def test_damaged_state_is_set_aside_at_start(tmp_path: Path) -> None:
    """A flipped bit costs the newest snapshot, garbage the database; both are kept and counted."""
    with serving(tmp_path) as first, Traffic(first) as traffic:
        wait_until(lambda: traffic.acknowledged_rows > 10 * ROWS, 20)
        wait_until(lambda: len(list((first.state / "snapshots").glob("*.snapshot"))) == 2, 20)
    *_, newest = sorted((first.state / "snapshots").glob("*.snapshot"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    for path in first.state.glob("sidecar.sqlite3*"):
        path.write_bytes(b"garbage" * 2000)
    with serving(tmp_path) as second:
        found = second.scrape()
        layers = second.ask("layers")["layers"]

    assert 2 == found["sidecar_quarantined_files"]
    assert [WIDTH] == [layer["width"] for layer in layers]
    assert newest.with_name(f"{newest.name}.corrupt-1").exists()
    assert (first.state / "sidecar.sqlite3.corrupt-1").exists()
