"""Pictures and manifests as contents that are named by their sha256, within limits."""

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import structlog

from sidecar.errors import CorruptState, DiskFull, InvalidName, StorageError, UnknownArtifact
from sidecar.store.files import storage_errors
from sidecar.store.shelf import DIGEST, MEDIA_TYPE, Entry, LocalShelf, Shelf, measure

_log = structlog.get_logger(__name__)

REMOVED_FOR = ("bytes", "age")
"""Why artifacts are removed: there is no room for them, or they are too old."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored content.

    Attributes:
        digest: sha256 of its content in hexadecimal; its name.
        size: Bytes.
        media_type: What it is, such as ``image/png``.
    """

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Removal:
    """One artifact that a collection removes.

    Attributes:
        entry: Which.
        reason: One of ``REMOVED_FOR``.
    """

    entry: Entry
    reason: str


class ArtifactStore:
    """Contents by sha256 on a shelf, bounded in bytes.

    No string of a user becomes part of a path: whatever is not 64 hexadecimal digits is unknown.
    Safe to use from several threads; one process owns the shelf.

    Attributes:
        quarantined: Damaged contents that were set aside since it was opened.
    """

    def __init__(self, place: Path | Shelf, limit_bytes: int) -> None:
        """Count what is there.

        Args:
            place: A shelf, or the folder of a local one; made where it is missing.
            limit_bytes: Most bytes of content; beyond it ``put`` refuses, see ``collect``.

        Raises:
            StorageError: The folder cannot be made or read.
        """
        self._shelf: Shelf = LocalShelf(place) if isinstance(place, Path) else place
        self._limit_bytes = limit_bytes
        self._guard = threading.Lock()
        self._verified: dict[str, tuple[int, int]] = {}
        self._removed = Counter(dict.fromkeys(REMOVED_FOR, 0))
        self.quarantined = 0
        self._count(tuple(self._shelf.entries()))

    def _count(self, entries: tuple[Entry, ...]) -> None:
        self._number, self._used_bytes = len(entries), sum(one.size for one in entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of content stored."""
        return self._used_bytes

    @property
    def number(self) -> int:
        """How many artifacts are stored."""
        return self._number

    @property
    def limit_bytes(self) -> int:
        """Most bytes of content that may be stored."""
        return self._limit_bytes

    @property
    def removed(self) -> Mapping[str, int]:
        """How many artifacts were removed since it was opened, by reason."""
        return dict(self._removed)

    def put(self, data: bytes | Path, media_type: str) -> Artifact:
        """Store content and return its name; it is safe when this returns.

        Storing the same content again changes nothing but its age for ``collect``; the media type
        of the first time stands.

        Args:
            data: The content, or a file to copy it from.
            media_type: What it is.

        Raises:
            DiskFull: The disk is full, or the store would exceed its limit: ``collect`` first.
            StoreUnreachable: The store is elsewhere and does not answer; nothing was stored.
            StorageError: The folder cannot be written, or the file not read.
            InvalidName: The media type is none.
        """
        if not MEDIA_TYPE.fullmatch(media_type):
            raise InvalidName(f"media type {media_type[:80]!r} is not of the form 'image/png'")
        with self._guard, storage_errors(f"store an artifact in {self._shelf}"):
            digest, size = measure(data)
            known = self._shelf.find(digest)
            if known is not None and known.size == size:
                self._shelf.touch(digest, data)
            else:
                self._write(data, digest, size, media_type)
            return Artifact(digest, size, self._shelf.media_type(digest))

    def _write(self, data: bytes | Path, digest: str, size: int, media_type: str) -> None:
        if self._used_bytes + size > self._limit_bytes:
            raise DiskFull(
                f"{size} bytes do not fit into {self._shelf}: {self._used_bytes} of "
                f"{self._limit_bytes} are used; raise store.artifact_limit_bytes"
            )
        self._shelf.write(digest, data, media_type)
        self._used_bytes += size
        self._number += 1

    def get(self, digest: str) -> bytes:
        """Return the content of an artifact, checked against its name.

        Raises:
            UnknownArtifact: There is none of this name.
            CorruptState: The disk changed it; it is set aside, so that it can be made again.
            StoreUnreachable: The store is elsewhere and does not answer.
        """
        self._check_known(digest)
        with storage_errors(f"read artifact {digest}"):
            try:
                content = self._shelf.path(digest).read_bytes()
            except FileNotFoundError as error:
                raise UnknownArtifact(f"artifact {digest} was just removed") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._quarantine(digest)
        return content

    def open(self, digest: str) -> tuple[Path, str]:
        """Return the path of an artifact, to be read only, and its media type.

        The content is checked against the name when the file is first opened by this process, and
        again whenever its size or time of change is another.

        Raises:
            UnknownArtifact: There is none of this name.
            CorruptState: The disk changed it; it is set aside, so that it can be made again.
            StoreUnreachable: The store is elsewhere and does not answer.
        """
        self._check_known(digest)
        try:
            path = self._shelf.path(digest)
            stat = path.stat()
            seen = stat.st_size, stat.st_mtime_ns
            if self._verified.get(digest) != seen:
                if measure(path)[0] != digest:
                    raise self._quarantine(digest)
                self._verified[digest] = seen
        except FileNotFoundError as error:
            raise UnknownArtifact(f"artifact {digest} was just removed") from error
        except OSError as error:
            raise StorageError(f"cannot read artifact {digest}: {error.strerror}") from error
        return path, self._shelf.media_type(digest)

    def _check_known(self, digest: str) -> None:
        if not self.has(digest):
            raise UnknownArtifact(f"no artifact {digest[:80]!r}: use the 64 digits of a picture")

    def has(self, digest: str) -> bool:
        """Return whether an artifact of this name is stored."""
        return bool(DIGEST.fullmatch(digest)) and self._shelf.find(digest) is not None

    def entries(self) -> tuple[Entry, ...]:
        """Return everything that is stored, the oldest first."""
        found = self._shelf.entries()
        return tuple(sorted(found, key=lambda entry: (entry.modified, entry.digest)))

    def plan(
        self,
        keep: AbstractSet[str],
        room_bytes: int = 0,
        *,
        before: float = 0.0,
        together: Mapping[str, AbstractSet[str]] = MappingProxyType({}),
    ) -> tuple[Removal, ...]:
        """Return what ``collect`` would remove, in its order, and why; nothing is removed."""
        return self._plan(self.entries(), keep, room_bytes, before, together)

    def _plan(
        self,
        entries: tuple[Entry, ...],
        keep: AbstractSet[str],
        room_bytes: int,
        before: float,
        together: Mapping[str, AbstractSet[str]],
    ) -> tuple[Removal, ...]:
        over = sum(entry.size for entry in entries) + room_bytes - self._limit_bytes
        free = {entry.digest: entry for entry in entries if entry.digest not in keep}
        removals = []
        for entry in entries:
            aged = entry.modified < before
            if entry.digest not in free or not (aged or over > 0):
                continue
            for digest in (entry.digest, *sorted(together.get(entry.digest, ()))):
                if (gone := free.pop(digest, None)) is not None:
                    over -= gone.size
                    removals.append(Removal(gone, "age" if aged else "bytes"))
        return tuple(removals)

    def collect(
        self,
        keep: AbstractSet[str],
        room_bytes: int = 0,
        *,
        before: float = 0.0,
        together: Mapping[str, AbstractSet[str]] = MappingProxyType({}),
    ) -> tuple[str, ...]:
        """Remove artifacts that nobody refers to: those too old, and the oldest beyond the limit.

        Args:
            keep: Digests that must stay.
            room_bytes: Bytes that shall fit in afterwards.
            before: Unix seconds; what was last stored earlier goes, however much room there is.
            together: For a digest, those that are worth nothing without it and go with it.

        Returns:
            The digests removed; empty where the store is within its limits already.

        Raises:
            StorageError: The folder cannot be read or written.
        """
        with self._guard:
            entries = self.entries()
            self._count(entries)
            removals = self._plan(entries, keep, room_bytes, before, together)
            for removal in removals:
                self._shelf.delete(removal.entry.digest)
                self._verified.pop(removal.entry.digest, None)
                self._used_bytes -= removal.entry.size
                self._number -= 1
                self._removed[removal.reason] += 1
        if removals:
            _log.info("artifacts_collected", removed=len(removals), used_bytes=self._used_bytes)
        return tuple(removal.entry.digest for removal in removals)

    def _quarantine(self, digest: str) -> CorruptState:
        with self._guard:
            known = self._shelf.find(digest)
            if known is not None:
                kept = self._shelf.set_aside(digest)
                self._used_bytes -= known.size
                self._number -= 1
                self.quarantined += 1
                _log.error("artifact_quarantined", digest=digest, kept=kept)
        return CorruptState(f"artifact {digest} does not match its name: ask for it anew")
