"""``sidecar artifact``."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import grpc

from sidecar.cli.client import (
    TIMEOUT_SECONDS,
    channel,
    plain,
    print_json,
    with_daemon,
)
from sidecar.cli.tables import print_table
from sidecar.wire.v1 import features_pb2, features_pb2_grpc, jobs_pb2, jobs_pb2_grpc

EXIT_FAILED, EXIT_NOT_FOUND, EXIT_DIFFERENT = 1, 3, 6

PAGE = 200
"""Artifacts asked for at once; the daemon gives no more."""

_SHOWN = 16  # digits of a digest in a table; the whole is in the JSON
_EVIDENCE_LIMIT = 50
_PART_BYTES = 256 << 10  # as the daemon sends them


@click.group()
def artifact() -> None:
    """List, fetch, check, reproduce, export and keep pictures and manifests."""


@artifact.command(name="list")
@click.option("--feature", default="", help="Only of this feature.")
@click.option("--model", default="", help="Only of this model.")
@click.option("--revision", default="", help="Only of revisions that start with this.")
@click.option("--method", default="", help="Only those made so, such as activation_maximisation.")
@click.option(
    "--verdict",
    type=click.Choice(["trusted", "weak", "unreliable"]),
    help="Only those that can be believed so far.",
)
@click.option("--job", "job_id", default="", help="Only what this job made.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@with_daemon
def list_artifacts(
    *, verdict: str | None, limit: int, address: str, output: str, **wanted: str
) -> None:
    """List pictures, newest first."""
    with channel(address) as opened:
        wanted |= {"verdict": verdict or ""}
        found = _listed(jobs_pb2_grpc.JobServiceStub(opened), limit, wanted)
    if output == "json":
        print_json(found)
        return
    rows = [
        [
            one.picture_digest[:_SHOWN],
            one.manifest_digest[:_SHOWN],
            one.method,
            f"{one.origin or '-'}{' (again)' if one.reproduces else ''}",
            one.verdict or "-",
            one.feature,
        ]
        for one in found
    ]
    print_table(["PICTURE", "MANIFEST", "METHOD", "ORIGIN", "VERDICT", "FEATURE"], rows)


def _listed(
    stub: jobs_pb2_grpc.JobServiceStub, limit: int, wanted: dict[str, str]
) -> list[jobs_pb2.StoredArtifact]:
    found: list[jobs_pb2.StoredArtifact] = []
    token = ""
    while len(found) < limit:
        request = jobs_pb2.ListArtifactsRequest(
            page_size=min(limit - len(found), PAGE), page_token=token, **wanted
        )
        page = stub.ListArtifacts(request, timeout=TIMEOUT_SECONDS)
        found += page.artifacts
        token = page.next_page_token
        if not token:
            break
    return found


@artifact.command(name="get")
@click.argument("digest")
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; default: standard output.",
)
@click.option("--address", envvar="SIDECAR_ADDRESS", default="127.0.0.1:50061", show_default=True)
def get_artifact(digest: str, to: Path | None, address: str) -> None:
    """Fetch one artifact by its sha256."""
    with channel(address) as opened:
        data = fetch(opened, digest)
    if to is None:
        sys.stdout.buffer.write(data)
    else:
        try:
            to.write_bytes(data)
        except OSError as error:
            raise click.FileError(str(to), error.strerror or str(error)) from error
        click.echo(f"{to}: {len(data)} bytes", err=True)


@artifact.command(name="put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_daemon
def put_image(*, file: Path, address: str, output: str) -> None:
    """Store the image FILE, and print the sha256 by which recipes name it.

    Nothing refers to it until a picture was made from it: until then it may go when room is needed.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise click.FileError(str(file), error.strerror or str(error)) from error
    parts = (
        jobs_pb2.PutImageRequest(chunk=data[start : start + _PART_BYTES])
        for start in range(0, len(data), _PART_BYTES)
    )
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        found = stub.PutImage(parts, timeout=TIMEOUT_SECONDS)
    if found.digest != hashlib.sha256(data).hexdigest():
        raise click.ClickException(f"what was stored is not {file}: it was changed on the way")
    if output == "json":
        print_json(found)
    else:
        click.echo(found.digest)


