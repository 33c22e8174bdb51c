"""From a hooked model to the page that names the cause, and over kill -9."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import torch
import yaml
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.features import FeatureKind
from sidecar.hooks import Plan, Tap, connect, current_requests
from sidecar.hooks.torch import attach
from sidecar.testing import wait_until

pytestmark = pytest.mark.e2e

FEATURE = "tiny/0/channel/1"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def configuration(folder: Path, grpc: int, web: int, **evidence: Any) -> Path:
    """Write a configuration with short windows."""
    path = folder / "sidecar.yaml"
    document = {
        "listen": {
            "grpc": [f"127.0.0.1:{grpc}"],
            "metrics": "127.0.0.1:0",
            "web": f"127.0.0.1:{web}",
        },
        "state_dir": "state",
        "models": [{"name": "tiny"}],
        "flags": [{"feature": FEATURE, "name": "bright corners"}],
        "statistics": {"window_seconds": 0.5, "warmup_rows": 64},
        "evidence": evidence,
    }
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sidecar serve``; it is dead afterwards whatever happened."""
    with (config.parent / "daemon.log").open("ab") as log:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


class Server:
    """A model under the traffic of two routes, a tenth of it from the first, which may go mad."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
        self.mad = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            images = torch.rand(20, 3, 8, 8)
            if self.mad.is_set():
                images[:2] *= 50
            routes = ["/v1/eu"] * 2 + ["/v1/us"] * 18
            requests = [
                {"id": f"user-{number + i}", "traffic": {"route": route, "canary": "no"}}
                for i, route in enumerate(routes)
            ]
            number += len(requests)
            with torch.no_grad(), current_requests(requests):
                self.model(images)


def read(url: str) -> Any:
    """Return the JSON at an address; empty while the daemon is not there."""
    try:
        answer = httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return {}
    return answer.json() if answer.status_code == 200 else {}


@pytest.mark.parametrize("evidence", [{}, {"enabled": True, "ids": "hash"}], ids=["off", "hash"])
def test_the_route_that_spikes_is_named_on_page_api_and_command_line(
    tmp_path: Path, evidence: dict[str, Any]
) -> None:
    """Two routes, one goes mad: everything names it, and goes on to after kill -9."""
    grpc, web = free_ports(2)
    config = configuration(tmp_path, grpc, web, **evidence)
    base = f"http://127.0.0.1:{web}"
    api = f"{base}/api/v1/features/{FEATURE}"
    sink = connect(f"grpc://127.0.0.1:{grpc}")
    # No budget: in a model this small sampling is most of the pass.
    plan = Plan(model="tiny", taps=(Tap("0", FeatureKind.CHANNEL),), overhead_budget=None)
    server = Server()
    run = CliRunner().invoke

    with daemon(config) as first:
        with attach(server.model, plan, sink), server:
            layers = f"{base}/api/v1/layers"
            wait_until(
                lambda: (read(layers).get("layers") or [{}])[0].get("requests", 0) > 3000,
                90,
                f"traffic, see {tmp_path}/daemon.log",
            )
            frozen = run(main, ["baseline", "freeze", "tiny", "--address", f"127.0.0.1:{grpc}"])
            server.mad.set()
            records = wait_until(lambda: read(f"{api}/evidence").get("evidence"), 90, "evidence")
        page = httpx.get(f"{base}/f/{FEATURE}/evidence", timeout=5, trust_env=False).text
        shown = httpx.get(f"{base}/f/{FEATURE}", timeout=5, trust_env=False).text
        told = run(main, ["feature", "evidence", FEATURE, "--address", f"127.0.0.1:{grpc}"])
        known = read(api)["evidence_id"]
        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
    sink.close(2.0)
    with daemon(config):
        after = wait_until(lambda: read(f"{api}/evidence").get("evidence"), 60, "the record again")
        known_after = read(api)["evidence_id"]

    assert 0 == frozen.exit_code
    record = records[-1]
    sentence = "Without route=/v1/eu the spike is gone"
    assert "route=/v1/eu" == record["attribution"]["cause"]
    assert all(sentence in text for text in (page, shown, told.output))
    assert bool(evidence) == bool(record["rows"])
    assert "user-" not in str(records) + page + told.output
    assert all("route=/v1/eu" in row["traffic"] for row in record["rows"] if row["value"] > 10)
    assert (record, known) == (after[-1], known_after)
