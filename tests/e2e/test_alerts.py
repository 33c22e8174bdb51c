"""From a changed activation to a page: real daemon, Prometheus and Alertmanager on the shipped files."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import yaml

from demo.lite0 import CENTRE, SPREAD, build
from demo.photos import ShuffledDeck, augment, load_everyday
from sidecar.features import FeatureKind, LayerKey, Request, View
from sidecar.hooks import Plan, Tap, connect, current_requests
from sidecar.hooks.torch import attach
from sidecar.metrics import render_rules
from sidecar.testing import running_daemon, wait_until
from sidecar.wire import Hello, OutgoingBatch, OutgoingTensor, RegisterLayer
from tests.alerting import SCRAPE_SECONDS, Stack, alerting, free_ports
from tests.ingest.conftest import GrpcClient
from tests.prometheus import eventually

pytestmark = pytest.mark.e2e

REVISION = "ab" * 32
LAYER = LayerKey("wide", REVISION, "conv", FeatureKind.CHANNEL, View.MAX)
WIDTH = 1024
FLAGGED = 200
SPIKED, SILENCED = 7, 9
WINDOW_SECONDS = 0.5
KEEP_SECONDS = 10
"""How long an alert outlives its condition: a restart of the daemon, and the calm end of a shift."""

REQUESTS = 64
"""Of a window, in four batches."""

SETTINGS: dict[str, Any] = {
    "models": [{"name": "wide"}],
    "flags": [
        {"feature": f"wide/conv/channel/{index}", "severity": "critical"}
        for index in range(FLAGGED)
    ],
    "statistics": {
        "window_seconds": WINDOW_SECONDS,
        "warmup_rows": 128,
        "baseline_min_requests": 55 * REQUESTS,
        "baseline_min_seconds": 60 * WINDOW_SECONDS,
    },
    "screen": {"baseline_windows": 20},
    "spike": {"quantile": 0.99, "clear_windows": 8, "resolved_windows": 6},
    "alerts": {"portrait_on_firing": False},
}

Change = Callable[[np.ndarray, np.random.Generator], None]


def ordinary(_values: np.ndarray, _rng: np.random.Generator) -> None:
    """Change nothing."""


def spike_of(index: int) -> Change:
    """Return what raises one feature in 40 % of the requests."""

    def change(values: np.ndarray, rng: np.random.Generator) -> None:
        values[rng.random(len(values)) < 0.4, index] += 8.0

    return change


def layer_moves(values: np.ndarray, _rng: np.random.Generator) -> None:
    """Raise every feature of the layer, as a changed preprocessing does."""
    values += 3.0


class Traffic:
    """Sends normal activations, one row a request, until closed; ``change`` is applied to them."""

    def __init__(self, address: str) -> None:
        self.change: Change = ordinary
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start to send."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to send."""
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        rng = np.random.default_rng(3)
        client, sequence = self._open(), 0
        pause = WINDOW_SECONDS / 4
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += pause
            values = rng.normal(size=(REQUESTS // 4, WIDTH)).astype(np.float32)
            self.change(values, rng)
            requests = tuple(Request(f"{sequence}-{i}") for i in range(len(values)))
            sequence += 1
            tensor = OutgoingTensor(1, "f32", values.shape, values.tobytes())
            client.say(OutgoingBatch(sequence, (tensor,), requests))
        client.close()

    def _open(self) -> GrpcClient:
        client = GrpcClient(self._address)
        client.say(Hello("wide", REVISION, client_id="traffic"))
        client.say(RegisterLayer(1, LAYER, WIDTH))
        return client


def port_of(url: str) -> int:
    """Return the port in an address."""
    return int(urlsplit(url).port or 0)


def learned(stack: Stack) -> None:
    """Wait until the layer has its baseline and Prometheus sees all flagged features at rest."""
    count = f"count(sidecar_feature_state == 1) == {FLAGGED}"
    eventually(lambda: stack.prometheus.query(count), "every flagged feature is normal")


def firing(stack: Stack, name: str) -> list[Any]:
    """Return the firing alerts of a name."""
    return [one for one in stack.prometheus.alerts(name) if one["state"] == "firing"]


def first_time(stack: Stack, expr: str) -> float:
    """Return the first evaluation of the last minutes at which an expression had a value."""
    now = time.time()
    found = stack.prometheus.get(
        "query_range", query=expr, start=f"{now - 240}", end=f"{now}", step="0.25"
    )["result"]
    return min(float(series["values"][0][0]) for series in found)


def test_a_spike_pages_once_in_time_is_silenced_and_ends(tmp_path: Path) -> None:
    """Detector to page within two scrapes; nobody else fires; a silence holds; the end is told."""
    with running_daemon(tmp_path / "state", SETTINGS) as running:
        addresses = {"metrics_port": port_of(running.metrics_url)}
        rules = render_rules(running.console_url, keep_seconds=KEEP_SECONDS)
        with (
            alerting(
                tmp_path / "stack", rules, console_url=running.console_url, **addresses
            ) as stack,
            Traffic(running.grpc) as traffic,
        ):
            learned(stack)
            traffic.change = spike_of(SPIKED)
            eventually(lambda: firing(stack, "SidecarFeatureSpike"), "a firing spike alert")
            pages = eventually(stack.pager.pages, "a page")
            detected = float(
                stack.prometheus.query(
                    f'sidecar_feature_state_changed_timestamp_seconds{{feature="{SPIKED}"}}'
                )[0]["value"][1]
            )
            fired = first_time(
                stack, 'ALERTS{alertname="SidecarFeatureSpike", alertstate="firing"}'
            )

            traffic.change = ordinary
            eventually(lambda: not firing(stack, "SidecarFeatureSpike"), "the end of the spike")
            ended = eventually(lambda: stack.pager.pages("resolved"), "the page's end")

            stack.silence(alertname="SidecarFeatureSpike", feature=str(SILENCED))
            traffic.change = spike_of(SILENCED)
            muted = eventually(
                lambda: [
                    one
                    for one in stack.alertmanager_alerts("SidecarFeatureSpike")
                    if one["status"]["silencedBy"]
                ],
                "a silenced alert",
            )
            # As long as a page would take.
            seen = time.monotonic()
            wait_until(lambda: time.monotonic() > seen + 8, seconds=20)
            told = stack.pager.pages()

    assert 0 <= fired - detected <= 2 * SCRAPE_SECONDS
    assert [("SidecarFeatureSpike", str(SPIKED), "critical")] == [
        (page["alertname"], page["feature"], page["severity"]) for page in pages
    ]
    assert [str(SPIKED)] == [page["feature"] for page in ended]
    assert [str(SILENCED)] == [one["labels"]["feature"] for one in muted]
    assert told == pages


def test_a_shift_of_the_whole_layer_is_one_page(tmp_path: Path) -> None:
    """Two hundred flagged features move at once, and one page says that the layer did."""
    with running_daemon(tmp_path / "state", SETTINGS) as running:
        rules = render_rules(running.console_url, keep_seconds=KEEP_SECONDS)
        with (
            alerting(
                tmp_path / "stack",
                rules,
                metrics_port=port_of(running.metrics_url),
                console_url=running.console_url,
            ) as stack,
            Traffic(running.grpc) as traffic,
        ):
            learned(stack)
            traffic.change = layer_moves
            eventually(stack.pager.pages, "a page")
            spiking = f"count(sidecar_feature_spiking == 1) == {FLAGGED}"
            eventually(lambda: stack.prometheus.query(spiking), "every flagged feature fires")
            # Long enough for every notification that a feature's own alert would have made.
            seen = time.monotonic()
            wait_until(lambda: time.monotonic() > seen + 12, seconds=20)
            pages = stack.pager.pages()
            traffic.change = ordinary
            ended = eventually(lambda: stack.pager.pages("resolved"), "the page's end")

    assert [("SidecarLayerShift", "conv")] == [(p["alertname"], p["layer"]) for p in pages]
    assert {"SidecarLayerShift"} == {page["alertname"] for page in ended}


@contextmanager
def served(config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``sidecar serve``; it is dead afterwards whatever happened."""
    with (config.parent / "daemon.log").open("ab") as log:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def test_an_alert_outlives_kill_9_and_is_not_told_again(tmp_path: Path) -> None:
    """The daemon comes back with the feature firing; people hear nothing new."""
    metrics, web = free_ports(2)
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        yaml.safe_dump(
            SETTINGS
            | {
                "listen": {
                    "grpc": [f"unix://{tmp_path}/s.sock"],
                    "metrics": f"127.0.0.1:{metrics}",
                    "web": f"127.0.0.1:{web}",
                },
                "state_dir": str(tmp_path / "state"),
            }
        )
    )
    console = f"http://127.0.0.1:{web}"
    address = f"unix://{tmp_path}/s.sock"
    with served(config) as first:
        wait_until((tmp_path / "s.sock").exists, seconds=30)
        with alerting(
            tmp_path / "stack",
            render_rules(console, keep_seconds=KEEP_SECONDS),
            metrics_port=metrics,
            console_url=console,
        ) as stack:
            with Traffic(address) as traffic:
                learned(stack)
                traffic.change = spike_of(SPIKED)
                eventually(stack.pager.pages, "a page")
                since = stack.prometheus.query("sidecar_feature_spiking == 1")
                first.send_signal(signal.SIGKILL)
                first.wait(10)
            with served(config), Traffic(address) as traffic:
                traffic.change = spike_of(SPIKED)
                again = eventually(
                    lambda: stack.prometheus.query(
                        f"sidecar_feature_spiking == 1 and on () "
                        f"process_start_time_seconds > {time.time() - 60}"
                    ),
                    "the feature still fires after the restart",
                )
                # As long as a second announcement would take.
                seen = time.monotonic()
                wait_until(lambda: time.monotonic() > seen + 10, seconds=20)
                pages = [
                    page
                    for page in stack.pager.pages()
                    if page["alertname"] == "SidecarFeatureSpike"
                ]

    assert [str(SPIKED)] == [one["metric"]["feature"] for one in since]
    assert [str(SPIKED)] == [one["metric"]["feature"] for one in again]
    assert 1 == len(pages)


def test_everyday_photographs_raise_no_alarm(tmp_path: Path) -> None:
    """A real EfficientNet-Lite0 on real photographs, 200 flagged channels, as long as the others."""
    settings = SETTINGS | {
        "models": [{"name": "lite0"}],
        "flags": [
            {"feature": f"lite0/_blocks.{block}/channel/{index}"}
            for block in (11, 14)
            for index in range(FLAGGED // 2)
        ],
        # A forward pass takes some 40 ms: some twenty photographs a second.
        "statistics": SETTINGS["statistics"]
        | {"window_seconds": 1.0, "baseline_min_requests": 640, "baseline_min_seconds": 30.0},
    }
    pictures = photographs()
    with running_daemon(tmp_path / "state", settings) as running:
        rules = render_rules(running.console_url, keep_seconds=KEEP_SECONDS)
        network = build()
        taps = (Tap("_blocks.11"), Tap("_blocks.14"))
        sink = connect(running.grpc if "://" in running.grpc else f"grpc://{running.grpc}")
        with (
            alerting(
                tmp_path / "stack",
                rules,
                metrics_port=port_of(running.metrics_url),
                console_url=running.console_url,
            ) as stack,
            attach(network, Plan("lite0", taps, overhead_budget=None), sink),
        ):
            serve_until(network, pictures, lambda: bool(at_rest(stack)))
            started = time.monotonic()
            serve_until(network, pictures, lambda: time.monotonic() > started + 45)
            events = running.daemon.operations.events(None, 500)
            names = {
                alert["labels"]["alertname"]
                for alert in stack.prometheus.get("alerts")["alerts"]
                if alert["state"] == "firing"
            }
            pages = stack.pager.pages()
        sink.close(2.0)

    assert [] == [event for event in events if event.what in ("feature_firing", "layer_shifted")]
    assert set() == names
    assert [] == pages


def at_rest(stack: Stack) -> list[Any]:
    """Return something once every flagged feature has its baseline and is normal."""
    return stack.prometheus.query(f"count(sidecar_feature_state == 1) == {FLAGGED}")


def photographs() -> Iterator[torch.Tensor]:
    """Yield batches of eight random crops of real photographs, as the network takes them, for ever."""
    rng = np.random.default_rng(5)
    deck = ShuffledDeck(load_everyday(), rng)
    while True:
        crops = [np.asarray(augment(deck.deal(), rng).resize((128, 128))) for _ in range(8)]
        batch = torch.from_numpy(np.stack(crops).astype(np.float32))
        yield ((batch - CENTRE) / SPREAD).permute(0, 3, 1, 2).contiguous()


def serve_until(
    network: torch.nn.Module, pictures: Iterator[torch.Tensor], over: Callable[[], bool]
) -> None:
    """Answer requests until a condition holds or three minutes have passed."""
    deadline = time.monotonic() + 180
    number = 0
    with torch.inference_mode():
        while not over():
            assert time.monotonic() < deadline, "no baseline in three minutes"
            for _ in range(4):
                batch = next(pictures)
                ids = [f"photo-{number + i}" for i in range(len(batch))]
                number += len(batch)
                with current_requests(ids):
                    network(batch)
