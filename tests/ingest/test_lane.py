"""What only the lane has: frames that lie, peers by user, socket files, reused memory."""

import contextlib
import socket
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.errors import ConfigError
from sidecar.features import LayerSample, Request
from sidecar.ingest import Destination, LaneServer
from sidecar.ingest.stream import Stream
from sidecar.monitor import IngestCounts, Window
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import (
    PAYLOAD_ALIGNMENT,
    Acknowledgement,
    Answer,
    FrameKind,
    Hello,
    OutgoingBatch,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    Steering,
    Welcome,
    encode_request,
    encode_request_frame,
)
from sidecar.wire.frames import MAGIC, VERSION, encode_frame
from tests.ingest.conftest import LAYER, REVISION, WIDTH, LaneClient

pytestmark = pytest.mark.service

LIMIT = 64 * 1024
"""``ingest.message_limit_bytes`` of the daemon under test."""


@pytest.fixture
def transport() -> str:
    """The clients here are the lane's."""
    return "lane"


def counts(running: RunningDaemon) -> IngestCounts:
    """Return the daemon's ledger, after checking that nothing in it is lost."""
    found = running.daemon.ledger.counts()
    assert found.received == found.accepted + sum(found.refused.values())
    assert found.accepted == found.processed + sum(found.dropped.values()) + found.in_flight
    return found


def header(
    message: bytes, payload_bytes: int, *, magic: bytes = MAGIC, version: int = VERSION, **lies: int
) -> bytes:
    """Return what precedes a frame's payload, with a checksum that is right for the lie."""
    size = lies.get("message_bytes", len(message))
    kind, flags = lies.get("kind", int(FrameKind.REQUEST)), lies.get("flags", 0)
    head = struct.pack("<4sBBHII", magic, version, kind, flags, size, payload_bytes)
    data = head + struct.pack("<I", zlib.crc32(head + message)) + message
    return data + bytes(-len(data) % PAYLOAD_ALIGNMENT if payload_bytes else 0)


