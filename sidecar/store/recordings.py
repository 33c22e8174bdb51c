"""Recordings: closed windows of flagged features, appended to a folder that never grows too large."""

import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from sidecar.errors import CorruptState, DiskFull, NotFound, StorageError
from sidecar.features import LayerKey
from sidecar.store.files import storage_errors, sync_folder
from sidecar.store.windows import (
    SEGMENT_HEAD_BYTES,
    Kind,
    Subject,
    WindowRecord,
    check_segment_head,
    encode_subject,
    encode_window,
    frame,
    segment_head,
    split_frames,
    subjects_and_windows,
)

_log = structlog.get_logger(__name__)

SUFFIX = ".recording"

SEGMENTS_KEPT = 4096
"""Most segments in a folder: a daemon that restarts all the time begins one each time."""

LEAST_SEGMENTS = 4
"""A segment is at most this share of the limit, so that the oldest to go is a small part of all."""

BACKLOG_BYTES = 16 << 20
"""Windows waiting for the disk: at a thousand flagged features some 200 of them."""

RETRY_SECONDS = 30.0
"""Pause of the recording after the disk refused it."""

_PATTERN = re.compile(r"(\d{12})" + re.escape(SUFFIX))
_MODE = 0o600


class Recordings:
    """Appends windows to numbered segments of one folder; when it is full the oldest segment goes.

    A segment is begun by the first window after a start and whenever the present one is full; each
    can be read alone. What ``append`` has returned from survives the end of the process, however it
    ends; the kernel writes it to the disk in its own time, and a full segment is there when the next
    is begun.

    Attributes:
        used_bytes: Bytes of all segments.
        limit_bytes: Bytes they may have.
    """

    def __init__(self, root: Path, *, limit_bytes: int, segment_bytes: int) -> None:
        """Look into the folder, making it where it is missing.

        Args:
            root: The folder; nothing else is in it.
            limit_bytes: Most bytes of all segments.
            segment_bytes: Bytes at which a segment is full; at most a quarter of the limit counts.

        Raises:
            StorageError: The folder cannot be made or read.
        """
        self.limit_bytes = limit_bytes
        self._root = root
        self._segment_bytes = min(segment_bytes, limit_bytes // LEAST_SEGMENTS)
        with storage_errors(f"use {root}"):
            root.mkdir(parents=True, exist_ok=True)
            self._closed = deque((path, path.stat().st_size) for path in segments_of(root))
            self.used_bytes = sum(size for _, size in self._closed)
            self._next = _number(self._closed[-1][0]) + 1 if self._closed else 1
            self._segment: _Segment | None = None
            self._make_room(0)

    def append(self, window: WindowRecord) -> None:
        """Write one window.

        Raises:
            DiskFull: There is no room on the disk; what was written before is whole.
            StorageError: The folder cannot be written.
        """
        with storage_errors(f"record in {self._root}"):
            if self._segment is not None and self._segment.size >= self._segment_bytes:
                self._end_segment()
            segment = self._segment or self._begin_segment()
            data = segment.framed(window)
            self._make_room(len(data))
            try:
                segment.write(data)
            except OSError:
                if not segment.whole:
                    self._end_segment()
                raise
            self.used_bytes += len(data)
            segment.remember(window.subject)

    def close(self) -> None:
        """End the present segment; a later ``append`` begins another."""
        with storage_errors(f"record in {self._root}"):
            self._end_segment()

    def _begin_segment(self) -> "_Segment":
        path = self._root / f"{self._next:012d}{SUFFIX}"
        self._make_room(SEGMENT_HEAD_BYTES)
        self._segment = _Segment(path)
        self.used_bytes += self._segment.size
        self._next += 1
        sync_folder(self._root)
        return self._segment

    def _end_segment(self) -> None:
        ended, self._segment = self._segment, None
        if ended is not None:
            self._closed.append((ended.path, ended.size))
            ended.close()

    def _make_room(self, wanted: int) -> None:
        """Remove the oldest segments until so many bytes fit, but never the one that is written."""
        while self._closed and (
            self.used_bytes + wanted > self.limit_bytes or len(self._closed) >= SEGMENTS_KEPT
        ):
            path, size = self._closed[0]
            path.unlink(missing_ok=True)
            self._closed.popleft()
            self.used_bytes -= size


class _Segment:
    """A file that is being appended to.

    Attributes:
        path: Where it is.
        size: Bytes of whole frames in it.
        whole: Whether it ends with one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.whole = True
        self._numbers: dict[LayerKey, tuple[Subject, int]] = {}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE)
        try:
            self.write(segment_head())
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def framed(self, window: WindowRecord) -> bytes:
        """Return the frames of a window: its own, and before it that of its subject if it is new."""
        known = self._numbers.get(window.subject.layer)
        if known is not None and known[0] is window.subject:
            return frame(Kind.WINDOW, encode_window(known[1], window))
        number = known[1] if known is not None else len(self._numbers)
        subject = frame(Kind.SUBJECT, encode_subject(number, window.subject))
        return subject + frame(Kind.WINDOW, encode_window(number, window))

    def remember(self, subject: Subject) -> None:
        """Take note that a subject is in the file."""
        number = self._numbers.get(subject.layer, (subject, len(self._numbers)))[1]
        self._numbers[subject.layer] = (subject, number)

    def write(self, data: bytes) -> None:
        """Append whole frames; when the disk refuses, what it took of them is cut off again."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            self.whole = False
            with suppress(OSError):
                os.ftruncate(self._file, self.size)
                os.lseek(self._file, self.size, os.SEEK_SET)
                self.whole = True
            raise
        self.size += len(data)

    def close(self) -> None:
        """Return once all of it is on the disk."""
        try:
            with suppress(OSError):  # a disk that refuses has said so to ``write``
                os.fsync(self._file)
        finally:
            os.close(self._file)


@dataclass(slots=True)
class RecorderCounts:
    """What became of the closed windows.

    Attributes:
        recorded: Windows written.
        dropped: Windows that were not, by reason: ``backlog`` for too many waiting, ``disk`` for a
            disk that refused, ``error`` for what should not happen.
        used_bytes: Bytes of all segments.
        limit_bytes: Bytes they may have; 0: nothing is recorded.
    """

    recorded: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    used_bytes: int = 0
    limit_bytes: int = 0


class Recorder:
    """Takes windows from the thread that closes them, and writes them from another.

    ``take`` never waits for the disk. A disk that refuses pauses the recording for
    ``RETRY_SECONDS``; windows of that time are counted and gone, and everything else goes on.
    """

    def __init__(
        self,
        recordings: Recordings,
        *,
        backlog_bytes: int = BACKLOG_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing waiting.

        Args:
            recordings: Where to.
            backlog_bytes: Most bytes of windows that wait.
            clock: Seconds for the pause.
        """
        self._recordings, self._limit, self._clock = recordings, backlog_bytes, clock
        self._waiting: deque[WindowRecord] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._recorded = 0
        self._dropped: Counter[str] = Counter({"backlog": 0, "disk": 0, "error": 0})
        self._resume_at = float("-inf")

    def take(self, window: WindowRecord) -> None:
        """Put a window into the backlog, or count it as dropped when that is full."""
        size = window.nbytes
        with self._lock:
            if self._bytes + size > self._limit:
                self._dropped["backlog"] += 1
                return
            self._waiting.append(window)
            self._bytes += size

    def drain(self) -> None:
        """Write what is waiting; a disk that refuses is counted and logged, and nothing is raised.

        Raises:
            Exception: What no window should cause; the window is counted, and the next call goes on
                behind it.
        """
        with self._lock:
            windows, self._waiting, self._bytes = self._waiting, deque(), 0
        if self._clock() < self._resume_at:
            self._count("disk", len(windows))
            return
        while windows:
            window = windows.popleft()
            try:
                self._recordings.append(window)
            except StorageError as error:
                self._resume_at = self._clock() + RETRY_SECONDS
                self._count("disk", 1 + len(windows))
                _log.warning("recording_paused", error=str(error), seconds=RETRY_SECONDS)
                return
            except Exception:
                self._count("error", 1)
                self._put_back(windows)  # one that cannot be written must not cost the others
                raise
            self._recorded += 1

    def _put_back(self, windows: deque[WindowRecord]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(windows))
            self._bytes += sum(window.nbytes for window in windows)

    def close(self) -> None:
        """Write what is waiting and end the segment."""
        self.drain()
        with suppress(DiskFull, StorageError):
            self._recordings.close()

    def counts(self) -> RecorderCounts:
        """Return what became of the windows so far."""
        with self._lock:
            dropped = dict(self._dropped)
        return RecorderCounts(
            self._recorded, dropped, self._recordings.used_bytes, self._recordings.limit_bytes
        )

    def _count(self, reason: str, number: int) -> None:
        with self._lock:
            self._dropped[reason] += number


# -- reading --------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReadCounts:
    """What a reader found.

    Attributes:
        segments: Files read.
        windows: Windows read.
        lost_bytes: Bytes at the ends of segments in which there is no whole frame.
        torn_segments: Segments that end so: the process was killed while it wrote, or the file is
            damaged.
        unreadable: Whole frames that hold nothing this release can read.
    """

    segments: int = 0
    windows: int = 0
    lost_bytes: int = 0
    torn_segments: int = 0
    unreadable: int = 0


def segments_of(folder: Path) -> list[Path]:
    """Return the segments in a folder, oldest first."""
    return sorted(path for path in folder.iterdir() if _PATTERN.fullmatch(path.name))


def find_segments(paths: Iterable[Path]) -> list[Path]:
    """Return the segments that paths name: a folder stands for all segments in it.

    Raises:
        NotFound: A path is neither a file nor a folder with segments in it.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = segments_of(path)
            if not inside:
                raise NotFound(
                    f"{path}: no recording in it (NNNNNNNNNNNN{SUFFIX}): name the folder `recordings` "
                    "of a daemon's state_dir, or files of it"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise NotFound(f"{path}: no such file or folder")
    return found


def read_recordings(segments: Sequence[Path], counts: ReadCounts) -> Iterator[WindowRecord]:
    """Yield the windows of segments in their order.

    Of a segment that was torn by a crash, or damaged, everything before the damage is read.

    Args:
        segments: See ``find_segments``.
        counts: What was found is added to it while the windows are yielded.

    Raises:
        CorruptState: A file is no recording, or of a version that this release cannot read.
        StorageError: A file cannot be read.
    """
    for path in segments:
        with storage_errors(f"read {path}"):
            data = path.read_bytes()
        counts.segments += 1
        if len(data) < SEGMENT_HEAD_BYTES:  # killed before the head was whole
            counts.torn_segments += 1
            counts.lost_bytes += len(data)
            continue
        try:
            check_segment_head(data)
        except CorruptState as error:
            raise CorruptState(f"{path}: {error.message}") from error
        frames = split_frames(data)
        counts.lost_bytes += frames.lost_bytes
        counts.torn_segments += frames.lost_bytes > 0
        for window in subjects_and_windows(frames):
            if window is None:
                counts.unreadable += 1
            else:
                counts.windows += 1
                yield window


def _number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX))
