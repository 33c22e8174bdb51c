"""Digests of files that are read again only where their size or time has changed."""

import hashlib
import threading
from pathlib import Path


class FileDigests:
    """sha256 of files, each read once a process and change. Safe to use from several threads."""

    def __init__(self) -> None:
        """Know no file yet."""
        self._guard = threading.Lock()
        self._known: dict[Path, tuple[int, int, str]] = {}

    def of(self, path: Path) -> str:
        """Return the sha256 of a file.

        Raises:
            OSError: It cannot be read.
        """
        stat = path.stat()
        seen = stat.st_size, stat.st_mtime_ns
        with self._guard:
            known = self._known.get(path)
        if known is not None and known[:2] == seen:
            return known[2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with self._guard:
            self._known[path] = (*seen, digest)
        return digest
