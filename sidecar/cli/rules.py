"""``sidecar rules``: what is generated from the metrics catalogue."""

from pathlib import Path

import click

from sidecar.metrics import render_rules


@click.group()
def rules() -> None:
    """Render alert rules from the metrics catalogue."""


@rules.command()
@click.option("--console-url", default="http://127.0.0.1:8080", show_default=True, help="Console.")
@click.option("--grafana-url", default="http://127.0.0.1:3000", show_default=True, help="Grafana.")
@click.option("--runbook-url", default=None, help="Where the runbooks are; default: the sidecar.")
@click.option("--job", default="sidecar", show_default=True, help="Scrape job of the sidecars.")
@click.option("--for-seconds", default=30, show_default=True, help="How long a spike must last.")
@click.option(
    "--to", type=click.Path(dir_okay=False, path_type=Path), help="File; default: standard output."
)
def render(
    *,
    console_url: str,
    grafana_url: str,
    runbook_url: str | None,
    job: str,
    for_seconds: int,
    to: Path | None,
) -> None:
    """Print Prometheus alert rules whose links start with your addresses."""
    links = {"console_url": console_url, "grafana_url": grafana_url}
    if runbook_url:
        links["runbook_url"] = runbook_url
    _write(render_rules(**links, for_seconds=for_seconds, job=job), to)


def _write(text: str, to: Path | None) -> None:
    if to is None:
        click.echo(text, nl=False)
    else:
        try:
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(to), error.strerror) from error
        click.echo(f"{to}: {len(text)} characters", err=True)
