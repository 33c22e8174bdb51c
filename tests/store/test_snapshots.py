"""Snapshots survive crashes, damage and a full disk."""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sidecar
from sidecar.errors import CorruptState, DiskFull, InvalidName
from sidecar.store import Snapshots

pytestmark = pytest.mark.service

on_a_real_disk = settings(deadline=None, max_examples=60)  # an fsync takes as long as it takes
ROOT = Path(sidecar.__file__).parents[1]


def files(root: Path) -> list[Path]:
    """Return the snapshot files, oldest first."""
    return sorted(root.glob("*.snapshot"))


def test_the_newest_payload_comes_back(tmp_path: Path) -> None:
    """What was saved last is loaded, also by another object."""
    snapshots = Snapshots(tmp_path, "bank")

    snapshots.save(b"one")
    snapshots.save(b"two" * 100_000)

    assert b"two" * 100_000 == snapshots.load() == Snapshots(tmp_path, "bank").load()
    assert 0 == snapshots.quarantined


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    """Before the first save there is nothing to load, and an empty payload is something."""
    snapshots = Snapshots(tmp_path / "new", "bank")
    before = snapshots.load()

    snapshots.save(b"")

    assert before is None
    assert b"" == snapshots.load()


def test_one_older_generation_is_kept(tmp_path: Path) -> None:
    """However often one saves, two files stay, so the folder is bounded."""
    snapshots = Snapshots(tmp_path, "bank")

    for number in range(10):
        snapshots.save(str(number).encode())

    assert 2 == len(list(tmp_path.iterdir()))


def test_names_do_not_mix(tmp_path: Path) -> None:
    """Two names in one folder, one the start of the other, keep their own payloads."""
    first, second = Snapshots(tmp_path, "bank"), Snapshots(tmp_path, "bank.b")

    first.save(b"first")
    second.save(b"second")
    first.save(b"first again")

    assert (b"first again", b"second") == (first.load(), second.load())


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    """A name that would be a path is refused."""
    with pytest.raises(InvalidName):
        Snapshots(tmp_path, "../evil")


@on_a_real_disk
@given(
    payload=st.binary(min_size=0, max_size=300),
    where=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
)
def test_any_changed_byte_brings_back_the_older_generation(
    payload: bytes, where: float, change: int
) -> None:
    """Whichever byte of the newest file changes, the older one is loaded and the newest set aside."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        snapshots = Snapshots(root, "bank")
        snapshots.save(b"older")
        snapshots.save(payload)
        newest = files(root)[-1]
        content = bytearray(newest.read_bytes())
        content[int(where * len(content))] ^= change
        newest.write_bytes(content)

        found = snapshots.load()

        assert b"older" == found
        assert 1 == snapshots.quarantined
        assert [f"{newest.name}.corrupt-1"] == [p.name for p in root.glob("*.corrupt-*")]


@on_a_real_disk
@given(garbage=st.lists(st.binary(max_size=200), min_size=2, max_size=2))
def test_garbage_never_raises(garbage: list[bytes]) -> None:
    """Two files of garbage are both set aside, and nothing is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(Path(folder), "bank")
        snapshots.save(b"older")
        snapshots.save(b"newer")
        for path, content in zip(files(Path(folder)), garbage, strict=True):
            path.write_bytes(content)

        found = snapshots.load()

        assert found is None
        assert 2 == snapshots.quarantined


@on_a_real_disk
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_damaged(kept: float) -> None:
    """A file cut short anywhere falls back to the older generation."""
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(Path(folder), "bank")
        snapshots.save(b"older")
        snapshots.save(b"newer" * 10)
        newest = files(Path(folder))[-1]
        newest.write_bytes(newest.read_bytes()[: int(kept * newest.stat().st_size)])

        assert b"older" == snapshots.load()


