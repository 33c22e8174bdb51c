"""Hooks' sink to daemon, over both transports: what goes in at one end comes out at the other.

The rest of the contract is each end's own, and runs over both transports too: ``test_stream`` and
``test_overload`` here, ``tests/hooks/test_transport`` and ``test_processes``, and with real processes
``tests/e2e/test_kill`` and ``test_failures``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.features import FeatureKind, LayerKey, Request, Slice, View
from sidecar.hooks import connect
from sidecar.hooks.batch import ForwardBatch, Lend, TappedRows, lends_nothing
from sidecar.hooks.session import Timing
from sidecar.hooks.sink import QueuedSink
from sidecar.monitor import IngestCounts
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import Batch, Hello
from tests.ingest.conftest import REVISION

pytestmark = pytest.mark.service

BITS = {"f32": np.dtype("<u4"), "f16": np.dtype("<u2"), "bf16": np.dtype("<u2")}
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
ODD_WIDTH = 7
"""Makes payloads of f16 and bf16 end off every boundary, so that the next tensor needs padding."""


@pytest.fixture(params=["lane", "ring", "grpc"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries the stream; with a ring, rows of any size are staged in it, and else none."""
    least = 1 if request.param == "ring" else 1 << 60
    monkeypatch.setattr("sidecar.hooks.lane.LEAST_RING_BYTES", least)
    return str(request.param)


def url_of(running: RunningDaemon, transport: str) -> str:
    """Return how hooks reach a daemon."""
    return f"grpc://{running.grpc}" if transport == "grpc" else running.lane


@dataclass(frozen=True, slots=True)
class Staged:
    """A batch that is staged in memory lent to it, where there is any, as torch's are."""

    rows: tuple[TappedRows, ...]
    requests: tuple[Request, ...] = ()
    weight: float = 1.0
    lent: list[bool] = field(default_factory=list)

    @property
    def held_bytes(self) -> int:
        """Bytes of the rows."""
        return sum(one.payload.nbytes for one in self.rows)

    def stage(self, lend: Lend = lends_nothing) -> tuple[TappedRows, ...]:
        """Copy the rows, one layer behind the other."""
        memory = lend(self.held_bytes)
        self.lent.append(memory is not None)
        if memory is None:
            return self.rows
        staged, at = [], 0
        for one in self.rows:
            place = memory[at : at + one.payload.nbytes]
            place[:] = one.payload
            staged.append(replace(one, payload=place))
            at += one.payload.nbytes
        return tuple(staged)

    def release(self) -> None:
        """Nothing has to be given back."""


@pytest.fixture
def sink(running: RunningDaemon, transport: str) -> Iterator[QueuedSink]:
    """A sink that sends to the daemon."""
    found = connect(url_of(running, transport), timing=Timing(report=0.05))
    found.announce(Hello("tiny", REVISION), 1.0)
    yield found
    found.close(1.0)


