"""The daemon's end of a ring: what it maps, what it copies, and hooks that lie about either."""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.errors import MalformedMessage
from sidecar.features import Request
from sidecar.hooks.ring import Ring
from sidecar.ingest.ring import RING_BYTES, RingEnd
from sidecar.monitor import Window
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import (
    Batch,
    OutgoingBatch,
    OutgoingTensor,
    decode_ring_frame,
    encode_request_frame,
    encode_ring_frame,
)
from sidecar.wire.frames import IN_RING
from tests.ingest.conftest import LAYER, WIDTH, LaneClient

SIZE = 1 << 16
PAGE = 4096

unit = pytest.mark.unit
service = pytest.mark.service


def number(value: int) -> bytes:
    """Return the message of a frame about the ring."""
    return struct.pack("<Q", value)


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """Return a descriptor of memory."""
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def plain_file() -> int:
    """Return a descriptor of an ordinary file, which may shrink."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        return os.dup(file.fileno())


def open_descriptors() -> set[tuple[str, str]]:
    """Return this process's descriptors, and what they are of.

    Those that came are told from those before: what other tests left open may be closed at any time.
    """
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add((entry.name, str(entry.readlink())))
    return found


@unit
@pytest.mark.parametrize(
    ("make", "size", "why"),
    [
        (lambda: memfd(SIZE, 0), SIZE, "not sealed"),
        (lambda: memfd(SIZE, fcntl.F_SEAL_GROW), SIZE, "not sealed"),
        (lambda: memfd(SIZE), SIZE - PAGE, "its frame says"),
        (lambda: memfd(SIZE), SIZE - 1, "its frame says"),
        (lambda: memfd(SIZE), 0, "at most"),
        (lambda: memfd(2 * SIZE), 2 * SIZE, "at most"),
        (lambda: memfd(SIZE), 2**64 - 1, "at most"),
        (plain_file, SIZE, "not sealed|no memfd"),
        (lambda: os.open("/dev/zero", os.O_RDWR), SIZE, "no memfd"),
        (lambda: os.open("/", os.O_RDONLY), SIZE, "no memfd"),
    ],
)
def test_only_memory_that_cannot_shrink_is_mapped(
    make: Callable[[], int], size: int, why: str
) -> None:
    """Anything else could kill the daemon; it is refused, and its descriptor closed."""
    end, before = RingEnd(SIZE), open_descriptors()
    end.keep([make()])

    with pytest.raises(MalformedMessage, match=why):
        end.attach(number(size))
    with pytest.raises(MalformedMessage, match="there is none"):
        end.fetch(0, memoryview(bytearray(1)))
    assert not open_descriptors() - before


@unit
def test_huge_pages_are_not_mapped() -> None:
    """Those that are not there kill their reader, sealed or not."""
    try:
        descriptor = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        os.ftruncate(descriptor, 2 << 20)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    end = RingEnd(2 << 20)
    end.keep([descriptor])

    with pytest.raises(MalformedMessage, match="huge pages"):
        end.attach(number(2 << 20))


@unit
def test_one_ring_and_one_descriptor_are_all_there_is() -> None:
    """Every other one is closed and counted; a ring without one, and a second, are refused."""
    before, end = open_descriptors(), RingEnd(SIZE)
    with pytest.raises(MalformedMessage, match="no descriptor"):
        end.attach(number(SIZE))
    end.keep([memfd(SIZE), memfd(SIZE), memfd(SIZE)])
    with pytest.raises(MalformedMessage, match="8"):
        end.attach(b"short")
    assert 2 == end.surplus
    end.keep([memfd(SIZE)])
    end.attach(number(SIZE))
    end.keep([memfd(SIZE)])
    with pytest.raises(MalformedMessage, match="already"):
        end.attach(number(SIZE))
    assert 3 == end.surplus

    end.close()
    assert not open_descriptors() - before


@unit
def test_a_connection_without_a_ring_keeps_nothing() -> None:
    """Where the budget is used up, or the configuration wants none."""
    before, end = open_descriptors(), RingEnd(0)
    end.keep([memfd(SIZE)])

    assert (1, set()) == (end.surplus, open_descriptors() - before)


@unit
def test_a_payload_is_copied_once_and_only_from_inside() -> None:
    """What the peer writes afterwards changes nothing; what lies outside is refused, and counted out."""
    ring, end = Ring(SIZE), RingEnd(SIZE)
    end.keep([os.dup(ring.descriptor)])
    ring.shared()
    end.attach(number(SIZE))
    memory = ring.lend(SIZE)
    assert memory is not None
    memory[:] = b"a" * SIZE
    copied = bytearray(100)

    end.fetch(SIZE - 100, memoryview(copied))
    memory[:] = b"b" * SIZE
    for offset in (SIZE - 99, SIZE, 2**63, 2**64 - 1):
        with pytest.raises(MalformedMessage, match="of a ring of"):
            end.fetch(offset, memoryview(bytearray(100)))

    assert b"a" * 100 == copied
    assert 5 == decode_ring_frame(end.news()[20:])
    assert b"" == end.news()


@unit
def test_a_hook_hears_of_room_before_it_needs_it() -> None:
    """Once half the ring has been taken out; a mapped ring is confirmed at once."""
    end = RingEnd(SIZE)
    assert b"" == end.news()
    end.keep([memfd(SIZE)])
    end.attach(number(SIZE))
    assert 0 == decode_ring_frame(end.news()[20:])

    due = []
    for _ in range(4):
        end.fetch(0, memoryview(bytearray(SIZE // 4)))
        due.append(end.due)
        if end.due:
            end.news()

    assert [False, True, False, True] == due


# -- through a daemon -------------------------------------------------------------------------------


@pytest.fixture
def transport() -> str:
    """Only the lane has rings."""
    return "lane"


@pytest.fixture
def client(client: LaneClient) -> LaneClient:
    """A stream that has said hello."""
    client.hello()
    return client


def share(client: LaneClient, size: int, *descriptors: int) -> None:
    """Send a frame about the ring with descriptors."""
    socket.send_fds(client.socket, [encode_ring_frame(size)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def memory(name: str = "test") -> set[tuple[str, str]]:
    """Return the descriptors of such memory that this process has, in the daemon and here."""
    return {one for one in open_descriptors() if one[1].startswith(f"/memfd:{name}")}


def in_ring(offset: int, size: int, sequence: int = 1) -> bytes:
    """Return a frame of two rows of the registered layer, which lie in the ring."""
    tensor = OutgoingTensor(1, "f32", (2, WIDTH), bytes(size))
    batch = OutgoingBatch(sequence, (tensor,), (Request("a"), Request("b")))
    return b"".join(encode_request_frame(batch, lambda _pieces, _size: offset))


@service
def test_rows_in_the_ring_reach_the_statistics(running: RunningDaemon, client: LaneClient) -> None:
    """With all that is true of those behind their frames."""
    ring = Ring(SIZE)
    share(client, SIZE, os.dup(ring.descriptor))
    ring.shared()
    assert 0 == client.fetched()
    memory = ring.lend(SIZE)
    assert memory is not None
    memory[64 : 64 + 8 * WIDTH] = np.full(2 * WIDTH, 7.0, "<f4").tobytes()
    client.write(in_ring(64, 8 * WIDTH))
    assert 1 == client.fetched()

    wait_until(lambda: running.daemon.ledger.counts().processed == 1, what="the batch")
    found = running.daemon.monitor.distribution(LAYER.feature(0), Window.CURRENT)
    assert (2, 7.0) == (found.count, found.mean)


@service
@pytest.mark.parametrize("offset", [SIZE - 8 * WIDTH + 1, SIZE, 2**64 - 1])
def test_a_place_outside_costs_its_frame_only(
    running: RunningDaemon, client: LaneClient, offset: int
) -> None:
    """It is refused and counted, and the stream goes on."""
    share(client, SIZE, memfd(SIZE))
    client.write(in_ring(offset, 8 * WIDTH))
    refusal = client.refusal()
    client.write(in_ring(0, 8 * WIDTH, 2))
    wait_until(lambda: running.daemon.ledger.counts().processed == 1, what="the batch")

    assert ("SC206", {"malformed": 1}) == (
        refusal.code,
        dict(running.daemon.ledger.counts().refused),
    )


@service
def test_a_ring_nobody_handed_over_is_refused(running: RunningDaemon, client: LaneClient) -> None:
    """As is a message too short to say where, and a batch whose ring was turned away."""
    share(client, SIZE, memfd(SIZE, 0))
    client.write(in_ring(0, 8 * WIDTH))
    whole = in_ring(0, 8 * WIDTH)
    head = bytearray(whole[:16])
    head[6], head[8] = IN_RING, 7  # seven bytes of message
    client.write(bytes(head) + struct.pack("<I", zlib.crc32(bytes(7), zlib.crc32(head))) + bytes(7))
    client.close()

    wait_until(lambda: running.daemon.ledger.counts().streams == 0, what="the end")
    assert {"malformed": 3} == dict(running.daemon.ledger.counts().refused)


@service
def test_descriptors_nobody_asked_for_are_closed_and_counted(
    running: RunningDaemon, client: LaneClient
) -> None:
    """Many in one message, again and again, with and without a ring: none of them stays."""
    before = memory()
    for _ in range(20):
        share(client, SIZE, *[memfd(SIZE, 0) for _ in range(50)])
    wait_until(
        lambda: running.daemon.ledger.counts().refused.get("malformed", 0) >= 40,
        what="a refusal of each ring, and of its surplus",
    )
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))

    assert not memory() - before


@service
def test_a_mapped_ring_goes_with_its_connection(running: RunningDaemon, client: LaneClient) -> None:
    """Whoever vanishes leaves neither memory nor descriptors behind, and its share can be had again."""
    before = memory()
    share(client, SIZE, memfd(SIZE))
    assert (0, 1) == (client.fetched(), len(memory() - before))
    client.close()

    wait_until(lambda: running.daemon.ledger.counts().streams == 0, what="the end")
    assert not memory() - before


@service
def test_a_descriptor_that_is_slow_to_close_holds_nobody_up(
    running: RunningDaemon, client: LaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of a file whose file system is the peer's own: others are still taken."""
    closing, may_close = threading.Event(), threading.Event()
    close = RingEnd.close

    def close_slowly(ring: RingEnd) -> None:
        closing.set()
        may_close.wait()
        close(ring)

    monkeypatch.setattr(RingEnd, "close", close_slowly)
    try:
        client.read_until_settled(client.batch(np.ones((3, WIDTH))))
        client.close()
        assert closing.wait(10)
        # The acceptor looks at all connections after each that it takes: a second one tells.
        for _ in range(2):
            other = LaneClient(running.lane)
            other.socket.settimeout(10)
            assert RING_BYTES == other.hello().ring_bytes
            other.close()
    finally:
        may_close.set()


