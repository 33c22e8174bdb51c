"""The image server over real HTTP, with the real network."""

import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import uvicorn
from PIL import Image

from demo.batching import Batcher
from demo.classifier import Classifier, Picture, Verdict
from demo.decoding import NotAnImage, decode
from demo.lite0 import package_folder
from demo.server import BODY_LIMIT_BYTES, application, plan
from sidecar.features import FeatureKind, Slice
from sidecar.testing import wait_until
from sidecar.wire import (
    METHOD,
    SERVICE,
    Acknowledgement,
    Batch,
    Hello,
    StreamDecoder,
    Welcome,
    encode_response,
)

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0
PHOTOS = package_folder("skimage") / "data"

Answer = tuple[int, dict[str, Any], http.client.HTTPMessage]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Load the network once for all tests of this file."""
    torch.set_num_threads(1)
    return Classifier()


@contextmanager
def serving(batcher: Batcher[Picture, Verdict]) -> Iterator[int]:
    """Run the application in a thread and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(application(batcher), log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        batcher.start()
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            batcher.close()
            thread.join(DEADLINE)


@pytest.fixture
def port(classifier: Classifier) -> Iterator[int]:
    """Serve the real network."""
    with serving(Batcher(classifier.answer)) as port:
        yield port


def post(port: int, body: bytes, path: str = "/classify") -> Answer:
    """Send a body and return status, JSON and headers."""
    return _ask(port, "POST", path, body)


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        kind = response.headers.get_content_type()
        document = json.loads(content) if kind == "application/json" else {}
        return response.status, document, response.headers
    finally:
        connection.close()


def photo(name: str) -> bytes:
    """Return the file of one of scikit-image's photographs."""
    return (PHOTOS / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "label"),
    [("coffee.png", "espresso"), ("rocket.jpg", "missile"), ("chelsea.png", "Egyptian Mau")],
)
def test_a_photograph_is_recognised(port: int, name: str, label: str) -> None:
    """The likeliest class of a well-known photograph, PNG or JPEG, is the right one."""
    status, answer, headers = post(port, photo(name))
    chances = [one["probability"] for one in answer["top"]]

    assert 200 == status
    assert label == answer["top"][0]["name"]
    assert 5 == len(chances)
    assert sorted(chances, reverse=True) == chances
    assert 0 < sum(chances) <= 1.00001
    assert headers["X-Request-Id"] == answer["request_id"]


def test_concurrent_requests_share_batches_and_have_ids_of_their_own(port: int) -> None:
    """Under concurrency forward passes are shared, every id is unique and every answer its own."""
    names = ["coffee.png", "rocket.jpg", "chelsea.png", "motorcycle_left.png"] * 8
    alone = {name: post(port, photo(name))[1]["top"][0]["name"] for name in set(names)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: post(port, photo(name)), names))

    assert {200} == {status for status, _, _ in answers}
    assert [alone[name] for name in names] == [a["top"][0]["name"] for _, a, _ in answers]
    assert len(names) == len({answer["request_id"] for _, answer, _ in answers})
    assert 1 < max(answer["batch_size"] for _, answer, _ in answers) <= 8


