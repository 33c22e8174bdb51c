import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidecar.errors import InvalidInput
from sidecar.hooks import connect
from sidecar.hooks.batch import ForwardBatch
from sidecar.hooks.session import Timing
from sidecar.hooks.sink import QueuedSink
from sidecar.hooks.transport import Address
from sidecar.wire import Hello

pytestmark = pytest.mark.service

HELLO = Hello("tiny", "rev")
Make = Callable[..., ForwardBatch]
Serve = Callable[..., Any]
Wait = Callable[[Callable[[], Any]], None]
Conserved = Callable[[Any], bool]


class Soon(random.Random):
    """Jitter that draws short waits, so that tests do not wait for reconnects."""

    def uniform(self, a: float, b: float) -> float:
        """Return a fiftieth of the longest wait."""
        return a + (b - a) / 50


@pytest.fixture
def sink(url: str) -> Iterator[QueuedSink]:
    """A sink on the test's socket, patient for less time than in production."""
    found = connect(
        url,
        queue_bytes=10_000,
        timing=Timing(welcome=2.0, report=0.05, stall=2.0, stale=30.0),
        rng=Soon(),
    )
    found.announce(HELLO, 1.0)
    yield found
    found.close(1.0)


def test_batches_are_delivered_and_counted(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """Every batch offered to a healthy daemon arrives once, with who sent it."""
    server = serve()

    for _ in range(20):
        assert sink.offer(forward_batch())
    wait_for(lambda: len(server.batches) == 20)

    (stream,) = server.streams
    assert (stream.hello.model, stream.hello.revision) == ("tiny", "rev")
    assert stream.hello.client_id
    assert list(range(1, 21)) == [batch.sequence for batch in server.batches]
    assert sink.report().batches_sent == 20
    assert conserved(sink)


def test_nothing_is_dialled_before_the_first_sample(serve: Serve, sink: QueuedSink) -> None:
    """A server that samples nothing gets no thread and opens no connection."""
    server = serve()

    assert sink._thread is None  # noqa: SLF001 - the promise is about this very thread
    assert server.streams == []


def test_the_hooks_come_back_after_the_daemon_was_killed(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """A daemon that dies and restarts gets a hello, the layers, and the next batches."""
    first = serve()
    sink.offer(forward_batch())
    wait_for(lambda: first.batches)
    first.kill()
    wait_for(lambda: not sink.connected)
    second = serve()

    def delivered() -> bool:
        sink.offer(forward_batch())
        return bool(second.batches)

    wait_for(delivered)

    assert ["layer"] == [r.layer.layer for r in second.streams[-1].registered]
    assert second.streams[-1].hello == first.streams[0].hello
    assert conserved(sink)


def test_the_daemon_lowers_the_rate(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait
) -> None:
    """The welcome's rate and every steering reach the sampler, and are reported back."""
    server = serve(sampling_rate=0.5)
    sink.offer(forward_batch())
    wait_for(lambda: sink.sampling_rate == 0.5)

    server.steer(0.0)

    wait_for(lambda: sink.sampling_rate == 0.0)
    wait_for(lambda: any(r.sampling_rate == 0.0 for s in server.streams for r in s.reports))


def test_the_plans_rate_is_the_most_there_is(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait
) -> None:
    """The daemon can ask for less than the plan allows, never for more."""
    server = serve(sampling_rate=1.0)
    sink.announce(HELLO, 0.1)
    sink.offer(forward_batch())
    wait_for(lambda: server.batches)

    assert sink.sampling_rate == 0.1


def test_a_daemon_that_acknowledges_nothing_costs_batches_not_time(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """When the credit is used up batches are dropped and counted; nobody waits."""
    server = serve(credit_bytes=100, acknowledges=False)  # four batches of 24 bytes
    for _ in range(10):
        sink.offer(forward_batch())
    wait_for(lambda: sink.pending == 0)

    wait_for(lambda: len(server.batches) == 4)
    assert sink.report().dropped == {"no_credit": 6}
    assert conserved(sink)


def test_the_breaker_opens_without_a_daemon_and_closes_with_one(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """After five failures copying stops; the probe that finds a daemon starts it again."""
    sink.offer(forward_batch())
    wait_for(lambda: not sink.accepting)
    refused = sink.offer(forward_batch())
    server = serve()
    wait_for(lambda: sink.accepting)
    sink.offer(forward_batch())
    wait_for(lambda: server.batches)
    told = [stream.reports for stream in server.streams] + [[b.report] for b in server.batches]

    assert not refused
    assert sink.report().dropped == {"breaker_open": 2}
    assert any(report.dropped == {"breaker_open": 2} for some in told for report in some if report)
    assert conserved(sink)


def test_a_daemon_that_accepts_and_says_nothing_opens_the_breaker_too(
    serve: Serve, url: str, forward_batch: Make, wait_for: Wait
) -> None:
    """A hung daemon is as good as none."""
    serve(welcomes=False)
    sink = connect(url, timing=Timing(welcome=0.05, report=0.05), rng=Soon())
    sink.announce(HELLO, 1.0)
    sink.offer(forward_batch())

    wait_for(lambda: not sink.accepting)
    sink.close(1.0)


def test_a_silent_daemon_is_left_after_the_stall_time(
    serve: Serve, url: str, forward_batch: Make, wait_for: Wait
) -> None:
    """A daemon that is stopped in mid-stream is dialled anew."""
    server = serve(acknowledges=False)
    sink = connect(url, timing=Timing(stall=0.2, report=0.05), rng=Soon())
    sink.announce(HELLO, 1.0)
    sink.offer(forward_batch())

    wait_for(lambda: len(server.streams) >= 2)
    sink.close(1.0)


def test_overload_keeps_the_books(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """Offers ten times faster than the sender can: each is sent, dropped or queued, none lost."""
    serve()
    for _ in range(5000):
        sink.offer(forward_batch(held_bytes=500))

    wait_for(lambda: sink.pending == 0)
    report = sink.report()
    assert sink.account.offered == 5000
    assert sum(report.dropped.values()) > 0
    assert set(report.dropped) <= {"queue_full", "disconnected"}
    assert report.batches_sent + sum(report.dropped.values()) == 5000
    assert conserved(sink)


def test_offering_never_waits(sink: QueuedSink, forward_batch: Make) -> None:
    """With no daemon at all the slowest of a thousand offers takes no time worth naming."""
    batch = forward_batch()
    sink.offer(batch)
    slowest = 0.0
    for _ in range(1000):
        started = time.perf_counter()
        sink.offer(batch)
        slowest = max(slowest, time.perf_counter() - started)

    assert slowest < 0.25


def test_closing_sends_what_is_queued(
    serve: Serve, sink: QueuedSink, forward_batch: Make, wait_for: Wait, conserved: Conserved
) -> None:
    """A server that exits right after its last forward pass still delivers it."""
    server = serve()
    for _ in range(50):
        sink.offer(forward_batch())

    assert sink.close(10.0)

    wait_for(lambda: len(server.batches) == 50)
    assert not sink.offer(forward_batch())
    assert sink.report().dropped == {"shutdown": 1}
    assert conserved(sink)


def test_closing_keeps_its_deadline(
    serve: Serve, url: str, forward_batch: Make, conserved: Conserved
) -> None:
    """A hung daemon holds an exiting server up for the deadline and hardly longer.

    By then no thread is inside the transport: grpc aborts a process whose interpreter ends before.
    """
    serve(welcomes=False)
    sink = connect(url, timing=Timing(welcome=60.0))
    sink.announce(HELLO, 1.0)
    sink.offer(forward_batch())

    started = time.monotonic()
    complete = sink.close(0.5)

    assert time.monotonic() - started < 1.5
    assert sink._thread is not None  # noqa: SLF001 - the promise is about this very thread
    assert not sink._thread.is_alive()  # noqa: SLF001
    assert not complete
    assert sink.report().dropped == {"shutdown": 1}
    assert conserved(sink)


def test_closing_without_a_daemon_does_not_wait(
    sink: QueuedSink, forward_batch: Make, wait_for: Wait
) -> None:
    """In the back-off between two attempts there is nothing to wait for."""
    sink.offer(forward_batch())
    wait_for(lambda: not sink.accepting)

    started = time.monotonic()
    sink.close(30.0)

    assert time.monotonic() - started < 5.0


def test_one_sink_speaks_for_one_model(sink: QueuedSink) -> None:
    """A second model needs a second sink; the same one may attach again."""
    sink.announce(HELLO, 1.0)

    with pytest.raises(InvalidInput, match="connect"):
        sink.announce(Hello("other", "rev"), 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:///run/x.sock", Address("lane", "/run/x.sock")),
        ("grpc+unix:///run/x.sock", Address("grpc", "unix:///run/x.sock")),
        ("grpc://10.0.0.1:50061", Address("grpc", "10.0.0.1:50061")),
        ("grpcs://sidecar.svc:443", Address("grpcs", "sidecar.svc:443")),
        ("sidecar.svc:50061", Address("grpc", "sidecar.svc:50061")),
        ("[::1]:50061", Address("grpc", "[::1]:50061")),
    ],
)
def test_addresses_are_understood(text: str, expected: Address) -> None:
    """The scheme says over what; a bare host and port is gRPC."""
    assert expected == Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix://relative",
        "unix:///",
        "unix:///folder/",
        "unix:///" + "x" * 107,
        "grpc+unix://relative",
        "http://x:1",
        "grpc://unix:///x",
        "host",
        "host:",
        "host:0",
        "host:70000",
        "a b:1",
    ],
)
def test_other_addresses_are_refused_at_once(text: str) -> None:
    """A typing error is told at start-up, not found by a reconnect loop."""
    with pytest.raises(InvalidInput):
        connect(text)
