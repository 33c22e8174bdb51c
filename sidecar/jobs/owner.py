"""Names the process that holds a job, so that a restarted daemon can tell its dead self from a peer."""

import errno
import os
import socket
from pathlib import Path

from sidecar.errors import DiskFull, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_START_FIELD = 19  # starttime, counted after the command's closing bracket; see proc_pid_stat(5)


def process_start(pid: int) -> str:
    """Return when a process was started, in clock ticks since boot; empty where there is none.

    Together with the pid it names a process for good, although pids are used again: in a container
    the daemon is pid 1 every time.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[_START_FIELD]
    except (OSError, IndexError):
        return ""


def owner_name(slot: str) -> str:
    """Return a name for one slot of this process, ``host/pid/start/slot``."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{process_start(pid)}/{slot}"


def is_dead(owner: str) -> bool:
    """Return whether an owner of this host can never come back; False for those of other hosts."""
    parts = owner.split("/")
    if len(parts) != 4:  # noqa: PLR2004 - host, pid, start, slot
        return False
    host, pid, start, _ = parts
    if host != socket.gethostname() or not pid.isascii() or not pid.isdigit():
        return False
    return process_start(int(pid)) != start


def make_scratch(root: Path, job_id: str, attempt: int) -> Path:
    """Make a folder for one attempt, whose name says which process it belongs to.

    Raises:
        DiskFull: There is no room for it.
        StorageError: It cannot be made for another reason.
    """
    pid = os.getpid()
    folder = root / f"{job_id}.{attempt}.{pid}.{process_start(pid)}"
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        kind, advice = (
            (DiskFull, "make room on the disk")
            if error.errno in _FULL
            else (StorageError, "mend it and ask again")
        )
        raise kind(
            f"cannot make the scratch folder {folder}: {error.strerror}; {advice}"
        ) from error
    return folder


def is_stale_scratch(folder: Path) -> bool:
    """Return whether a folder was made by ``make_scratch`` in a process that is no more."""
    parts = folder.name.split(".")
    if len(parts) != 4 or not parts[2].isdigit():  # noqa: PLR2004 - job, attempt, pid, start
        return False
    return process_start(int(parts[2])) != parts[3]
