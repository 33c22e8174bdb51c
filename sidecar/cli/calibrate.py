"""``sidecar calibrate``: how often a policy is wrong on recorded traffic, and what to change."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

from sidecar import replay
from sidecar.cli.recordings import FORMAT, RECORDINGS, YAML, Source, named, policy_of, told
from sidecar.cli.tables import print_table


@click.command()
@RECORDINGS
@click.option("--config", type=YAML, help="The policy in force; default: that of no settings.")
@click.option(
    "--incident",
    "incidents",
    multiple=True,
    metavar="FROM/TO",
    help="When something really happened, in ISO 8601, UTC; several. Those windows are left out.",
)
@click.option("--seed", default=0, show_default=True, help="Of what is drawn by chance.")
@FORMAT
def calibrate(
    *,
    recordings: tuple[Path, ...],
    config: Path | None,
    incidents: tuple[str, ...],
    seed: int,
    form: str,
) -> None:
    """Say how often a policy is wrong on recorded traffic, and what to change.

    RECORDINGS are folders, such as `recordings` in a daemon's state_dir, or files of one. A policy is a
    YAML file with the keys of `spike`, or a whole configuration, of which `spike` and `flags` count.
    """
    with told():
        source = Source(recordings)
        times = [_incident(text) for text in incidents]
        found = replay.calibrate(
            source.windows(), policy_of(config), times, np.random.default_rng(seed)
        )
        notes = tuple(source.notes())
    if form == "json":
        click.echo(json.dumps({**replay.calibration_as_json(found), "notes": notes}, indent=2))
    else:
        for note in notes:
            click.echo(f"note: {note}")
        _show(found)


def _incident(text: str) -> tuple[float, float]:
    parts = text.split("/")
    try:
        start, end = (datetime.fromisoformat(part) for part in parts)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not FROM/TO, such as 2026-11-26T03:00/2026-11-26T04:30",
            param_hint="--incident",
        ) from error
    begun, ended = (
        (one if one.tzinfo else one.replace(tzinfo=UTC)).timestamp() for one in (start, end)
    )
    if ended <= begun:
        raise click.BadParameter(f"{text!r} ends before it begins", param_hint="--incident")
    return begun, ended


def _show(found: replay.Calibration) -> None:
    click.echo(f"policy: {found.policy}")
    if found.overall is not None:
        _show_traffic(found)
    if found.rates is not None:
        _show_rates(found, found.rates)
    for line in _words(found):
        click.echo(line)


def _show_traffic(found: replay.Calibration) -> None:
    rows = [(named(layer), one) for layer, one in found.layers.items()]
    if len(rows) > 1 and found.overall is not None:
        rows.append(("all", found.overall))
    header = ["FEATURES", "DAYS", "REQUESTS", "RATE", "ROWS/REQUEST", "DESIGN", "DISPERSION"]
    header += ["VARIES", "NEXT", "BURST", "BASELINE", "LAYER"]
    click.echo()
    print_table(header, [[*_cells(one), name] for name, one in rows])


def _cells(one: replay.Behaviour) -> list[str]:
    return [
        str(one.features),
        replay.rounded(one.days, 3),
        f"{one.requests_per_window:,.0f}",
        _share(one.rate),
        _known(one.beyond_per_request, ".2f"),
        _known(one.design_effect, ".2f"),
        _known(one.dispersion, ".2f"),
        _share(one.variation),
        _known(one.next_window, ".2f"),
        _known(one.burst_windows, ".0f"),
        f"{replay.lasting(one.baseline_seconds)}, {_share(one.baseline_error)}",
    ]


def _show_rates(found: replay.Calibration, mine: replay.FalseAlarms) -> None:
    click.echo(
        f"\n{replay.counted(mine.alarms, 'alarm')} in {replay.rounded(mine.feature_days, 3)} feature-days; resampled to "
        f"{mine.resampled_feature_days:,.0f} from {replay.counted(mine.blocks, 'block')} of "
        f"{replay.counted(mine.block_windows, 'window')}"
    )
    both = zip((mine, *found.tried), (found.delay, *found.delays), strict=True)
    rows = [
        [*_rate_cells(one), *_delay_cells(spikes), "this policy" if one is mine else ""]
        for one, spikes in sorted(both, key=lambda pair: pair[0].factor)
    ]
    header = ["FACTOR", "A FEATURE-DAY", "95 %", "ALL IN 1,000 DAYS", "95 %"]
    print_table([*header, "20 % SPIKE FOUND IN", "MISSED", ""], rows)


def _rate_cells(one: replay.FalseAlarms) -> list[str]:
    low, expected, high = (
        replay.rounded(one.per_1000_days(rate)) for rate in (one.low, one.per_feature_day, one.high)
    )
    return [
        "of flags" if math.isnan(one.factor) else f"{one.factor:g}",
        replay.rounded(one.per_feature_day),
        f"{replay.rounded(one.low)} to {replay.rounded(one.high)}",
        expected,
        f"{low} to {high}",
    ]


def _delay_cells(one: replay.Delay | None) -> list[str]:
    if one is None:
        return ["-", "-"]
    found = "-" if math.isinf(one.windows) else replay.counted(round(one.windows), "window")
    return [found, f"{replay.rounded(100 * one.missed)} %"]


def _words(found: replay.Calibration) -> Iterator[str]:
    """Yield the advice, and what cannot be known."""
    yield ""
    yield from (f"* {words}" for words in found.advice)
    if found.limits:
        yield "\nWhat this cannot know:"
    yield from (f"- {words}" for words in found.limits)


def _known(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{replay.rounded(100 * value, 3)} %"