def fetch(opened: grpc.Channel, digest: str) -> bytes:
    """Return the content of an artifact, checked against its name."""
    stub = jobs_pb2_grpc.JobServiceStub(opened)
    request = jobs_pb2.GetArtifactRequest(digest=digest)
    data = b"".join(part.chunk for part in stub.GetArtifact(request, timeout=TIMEOUT_SECONDS))
    if hashlib.sha256(data).hexdigest() != digest:
        raise click.ClickException(f"what came is not {digest}: it was changed on the way")
    return data


def _fetch_if_there(opened: grpc.Channel, digest: str) -> bytes | None:
    """Return an artifact; None where the daemon has none, or had to set it aside as damaged."""
    try:
        return fetch(opened, digest)
    except grpc.RpcError as error:
        code: Any = error.code() if hasattr(error, "code") else None
        detail = str(error.details()) if hasattr(error, "details") else ""
        if code is grpc.StatusCode.NOT_FOUND or detail.startswith("SC702"):
            return None
        raise


def _find(stub: jobs_pb2_grpc.JobServiceStub, digest: str) -> jobs_pb2.StoredArtifact:
    request = jobs_pb2.FindArtifactRequest(digest=digest)
    return stub.FindArtifact(request, timeout=TIMEOUT_SECONDS).artifact


# -- verify ---------------------------------------------------------------------------------------