@service
def test_rings_are_within_their_budget(tmp_path: Any) -> None:
    """Who comes when it is used up is told that there is no ring for it, until another leaves."""
    settings = {"models": [{"name": "tiny"}], "ingest": {"ring_bytes": RING_BYTES + PAGE}}
    with running_daemon(tmp_path, settings) as running:
        clients = [LaneClient(running.lane) for _ in range(3)]
        told = [one.hello().ring_bytes for one in clients]
        clients[0].close()
        wait_until(lambda: running.daemon.ledger.counts().streams == 2, what="the end of one")
        clients.append(LaneClient(running.lane))
        told.append(clients[-1].hello().ring_bytes)
        for one in clients:
            one.close()

    assert [RING_BYTES, PAGE, 0, RING_BYTES] == told


@service
def test_there_are_no_rings_where_none_are_wanted(tmp_path: Any) -> None:
    """``ingest.ring_bytes: 0``."""
    settings: dict[str, Any] = {"models": [{"name": "tiny"}], "ingest": {"ring_bytes": 0}}
    with running_daemon(tmp_path, settings) as running:
        client = LaneClient(running.lane)
        welcome = client.hello()
        share(client, SIZE, memfd(SIZE))
        refusals = {client.refusal().detail for _ in range(2)}
        client.close()

    assert 0 == welcome.ring_bytes
    assert any("at most 0" in text for text in refusals)


