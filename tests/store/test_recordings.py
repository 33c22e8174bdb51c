"""Recordings stay within their bounds, survive kill -9 and a full disk, and are read back."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sidecar
from sidecar.errors import CorruptState, DiskFull, NotFound
from sidecar.store import (
    ReadCounts,
    Recorder,
    Recordings,
    WindowRecord,
    find_segments,
    read_recordings,
)
from sidecar.testing import FakeClock
from tests.store.test_windows import same, subject, window

pytestmark = pytest.mark.service

ROOT = Path(sidecar.__file__).parents[1]
MIB = 1 << 20


def read(root: Path) -> tuple[list[WindowRecord], ReadCounts]:
    """Return everything in a folder, and what the reader counted."""
    counts = ReadCounts()
    return list(read_recordings(find_segments([root]), counts)), counts


def write(root: Path, windows: int, **bounds: int) -> Recordings:
    """Record so many windows of one subject."""
    found = Recordings(root, **({"limit_bytes": MIB, "segment_bytes": MIB} | bounds))
    of = subject(3)
    for number in range(windows):
        found.append(window(of, float(number)))
    return found


def test_windows_come_back_in_order_with_their_subject(tmp_path: Path) -> None:
    """What is appended is read, and windows of one subject share it."""
    recordings = Recordings(tmp_path, limit_bytes=MIB, segment_bytes=MIB)
    first, second = subject(2), subject(4, levels=())
    written = [window(of, float(i)) for i, of in enumerate((first, first, second, second, first))]

    for one in written:
        recordings.append(one)

    found, counts = read(tmp_path)
    assert all(map(same, written, found))
    assert all(same(a.subject, b.subject) for a, b in zip(written, found, strict=True))
    assert found[0].subject is found[1].subject
    assert (1, 5, 0, 0, 0) == (
        counts.segments,
        counts.windows,
        counts.lost_bytes,
        counts.torn_segments,
        counts.unreadable,
    )


def test_a_full_folder_loses_its_oldest_segment(tmp_path: Path) -> None:
    """The bytes never pass the limit, and what is left is the newest stretch without a hole."""
    recordings = Recordings(tmp_path, limit_bytes=16_000, segment_bytes=2_000)
    of, most = subject(20), 0

    for number in range(400):
        recordings.append(window(of, float(number)))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))

    found, _ = read(tmp_path)
    times = [one.at for one in found]
    assert 12_000 < most <= 16_000
    assert recordings.used_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert list(np.arange(times[0], 400)) == times
    assert 50 < len(times) < 350


def test_every_segment_can_be_read_alone(tmp_path: Path) -> None:
    """Each says anew what its windows are about, for the ones before it may be gone."""
    write(tmp_path, 100, segment_bytes=2_000)

    for path in find_segments([tmp_path]):
        counts = ReadCounts()
        assert list(read_recordings([path], counts))
        assert 0 == counts.unreadable


def test_a_restart_begins_a_segment_and_keeps_the_old_ones(tmp_path: Path) -> None:
    """Nothing is appended to a file that a crash may have torn."""
    write(tmp_path, 3)
    write(tmp_path, 2)

    assert [0.0, 1.0, 2.0, 0.0, 1.0] == [one.at for one in read(tmp_path)[0]]
    assert 2 == len(find_segments([tmp_path]))


def test_a_lowered_limit_holds_from_the_start(tmp_path: Path) -> None:
    """The folder is brought below it before anything is recorded."""
    write(tmp_path, 300, segment_bytes=2_000)

    again = Recordings(tmp_path, limit_bytes=8_000, segment_bytes=2_000)

    assert again.used_bytes <= 8_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 8_000


@pytest.mark.parametrize("cut", [1, 7, 30, 50])
def test_a_torn_tail_is_counted_and_all_before_it_read(tmp_path: Path, cut: int) -> None:
    """Of a segment that was cut off, every whole window is there."""
    write(tmp_path, 10)
    (path,) = find_segments([tmp_path])
    os.truncate(path, path.stat().st_size - cut)

    found, counts = read(tmp_path)

    assert [float(i) for i in range(9)] == [one.at for one in found]
    assert 1 == counts.torn_segments
    assert counts.lost_bytes > 0


def test_an_empty_segment_is_torn_too(tmp_path: Path) -> None:
    """A process that is killed at once leaves a file without a head."""
    write(tmp_path, 1)
    (tmp_path / "000000000002.recording").write_bytes(b"SCREC")

    found, counts = read(tmp_path)

    assert 1 == len(found)
    assert (1, 5) == (counts.torn_segments, counts.lost_bytes)


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    """The message names the file and says what to do."""
    other = tmp_path / "notes.txt"
    other.write_text("these are not the bytes of a recording")

    with pytest.raises(CorruptState, match=r"notes\.txt: starts with .* no recording"):
        list(read_recordings(find_segments([other]), ReadCounts()))
    with pytest.raises(NotFound, match="no recording in it"):
        find_segments([tmp_path])
    with pytest.raises(NotFound, match="no such file or folder"):
        find_segments([tmp_path / "nothing"])


def test_kill_9_costs_at_most_the_window_that_is_written(tmp_path: Path) -> None:
    """A process killed between two windows has lost none of those it said were written."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from sidecar.store import Recordings
