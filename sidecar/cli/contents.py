"""Artifacts outside a daemon: state directories, exported folders and exported archives."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from sidecar.errors import CorruptState
from sidecar.jobs import Finding, Verification, parse_manifest, verify

_NAME = re.compile(r"([0-9a-f]{64})(\.png|\.json|\.bin)?")
_LIMIT_BYTES = 1 << 30  # of one file: no artifact is larger, and an archive may claim anything


class Contents:
    """Files named by their sha256, wherever they lie.

    Raises:
        click.ClickException: The place is neither a folder nor a zip archive.
    """

    def __init__(self, place: Path) -> None:
        """Look for files that are named by a digest, with or without an ending."""
        self._readers: Mapping[str, Callable[[], bytes]]
        if place.is_dir():
            self._readers = {
                match[1]: path.read_bytes
                for path in sorted(place.rglob("*"))
                if (match := _NAME.fullmatch(path.name)) and path.is_file()
            }
        elif zipfile.is_zipfile(place):
            self._readers = _of_archive(place)
        else:
            raise click.ClickException(f"{place} is neither a folder nor a zip archive")

    def __len__(self) -> int:
        """Return how many files there are."""
        return len(self._readers)

    def read(self, digest: str) -> bytes | None:
        """Return the file of a digest; None where there is none."""
        reader = self._readers.get(digest)
        return None if reader is None else reader()

    def verify(self, digest: str) -> Verification:
        """Check the manifest that a digest names, or that belongs to the picture it names."""
        content = self.read(digest)
        if content is None or _is_manifest(content):
            return verify(digest, self.read)
        for other in self._readers:
            found = self._manifest(other)
            if found is not None and found.picture == digest:
                return found
        words = f"there is no manifest of {digest}: a picture alone says nothing"
        return Verification(digest, "", digest, (Finding("manifest", ok=False, detail=words),))

    def verify_all(self) -> tuple[Verification, ...]:
        """Check every manifest, and the content of every file that none of them is about."""
        manifests = [found for digest in self._readers if (found := self._manifest(digest))]
        seen = {digest for one in manifests for digest in (one.digest, one.picture)}
        rest = (self._bare(digest) for digest in self._readers if digest not in seen)
        return (*manifests, *(one for one in rest if not one.ok))

    def _manifest(self, digest: str) -> Verification | None:
        content = self.read(digest)
        if content is None or not _is_manifest(content):
            return None
        return verify(digest, self.read)

    def _bare(self, digest: str) -> Verification:
        content = self.read(digest) or b""
        found = hashlib.sha256(content).hexdigest()
        words = f"{digest} holds other bytes, of sha256 {found}: restore it, or ask for it anew"
        finding = Finding("content", ok=found == digest, detail=words)
        return Verification(digest, "", "", (finding,))


def _of_archive(place: Path) -> Mapping[str, Callable[[], bytes]]:
    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with zipfile.ZipFile(place) as archive:
                if archive.getinfo(name).file_size > _LIMIT_BYTES:
                    raise click.ClickException(f"{name} in {place} is larger than any artifact")
                return archive.read(name)

        return read

    with zipfile.ZipFile(place) as archive:
        names = archive.namelist()
    matches = ((name, _NAME.fullmatch(name.rpartition("/")[2])) for name in names)
    return {match[1]: reader(name) for name, match in matches if match}


def _is_manifest(content: bytes) -> bool:
    try:
        parse_manifest(content)
    except CorruptState:
        return False
    return True
