"""Artifacts are named by content, bounded, and whole."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sidecar
from sidecar.errors import CorruptState, DiskFull, InvalidName, StorageError, UnknownArtifact
from sidecar.store import Artifact, ArtifactStore

pytestmark = pytest.mark.service

PNG = "image/png"
ROOT = Path(sidecar.__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Return an empty store of a megabyte."""
    return ArtifactStore(tmp_path, 1 << 20)


def names(root: Path) -> set[str]:
    """Return every file below the root, by name."""
    return {path.name for path in root.rglob("*") if path.is_file()}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(content=st.binary(max_size=2000))
def test_content_comes_back_under_its_sha256(store: ArtifactStore, content: bytes) -> None:
    """Whatever bytes are put, their sha256 names them and gives them back."""
    stored = store.put(content, PNG)

    assert Artifact(hashlib.sha256(content).hexdigest(), len(content), PNG) == stored
    assert content == store.get(stored.digest)


def test_a_file_is_copied(store: ArtifactStore, tmp_path: Path) -> None:
    """A file larger than one chunk is stored like its bytes, and stays where it was."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 19) * 2)

    stored = store.put(source, PNG)

    assert source.read_bytes() == store.get(stored.digest)


def test_the_media_type_lies_beside(store: ArtifactStore) -> None:
    """Opening gives the path in the two-level tree, and the type of the first time."""
    digest = store.put(b"x", "application/json").digest
    again = store.put(b"x", PNG)

    path, media_type = store.open(digest)

    assert "application/json" == media_type == again.media_type
    assert (digest[:2], digest[2:4], digest) == path.parts[-3:]


def test_storing_twice_counts_once(store: ArtifactStore) -> None:
    """Putting the same content again uses no more room."""
    for _ in range(3):
        store.put(bytes(1000), PNG)

    assert 1000 == store.used_bytes


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 65, "/" * 64, "a" * 64 + "\n", "é" * 64],
)
def test_only_sha256_names_exist(store: ArtifactStore, name: str) -> None:
    """Whatever is no digest is unknown, never a path."""
    store.put(b"x", PNG)

    assert not store.has(name)
    with pytest.raises(UnknownArtifact):
        store.get(name)


@pytest.mark.parametrize("media_type", ["", "png", "image/png\r\nX-Evil: 1", "IMAGE/PNG", "a/b;c"])
def test_odd_media_types_are_refused(store: ArtifactStore, media_type: str) -> None:
    """A media type that could split a header is no media type."""
    with pytest.raises(InvalidName):
        store.put(b"x", media_type)


def test_a_missing_file_is_a_storage_error(store: ArtifactStore, tmp_path: Path) -> None:
    """Putting a path that does not exist says so."""
    with pytest.raises(StorageError, match="No such file"):
        store.put(tmp_path / "nothing", PNG)


def test_beyond_the_limit_nothing_is_stored(tmp_path: Path) -> None:
    """Content that does not fit is refused, and leaves neither litter nor a wrong count."""
    store = ArtifactStore(tmp_path, 1000)
    kept = store.put(bytes(600), PNG).digest

    with pytest.raises(DiskFull, match="artifact_limit_bytes"):
        store.put(b"y" * 600, PNG)

    assert 600 == store.used_bytes
    assert {kept, f"{kept}.type"} == names(tmp_path)


def test_the_oldest_unreferenced_go_first(tmp_path: Path) -> None:
    """Collection removes what is old and not kept, and only as much as is needed."""
    store = ArtifactStore(tmp_path, 1000)
    digests = []
    for number in range(4):
        digest = store.put(bytes([number]) * 250, PNG).digest
        os.utime(store.open(digest)[0], ns=(number, number))
        digests.append(digest)

    removed = store.collect({digests[0]}, room_bytes=250)

    assert (digests[1],) == removed
    assert [True, False, True, True] == [store.has(digest) for digest in digests]
    assert 750 == store.used_bytes
    assert f"{digests[1]}.type" not in names(tmp_path)


def test_within_the_limit_nothing_is_collected(store: ArtifactStore) -> None:
    """Unreferenced artifacts stay while there is room: they answer later requests."""
    digest = store.put(b"x", PNG).digest

    assert () == store.collect(set())
    assert store.has(digest)


def test_referenced_artifacts_are_never_collected(tmp_path: Path) -> None:
    """Even where nothing else is left to remove, what is kept stays."""
    store = ArtifactStore(tmp_path, 1000)
    digest = store.put(bytes(900), PNG).digest

    assert () == store.collect({digest}, room_bytes=900)
    assert store.has(digest)


def test_a_restart_counts_and_cleans(tmp_path: Path) -> None:
    """A new store over the folder knows what is there, and drops half-written files."""
    ArtifactStore(tmp_path, 1000).put(bytes(300), PNG)
    (tmp_path / "incoming" / "half").write_bytes(b"half")

    store = ArtifactStore(tmp_path, 1000)

    assert 300 == store.used_bytes
    assert "half" not in names(tmp_path)


def test_a_changed_artifact_is_never_served(store: ArtifactStore) -> None:
    """One flipped bit on the disk: refused, set aside, and it can be stored anew."""
    digest = store.put(b"content", PNG).digest
    store.open(digest)[0].write_bytes(b"kontent")

    with pytest.raises(CorruptState, match=digest):
        store.get(digest)

    assert not store.has(digest)
    assert 0 == store.used_bytes
    assert b"content" == store.get(store.put(b"content", PNG).digest)


def test_a_lost_type_is_octets(store: ArtifactStore) -> None:
    """Without its type file, or with a damaged one, content is still served, as plain bytes."""
    digest = store.put(b"content", PNG).digest
    path, _ = store.open(digest)

    path.with_name(f"{digest}.type").write_bytes(b"\xff\r\nevil")

    assert "application/octet-stream" == store.open(digest)[1]


def test_threads_that_store_the_same_content_agree(store: ArtifactStore) -> None:
    """Eight threads put the same and different content; the count is right."""
    contents = [bytes([number % 4]) * 1000 for number in range(8)]
    threads = [threading.Thread(target=store.put, args=(c, PNG)) for c in contents]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 4000 == store.used_bytes


FULL_DISK = """
import resource, sys
from pathlib import Path
from sidecar.errors import DiskFull
from sidecar.store import ArtifactStore

store = ArtifactStore(Path(sys.argv[1]), 1 << 30)
small = store.put(b"small", "image/png").digest
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    store.put(bytes(1 << 20), "image/png")
except DiskFull as error:
    print(error)
assert store.get(small) == b"small"
assert store.used_bytes == 5
store.put(b"more", "image/png")
"""


def test_a_full_disk_leaves_no_litter(tmp_path: Path) -> None:
    """Beyond the file-size limit put raises DiskFull; the rest is there and works."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.startswith(f"{DiskFull.code} cannot store an artifact")
    assert not list((tmp_path / "incoming").iterdir())
    assert 9 == ArtifactStore(tmp_path, 1 << 30).used_bytes


def test_a_file_the_disk_has_changed_is_never_handed_out(store: ArtifactStore) -> None:
    """Opening checks the content, sets a false one aside and counts it; the true one is unknown."""
    digest = store.put(b"the true picture", PNG).digest
    path, _ = store.open(digest)
    path.write_bytes(b"the fake picture")

    with pytest.raises(CorruptState):
        store.open(digest)
    with pytest.raises(UnknownArtifact):
        store.open(digest)
    assert 1 == store.quarantined
