"""Generated files are what the code generates, and the documents say what the code does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sidecar import errors
from sidecar.cli import main
from sidecar.config import SidecarConfig
from sidecar.errors import SidecarError
from sidecar.metrics import render_files

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]


def golden(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the generator of a project folder with this project's code."""
    return subprocess.run(
        [sys.executable, str(root / "tools" / "golden.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("path", sorted(render_files()))
def test_a_committed_file_is_the_generated_one(path: str) -> None:
    """Rules, dashboard, runbooks and documents are those of this code; ``make golden`` mends it."""
    assert (ROOT / path).read_text(encoding="utf-8") == render_files()[path]


def test_the_checker_finds_nothing() -> None:
    """``tools/golden.py --check`` is content with the project as it is."""
    done = golden(ROOT, "--check")

    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_checker_names_what_differs_and_the_writer_mends_it(tmp_path: Path) -> None:
    """Changed, missing and left-over files are named; one run puts all right."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    assert golden(tmp_path).returncode == 0
    (tmp_path / "docs/metrics.md").write_text("# edited\n")
    (tmp_path / "docs/errors.md").unlink()
    (tmp_path / "docs/alerts/SidecarOld.md").write_text("# gone\n")

    found = golden(tmp_path, "--check")
    unchanged = (tmp_path / "docs/metrics.md").read_text()
    golden(tmp_path)
    after = golden(tmp_path, "--check")

    named = set(re.findall(r"differs: (\S+)", found.stdout))
    assert found.returncode == 1
    assert named == {"docs/metrics.md", "docs/errors.md", "docs/alerts/SidecarOld.md"}
    assert unchanged == "# edited\n"
    assert after.returncode == 0
    assert not (tmp_path / "docs/alerts/SidecarOld.md").exists()


def test_every_error_is_documented_once() -> None:
    """Codes are unique, and each has a row that says who mends it."""
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SidecarError)
    ]
    text = (ROOT / "docs/errors.md").read_text()

    rows = re.findall(r"^\| `(SC\d{3})` \| `(\w+)` \|.*\| (.+) \|$", text, re.MULTILINE)
    expected = sorted((kind.code, kind.__name__) for kind in kinds if kind is not SidecarError)
    assert expected == [(code, name) for code, name, _ in rows]
    assert len({code for code, _, _ in rows}) == len(rows)
    assert all(mender for _, _, mender in rows)


def test_every_configuration_key_is_documented() -> None:
    """Each key of each section has its row, with the default that the code has."""
    text = (ROOT / "docs/configuration.md").read_text()

    rows = dict(re.findall(r"^\| `(\S+)` \| .*? \| (.*?) \| .+ \|$", text, re.MULTILINE))
    assert set(SidecarConfig.model_fields) <= set(rows)
    for name, section in SidecarConfig.model_fields.items():
        inner = getattr(section.annotation, "model_fields", {})
        assert {f"{name}.{key}" for key in inner} <= set(rows)
    assert rows["statistics.window_seconds"] == "`10.0`"
    assert rows["flags[].feature"] == "*required*"
    assert rows["models[].input.size"] == "`224`"


def test_every_command_in_a_runbook_exists() -> None:
    """Whoever pastes a command at night does not meet a usage error: groups and options are real."""
    texts = "\n".join(path.read_text() for path in (ROOT / "docs/alerts").glob("*.md"))
    context = click.Context(main)

    lines = re.findall(r"sidecar ((?:feature|baseline|job|check|rules)) (\w+)([^`\n]*)", texts)

    assert len(lines) >= 8
    for group, name, rest in lines:
        found = main.get_command(context, group)
        assert isinstance(found, click.Group)
        command = found.get_command(context, name)
        assert command is not None, f"sidecar {group} {name}"
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options
