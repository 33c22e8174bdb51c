"""What it costs to get sampled activations into the daemon: CPU seconds per GB, both sides together.

Two processes on one machine, batches of 1 MiB (64 rows of 4,096 float32 values, of 2 requests).
Counted is all CPU time, user and system, of both whole processes, from the first batch offered to the
last one taken, reports and acknowledgements included, which come a few times a second:

- sender: ``Sink.offer``, the queue, the sender thread, ``Session``, encoding, sending, reading answers;
- receiver: reading, ``StreamDecoder``, admission, the ledger, acknowledging, giving the memory back.

Not counted: making the rows, and what the statistics do with them (the pipeline gives each batch back at
once). The rows lie in memory: where the sink lends some to stage them in, there, with whatever values it
has, and else in buffers of the sender's. ``lane.unix_staged`` counts a copy of every batch from such a
buffer to what is lent as well, which is what staging costs the hooks on any transport. Peers: a copy of the same bytes in memory, a bare unix socket that
carries them, plain grpcio with raw bytes, and Arrow Flight, the latter two over a unix socket as well;
none does anything beside. All in one run, in turn; the least of ``ROUNDS`` of each.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.row import Row
from sidecar.features import FeatureKind, LayerKey, Request, View
from sidecar.hooks import connect
from sidecar.hooks.batch import Lend, TappedRows, lends_nothing
from sidecar.wire import Hello

ROWS_PER_REQUEST, REQUESTS, WIDTH = 32, 2, 4096
BATCH_BYTES = ROWS_PER_REQUEST * REQUESTS * WIDTH * 4
BATCHES = 1024
"""A GB a round: long enough that what happens a few times a second happens in every round."""

ROUNDS = 8
RING = 8
"""Buffers the batches lie in, one after another: the hooks' own pool reuses its buffers likewise."""

WINDOW = 16
"""Most batches offered and not yet sent: the sender's queue never runs dry and never overflows."""

UNIT = "CPU-seconds per GB"

Send = Callable[[int], None]
"""Sends so many batches, and returns when all have left the process."""


def run() -> Sequence[Row]:
    """Measure both of our transports and four peers, in turn, and keep the least of each."""
    rng = np.random.default_rng(0)
    shape = (RING, ROWS_PER_REQUEST * REQUESTS, WIDTH)
    ring = rng.standard_normal(shape, dtype=np.float32)
    senders: dict[str, Any] = {"lane": _ours("unix"), "grpc": _ours("grpc+unix")}
    senders["staged"] = _ours("unix", copies=True)
    senders |= {"grpcio": _grpcio, "flight": _flight, "socket": _socket}
    with contextlib.ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        ends = {}
        for kind, sender in senders.items():
            receiver = _receiver("lane" if kind == "staged" else kind, str(folder / kind))
            cpu_after = open_.enter_context(receiver)
            ends[kind] = _End(open_.enter_context(sender(str(folder / kind), ring)), cpu_after)
        rounds = [{kind: end.cost() for kind, end in ends.items()} for _ in range(ROUNDS + 1)]
    # The first round warms everything up.
    cost = {kind: min(one[kind] for one in rounds[1:]) for kind in ends}
    cost["copy"] = min(_copy(ring) for _ in range(ROUNDS))
    return _rows(cost)


def _rows(cost: Mapping[str, float]) -> Sequence[Row]:
    unix, rpc = cost["lane"], cost["grpc"]
    peers = {
        "socket": "a bare unix socket, same bytes",
        "copy": "a copy in memory",
        "grpcio": "plain grpcio, raw bytes, unix socket",
        "flight": "Arrow Flight do_put, unix socket",
    }
    rows = [
        Row("lane.unix", unix, UNIT, "our own gRPC, unix socket", rpc, rpc / unix),
        Row("lane.grpc", rpc, UNIT, peers["grpcio"], cost["grpcio"], cost["grpcio"] / rpc),
    ]
    staged, bare = cost["staged"], cost["socket"]
    rows.append(Row("lane.unix_staged", staged, UNIT, peers["socket"], bare, bare / staged))
    for kind, name in peers.items():
        rows.append(Row(f"lane.unix_vs_{kind}", unix, UNIT, name, cost[kind], cost[kind] / unix))
    return rows


class _End:
    """One transport with both processes up."""

    def __init__(self, send: Send, cpu_after: Callable[[int], float]) -> None:
        self._send, self._cpu_after = send, cpu_after
        self._sent = 0
        self._there = cpu_after(0)

    def cost(self) -> float:
        """Send one round; return the CPU seconds per GB of both processes."""
        here, there = time.process_time(), self._there
        self._send(BATCHES)
        self._sent += BATCHES
        self._there = self._cpu_after(self._sent)
        spent = time.process_time() - here + self._there - there
        return spent / (BATCHES * BATCH_BYTES / 1e9)


