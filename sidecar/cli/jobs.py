"""``sidecar job`` and ``sidecar artifact``."""

import json
import re
import sys
import time
from contextlib import suppress
from datetime import datetime

import click

from sidecar.cli.client import TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.tables import print_table
from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc

EXIT_FAILED = 1

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_KEY_SHOWN = 16  # digits of a content key in a table: more than `job release` needs

PAGE = 200
"""Jobs asked for at once; the daemon gives no more."""


@click.group()
def job() -> None:
    """Run, list, watch, cancel and release visualisation jobs."""


@job.command()
@click.argument("features", nargs=-1, required=True)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A recipe value, such as steps=64.",
)
@click.option("--time-limit", default=0.0, help="Seconds; 0 takes the configured limit.")
@click.option(
    "--priority",
    type=click.Choice(["interactive", "alert", "audit"]),
    default="interactive",
    show_default=True,
    help="Whose turn it takes; an audit makes way for the others.",
)
@click.option(
    "--within", metavar="DURATION", help="Fail unless started so soon, such as 90s or 2h."
)
@click.option("--deadline", metavar="TIME", help="The same as a time: ISO 8601 or unix seconds.")
@click.option("--key", default="", help="Idempotency key: the same key is the same job.")
@click.option("--watch/--no-watch", "wait", default=True, help="Wait and show progress.")
@with_daemon
def run(  # noqa: PLR0913 - an option each
    *,
    features: tuple[str, ...],
    settings: tuple[str, ...],
    time_limit: float,
    priority: str,
    within: str | None,
    deadline: str | None,
    key: str,
    wait: bool,
    address: str,
    output: str,
) -> None:
    """Make portraits of FEATURES of one model revision, in one job."""
    request = jobs_pb2.SubmitJobRequest(
        features=features,
        recipe_json=json.dumps(dict(_setting(text) for text in settings)),
        idempotency_key=key,
        time_limit_seconds=time_limit,
        priority=jobs_pb2.JobPriority.Value(f"JOB_PRIORITY_{priority.upper()}"),
        deadline_unix_seconds=_deadline(within, deadline),
    )
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        found = stub.SubmitJob(request, timeout=TIMEOUT_SECONDS).job
        if wait:
            found = follow(stub, found.id)
    _finish(found, output)


def _setting(text: str) -> tuple[str, float | int | str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    try:
        number = float(value)
    except ValueError:
        return name, value  # the name of a method, a choice, a dataset
    return name, int(number) if number.is_integer() and "." not in value else number


def _deadline(within: str | None, deadline: str | None) -> float:
    """Return unix seconds; 0 where neither is given."""
    if within and deadline:
        raise click.UsageError("--within and --deadline say the same: give one of them")
    if within:
        match = _DURATION.fullmatch(within.strip())
        if not match:
            raise click.BadParameter(
                f"{within!r} is no duration: give such as 90s, 15m, 2h or 1d", param_hint="--within"
            )
        return time.time() + float(match[1]) * _UNITS[match[2]]
    return _moment(deadline) if deadline else 0.0


def _moment(text: str) -> float:
    with suppress(ValueError):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()  # without a zone it is the local time
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time: give ISO 8601, such as 2026-05-01T06:00+02:00, or unix seconds",
            param_hint="--deadline",
        ) from error


def follow(stub: jobs_pb2_grpc.JobServiceStub, job_id: str) -> jobs_pb2.Job:
    """Show progress on stderr until the job has ended; return how it ended."""
    found = jobs_pb2.Job()
    for change in stub.WatchJob(jobs_pb2.WatchJobRequest(id=job_id)):
        found = change.job
        end = "\r" if sys.stderr.isatty() else "\n"
        line = f"{found.id} {_state(found)} {found.step}/{found.steps} {found.message}"
        click.echo(line.ljust(78) + end, err=True, nl=False)
    click.echo(err=True)
    return found


def _finish(found: jobs_pb2.Job, output: str) -> None:
    if output == "json":
        print_json(found)
    else:
        _describe(found)
    if found.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED):
        sys.exit(EXIT_FAILED)


