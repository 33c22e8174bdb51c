"""Writes files so that a crash or a full disk leaves the old content or the new one, never a mix."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.errors import DiskFull, StorageError

QUARANTINE_LIMIT = 4
"""Damaged copies of one file that are kept for people to look at; older ones are removed, because
whatever damages a file at every start would otherwise fill the disk."""

# A quota and a file-size limit are, for whoever must mend them, the same thing as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn the ``OSError`` of a block into a ``StorageError`` that says what could not be done.

    Args:
        action: What the block does, such as ``write /state/x``; completes "cannot …".

    Raises:
        DiskFull: No space, over quota, or beyond the file-size limit.
        StorageError: Any other ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"cannot {action}: {error.strerror}; make room on the disk") from error
        raise StorageError(f"cannot {action}: {error.strerror or error}") from error


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a new file and return once its bytes are on the disk; removes it on any error.

    Raises:
        OSError: The file exists already, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def rename_synced(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, replacing it, and return once that is on the disk."""
    try:
        source.replace(target)
    except BaseException:
        source.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``<name>.corrupt-<n>`` and return its new path.

    At most ``QUARANTINE_LIMIT`` of them are kept, the newest.

    Raises:
        OSError: The file cannot be renamed.
    """
    taken = sorted(_quarantine(path))
    target = path.with_name(f"{path.name}.corrupt-{taken[-1] + 1 if taken else 1}")
    path.rename(target)
    for number in taken[: max(0, len(taken) + 1 - QUARANTINE_LIMIT)]:
        for suffix in ("", "-wal", "-shm"):  # a database is set aside with its log
            path.with_name(f"{path.name}.corrupt-{number}{suffix}").unlink(missing_ok=True)
    return target


def _quarantine(path: Path) -> Iterator[int]:
    pattern = re.compile(re.escape(path.name) + r"\.corrupt-(\d+)")
    for sibling in path.parent.iterdir():
        if match := pattern.fullmatch(sibling.name):
            yield int(match[1])