@artifact.command(name="verify")
@click.argument("digests", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Check every picture there is.")
@click.option(
    "--folder",
    type=click.Path(exists=True, path_type=Path),
    help="A state directory, or an exported folder or archive, instead of a daemon.",
)
@with_daemon
def verify_artifacts(
    *, digests: tuple[str, ...], everything: bool, folder: Path | None, address: str, output: str
) -> None:
    """Check DIGESTS of pictures or manifests; exit 1 where anything is wrong.

    Contents are held against their names, pictures against their manifests, manifests against their
    schema, and the content key against the request.
    """
    if bool(digests) == everything:
        raise click.UsageError("name digests, or say --all")
    if folder is not None:
        found = _verified_in(folder, digests)
    else:
        with channel(address) as opened:
            found = _verified_by(opened, digests)
    _report(found, output)


def _verified_in(folder: Path, digests: tuple[str, ...]) -> list[Any]:
    from sidecar.cli.contents import Contents  # noqa: PLC0415 - loads numpy and the recipes

    contents = Contents(folder)
    if not digests and not len(contents):
        click.echo(f"{folder} has no artifacts: name a state directory or an export", err=True)
        sys.exit(EXIT_NOT_FOUND)
    return [contents.verify(digest) for digest in digests] or list(contents.verify_all())


def _verified_by(opened: grpc.Channel, digests: tuple[str, ...]) -> list[Any]:
    from sidecar.jobs import verify  # noqa: PLC0415 - loads numpy and the recipes

    stub = jobs_pb2_grpc.JobServiceStub(opened)
    if digests:
        manifests = [_find(stub, digest).manifest_digest for digest in digests]
    else:
        manifests = [one.manifest_digest for one in _listed(stub, 1 << 31, {})]
    return [verify(one, lambda digest: _fetch_if_there(opened, digest)) for one in manifests]


def _report(found: list[Any], output: str) -> None:
    """Print what was checked; exit 1 where something is wrong."""
    if output == "json":
        lines = [
            {
                "digest": one.digest,
                "feature": one.feature,
                "picture": one.picture,
                "ok": one.ok,
                "findings": [
                    {"check": f.check, "ok": f.ok, "detail": f.detail} for f in one.findings
                ],
            }
            for one in found
        ]
        click.echo(json.dumps(lines, indent=2))
    else:
        for one in found:
            click.echo(f"{'ok ' if one.ok else 'BAD'} {one.digest} {one.feature}".rstrip())
            for finding in one.findings:
                if finding.ok is not True:
                    mark = "wrong" if finding.ok is False else "unchecked"
                    click.echo(f"    {mark} {finding.check}: {finding.detail}")
    wrong = sum(not one.ok for one in found)
    click.echo(f"{len(found)} checked, {wrong} wrong", err=True)
    if wrong:
        sys.exit(EXIT_FAILED)


# -- reproduce ------------------------------------------------------------------------------------


@artifact.command()
@click.argument("digest")
@click.option("--time-limit", default=0.0, help="Seconds; 0 takes the configured limit.")
@click.option("--strict", is_flag=True, help="Only the same bits count as equal.")
@with_daemon
def reproduce(*, digest: str, time_limit: float, strict: bool, address: str, output: str) -> None:
    """Make the picture of DIGEST again and compare it with the original, which stays.

    Exit 0 where they are equal, but for rounding of 1/255 without --strict; 6 where they differ; 1
    where it cannot be made.
    """
    from sidecar.cli.jobs import follow  # noqa: PLC0415 - only here

    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        original = _find(stub, digest)
        request = jobs_pb2.SubmitJobRequest(
            reproduces=original.manifest_digest, time_limit_seconds=time_limit
        )
        job = stub.SubmitJob(request, timeout=TIMEOUT_SECONDS).job
        ended = follow(stub, job.id)
        if ended.state != jobs_pb2.JOB_STATE_DONE:
            click.echo(f"it cannot be made again: {ended.error_code} {ended.error}", err=True)
            sys.exit(EXIT_FAILED)
        found = _compared(opened, original, ended.artifacts[0])
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        _describe(found)
    if found["verdict"] == "different" or (strict and found["verdict"] != "identical"):
        sys.exit(EXIT_DIFFERENT)


def _compared(
    opened: grpc.Channel, original: jobs_pb2.StoredArtifact, again: jobs_pb2.JobArtifact
) -> dict[str, Any]:
    from sidecar.errors import SidecarError  # noqa: PLC0415 - as below
    from sidecar.jobs import compare, parse_manifest  # noqa: PLC0415 - loads numpy and the recipes

    pictures = [fetch(opened, one.picture_digest) for one in (original, again)]
    manifests = [fetch(opened, one.manifest_digest) for one in (original, again)]
    try:
        facts = [parse_manifest(one) for one in manifests]
        found = compare(pictures[0], pictures[1], facts[0], facts[1])
    except SidecarError as error:
        raise click.ClickException(str(error)) from error
    return {
        "verdict": found.verdict,
        "max_difference": found.max_difference,
        "mean_difference": found.mean_difference,
        "activation_difference": found.activation_difference,
        "changed": [{"what": w, "original": a, "again": b} for w, a, b in found.changed],
        "original": {"picture": original.picture_digest, "manifest": original.manifest_digest},
        "again": {"picture": again.picture_digest, "manifest": again.manifest_digest},
    }


def _describe(found: dict[str, Any]) -> None:
    click.echo(f"verdict     {found['verdict']}")
    click.echo(
        f"pixels      differ by at most {found['max_difference']:.4g} of the range, ", nl=False
    )
    click.echo(f"{found['mean_difference']:.4g} on average")
    if found["activation_difference"] is not None:
        click.echo(f"activation  {found['activation_difference']:+.6g}")
    click.echo(f"original    {found['original']['picture']}")
    click.echo(f"again       {found['again']['picture']}")
    for one in found["changed"]:
        click.echo(f"changed     {one['what']}: {one['original']} -> {one['again']}")
    if not found["changed"]:
        click.echo("changed     nothing that a manifest notes")


# -- export ---------------------------------------------------------------------------------------


@artifact.command()
@click.argument("digests", nargs=-1, required=True)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder, made where it is missing, or a file that ends in .zip.",
)
@click.option("--address", envvar="SIDECAR_ADDRESS", default="127.0.0.1:50061", show_default=True)
def export(digests: tuple[str, ...], to: Path, address: str) -> None:
    """Write the pictures of DIGESTS with manifests, jobs and evidence, readable by themselves."""
    from sidecar.cli.export import export_files, write_export  # noqa: PLC0415 - only here

    with channel(address) as opened:
        ones = list({one.manifest: one for one in _exported(opened, digests)}.values())
    try:
        write_export(export_files(ones, str(to)), to)
    except OSError as error:
        raise click.FileError(str(to), error.strerror or str(error)) from error
    click.echo(f"{to}: {len(ones)} exported; check with `sidecar artifact verify --all --folder`")


