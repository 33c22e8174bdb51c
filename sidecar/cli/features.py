"""``sidecar feature``."""

import math
import sys
import time
from collections.abc import Sequence

import click
import grpc

from sidecar.cli.client import EXITS, TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.standing import holding, print_page, reasons, state_of
from sidecar.cli.tables import print_table
from sidecar.cli.words import lasting, moment, percent, short_key
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

PAGE = 1000
BAR = 40
"""Characters of the longest bar of a histogram."""

HISTOGRAM_ROWS = 20

COLUMNS = (
    "STATE",
    "FOR",
    "NAME",
    "HOLDS",
    "NOW",
    "LEVEL",
    "TOLERATED",
    "BASELINE",
    "REQUESTS",
    "SIDE",
    "SLICE",
    "ASKED FOR",
    "SEVERITY",
    "OWNER",
    "EVIDENCE",
    "FEATURE",
)
RARE = ("HOLDS", "SIDE", "SLICE", "ASKED FOR", "OWNER", "EVIDENCE")
"""Columns that are left out where no feature has anything there."""

LOUD = (features_pb2.FEATURE_STATE_FIRING, features_pb2.FEATURE_STATE_PENDING)

WINDOWS = {
    "current": features_pb2.WINDOW_CURRENT,
    "baseline": features_pb2.WINDOW_BASELINE,
    "history": features_pb2.WINDOW_HISTORY,
}


@click.group()
def feature() -> None:
    """List, describe, explain, flag and unflag features.

    A KEY is model@revision/layer/kind/index; the revision may be shortened, or left out with its @.
    """


@feature.command(name="list")
@click.option("--model", default="", help="Only of this model.")
@click.option("--revision", default="", help="Only of revisions that start with this.")
@click.option("--layer", default="", help="Only of this layer.")
@click.option("--all", "everything", is_flag=True, help="Unflagged features too.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many."
)
@with_daemon
def list_features(
    *,
    model: str,
    revision: str,
    layer: str,
    everything: bool,
    limit: int,
    address: str,
    output: str,
) -> None:
    """List features: the flagged ones, the firing at the top."""
    found: list[features_pb2.Feature] = []
    unmatched: list[features_pb2.UnmatchedFlag] = []
    token, total, lost = "", 0, 0
    with channel(address) as opened:
        stub = features_pb2_grpc.FeatureServiceStub(opened)
        while len(found) < limit:
            page = stub.ListFeatures(
                features_pb2.ListFeaturesRequest(
                    model=model,
                    revision=revision,
                    layer=layer,
                    flagged_only=not everything,
                    page_size=min(limit - len(found), PAGE),
                    page_token=token,
                ),
                timeout=TIMEOUT_SECONDS,
            )
            found += page.features
            unmatched += page.unmatched  # of the first page alone
            lost = max(lost, page.unmatched_total)
            token, total = page.next_page_token, page.total
            if not token:
                break
    if output == "json":
        print_json(found)
    else:
        _print_list(found)
    if total > len(found):
        click.echo(f"{len(found)} of {total} shown; see --limit", err=True)
    if lost:
        told = "flag fits no feature" if lost == 1 else "flags fit no feature"
        click.echo(f"{lost} {told}, so nobody is told about what it names:", err=True)
    for one in unmatched:
        click.echo(f"  {one.flag}: {one.explanation}", err=True)
    if lost > len(unmatched):
        click.echo(f"  and {lost - len(unmatched)} more", err=True)


def flagged_keys(opened: grpc.Channel, model: str, revision: str) -> list[str]:
    """Return the text forms of a model's flagged features, at most a page of them."""
    request = features_pb2.ListFeaturesRequest(
        model=model, revision=revision, flagged_only=True, page_size=PAGE
    )
    stub = features_pb2_grpc.FeatureServiceStub(opened)
    return [one.key for one in stub.ListFeatures(request, timeout=TIMEOUT_SECONDS).features]


def _print_list(found: Sequence[features_pb2.Feature]) -> None:
    """Print a table, and in a line each why what is not calm is so."""
    rows = [_row(one) for one in found]
    # What no feature has takes no room: most flags watch all traffic, above, for everything.
    kept = [
        i for i, name in enumerate(COLUMNS) if name not in RARE or any(r[i] != "-" for r in rows)
    ]
    print_table([COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows])
    loud = [f for f in found if f.state in LOUD or holding(f) != "-" or f.HasField("anomaly")]
    if loud:
        click.echo()
    for one in loud:
        click.echo(f"{one.name or short_key(one.key)}: {reasons(one)}")


