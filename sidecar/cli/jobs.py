"""``sidecar job`` and ``sidecar artifact``."""

import json
import sys

import click

from sidecar.cli.client import TIMEOUT_SECONDS, channel, print_json, with_daemon
from sidecar.cli.tables import print_table
from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc

EXIT_FAILED = 1

PAGE = 200
"""Jobs asked for at once; the daemon gives no more."""


@click.group()
def job() -> None:
    """Run, list, watch and cancel visualisation jobs."""


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
@click.option("--key", default="", help="Idempotency key: the same key is the same job.")
@click.option("--watch/--no-watch", "follow", default=True, help="Wait and show progress.")
@with_daemon
def run(
    *,
    features: tuple[str, ...],
    settings: tuple[str, ...],
    time_limit: float,
    key: str,
    follow: bool,
    address: str,
    output: str,
) -> None:
    """Make portraits of FEATURES of one model revision, in one job."""
    request = jobs_pb2.SubmitJobRequest(
        features=features,
        recipe_json=json.dumps(dict(_setting(text) for text in settings)),
        idempotency_key=key,
        time_limit_seconds=time_limit,
    )
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        found = stub.SubmitJob(request, timeout=TIMEOUT_SECONDS).job
        if follow:
            found = _follow(stub, found.id)
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


def _follow(stub: jobs_pb2_grpc.JobServiceStub, job_id: str) -> jobs_pb2.Job:
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


@job.command(name="list")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@with_daemon
def list_jobs(limit: int, address: str, output: str) -> None:
    """List jobs, newest first."""
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
        [j.id, _state(j), f"{j.step}/{j.steps}", j.origin, *(j.features[:1] or "-")] for j in found
    ]
    print_table(["JOB", "STATE", "STEP", "ORIGIN", "FEATURE"], rows)


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
        found = _follow(jobs_pb2_grpc.JobServiceStub(opened), job_id)
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