def _exported(opened: grpc.Channel, digests: tuple[str, ...]) -> Iterator[Any]:
    from sidecar.cli.export import Exported  # noqa: PLC0415 - as below
    from sidecar.errors import CorruptState  # noqa: PLC0415 - as below
    from sidecar.jobs import artifact_inputs, parse_manifest  # noqa: PLC0415 - loads numpy

    stub = jobs_pb2_grpc.JobServiceStub(opened)
    for digest in digests:
        found = _find(stub, digest)
        manifest = fetch(opened, found.manifest_digest)
        try:
            facts = parse_manifest(manifest)
        except CorruptState as error:
            raise click.ClickException(f"{found.manifest_digest}: {error}") from error
        names = (found.picture_digest, *artifact_inputs(facts))
        contents = {name: fetch(opened, name) for name in names}
        contents[found.manifest_digest] = manifest
        yield Exported(
            found.picture_digest,
            found.manifest_digest,
            facts,
            contents,
            _job(stub, found.job_id),
            _evidence(opened, found.feature, (facts.get("parents") or {}).get("evidence")),
        )


def _job(stub: jobs_pb2_grpc.JobServiceStub, job_id: str) -> dict[str, Any]:
    """Return a job as JSON; nothing where the daemon has forgotten it."""
    try:
        found = stub.GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=TIMEOUT_SECONDS).job
    except grpc.RpcError as error:
        if hasattr(error, "code") and error.code() is grpc.StatusCode.NOT_FOUND:
            return {}
        raise
    return plain(found)


def _evidence(opened: grpc.Channel, feature: str, wanted: str | None) -> dict[str, Any]:
    """Return an evidence record as JSON; nothing where there is none, or it has expired."""
    if not wanted:
        return {}
    stub = features_pb2_grpc.FeatureServiceStub(opened)
    request = features_pb2.GetEvidenceRequest(key=feature, limit=_EVIDENCE_LIMIT)
    records = stub.GetEvidence(request, timeout=TIMEOUT_SECONDS).evidence
    return next((plain(one) for one in records if one.id == wanted), {})


# -- what stays -----------------------------------------------------------------------------------


@artifact.command()
@click.argument("digest")
@click.option("--note", default="", help="Who wants it kept, and why.")
@with_daemon
def pin(digest: str, note: str, address: str, output: str) -> None:
    """Keep the picture of DIGEST and its manifest, whatever room is needed."""
    _pin(jobs_pb2.PinArtifactRequest(digest=digest, pinned=True, note=note), address, output)


@artifact.command()
@click.argument("digest")
@with_daemon
def unpin(digest: str, address: str, output: str) -> None:
    """Let the picture of DIGEST go with the others again."""
    _pin(jobs_pb2.PinArtifactRequest(digest=digest), address, output)


def _pin(request: jobs_pb2.PinArtifactRequest, address: str, output: str) -> None:
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        found = stub.PinArtifact(request, timeout=TIMEOUT_SECONDS).artifact
    if output == "json":
        print_json(found)
    else:
        click.echo(f"{'pinned' if request.pinned else 'unpinned'} {found.picture_digest}")
        click.echo(f"and its manifest {found.manifest_digest} of {found.feature}")


@artifact.command()
@click.option("--dry-run", is_flag=True, help="Say what would go and why the rest stays.")
@with_daemon
def gc(*, dry_run: bool, address: str, output: str) -> None:
    """Remove what nobody refers to and is too old or too much, as the daemon does each minute."""
    request = jobs_pb2.CollectArtifactsRequest(dry_run=dry_run)
    with channel(address) as opened:
        stub = jobs_pb2_grpc.JobServiceStub(opened)
        pages = stub.CollectArtifacts(request, timeout=TIMEOUT_SECONDS)
        found = [one for page in pages for one in page.fates]
    if output == "json":
        print_json(found)
        return
    shown = [one for one in found if dry_run or one.reason]
    rows = [
        ["goes" if one.reason else "stays", str(one.size_bytes), one.digest[:_SHOWN], one.why]
        for one in shown
    ]
    print_table(["FATE", "BYTES", "DIGEST", "WHY"], rows)
    goes = [one for one in found if one.reason]
    words = "would go" if dry_run else "removed"
    size = sum(one.size_bytes for one in goes)
    click.echo(f"{len(goes)} of {len(found)} artifacts {words}, {size} bytes", err=True)
