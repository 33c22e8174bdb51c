"""``sidecar rules``: what is generated from the metrics catalogue, and checks of rules over it."""

import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sidecar.metrics import check_rules, render_rule_tests, render_rules

# The defaults give the committed file.
_OPTIONS = (
    click.option(
        "--console-url", default="http://127.0.0.1:8080", show_default=True, help="Console."
    ),
    click.option(
        "--grafana-url", default="http://127.0.0.1:3000", show_default=True, help="Grafana."
    ),
    click.option(
        "--runbook-url",
        default="http://127.0.0.1:9464/runbooks",
        show_default=True,
        help="Runbooks; every sidecar serves them.",
    ),
    click.option("--job", default="sidecar", show_default=True, help="Scrape job of the sidecars."),
    click.option(
        "--for-seconds",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="How long a spike or a shift must last before it is told.",
    ),
    click.option(
        "--keep-firing-seconds",
        "keep_seconds",
        type=click.IntRange(min=0),
        default=120,
        show_default=True,
        help="How long it is told after it was last seen: longer than a restart of the sidecar.",
    ),
    click.option(
        "--window-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        help="Detection window: statistics.window_seconds.",
    ),
)

_NO_PROMTOOL = "promtool is not on PATH (it comes with Prometheus)"


@click.group()
def rules() -> None:
    """Render, check and test alert rules over the metrics catalogue."""


def _rendered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of rendering; it gets them as one mapping."""

    @functools.wraps(command)
    def run(*, to: Path | None = None, **options: Any) -> None:
        command(options, to) if command.__name__ == "render" else command(options)

    return functools.reduce(lambda found, option: option(found), reversed(_OPTIONS), run)


@rules.command()
@click.option(
    "--to", type=click.Path(dir_okay=False, path_type=Path), help="File; default: standard output."
)
@_rendered
def render(options: dict[str, Any], to: Path | None) -> None:
    """Print Prometheus alert rules whose links start with your addresses."""
    _write(render_rules(**options), to)


@rules.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Label your Prometheus adds, such as cluster; repeatable.",
)
def check(files: tuple[Path, ...], labels: tuple[str, ...]) -> None:
    """Check rule FILES over the sidecar's metrics; exit 1 if something is wrong.

    Metrics and labels must exist, every alert needs a runbook_url, and labels must have few values.
    PromQL is parsed by promtool where it is on PATH.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        click.echo(f"{_NO_PROMTOOL}: PromQL is not parsed, all else is checked", err=True)
    outcomes = [_check_one(path, labels, promtool) for path in files]
    if not all(outcomes):
        sys.exit(1)


def _check_one(path: Path, labels: tuple[str, ...], promtool: str | None) -> bool:
    """Print what is wrong with a file; return whether nothing is."""
    try:
        found = check_rules(path.read_text(encoding="utf-8"), labels)
    except UnicodeDecodeError:
        click.echo(f"{path}: file: is no UTF-8 text")
        return False
    for finding in found.findings:
        click.echo(f"{path}: {finding.where}: {finding.what}")
    said = _complaint(promtool, path) if promtool else ""
    if said:
        click.echo(f"{path}: promtool: {said}")
    if said or found.findings:
        return False
    by = "" if promtool else ", PromQL not parsed"
    click.echo(f"{path}: SUCCESS: {found.alerts} alerts, {found.recordings} recording rules{by}")
    return True


def _complaint(promtool: str, path: Path) -> str:
    """Return what promtool has against a rule file; empty: nothing."""
    done = _run(promtool, "check", "rules", str(path))
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(("Checking", "FAILED")))


@rules.command()
@_rendered
def test(options: dict[str, Any]) -> None:
    """Run the shipped unit tests against rules rendered with your options; exit 1 if one fails.

    Needs promtool on PATH.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        raise click.ClickException(f"{_NO_PROMTOOL}: install it, or run the tests where it is")
    files = render_rule_tests(**options)
    if "spikes.yaml" not in files:
        click.echo(
            f"--for-seconds {options['for_seconds']} --keep-firing-seconds {options['keep_seconds']}: "
            "can be tested only up to half an hour, and the second above 0 and a twentieth of the first; "
            "what cannot is left out",
            err=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**files, "rules.yaml": render_rules(**options)}.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        done = _run(promtool, "test", "rules", *files, folder=folder)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    if done.returncode:
        sys.exit(1)


def _run(*command: str, folder: str | None = None) -> subprocess.CompletedProcess[str]:
    # promtool as found on PATH, with file names of our own or checked by click.
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603


def _write(text: str, to: Path | None) -> None:
    if to is None:
        click.echo(text, nl=False)
    else:
        try:
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(to), error.strerror) from error
        click.echo(f"{to}: {len(text)} characters", err=True)