from tests.store.test_windows import subject, window
recordings = Recordings(Path({str(tmp_path)!r}), limit_bytes=1 << 20, segment_bytes=4000)
of = subject(30)
for number in range(10**6):
    recordings.append(window(of, float(number)))
    print(number, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines() if line]

    found, _ = read(tmp_path)
    times = [one.at for one in found]
    assert times == [float(i) for i in range(len(times))]
    assert len(times) - said[-1] in (1, 2)


def test_a_disk_that_refuses_pauses_the_recording_and_nothing_else(tmp_path: Path) -> None:
    """Windows of the pause are counted; afterwards it goes on, and the file has no torn frame."""
    clock = FakeClock()
    recorder = Recorder(Recordings(tmp_path, limit_bytes=MIB, segment_bytes=MIB), clock=clock)
    of = subject(3)

    def record(*times: float) -> None:
        for at in times:
            recorder.take(window(of, at))
        recorder.drain()

    record(0.0, 1.0)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))  # part of a window
        record(2.0, 3.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    record(4.0)
    clock.advance(31.0)
    record(5.0)

    found, counts = read(tmp_path)
    assert [0.0, 1.0, 5.0] == [one.at for one in found]
    assert 0 == counts.lost_bytes
    assert (3, {"backlog": 0, "disk": 3, "error": 0}) == (
        recorder.counts().recorded,
        recorder.counts().dropped,
    )


def test_the_limit_of_a_file_is_a_full_disk(tmp_path: Path) -> None:
    """The caller of ``append`` is told with the error it knows."""
    recordings = write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (recordings.used_bytes + 10, before[1]))
        with pytest.raises(DiskFull, match="make room on the disk"):
            recordings.append(window(subject(3), 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    assert recordings.used_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_backlog_that_is_full_drops_and_counts(tmp_path: Path) -> None:
    """A disk that hangs makes no queue without end."""
    recorder = Recorder(
        Recordings(tmp_path, limit_bytes=MIB, segment_bytes=MIB), backlog_bytes=2000
    )
    of = subject(3)

    for number in range(100):
        recorder.take(window(of, float(number)))
    recorder.close()

    counts = recorder.counts()
    assert 100 == counts.recorded + counts.dropped["backlog"]
    assert counts.recorded == len(read(tmp_path)[0]) == 2000 // window(of).nbytes


def test_a_window_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    """It is counted, whoever drains is told, and the next drain goes on behind it."""
    recorder = Recorder(Recordings(tmp_path, limit_bytes=MIB, segment_bytes=MIB))
    of = subject(3)
    for number in range(4):
        recorder.take(window(of, float(number), rows=-1 if number == 1 else 1))

    with pytest.raises(ValueError, match="negative"):
        recorder.drain()
    recorder.drain()

    assert [0.0, 2.0, 3.0] == [one.at for one in read(tmp_path)[0]]
    assert (3, 1) == (recorder.counts().recorded, recorder.counts().dropped["error"])


def test_a_window_takes_few_bytes(tmp_path: Path) -> None:
    """What docs/recordings.md says: at a hundred flagged features less than 10 bytes each."""
    rng = np.random.default_rng(0)
    of = subject(100, levels=(0.99, 0.999, 0.9999))
    recordings = Recordings(tmp_path, limit_bytes=MIB, segment_bytes=MIB)
    recordings.append(window(of))
    before = recordings.used_bytes
    for at in range(20):
        exceedances = rng.binomial(64, 0.016, 100)
        recordings.append(
            window(
                of,
                float(at),
                exceedances=exceedances,
                level_exceedances=rng.binomial(64, [0.15, 0.016, 0.0016], (100, 3)),
                rows_beyond=exceedances + rng.binomial(3 * exceedances, 0.3),
                maximum=rng.normal(4, 0.4, 100).astype(np.float32),
                minimum=rng.normal(-4, 0.4, 100).astype(np.float32),
            )
        )

    assert 8 < (recordings.used_bytes - before) / 20 / 100 < 10
