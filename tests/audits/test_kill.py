"""kill -9 in the middle of a night: a real daemon process, real jobs, one judgement."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.testing import wait_until

pytestmark = pytest.mark.e2e

PATIENCE = 180.0


@contextmanager
def serving(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon until it is killed."""
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def audit(address: str, *arguments: str) -> Result:
    """Run ``sidecar audit`` on the daemon."""
    return CliRunner().invoke(main, ["audit", *arguments, "--address", address])


def job_states(database: Path) -> list[str]:
    """Return the states of all jobs, the oldest first."""
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT state FROM jobs ORDER BY sequence").fetchall()
    return [row[0] for row in rows]


def verdicts(database: Path) -> list[str]:
    """Return the audit entries of nights that were judged."""
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT what FROM events WHERE what LIKE 'audit%'").fetchall()
    return [row[0] for row in rows if row[0] != "audit_started"]


def test_a_night_survives_kill_9_and_is_judged_once(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Killed while a job runs, and again when the first is done; no job is asked for twice."""
    state = tmp_path / "state"
    address = f"unix://{tmp_path}/grpc.sock"
    listen = {"grpc": [address], "lane": [], "metrics": "127.0.0.1:0", "web": "127.0.0.1:0"}
    config = tmp_path / "sidecar.yaml"
    config.write_text(yaml.safe_dump({**settings, "listen": listen, "state_dir": str(state)}))
    database = state / "sidecar.sqlite3"

    with serving(config) as daemon:
        wait_until(lambda: audit(address, "list").exit_code == 0, PATIENCE, "the daemon")
        night = audit(address, "run", "nightly").stdout.strip()
        wait_until(lambda: "running" in job_states(database), PATIENCE, "a running job")
        os.kill(daemon.pid, signal.SIGKILL)
    with serving(config) as daemon:
        wait_until(lambda: "done" in job_states(database), PATIENCE, "a finished job")
        os.kill(daemon.pid, signal.SIGKILL)
    began = time.time()
    with serving(config):
        wait_until(
            lambda: "passed" in audit(address, "show", "nightly").stdout, PATIENCE, "a verdict"
        )
        shown = audit(address, "show", "nightly").stdout
        wait_until(lambda: verdicts(database), PATIENCE, "the audit entry")

    assert ["done", "done"] == job_states(database)
    assert f"night {night}: passed, 1 features pictured" in shown
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT state, ended FROM audit_nights").fetchall()
    assert ["passed"] == [row[0] for row in rows]
    assert rows[0][1] >= began - 60
    assert ["audit_passed"] == verdicts(database)
