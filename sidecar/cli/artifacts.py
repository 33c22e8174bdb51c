"""``sidecar artifact``."""

import hashlib
import sys
from pathlib import Path

import click
import grpc

from sidecar.cli.client import TIMEOUT_SECONDS, channel
from sidecar.wire.v1 import jobs_pb2, jobs_pb2_grpc


@click.group()
def artifact() -> None:
    """Fetch pictures and manifests."""


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


def fetch(opened: grpc.Channel, digest: str) -> bytes:
    """Return the content of an artifact, checked against its name."""
    stub = jobs_pb2_grpc.JobServiceStub(opened)
    request = jobs_pb2.GetArtifactRequest(digest=digest)
    data = b"".join(part.chunk for part in stub.GetArtifact(request, timeout=TIMEOUT_SECONDS))
    if hashlib.sha256(data).hexdigest() != digest:
        raise click.ClickException(f"what came is not {digest}: it was changed on the way")
    return data
