"""An HTTP image-classification server, with the sidecar's hooks in its model.

``POST /classify`` takes a JPEG or PNG body and answers the five likeliest ImageNet classes.
``GET /healthz`` answers once the model is loaded. The hooks are one call; the server runs the same
without them, and when the daemon is not there.

    python -m demo.server --port 8000 --sidecar unix:///run/sidecar.sock
"""

import argparse
import asyncio
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo.batching import Batcher, Saturated
from demo.classifier import Classifier, Picture, Verdict
from demo.decoding import NotAnImage, decode
from sidecar.features import FeatureKind
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.torch import attach

BODY_LIMIT_BYTES = 10 << 20
"""Largest accepted body; photographs from a telephone stay below it."""

MODEL = "lite0"
"""The model's name in the registry, as ``sidecar.yaml`` has it."""

ROUTE = "/classify"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    options = _parser().parse_args(arguments)
    # One thread a forward pass: throughput comes from batching, and the machine is shared.
    torch.set_num_threads(1)
    listener = _listen(options.host, options.port)
    classifier = Classifier()
    batcher = Batcher(
        classifier.answer,
        max_batch=options.max_batch,
        max_wait_seconds=options.max_wait_ms / 1000,
        queue_limit=options.queue_limit,
    )
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(application(batcher), log_level="warning", access_log=False)
    with watched(classifier.network, options.sidecar):
        batcher.start()
        print(f"serving {MODEL} at http://{host}:{port}{ROUTE}", flush=True)
        # Uvicorn raises the signal that ended it once more; by then it is old news, and what is
        # queued must still be answered and sent.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)
        uvicorn.Server(config).run(sockets=[listener])
        batcher.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let a signal pass."""


def plan() -> Plan:
    """Return what the sidecar watches: the channels of all sixteen blocks, and the class logits."""
    taps = (Tap("_blocks.*"), Tap("_fc", kind=FeatureKind.LOGIT))
    # A demonstration has few pictures, and every one of them counts: no overhead budget.
    return Plan(MODEL, taps, server="demo-server/1", overhead_budget=None)


@contextmanager
def watched(network: torch.nn.Module, url: str) -> Iterator[None]:
    """Attach the hooks for as long as the block runs; an empty ``url`` attaches nothing."""
    if not url:
        yield
        return
    sink = connect(url)
    try:
        with attach(network, plan(), sink):
            yield
    finally:
        sink.close(2.0)


def application(batcher: Batcher[Picture, Verdict]) -> Starlette:
    """Return the ASGI application over a started batcher."""

    async def classify(request: Request) -> Response:
        request_id = uuid.uuid4().hex
        try:
            pixels = await run_in_threadpool(decode, await _body(request))
            waiting = batcher.submit(Picture(request_id, ROUTE, pixels))
            verdict = await asyncio.wrap_future(waiting)
        except (_Refused, NotAnImage, Saturated, ClientDisconnect) as error:
            return _refusal(request_id, error)
        return JSONResponse(verdict.document(request_id), headers={"X-Request-Id": request_id})

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": MODEL})

    return Starlette(routes=[Route(ROUTE, classify, methods=["POST"]), Route("/healthz", healthz)])


class _Refused(Exception):
    """The body is longer than ``BODY_LIMIT_BYTES``."""


# 499 is never seen by anybody: the client that would see it has gone away.
_STATUS: dict[type[Exception], int] = {
    _Refused: 413,
    NotAnImage: 400,
    Saturated: 503,
    ClientDisconnect: 499,
}


def _refusal(request_id: str, error: Exception) -> JSONResponse:
    headers = {"X-Request-Id": request_id}
    if isinstance(error, Saturated):
        headers["Retry-After"] = "1"
    document = {"request_id": request_id, "error": str(error)}
    return JSONResponse(document, _STATUS[type(error)], headers)


async def _body(request: Request) -> bytes:
    """Read the body, giving up as soon as it is too long."""
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > BODY_LIMIT_BYTES:
            raise _Refused(f"the body is too long: send at most {BODY_LIMIT_BYTES} bytes")
    return bytes(parts)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before the long start, so that a port in use is told at once."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--sidecar", default="", metavar="URL", help="daemon's gRPC address")
    parser.add_argument("--max-batch", type=int, default=8, help="most images a forward pass")
    parser.add_argument("--max-wait-ms", type=float, default=5.0, help="wait for company")
    parser.add_argument("--queue-limit", type=int, default=64, help="most waiting requests")
    return parser


if __name__ == "__main__":
    main()
