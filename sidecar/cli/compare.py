"""``sidecar compare``: does another model still look for what this one looks for?"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import structlog

from sidecar import compare as comparing
from sidecar.cli.client import DEFAULT_ADDRESS, TIMEOUT_SECONDS, channel
from sidecar.cli.recordings import YAML, told
from sidecar.cli.tables import print_table
from sidecar.config import SidecarConfig, load
from sidecar.errors import InvalidInput, UnsupportedTarget
from sidecar.features import FeatureKey
from sidecar.jobs import Job
from sidecar.recipes import Comparison

EXIT_GATE = 6

_FATES = ("same", "moved", "lost", "new")


@click.command()
@click.argument("model")
@click.argument("other")
@click.option("--dataset", required=True, help="Name of the dataset that both are shown.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="LAYER[/KIND][;VIEW]",
    help="A layer of MODEL; several. Kind channel where none is named. Default: those of its flags.",
)
@click.option(
    "--unit",
    "units",
    multiple=True,
    type=click.IntRange(0),
    help="A unit of each layer that is pictured; several. Default: flagged ones, else the first four.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A recipe value, such as steps=0 for no portraits, or layer=NAME for the layer of OTHER.",
)
@click.option(
    "--fail-on",
    "gate",
    default="",
    metavar="FATE[=LIMIT],...",
    help="Exit with 6 where more units of a layer than that are moved, lost or new: lost,moved=5%.",
)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.json and report.html; made where it is missing.",
)
@click.option(
    "--config", type=YAML, help="Work without a daemon: models and datasets of this file."
)
@click.option("--time-limit", default=0.0, help="Seconds; 0 takes the configured limit.")
@click.option(
    "--address",
    envvar="SIDECAR_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="The daemon's gRPC address, where no --config is given.",
)
def compare(  # noqa: PLR0913 - its options
    *,
    model: str,
    other: str,
    dataset: str,
    layers: tuple[str, ...],
    units: tuple[int, ...],
    settings: tuple[str, ...],
    gate: str,
    to: Path | None,
    config: Path | None,
    time_limit: float,
    address: str,
) -> None:
    """Say what became of the units of MODEL in OTHER, and picture some of them.

    MODEL may name a revision that a daemon watches, as MODEL@REVISION. Every unit of each layer is
    compared; those that are flagged or named are pictured. Exit codes: 0
    done, and the gate holds; 6 done, and it does not; the others as of every command.
    """
    with told():
        rules = _rules(gate)
        recipe = _recipe(other, dataset, settings)
        if config is not None:
            answers = _offline(load(config), model, layers, units, recipe, time_limit)
        else:
            answers = _by_daemon(address, model, layers, units, recipe, time_limit)
        report = comparing.report_of(answers, rules)
    if to is not None:
        _write(report, to)
    _show(report)
    if report.broken:
        sys.exit(EXIT_GATE)


def _rules(text: str) -> tuple[comparing.Rule, ...]:
    try:
        return comparing.parse_rules(text)
    except InvalidInput as error:
        raise click.BadParameter(error.message, param_hint="--fail-on") from error


def _recipe(other: str, dataset: str, settings: Sequence[str]) -> Comparison:
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
        values[name] = int(value) if value.isdecimal() and name != "layer" else value
    try:
        return Comparison.of({**values, "other": other, "dataset": dataset})
    except UnsupportedTarget as error:
        raise click.BadParameter(error.message, param_hint="--set") from error


def _chosen(
    model: str,
    revision: str,
    layers: Sequence[str],
    units: Sequence[int],
    flags: Sequence[str],
) -> tuple[FeatureKey, ...]:
    """Return what is pictured: of each named layer its flags unless units are named; else all flags."""
    features, left = comparing.flagged(model, revision, flags)
    for text in left:
        click.echo(f"left out: {text}: single channels and logits are compared", err=True)
    if not layers:
        if not features:
            raise click.UsageError(f"no feature of {model} is flagged: name layers with --layer")
        if units:
            raise click.UsageError("--unit is of named layers: add --layer")
        return features
    found: list[FeatureKey] = []
    for text in layers:
        wanted = comparing.named(model, revision, [text], units)
        layer = wanted[0].layer
        mine = [one for one in features if one.layer == layer]
        found += wanted if units or not mine else mine
    return tuple(dict.fromkeys(found))


def _offline(
    config: SidecarConfig,
    model: str,
    layers: Sequence[str],
    units: Sequence[int],
    recipe: Comparison,
    time_limit: float,
) -> tuple[comparing.Answer, ...]:
    found = config.model(model)
    for name in (model, recipe.other):
        if config.model(name) is None:
            known = ", ".join(one.name for one in config.models) or "there is none"
            raise click.UsageError(f"model {name!r} is not in the configuration: {known}")
    if not structlog.is_configured():  # the runner's log; stdout is the table's
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
    flags = [flag.feature for flag in config.flags]
    revision = found.digest if found is not None else ""
    features = _chosen(model, revision, layers, units, flags)
    return comparing.compare_offline(
        config, features, recipe, time_limit_seconds=time_limit, on_change=_Progress()
    )


class _Progress:
    """Says on stderr what a job is doing, each thing once."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, job: Job) -> None:
        if job.message and job.message != self._said:
            self._said = job.message
            click.echo(job.message, err=True)


