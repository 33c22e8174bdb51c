"""Snapshots of the state that lives in memory: two generations of one checked file."""

import re
import struct
import threading
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from sidecar.errors import CorruptState
from sidecar.features import check_name
from sidecar.store.files import (
    QUARANTINE_LIMIT,
    rename_synced,
    set_aside,
    storage_errors,
    write_synced,
)

_log = structlog.get_logger(__name__)

_MAGIC = b"SCSNAP\r\n"  # the line end shows a copy that went through a text conversion
_VERSION = 1
_HEADER = struct.Struct("<8sHQ")  # magic, version, payload bytes; then the CRC of all of it
_CHECK = struct.Struct("<I")
_KEPT = 2  # the newest, and one older for when the newest turns out damaged


class Snapshots:
    """Keeps the newest two versions of one payload, each under its own name and checksum.

    A crash during ``save`` leaves the versions of before; a damaged version is renamed to
    ``*.corrupt-<n>`` and the older one is used.

    Attributes:
        quarantined: Damaged versions set aside since this object was made.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Look into the folder, making it where it is missing, and drop what crashes left there.

        Args:
            root: The folder; several names may share it.
            name: What is snapshotted; part of the file names.

        Raises:
            InvalidName: The name could not be a file name.
            StorageError: The folder cannot be made or read.
        """
        self.quarantined = 0
        self._root = root
        self._name = check_name("snapshot", name)
        self._guard = threading.Lock()
        self._pattern = re.compile(re.escape(name) + r"\.(\d{12})\.snapshot")
        with storage_errors(f"use {root}"):
            root.mkdir(parents=True, exist_ok=True)
            for orphan in root.glob(f"{name}.*.tmp"):
                orphan.unlink(missing_ok=True)

    def save(self, payload: bytes) -> None:
        """Make ``payload`` the newest version; it is on the disk when this returns.

        Raises:
            DiskFull: There is no room; the versions of before are untouched.
            StorageError: The folder cannot be written.
        """
        with self._guard, storage_errors(f"save snapshot {self._name} in {self._root}"):
            known = self._generations()
            number = known[0] + 1 if known else 1
            temporary = self._root / f"{self._name}.{uuid.uuid4().hex}.tmp"
            write_synced(temporary, (_frame(payload), payload))
            rename_synced(temporary, self._path(number))
            for old in known[_KEPT - 1 :]:
                self._path(old).unlink(missing_ok=True)

    def load(self, use: Callable[[bytes], None] | None = None) -> bytes | None:
        """Return the newest undamaged payload, or None where there is none.

        Never raises on what the files hold: one that fails its checks is set aside and counted.

        Args:
            use: Takes a payload in, or raises ``CorruptState`` on one it cannot use, such as that of
                other settings: it is set aside too, so that the next saves do not overwrite it, and
                the older one is tried.
        """
        with self._guard:
            for number in self._generations():
                path = self._path(number)
                try:
                    payload = _payload(path.read_bytes())
                    if use is not None:
                        use(payload)
                    return payload
                except (CorruptState, OSError) as error:
                    self._quarantine(path, str(error))
        return None

    def _generations(self) -> list[int]:
        """Return the numbers of the versions on the disk, newest first."""
        names = (self._pattern.fullmatch(path.name) for path in self._root.iterdir())
        return sorted((int(match[1]) for match in names if match), reverse=True)

    def _path(self, number: int) -> Path:
        return self._root / f"{self._name}.{number:012d}.snapshot"

    def _quarantine(self, path: Path, problem: str) -> None:
        self.quarantined += 1
        # A folder that cannot be written must not keep the older version from being read.
        with suppress(OSError):
            set_aside(path)
            self._forget_oldest_damaged()
        _log.error("snapshot_quarantined", path=str(path), problem=problem)

    def _forget_oldest_damaged(self) -> None:
        """Keep the newest damaged copies over all versions; each version is damaged only once."""
        pattern = re.compile(self._pattern.pattern + r"\.corrupt-\d+")
        damaged = [path for path in self._root.iterdir() if pattern.fullmatch(path.name)]
        damaged.sort(key=lambda path: path.stat().st_ctime_ns)  # the time of the renaming
        for path in damaged[:-QUARANTINE_LIMIT]:
            path.unlink(missing_ok=True)


def _frame(payload: bytes) -> bytes:
    head = _HEADER.pack(_MAGIC, _VERSION, len(payload))
    return head + _CHECK.pack(zlib.crc32(payload, zlib.crc32(head)))


def _payload(content: bytes) -> bytes:
    start = _HEADER.size + _CHECK.size
    if len(content) < start:
        raise CorruptState(f"{len(content)} bytes are no snapshot: its header has {start}")
    magic, version, size = _HEADER.unpack_from(content)
    (expected,) = _CHECK.unpack_from(content, _HEADER.size)
    payload = content[start:]
    if magic != _MAGIC or size != len(payload):
        raise CorruptState(f"no snapshot, or cut short: says {size} bytes, holds {len(payload)}")
    if expected != zlib.crc32(payload, zlib.crc32(content[: _HEADER.size])):
        raise CorruptState("the checksum does not match the content")
    if version != _VERSION:
        raise CorruptState(f"version {version} is of another release: this one reads {_VERSION}")
    return payload
