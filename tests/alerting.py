"""A real Prometheus and a real Alertmanager on the shipped files, and somebody who reads the pages."""

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus import Prometheus, eventually

SCRAPE_SECONDS = 1
"""Between two scrapes, and between two evaluations."""

DEPLOY = Path(__file__).parents[1] / "deploy"


@dataclass(slots=True)
class Pager:
    """Collects what Alertmanager tells people.

    Attributes:
        messages: Every webhook message in the order in which it came, with the time it came at.
    """

    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def pages(self, status: str = "firing") -> list[dict[str, str]]:
        """Return the labels of every alert ever sent with this status, each as often as sent."""
        return [
            alert["labels"]
            for _, message in self.messages
            for alert in message["alerts"]
            if alert["status"] == status
        ]


@dataclass(frozen=True, slots=True)
class Stack:
    """Prometheus, Alertmanager and the pager, running.

    Attributes:
        prometheus: Scrapes the daemon every second.
        alertmanager: Its address.
        pager: What people were told.
    """

    prometheus: Prometheus
    alertmanager: str
    pager: Pager

    def alertmanager_alerts(self, name: str) -> list[dict[str, Any]]:
        """Return the alerts of one name that Alertmanager knows, muted ones too."""
        found = _json(f"{self.alertmanager}/api/v2/alerts")
        return [one for one in found if one["labels"]["alertname"] == name]

    def silence(self, **labels: str) -> None:
        """Silence what has these labels for ten minutes, as ``amtool silence add`` does."""
        amtool = shutil.which("amtool")
        assert amtool
        command = [amtool, f"--alertmanager.url={self.alertmanager}", "silence", "add"]
        command += ["--duration=10m", "--author=test", "--comment=test"]
        command += [f'{name}="{value}"' for name, value in labels.items()]
        subprocess.run(command, check=True, capture_output=True, timeout=30)


@contextmanager
def alerting(folder: Path, rules: str, *, metrics_port: int, console_url: str) -> Iterator[Stack]:
    """Run both over one daemon, on the shipped configuration with the addresses and times changed.

    Args:
        folder: Where they keep their files.
        rules: The rule file's text.
        metrics_port: Where the daemon's /metrics is.
        console_url: Where its webhook is.
    """
    for program in ("prometheus", "amtool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install prometheus prometheus-alertmanager")
    folder.mkdir(exist_ok=True)
    with ExitStack() as running:
        pager, url = running.enter_context(_pager())
        manager, gossip, port = free_ports(3)
        (folder / "rules").mkdir()
        (folder / "rules" / "sidecar.yaml").write_text(rules)
        _write(folder / "alertmanager.yaml", _alertmanager(console_url, url))
        _write(folder / "prometheus.yaml", _prometheus(metrics_port, manager))
        running.enter_context(
            _process(
                folder,
                # Debian's name of it, or everybody else's.
                shutil.which("prometheus-alertmanager") or "alertmanager",
                f"--config.file={folder}/alertmanager.yaml",
                f"--storage.path={folder}/alertmanager",
                f"--web.listen-address=127.0.0.1:{manager}",
                f"--cluster.listen-address=127.0.0.1:{gossip}",
            )
        )
        running.enter_context(
            _process(
                folder,
                "prometheus",
                f"--config.file={folder}/prometheus.yaml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=native-histograms,exemplar-storage",
            )
        )
        found = Stack(Prometheus(port), f"http://127.0.0.1:{manager}", pager)
        eventually(lambda: _json(f"{found.alertmanager}/api/v2/status"), "Alertmanager answers")
        eventually(lambda: found.prometheus.query("up == 1"), "Prometheus scrapes the daemon")
        yield found


def _alertmanager(console_url: str, pager_url: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(
        (DEPLOY / "alertmanager" / "alertmanager.yaml").read_text()
    )
    # People are told of a new group after the shipped time; only what would take minutes is shorter.
    config["route"]["group_interval"] = "2s"
    for receiver in config["receivers"]:
        target = (
            f"{console_url}/api/v1/alertmanager" if receiver["name"] == "sidecar" else pager_url
        )
        receiver["webhook_configs"] = [{"url": target, "send_resolved": True}]
    return config


def _prometheus(metrics_port: int, manager: int) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    every = f"{SCRAPE_SECONDS}s"
    config["global"] = {"scrape_interval": every, "evaluation_interval": every}
    targets = {"static_configs": [{"targets": [f"127.0.0.1:{manager}"]}]}
    config["alerting"] = {"alertmanagers": [targets]}
    job = config["scrape_configs"][0]
    job |= {"scrape_interval": every, "scrape_timeout": every}
    job["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    return config


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(document))


@contextmanager
def _pager() -> Iterator[tuple[Pager, str]]:
    pager = Pager()

    class Reader(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            pager.messages.append((time.time(), json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reader)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield pager, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def _process(folder: Path, program: str, *options: str) -> Iterator[None]:
    with (folder / f"{Path(program).name}.log").open("wb") as log:
        process = subprocess.Popen([program, *options], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def free_ports(count: int) -> list[int]:
    """Return distinct free ports; all are held until the last is known."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