def _by_daemon(
    address: str,
    model: str,
    layers: Sequence[str],
    units: Sequence[int],
    recipe: Comparison,
    time_limit: float,
) -> tuple[comparing.Answer, ...]:
    from sidecar.cli.artifacts import fetch  # noqa: PLC0415 - messages that work without a daemon spares
    from sidecar.cli.features import flagged_keys  # noqa: PLC0415 - likewise
    from sidecar.cli.jobs import follow  # noqa: PLC0415 - likewise
    from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc  # noqa: PLC0415 - likewise

    name, _, revision = model.partition("@")
    with channel(address) as opened:
        features = _chosen(name, revision, layers, units, flagged_keys(opened, name, revision))
        request = jobs_pb2.SubmitJobRequest(
            features=[_unpinned(one) for one in features],
            recipe_json=json.dumps(recipe.values()),
            time_limit_seconds=time_limit,
        )
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        submitted = stub.SubmitJob(request, timeout=TIMEOUT_SECONDS).job
        done = follow(stub, submitted.id)
        if done.state != jobs_pb2.JOB_STATE_DONE:
            words = done.error or "was cancelled"
            raise click.ClickException(f"job {done.id}: {done.error_code} {words}")
        return tuple(
            comparing.Answer(
                content_key=one.content_key,
                picture_digest=one.picture_digest,
                picture=fetch(opened, one.picture_digest),
                manifest_digest=one.manifest_digest,
                manifest=fetch(opened, one.manifest_digest),
            )
            for one in done.artifacts
        )


def _unpinned(key: FeatureKey) -> str:
    """Return a feature as the daemon resolves it: without a revision that nobody named."""
    return str(key).replace(f"@{comparing.UNPINNED}/", "/", 1)


def _write(report: comparing.Report, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(comparing.as_json(report), encoding="utf-8")
        (folder / "report.html").write_text(comparing.render_page(report), encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(folder), error.strerror or str(error)) from error
    click.echo(f"{folder}: report.json, report.html", err=True)


def _show(report: comparing.Report) -> None:
    header = ["LAYER", "IN OTHER", "UNITS", *map(str.upper, _FATES), "MEDIAN R"]
    print_table(header, [_cells(layer) for layer in report.layers])
    click.echo()
    for one in report.features:
        click.echo(f"{one.fate:<6} {one.layer} unit {one.unit}: {one.reason}")
    for broken in report.broken:
        click.echo(f"gate {broken.rule}: {broken.layer}: {broken.reason}", err=True)


def _cells(layer: comparing.LayerFate) -> list[str]:
    median = layer.median_correlation
    counts = [str(layer.counts[fate]) for fate in _FATES]
    shown = "-" if median is None else f"{median:.3f}"
    return [layer.layer, layer.other, str(layer.units), *counts, shown]
