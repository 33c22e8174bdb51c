"""The hooks' end of the lane against daemons that behave badly, and what one call may do in pieces."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.hooks import connect
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.lane import send
from sidecar.hooks.session import Timing
from sidecar.hooks.sink import QueuedSink
from sidecar.wire import Hello, Steering, Welcome, encode_response_frame

pytestmark = pytest.mark.service

Rows = Callable[..., TappedRows]
Make = Callable[..., ForwardBatch]
Wait = Callable[[Callable[[], Any]], None]
WELCOME = encode_response_frame(Welcome(1 << 30, 4 << 20, 1.0))


class Listener:
    """A socket that does with each connection what the test says."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], object]) -> None:
        self.connections: list[socket.socket] = []
        self._serve = serve
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        for one in (self._socket, *self.connections):
            one.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connections.append(self._socket.accept()[0])
                with contextlib.suppress(OSError):
                    self._serve(self.connections[-1])


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., Listener]]:
    """Return a function that starts a listener at the sink's address."""
    listeners = []

    def start(serve: Callable[[socket.socket], object]) -> Listener:
        listeners.append(Listener(tmp_path / "in.sock", serve))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


class Soon(random.Random):
    """Jitter that draws no waits at all."""

    def uniform(self, a: float, b: float) -> float:
        """Return the shortest."""
        return a + 0.0 * b


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[QueuedSink]:
    """A sink with little patience."""
    timing = Timing(welcome=5.0, report=0.05, stall=0.2)
    found = connect(f"unix://{tmp_path}/in.sock", timing=timing, rng=Soon())
    found.announce(Hello("tiny", "rev"), 1.0)
    yield found
    found.close(1.0)


def test_a_daemon_that_takes_nothing_off_the_socket_is_left(
    listen: Callable[..., Listener],
    sink: QueuedSink,
    tapped: Rows,
    forward_batch: Make,
    wait_for: Wait,
    conserved: Callable[[Any], bool],
) -> None:
    """Sending has a deadline, so a stopped daemon cannot hold the sender; the batch counts as lost."""
    listener = listen(lambda connection: connection.sendall(WELCOME))
    sink.offer(forward_batch(tapped(items=512, width=1024)))  # 2 MiB, more than a socket holds

    wait_for(lambda: len(listener.connections) >= 2)
    wait_for(lambda: sink.pending == 0)
    assert {"disconnected": 1} == sink.report().dropped
    assert conserved(sink)


def test_the_sender_holds_a_batch_until_it_was_sent(
    listen: Callable[..., Listener],
    sink: QueuedSink,
    tapped: Rows,
    forward_batch: Make,
    wait_for: Wait,
) -> None:
    """Its memory goes back to the pool after the last byte, not when the message was encoded."""
    released = threading.Event()
    go_on = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(WELCOME)
        go_on.wait(20)
        while connection.recv(1 << 20):
            pass

    listen(serve)
    rows = tapped(items=512, width=1024)
    sink.offer(forward_batch(rows, release=released.set))
    wait_for(lambda: sink.connected)
    held = not released.is_set()
    go_on.set()

    assert held
    assert released.wait(20)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0" * 100,
        WELCOME[:5] + b"\xff" + WELCOME[6:],
        WELCOME[:-1],
        b"",
    ],
)
def test_a_listener_that_is_no_daemon_opens_the_breaker(
    listen: Callable[..., Listener],
    sink: QueuedSink,
    forward_batch: Make,
    wait_for: Wait,
    answer: bytes,
) -> None:
    """Whatever answers at the address, the server sees nothing of it and copying stops."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    listen(serve)
    sink.offer(forward_batch())

    wait_for(lambda: not sink.accepting)
    assert 0 == sink.report().batches_sent


def test_answers_may_come_in_pieces_and_together(
    listen: Callable[..., Listener], sink: QueuedSink, forward_batch: Make, wait_for: Wait
) -> None:
    """Frames have no relation to what one call receives."""
    steering = b"".join(encode_response_frame(Steering(1.0 / n, "test")) for n in range(1, 9))

    def serve(connection: socket.socket) -> None:
        for byte in WELCOME:
            connection.send(bytes([byte]))
        connection.sendall(steering[:-3])
        connection.sendall(steering[-3:])
        while connection.recv(1 << 20):
            pass

    listen(serve)
    sink.offer(forward_batch())

    wait_for(lambda: sink.sampling_rate == 1.0 / 8)


def test_a_daemon_that_hangs_up_on_an_idle_stream_is_noticed(
    listen: Callable[..., Listener], sink: QueuedSink, forward_batch: Make, wait_for: Wait
) -> None:
    """Without anything to send the sender still hears that the stream is over."""
    listener = listen(lambda connection: connection.sendall(WELCOME))
    sink.offer(forward_batch())
    wait_for(lambda: sink.connected)

    listener.connections[0].shutdown(socket.SHUT_RDWR)

    wait_for(lambda: len(listener.connections) >= 2)


def test_every_byte_of_many_pieces_is_sent_once() -> None:
    """More pieces than one call takes, more bytes than a socket holds, empty ones in between."""
    rng = random.Random(0)  # noqa: S311 - test data
    pieces = [rng.randbytes(rng.choice((0, 1, 7, 1000))) for _ in range(3000)]
    pieces[1500] = rng.randbytes(3 << 20)
    ours, theirs = socket.socketpair()
    received = bytearray()

    def read() -> None:
        while data := theirs.recv(5000):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with theirs:
        with ours:
            send(ours, list(pieces))
        reader.join(20)

    assert b"".join(pieces) == received