def flipped(data: bytes, at: int) -> bytes:
    """Return the bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HELLO = encode_request(Hello("tiny", REVISION))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "broken_frame"),
        (b"\0" * 64, "broken_frame"),
        (header(HELLO, 0, version=VERSION + 1), "unsupported_version"),
        (flipped(header(HELLO, 0), 17), "broken_frame"),
        (flipped(header(HELLO, 0), 30), "broken_frame"),
        (flipped(header(HELLO, 0), 5), "broken_frame"),
        (header(HELLO, 4 * LIMIT), "broken_frame"),
        (header(HELLO, 0, message_bytes=0xFFFF_FFFF), "broken_frame"),
    ],
)
def test_a_frame_without_an_end_costs_its_connection_only(
    running: RunningDaemon, opened: Callable[[], LaneClient], data: bytes, reason: str
) -> None:
    """It is refused and counted by reason, the peer is told and hung up on, and others go on."""
    other, liar = opened(), opened()
    other.hello()
    liar.write(data)
    told = liar.refusal()
    with pytest.raises(StopIteration):
        liar.read()
    other.read_until_settled(other.batch(np.ones((3, WIDTH))))

    wait_until(lambda: counts(running).streams == 1, what="the end of one stream")
    assert reason == told.reason
    assert ({reason: 1}, 1) == (dict(counts(running).refused), counts(running).processed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(HELLO, 8, kind=FrameKind.RESPONSE) + bytes(8), "malformed"),
        (header(HELLO, 8, kind=200) + bytes(8), "malformed"),
        (header(HELLO, 8, flags=2) + bytes(8), "malformed"),
        (header(HELLO, 8) + bytes(8), "malformed"),
        (header(b"\xff\xff", 0), "malformed"),
        (header(b"", 0), "malformed"),
        (header(HELLO, 2 * LIMIT) + bytes(2 * LIMIT), "message_too_large"),
        (header(HELLO + bytes(LIMIT), 8) + bytes(8), "message_too_large"),
    ],
)
def test_a_frame_that_can_be_passed_over_costs_itself_only(
    running: RunningDaemon, client: LaneClient, data: bytes, reason: str
) -> None:
    """Its end is known, so the same stream goes on after it."""
    client.write(data)
    told = client.refusal()
    client.hello()
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))

    assert reason == told.reason
    assert {reason: 1} == dict(counts(running).refused)
    assert 1 == counts(running).processed


def batch_frame(*tensors: OutgoingTensor, rows: int = 2) -> bytes:
    """Return the frame of batch number 1."""
    requests = tuple(Request() for _ in range(rows))
    return b"".join(encode_request_frame(OutgoingBatch(1, tensors, requests)))


@pytest.mark.parametrize(("more", "less"), [(8, 0), (0, 8), (0, 32)])
def test_a_payload_of_another_length_than_the_tensors_is_refused(
    running: RunningDaemon, client: LaneClient, more: int, less: int
) -> None:
    """Bytes that no tensor claims, or that are missing, cost the batch and not the stream."""
    client.hello()
    empty = OutgoingTensor(1, "f32", (2, WIDTH), b"")
    message = encode_request(OutgoingBatch(1, (empty,), (Request(),) * 2))
    payload = bytes(2 * WIDTH * 4 + more - less)
    client.sequence = 1
    client.write(header(message, len(payload)) + payload)
    refusal = client.refusal()
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))

    assert (1, "SC202") == (refusal.sequence, refusal.code)
    assert {"payload_mismatch": 1} == dict(counts(running).refused)


def tensor() -> OutgoingTensor:
    """Return two rows of the registered layer."""
    return OutgoingTensor(1, "f32", (2, WIDTH), np.ones((2, WIDTH), "<f4").tobytes())


def test_a_payload_may_also_be_inside_the_message(
    running: RunningDaemon, client: LaneClient
) -> None:
    """One codec: what gRPC carries is a valid frame too."""
    client.hello()
    client.send(encode_request(OutgoingBatch(1, (tensor(),), (Request(),) * 2)))
    client.read_until_settled(1)

    assert 2 == running.daemon.monitor.distribution(LAYER.feature(0), Window.CURRENT).count


@pytest.mark.parametrize("left", [1, 19, 25, -3])
def test_a_peer_that_vanishes_inside_a_frame_is_counted(
    running: RunningDaemon, opened: Callable[[], LaneClient], left: int
) -> None:
    """Half a frame is no batch: it is refused as truncated, and its memory and stream are given back."""
    client = opened()
    client.hello()
    client.write(batch_frame(tensor())[:left])
    client.close()

    wait_until(lambda: counts(running).refused, what="the refusal")
    assert {"truncated_frame": 1} == dict(counts(running).refused)
    wait_until(lambda: counts(running).streams == 0, what="the end of the stream")


def test_a_client_that_ends_between_frames_is_no_error(
    running: RunningDaemon, client: LaneClient
) -> None:
    """Nobody is at fault; what was sent is processed, though the answers are never read."""
    client.hello()
    client.batch(np.ones((3, WIDTH)))
    client.close()

    wait_until(lambda: counts(running).streams == 0, what="the end of the stream")
    wait_until(lambda: counts(running).processed == 1, what="the batch")
    assert {} == dict(counts(running).refused)


def test_bytes_may_come_one_at_a_time(running: RunningDaemon, client: LaneClient) -> None:
    """Frames have no relation to what one call sends or receives."""
    client.hello()
    for byte in batch_frame(tensor()):
        client.write(bytes([byte]))
    client.read_until_settled(1)

    assert 1 == counts(running).processed


def test_a_peer_that_reads_nothing_blocks_nobody(
    running: RunningDaemon, opened: Callable[[], LaneClient]
) -> None:
    """Its answers stay behind and are bounded; the writer and other streams go on."""
    deaf, other = opened(), opened()
    garbage = b"".join(encode_frame(FrameKind.REQUEST, b"\xff"))
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(40):
        deaf.write(garbage * 200)
    wait_until(lambda: counts(running).received == 8000, what="the refusals")
    other.hello()
    other.read_until_settled(other.batch(np.ones((3, WIDTH))))

    assert {"malformed": 8000} == dict(counts(running).refused)


# -- a server of its own, without a daemon around it ------------------------------------------------


@pytest.fixture
def destination(running: RunningDaemon, tmp_path: Path) -> Destination:
    """The daemon's parts, and another socket."""
    daemon = running.daemon
    listen = daemon.config.listen.model_copy(update={"lane": [f"unix://{tmp_path}/own.sock"]})
    config = daemon.config.model_copy(update={"listen": listen})
    return Destination(config, daemon.monitor, daemon.pipeline, daemon.ledger, time.time)