@pytest.fixture
def arrived(running: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Copies of the arrays of every batch that reaches the pipeline, which goes on as ever."""
    batches: list[dict[str, Any]] = []
    offer = running.daemon.pipeline.offer

    def record(batch: Batch, done: Callable[[], None]) -> None:
        batches.append({sample.layer.layer: sample.values.copy() for sample in batch.samples})
        batches[-1]["requests"] = batch.requests
        batches[-1]["index"] = batch.samples[0].request_index.tolist()
        batches[-1]["aligned"] = all(s.values.flags.aligned for s in batch.samples)
        offer(batch, done)

    monkeypatch.setattr(running.daemon.pipeline, "offer", record)
    return batches


def tapped(
    layer: str, dtype: str, bits: np.ndarray, *, items: int, named: bool = True
) -> TappedRows:
    """Return rows with these bits, which may be any: NaN, infinities, subnormals."""
    key = LayerKey("tiny", REVISION, layer, FeatureKind.NEURON, View.RAW)
    rows, width = bits.shape
    payload = memoryview(np.ascontiguousarray(bits, BITS[dtype]).reshape(-1).view(np.uint8))
    return TappedRows(key, dtype, items, rows // items, width, payload, named=named)


def test_every_bit_of_every_dtype_arrives(sink: QueuedSink, arrived: list[dict[str, Any]]) -> None:
    """Arrays are equal bit by bit in the dtype they were sent in, aligned, with their requests."""
    rng = np.random.default_rng(0)
    layers = ["f16", "f32", "bf16"]  # the first leaves the second unaligned unless it is filled up
    bits = {
        d: rng.integers(0, 1 << 8 * BITS[d].itemsize, (9, ODD_WIDTH), np.uint64) for d in layers
    }
    rows = tuple(tapped(f"layer-{d}", d, bits[d], items=3) for d in layers)
    requests = tuple(Request(f"r{i}", Slice.of({"route": f"/{i}"}), 1.0 + i) for i in range(3))

    for _ in range(3):  # the first goes before the daemon has a ring
        assert sink.offer(Staged(rows, requests))
    *_, batch = wait_until(lambda: arrived if len(arrived) == 3 else None)

    for dtype in layers:
        values = batch[f"layer-{dtype}"]
        assert NUMPY[dtype] is values.dtype.type
        assert np.array_equal(bits[dtype].astype(BITS[dtype]), values.view(BITS[dtype]))
    assert requests == batch["requests"]
    assert [0, 0, 0, 1, 1, 1, 2, 2, 2] == batch["index"]
    assert batch["aligned"]


def test_large_batches_arrive_whole(sink: QueuedSink, arrived: list[dict[str, Any]]) -> None:
    """Far more than a socket's buffer holds, cut to the daemon's limit, in order and complete."""
    bits = np.random.default_rng(1).integers(0, 1 << 32, (64, 4096), np.uint64).astype("<u4")
    rows = (tapped("wide", "f32", bits, items=64, named=False),)

    assert sink.offer(ForwardBatch(lambda: rows, (), 1.0, bits.nbytes))
    wait_until(lambda: sum(len(batch["wide"]) for batch in arrived) == 64)

    assert len(arrived) > 1
    assert np.array_equal(bits, np.concatenate([batch["wide"] for batch in arrived]).view("<u4"))


def test_bursts_through_the_ring_keep_their_order_and_every_bit(
    running: RunningDaemon, sink: QueuedSink, arrived: list[dict[str, Any]], transport: str
) -> None:
    """More than the ring holds, in batches of many sizes: its places are used again and again."""
    rng = np.random.default_rng(2)
    lent: list[bool] = []
    sent = []
    for number in range(120):
        bits = rng.integers(0, 1 << 32, (int(rng.integers(1, 4)), 4096), np.uint64).astype("<u4")
        bits[0, 0] = number
        sent.append(bits)
        rows = (tapped("wide", "f32", bits, items=len(bits), named=False),)
        wait_until(lambda: sink.pending < 20, what="room in the queue")
        assert sink.offer(Staged(rows, lent=lent))
    wait_until(lambda: len(arrived) == 120, what="the last batch")

    for bits, batch in zip(sent, arrived, strict=True):
        assert np.array_equal(bits, batch["wide"].view("<u4"))
    counts = running.daemon.ledger.counts()
    assert (120, {}) == (counts.accepted, dict(counts.refused))
    assert any(lent) is (transport == "ring")


@pytest.mark.parametrize("transport", ["ring"], indirect=True)
@pytest.mark.parametrize("error", [OSError("no space left"), AttributeError("memfd_create")])
def test_without_memory_to_share_the_socket_serves(
    sink: QueuedSink,
    arrived: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A full machine, or a system that knows no memfd, costs nothing but the copies."""

    def fails(_: int) -> None:
        raise error

    monkeypatch.setattr("sidecar.hooks.lane.Ring", fails)
    lent: list[bool] = []
    rows = (tapped("few", "f32", np.ones((2, 4), np.uint32), items=2, named=False),)
    for _ in range(5):
        assert sink.offer(Staged(rows, lent=lent))
    wait_until(lambda: len(arrived) == 5, what="the last batch")

    assert [False] * 5 == lent
    assert 0 == sink.report().errors


def small() -> ForwardBatch:
    """Return one row of one layer."""
    rows = (tapped("small", "f32", np.ones((1, 4), np.uint32), items=1),)
    return ForwardBatch(lambda: rows, (Request("r"),), 1.0, 16)


def test_reports_reach_the_ledger(running: RunningDaemon, sink: QueuedSink) -> None:
    """What the hooks say of themselves is added up where /metrics reads it."""
    for _ in range(3):
        sink.account.sampled(0.5, 0.25, 1.0)
        assert sink.offer(small())

    found: IngestCounts = wait_until(
        lambda: (c := running.daemon.ledger.counts()).hook_batches_sent == 3 and c
    )
    assert (3, 3, 0.75, 1.5) == (
        found.forwards,
        found.sampled_forwards,
        found.hook_seconds,
        found.forward_seconds,
    )


def test_closing_delivers_everything(running: RunningDaemon, sink: QueuedSink) -> None:
    """What ``close`` calls handed over has been read by the daemon, to the last batch."""
    for _ in range(50):
        assert sink.offer(small())

    assert sink.close(10.0)
    wait_until(lambda: running.daemon.ledger.counts().processed == 50, what="the last batch")
    wait_until(lambda: running.daemon.ledger.counts().streams == 0, what="the end of the stream")


def test_a_model_nobody_configured_is_told_to_the_hooks(
    running: RunningDaemon, transport: str
) -> None:
    """The sink says why nothing arrives."""
    sink = connect(url_of(running, transport))
    sink.announce(Hello("huge", REVISION), 1.0)
    sink.offer(small())

    wait_until(lambda: "SC401" in sink.refusals)
    sink.close(0.0)


def test_a_flood_is_conserved_from_end_to_end(tmp_path: Path, transport: str) -> None:
    """What the hooks sent is what the daemon received, whatever became of it at either end."""
    settings = {"models": [{"name": "tiny"}], "ingest": {"queue_bytes": 2048}}
    rows = (tapped("flood", "f32", np.ones((16, 4), np.uint32), items=16, named=False),)
    with running_daemon(tmp_path, settings) as running:
        sink = connect(url_of(running, transport), queue_bytes=64 << 10)
        sink.announce(Hello("tiny", REVISION), 1.0)
        for _ in range(2000):
            sink.offer(Staged(rows))
        wait_until(lambda: sink.pending == 0)
        assert sink.close(10.0)
        report = sink.report()
        found = wait_until(
            lambda: (c := running.daemon.ledger.counts()).received == report.batches_sent and c
        )

    assert 2000 == report.batches_sent + sum(report.dropped.values())
    assert found.received == found.accepted + sum(found.refused.values())
    assert found.accepted == found.processed + sum(found.dropped.values()) + found.in_flight
    assert set(found.refused) <= {"queue_full"}


def test_the_hooks_check_who_listens(
    running: RunningDaemon, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """A socket somebody else put there gets nothing, and the sink says so; gRPC has no such check."""
    monkeypatch.setattr("sidecar.wire.peers.peer_uid", lambda _: 4242)
    sink = connect(url_of(running, transport))
    sink.announce(Hello("tiny", REVISION), 1.0)
    sink.offer(small())

    if transport == "grpc":
        wait_until(lambda: running.daemon.ledger.counts().processed)
    else:
        wait_until(lambda: "SC213" in sink.refusals)
        assert 0 == running.daemon.ledger.counts().processed
    sink.close(0.0)
