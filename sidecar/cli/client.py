"""What the commands that talk to a daemon share: the channel, the output, the exit codes."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

DEFAULT_ADDRESS = "127.0.0.1:50061"
TIMEOUT_SECONDS = 10.0

EXITS = {
    grpc.StatusCode.NOT_FOUND: 3,
    grpc.StatusCode.FAILED_PRECONDITION: 4,
    grpc.StatusCode.INVALID_ARGUMENT: 2,
    grpc.StatusCode.UNAVAILABLE: 5,
    grpc.StatusCode.DEADLINE_EXCEEDED: 5,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 5,
}

Command = Callable[..., Any]


def with_daemon(command: Command) -> Command:
    """Add the options of a command that talks to a daemon."""
    command = click.option(
        "--address",
        envvar="SIDECAR_ADDRESS",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="The daemon's gRPC address: host:port or unix:///path.",
    )(command)
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Form of what is printed.",
    )(command)


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """Open a channel; an RPC error inside ends the command with its text and exit code."""
    try:
        with grpc.insecure_channel(address.removeprefix("grpc://")) as opened:
            yield opened
    except grpc.RpcError as error:
        code: Any = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
        detail = error.details() if hasattr(error, "details") else str(error)
        if code is grpc.StatusCode.UNAVAILABLE and not str(detail).startswith("SC"):
            detail = f"no daemon answers at {address}: start it, or name another with --address"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not str(detail).startswith("SC"):
            detail = (
                f"the daemon at {address} did not answer within {TIMEOUT_SECONDS:g} s: try again, or "
                "look at its /livez"
            )
        click.echo(detail, err=True)
        sys.exit(EXITS.get(code, 1))


def print_json(message: Message | Sequence[Message]) -> None:
    """Print one message, or a list of them, as JSON with every field."""
    found = plain(message) if isinstance(message, Message) else [plain(m) for m in message]
    click.echo(json.dumps(found, indent=2))


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON values, with every field."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
