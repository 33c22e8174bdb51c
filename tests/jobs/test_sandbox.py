"""What a worker may not do, asked of the kernel itself."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.config import JobsConfig
from sidecar.errors import ConfigError
from sidecar.jobs import JobState, confine, runner
from sidecar.jobs.assignment import confined
from tests.jobs.bench import Bench

pytestmark = pytest.mark.e2e

PROBE = Path(__file__).with_name("sandbox_probe.py")

needs_kernel = pytest.mark.skipif(
    bool(confine.missing()), reason=f"this kernel has no {confine.missing()}"
)


def probe(folder: Path, *questions: str, **config: object) -> dict[str, object]:
    """Run the probe in the sandbox; return what it was answered, by question."""
    command = confined(
        [sys.executable, str(PROBE), str(os.getpid()), *questions],
        JobsConfig(**config),  # type: ignore[arg-type]  # checked by pydantic
        [folder],
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """Return the folder that may be written in."""
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "victim").write_text("whole", encoding="ascii")
    return folder


@needs_kernel
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("inet", errno.EACCES),
        ("inet6", errno.EACCES),
        ("netlink", errno.EACCES),
        ("packet", errno.EACCES),
        ("io_uring", errno.EPERM),
        ("write_outside", errno.EACCES),
        ("truncate_outside", errno.EACCES),
        ("remove_outside", errno.EACCES),
        ("link_outside", errno.EACCES),
        ("rename_out", errno.EACCES),
        ("chmod_outside", errno.EPERM),
        ("chown_outside", errno.EPERM),
        ("attribute_outside", errno.EPERM),
        ("fork", errno.EPERM),
        ("spawn", errno.EPERM),
        ("signal_parent", errno.EPERM),
        ("large_file", errno.EFBIG),
        ("memory", "MemoryError"),
        ("raise_limit", "ValueError"),
    ],
)
def test_the_kernel_refuses(inside: Path, question: str, expected: object) -> None:
    """Each by its own error, and nothing has changed outside."""
    found = probe(inside, question)

    assert expected == found[question]
    assert "whole" == (inside.parent / "victim").read_text(encoding="ascii")
    assert ["inside", "victim"] == sorted(path.name for path in inside.parent.iterdir())


@needs_kernel
def test_what_a_worker_needs_is_left(inside: Path) -> None:
    """Reading anywhere, writing in its folder, threads, local sockets, and /dev/null."""
    questions = ("read", "write_inside", "thread", "unix_socket", "null")

    assert dict.fromkeys(questions, "done") == probe(inside, *questions)


@needs_kernel
def test_processes_are_granted_where_configured(inside: Path) -> None:
    """A factory that runs a tool can be allowed to; the rest of the sandbox holds for the tool."""
    found = probe(inside, "spawn", "fork", "spawn_write_outside", "inet", subprocesses=True)

    assert ("done", "done", errno.EACCES) == (found["spawn"], found["fork"], found["inet"])
    assert 0 != found["spawn_write_outside"]
    assert "whole" == (inside.parent / "victim").read_text(encoding="ascii")


@needs_kernel
def test_the_worker_is_told_what_was_taken(inside: Path) -> None:
    """For the manifest."""
    report = probe(inside, "report")["report"]

    assert {
        "mode": "auto",
        "applied": ["landlock", "seccomp", "capabilities", "limits"],
        "missing": {},
    } == report


@needs_kernel
def test_root_keeps_one_capability(inside: Path) -> None:
    """That of reading what belongs to others; nobody else has any."""
    held = probe(inside, "capabilities")["capabilities"]

    assert held == (4 if os.geteuid() == 0 else 0)


def test_without_a_sandbox_the_command_is_as_it_was() -> None:
    """Off is off."""
    assert ("a", "b") == confined(["a", "b"], JobsConfig(sandbox="off"), [])


LACKING = """
import sys
from sidecar.jobs import confine
confine._abi = lambda: 0
confine._MACHINES = {}
sys.exit(confine.main(sys.argv))
"""


@pytest.mark.parametrize(("mode", "status"), [("auto", 0), ("require", 5)])
def test_a_kernel_without_it_is_told_or_refused(inside: Path, mode: str, status: int) -> None:
    """Auto goes on and says what is missing; require ends before the command."""
    *_, settings, program = confined(["program"], JobsConfig(sandbox=mode), [inside])  # type: ignore[arg-type]  # one of the literals
    command = [sys.executable, "-c", LACKING, settings, sys.executable, str(PROBE), "0", "report"]
    assert "program" == program

    done = subprocess.run(
        command,
        cwd=Path(confine.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert status == done.returncode, done.stderr
    if mode == "auto":
        report = json.loads(done.stdout)["report"]
        assert ["limits"] == report["applied"]
        assert {"landlock", "seccomp", "capabilities"} == set(report["missing"])
    else:
        assert "the sandbox is not whole" in done.stderr


def test_require_is_checked_at_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon says what the kernel lacks, and does not start."""
    monkeypatch.setattr(runner, "missing", lambda: ("Landlock of Linux 6.2 or later",))

    with pytest.raises(ConfigError, match=r"jobs.sandbox require: .* no Landlock"):
        bench.runner(sandbox="require").start()


@needs_kernel
def test_a_scripted_child_works_in_the_sandbox(bench: Bench) -> None:
    """Its folder and its checkpoint are its own to write."""
    bench.runner(sandbox="require").start()

    assert JobState.DONE == bench.ended(bench.submit("resumable", 1)).state