@contextlib.contextmanager
def serving(destination: Destination, **options: Any) -> Iterator[LaneServer]:
    """Run a lane for the length of a block."""
    server = LaneServer(destination, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_a_peer_that_stops_inside_a_frame_is_given_up(
    running: RunningDaemon, destination: Destination
) -> None:
    """It holds a thread and memory no longer than the patience."""
    with serving(destination, patience_seconds=0.05) as server:
        stuck = LaneClient(server.addresses[0])
        stuck.write(batch_frame(tensor())[:30])
        told = stuck.refusal()
        stuck.close()

    assert "truncated_frame" == told.reason
    assert {"truncated_frame": 1} == dict(counts(running).refused)


def test_a_silent_peer_is_kept_however_long_it_is_silent(
    running: RunningDaemon, destination: Destination
) -> None:
    """Between two frames there is no deadline: a model server may have nothing to say for hours."""
    with serving(destination, patience_seconds=0.01) as server:
        client = LaneClient(server.addresses[0])
        client.hello()
        due = time.monotonic() + 0.1
        wait_until(lambda: time.monotonic() > due)
        client.read_until_settled(client.batch(np.ones((3, WIDTH))))
        client.close()

    assert {} == dict(counts(running).refused)


def test_an_idle_stream_hears_of_another_rate(
    running: RunningDaemon, destination: Destination
) -> None:
    """Steering does not wait for a batch, which may not come while the rate is 0."""
    with serving(destination) as server:
        client = LaneClient(server.addresses[0])
        assert isinstance(client.hello(), Welcome)
        running.daemon.ledger.sampling_rate = 0.25
        answer = client.read()
        client.close()

    assert isinstance(answer, Steering)
    assert answer.sampling_rate < 1.0


def test_a_peer_of_another_user_is_turned_away(
    running: RunningDaemon, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uid is asked of the kernel; the refusal is counted, and told."""
    monkeypatch.setattr("sidecar.wire.peers.peer_uid", lambda _: 4242)
    with serving(destination) as server:
        client = LaneClient(server.addresses[0])
        refusal = client.read()
        client.close()

    assert isinstance(refusal, Refusal)
    assert ("SC213", "forbidden_peer") == (refusal.code, refusal.reason)
    assert "4242" in refusal.detail
    assert {"forbidden_peer": 1} == dict(counts(running).refused)


def test_a_named_user_is_let_in(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """``listen.lane_uids`` is how a pod's containers run as different users."""
    monkeypatch.setattr("sidecar.wire.peers.peer_uid", lambda _: 4242)
    listen = destination.config.listen.model_copy(update={"lane_uids": [4242]})
    config = destination.config.model_copy(update={"listen": listen})
    parts = (destination.monitor, destination.pipeline, destination.ledger, destination.clock)
    with serving(Destination(config, *parts)) as server:
        client = LaneClient(server.addresses[0])
        welcome = client.hello()
        client.close()

    assert isinstance(welcome, Welcome)


def test_only_owner_and_group_may_connect(running: RunningDaemon) -> None:
    """The mode is 0660 whatever the umask, from before the first connection on."""
    mode = Path(running.lane.removeprefix("unix://")).stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert 0o660 == stat.S_IMODE(mode)


def test_a_stale_socket_is_replaced_and_a_live_one_refused(
    destination: Destination, tmp_path: Path
) -> None:
    """What a killed daemon left behind stops nobody; what a living one listens on is left alone."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "own.sock"))
    with serving(destination) as server:
        with pytest.raises(ConfigError, match=r"listen\.lane .*another daemon listens"):
            LaneServer(destination).start()
        client = LaneClient(server.addresses[0])
        assert isinstance(client.hello(), Welcome)
        client.close()

    assert not (tmp_path / "own.sock").exists()


def test_a_file_in_the_way_is_not_removed(destination: Destination, tmp_path: Path) -> None:
    """A typing error in the configuration must not cost a file."""
    (tmp_path / "own.sock").write_text("precious")

    with pytest.raises(ConfigError, match="not a socket"):
        LaneServer(destination).start()
    assert "precious" == (tmp_path / "own.sock").read_text()


def held() -> set[object]:
    """Return this process's threads and descriptors; those of other tests may go at any time."""
    return {*threading.enumerate(), *Path("/proc/self/fd").iterdir()}


def test_stopping_ends_every_thread_and_descriptor(
    running: RunningDaemon, destination: Destination
) -> None:
    """Streams that their clients never end are ended; nothing is left behind."""
    before = held()
    clients = []
    with serving(destination) as server:
        for _ in range(4):
            clients.append(LaneClient(server.addresses[0]))
            clients[-1].hello()
    for client in clients:
        client.close()

    assert not held() - before
    assert 0 == counts(running).streams


# -- reused memory ----------------------------------------------------------------------------------


def test_reused_buffers_do_not_reach_back_into_the_statistics(
    running: RunningDaemon, client: LaneClient
) -> None:
    """Rows kept from a batch, as in warm-up, stay what they were when the next one overwrites them."""
    client.hello()
    values = np.arange(40, dtype=np.float32).reshape(10, WIDTH)
    for start in range(10):  # one at a time: each batch reuses the buffer of the one before
        client.read_until_settled(client.batch(values[start : start + 1]))
    live = running.daemon.monitor.distribution(LAYER.feature(1), Window.CURRENT)

    assert (10, 1.0, 37.0) == (live.count, live.minimum, live.maximum)
    assert live.mean == pytest.approx(values[:, 1].mean())


def test_a_buffer_is_not_reused_before_the_batch_is_done(
    running: RunningDaemon, client: LaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that wait in the queue keep their own memory."""
    seen: list[np.ndarray] = []

    def apply(sample: LayerSample, _: float) -> None:
        seen.append(sample.values.copy())

    monkeypatch.setattr(running.daemon.monitor, "apply", apply)
    client.hello()
    expected = [np.full((2, WIDTH), number, np.float32) for number in range(30)]
    for values in expected:
        client.batch(values)
    client.read_until_settled(30)

    assert [v.tolist() for v in expected] == [v.tolist() for v in seen]


def test_memory_comes_back_whatever_happens_to_a_frame(
    running: RunningDaemon, opened: Callable[[], LaneClient]
) -> None:
    """Accepted, refused, truncated: afterwards the pool holds what was lent, and no more than it may."""
    pool = running.daemon.lane._pool  # noqa: SLF001 - the promise is about this very pool
    client, vanishing = opened(), opened()
    client.hello()
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))
    once = pool.kept_bytes
    for _ in range(5):
        client.sequence += 1
        client.write(header(b"\xff\xff", 100) + bytes(100))
        client.write(header(HELLO, 100) + bytes(100))
        client.read_until_settled(client.batch(np.ones((3, WIDTH))))
    vanishing.write(batch_frame(tensor())[:-3])
    vanishing.close()

    wait_until(lambda: counts(running).refused.get("truncated_frame"), what="the refusal")
    assert once <= pool.kept_bytes <= 2 * once


def stream_of(destination: Destination, credit_bytes: int) -> tuple[Stream, list[Answer]]:
    """Return a busy stream that has said hello, and what it answers from then on."""
    ingest = destination.limits.model_copy(update={"credit_bytes": credit_bytes})
    config = destination.config.model_copy(update={"ingest": ingest})
    answers: list[Answer] = []
    stream = Stream(replace(destination, config=config), lambda: answers.extend(stream.answers()))
    stream.take(HELLO)
    stream.take(encode_request(RegisterLayer(1, LAYER, WIDTH)))
    answers.clear()
    stream.busy()
    return stream, answers


def send_rows(stream: Stream, running: RunningDaemon, batches: int) -> None:
    """Lead batches of one row into a stream, and wait until the writer has taken all of them."""
    before = counts(running).processed
    for sequence in range(1, batches + 1):
        rows = OutgoingTensor(1, "f32", (1, WIDTH), bytes(4 * WIDTH))
        stream.take(encode_request(OutgoingBatch(sequence, (rows,), (Request("a"),))))
    wait_until(lambda: counts(running).processed == before + batches, what="the writer")


def test_a_busy_stream_is_acknowledged_when_it_rests(
    running: RunningDaemon, destination: Destination
) -> None:
    """One acknowledgement settles all batches of a burst, as soon as nothing more is at hand."""
    stream, answers = stream_of(destination, 1 << 20)
    send_rows(stream, running, 5)
    before = list(answers)

    stream.rest()

    wait_until(lambda: answers and answers[-1].sequence == 5, what="the acknowledgement")
    assert not before


def test_a_busy_stream_gets_its_credit_back_in_time(
    running: RunningDaemon, destination: Destination
) -> None:
    """A hook that never pauses is acknowledged before it has used up what it may send."""
    stream, answers = stream_of(destination, 16 * 4 * WIDTH)

    send_rows(stream, running, 15)

    assert answers
    assert all(isinstance(answer, Acknowledgement) for answer in answers)


def test_a_lane_is_off_unless_configured(tmp_path: Path) -> None:
    """No socket appears, and no thread waits for one."""
    free = "127.0.0.1:0"
    listen = {"grpc": [free], "metrics": free, "web": free}
    with running_daemon(tmp_path, {"listen": listen}) as found:
        names = {thread.name for thread in threading.enumerate()}

        assert "" == found.lane
        assert "sidecar-lane" not in names
