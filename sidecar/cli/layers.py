"""``sidecar layer``."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import grpc

from sidecar.cli.client import EXITS, TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.tables import print_table
from sidecar.cli.words import moment, percent, power, short_key
from sidecar.features import FeatureKind, LayerKey, Scope, View
from sidecar.wire.v1 import features_pb2, features_pb2_grpc, ingest_pb2

PAGE = 500


def _of_models(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say of which models."""
    command = click.option(
        "--revision", default="", help="Only of revisions that start with this."
    )(command)
    return click.option("--model", default="", help="Only of this model.")(command)


@click.group()
def layer() -> None:
    """List and describe layers, and the unflagged features that the screen finds in them."""


@layer.command(name="list")
@_of_models
@with_daemon
def list_layers(model: str, revision: str, address: str, output: str) -> None:
    """List the layers that hooks have registered, and how far each has moved."""
    found = _layers(address, model, revision, "")
    if output == "json":
        print_json(found)
        return
    print_table(
        ["LAYER", "FEATURES", "REQUESTS", "BASELINE", "SIGNIFICANT", "UNFLAGGED", "LAST SEEN"],
        [
            [
                short_key(one.key),
                str(one.width),
                str(one.requests),
                _baseline(one),
                _screened(one),
                str(len(one.anomalies)) if one.anomalies else "-",
                moment(one.last_seen_unix_seconds),
            ]
            for one in found
        ],
    )
    if any(one.anomalies for one in found):
        click.echo("`sidecar layer get LAYER` names the unflagged ones", err=True)


@layer.command()
@click.argument("name")
@_of_models
@with_daemon
def get(*, name: str, model: str, revision: str, address: str, output: str) -> None:
    """Describe the layers of a NAME, with the unflagged features that the screen finds.

    The first of these are significant again and again; of those that were once, some are chance.
    """
    found = _layers(address, model, revision, name)
    if not found:
        click.echo(f"no hook has registered a layer {name!r}: see `sidecar layer list`", err=True)
        sys.exit(EXITS[grpc.StatusCode.NOT_FOUND])
    if output == "json":
        print_json(found)
        return
    for i, one in enumerate(found):
        click.echo("\n" if i else "", nl=False)
        for line in _describe(one):
            click.echo(line)
        _print_anomalies(one.anomalies)


def _layers(address: str, model: str, revision: str, layer: str) -> list[features_pb2.Layer]:
    found: list[features_pb2.Layer] = []
    token = ""
    with channel(address) as opened:
        stub = features_pb2_grpc.FeatureServiceStub(opened)
        while True:
            page = stub.ListLayers(
                features_pb2.ListLayersRequest(
                    model=model, revision=revision, layer=layer, page_size=PAGE, page_token=token
                ),
                timeout=TIMEOUT_SECONDS,
            )
            found += page.layers
            token = page.next_page_token
            if not token:
                return found


def known_layers(address: str) -> list[tuple[LayerKey, int]]:
    """Return every layer that a running daemon knows, with its width; ends the command if none runs."""
    return [(_key(one), one.width) for one in _layers(address, "", "", "")]


def _key(found: features_pb2.Layer) -> LayerKey:
    kind = FeatureKind[ingest_pb2.FeatureKind.Name(found.kind).removeprefix("FEATURE_KIND_")]
    view = View[ingest_pb2.View.Name(found.view).removeprefix("VIEW_")]
    scope = Scope[ingest_pb2.Scope.Name(found.scope).removeprefix("SCOPE_")]
    return LayerKey(found.model, found.revision, found.layer, kind, view, scope)


def _baseline(found: features_pb2.Layer) -> str:
    if found.baseline_frozen:
        return f"frozen, {found.baseline_requests} requests"
    return f"learning, {found.baseline_requests} requests" if found.baseline_requests else "none"


def _screened(found: features_pb2.Layer) -> str:
    if not found.screened_features:
        return "not screened"
    share = f"{found.significant_features} of {found.screened_features}"
    return f"{share}, shifted" if found.shifted else share


def _describe(found: features_pb2.Layer) -> Iterator[str]:
    yield f"layer       {found.key}"
    yield f"features    {found.width}, kept at {found.detail} detail"
    yield f"traffic     {found.requests} requests, {found.rows} rows, last {moment(found.last_seen_unix_seconds)}"
    if found.nonfinite:
        yield f"            {found.nonfinite} values were NaN or infinite"
    yield f"baseline    {_baseline(found)}{f', version {found.baseline}' if found.baseline else ''}"
    if not found.screened_features:
        yield "screen      not screened: a baseline's second half must have measured screen.baseline_windows"
        return
    yield f"screen      {_screened(found)} features exceed more often than the baseline explains"
    if found.shifted:
        yield "            the layer moves as a whole: one alert, SidecarLayerShift, stands for all of it"


def _print_anomalies(found: Sequence[features_pb2.Anomaly]) -> None:
    if not found:
        click.echo("unflagged   none of these stands out")
        return
    click.echo("unflagged   those that stand out, what came again and again first:\n")
    print_table(
        ["FACTOR", "NOW", "BASELINE", "P", "Q", "WINDOWS", "SINCE", "FEATURE"],
        [
            [
                f"{one.factor:.3g}",
                percent(one.exceedances / one.requests),
                percent(one.baseline_exceedance_ratio),
                power(one.p_log10),
                power(one.q_log10),
                str(one.windows),
                moment(one.since_unix_seconds),
                short_key(one.key),
            ]
            for one in found
        ],
    )
    click.echo(f"\nto be told of one: sidecar feature flag {shlex.quote(short_key(found[0].key))}")
