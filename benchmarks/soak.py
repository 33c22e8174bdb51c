"""``python -m benchmarks.soak``: two hours of traffic as fast as it goes; memory flat, nothing lost.

A simulated clock moves through 720 windows of 10 s. Messages are encoded as hooks encode them, decoded
as the daemon decodes them, queued in its pipeline and written by its writer thread to its monitor:
dense layers and a sparse one, flagged features that spike now and then, bursts beyond the queue,
batches that lie, and batches of a layer that was never announced. What is left out is the network.

Ends with 1 when resident memory grows after the warm-up by more than the tolerance, or when a batch is
not accounted for.
"""

import argparse
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

from sidecar.config import IngestConfig, SpikeConfig, StatisticsConfig
from sidecar.errors import SidecarError
from sidecar.features import Capture, FeatureKind, FeatureSelector, LayerKey, Request, View
from sidecar.ingest import Ledger, Pipeline
from sidecar.monitor import Event, Flag, IngestCounts, Monitor
from sidecar.stats import compile_sparse_kernels, compiled
from sidecar.testing import FakeClock
from sidecar.wire import (
    Batch,
    Hello,
    OutgoingBatch,
    OutgoingSparse,
    OutgoingTensor,
    RegisterLayer,
    StreamDecoder,
    encode_request,
)

WINDOWS, WINDOW_SECONDS = 720, 10.0
TOLERANCE = 0.03
"""Growth of resident memory after the warm-up, over the rest of the run, that is taken for noise."""

WARMUP = 1 / 3
"""Share of the run after which memory must be flat: two turns of the history, all latents hit."""

BATCHES, ROWS, REQUESTS = 10, 64, 16
DENSE_LAYERS, WIDTH = 6, 256
LATENTS, ACTIVE = 16_384, 50
BURST_EVERY, SPIKE_EVERY, SAVE_EVERY = 40, 60, 30
"""Windows between bursts, between spikes of flagged features, and between snapshots."""

QUEUE_BYTES = 4 << 20
BURST = 4
"""Times the batches of another window: together four times what the queue holds."""

SPIKE_WINDOWS, LOUD, NAN_SHARE = 5, 20.0, 1e-5
PATIENCE_SECONDS = 60.0
MIB = 1 << 20

