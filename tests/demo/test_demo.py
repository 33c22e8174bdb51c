"""The demo as people run it: one command, every process real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from demo.layout import Programs
from sidecar.testing import wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

LIMIT_SECONDS = 240
"""What the demo may take after set-up, on two cores."""

EMBEDDED = ("The daemon's detectors fire", "The alerts started portrait jobs")
WHOLE_WAY = (
    "Baseline of every feature is learned",
    "Everyday traffic raises no alarm",
    EMBEDDED[0],
    "Prometheus: the alerts are pending",
    "Prometheus: the alerts are firing",
    "Alertmanager has them",
    EMBEDDED[1],
    "Portrait of “animal face” arrives",
    "Portrait of “tiger cat” arrives",
    "The other flagged features stayed quiet",
)


def left_of(folder: Path) -> list[str]:
    """Return the command lines of running processes that name the demo's folder."""
    return [line for line in _command_lines() if str(folder) in line]


def _command_lines() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield " ".join(process.cmdline())
        except psutil.Error:
            continue  # it ended meanwhile


def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    """Every stage comes to its end in order and in time, the portraits are there, nothing is left."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--exit", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS + 30,
        check=False,
    )
    expected = WHOLE_WAY if Programs.find().complete else EMBEDDED
    places = [done.stdout.find(f"✓ {title}") for title in expected]

    assert 0 == done.returncode, done.stdout + done.stderr
    assert -1 not in places, done.stdout
    assert sorted(places) == places
    for name, unit in (("animal-face", "_blocks.15/channel/261"), ("tiger-cat", "_fc/logit/282")):
        manifest = json.loads((out / f"portrait-{name}.json").read_text())
        with Image.open(out / f"portrait-{name}.png") as picture:
            assert (256, 256) == picture.size
        assert manifest["feature"].endswith(unit)
        assert manifest["activation"]["plain"] > 2 * manifest["activation"]["start"]
    assert [] == left_of(out)


def test_a_demo_that_is_stopped_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGTERM in the middle of the story ends every process the demo started."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "demo", "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        try:
            running = wait_until(
                lambda: any("demo.server" in line for line in left_of(out)) and left_of(out), 60
            )
            demo.send_signal(signal.SIGTERM)
            output, _ = demo.communicate(timeout=60)
        finally:
            demo.kill()

    assert len(running) >= 2
    assert 130 == demo.returncode
    assert "Interrupted" in output
    assert wait_until(lambda: not left_of(out), 20)


def test_a_demo_without_its_packages_says_what_to_install() -> None:
    """In a bare Python there is a sentence to act on, not a traceback."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        check=False,
    )

    assert 2 == done.returncode
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
