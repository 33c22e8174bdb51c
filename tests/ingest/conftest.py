"""A raw client that speaks the wire protocol to a real daemon, good manners not included."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    Hello,
    OutgoingBatch,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    decode_response,
    encode_request,
)

WIDTH = 4
REVISION = "ab" * 32
LAYER = LayerKey("tiny", REVISION, "conv", FeatureKind.CHANNEL, View.MAX)


@dataclass
class RawClient:
    """One open ingest stream; what the daemon answers is read on request."""

    channel: grpc.Channel
    out: "queue.Queue[bytes | None]" = field(default_factory=queue.Queue)
    answers: Any = None
    sequence: int = 0

    def open(self) -> "RawClient":
        """Start the stream."""
        call = self.channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self.answers = call(iter(self.out.get, None), timeout=60)
        return self

    def send(self, payload: bytes) -> None:
        """Send raw bytes."""
        self.out.put(payload)

    def hello(self, model: str = "tiny", client_id: str = "client-1") -> Any:
        """Say hello, register the layer, and return the daemon's first answer."""
        self.send(encode_request(Hello(model, REVISION, client_id=client_id)))
        first = self.read()
        layer = LayerKey(model, REVISION, "conv", FeatureKind.CHANNEL, View.MAX)
        self.send(encode_request(RegisterLayer(1, layer, WIDTH)))
        return first

    def batch(self, values: np.ndarray) -> int:
        """Send rows of the registered layer, one request a row; return the sequence number."""
        self.sequence += 1
        values = np.ascontiguousarray(values, np.float32)
        tensor = OutgoingTensor(1, "f32", values.shape, values.tobytes())
        requests = tuple(Request(f"r{self.sequence}-{i}") for i in range(len(values)))
        self.send(encode_request(OutgoingBatch(self.sequence, (tensor,), requests)))
        return self.sequence

    def read(self) -> Any:
        """Return the daemon's next answer."""
        return decode_response(next(self.answers))

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

    def close(self) -> None:
        """End the stream."""
        self.out.put(None)


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
def client(running: RunningDaemon) -> Iterator[RawClient]:
    """An open stream to that daemon."""
    with grpc.insecure_channel(running.grpc) as channel:
        opened = RawClient(channel).open()
        yield opened
        opened.close()
