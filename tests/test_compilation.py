"""Kernels that are compiled beside the work: when they come, when they do not, and at a stop."""

import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import structlog

from sidecar.compilation import _PROGRAM, CACHE_VARIABLE, Compilation, Loops
from sidecar.features import Capture, LayerKey, LayerSample
from sidecar.memory import give_back
from sidecar.stats import NUMPY, Kernels, SparseBank
from sidecar.testing import running_daemon, wait_until

pytestmark = pytest.mark.service

OTHER = Loops(
    Kernels("other", NUMPY.count, NUMPY.moments, NUMPY.exceed, NUMPY.screen), SparseBank.FALLBACK
)
WRITES = (sys.executable, "-c", f"import os; open(os.environ['{CACHE_VARIABLE}'] + '/it', 'w')")
FAILS = (sys.executable, "-c", "import sys; sys.exit('no such compiler')")
WAITS = (sys.executable, "-c", "import signal; signal.pause()")


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return [path.name for path in folder.iterdir()]


def finished(compilation: Compilation) -> Compilation:
    """Return a compilation that was started, once its outcome is known."""
    compilation.start()
    wait_until(lambda: not compilation.running, 60, "the outcome")
    return compilation


def test_what_a_child_has_cached_is_handed_over(tmp_path: Path) -> None:
    """The cache is a folder of the state directory that nobody else may write."""
    got: list[Loops] = []
    env: dict[str, str] = {}
    cache = tmp_path / "state" / "compiled"

    done = finished(
        Compilation(cache, got.append, command=WRITES, load=lambda: OTHER, environment=env)
    )

    assert ([OTHER], "other", False) == (got, done.kernels, done.failed)
    assert (str(cache), ["it"]) == (env[CACHE_VARIABLE], names(cache))
    assert 0o700 == cache.stat().st_mode & 0o777


def test_a_cache_that_the_environment_names_is_used(tmp_path: Path) -> None:
    """Somebody who set the variable gets what they asked for, and no folder is made."""
    env = {CACHE_VARIABLE: str(tmp_path)}

    finished(
        Compilation(
            tmp_path / "no", lambda _: None, command=WRITES, load=lambda: OTHER, environment=env
        )
    )

    assert ["it"] == names(tmp_path)


@pytest.mark.parametrize("broken", ["child", "load", "folder"])
def test_a_failure_is_shown_and_logged_once(tmp_path: Path, broken: str) -> None:
    """Nothing is handed over, so that what counted until then goes on."""
    got: list[Loops] = []
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / ("file/below" if broken == "folder" else "cache")

    def load() -> Loops:
        raise ImportError("no numba here")

    with structlog.testing.capture_logs() as logs:
        done = finished(
            Compilation(
                folder,
                got.append,
                command=FAILS if broken == "child" else WRITES,
                load=load,
                environment={},
            )
        )

    assert ([], "numpy", True) == (got, done.kernels, done.failed)
    assert ["kernels_not_compiled"] == [line["event"] for line in logs]
    why = {"child": "no such compiler", "load": "no numba here", "folder": "Not a directory"}
    assert why[broken] in logs[0]["error"]


def test_a_stop_ends_the_child_and_is_no_failure(tmp_path: Path) -> None:
    """A daemon that is stopped in its first seconds waits for no compiler."""
    got: list[Loops] = []
    compilation = Compilation(
        tmp_path / "cache", got.append, command=WAITS, load=lambda: OTHER, environment={}
    )
    compilation.start()

    compilation.stop(60)

    assert ([], False, False) == (got, compilation.failed, compilation.running)


def test_a_daemon_that_is_killed_takes_the_compiler_with_it(tmp_path: Path) -> None:
    """What holds the child's standard input is gone then, whatever ended it."""
    command = (sys.executable, "-c", _PROGRAM.replace("compiled()\n", "signal.pause()\n", 1))
    child = subprocess.Popen(
        [*command[:2], "import signal\n" + command[2]],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        assert child.stdin is not None
        child.stdin.close()

        assert 1 == child.wait(60)


def test_being_ready_waits_for_no_kernels(tmp_path: Path) -> None:
    """While they are being compiled the daemon is ready, counts with numpy, and says so."""
    layer, go_on = LayerKey("m", "r", "layer"), threading.Event()

    def load() -> Loops:
        go_on.wait(240)
        return OTHER

    with running_daemon(tmp_path, load_kernels=load) as running:
        daemon = running.daemon
        ready = urllib.request.urlopen(f"{running.metrics_url}/readyz", timeout=5)
        daemon.monitor.register(layer, 2, Capture(), 1.0)
        rows = np.ones((3, 2), np.float32)
        daemon.monitor.apply(LayerSample(layer, rows, np.arange(3, dtype=np.int32), ()), 1.0)
        while_compiling = metrics(running.metrics_url)
        go_on.set()
        wait_until(lambda: daemon.compilation.kernels == "other", 240, "the kernels")
        after = metrics(running.metrics_url)

    assert 200 == ready.status
    assert 'sidecar_statistics_kernels_info{kernels="numpy"} 1.0' in while_compiling
    assert 'sidecar_statistics_kernels_info{kernels="other"} 1.0' in after
    assert "sidecar_statistics_kernels_failed 0.0" in after
    assert 3 == daemon.monitor.layers()[0].rows


def metrics(url: str) -> list[str]:
    """Return the lines of a scrape."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        return str(answer.read().decode()).splitlines()


def test_unused_memory_can_be_given_back() -> None:
    """On the C library of the machines this runs on."""
    assert give_back() is (sys.platform == "linux")