@contextmanager
def _receiver(kind: str, path: str) -> Iterator[Callable[[int], float]]:
    """Run the receiving process; yield what waits for a number of batches and tells its CPU time."""
    command = [sys.executable, "-m", "benchmarks.lane_receiver", kind, path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        stdin: Any = process.stdin
        stdout: Any = process.stdout

        def cpu_after(batches: int) -> float:
            stdin.write(f"{batches}\n")
            stdin.flush()
            return float(stdout.readline())

        try:
            stdout.readline()  # "ready"
            yield cpu_after
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class _Rows:
    """A batch whose rows lie where the sink wants them, or are copied there."""

    layer: LayerKey
    requests: tuple[Request, ...]
    source: memoryview
    copies: bool
    release: Callable[[], None]
    weight = 1.0
    held_bytes = BATCH_BYTES

    def stage(self, lend: Lend = lends_nothing) -> tuple[TappedRows, ...]:
        """Return the rows."""
        payload = lend(BATCH_BYTES)
        if payload is None:
            payload = self.source
        elif self.copies:
            np.copyto(np.frombuffer(payload, np.uint8), np.frombuffer(self.source, np.uint8))
        shape = (REQUESTS, ROWS_PER_REQUEST, WIDTH)
        return (TappedRows(self.layer, "f32", *shape, payload, named=True),)


def _ours(scheme: str, *, copies: bool = False) -> Callable[..., Any]:
    @contextmanager
    def sender(path: str, ring: np.ndarray) -> Iterator[Send]:
        sink = connect(f"{scheme}://{path}", queue_bytes=2 * WINDOW * BATCH_BYTES)
        sink.announce(Hello("bench", "0"), 1.0)
        layer = LayerKey("bench", "0", "layer", FeatureKind.NEURON, View.RAW)
        requests = tuple(Request(f"request-{number}") for number in range(REQUESTS))
        window = _Window()
        payloads = [memoryview(batch.reshape(-1).view(np.uint8)) for batch in ring]

        def send(count: int) -> None:
            for number in range(count):
                window.enter()
                sink.offer(_Rows(layer, requests, payloads[number % RING], copies, window.leave))
            window.wait_empty()
            if sink.report().dropped:
                raise RuntimeError(f"batches were lost: {sink.report()}")

        try:
            yield send
        finally:
            sink.close(1.0)

    return sender


class _Window:
    """Lets ``WINDOW`` batches in; whoever waits for room is woken once for half of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    def enter(self) -> None:
        with self._changed:
            if self._inside >= WINDOW:
                self._changed.wait_for(lambda: self._inside <= WINDOW // 2)
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._inside in (0, WINDOW // 2):
                self._changed.notify_all()

    def wait_empty(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)


@contextmanager
def _grpcio(path: str, ring: np.ndarray) -> Iterator[Send]:
    payloads = [batch.tobytes() for batch in ring]
    with grpc.insecure_channel(f"unix://{path}") as channel:
        put = channel.stream_unary("/Raw/Put", None, None)

        def send(count: int) -> None:
            put(payloads[number % RING] for number in range(count))

        yield send


@contextmanager
def _socket(path: str, ring: np.ndarray) -> Iterator[Send]:
    payloads = [memoryview(batch.reshape(-1).view(np.uint8)) for batch in ring]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)

        def send(count: int) -> None:
            for number in range(count):
                connection.sendall(payloads[number % RING])

        yield send


@contextmanager
def _flight(path: str, ring: np.ndarray) -> Iterator[Send]:
    import pyarrow as pa  # noqa: PLC0415 - of the bench extra, and heavy
    from pyarrow import flight  # noqa: PLC0415

    batches = [pa.record_batch([pa.array(batch.reshape(-1))], names=["x"]) for batch in ring]
    with flight.connect(f"grpc+unix://{path}") as client:

        def send(count: int) -> None:
            descriptor = flight.FlightDescriptor.for_path("x")
            writer, _ = client.do_put(descriptor, batches[0].schema)
            with writer:
                for number in range(count):
                    writer.write_batch(batches[number % RING])

        yield send


def _copy(ring: np.ndarray) -> float:
    target = np.empty_like(ring)
    target.fill(0.0)
    started = time.thread_time()
    for number in range(BATCHES):
        np.copyto(target[number % RING], ring[number % RING])
    return (time.thread_time() - started) / (BATCHES * BATCH_BYTES / 1e9)
