"""``sidecar baseline``."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sidecar.cli.artifacts import fetch
from sidecar.cli.client import TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.tables import print_table
from sidecar.features import short_revision
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

CHUNK_BYTES = 1 << 20
"""Of a file on its way to the daemon: well below gRPC's 4 MiB a message."""

TRANSFER_SECONDS = 300.0
"""For a whole file; one of a million features has some 400 MB."""

DIGEST_SHOWN = 12


def _of_layers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and options that say which layers are meant."""
    command = click.option("--layer", default="", help="Only of this layer.")(command)
    command = click.option(
        "--revision", default="", help="Only of revisions that start with this."
    )(command)
    return click.argument("model")(command)


@click.group()
def baseline() -> None:
    """Freeze, relearn, list, export and import the baselines that traffic is compared with."""


@baseline.command()
@_of_layers
@with_daemon
def freeze(model: str, revision: str, layer: str, address: str, output: str) -> None:
    """Take what was learned so far as the baseline."""
    with channel(address) as opened:
        found = features_pb2_grpc.FeatureServiceStub(opened).FreezeBaseline(
            features_pb2.FreezeBaselineRequest(model=model, revision=revision, layer=layer),
            timeout=TIMEOUT_SECONDS,
        )
    _say_layers(found, "baseline frozen", output)


@baseline.command()
@_of_layers
@click.option("--reason", default="", help="Why; it stands in the audit log.")
@with_daemon
def relearn(
    *, model: str, revision: str, layer: str, reason: str, address: str, output: str
) -> None:
    """Forget baselines and learn them anew from live traffic.

    Versions that are stored stay; `sidecar baseline import` brings one back.
    """
    with channel(address) as opened:
        found = features_pb2_grpc.FeatureServiceStub(opened).ResetBaseline(
            features_pb2.ResetBaselineRequest(
                model=model, revision=revision, layer=layer, reason=reason
            ),
            timeout=TIMEOUT_SECONDS,
        )
    _say_layers(found, "baseline is learned anew", output)


def _say_layers(
    found: features_pb2.FreezeBaselineResponse | features_pb2.ResetBaselineResponse,
    what: str,
    output: str,
) -> None:
    if output == "json":
        print_json(found)
    else:
        layers = "layer" if found.layers == 1 else "layers"
        click.echo(f"{found.layers} {layers}: {what}")


@baseline.command(name="list")
@click.option("--model", default="", help="Only of this model.")
@click.option("--revision", default="", help="Only of revisions that start with this.")
@click.option("--layer", default="", help="Only of this layer.")
@with_daemon
def list_baselines(model: str, revision: str, layer: str, address: str, output: str) -> None:
    """List the stored versions of baselines, newest first, and how good they are.

    A star marks those that traffic is compared with now.
    """
    with channel(address) as opened:
        found = (
            features_pb2_grpc.FeatureServiceStub(opened)
            .ListBaselines(
                features_pb2.ListBaselinesRequest(model=model, revision=revision, layer=layer),
                timeout=TIMEOUT_SECONDS,
            )
            .baselines
        )
    if output == "json":
        print_json(list(found))
        return
    header = ["", "BASELINE", "ORIGIN", "FROZEN (UTC)", "REQUESTS", "HOURS", "LAYER"]
    print_table(header, [_row(one) for one in found])
    for one in found:
        for caution in one.cautions if one.in_force else ():
            click.echo(f"{one.digest[:DIGEST_SHOWN]}: {caution}", err=True)


def _row(one: features_pb2.Baseline) -> list[str]:
    hours = (one.frozen_unix_seconds - one.started_unix_seconds) / 3600
    frozen = datetime.fromtimestamp(one.frozen_unix_seconds, UTC)
    model, _, rest = one.layer.partition("@")
    revision, _, tail = rest.partition("/")
    return [
        "*" if one.in_force else "",
        one.digest[:DIGEST_SHOWN],
        one.origin,
        f"{frozen:%Y-%m-%d %H:%M:%S}",
        str(one.requests),
        f"{hours:.3g}",
        f"{model}@{short_revision(revision)}/{tail}",
    ]


@baseline.command()
@click.argument("digest")
@click.option(
    "--to",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, such as conv5.baseline; an existing one is replaced.",
)
@click.option("--address", envvar="SIDECAR_ADDRESS", default="127.0.0.1:50061", show_default=True)
def export(digest: str, to: Path, address: str) -> None:
    """Write a stored baseline to a file that other daemons can import.

    DIGEST may be shortened as far as it is clear.
    """
    with channel(address) as opened:
        stub = features_pb2_grpc.FeatureServiceStub(opened)
        known = stub.ListBaselines(features_pb2.ListBaselinesRequest(), timeout=TIMEOUT_SECONDS)
        data = fetch(opened, _one(digest, {b.digest for b in known.baselines}))
    try:
        to.write_bytes(data)
    except OSError as error:
        raise click.FileError(str(to), error.strerror or str(error)) from error
    click.echo(f"{to}: {len(data)} bytes", err=True)


def _one(digest: str, known: set[str]) -> str:
    fitting = sorted(one for one in known if digest and one.startswith(digest))
    if len(fitting) != 1:
        many = "fits several baselines: give more digits" if fitting else "is no stored baseline"
        raise click.BadParameter(f"{digest!r} {many}; see `sidecar baseline list`")
    return fitting[0]


@baseline.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_daemon
def import_baseline(file: Path, address: str, output: str) -> None:
    """Compare a layer with an exported baseline from now on, instead of with its own.

    It must be of the same model revision, layer and way of measuring.
    """
    with channel(address) as opened:
        found = (
            features_pb2_grpc.FeatureServiceStub(opened)
            .ImportBaseline(_chunks(file), timeout=TRANSFER_SECONDS)
            .baseline
        )
    if output == "json":
        print_json(found)
        return
    click.echo(f"{found.layer} is compared with baseline {found.digest[:DIGEST_SHOWN]}")
    for caution in found.cautions:
        click.echo(caution, err=True)


def _chunks(file: Path) -> Iterator[features_pb2.ImportBaselineRequest]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield features_pb2.ImportBaselineRequest(chunk=chunk)
