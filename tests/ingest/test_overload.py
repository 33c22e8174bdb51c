"""Overload: what does not fit is counted, metrics answer, and hooks are slowed down."""

import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from sidecar.features import FeatureKind, Request
from sidecar.hooks import Plan, Tap, connect
from sidecar.hooks.torch import attach
from sidecar.ingest.pipeline import STEER_SECONDS
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import Acknowledgement, OutgoingBatch, OutgoingTensor, Steering
from tests.ingest.conftest import WIDTH, RawClient, open_client

pytestmark = pytest.mark.service

BATCHES = 400


def scrape(running: RunningDaemon) -> dict[str, float]:
    """Return the ingest counters of a real scrape; those with reasons are added up."""
    with urllib.request.urlopen(f"{running.metrics_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def assert_conserved(found: dict[str, float]) -> None:
    """Every batch is somewhere."""
    refused = found.get("sidecar_batches_refused_total", 0.0)
    dropped = found.get("sidecar_batches_dropped_total", 0.0)
    done = found["sidecar_batches_processed_total"] + found["sidecar_batches_in_flight"]
    assert (
        found["sidecar_batches_received_total"] == found["sidecar_batches_accepted_total"] + refused
    )
    assert found["sidecar_batches_accepted_total"] == done + dropped


def test_overload_and_garbage_are_conserved_in_the_metrics(tmp_path: Path, transport: str) -> None:
    """After a flood with bad batches in it, the counters of a scrape add up to what was sent."""
    settings = {
        "models": [{"name": "tiny"}],
        "ingest": {"queue_bytes": 3 * 200 * 300},
        "statistics": {"warmup_rows": 8},
    }
    with running_daemon(tmp_path, settings) as running:
        client = open_client(running, transport)
        client.hello()
        rates: list[float] = []
        reader = threading.Thread(target=_read_all, args=(client, BATCHES, rates))
        reader.start()
        for i in range(BATCHES):
            if i % 10 == 3:
                client.sequence += 1
                lie = OutgoingTensor(1, "f32", (5, WIDTH), b"short")
                requests = tuple(Request() for _ in range(5))
                client.say(OutgoingBatch(client.sequence, (lie,), requests))
            elif i % 10 == 7:
                client.send(b"\xff garbage")
            else:
                client.batch(np.random.default_rng(i).normal(size=(200, WIDTH)))
            if i % 50 == 0:
                assert_conserved(scrape(running))
        wait_until(lambda: scrape(running)["sidecar_batches_received_total"] == BATCHES, 30)
        found = wait_until(
            lambda: (m := scrape(running))["sidecar_batches_in_flight"] == 0 and m, 30
        )
        client.close()
        reader.join(30)

    assert_conserved(found)
    assert found["sidecar_batches_refused_total"] >= BATCHES / 5
    assert found["sidecar_batches_processed_total"] > 0


def _read_all(client: RawClient, last: int, rates: list[float]) -> None:
    """Read answers to the end, as a hook does, noting sampling rates."""
    try:
        while True:
            answer = client.read()
            if isinstance(answer, Steering):
                rates.append(answer.sampling_rate)
            if isinstance(answer, Acknowledgement) and answer.sequence >= last:
                return
    except (StopIteration, OSError, grpc.RpcError):
        return


def test_a_full_queue_lowers_the_sampling_rate_and_an_empty_one_restores_it(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure reaches the hook as a smaller share, and goes away again."""
    monkeypatch.setattr("sidecar.ingest.pipeline.CALM_SECONDS", STEER_SECONDS)
    settings = {"models": [{"name": "tiny"}], "ingest": {"queue_bytes": 5 * 50 * 300}}
    with running_daemon(tmp_path, settings) as running:
        client = open_client(running, transport)
        client.hello()
        client.read_until_settled(client.batch(np.ones((1, WIDTH))))
        with running.daemon.monitor._lock:  # noqa: SLF001 - a writer that cannot go on
            for _ in range(8):
                client.batch(np.ones((50, WIDTH)))
            wait_until(lambda: running.daemon.ledger.fill_ratio > 0.5, what="a full queue")
            # The rate changes once a second at most: the queue has to be full when its turn comes.
            due = time.monotonic() + 1.5 * STEER_SECONDS
            wait_until(lambda: time.monotonic() > due)
        low = wait_until(lambda: _steering(client), 20)
        wait_until(lambda: running.daemon.ledger.sampling_rate == 1.0, 40, "recovery")
        client.close()

    assert low < 1.0


def test_requests_are_charged_though_their_payload_is_tiny(tmp_path: Path) -> None:
    """Thousands of ids with a value each take memory, and the queue is bounded in that."""
    settings = {"models": [{"name": "tiny"}], "ingest": {"queue_bytes": 1 << 20}}
    with running_daemon(tmp_path, settings) as running:
        client = open_client(running, "grpc")
        client.hello()
        client.read_until_settled(client.batch(np.ones((1, WIDTH))))
        with running.daemon.monitor._lock:  # noqa: SLF001 - a writer that cannot go on
            for _ in range(6):
                client.batch(np.ones((2000, WIDTH)))
            wait_until(lambda: running.daemon.ledger.counts().received == 7)
            counts = running.daemon.ledger.counts()
        client.close()

    assert counts.refused["queue_full"] >= 4
    assert counts.queue_bytes <= counts.queue_limit_bytes


def test_one_hook_within_its_credit_is_slowed_down_too(tmp_path: Path) -> None:
    """With default bounds it cannot fill the queue; what it drops for want of credit says enough."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 1 << 16)).eval()
    plan = Plan("tiny", (Tap("0", FeatureKind.NEURON),), revision="r")
    with running_daemon(tmp_path, {"models": [{"name": "tiny"}]}) as running, torch.no_grad():
        sink = connect(running.grpc)
        with attach(model, plan, sink):
            wait_until(lambda: model(torch.ones(1, 4)) is not None and sink.connected)
            with running.daemon.monitor._lock:  # noqa: SLF001 - a writer that cannot go on
                wait_until(lambda: model(torch.ones(4, 4)) is not None and sink.account.dropped, 20)
                fill = running.daemon.ledger.fill_ratio
            wait_until(lambda: sink.sampling_rate < 1.0, 20, "steering")
        sink.close(2.0)

    assert 0.5 > fill


def _steering(client: RawClient) -> float:
    answer = client.read()
    return answer.sampling_rate if isinstance(answer, Steering) else 0.0
