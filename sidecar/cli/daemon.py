"""``sidecar serve`` and ``sidecar check``."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
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
@click.option(
    "--daemon",
    "address",
    default="",
    help="Look too whether every flag fits a layer that the daemon at this gRPC address knows.",
)
def check_config(path: Path, address: str) -> None:
    """Check a configuration file; list every problem with its line, exit 2 if there is one.

    Says too what the distributions of a layer will cost, and how many features fit. Which layers a model
    has is known to its hooks alone: with --daemon flags are compared with what they have registered.
    """
    config = _load(path)
    models = ", ".join(model.name for model in config.models) or "none"
    click.echo(f"{path}: ok; models: {models}; flagged features: {len(config.flags)}")
    for line in _costs(config):
        click.echo(line)
    click.echo(_rows_needed(config))
    for line in _audits(config):
        click.echo(line)
    if address and (lost := list(_unmatched(config, address))):
        click.echo(f"{path}: {len(lost)} of {len(config.flags)} flags fit no feature:", err=True)
        for line in lost:
            click.echo(f"  {line}", err=True)
        sys.exit(EXIT_USAGE)


def _unmatched(config: SidecarConfig, address: str) -> Iterator[str]:
    """Yield why flags fit none of the layers that a running daemon knows."""
    from sidecar.cli.layers import known_layers  # noqa: PLC0415 - gRPC, for this option alone
    from sidecar.features import FeatureSelector  # noqa: PLC0415 - numpy, as above
    from sidecar.monitor import explain  # noqa: PLC0415 - as above

    layers = known_layers(address)
    for at, flag in enumerate(config.flags):
        if (found := explain(FeatureSelector.parse(flag.feature), layers)) is not None:
            yield f"flags.{at}: {found.flag}: {found.words}"


def _audits(config: SidecarConfig) -> Iterator[str]:
    """Yield what each audit looks at, and when."""
    if not config.audits:
        return
    from sidecar.audits import describe  # noqa: PLC0415 - the job room, for audits alone

    for audit in config.audits:
        yield f"  {describe(audit, config, time.time())}"


def _costs(config: SidecarConfig) -> Iterator[str]:
    """Yield what distributions cost, a line for each level of detail."""
    from sidecar.monitor import budget_of  # noqa: PLC0415 - numpy, for this command alone
    from sidecar.stats import Binning, Detail, SparseBank  # noqa: PLC0415 - as above

    budget = budget_of(config.statistics)
    binning = Binning(mantissa_bits=config.statistics.mantissa_bits)
    for detail in Detail:
        each, fit = detail.feature_bytes(binning), budget.fitting(detail, binning)
        bits = detail.binning(binning).mantissa_bits
        yield (
            f"  a layer of 1,000 features at {detail} detail ({bits} mantissa bits): "
            f"{_megabytes(1000 * each)}; {fit:,} features fit"
        )
    flagged = budget.flagged_feature_bytes(binning)
    fit = budget.flagged_memory_bytes // flagged
    bits = budget.flagged_binning(binning).mantissa_bits
    yield (
        f"  a flagged feature, {budget.flagged_windows} windows ({bits} mantissa bits): "
        f"{_megabytes(flagged)}; {fit:,} fit"
    )
    latents = config.statistics.latent_limit
    each = SparseBank.LATENT_BYTES
    yield f"  1,000 latents of sparse layers: {_megabytes(1000 * each)} at most; {latents:,} fit"
    total = budget.memory_bytes + budget.flagged_memory_bytes
    yield (
        f"  distributions take at most {_megabytes(total)}, and where there are sparse layers "
        f"{_megabytes(latents * each)} more"
    )


def _rows_needed(config: SidecarConfig) -> str:
    """Return how many rows a window should have for the quantile of the spike test."""
    rows = round(1.0 / (1.0 - config.spike.quantile))
    return (
        f"  spike.quantile {config.spike.quantile:.10g}: one row in {rows:,} is beyond it; in windows of fewer "
        "sampled rows less than one request exceeds, and small spikes are found late or not"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


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