def test_damaged_copies_are_bounded(tmp_path: Path) -> None:
    """A file damaged at every start fills no disk: four copies of it stay, the newest."""
    for number in range(10):
        (tmp_path / f"bank.{1:012d}.snapshot").write_bytes(str(number).encode())
        Snapshots(tmp_path, "bank").load()

    copies = sorted(
        tmp_path.glob("*.corrupt-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )

    assert [b"6", b"7", b"8", b"9"] == [path.read_bytes() for path in copies]


def test_damaged_versions_are_bounded_over_all_numbers(tmp_path: Path) -> None:
    """A disk that damages every new version fills up no more than one that damages a single one."""
    for number in range(1, 11):
        (tmp_path / f"bank.{number:012d}.snapshot").write_bytes(b"damaged")
        Snapshots(tmp_path, "bank").load()

    assert 4 == len(list(tmp_path.iterdir()))


def test_a_payload_nobody_can_use_is_set_aside_for_the_older_one(tmp_path: Path) -> None:
    """What the reader refuses is kept under another name, and the version before it is used."""
    snapshots = Snapshots(tmp_path, "bank")
    snapshots.save(b"old settings")
    snapshots.save(b"new settings")
    used = []

    def use(payload: bytes) -> None:
        if payload == b"new settings":
            raise CorruptState("made under other settings")
        used.append(payload)

    found = snapshots.load(use)

    assert [b"old settings"] == used == [found]
    assert 1 == snapshots.quarantined == len(list(tmp_path.glob("*.corrupt-*")))


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    """A half-written file of a killed process is gone after the next start, others stay."""
    Snapshots(tmp_path, "bank").save(b"good")
    (tmp_path / "bank.0123.tmp").write_bytes(b"half")

    snapshots = Snapshots(tmp_path, "bank")

    assert not list(tmp_path.glob("*.tmp"))
    assert b"good" == snapshots.load()


def test_threads_that_save_at_once_leave_whole_files(tmp_path: Path) -> None:
    """Concurrent saves end with one of the payloads, undamaged."""
    snapshots = Snapshots(tmp_path, "bank")
    payloads = [bytes([number]) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=snapshots.save, args=(p,)) for p in payloads]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert snapshots.load() in payloads
    assert 0 == snapshots.quarantined


FULL_DISK = """
import resource, sys
from pathlib import Path
from sidecar.errors import DiskFull
from sidecar.store import Snapshots

snapshots = Snapshots(Path(sys.argv[1]), "bank")
snapshots.save(b"small")
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    snapshots.save(bytes(1 << 20))
except DiskFull as error:
    print(error)
assert snapshots.load() == b"small"
snapshots.save(b"small again")
assert snapshots.load() == b"small again"
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A save beyond the file-size limit raises DiskFull, leaves no litter, and the old state."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.startswith(f"{DiskFull.code} cannot save snapshot bank")
    assert not list(tmp_path.glob("*.tmp"))
    assert b"small again" == Snapshots(tmp_path, "bank").load()


KILLED = """
import sys
from pathlib import Path
from sidecar.store import Snapshots

snapshots = Snapshots(Path(sys.argv[1]), "bank")
number = 0
while True:
    number += 1
    snapshots.save(number.to_bytes(8, "big") * 5000)
    print(number, flush=True)
"""


def test_kill_9_while_saving_keeps_what_was_answered(tmp_path: Path) -> None:
    """After kill -9 in mid-stream the newest answered version, or a later one, is there, whole."""
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        answered = 0
        while answered < 20:
            answered = int(process.stdout.readline())
        process.kill()
        answered = int((process.stdout.read().split() or [str(answered)])[-1])
        process.wait()
        process.stdout.close()

        snapshots = Snapshots(tmp_path, "bank")
        payload = snapshots.load()

        assert payload is not None
        assert answered <= int.from_bytes(payload[:8], "big") <= answered + 1
        assert payload[:8] * 5000 == payload
        assert 0 == snapshots.quarantined
