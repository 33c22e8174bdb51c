"""Pictures and manifests as files that are named by their content."""

import hashlib
import os
import re
import threading
import uuid
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import structlog

from sidecar.errors import CorruptState, DiskFull, InvalidName, StorageError, UnknownArtifact
from sidecar.store.files import (
    rename_synced,
    set_aside,
    storage_errors,
    sync_folder,
    write_synced,
)

_log = structlog.get_logger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+\-]{0,80}")
_UNKNOWN_TYPE = "application/octet-stream"
_CHUNK_BYTES = 1 << 20
_TYPE_SUFFIX = ".type"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored file.

    Attributes:
        digest: sha256 of its content in hexadecimal; its name.
        size: Bytes.
        media_type: What it is, such as ``image/png``.
    """

    digest: str
    size: int
    media_type: str


class ArtifactStore:
    """Files by sha256 in a two-level tree, bounded in bytes.

    No string of a user becomes part of a path: whatever is not 64 hexadecimal digits is unknown.
    Safe to use from several threads; one process owns the folder.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Count what is there, and remove what interrupted writes left.

        Args:
            root: The folder; made where it is missing.
            limit_bytes: Most bytes of content; beyond it ``put`` refuses, see ``collect``.

        Raises:
            StorageError: The folder cannot be made or read.
        """
        self._root = root
        self._limit_bytes = limit_bytes
        self._incoming = root / "incoming"
        self._guard = threading.Lock()
        self._verified: dict[str, tuple[int, int]] = {}
        self.quarantined = 0
        with storage_errors(f"use {root}"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            for orphan in self._incoming.iterdir():
                orphan.unlink(missing_ok=True)
            self._used_bytes = sum(stat.st_size for _, stat in self._files())

    @property
    def used_bytes(self) -> int:
        """Bytes of content stored."""
        return self._used_bytes

    @property
    def limit_bytes(self) -> int:
        """Most bytes of content that may be stored."""
        return self._limit_bytes

    def put(self, data: bytes | Path, media_type: str) -> Artifact:
        """Store content and return its name; it is on the disk when this returns.

        Storing the same content again changes nothing but its age for ``collect``; the media type
        of the first time stands.

        Args:
            data: The content, or a file to copy it from.
            media_type: What it is.

        Raises:
            DiskFull: The disk is full, or the store would exceed its limit: ``collect`` first.
            StorageError: The folder cannot be written, or the file not read.
            InvalidName: The media type is none.
        """
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise InvalidName(f"media type {media_type[:80]!r} is not of the form 'image/png'")
        with self._guard, storage_errors(f"store an artifact in {self._root}"):
            digest, size = _measure(data)
            path = self._path(digest)
            if not (path.is_file() and path.stat().st_size == size):
                self._write(data, digest, size, media_type)
            os.utime(path)
            return Artifact(digest, size, self._media_type(path))

    def _write(self, data: bytes | Path, digest: str, size: int, media_type: str) -> None:
        if self._used_bytes + size > self._limit_bytes:
            raise DiskFull(
                f"{size} bytes do not fit into {self._root}: {self._used_bytes} of "
                f"{self._limit_bytes} are used; raise store.artifact_limit_bytes"
            )
        path = self._path(digest)
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir()
                sync_folder(folder.parent)
        # The type goes first, so that content is never there without it.
        self._place((media_type.encode(),), path.with_name(digest + _TYPE_SUFFIX))
        self._place(_chunks(data), path)
        self._used_bytes += size

    def _place(self, chunks: Iterator[bytes] | tuple[bytes, ...], path: Path) -> None:
        temporary = self._incoming / uuid.uuid4().hex
        write_synced(temporary, chunks)
        rename_synced(temporary, path)

    def get(self, digest: str) -> bytes:
        """Return the content of an artifact, checked against its name.

        Raises:
            UnknownArtifact: There is none of this name.
            CorruptState: The disk changed it; it is set aside, so that it can be made again.
        """
        path = self._known(digest)
        with storage_errors(f"read artifact {digest}"):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._quarantine(path)
        return content

    def open(self, digest: str) -> tuple[Path, str]:
        """Return the path of an artifact, to be read only, and its media type.

        The content is checked against the name when the file is first opened by this process, and
        again whenever its size or time of change is another.

        Raises:
            UnknownArtifact: There is none of this name.
            CorruptState: The disk changed it; it is set aside, so that it can be made again.
        """
        path = self._known(digest)
        try:
            stat = path.stat()
            seen = stat.st_size, stat.st_mtime_ns
            if self._verified.get(digest) != seen:
                if _measure(path)[0] != digest:
                    raise self._quarantine(path)
                self._verified[digest] = seen
        except FileNotFoundError as error:
            raise UnknownArtifact(f"artifact {digest} was just removed") from error
        except OSError as error:
            raise StorageError(f"cannot read artifact {digest}: {error.strerror}") from error
        return path, self._media_type(path)

    def _known(self, digest: str) -> Path:
        if not self.has(digest):
            raise UnknownArtifact(f"no artifact {digest[:80]!r}: use the 64 digits of a picture")
        return self._path(digest)

    def has(self, digest: str) -> bool:
        """Return whether an artifact of this name is stored."""
        return bool(_DIGEST.fullmatch(digest)) and self._path(digest).is_file()

    def collect(self, keep: AbstractSet[str], room_bytes: int = 0) -> tuple[str, ...]:
        """Remove the oldest artifacts that nobody refers to until the store is within its limit.

        Args:
            keep: Digests that must stay.
            room_bytes: Bytes that shall fit in afterwards.

        Returns:
            The digests removed; empty where the store is within its limit already.

        Raises:
            StorageError: The folder cannot be read or written.
        """
        removed = []
        with self._guard, storage_errors(f"collect artifacts in {self._root}"):
            files = sorted(self._files(), key=lambda found: found[1].st_mtime_ns)
            used = sum(stat.st_size for _, stat in files)
            for path, stat in files:
                if used + room_bytes <= self._limit_bytes:
                    break
                if path.name not in keep:
                    path.unlink(missing_ok=True)
                    path.with_name(path.name + _TYPE_SUFFIX).unlink(missing_ok=True)
                    self._verified.pop(path.name, None)
                    used -= stat.st_size
                    removed.append(path.name)
            self._used_bytes = used
        if removed:
            _log.info("artifacts_collected", removed=len(removed), used_bytes=used)
        return tuple(removed)

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:4] / digest

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._root.glob("??/??/*"):
            if _DIGEST.fullmatch(path.name):
                yield path, path.stat()

    def _media_type(self, path: Path) -> str:
        try:
            text = path.with_name(path.name + _TYPE_SUFFIX).read_text("ascii", "replace")
        except OSError:
            return _UNKNOWN_TYPE
        return text if _MEDIA_TYPE.fullmatch(text) else _UNKNOWN_TYPE

    def _quarantine(self, path: Path) -> CorruptState:
        with self._guard, storage_errors(f"set {path} aside"):
            size = path.stat().st_size
            kept = set_aside(path)
            self._used_bytes -= size
            self.quarantined += 1
        _log.error("artifact_quarantined", path=str(path), kept=str(kept))
        return CorruptState(f"artifact {path.name} does not match its name: ask for it anew")


def _measure(data: bytes | Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(data):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _chunks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