def _png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that nobody should unpack."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no picture at all",
        photo("rocket.jpg")[:5000],
        photo("coffee.png")[:5000],
        _gif(),
        _png_of(60_000, 60_000),
        _png_of(9_000, 9_000),
        _png_of(0, 0),
    ],
    ids=["empty", "text", "cut-jpeg", "cut-png", "gif", "bomb", "large", "no-pixels"],
)
def test_a_bad_picture_is_refused(port: int, body: bytes) -> None:
    """What is no readable JPEG or PNG gets 400 with the reason, and the server goes on."""
    status, answer, _ = post(port, body)

    assert 400 == status
    assert "JPEG or PNG" in answer["error"] or "pixels" in answer["error"]
    assert 200 == post(port, photo("rocket.jpg"))[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_odd_pictures_become_the_network_input(size: tuple[int, int], mode: str) -> None:
    """Any mode and any aspect gives one finite input of the right shape."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    pixels = decode(buffer.getvalue())

    assert (3, 224, 224) == pixels.shape
    assert bool((abs(pixels) <= 1.01).all())


def test_decoding_refuses_random_bytes_behind_a_good_header() -> None:
    """A file that begins well and ends in noise raises the one error the server expects."""
    noise = bytes(range(256)) * 40
    for start in (photo("rocket.jpg")[:600], photo("coffee.png")[:600]):
        with pytest.raises(NotAnImage):
            decode(start + noise)


def test_a_long_body_is_refused(port: int) -> None:
    """A body above the limit gets 413 without being kept."""
    status, answer, _ = post(port, b"\0" * (BODY_LIMIT_BYTES + 1))

    assert 413 == status
    assert str(BODY_LIMIT_BYTES) in answer["error"]


def test_other_methods_and_paths_are_refused(port: int) -> None:
    """Only what is documented is served."""
    assert 405 == _ask(port, "GET", "/classify")[0]
    assert 404 == post(port, b"", "/other")[0]
    assert (200, "ok") == (
        _ask(port, "GET", "/healthz")[0],
        _ask(port, "GET", "/healthz")[1]["status"],
    )


class Gated:
    """Stands where the network stands, and waits to be let through."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, pictures: Sequence[Picture]) -> list[Verdict]:
        """Answer nothing of interest, once the gate is open."""
        self.entered.release()
        assert self.open.wait(DEADLINE)
        return [Verdict((), len(pictures)) for _ in pictures]


def test_overload_is_told_at_once() -> None:
    """With the model busy and the queue full, the next request gets 503; the others are answered."""
    gate = Gated()
    with serving(Batcher(gate, max_batch=1, queue_limit=2)) as port, ThreadPoolExecutor(8) as pool:
        body = photo("rocket.jpg")
        first = pool.submit(post, port, body)
        assert gate.entered.acquire(timeout=DEADLINE)
        rest = [pool.submit(post, port, body) for _ in range(7)]
        # Seven more: two find room in the queue, five cannot wait.
        wait_until(lambda: 5 == sum(future.done() for future in rest), DEADLINE)
        gate.open.set()
        answers = [future.result(DEADLINE) for future in [first, *rest]]

    refused = [headers for status, _, headers in answers if status == 503]
    assert [200] * 3 + [503] * 5 == sorted(status for status, _, _ in answers)
    assert {"1"} == {headers["Retry-After"] for headers in refused}


def test_a_failing_forward_pass_is_one_error_answer() -> None:
    """When the model raises, its requests get 500, and the server goes on."""

    def fail(_: Sequence[Picture]) -> list[Verdict]:
        raise RuntimeError("out of memory")

    with serving(Batcher(fail)) as port:
        assert 500 == post(port, photo("rocket.jpg"))[0]
        assert 200 == _ask(port, "GET", "/healthz")[0]


def test_the_plan_taps_sixteen_blocks_and_the_logits(classifier: Classifier) -> None:
    """The taps match these modules of the network and nothing inside them."""
    paths = [path for path, _ in classifier.network.named_modules()]
    taps = plan().taps

    assert [f"_blocks.{n}" for n in range(16)] == [path for path in paths if taps[0].matches(path)]
    assert ["_fc"] == [path for path in paths if taps[1].matches(path)]
    assert [FeatureKind.CHANNEL, FeatureKind.LOGIT] == [tap.kind for tap in taps]


class Recorder:
    """A gRPC server that reads the hooks' stream with the daemon's own decoder, and keeps it."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.batches: list[Batch] = []
        self.widths: dict[str, int] = {}

    def stream(self, messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        """Take everything the hooks send."""
        decoder = StreamDecoder()
        for message in messages:
            value = decoder.decode(message)
            if isinstance(value, Hello):
                self.hello = value
                yield encode_response(Welcome(8 << 20, 4 << 20))
            elif isinstance(value, Batch):
                self.batches.append(value)
                self.widths.update((s.layer.layer, s.values.shape[1]) for s in value.samples)
                yield encode_response(Acknowledgement(value.sequence, 8 << 20))

    def request_ids(self) -> set[str]:
        """Return the ids of all sampled requests so far."""
        return {request.id for batch in self.batches for request in batch.requests}


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[tuple[Recorder, str]]:
    """Run a recorder on a unix socket; yield it and its address."""
    recorder, address = Recorder(), f"unix://{tmp_path / 'grpc.sock'}"
    handler = grpc.stream_stream_rpc_method_handler(recorder.stream)
    server = grpc.server(ThreadPoolExecutor(2))
    method = METHOD.rpartition("/")[2]
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {method: handler}),)
    )
    server.add_insecure_port(address)
    server.start()
    try:
        yield recorder, f"grpc+{address}"
    finally:
        server.stop(0).wait(DEADLINE)


@contextmanager
def process(log: Path, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run ``python -m demo.server`` and yield it and its port once it serves."""
    command = [sys.executable, "-m", "demo.server", "--port", "0", *options]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        try:
            found = wait_until(
                lambda: re.search(r"serving .*:(\d+)/classify", log.read_text()), DEADLINE
            )
            port = int(found[1])
            wait_until(lambda: _answers(port), DEADLINE)
            yield server, port
        finally:
            server.kill()


def _answers(port: int) -> bool:
    try:
        return _ask(port, "GET", "/healthz")[0] == 200
    except OSError:
        return False


def test_the_hooks_see_every_request_by_its_id(
    recorder: tuple[Recorder, str], tmp_path: Path
) -> None:
    """All 17 layers of every answered request reach the daemon's side, under the request's id."""
    seen, url = recorder
    with process(tmp_path / "log", "--sidecar", url) as (_, port), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(port, photo("rocket.jpg")), range(24)))
        ids = {answer["request_id"] for _, answer, _ in answers}
        wait_until(lambda: ids <= seen.request_ids(), DEADLINE)

    requests = [request for batch in seen.batches for request in batch.requests]
    assert seen.hello is not None
    assert "lite0" == seen.hello.model
    assert ids == {request.id for request in requests}
    assert 24 == len(requests)
    assert {Slice.of({"route": "/classify"})} == {request.traffic for request in requests}
    assert {f"_blocks.{n}" for n in range(16)} | {"_fc"} == set(seen.widths)
    assert (320, 1000) == (seen.widths["_blocks.15"], seen.widths["_fc"])
    assert all(
        len(batch.requests) == sample.values.shape[0]
        for batch in seen.batches
        for sample in batch.samples
    )


def test_without_a_daemon_the_server_serves(tmp_path: Path) -> None:
    """With nobody at the sidecar's address every request is answered, and SIGTERM ends with 0."""
    nowhere = f"unix://{tmp_path / 'nobody.sock'}"
    with process(tmp_path / "log", "--sidecar", nowhere) as (server, port):
        answers = [post(port, photo("coffee.png")) for _ in range(10)]
        server.send_signal(signal.SIGTERM)
        status = server.wait(DEADLINE)

    assert {(200, "espresso")} == {(code, a["top"][0]["name"]) for code, a, _ in answers}
    assert 0 == status
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_port_in_use_is_told_at_once() -> None:
    """The server says which port is taken and what to do, instead of a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "demo.server", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    assert 1 == done.returncode
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
