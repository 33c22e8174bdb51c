"""Every shelf keeps the same promises: the local disk, memory, and object stores over a network."""

import hashlib
import importlib.util
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import (
    ConfigError,
    CorruptState,
    DiskFull,
    StorageError,
    StoreUnreachable,
    UnknownArtifact,
)
from sidecar.store import ArtifactStore, RemoteShelf
from sidecar.store.shelf import LocalShelf, Shelf
from tests.store.objects import ObjectServer, object_server

pytestmark = pytest.mark.service

PNG = "image/png"
S3 = importlib.util.find_spec("s3fs") is not None and importlib.util.find_spec("moto") is not None

Opened = Callable[[], Shelf]
"""Opens the same place again, as a restart would."""


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a real local S3 and return the URL of a prefix in it."""
    import boto3  # type: ignore[import-not-found]  # noqa: PLC0415 - only where S3 can be tested
    from moto.server import ThreadedMotoServer  # type: ignore[import-not-found]  # noqa: PLC0415 - as above

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    try:
        yield f"s3://bucket/{uuid.uuid4().hex}"  # servers of one process share their buckets
    finally:
        server.stop()


@pytest.fixture(
    params=[
        "local",
        "memory",
        "http",
        pytest.param(
            "s3",
            marks=pytest.mark.skipif(
                not S3, reason="s3fs and moto need an older python-dateutil than is pinned"
            ),
        ),
    ]
)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opened]:
    """Yield what opens an empty shelf of each kind."""
    if request.param == "local":
        yield lambda: LocalShelf(tmp_path / "shelf")
    elif request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}/prefix"
        yield lambda: RemoteShelf(url, tmp_path / "cache", 1 << 20)
    elif request.param == "http":
        with object_server() as server:
            yield lambda: RemoteShelf(server.url, tmp_path / "cache", 1 << 20)
    else:
        with s3_server(monkeypatch) as url:
            yield lambda: RemoteShelf(url, tmp_path / "cache", 1 << 20)


def name_of(content: bytes) -> str:
    """Return the name of some content."""
    return hashlib.sha256(content).hexdigest()


def put(shelf: Shelf, content: bytes, media_type: str = PNG) -> str:
    """Put content on a shelf and return its name."""
    digest = name_of(content)
    shelf.write(digest, content, media_type)
    return digest


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None
)
@given(content=st.binary(max_size=2000))
def test_what_was_put_comes_back(opened: Opened, content: bytes) -> None:
    """Content and type are there for whoever opens the place next, without a cache too."""
    digest = put(opened(), content, "application/json")
    shelf = opened()

    assert content == shelf.path(digest).read_bytes()
    assert "application/json" == shelf.media_type(digest)
    found = shelf.find(digest)
    assert found is not None
    assert len(content) == found.size


def test_a_file_is_put_like_its_bytes(opened: Opened, tmp_path: Path) -> None:
    """A path stands for its content."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    shelf = opened()

    shelf.write(name_of(source.read_bytes()), source, PNG)

    assert source.read_bytes() == shelf.path(name_of(source.read_bytes())).read_bytes()


def test_entries_are_what_is_there(opened: Opened) -> None:
    """Everything put and not removed, with its size, also after a restart; types are no entries."""
    shelf = opened()
    kept = [put(shelf, bytes([number]) * (number + 1)) for number in range(4)]
    shelf.delete(kept[2])

    for one in (shelf, opened()):
        assert {kept[0]: 1, kept[1]: 2, kept[3]: 4} == {e.digest: e.size for e in one.entries()}
        assert all(1.6e9 < entry.modified < 1e10 for entry in one.entries())


def test_what_is_not_there_is_not_there(opened: Opened) -> None:
    """Never put, or removed: nothing is found, and removing it again is no error."""
    shelf, digest = opened(), name_of(b"gone")
    put(shelf, b"gone")
    shelf.delete(digest)
    shelf.delete(digest)

    assert shelf.find(digest) is None
    assert [] == list(opened().entries())
    with pytest.raises(FileNotFoundError):
        shelf.path(digest)


def test_what_is_set_aside_is_out_of_use(opened: Opened) -> None:
    """It is neither found nor listed, and can be put anew."""
    shelf = opened()
    digest = put(shelf, b"damaged")
    kept = shelf.set_aside(digest)

    assert digest in kept
    assert shelf.find(digest) is None
    assert [] == list(opened().entries())
    put(shelf, b"damaged")
    assert b"damaged" == opened().path(digest).read_bytes()


def test_a_store_over_it_is_bounded_and_collects(opened: Opened) -> None:
    """The limits of a store hold on every shelf, and its count survives a restart."""
    store = ArtifactStore(opened(), 1000)
    first, second = (store.put(bytes([n]) * 400, PNG).digest for n in range(2))

    with pytest.raises(DiskFull):
        store.put(b"x" * 400, PNG)
    assert (800, 2) == (ArtifactStore(opened(), 1000).used_bytes, store.number)
    assert (second,) == store.collect({first}, 400)
    assert (400, 1) == (store.used_bytes, store.number)
    with pytest.raises(UnknownArtifact):
        store.get(second)


