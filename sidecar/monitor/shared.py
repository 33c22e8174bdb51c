"""The folder of baselines that replicas share: which file is for which layer, looked at now and then."""

import math
from dataclasses import dataclass
from pathlib import Path

import structlog

from sidecar.errors import CorruptState
from sidecar.features import LayerKey
from sidecar.store import unpack_baseline

SUFFIX = ".baseline"
"""Of the files that a folder of shared baselines is searched for."""

LOOK_SECONDS = 60.0
"""Least time between two looks: a replica adopts what was published within a minute, and a folder on the
network is not asked more often."""

_ABSENT = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file of the folder as it was when it was looked at.

    Attributes:
        path: Where it is.
        mark: Its time, size and inode; another one tells that it was replaced.
    """

    path: Path
    mark: tuple[int, int, int]


class SharedFolder:
    """Says which file of a folder is for a layer; not safe for several threads."""

    def __init__(self, folder: Path | None) -> None:
        """Look at nothing yet; without a folder there never is a file."""
        self._folder = folder
        self._layers: dict[SharedFile, LayerKey | None] = {}
        self._newest: dict[LayerKey, SharedFile] = {}
        self._looked = -math.inf

    def look(self, now: float) -> bool:
        """Read the files that are new or were replaced, if it is time; return whether it was.

        One that cannot be read is told once, until it is replaced.

        Args:
            now: Unix seconds; a clock that was put back makes it time.
        """
        if self._folder is None or self._looked <= now < self._looked + LOOK_SECONDS:
            return False
        self._looked = now
        try:
            found = [
                SharedFile(path, _mark(path)) for path in sorted(self._folder.glob(f"*{SUFFIX}"))
            ]
        except OSError as error:  # a folder on the network may be away for a while
            _tell(self._folder, error)
            return False
        self._layers = {
            file: self._layers[file] if file in self._layers else _layer(file.path)
            for file in found
        }
        self._newest = {layer: file for file, layer in self._layers.items() if layer is not None}
        return True

    def file_for(self, layer: LayerKey) -> SharedFile | None:
        """Return the file that was made for a layer, of several the last by name; None: none."""
        return self._newest.get(layer)


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:  # it went away since it was listed, or is a link to nothing
        return _ABSENT
    return found.st_mtime_ns, found.st_size, found.st_ino


def _layer(path: Path) -> LayerKey | None:
    try:
        return unpack_baseline(path.read_bytes())[0].layer
    except (CorruptState, OSError) as error:
        _tell(path, error)
        return None


def _tell(path: Path, error: Exception) -> None:
    structlog.get_logger().warning("baseline_unreadable", path=str(path), error=str(error))