# -- from torch, in a process of its own ------------------------------------------------------------

SCRIPT = """
import os, sys, threading, time
import torch
from sidecar.features import FeatureKind, Request
from sidecar.hooks import Plan, Tap, connect, current_requests, lane
from sidecar.hooks.torch import attach

lane.LEAST_RING_BYTES = 1
lent = []
lend = lane._Outlet.lend
def noted(self, size):
    memory = lend(self, size)
    lent.append(memory is not None)
    return memory
lane._Outlet.lend = noted

def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        threading.Event().wait(0.005)

def serve(value, times):
    for _ in range(times):
        before = sink.report().batches_sent
        with current_requests([Request("r")]):
            model(torch.full((1, 4), value))
        wait_for(lambda: sink.report().batches_sent > before)

torch.set_num_threads(1)
model = torch.nn.Identity()
sink = connect(sys.argv[1])
plan = Plan("tiny", (Tap("", FeatureKind.NEURON),), revision="r", overhead_budget=None)
attachment = attach(model, plan, sink)
serve(1.0, 20)
assert lent[-1], "the parent has no ring"
child = os.fork()
if child == 0:
    lent.clear()
    serve(3.0, 20)
    assert lent[-1] and not lent[0], "the child went on with its parent's ring, or has none"
    assert sink.close(10.0)
    os._exit(0)
serve(1.0, 20)
assert os.waitpid(child, 0)[1] == 0
assert sink.close(10.0)
"""


@service
def test_a_forked_child_has_a_ring_of_its_own(
    running: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parent and child stage at the same time, and no row of either is the other's."""
    rows: list[list[float]] = []
    offer = running.daemon.pipeline.offer

    def record(batch: Batch, done: Callable[[], None]) -> None:
        rows.extend(row for sample in batch.samples for row in sample.values.tolist())
        offer(batch, done)

    monkeypatch.setattr(running.daemon.pipeline, "offer", record)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, running.lane],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    wait_until(lambda: running.daemon.ledger.counts().processed == 60, what="the last batch")

    assert 40 * [[1.0] * 4] + 20 * [[3.0] * 4] == sorted(rows)
    assert {} == dict(running.daemon.ledger.counts().refused)


@service
def test_a_killed_hook_takes_its_memory_along(running: RunningDaemon) -> None:
    """The daemon reads what had arrived, and holds nothing afterwards."""
    before = memory("sidecar-ring")
    script = SCRIPT.split("child = os.fork()", maxsplit=1)[0] + "os.kill(os.getpid(), 9)\n"
    done = subprocess.run(
        [sys.executable, "-c", script, running.lane], timeout=120, check=False, capture_output=True
    )

    assert -9 == done.returncode
    wait_until(lambda: running.daemon.ledger.counts().streams == 0, what="the end of the stream")
    wait_until(lambda: running.daemon.ledger.counts().processed == 20, what="the last batch")
    assert not memory("sidecar-ring") - before
