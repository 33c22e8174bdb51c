"""Starts the demo's processes and waits until each answers."""

import subprocess
import sys

from demo import stages
from demo.layout import FOR_SECONDS, ROOT, Programs, Site
from demo.processes import Children
from demo.stages import Follower, StageFailed

_SIDECAR = (sys.executable, "-c", "from sidecar.cli import main; main()")

START_SECONDS = 60.0
"""Longest start of one process; the image server takes 4 s on an idle machine."""


def start(follower: Follower, children: Children, site: Site, programs: Programs) -> None:
    """Start daemon, image server and, where both are installed, Prometheus and Alertmanager.

    All are started at once, then waited for one by one.

    Raises:
        StageFailed: One of them does not answer in time.
        ChildEnded: One of them ended.
    """
    config = str(site.folder / "sidecar.yaml")
    waiting = [("daemon", f"http://{site.metrics}/readyz"), ("server", f"{site.server}/healthz")]
    children.start("daemon", [*_SIDECAR, "serve", "--config", config])
    children.start("server", _server(site))
    if programs.prometheus and programs.alertmanager:
        _render_rules(site)
        children.start("alertmanager", _alertmanager(programs.alertmanager, site))
        children.start("prometheus", _prometheus(programs.prometheus, site))
        waiting += [
            ("alertmanager", f"{site.alertmanager}/-/ready"),
            ("prometheus", f"{site.prometheus}/-/ready"),
        ]
    for name, url in waiting:
        log = site.folder / "logs" / f"{name}.log"
        stages.wait_answering(follower, _TITLES[name], url, START_SECONDS, log)


_TITLES = {
    "daemon": "Sidecar daemon",
    "server": "Image server, EfficientNet-Lite0,",
    "alertmanager": "Alertmanager",
    "prometheus": "Prometheus",
}


def _server(site: Site) -> list[str]:
    port = site.server.rpartition(":")[2]
    return [sys.executable, "-m", "demo.server", "--port", port, "--sidecar", site.hooks]


def _render_rules(site: Site) -> None:
    """Have the sidecar write its alert rules, with links to this run's console."""
    options = ["--console-url", site.console, "--for-seconds", str(FOR_SECONDS)]
    options += ["--runbook-url", f"http://{site.metrics}/runbooks"]
    target = ["--to", str(site.folder / "rules.yml")]
    done = subprocess.run(
        [*_SIDECAR, "rules", "render", *options, *target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise StageFailed(f"sidecar rules render failed: {done.stderr.strip()}")


def _prometheus(program: str, site: Site) -> list[str]:
    return [
        program,
        f"--config.file={site.folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={site.folder / 'prometheus'}",
        f"--web.listen-address={site.prometheus.removeprefix('http://')}",
        "--storage.tsdb.retention.time=2h",
        "--log.level=warn",
    ]


def _alertmanager(program: str, site: Site) -> list[str]:
    return [
        program,
        f"--config.file={site.folder / 'alertmanager.yml'}",
        f"--storage.path={site.folder / 'alertmanager'}",
        f"--web.listen-address={site.alertmanager.removeprefix('http://')}",
        "--cluster.listen-address=",  # one instance; it would bind a fixed port otherwise
    ]
