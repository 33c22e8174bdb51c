"""Baselines that come over gRPC: one at a time, within a time, whatever callers do."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar.errors import InvalidInput
from sidecar.ingest import features
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

pytestmark = pytest.mark.service

DEADLINE = 30.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon that knows no layer."""
    with running_daemon(tmp_path, {"models": [{"name": "m"}]}) as found:
        yield found


@pytest.fixture
def stub(running: RunningDaemon) -> Iterator[features_pb2_grpc.FeatureServiceStub]:
    """A client of it."""
    with grpc.insecure_channel(running.grpc) as channel:
        yield features_pb2_grpc.FeatureServiceStub(channel)


class Held:
    """An import that takes until it is let go, in place of the daemon's own."""

    def __init__(self, running: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go, self.running, self.most = (
            threading.Event(),
            threading.Event(),
            0,
            0,
        )
        monkeypatch.setattr(running.daemon.operations, "import_baseline", self)

    def __call__(self, content: bytes) -> None:
        """Wait, and refuse what was sent."""
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        assert self.let_go.wait(DEADLINE)
        self.running -= 1
        raise InvalidInput(f"{len(content)} bytes are no baseline")


def parts(*sizes: int) -> Iterator[features_pb2.ImportBaselineRequest]:
    """Yield parts of a file that is none."""
    for size in sizes:
        yield features_pb2.ImportBaselineRequest(chunk=b"x" * size)


def refused(stub: features_pb2_grpc.FeatureServiceStub, *sizes: int) -> tuple[Any, str]:
    """Send a file and return the status and words with which it is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.ImportBaseline(parts(*sizes), timeout=DEADLINE)
    return caught.value.code(), caught.value.details()


def begin(stub: features_pb2_grpc.FeatureServiceStub) -> "Future[Any]":
    """Begin an import and return what it will end with."""
    call: Future[Any] = stub.ImportBaseline.future(parts(10, 20), timeout=DEADLINE)
    return call


def test_a_second_import_is_turned_away_while_one_goes_on(
    running: RunningDaemon,
    stub: features_pb2_grpc.FeatureServiceStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each may take half a gigabyte: the other is told to try again, and then gets its turn."""
    held = Held(running, monkeypatch)
    first = begin(stub)
    assert held.begun.wait(DEADLINE)

    second = refused(stub, 5)
    held.let_go.set()
    with pytest.raises(grpc.RpcError, match="30 bytes are no baseline"):
        first.result()
    third = refused(stub, 5)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is second[0]
    assert "SC600 another baseline is being imported: try again" in second[1]
    assert (grpc.StatusCode.INVALID_ARGUMENT, "SC200 5 bytes are no baseline") == third
    assert 1 == held.most


def test_a_caller_who_goes_away_does_not_make_room_for_another(
    running: RunningDaemon,
    stub: features_pb2_grpc.FeatureServiceStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work goes on without him, with all its memory."""
    held = Held(running, monkeypatch)
    first = begin(stub)
    assert held.begun.wait(DEADLINE)

    first.cancel()
    second = refused(stub, 5)
    held.let_go.set()
    wait_until(lambda: grpc.StatusCode.INVALID_ARGUMENT is refused(stub, 5)[0])

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is second[0]
    assert 1 == held.most


def test_a_sender_who_stalls_keeps_nobody_out_for_long(
    stub: features_pb2_grpc.FeatureServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time it is turned away, and the next one is read."""
    monkeypatch.setattr(features, "IMPORT_SECONDS", 0.2)
    stop = threading.Event()

    def stalling() -> Iterator[features_pb2.ImportBaselineRequest]:
        yield from parts(10)
        stop.wait(DEADLINE)

    with pytest.raises(grpc.RpcError) as caught:
        stub.ImportBaseline(stalling(), timeout=DEADLINE)
    stop.set()
    monkeypatch.setattr(features, "IMPORT_SECONDS", DEADLINE)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
    assert "did not arrive within 0.2 s" in caught.value.details()
    assert grpc.StatusCode.INVALID_ARGUMENT is refused(stub, 10)[0]


def test_a_file_that_is_too_large_is_refused_and_forgotten(
    stub: features_pb2_grpc.FeatureServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read to its end, and the next one is read."""
    monkeypatch.setattr(features, "IMPORT_LIMIT_BYTES", 100)

    code, words = refused(stub, 60, 60, 60)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is code
    assert "SC205" in words
    assert grpc.StatusCode.INVALID_ARGUMENT is refused(stub, 100)[0]