STATISTICS = StatisticsConfig(
    window_seconds=WINDOW_SECONDS,
    baseline_min_requests=1000,
    baseline_min_seconds=120,
    history_seconds=WINDOWS * WINDOW_SECONDS / 8,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay came to.

    Attributes:
        counts: The ledger at its end, when nothing was in flight.
        events: Changes of state, by name.
        resident: Windows replayed and bytes resident then, shape ``(samples, 2)``.
        windows: Windows replayed in all.
    """

    counts: IngestCounts
    events: Counter[str]
    resident: np.ndarray
    windows: int

    @property
    def conserved(self) -> bool:
        """Whether every batch is accounted for."""
        counts = self.counts
        taken = counts.accepted + sum(counts.refused.values())
        ended = counts.processed + sum(counts.dropped.values()) + counts.in_flight
        return (counts.received, counts.accepted) == (taken, ended)

    @property
    def growth(self) -> float:
        """By what share resident memory grew from the warm-up to the end, by a straight line."""
        return growth(self.resident, self.windows)


def growth(resident: np.ndarray, windows: int) -> float:
    """Return the slope of resident bytes after the warm-up, times the windows left, as a share."""
    steady = resident[resident[:, 0] >= WARMUP * windows]
    slope, start = np.polyfit(steady[:, 0] - steady[0, 0], steady[:, 1], 1)
    return float(slope * (windows - steady[0, 0]) / start)


@dataclass(slots=True)
class Replay:
    """One sender, the daemon's parts behind it, and a clock that moves when told."""

    clock: FakeClock
    monitor: Monitor
    ledger: Ledger
    pipeline: Pipeline
    decoder: StreamDecoder
    traffic: "Traffic"
    events: Counter[str]
    settled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waiting: int = 0

    @classmethod
    def start(cls) -> "Replay":
        """Build everything, announce the layers, and start the writer."""
        clock = FakeClock()
        monitor = Monitor(STATISTICS, SpikeConfig(), now=clock())
        monitor.use(compiled())
        monitor.use_sparse(compile_sparse_kernels())
        ledger = Ledger(queue_limit_bytes=QUEUE_BYTES, sampling_rate=1.0)
        events: Counter[str] = Counter()

        def told(changes: tuple[Event, ...]) -> None:
            events.update(change.what for change in changes)

        config = IngestConfig(queue_bytes=QUEUE_BYTES)
        pipeline = Pipeline(monitor, ledger, config, clock=clock, on_events=told)
        replay = cls(clock, monitor, ledger, pipeline, StreamDecoder(), Traffic(), events)
        replay.announce()
        pipeline.start()
        return replay

    def announce(self) -> None:
        """Say hello, register every layer but the last, and flag two features of each."""
        self.decoder.decode(encode_request(Hello("soak", "0")))
        for layer in self.traffic.layers:
            self.decoder.decode(encode_request(layer))
        for layer in self.traffic.layers[:-1]:
            self.monitor.register(
                layer.layer, layer.width, Capture(), self.clock(), sparse=layer.sparse
            )
        names = [f"soak/{one.layer.layer}/{one.layer.kind}" for one in self.traffic.layers[:-1]]
        wanted = [FeatureSelector.parse(f"{name}/{index}") for name in names for index in (0, 7)]
        self.monitor.set_flags(dict.fromkeys(wanted, Flag("soak")), self.clock())

    def send(self, message: bytes) -> None:
        """Take in one message as an ingest stream does: admit it, or refuse and count it."""
        try:
            batch = self.decoder.decode(message)
            if not isinstance(batch, Batch):
                raise TypeError(f"{type(batch)} is no batch")
            self.pipeline.offer(batch, self.settled.release)
        except SidecarError as error:
            self.ledger.refuse(error.reason)
        else:
            self.waiting += 1

    def drain(self) -> None:
        """Wait until all that was accepted is written or dropped."""
        while self.waiting:
            if not self.settled.acquire(timeout=PATIENCE_SECONDS):
                raise TimeoutError(f"{self.waiting} batches were not settled")
            self.waiting -= 1

    def window(self, number: int) -> None:
        """Send what comes in one window, then move the clock on to the next."""
        messages = self.traffic.window(number)
        if number % BURST_EVERY == 0:
            messages = iter(list(messages))  # made beforehand, and nobody waits: the queue fills
        for message in messages:
            self.send(message)
            if number % BURST_EVERY:
                self.drain()
        self.drain()
        if number % SAVE_EVERY == 0:
            self.monitor.encode()
        self.clock.advance(WINDOW_SECONDS)


class Traffic:
    """The messages of a server with six dense layers and a sparse one; the same at every run."""

    def __init__(self) -> None:
        keys = [
            LayerKey("soak", "0", f"layer.{number}", FeatureKind.CHANNEL, View.MAX)
            for number in range(DENSE_LAYERS)
        ]
        sae = LayerKey("soak", "0", "sae", FeatureKind.LATENT, View.RAW)
        stray = LayerKey("soak", "0", "stray", FeatureKind.CHANNEL, View.MAX)
        self.layers = [
            *(RegisterLayer(number, key, WIDTH) for number, key in enumerate(keys, 1)),
            RegisterLayer(DENSE_LAYERS + 1, sae, LATENTS, sparse=True),
            RegisterLayer(DENSE_LAYERS + 2, stray, WIDTH),
        ]
        self._rng = np.random.default_rng(0)
        self._sequence = 0
        self._index = np.repeat(np.arange(REQUESTS), ROWS // REQUESTS)

    def window(self, number: int) -> Iterator[bytes]:
        """Yield the messages of one window: good ones, two that lie, one of a layer not announced."""
        loud = number % SPIKE_EVERY < SPIKE_WINDOWS and number >= SPIKE_EVERY
        burst = 1 if number % BURST_EVERY else BURST
        for _ in range(BATCHES * burst):
            dense = tuple(self._dense(layer, loud=loud) for layer in self.layers[:DENSE_LAYERS])
            yield self._batch(dense, (self._sparse(loud=loud),))
        good = self._dense(self.layers[0], loud=False)
        short = OutgoingTensor(good.layer_id, "f32", good.shape, good.payload[:-4])
        yield self._batch((short,), ())
        yield self._batch((good,), ())[:-40]
        yield self._batch((self._dense(self.layers[-1], loud=False),), ())

    def _batch(
        self, tensors: tuple[OutgoingTensor, ...], sparse: tuple[OutgoingSparse, ...]
    ) -> bytes:
        self._sequence += 1
        requests = tuple(Request(f"{self._sequence}-{number}") for number in range(REQUESTS))
        batch = OutgoingBatch(self._sequence, tensors, requests, self._index, sparse=sparse)
        return encode_request(batch)

    def _dense(self, layer: RegisterLayer, *, loud: bool) -> OutgoingTensor:
        values = self._rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
        values[self._rng.random(values.shape) < NAN_SHARE] = np.nan
        values[::4, 0] += LOUD * loud
        return OutgoingTensor(layer.layer_id, "f32", (ROWS, WIDTH), values.tobytes())

    def _sparse(self, *, loud: bool) -> OutgoingSparse:
        listed = np.sort(self._rng.integers(0, LATENTS // ACTIVE, (ROWS, ACTIVE)), axis=1)
        listed += np.arange(ACTIVE) * (LATENTS // ACTIVE)  # one of each stretch: distinct, sorted
        listed[:, 0] *= not loud
        values = self._rng.lognormal(size=ROWS * ACTIVE).astype("<f2")
        splits = np.arange(ROWS + 1) * ACTIVE
        layer = self.layers[DENSE_LAYERS]
        return OutgoingSparse(layer.layer_id, "f16", splits, listed.ravel(), values.tobytes())


def run(windows: int, every: int = 10) -> Report:
    """Replay so many windows, looking at memory after each ``every`` of them."""
    replay = Replay.start()
    process, resident = psutil.Process(), []
    try:
        for number in range(windows):
            replay.window(number)
            if number % every == 0:
                resident.append((number, process.memory_info().rss))
    finally:
        replay.pipeline.stop(PATIENCE_SECONDS)
    return Report(replay.ledger.counts(), replay.events, np.array(resident, float), windows)


def describe(report: Report, tolerance: float) -> Sequence[str]:
    """Return the lines that say what a replay came to."""
    counts, resident = report.counts, report.resident
    steady = resident[resident[:, 0] >= WARMUP * report.windows]
    hours = report.windows * WINDOW_SECONDS / 3600
    refused, dropped = dict(counts.refused), dict(counts.dropped)
    low, high = steady[:, 1].min() / MIB, steady[:, 1].max() / MIB
    return [
        f"replayed      {report.windows} windows, {hours:.3g} h of traffic",
        f"received      {counts.received} = {counts.accepted} accepted + refused {refused}",
        f"accepted      {counts.accepted} = {counts.processed} processed + dropped {dropped}",
        f"in flight     {counts.in_flight}",
        f"events        {dict(sorted(report.events.items()))}",
        f"conservation  {'exact' if report.conserved else 'BROKEN'}",
        f"warm-up       {steady[0, 1] / MIB:.1f} MiB resident at window {steady[0, 0]:.0f}",
        f"after that    {low:.1f} to {high:.1f} MiB resident",
        f"growth        {100 * report.growth:+.2f} % (tolerance {100 * tolerance:g} %)",
    ]


def main(arguments: Sequence[str]) -> int:
    """Replay, print what came of it, and return 0 if memory stayed flat and nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows of 10 s to replay")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of growth")
    given = parser.parse_args(arguments)
    report = run(given.windows)
    print("\n".join(describe(report, given.tolerance)))
    return int(not report.conserved or report.growth > given.tolerance)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
