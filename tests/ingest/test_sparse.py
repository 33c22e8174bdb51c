"""A sparse layer of a million latents through a real daemon: gRPC in, command line and console out."""

import urllib.request
from collections.abc import Iterator
from urllib.parse import quote

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.compilation import load_compiled
from sidecar.features import FeatureKind, LayerKey, Request, View
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import (
    METHOD,
    SERVICE,
    Hello,
    OutgoingBatch,
    OutgoingSparse,
    Refusal,
    RegisterLayer,
    decode_response,
    encode_request,
)

pytestmark = pytest.mark.service

REVISION = "cd" * 32
SAE = LayerKey("tiny", REVISION, "sae", FeatureKind.LATENT, View.RAW)
WIDTH = 1 << 20
LOUD = 777_777
KEY = f"tiny@{REVISION}/sae/latent/{LOUD}"


def batch(sequence: int, latents: list[int]) -> bytes:
    """Return a batch of four rows that each list these latents, of value 1, 2 and so on."""
    splits = np.arange(5) * len(latents)
    values = np.tile(np.arange(1, len(latents) + 1, dtype=np.float32), 4)
    sparse = OutgoingSparse(1, "f32", splits, np.tile(latents, 4), values.tobytes())
    requests = tuple(Request(f"r{sequence}-{row}") for row in range(4))
    return encode_request(OutgoingBatch(sequence, (), requests, sparse=(sparse,)))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that was sent two good batches and one with latents out of order."""
    settings = {"models": [{"name": "tiny"}], "flags": [{"feature": f"tiny/sae/latent/{LOUD}"}]}
    folder = tmp_path_factory.mktemp("sparse")
    with running_daemon(folder, settings, load_kernels=load_compiled) as found:
        messages = [
            encode_request(Hello("tiny", REVISION)),
            encode_request(RegisterLayer(1, SAE, WIDTH, sparse=True)),
            batch(1, [3, LOUD]),
            batch(2, [LOUD, 3]),
            batch(3, [LOUD]),
        ]
        with grpc.insecure_channel(found.grpc) as channel:
            answers = channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter(messages), timeout=60)
            refused = [a for a in map(decode_response, answers) if isinstance(a, Refusal)]
        assert [("SC206", 2)] == [(one.code, one.sequence) for one in refused]
        wait_until(lambda: found.daemon.ledger.counts().processed == 2, 30, "the batches")
        yield found


def test_good_batches_are_counted_and_bad_ones_refused(running: RunningDaemon) -> None:
    """The identity holds, and the refusal has a reason."""
    counts = running.daemon.ledger.counts()

    assert (3, 2, {"malformed": 1}) == (counts.received, counts.accepted, dict(counts.refused))


def test_the_command_line_shows_a_latent(running: RunningDaemon) -> None:
    """A latent is described, listed and drawn like any feature, wide octaves as wide."""
    shown, listed = (
        CliRunner().invoke(main, [*arguments, "--address", running.grpc])
        for arguments in (["feature", "get", KEY, "--window", "baseline"], ["feature", "list"])
    )

    assert (0, 0) == (shown.exit_code, listed.exit_code)
    assert str(LOUD) in listed.output
    bars = [line for line in shown.output.splitlines() if " .. " in line]
    assert 20 == len(bars)
    assert all("#" in bar for bar in bars)


def test_the_console_shows_a_latent(running: RunningDaemon) -> None:
    """Its page draws the distribution, zeros that were never sent included."""
    url = f"{running.console_url}/f/{quote(KEY, safe='/@')}"

    with urllib.request.urlopen(url, timeout=30) as answer:
        page = answer.read().decode()

    assert "<svg" in page
    assert str(LOUD) in page


def test_sparse_layers_are_counted_with_compiled_loops(running: RunningDaemon) -> None:
    """Once they are there, beside the traffic."""
    wait_until(lambda: running.daemon.compilation.kernels == "numba", 60, "the compiled kernels")
