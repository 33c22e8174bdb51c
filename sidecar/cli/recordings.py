"""What the commands that read recordings share."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from sidecar.config import load_policy
from sidecar.errors import ConfigError, NotFound, SidecarError
from sidecar.features import LayerKey
from sidecar.replay import Policy, counted
from sidecar.store import ReadCounts, WindowRecord, find_segments, read_recordings

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND = 1, 2, 3

YAML = click.Path(dir_okay=False, path_type=Path)
RECORDINGS = click.argument(
    "recordings", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORDINGS..."
)
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of what is printed.",
)


@contextmanager
def told() -> Iterator[None]:
    """End the command with the words and the exit code of what the sidecar foresees."""
    try:
        yield
    except SidecarError as error:
        click.echo(f"{error.code} {error.message}", err=True)
        kinds = ((ConfigError, EXIT_USAGE), (NotFound, EXIT_NOT_FOUND))
        sys.exit(next((code for kind, code in kinds if isinstance(error, kind)), EXIT_FAILED))


class Source:
    """Recordings that may be read more than once; what the first reading found is kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._segments = find_segments(paths)
        self.counts = ReadCounts()

    def windows(self) -> Iterator[WindowRecord]:
        """Yield every window, from the first on."""
        self.counts = ReadCounts()
        return read_recordings(self._segments, self.counts)

    def notes(self) -> Iterator[str]:
        """Yield what was lost, in words."""
        if self.counts.torn_segments:
            yield (
                f"of {counted(self.counts.segments, 'file')} {self.counts.torn_segments} with a torn end, in all "
                f"{counted(self.counts.lost_bytes, 'byte')} without a whole record: the daemon was killed "
                "while it wrote, or the disk damaged them"
            )
        if self.counts.unreadable:
            yield f"left out: {counted(self.counts.unreadable, 'record')} that this release cannot read"


def policy_of(path: Path | None) -> Policy:
    """Return the policy of a file; without one that of no settings."""
    return Policy() if path is None else Policy.of(str(path), load_policy(path))


def named(layer: LayerKey) -> str:
    """Return a layer as people see it, its revision cut."""
    return str(replace(layer, revision=layer.shown_revision))
