"""What a job has reached so far, on the disk, so that another attempt goes on from there.

Each job has a folder of its own for it, in which its child may write; it is kept from one attempt to the
next, also when the daemon was killed in between, and removed when the job has ended.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_NAME = "state"
_MAGIC = b"sidecar checkpoint 1\n"


class Checkpoint:
    """The child's side: one state, replaced as a whole or not at all."""

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        """Keep the state in a folder that is there; None keeps none.

        Args:
            folder: The job's own.
            limit_bytes: Largest state that is kept; larger ones are passed over.
        """
        self._path = folder / _NAME if folder else None
        self._limit_bytes = limit_bytes

    def load(self) -> bytes | None:
        """Return the newest state that was saved whole, or None where there is none."""
        if self._path is None or not self._path.is_file():
            return None
        content = self._path.read_bytes()
        start = len(_MAGIC) + hashlib.sha256().digest_size
        state = content[start:]
        if content[:start] != _MAGIC + hashlib.sha256(state).digest():
            _log.warning("checkpoint_damaged", path=str(self._path))
            return None
        return state

    def save(self, state: bytes) -> None:
        """Replace the state, on the disk when this returns.

        A state that is too large, and a disk that does not take it, cost the checkpoint and not the
        job: the one before stays.
        """
        if self._path is None:
            return
        content = _MAGIC + hashlib.sha256(state).digest() + state
        if len(content) > self._limit_bytes:
            _log.warning("checkpoint_too_large", bytes=len(content), limit=self._limit_bytes)
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            _write(temporary, content)
            temporary.replace(self._path)
            _sync(self._path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            _log.warning("checkpoint_failed", error=str(error))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointFolder:
    """The daemon's side: a folder a job, all of them together within a limit."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Keep them under ``root``, which is made when it is needed; a limit of 0 keeps none."""
        self._root = root.resolve()
        self._limit_bytes = limit_bytes

    def open(self, job_id: str) -> tuple[Path | None, int]:
        """Return a job's folder, and how large its state may be beside those of the others.

        Returns:
            None and 0 where no state may be kept, or the disk does not take the folder.
        """
        folder = self._root / job_id
        others = sum(
            file.stat().st_size for file in self._root.glob(f"*/{_NAME}") if file.parent != folder
        )
        # A new state lies beside the one before until it is whole.
        allowed = (self._limit_bytes - others) // 2
        if allowed <= 0:
            return None, 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            _log.warning("checkpoint_failed", error=str(error))
            return None, 0
        return folder, allowed

    def sweep(self, is_needed: Callable[[str], bool]) -> None:
        """Remove the folders of jobs that need none any more."""
        if self._root.is_dir():
            for folder in list(self._root.iterdir()):
                if not is_needed(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
