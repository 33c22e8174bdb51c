"""``sidecar serve`` and ``sidecar check``."""

import contextlib
import io
import logging
import sys
from pathlib import Path
from typing import NoReturn, TextIO, cast

import click
import structlog

from sidecar.config import SidecarConfig, load
from sidecar.errors import ConfigError, SidecarError

EXIT_USAGE = 2

_CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="SIDECAR_CONFIG",
    default=Path("sidecar.yaml"),
    show_default=True,
    help="Configuration file.",
)


@click.command()
@_CONFIG
def serve(path: Path) -> None:
    """Run the daemon until SIGTERM; every problem at start-up is listed, exit 2."""
    config = _load(path)
    _log_to_stderr(config.log_level)
    from sidecar.daemon import serve as run  # noqa: PLC0415 - only this command pays for the daemon

    try:
        run(config)
    except SidecarError as error:
        _give_up(error)


@click.group()
def check() -> None:
    """Check files before they are used."""


@check.command(name="config")
@_CONFIG
def check_config(path: Path) -> None:
    """Check a configuration file; list every problem with its line, exit 2 if there is one."""
    config = _load(path)
    models = ", ".join(model.name for model in config.models) or "none"
    click.echo(f"{path}: ok; models: {models}; flagged features: {len(config.flags)}")


def _load(path: Path) -> SidecarConfig:
    try:
        return load(path)
    except ConfigError as error:
        _give_up(error)


def _give_up(error: SidecarError) -> NoReturn:
    click.echo(f"{error.code}: the sidecar cannot start:", err=True)
    for line in error.message.splitlines():
        click.echo(f"  {line}", err=True)
    sys.exit(EXIT_USAGE)


class _Unfailing(io.TextIOBase):
    """A log that is lost where it cannot be written: a full disk behind it must not end a thread."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what can be handed over."""
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()


def _log_to_stderr(level: str) -> None:
    people = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if people else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
