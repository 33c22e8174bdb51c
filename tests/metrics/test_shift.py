"""A layer that moves as a whole is one page, whatever moves first and whoever looks."""

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.metrics import render_rules
from tests.prometheus import eventually

pytestmark = pytest.mark.service

FEATURES = 200
LAYER = {"job": "sidecar", "instance": "a:1", "model": "m", "revision": "r", "layer": "l"}
KIND = LAYER | {"kind": "neuron"}
PAGES = 'count(ALERTS{alertname=~"Sidecar.+",alertstate="firing"}) or vector(0)'


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """Return a series of a promtool test."""
    inner = ",".join(f'{label}="{value}"' for label, value in (KIND | labels).items())
    return {"series": f"{name}{{{inner}}}", "values": values}


def lasting(start: int, end: int, step: int) -> str:
    """Return values that are 1 from second ``start`` up to ``end``, and 0 before and for long after."""
    return f"0x{start // step - 1} 1x{(end - start) // step - 1} 0x{1200 // step}"


# The wait; seconds between samples and evaluations; when features begin and end, and when the layer does.
SCENES = {
    "at once": (0, 5, (60, 300), (60, 300)),
    "a single window": (0, 5, (60, 70), (60, 70)),
    "the layer a window before its features": (0, 5, (70, 300), (60, 300)),
    "the layer is calm three windows before its features": (0, 5, (60, 330), (60, 300)),
    "hours": (0, 15, (60, 7200), (60, 7200)),
    "features a window before the layer, and a wait": (30, 5, (60, 300), (70, 300)),
    "a window and a scrape before, with slow scrapes and a wait": (30, 15, (60, 300), (75, 300)),
    "a shift as short as a wait": (30, 5, (60, 130), (70, 130)),
}
KEPT = 120


@pytest.mark.parametrize("scene", SCENES)
def test_two_hundred_features_and_their_layer_are_one_page(
    scene: str, tmp_path: Path, need: Any
) -> None:
    """At every evaluation at most one alert fires, and it is the layer's; afterwards none does."""
    wait, step, features, layer = SCENES[scene]
    fired, held = layer[0] + wait, layer[1] + KEPT
    moments = range(30, min(max(features[1], layer[1]) + 600, 1200), step)
    expected = {at: float(fired <= at < held) for at in moments}
    cases = [
        *(
            {"expr": PAGES, "eval_time": f"{at}s", "exp_samples": [{"value": pages}]}
            for at, pages in expected.items()
        ),
        {
            "expr": 'count by (alertname, severity) (ALERTS{alertstate="firing"})',
            "eval_time": f"{fired}s",
            "exp_samples": [
                {"labels": '{alertname="SidecarLayerShift",severity="critical"}', "value": 1}
            ],
        },
    ]

    said = outcome(render_rules(for_seconds=wait), step, features, layer, cases, tmp_path, need)

    assert said == ""
    assert sum(expected.values()) > 0


def test_of_a_layer_that_moves_slowly_the_first_features_are_told(
    tmp_path: Path, need: Any
) -> None:
    """Without a wait they fire a window before their layer, are kept beside it, and never again."""
    firing = 'count(ALERTS{alertname="%s",alertstate="firing"}) or vector(0)'
    begin, shifted, end = 60, 70, 330
    cases = []
    for at in range(30, 600, 5):
        told = float(FEATURES if begin <= at < shifted + KEPT else 0)
        layers = float(shifted <= at < end + KEPT)
        for name, count in (("SidecarFeatureSpike", told), ("SidecarLayerShift", layers)):
            cases.append(
                {"expr": firing % name, "eval_time": f"{at}s", "exp_samples": [{"value": count}]}
            )

    said = outcome(render_rules(), 5, (begin, end), (shifted, end), cases, tmp_path, need)

    assert said == ""


def outcome(
    rules: str,
    step: int,
    features: tuple[int, int],
    layer: tuple[int, int],
    cases: list[Any],
    folder: Path,
    need: Any,
) -> str:
    """Return what promtool has against rules in a scene; empty: nothing."""
    inputs = [
        {"series": 'up{job="sidecar",instance="a:1"}', "values": f"1x{9000 // step}"},
        series("sidecar_layer_shifted", lasting(*layer, step), view="raw"),
    ]
    for index in range(FEATURES):
        severity = "critical" if index == 7 else "warning"
        one = {"feature": str(index)}
        inputs += [
            series("sidecar_feature_spiking", lasting(*features, step), **one),
            series(
                "sidecar_feature_condition",
                lasting(*features, step),
                **one,
                condition="never_seen",
            ),
            series("sidecar_feature_info", f"1x{9000 // step}", **one, severity=severity),
        ]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{step}s",
        "tests": [
            {
                "interval": f"{step}s",
                "input_series": inputs,
                "promql_expr_test": cases,
            }
        ],
    }
    (folder / "rules.yaml").write_text(rules)
    (folder / "test.yaml").write_text(yaml.safe_dump(test))

    done = subprocess.run(
        [need("promtool"), "test", "rules", "test.yaml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    return (done.stdout + done.stderr)[:2000] if done.returncode else ""


@pytest.fixture
def alertmanager(tmp_path: Path, need: Any) -> Iterator[str]:
    """Run Alertmanager with the shipped configuration; return its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                need("prometheus-alertmanager"),
                "--config.file=deploy/alertmanager/alertmanager.yaml",
                f"--storage.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    yield f"http://127.0.0.1:{port}/api/v2"
    process.terminate()
    process.wait(20)


def test_alertmanager_holds_back_the_features_of_a_shifted_layer(alertmanager: str) -> None:
    """Features of the layer are inhibited, whichever replica tells of them; another layer's are not."""
    replica = KIND | {"instance": "b:1", "feature": "7", "severity": "critical"}
    sent = [
        KIND | {"alertname": "SidecarLayerShift", "view": "raw", "severity": "warning"},
        KIND | {"alertname": "SidecarFeatureSpike", "feature": "33", "severity": "warning"},
        replica | {"alertname": "SidecarFeatureNeverSeen"},
        KIND | {"alertname": "SidecarFeatureSpike", "layer": "k", "feature": "33"},
        KIND | {"alertname": "SidecarFeatureUnsampled", "feature": "34"},
    ]

    def answer(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"{alertmanager}/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=10) as found:
            return json.loads(found.read() or b"null")

    eventually(lambda: answer("status"), "Alertmanager answers")
    answer("alerts", [{"labels": sent[0]}])
    eventually(lambda: "active" in json.dumps(answer("alerts")), "the layer's alert is dealt with")
    answer("alerts", [{"labels": labels} for labels in sent])

    def states() -> dict[tuple[str, str], str]:
        found = {
            (one["labels"]["alertname"], one["labels"]["layer"]): one["status"]["state"]
            for one in answer("alerts")
        }
        # An alert is `unprocessed` until its group was told of for the first time.
        return found if len(found) == len(sent) and "unprocessed" not in found.values() else {}

    assert eventually(states, "every alert is dealt with") == {
        ("SidecarLayerShift", "l"): "active",
        ("SidecarFeatureSpike", "l"): "suppressed",
        ("SidecarFeatureNeverSeen", "l"): "suppressed",
        ("SidecarFeatureSpike", "k"): "active",
        ("SidecarFeatureUnsampled", "l"): "active",
    }
