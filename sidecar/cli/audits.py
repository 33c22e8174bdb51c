"""``sidecar audit``: how nightly audits stand, a night now, and reports."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import grpc

from sidecar.cli.client import TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.tables import print_table
from sidecar.wire.v1 import audits_pb2, audits_pb2_grpc

EXIT_FAILED = 1
EXIT_REGRESSED = 6

_LOOK_SECONDS = 0.5
_RUNNING = audits_pb2.AUDIT_STATE_RUNNING
_FORMS = {
    "report.html": audits_pb2.REPORT_FORM_HTML,
    "report.json": audits_pb2.REPORT_FORM_JSON,
}


@click.group()
def audit() -> None:
    """List, describe and run nightly audits, accept what they found, and fetch reports."""


@audit.command(name="list")
@with_daemon
def list_audits(*, address: str, output: str) -> None:
    """List the configured audits and how each stands."""
    with channel(address) as opened:
        found = _stub(opened).ListAudits(audits_pb2.ListAuditsRequest(), timeout=TIMEOUT_SECONDS)
    if output == "json":
        print_json(found.audits)
        return
    rows = [
        [
            one.name,
            one.model,
            one.against or "-",
            _state(one.state),
            _last(one),
            _moment(one.next_unix_seconds),
        ]
        for one in found.audits
    ]
    print_table(["AUDIT", "MODEL", "AGAINST", "STATE", "LAST NIGHT", "NEXT"], rows)


@audit.command()
@click.argument("name")
@with_daemon
def show(*, name: str, address: str, output: str) -> None:
    """Say how the audit NAME stands: the checks of its last night, and the nights that are kept."""
    with channel(address) as opened:
        found = _described(opened, name)
    if output == "json":
        print_json(found)
        return
    one = found.audit
    click.echo(f"{one.name}: {one.model}{f' against {one.against}' if one.against else ''}")
    click.echo(f"state  {_state(one.state)}")
    click.echo(f"next   {_moment(one.next_unix_seconds)}")
    if one.HasField("running"):
        click.echo(
            f"runs   night {one.running.id}, since {_moment(one.running.started_unix_seconds)}"
        )
    if one.HasField("last"):
        click.echo()
        _show(one.last)
        click.echo()
    rows = [
        [night.id, _state(night.state), _counts(night), _failed(night), night.actor]
        for night in found.nights
    ]
    print_table(["NIGHT", "STATE", "MOVED / LOST / NEW", "FAILED", "BY"], rows)


@audit.command()
@click.argument("name")
@click.option(
    "--wait", is_flag=True, help="Wait until the night is judged; exit 6 where it regressed."
)
@with_daemon
def run(*, name: str, wait: bool, address: str, output: str) -> None:
    """Run the audit NAME now, or join the night that runs.

    Its jobs make way for others like those of any night, and wait for jobs.audit_windows. With --wait exit 0
    where the night passed, 6 where it regressed, 1 where it failed.
    """
    with channel(address) as opened:
        request = audits_pb2.StartAuditRequest(name=name)
        night = _stub(opened).StartAudit(request, timeout=TIMEOUT_SECONDS).night
        click.echo(f"night {night.id} runs", err=True)
        if wait:
            night = _waited(opened, name, night.id)
    if output == "json":
        print_json(night)
    elif wait:
        _show(night)
    else:
        click.echo(night.id)
    if night.state == audits_pb2.AUDIT_STATE_REGRESSED:
        sys.exit(EXIT_REGRESSED)
    if night.state == audits_pb2.AUDIT_STATE_FAILED:
        sys.exit(EXIT_FAILED)


@audit.command()
@click.argument("name")
@click.option("--night", default="", help="Which night. Default: the newest that was judged.")
@click.option("--note", required=True, help="Who accepts it and why; stands in the audit log.")
@with_daemon
def accept(*, name: str, night: str, note: str, address: str, output: str) -> None:
    """Take what a night of the audit NAME found for the new normal.

    Later nights are held against it. Until then they are held against the last night in which the same check
    did not fail, so that a regression is told every night, not once.
    """
    request = audits_pb2.AcceptNightRequest(name=name, night=night, note=note)
    with channel(address) as opened:
        found = _stub(opened).AcceptNight(request, timeout=TIMEOUT_SECONDS).night
    if output == "json":
        print_json(found)
    else:
        click.echo(f"night {found.id} is what later ones are held against")


@audit.command()
@click.argument("name")
@click.option("--night", default="", help="Which night. Default: the newest that was judged.")
@click.option(
    "--to",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.json and report.html; made where it is missing.",
)
@with_daemon
def report(*, name: str, night: str, to: Path, address: str, output: str) -> None:
    """Fetch the report of a night of the audit NAME."""
    with channel(address) as opened:
        found = {
            file: b"".join(
                part.chunk
                for part in _stub(opened).GetReport(
                    audits_pb2.GetReportRequest(name=name, night=night, form=form),
                    timeout=TIMEOUT_SECONDS,
                )
            )
            for file, form in _FORMS.items()
        }
    try:
        to.mkdir(parents=True, exist_ok=True)
        for file, content in found.items():
            (to / file).write_bytes(content)
    except OSError as error:
        raise click.FileError(str(to), error.strerror or str(error)) from error
    if output == "json":
        click.echo(found["report.json"].decode())
    click.echo(f"{to}: {', '.join(sorted(found))}", err=True)


def _stub(opened: grpc.Channel) -> audits_pb2_grpc.AuditServiceStub:
    return audits_pb2_grpc.AuditServiceStub(opened)


def _described(opened: grpc.Channel, name: str) -> audits_pb2.DescribeAuditResponse:
    request = audits_pb2.DescribeAuditRequest(name=name)
    return _stub(opened).DescribeAudit(request, timeout=TIMEOUT_SECONDS)


def _waited(opened: grpc.Channel, name: str, night_id: str) -> audits_pb2.Night:
    while True:
        nights = _described(opened, name).nights
        found = next((one for one in nights if one.id == night_id), None)
        if found is None:
            raise click.ClickException(f"night {night_id} of {name} is not kept any more")
        if found.state != _RUNNING:
            return found
        time.sleep(_LOOK_SECONDS)


def _show(night: audits_pb2.Night) -> None:
    click.echo(f"night {night.id}: {_state(night.state)}, {night.features} features pictured")
    rows = [[one.name, _outcome(one), one.reason] for one in night.checks]
    print_table(["CHECK", "OUTCOME", "WHY"], rows)


def _outcome(one: audits_pb2.Check) -> str:
    name = audits_pb2.CheckOutcome.Name(one.outcome).removeprefix("CHECK_OUTCOME_").lower()
    return "not possible" if name == "impossible" else name


def _state(value: "audits_pb2.AuditState.ValueType") -> str:
    return audits_pb2.AuditState.Name(value).removeprefix("AUDIT_STATE_").lower()


def _last(one: audits_pb2.Audit) -> str:
    return f"{one.last.id} {_state(one.last.state)}" if one.HasField("last") else "-"


def _counts(night: audits_pb2.Night) -> str:
    fates = ("moved", "lost", "new")
    return " / ".join(str(night.counts[fate]) for fate in fates) if night.counts else "-"


def _failed(night: audits_pb2.Night) -> str:
    failed = [one.name for one in night.checks if one.outcome == audits_pb2.CHECK_OUTCOME_FAILED]
    return ", ".join(failed) or "-"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" if seconds else "-"
