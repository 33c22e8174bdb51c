"""No child outlives the demo, whatever ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.processes import Child, ChildEnded, Children
from sidecar.testing import wait_until

pytestmark = pytest.mark.service

DEADLINE = 20.0
ROOT = Path(__file__).parents[2]

SLEEP = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEP}"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def children(tmp_path: Path) -> Children:
    """Return an empty family in a folder of its own."""
    return Children(tmp_path, tmp_path / "logs", os.environ)


def gone(pid: int) -> bool:
    """Whether no such process runs; a zombie that waits for init counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def read(path: Path) -> str:
    """Return what a log holds so far."""
    return path.read_text().strip() if path.exists() else ""


def test_children_and_their_children_end_with_the_block(children: Children) -> None:
    """Leaving the block ends the whole process group."""
    with children:
        child = children.start("parent", [sys.executable, "-c", PARENT])
        grandchild = int(wait_until(lambda: read(child.log), DEADLINE))

    assert child.process.returncode == -signal.SIGTERM
    assert wait_until(lambda: gone(grandchild), DEADLINE)


def test_an_error_in_the_block_ends_them_too(children: Children) -> None:
    """An exception leaves no child behind."""

    def fail() -> None:
        with children:
            started.append(children.start("sleeper", [sys.executable, "-c", SLEEP]))
            raise ArithmeticError

    started: list[Child] = []
    with pytest.raises(ArithmeticError):
        fail()

    assert started[0].process.returncode == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time to finish comes SIGKILL."""
    monkeypatch.setattr("demo.processes.STOP_SECONDS", 0.3)
    with children:
        child = children.start("stubborn", [sys.executable, "-c", STUBBORN])
        wait_until(lambda: read(child.log) == "up", DEADLINE)

    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_killing_the_demo_ends_its_children(tmp_path: Path) -> None:
    """Kill -9 gives the demo no chance to clean up; the kernel does it."""
    script = f"""
import os, sys, time
from pathlib import Path
from demo.processes import Children
child = Children(Path("."), Path({str(tmp_path)!r}), os.environ).start(
    "sleeper", [sys.executable, "-c", {SLEEP!r}])
print(child.process.pid, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        child = int(demo.stdout.readline())
        alive = not gone(child)
        demo.kill()

    assert alive
    assert wait_until(lambda: gone(child), DEADLINE)


def test_a_child_that_ends_is_told_with_its_log(children: Children) -> None:
    """The message holds the status and the last lines the child wrote."""
    with children:
        child = children.start("daemon", [sys.executable, "-c", "raise SystemExit('no weights')"])
        child.process.wait(DEADLINE)
        with pytest.raises(ChildEnded, match=r"daemon ended with exit status 1(?s:.*)no weights"):
            children.check()


def test_a_missing_program_is_told(children: Children) -> None:
    """A program that is not there is an error with its name, not a traceback."""
    with children, pytest.raises(ChildEnded, match="/nowhere/prometheus"):
        children.start("prometheus", ["/nowhere/prometheus"])
