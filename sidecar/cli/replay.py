"""``sidecar replay``: what a policy would have fired on."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from sidecar.cli.recordings import FORMAT, RECORDINGS, YAML, Source, named, policy_of, told
from sidecar.cli.tables import print_table
from sidecar.errors import UnknownFeature
from sidecar.features import FeatureKey, FeatureSelector, LayerKey
from sidecar.replay import (
    PANELS,
    Alarm,
    Extent,
    Panel,
    Playback,
    Player,
    Policy,
    as_json,
    compare,
    counted,
    days,
    draw,
    lasting,
    measure,
    play,
    rounded,
    tallies,
)

LAYERS_NAMED = 10
"""Layers that a message names."""

GAPS_SHOWN = 5
"""Gaps of a layer that a table names; a JSON answer has all."""

_LEAST_DAYS = 1 / 24  # what a few minutes hold says nothing of a day
_SECONDS_PER_DAY = 86_400.0


@click.command()
@RECORDINGS
@click.option("--policy", required=True, type=YAML, help="The policy to ask about.")
@click.option("--config", type=YAML, help="The policy in force, to compare with.")
@FORMAT
@click.option("--plot", type=YAML, help="Write a picture of the features that fire, as SVG.")
@click.option("--feature", "keys", multiple=True, metavar="KEY", help="Draw this feature; several.")
def replay(
    *,
    recordings: tuple[Path, ...],
    policy: Path,
    config: Path | None,
    form: str,
    plot: Path | None,
    keys: tuple[str, ...],
) -> None:
    """Say what a policy would have fired on.

    RECORDINGS are folders, such as `recordings` in a daemon's state_dir, or files of one. A policy is a
    YAML file with the keys of `spike`, or a whole configuration, of which `spike` and `flags` count.
    """
    with told():
        source = Source(recordings)
        asked, ruling = policy_of(policy), None if config is None else policy_of(config)
        extents = measure(source.windows())
        notes = [*source.notes(), *_missing(asked, extents)]
        found = play(source.windows(), asked)
        in_force = None if ruling is None else play(source.windows(), ruling)
        if plot is not None:
            chosen = _chosen(keys, extents) or _noisiest(found, in_force, extents)
            _write(plot, _picture(source, asked, chosen, found, in_force, extents))
    if form == "json":
        click.echo(json.dumps(as_json(extents, found, in_force, notes), indent=2))
    else:
        _show(extents, found, in_force, notes)


def _missing(policy: Policy, extents: dict[LayerKey, Extent]) -> Iterator[str]:
    """Yield the flags of a policy of which nothing was recorded."""
    for selector in policy.flags:
        if not any(
            selector.matches(layer) and selector.index in one.features
            for layer, one in extents.items()
        ):
            yield (
                f"{selector} is flagged by {policy.name} and was not when this was recorded: nothing can "
                "be said of it"
            )


def _chosen(keys: Sequence[str], extents: dict[LayerKey, Extent]) -> list[FeatureKey]:
    """Return the recorded features that people name, a revision shortened or left out."""
    found = []
    for text in keys:
        wanted = FeatureSelector.parse(text)
        fitting = [
            layer.feature(wanted.index)
            for layer, one in sorted(extents.items())
            if wanted.matches(layer) and wanted.index in one.features
        ]
        if not fitting:
            layers = (
                ", ".join(named(layer) for layer in sorted(extents)[:LAYERS_NAMED]) or "nothing"
            )
            raise UnknownFeature(f"feature {text!r} was not flagged in this recording of {layers}")
        found += fitting
    return found


def _noisiest(
    found: Playback, in_force: Playback | None, extents: dict[LayerKey, Extent]
) -> list[FeatureKey]:
    """Return the features that fire under either policy, the noisiest first; else some that do not."""
    alarms = (*found.alarms, *(in_force.alarms if in_force else ()))
    firing = [one.feature for one in tallies(alarms, extents)]
    quiet = [
        layer.feature(index) for layer, one in sorted(extents.items()) for index in one.features
    ]
    return firing or sorted(quiet)[: PANELS // 2]


def _picture(
    source: Source,
    policy: Policy,
    chosen: Sequence[FeatureKey],
    found: Playback,
    in_force: Playback | None,
    extents: dict[LayerKey, Extent],
) -> str:
    player = Player(policy, chosen[:PANELS])
    for window in source.windows():
        player.play(window)
    panels = [
        Panel(
            feature=key,
            trace=player.traces[key],
            alarms=[one for one in found.alarms if one.feature == key],
            in_force=None
            if in_force is None
            else [one for one in in_force.alarms if one.feature == key],
            gaps=extents[key.layer].gaps if key.layer in extents else (),
        )
        for key in chosen[:PANELS]
    ]
    more = len(chosen) - len(panels)
    name = Path(policy.name).name
    words = f"What {name} fires on: {_counted(found, days(extents))}"
    return draw(
        panels, words + (f"; not shown: {counted(more, 'further feature')}" if more else "")
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from error
    click.echo(f"{path}: {counted(len(text), 'character')}", err=True)


def _show(
    extents: dict[LayerKey, Extent],
    found: Playback,
    in_force: Playback | None,
    notes: Sequence[str],
) -> None:
    recorded = days(extents)
    for layer, one in sorted(extents.items()):
        click.echo(
            f"{named(layer)}: {counted(len(one.features), 'feature')}, {counted(one.windows, 'window')} from "
            f"{_time(one.first)} to "
            f"{_time(one.last)}, {one.windows - one.sampled:,} without a request"
        )
        for gap in one.gaps[:GAPS_SHOWN]:
            click.echo(f"  nothing recorded from {_time(gap.start)} to {_time(gap.end)}")
        if len(one.gaps) > GAPS_SHOWN:
            click.echo(f"  and {counted(len(one.gaps) - GAPS_SHOWN, 'gap')} more")
        if one.backward:
            click.echo(
                f"  out of order: {counted(one.backward, 'window')}; a clock was put back, or these are "
                "recordings of several daemons, which should be replayed one by one"
            )
    click.echo()
    click.echo(f"{found.policy}: {_counted(found, recorded)}")
    marks: dict[Alarm, str] = {}
    if in_force is not None:
        click.echo(f"in force, {in_force.policy}: {_counted(in_force, recorded)}")
        compared = compare(found.alarms, in_force.alarms)
        click.echo(
            f"{len(compared.new)} new, {len(compared.gone)} gone, {len(compared.kept)} as before"
        )
        marks = dict.fromkeys(compared.new, "new") | dict.fromkeys(compared.gone, "gone")
    for note in (*notes, *found.notes):
        click.echo(f"note: {note}")
    if found.alarms:
        click.echo()
        rows = [
            [
                str(one.pages),
                lasting(one.seconds),
                f"10^{one.evidence_log10:.1f}",
                _key(one.feature),
            ]
            for one in tallies(found.alarms, extents)
        ]
        print_table(["PAGES", "FIRING", "EVIDENCE", "FEATURE"], rows)
    alarms = [*found.alarms, *(alarm for alarm, mark in marks.items() if mark == "gone")]
    if alarms:
        click.echo()
        ordered = sorted(alarms, key=lambda alarm: (alarm.start, alarm.feature))
        print_table(
            ["START", "END", *(["CHANGE"] if in_force else []), "FEATURE", "WHY"],
            [_row(one, [marks.get(one, "")] if in_force else []) for one in ordered],
        )


def _row(alarm: Alarm, mark: list[str]) -> list[str]:
    return [_time(alarm.start), _time(alarm.end), *mark, _key(alarm.feature), alarm.reason]


def _counted(one: Playback, recorded: float) -> str:
    count = len(one.alarms)
    rate = f", {rounded(count / recorded)} a day" if recorded >= _LEAST_DAYS else ""
    return f"{counted(count, 'page')} in {lasting(recorded * _SECONDS_PER_DAY)}{rate}"


def _key(feature: FeatureKey) -> str:
    return str(replace(feature.layer, revision=feature.layer.shown_revision).feature(feature.index))


def _time(at: float) -> str:
    return (
        "still firing" if math.isnan(at) else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
    )
