"""The wire on every protobuf that a model server may bring along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parent.parent.parent

# The floor, vLLM's floor, the last that tritonclient allows, and the one that is installed here.
VERSIONS = ("5.26.1", "5.29.6", "6.33.6", "7.36.2")

ROUND_TRIP = """
import sys
import google.protobuf
import numpy as np
assert google.protobuf.__version__ == sys.argv[1], google.protobuf.__version__
from sidecar.features import LayerKey, Request, Slice
from sidecar.hooks import connect
from sidecar.wire import (
    Acknowledgement, Hello, HookReport, OutgoingBatch, OutgoingTensor, Refusal, RegisterLayer,
    Steering, StreamDecoder, Welcome, decode_response, encode_request, encode_response,
)
layer = LayerKey("m", "r", "conv")
values = np.arange(8, dtype=np.float32).reshape(2, 4)
requests = (Request("a", Slice.of({"route": "/v1"}), 2.0), Request("b"))
batch = OutgoingBatch(
    1, (OutgoingTensor(1, "f32", (2, 4), values.tobytes()),), requests, None,
    HookReport(forwards=3, dropped={"queue_full": 2}),
)
decoder = StreamDecoder()
hello = Hello("m", "r", client_id="c")
assert decoder.decode(encode_request(hello)) == hello
assert decoder.decode(encode_request(RegisterLayer(1, layer, 4))).layer == layer
found = decoder.decode(encode_request(batch))
assert found.requests == requests and found.report.dropped == {"queue_full": 2}
assert np.array_equal(found.samples[0].values, values)
for answer in (Welcome(1, 2, 0.5), Acknowledgement(3, 4), Steering(0.25, "x"), Refusal(1, "SC202", "y")):
    assert decode_response(encode_response(answer)) == answer
print("ok")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_survive_a_round_trip(version: str, tmp_path: Path) -> None:
    """The committed code runs on it without a warning, and says the same."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
    installed = subprocess.run(
        [*install, "--disable-pip-version-check", "--target", tmp_path, f"protobuf=={version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"protobuf {version} cannot be installed here: {installed.stderr[-200:]}")

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ROUND_TRIP, version],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "ok\n", "") == (done.returncode, done.stdout, done.stderr)
