"""Where everything of one demo run lives: ports, files, and the three configuration files."""

import contextlib
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.lite0 import names_path
from demo.story import BASELINE_REQUESTS, BASELINE_SECONDS, FLAGGED, INPUT, MODEL, QUANTILE

FOR_SECONDS = 5
"""How long a spike must last before Prometheus' alert fires: people see it pending. The shipped rules do
not wait."""

ROOT = Path(__file__).resolve().parent.parent
"""The checkout; children run here and the worker imports ``demo.lite0`` from here."""

MARKER = ".sidecar-demo"
"""File that says a folder is the demo's own, which may be emptied."""

_SOCKET_PATH_LIMIT = 100  # a unix socket's path has at most 107 bytes


@dataclass(frozen=True, slots=True)
class Programs:
    """Where Prometheus and Alertmanager are installed; None where they are not."""

    prometheus: str | None
    alertmanager: str | None

    @classmethod
    def find(cls) -> "Programs":
        """Look on the PATH; Debian's Alertmanager has a prefix."""
        alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        return cls(shutil.which("prometheus"), alertmanager)

    @property
    def complete(self) -> bool:
        """Whether alerts can take the whole way."""
        return self.prometheus is not None and self.alertmanager is not None


@dataclass(frozen=True, slots=True)
class Site:
    """Addresses and files of one run.

    Attributes:
        folder: Everything the run writes.
        grpc: The daemon's gRPC address as ``sidecar.yaml`` takes it.
        lanes: Its unix sockets for hooks; none where the folder's path is too long for one.
        hooks: Where the hooks send: the lane, or else gRPC.
        console: URL of the console.
        metrics: host:port of ``/metrics``.
        server: URL of the image server.
        prometheus: URL of Prometheus.
        alertmanager: URL of Alertmanager.
    """

    folder: Path
    grpc: str
    lanes: tuple[str, ...]
    hooks: str
    console: str
    metrics: str
    server: str
    prometheus: str
    alertmanager: str

    @classmethod
    def prepare(cls, folder: Path) -> "Site":
        """Empty the folder of what an earlier run left, and choose free ports.

        Raises:
            FileExistsError: There is something in the folder, and no earlier run made it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        if any(folder.iterdir()) and not marker.exists():
            raise FileExistsError(f"{folder} holds files of yours: name an empty folder with --out")
        marker.touch()
        for name in ("state", "prometheus", "alertmanager", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for left in (*folder.glob("portrait-*"), folder / "sidecar.sock"):
            left.unlink(missing_ok=True)
        grpc, web, metrics, server, prometheus, alertmanager = _free_ports(6)
        path = folder / "sidecar.sock"
        short = len(str(path).encode()) < _SOCKET_PATH_LIMIT
        return cls(
            folder=folder,
            grpc=f"127.0.0.1:{grpc}",
            lanes=(f"unix://{path}",) if short else (),
            hooks=f"unix://{path}" if short else f"grpc://127.0.0.1:{grpc}",
            console=f"http://127.0.0.1:{web}",
            metrics=f"127.0.0.1:{metrics}",
            server=f"http://127.0.0.1:{server}",
            prometheus=f"http://127.0.0.1:{prometheus}",
            alertmanager=f"http://127.0.0.1:{alertmanager}",
        )

    def write(self, *, alertmanager: bool) -> None:
        """Write ``sidecar.yaml``, ``prometheus.yml`` and ``alertmanager.yml``.

        Args:
            alertmanager: Whether alerts take the whole way; otherwise the daemon asks for portraits
                from its own detectors.
        """
        self._write("sidecar.yaml", sidecar_document(self, direct=not alertmanager))
        self._write("prometheus.yml", prometheus_document(self))
        self._write("alertmanager.yml", alertmanager_document(self))

    def _write(self, name: str, document: dict[str, Any]) -> None:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
        (self.folder / name).write_text(text, encoding="utf-8")


def sidecar_document(site: Site, *, direct: bool) -> dict[str, Any]:
    """Return the daemon's configuration.

    Everything is faster than in production, so that the story fits into minutes: windows of 2 s
    instead of 10, a baseline of half a minute instead of an hour.
    """
    return {
        "listen": {
            "grpc": [site.grpc],
            "lane": list(site.lanes),
            "metrics": site.metrics,
            "web": site.console.removeprefix("http://"),
        },
        "state_dir": str(site.folder / "state"),
        "models": [
            {
                "name": MODEL,
                "factory": "demo.lite0:build",
                "labels": str(names_path()),
                "input": INPUT,
            }
        ],
        "flags": [
            {
                "feature": one.selector,
                "name": one.name,
                "severity": one.severity,
                "owner": "trust-and-safety",
            }
            for one in FLAGGED
        ],
        "statistics": {
            "window_seconds": 2.0,
            "warmup_rows": 64,
            "baseline_min_requests": BASELINE_REQUESTS,
            "baseline_min_seconds": BASELINE_SECONDS,
            "history_seconds": 600.0,
        },
        # The 99.9 % quantile of the default needs thousands of baseline requests.
        "spike": {"quantile": QUANTILE},
        # One thread: the server computes on the other core.
        "jobs": {"threads": 1, "python_path": [str(ROOT)], "time_limit_seconds": 180.0},
        "store": {"snapshot_seconds": 10.0},
        "alerts": {"console_url": site.console, "direct": direct},
    }


def prometheus_document(site: Site) -> dict[str, Any]:
    """Return Prometheus' configuration: one scrape target, the rules, and where alerts go."""
    return {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(site.folder / "rules.yml")],
        "alerting": {
            "alertmanagers": [
                {"static_configs": [{"targets": [site.alertmanager.removeprefix("http://")]}]}
            ]
        },
        "scrape_configs": [
            {"job_name": "sidecar", "static_configs": [{"targets": [site.metrics]}]}
        ],
    }


def alertmanager_document(site: Site) -> dict[str, Any]:
    """Return Alertmanager's configuration: everything goes to the daemon's webhook."""
    webhook = {"url": f"{site.console}/api/v1/alertmanager", "send_resolved": True}
    return {
        "route": {
            "receiver": "sidecar",
            "group_by": ["alertname", "model", "layer", "kind", "feature"],
            "group_wait": "1s",
            "group_interval": "5s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "sidecar", "webhook_configs": [webhook]}],
    }


def _free_ports(count: int) -> list[int]:
    """Return distinct free ports; they are all held until the last is known."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
