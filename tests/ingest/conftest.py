"""A raw client that speaks the wire protocol to a real daemon, good manners not included."""

import queue
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.features import FeatureKind, LayerKey, Request, View
from sidecar.testing import RunningDaemon, running_daemon
from sidecar.wire import (
    METHOD,
    SERVICE,
    Acknowledgement,
    FrameKind,
    FrameReader,
    Hello,
    OutgoingBatch,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    Sendable,
    decode_response,
    decode_ring_frame,
    encode_request,
    encode_request_frame,
)
from sidecar.wire.frames import encode_frame

WIDTH = 4
REVISION = "ab" * 32
LAYER = LayerKey("tiny", REVISION, "conv", FeatureKind.CHANNEL, View.MAX)


class RawClient:
    """One open ingest stream; what the daemon answers is read on request. Its transport is a subclass's."""

    sequence = 0

    def send(self, payload: bytes) -> None:
        """Send raw bytes as one message."""
        raise NotImplementedError

    def say(self, value: Sendable) -> None:
        """Send a value as this transport encodes it."""
        raise NotImplementedError

    def read(self) -> Any:
        """Return the daemon's next answer."""
        raise NotImplementedError

    def close(self) -> None:
        """End the stream."""
        raise NotImplementedError

    def hello(self, model: str = "tiny", client_id: str = "client-1") -> Any:
        """Say hello, register the layer, and return the daemon's first answer."""
        self.say(Hello(model, REVISION, client_id=client_id))
        first = self.read()
        layer = LayerKey(model, REVISION, "conv", FeatureKind.CHANNEL, View.MAX)
        self.say(RegisterLayer(1, layer, WIDTH))
        return first

    def batch(self, values: np.ndarray) -> int:
        """Send rows of the registered layer, one request a row; return the sequence number."""
        self.sequence += 1
        values = np.ascontiguousarray(values, np.float32)
        tensor = OutgoingTensor(1, "f32", values.shape, values.tobytes())
        requests = tuple(Request(f"r{self.sequence}-{i}") for i in range(len(values)))
        self.say(OutgoingBatch(self.sequence, (tensor,), requests))
        return self.sequence

    def read_until_settled(self, sequence: int) -> list[Any]:
        """Read answers until ``sequence`` is acknowledged; return all of them."""
        found = []
        while True:
            answer = self.read()
            found.append(answer)
            if isinstance(answer, Acknowledgement) and answer.sequence >= sequence:
                return found

    def refusal(self) -> Refusal:
        """Read answers until a refusal comes."""
        while True:
            answer = self.read()
            if isinstance(answer, Refusal):
                return answer


class GrpcClient(RawClient):
    """Over gRPC."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._out: queue.Queue[bytes | None] = queue.Queue()
        call = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self._answers = call(iter(self._out.get, None), timeout=60)

    def send(self, payload: bytes) -> None:
        """Send raw bytes as one message."""
        self._out.put(payload)

    def say(self, value: Sendable) -> None:
        """Send a value with everything in its message."""
        self.send(encode_request(value))

    def read(self) -> Any:
        """Return the daemon's next answer."""
        return decode_response(next(self._answers))

    def close(self) -> None:
        """End the stream."""
        self._out.put(None)
        self._channel.close()


class LaneClient(RawClient):
    """As frames on a unix socket."""

    def __init__(self, address: str) -> None:
        self._told: list[int] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(address.removeprefix("unix://"))
        self._frames = FrameReader(
            self.socket.recv_into, kind=FrameKind.RESPONSE, limit_bytes=65_536
        )

    def send(self, payload: bytes) -> None:
        """Send raw bytes as the message of a frame."""
        self.write(b"".join(encode_frame(FrameKind.REQUEST, payload)))

    def say(self, value: Sendable) -> None:
        """Send a value with its payload behind the message."""
        self.write(b"".join(encode_request_frame(value)))

    def write(self, data: bytes) -> None:
        """Send raw bytes, whatever they are."""
        self.socket.sendall(data)

    def read(self) -> Any:
        """Return the daemon's next answer; raise StopIteration when it has hung up."""
        while (message := self._message()) is None:
            pass
        return decode_response(message)

    def fetched(self) -> int:
        """Return how many payloads the daemon says it has taken out of the ring, next it says so."""
        while not self._told:
            self._message()
        return self._told.pop(0)

    def _message(self) -> bytes | None:
        """Read a frame; return its message, or None if it was about the ring."""
        frame = self._frames.read()
        if frame is None:
            raise StopIteration
        if frame.kind is not FrameKind.RING:
            return frame.message
        self._told.append(decode_ring_frame(frame.message))
        return None

    def close(self) -> None:
        """End the stream."""
        self.socket.close()


def open_client(running: RunningDaemon, transport: str) -> RawClient:
    """Open a stream to a daemon."""
    return LaneClient(running.lane) if transport == "lane" else GrpcClient(running.grpc)


@pytest.fixture(params=["lane", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the stream; every test of the daemon's side runs over both."""
    return str(request.param)


@pytest.fixture
def running(tmp_path: Any) -> Iterator[RunningDaemon]:
    """A daemon that knows the model ``tiny``."""
    settings = {
        "models": [{"name": "tiny"}],
        "statistics": {"window_seconds": 0.5, "warmup_rows": 8},
        "ingest": {"message_limit_bytes": 64 * 1024},
    }
    with running_daemon(tmp_path, settings) as found:
        yield found


@pytest.fixture
def opened(running: RunningDaemon, transport: str) -> Iterator[Callable[[], RawClient]]:
    """Return a function that opens one more stream to that daemon."""
    clients = []

    def open_() -> RawClient:
        clients.append(open_client(running, transport))
        return clients[-1]

    yield open_
    for client in clients:
        client.close()


@pytest.fixture
def client(opened: Callable[[], RawClient]) -> RawClient:
    """An open stream to that daemon."""
    return opened()