def _row(found: features_pb2.Feature) -> list[str]:
    # On the wire a share that is not known is 0, and 0.00 % would look like a quiet feature.
    learned = not math.isnan(found.threshold)
    asked, since = ",".join(found.detectors), found.state_since_unix_seconds
    return [
        state_of(found),
        lasting(time.time() - since) if found.flagged and since else "-",
        found.name or "-",
        holding(found),
        percent(found.exceedance_ratio) if learned and found.requests else "-",
        percent(found.level_ratio) if found.HasField("level_ratio") else "-",
        percent(found.tolerated_ratio) if found.HasField("tolerated_ratio") else "-",
        percent(found.baseline_exceedance_ratio) if found.HasField("tolerated_ratio") else "-",
        str(found.requests),
        found.direction if found.direction not in ("", "above") else "-",
        found.slice or "-",
        asked if asked not in ("", "spike,conditions,drift") else "-",
        found.severity or "-",
        found.owner or "-",
        found.evidence_id or "-",
        short_key(found.key),
    ]


@feature.command()
@click.argument("key")
@click.option("--window", type=click.Choice(list(WINDOWS)), default="current", show_default=True)
@with_daemon
def get(key: str, window: str, address: str, output: str) -> None:
    """Say how one feature stands, why, and what to do; and draw its distribution."""
    with channel(address) as opened:
        stub = features_pb2_grpc.FeatureServiceStub(opened)
        described = stub.DescribeFeature(
            features_pb2.DescribeFeatureRequest(key=key), timeout=TIMEOUT_SECONDS
        ).feature
        live = stub.GetDistribution(
            features_pb2.GetDistributionRequest(key=described.key, window=WINDOWS[window]),
            timeout=TIMEOUT_SECONDS,
        )
        records = (
            stub.GetEvidence(
                features_pb2.GetEvidenceRequest(key=described.key, limit=1), timeout=TIMEOUT_SECONDS
            ).evidence
            if described.evidence_id
            else ()
        )
    if output == "json":
        print_json([described, live])
        return
    print_page(described, next(iter(records), None))
    click.echo()
    _draw(live, window)


def _draw(live: features_pb2.GetDistributionResponse, window: str) -> None:
    click.echo(
        f"{window}: n {live.count}, mean {live.mean:.4g}, sd {live.variance**0.5:.4g}, "
        f"min {live.min:.4g}, max {live.max:.4g}, zeros {live.zero_ratio:.1%}, "
        f"not finite {live.nonfinite}"
    )
    if not live.count:
        return
    quantiles = zip(live.quantile_levels, live.quantiles, strict=True)
    click.echo("  ".join(f"p{100 * level:g} {value:.4g}" for level, value in quantiles))
    for low, high, count in _coarse(live.edges, live.counts):
        share = count / live.count
        click.echo(f"{low:>11.4g} .. {high:<11.4g} {share:>6.1%} {'#' * round(share * BAR)}")


def _coarse(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float, float]]:
    """Spread bins over rows of equal width between the 0.1 % and 99.9 % marks."""
    total, seen = sum(counts), 0
    kept = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        seen += count
        if total * 0.001 <= seen and seen - count <= total * 0.999:
            kept.append((low, high, count))
    first, last = kept[0][0], kept[-1][1]
    step = (last - first) / HISTOGRAM_ROWS or 1.0
    found = [(first + i * step, first + (i + 1) * step, 0.0) for i in range(HISTOGRAM_ROWS)]
    for low, high, count in kept:
        for i, (left, right, n) in enumerate(found):
            inside = max(0.0, min(high, right) - max(low, left)) / (high - low)
            found[i] = (left, right, n + count * inside)
    return found


@feature.command()
@click.argument("key")
@click.option(
    "--limit", type=click.IntRange(1, 50), default=1, show_default=True, help="At most so many."
)
@with_daemon
def evidence(*, key: str, limit: int, address: str, output: str) -> None:
    """Say why a feature fired: numbers, slices, and rows where they are kept.

    The newest record comes first. Exit status 3 where there is none, or none any more.
    """
    with channel(address) as opened:
        found = (
            features_pb2_grpc.FeatureServiceStub(opened)
            .GetEvidence(
                features_pb2.GetEvidenceRequest(key=key, limit=limit), timeout=TIMEOUT_SECONDS
            )
            .evidence
        )
    if output == "json":
        print_json(found)
    for i, record in enumerate(found if output == "table" else ()):
        click.echo("\n" if i else "", nl=False)
        _explain(record)
    if not found:
        click.echo(f"{key} has no evidence: it never fired, or that is too long ago", err=True)
        sys.exit(EXITS[grpc.StatusCode.NOT_FOUND])


