"""Where artifacts lie: one interface, and the folder of the local disk behind it."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sidecar.store.files import (
    rename_synced,
    set_aside,
    storage_errors,
    sync_folder,
    write_synced,
)

DIGEST = re.compile(r"[0-9a-f]{64}")
MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+\-]{0,80}")
UNKNOWN_TYPE = "application/octet-stream"
TYPE_SUFFIX = ".type"

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One content on a shelf.

    Attributes:
        digest: sha256 of the content in hexadecimal; its name.
        size: Bytes.
        modified: Unix seconds at which it was last put there.
    """

    digest: str
    size: int
    modified: float


class Shelf(Protocol):
    """Contents by sha256, each whole or not there.

    Every digest handed in is 64 hexadecimal digits. A write that has returned survives a power cut.
    Safe to use from several threads; one process owns the place. What cannot be done is a
    ``StorageError``: ``StoreUnreachable`` where another time may do.
    """

    def entries(self) -> Iterator[Entry]:
        """Yield everything that is there, in any order."""

    def find(self, digest: str) -> Entry | None:
        """Return an entry; None where there is none."""

    def write(self, digest: str, data: bytes | Path, media_type: str) -> None:
        """Put content under its name, replacing what is there."""

    def touch(self, digest: str, data: bytes | Path) -> None:
        """Make an entry as young as if it had just been written; ``data`` is its content."""

    def path(self, digest: str) -> Path:
        """Return a local file with the content, to be read only.

        Raises:
            FileNotFoundError: There is none.
        """

    def media_type(self, digest: str) -> str:
        """Return the media type of an entry."""

    def delete(self, digest: str) -> None:
        """Remove an entry; one that is not there is no error."""

    def set_aside(self, digest: str) -> str:
        """Take a damaged entry out of use, keep it for people to look at, and say where."""


class LocalShelf:
    """Files in a two-level tree below a folder, each synced and renamed into place."""

    def __init__(self, root: Path) -> None:
        """Make the folder where it is missing, and remove what interrupted writes left.

        Raises:
            StorageError: The folder cannot be made or read.
        """
        self._root = root
        self._incoming = root / "incoming"
        with storage_errors(f"use {root}"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            for orphan in self._incoming.iterdir():
                orphan.unlink(missing_ok=True)

    def __str__(self) -> str:
        """Return the folder."""
        return str(self._root)

    def entries(self) -> Iterator[Entry]:
        """Yield every file named by a digest."""
        with storage_errors(f"list {self._root}"):
            for path in self._root.glob("??/??/*"):
                if DIGEST.fullmatch(path.name):
                    yield _entry(path)

    def find(self, digest: str) -> Entry | None:
        """Return the entry of a file; None where there is none."""
        path = self._place(digest)
        try:
            return _entry(path) if path.is_file() else None
        except FileNotFoundError:
            return None

    def write(self, digest: str, data: bytes | Path, media_type: str) -> None:
        """Write a file and its type; both are on the disk when this returns."""
        path = self._place(digest)
        with storage_errors(f"store an artifact in {self._root}"):
            for folder in (path.parent.parent, path.parent):
                if not folder.is_dir():
                    folder.mkdir()
                    sync_folder(folder.parent)
            # The type goes first, so that content is never there without it.
            self._move((media_type.encode(),), path.with_name(digest + TYPE_SUFFIX))
            self._move(chunks_of(data), path)

    def _move(self, chunks: Iterator[bytes] | tuple[bytes, ...], path: Path) -> None:
        temporary = self._incoming / uuid.uuid4().hex
        write_synced(temporary, chunks)
        rename_synced(temporary, path)

    def touch(self, digest: str, data: bytes | Path) -> None:  # noqa: ARG002 - others write it anew
        """Set a file's time of change to now."""
        with storage_errors(f"store an artifact in {self._root}"):
            os.utime(self._place(digest))

    def path(self, digest: str) -> Path:
        """Return the file itself."""
        path = self._place(digest)
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def media_type(self, digest: str) -> str:
        """Return what the file beside it says; octets where that is lost or damaged."""
        path = self._place(digest)
        try:
            return checked_type(path.with_name(digest + TYPE_SUFFIX).read_bytes())
        except OSError:
            return UNKNOWN_TYPE

    def delete(self, digest: str) -> None:
        """Remove a file and its type."""
        path = self._place(digest)
        with storage_errors(f"remove artifacts from {self._root}"):
            path.unlink(missing_ok=True)
            path.with_name(digest + TYPE_SUFFIX).unlink(missing_ok=True)

    def set_aside(self, digest: str) -> str:
        """Rename a file; see ``files.set_aside``."""
        path = self._place(digest)
        with storage_errors(f"set {path} aside"):
            return str(set_aside(path))

    def _place(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:4] / digest


def _entry(path: Path) -> Entry:
    stat = path.stat()
    return Entry(path.name, stat.st_size, stat.st_mtime_ns / 1e9)


def checked_type(text: bytes) -> str:
    """Return a stored media type; octets where it is none, for it becomes a header."""
    found = text.decode("ascii", "replace")
    return found if MEDIA_TYPE.fullmatch(found) else UNKNOWN_TYPE


def measure(data: bytes | Path) -> tuple[str, int]:
    """Return the sha256 and the bytes of some content."""
    digest = hashlib.sha256()
    size = 0
    for chunk in chunks_of(data):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def chunks_of(data: bytes | Path) -> Iterator[bytes]:
    """Yield content piece by piece."""
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