def _describe(found: jobs_pb2.Job) -> None:
    click.echo(f"job        {found.id}")
    cached = " (from the cache)" if found.from_cache else ""
    click.echo(f"state      {_state(found)}{cached}")
    click.echo(f"priority   {_priority(found)}")
    if found.deadline_unix_seconds:
        moment = datetime.fromtimestamp(found.deadline_unix_seconds).astimezone()
        click.echo(f"deadline   {moment.isoformat(timespec='seconds')}")
    if found.error:
        click.echo(f"error      {found.error_code} {found.error}")
    for artifact in found.artifacts:
        click.echo(f"feature    {artifact.feature}")
        click.echo(f"  picture  {artifact.picture_digest}")
        click.echo(f"  manifest {artifact.manifest_digest}")
        if artifact.verdict:
            click.echo(f"  verdict  {artifact.verdict.upper()}")
        for reason in artifact.reasons:
            click.echo(f"           {reason}")


def _state(found: jobs_pb2.Job) -> str:
    return jobs_pb2.JobState.Name(found.state).removeprefix("JOB_STATE_").lower()


def _priority(found: jobs_pb2.Job) -> str:
    return jobs_pb2.JobPriority.Name(found.priority).removeprefix("JOB_PRIORITY_").lower()


@job.command(name="list")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@click.option(
    "--quarantined",
    is_flag=True,
    help="Instead: what is refused for killing its worker, until when.",
)
@with_daemon
def list_jobs(*, limit: int, quarantined: bool, address: str, output: str) -> None:
    """List jobs, newest first."""
    if quarantined:
        _list_quarantined(limit, address, output)
        return
    found: list[jobs_pb2.Job] = []
    token = ""
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        while len(found) < limit:
            request = jobs_pb2.ListJobsRequest(
                page_size=min(limit - len(found), PAGE), page_token=token
            )
            page = stub.ListJobs(request, timeout=TIMEOUT_SECONDS)
            found += page.jobs
            token = page.next_page_token
            if not token:
                break
    if output == "json":
        print_json(found)
        return
    rows = [
        [
            j.id,
            _state(j),
            _priority(j),
            f"{j.step}/{j.steps}",
            j.origin,
            *(j.features[:1] or "-"),
        ]
        for j in found
    ]
    print_table(["JOB", "STATE", "PRIORITY", "STEP", "ORIGIN", "FEATURE"], rows)


def _list_quarantined(limit: int, address: str, output: str) -> None:
    with channel(address) as opened:
        request = jobs_pb2.ListQuarantineRequest(page_size=limit)
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        found = stub.ListQuarantine(request, timeout=TIMEOUT_SECONDS).requests
    if output == "json":
        print_json(list(found))
        return
    rows = [
        [
            one.content_key[:_KEY_SHOWN],
            datetime.fromtimestamp(one.until_unix_seconds).astimezone().isoformat(" ", "minutes"),
            one.job_id,
            one.feature or "-",
            one.reason,
        ]
        for one in found
    ]
    print_table(["KEY", "UNTIL", "JOB", "FEATURE", "REASON"], rows)


@job.command()
@click.argument("job_id")
@with_daemon
def get(job_id: str, address: str, output: str) -> None:
    """Show one job."""
    with channel(address) as opened:
        found = (
            jobs_pb2_grpc.JobServiceStub(opened)
            .GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=TIMEOUT_SECONDS)
            .job
        )
    if output == "json":
        print_json(found)
    else:
        _describe(found)


@job.command()
@click.argument("job_id")
@with_daemon
def watch(job_id: str, address: str, output: str) -> None:
    """Follow a job until it has ended; exit 1 if it failed."""
    with channel(address) as opened:
        found = follow(jobs_pb2_grpc.JobServiceStub(opened), job_id)
    _finish(found, output)


@job.command()
@click.argument("job_id")
@with_daemon
def cancel(job_id: str, address: str, output: str) -> None:
    """Stop a job that has not ended."""
    with channel(address) as opened:
        found = (
            jobs_pb2_grpc.JobServiceStub(opened)
            .CancelJob(jobs_pb2.CancelJobRequest(id=job_id), timeout=TIMEOUT_SECONDS)
            .job
        )
    if output == "json":
        print_json(found)
    else:
        _describe(found)


@job.command()
@click.argument("name")
@with_daemon
def release(name: str, address: str, output: str) -> None:
    """Let a quarantined request run again.

    NAME is a content key, its first 8 digits or more, or the id of the job that was quarantined for
    killing its worker in every attempt.
    """
    with channel(address) as opened:
        found = jobs_pb2_grpc.JobServiceStub(opened).ReleaseQuarantine(
            jobs_pb2.ReleaseQuarantineRequest(name=name), timeout=TIMEOUT_SECONDS
        )
    if output == "json":
        print_json(found)
    else:
        click.echo(f"released {found.released} content keys")
