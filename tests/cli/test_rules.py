"""``sidecar rules``: what people render, check and test."""

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.metrics import render_rules

pytestmark = pytest.mark.service

WRONG = """\
groups:
  - name: mine
    rules:
      - alert: Mine
        expr: sidecar_feature_stat == 3
"""


def run(*arguments: str) -> Result:
    """Run ``sidecar rules``."""
    return CliRunner().invoke(main, ["rules", *arguments])


@pytest.fixture
def no_promtool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave nothing on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def promtool() -> None:
    """Skip where Prometheus is not installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")


def test_without_options_the_committed_file_is_rendered() -> None:
    """The defaults of the command are those of the file."""
    found = run("render")

    assert 0 == found.exit_code
    assert Path("deploy/prometheus/rules/sidecar.yaml").read_text() == found.output


@pytest.mark.usefixtures("no_promtool")
def test_a_right_file_is_said_to_be(tmp_path: Path) -> None:
    """What was found is counted, and what could not be checked is said."""
    path = tmp_path / "rules.yaml"
    path.write_text(run("render").output)

    found = run("check", str(path))

    assert 0 == found.exit_code
    assert f"{path}: SUCCESS: 24 alerts, 4 recording rules, PromQL not parsed\n" == found.stdout
    assert "promtool is not on PATH" in found.stderr


@pytest.mark.usefixtures("no_promtool")
def test_a_wrong_file_is_told_by_place(tmp_path: Path) -> None:
    """Each finding names file, group and rule; one wrong file among right ones fails the check."""
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(run("render").output)
    wrong.write_text(WRONG)

    found = run("check", str(right), str(wrong))

    assert 1 == found.exit_code
    assert f"{right}: SUCCESS" in found.stdout
    lines = [line for line in found.stdout.splitlines() if line.startswith(f"{wrong}: mine/Mine: ")]
    assert ["no metric", "has no an"] == [line.rpartition("Mine: ")[2][:9] for line in lines]


@pytest.mark.usefixtures("promtool")
def test_promtool_parses_the_queries(tmp_path: Path) -> None:
    """A query that is no PromQL is found where promtool is, with its words."""
    path = tmp_path / "rules.yaml"
    rule = {"alert": "A", "expr": "sum(up", "annotations": {"runbook_url": "https://wiki"}}
    path.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))

    found = run("check", str(path))

    assert 1 == found.exit_code
    assert f"{path}: promtool: " in found.stdout
    assert "unclosed left parenthesis" in found.stdout


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """A typing error in a name is told apart from a wrong rule."""
    assert 2 == run("check", str(tmp_path / "none.yaml")).exit_code
    assert 2 == run("check").exit_code


def test_bytes_that_are_no_text_are_a_finding(tmp_path: Path) -> None:
    """A picture given by mistake gives no trace."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff")

    found = run("check", str(path))

    assert (1, f"{path}: file: is no UTF-8 text\n") == (found.exit_code, found.stdout)


@pytest.mark.usefixtures("promtool")
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--for-seconds", "45", "--window-seconds", "2.5", "--job", "models/side-car"),
        ("--for-seconds", "10", "--keep-firing-seconds", "2"),
        ("--console-url", "https://c.example/x/", "--grafana-url", "http://127.0.0.1:8080"),
    ],
)
def test_the_shipped_tests_pass_with_any_options(options: tuple[str, ...]) -> None:
    """Links, the job and the waits of the tests are those of the rules."""
    found = run("test", *options)

    assert 0 == found.exit_code, found.output
    assert 6 == found.stdout.count("SUCCESS")
    assert "" == found.stderr


@pytest.mark.usefixtures("promtool")
@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--for-seconds", "1801"), {"spikes.yaml", "waits.yaml", "onset.yaml"}),
        (("--keep-firing-seconds", "0"), {"spikes.yaml", "waits.yaml"}),
        (("--for-seconds", "41", "--keep-firing-seconds", "2"), {"spikes.yaml", "onset.yaml"}),
    ],
)
def test_what_cannot_be_tested_is_said(options: tuple[str, ...], left: set[str]) -> None:
    """Waits too long for promtool, and alerts that are not kept: their tests are left out."""
    found = run("test", *options)

    assert 0 == found.exit_code, found.output
    assert " ".join(options) in found.stderr
    cases = {path.name for path in Path("sidecar/metrics/cases").glob("*.yaml")}
    assert left == {name for name in cases if name not in found.stdout}


@pytest.mark.usefixtures("promtool")
@pytest.mark.parametrize("wrong", [{"for_seconds": 0}, {"for_seconds": 50}, {"keep_seconds": 9}])
def test_the_tests_of_waiting_can_fail(
    wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that wait or are kept for another time than was asked for are found."""
    render = "sidecar.cli.rules.render_rules"
    monkeypatch.setattr(render, lambda **options: render_rules(**options | wrong))

    found = run("test", "--for-seconds", "45", "--keep-firing-seconds", "10")

    assert 1 == found.exit_code
    assert "FAILED" in found.output


@pytest.mark.usefixtures("promtool")
def test_a_test_that_fails_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are run against the rules of the same options, and their outcome is the command's."""
    render = "sidecar.cli.rules.render_rules"
    monkeypatch.setattr(render, lambda **_: "groups: []\n")

    found = run("test")

    assert 1 == found.exit_code
    assert "FAILED" in found.output


@pytest.mark.usefixtures("no_promtool")
def test_without_promtool_nothing_is_said_to_be_tested() -> None:
    """There is an error with what to do, and no success."""
    found = run("test")

    assert 1 == found.exit_code
    assert "promtool is not on PATH" in found.stderr
    assert "SUCCESS" not in found.output