def test_age_removes_what_nobody_refers_to(opened: Opened) -> None:
    """What was stored before a moment goes, what is kept stays, and the reasons are counted."""
    store = ArtifactStore(opened(), 1 << 20)
    old, kept = (store.put(content, PNG).digest for content in (b"old", b"kept"))

    assert () == store.collect({kept}, before=1e9)
    planned = store.plan({kept}, before=1e10)
    assert [(old, "age")] == [(r.entry.digest, r.reason) for r in planned]
    assert store.has(old)
    assert (old,) == store.collect({kept}, before=1e10)
    assert {"age": 1, "bytes": 0} == store.removed


# -- what only a network can do -------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    """Yield an object server."""
    with object_server() as found:
        yield found


def remote(server: ObjectServer, cache: Path, cache_bytes: int = 1 << 20) -> RemoteShelf:
    """Return a shelf that does not wait between its attempts."""
    return RemoteShelf(server.url, cache, cache_bytes, pause=lambda _: None)


def test_a_short_outage_is_ridden_out(server: ObjectServer, tmp_path: Path) -> None:
    """Two failures in a row are one too few to give up."""
    shelf = remote(server, tmp_path)
    server.broken = 2

    digest = put(shelf, b"content")

    assert b"content" == remote(server, tmp_path / "other").path(digest).read_bytes()


def test_a_long_outage_is_told_and_loses_nothing(server: ObjectServer, tmp_path: Path) -> None:
    """The call fails in words after three attempts; afterwards everything is as before, and works."""
    store = ArtifactStore(remote(server, tmp_path), 1 << 20)
    before = store.put(b"before", PNG).digest
    server.broken, asked = 1 << 30, len(server.requests)

    with pytest.raises(StoreUnreachable, match="tried 3 times"):
        store.put(b"during", PNG)
    assert 3 == len(server.requests) - asked
    assert (6, 1) == (store.used_bytes, store.number)
    assert b"before" == store.get(before)  # from the cache

    server.broken = 0
    after = store.put(b"during", PNG).digest
    assert [b"before", b"during"] == [store.get(digest) for digest in (before, after)]


def test_an_outage_at_the_start_ends_by_itself(server: ObjectServer, tmp_path: Path) -> None:
    """A daemon starts without its store, and knows what is there once it answers."""
    digest = put(remote(server, tmp_path / "a"), b"content")
    server.broken = 6  # as often as a start asks
    store = ArtifactStore(remote(server, tmp_path / "b"), 1 << 20)

    assert 0 == store.used_bytes
    assert b"content" == store.get(digest)
    assert () == store.collect(set())
    assert 7 == store.used_bytes


def test_a_refusal_is_a_fault_of_the_configuration(server: ObjectServer, tmp_path: Path) -> None:
    """Wrong credentials stop a start; later they fail at once, without further attempts."""
    shelf = remote(server, tmp_path)
    server.denied = True
    asked = len(server.requests)

    with pytest.raises(StorageError, match="check the credentials"):
        put(shelf, b"x")
    assert 1 == len(server.requests) - asked
    with pytest.raises(ConfigError, match=r"store\.artifacts objects://"):
        remote(server, tmp_path)


@pytest.mark.parametrize("url", ["nonsense://bucket/x", "gs://bucket/x"])
def test_a_protocol_nobody_speaks_is_named(url: str, tmp_path: Path) -> None:
    """Unknown ones, and those whose library is not installed."""
    with pytest.raises(ConfigError, match=url.partition(":")[0]):
        RemoteShelf(url, tmp_path, 1 << 20)


def test_the_cache_answers_reads_and_is_bounded(server: ObjectServer, tmp_path: Path) -> None:
    """What was read stays near, the longest unread goes, and damage in the cache is mended."""
    writer = remote(server, tmp_path / "a")
    digests = [put(writer, bytes([number]) * 400) for number in range(3)]
    reader = remote(server, tmp_path / "b", 1000)
    for digest in digests:
        reader.path(digest)
    asked = len(server.requests)

    reader.path(digests[2])
    assert asked == len(server.requests)
    reader.path(digests[0])
    assert asked < len(server.requests)
    held = [p for p in (tmp_path / "b").rglob("*") if p.is_file() and len(p.name) == 64]
    assert sum(path.stat().st_size for path in held) <= 1000

    reader.path(digests[0]).write_bytes(b"damaged on the local disk")
    assert bytes(400) == reader.path(digests[0]).read_bytes()


def test_an_object_that_was_changed_is_never_served(server: ObjectServer, tmp_path: Path) -> None:
    """It is moved out of the way in the store, and can be made anew."""
    digest = put(remote(server, tmp_path / "a"), b"content")
    (key,) = (k for k in server.objects if k.endswith(digest))
    server.objects[key] = (b"forged!", 0.0)
    store = ArtifactStore(remote(server, tmp_path / "b"), 1 << 20)

    with pytest.raises(CorruptState, match=digest):
        store.get(digest)
    assert [b"forged!"] == [b for k, (b, _) in server.objects.items() if "/corrupt/" in k]
    assert not store.has(digest)
    assert digest == store.put(b"content", PNG).digest


def test_an_object_that_vanished_is_unknown(server: ObjectServer, tmp_path: Path) -> None:
    """Somebody emptied the bucket: what is gone is unknown, and can be stored again."""
    store = ArtifactStore(remote(server, tmp_path / "a"), 1 << 20)
    digest = put(remote(server, tmp_path / "b"), b"content")
    store = ArtifactStore(remote(server, tmp_path / "c"), 1 << 20)
    server.objects.clear()

    with pytest.raises(UnknownArtifact):
        store.get(digest)
    assert not store.has(digest)