def _explain(found: features_pb2.Evidence) -> None:
    click.echo(f"feature    {found.key}")
    click.echo(f"evidence   {found.id}, fired {moment(found.at_unix_seconds)}")
    click.echo(f"why        {found.reason}")
    click.echo(f"traffic    {found.attribution}")
    if found.windows:
        click.echo(
            f"seen       {found.exceedances} of {found.requests} requests exceed in {found.windows} "
            f"{'window' if found.windows == 1 else 'windows'} from "
            f"{moment(found.since_unix_seconds)}"
        )
    if found.slices:
        click.echo()
        print_table(
            ["SLICE", "REQUESTS", "EXCEED", "WITHOUT IT", "EXPLAINS"],
            [
                [
                    f"{one.key}={one.value}",
                    str(one.requests),
                    str(one.exceedances),
                    f"{one.rate_without:.2%}",
                    f"{one.share:.0%}",
                ]
                for one in found.slices
            ],
        )
    if found.rows:
        click.echo()
        print_table(
            ["VALUE", "REQUEST", "ROW", "SLICE", "TIME"],
            [
                [
                    f"{row.value:.4g}",
                    row.request_id or "-",
                    str(row.position),
                    row.traffic or "-",
                    moment(row.at_unix_seconds),
                ]
                for row in found.rows
            ],
        )
    elif found.exposure == "none":
        click.echo("rows       not kept: evidence.enabled is off")


@feature.command()
@click.argument("key")
@click.option("--name", default="", help="What people call it; default: as it is.")
@click.option(
    "--severity",
    type=click.Choice(["info", "warning", "critical"]),
    help="Of its alerts; default: as it is, or warning.",
)
@click.option("--owner", default="", help="Who is told; default: as it is.")
@click.option(
    "--factor",
    type=float,
    help="Least factor over its recent level that can raise an alarm; 0: the common one.",
)
@click.option(
    "--direction",
    type=click.Choice(["above", "below", "both"]),
    help="On which side of its baseline it is watched.",
)
@click.option(
    "--slice",
    "traffic",
    help="Only requests with all these key=value pairs, joined by commas; '' for all.",
)
@click.option(
    "--detector",
    "detectors",
    type=click.Choice(["spike", "conditions", "drift"]),
    multiple=True,
    help="What looks at it; repeat it for several.",
)
@with_daemon
def flag(  # noqa: PLR0913 - one argument an option
    *,
    key: str,
    name: str,
    severity: str | None,
    owner: str,
    factor: float | None,
    direction: str | None,
    traffic: str | None,
    detectors: tuple[str, ...],
    address: str,
    output: str,
) -> None:
    """Watch a feature: it gets its own series, detector and alerts.

    What is left out stays as it is: as it was set by hand, else as the configuration has it.
    """
    with channel(address) as opened:
        found = (
            features_pb2_grpc.FeatureServiceStub(opened)
            .FlagFeature(
                features_pb2.FlagFeatureRequest(
                    key=key,
                    name=name,
                    severity=severity or "",
                    owner=owner,
                    factor=factor,
                    direction=direction or "",
                    slice=traffic,
                    detectors=detectors,
                ),
                timeout=TIMEOUT_SECONDS,
            )
            .feature
        )
    _say(found, "flagged", output)


@feature.command()
@click.argument("key")
@with_daemon
def unflag(key: str, address: str, output: str) -> None:
    """Watch a feature no longer; its distribution is still kept."""
    with channel(address) as opened:
        found = (
            features_pb2_grpc.FeatureServiceStub(opened)
            .UnflagFeature(features_pb2.UnflagFeatureRequest(key=key), timeout=TIMEOUT_SECONDS)
            .feature
        )
    _say(found, "no longer flagged", output)


def _say(found: features_pb2.Feature, what: str, output: str) -> None:
    if output == "json":
        print_json(found)
    else:
        click.echo(f"{short_key(found.key)} is {what}")
