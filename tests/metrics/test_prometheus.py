"""A real Prometheus scrapes the real server, evaluates the rules and answers the dashboard."""

import json
import re
import time
import urllib.request
from dataclasses import replace
from typing import Any

import pytest

from sidecar.detect import State
from sidecar.metrics import JobCounts, StorageCounts, render_rules
from sidecar.metrics.alerts import ALERTS, RECORDINGS
from sidecar.metrics.dashboards import render_dashboard
from sidecar.monitor import EvidenceCounts, IngestCounts
from tests.prometheus import eventually

pytestmark = pytest.mark.e2e

FEATURE = {
    "model": "lite0",
    "revision": "3fa1c2d4e5f6",
    "layer": "_blocks.14",
    "kind": "channel",
    "feature": "33",
}


def test_an_alert_goes_from_pending_to_firing_to_gone(
    source: Any, make_feature: Any, make_layer: Any, serve: Any, start_prometheus: Any
) -> None:
    """What the source says becomes an alert with exactly these labels and links, and ends with it."""
    calm = make_feature(make_layer().feature(33), State.NORMAL)
    source.watched = [calm]
    server = serve(source)
    prometheus = start_prometheus(render_rules(for_seconds=3, keep_seconds=6), server.port)
    eventually(lambda: prometheus.query("sidecar_feature_spiking == 0"), "a calm feature")
    assert prometheus.alerts("SidecarFeatureSpike") == []

    source.watched = [replace(calm, state=State.FIRING, exceedance_ratio=0.425)]
    pending = eventually(lambda: prometheus.alerts("SidecarFeatureSpike"), "an active alert")[0]
    firing = eventually(
        lambda: [a for a in prometheus.alerts("SidecarFeatureSpike") if a["state"] == "firing"],
        "a firing alert",
    )[0]
    source.watched = [calm]
    eventually(lambda: not prometheus.alerts("SidecarFeatureSpike"), "the end of the alert")

    assert pending["state"] == "pending"
    assert firing["labels"] == {
        "alertname": "SidecarFeatureSpike",
        "job": "sidecar",
        "instance": f"127.0.0.1:{server.port}",
        "name": "stop signs",
        "severity": "critical",
        "owner": "vision",
        "direction": "above",
        **FEATURE,
    }
    feature = "http://127.0.0.1:8080/f/lite0@3fa1c2d4e5f6/_blocks.14/channel/33"
    assert firing["annotations"] == {
        "summary": (
            "A flagged feature is beyond its threshold in far more requests than in its baseline."
        ),
        "description": (
            "Feature 33 (stop signs) of _blocks.14 in lite0 at revision 3fa1c2d4e5f6: 42.5% of the "
            "sampled requests exceed its threshold of 3.25; in the baseline 0.1% do."
        ),
        "feature_url": feature,
        "portrait_url": f"{feature}/portrait.png",
        "evidence_url": f"{feature}/evidence",
        "dashboard_url": (
            "http://127.0.0.1:3000/d/sidecar-overview?var-model=lite0&var-revision=3fa1c2d4e5f6"
            "&var-layer=_blocks.14&var-kind=channel&var-feature=33"
        ),
        "runbook_url": "http://127.0.0.1:9464/runbooks/SidecarFeatureSpike",
    }
    targets = prometheus.get("targets")["activeTargets"]
    assert [("up", "")] == [(target["health"], target["lastError"]) for target in targets]


def test_a_layer_that_shifts_is_told_once(
    source: Any,
    make_feature: Any,
    make_layer: Any,
    make_status: Any,
    serve: Any,
    start_prometheus: Any,
) -> None:
    """Features that spike with their layer raise nothing; when it is calm, those that still do are told."""
    layer = make_layer()
    source.watched = [make_feature(layer.feature(i), State.FIRING) for i in range(20)]
    source.registered = [make_status(layer, significant_features=60, shifted=True)]
    prometheus = start_prometheus(render_rules(keep_seconds=4), serve(source).port)

    def firing(name: str) -> list[Any]:
        return [alert for alert in prometheus.alerts(name) if alert["state"] == "firing"]

    (shift,) = eventually(lambda: firing("SidecarLayerShift"), "the layer's alert")
    during = prometheus.alerts("SidecarFeatureSpike")
    calm = [replace(status, state=State.NORMAL) for status in source.watched[1:]]
    source.watched = [source.watched[0], *calm]
    source.registered = [make_status(layer)]
    after = eventually(lambda: firing("SidecarFeatureSpike"), "the feature that still spikes")

    assert during == []
    assert shift["labels"]["severity"] == "critical"
    assert "60 of 192 features" in shift["annotations"]["description"]
    assert "20 flagged ones spike" in shift["annotations"]["description"]
    assert ["0"] == [alert["labels"]["feature"] for alert in after]
    assert firing("SidecarLayerShift") == []


def test_a_healthy_sidecar_raises_nothing(
    source: Any,
    make_feature: Any,
    make_layer: Any,
    make_audit: Any,
    serve: Any,
    start_prometheus: Any,
) -> None:
    """With nothing wrong, no alert is firing or pending, and every rule evaluates."""
    source.watched = [make_feature(make_layer().feature(33), State.NORMAL)]
    source.unmatched = []
    calm = make_audit()
    source.nightly = [replace(calm, last=calm.nights[-1], nights=calm.nights[-1:])]
    source.storage_counts = replace(source.storage_counts, snapshot_at=time.time())
    prometheus = start_prometheus(render_rules(), serve(source).port)

    def evaluated() -> list[Any]:
        groups = prometheus.get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        scraped = prometheus.query('count_over_time(up{job="sidecar"}[1m]) >= 4')
        return rules if scraped and all(r["health"] == "ok" for r in rules) else []

    rules = eventually(evaluated, "every rule evaluated")

    assert {"inactive"} == {rule["state"] for rule in rules if rule["type"] == "alerting"}
    assert len(rules) == len(ALERTS) + len(RECORDINGS)


@pytest.mark.parametrize("form", ["openmetrics", "protobuf"])
def test_exemplars_are_stored_once_for_each_evidence(
    form: str, source: Any, serve: Any, start_prometheus: Any
) -> None:
    """However often it is scraped, an evidence is one exemplar, and a newer one is another."""
    features = "exemplar-storage" + (",native-histograms" if form == "protobuf" else "")
    server = serve(source)
    prometheus = start_prometheus(render_rules(), server.port, f"--enable-feature={features}")

    def stored() -> list[str]:
        end = time.time() + 1
        found = prometheus.get(
            "query_exemplars",
            query="sidecar_feature_spikes_total",
            start=str(end - 600),
            end=str(end),
        )
        return [one["labels"]["evidence_id"] for series in found for one in series["exemplars"]]

    def scrapes(number: int) -> bool:
        counted = prometheus.query(f'count_over_time(up{{job="sidecar"}}[5m]) >= {number}')
        return bool(counted)

    eventually(lambda: stored() == ["ev-33"], "the first evidence")
    eventually(lambda: scrapes(4), "some scrapes more")
    once = stored()
    source.watched[0] = replace(source.watched[0], spikes=2, evidence_id="ev-34")
    both = eventually(lambda: len(stored()) > 1 and stored(), "the second evidence")

    assert once == ["ev-33"]
    assert both == ["ev-33", "ev-34"]
    dropped = "prometheus_target_scrapes_exemplar_out_of_order_total"
    with urllib.request.urlopen(f"{prometheus.url}/metrics", timeout=10) as answer:
        assert f"\n{dropped} 0\n" in answer.read().decode()


class BusySource:
    """A source whose counters grow with every scrape, as under traffic."""

    def __init__(self, source: Any) -> None:
        """Start where ``source`` stands."""
        self._source = source
        self._readings = 0

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the source."""
        return getattr(self._source, name)

    def ingest(self) -> IngestCounts:
        """Return counts that grew since the last call and still add up."""
        self._readings += 1
        n = self._readings
        return replace(
            self._source.counts,
            received=110 * n,
            accepted=100 * n,
            refused={"queue_full": 7 * n, "payload_mismatch": 3 * n},
            processed=96 * n - 6,
            dropped={"internal": 4 * n},
            forwards=1000 * n,
            sampled_forwards=500 * n,
            hook_dropped={"no_credit": n},
            hook_seconds=0.25 * n,
            forward_seconds=100.0 * n,
        )

    def features(self) -> Any:
        """Return features that are judged on 64 more requests with every call."""
        return [
            replace(feature, sampled_requests=64 * self._readings, spikes=self._readings)
            for feature in self._source.features()
        ]

    def jobs(self) -> JobCounts:
        """Return jobs of which one ends with every call."""
        return replace(self._source.job_counts, timed=self._readings, seconds=15.0 * self._readings)

    def storage(self) -> StorageCounts:
        """Return evidence of which ever more finds no room."""
        left_out = EvidenceCounts(900, 1000, {"uncounted": 12 * self._readings, "rows": 0})
        return replace(self._source.storage_counts, evidence=left_out)

    def layers(self) -> Any:
        """Return layers whose rows and non-finite values grow."""
        return [
            replace(
                layer,
                requests=64 * self._readings,
                nonfinite=self._readings,
                failed_windows=self._readings,
            )
            for layer in self._source.layers()
        ]


def test_the_dashboard_finds_its_data(source: Any, serve: Any, start_prometheus: Any) -> None:
    """Every query of every panel runs without an error, and only the faults' panel is empty."""
    prometheus = start_prometheus(render_rules(), serve(BusySource(source)).port)
    eventually(
        lambda: prometheus.query("rate(sidecar_batches_received_total[10s]) > 0"), "some traffic"
    )
    dashboard = json.loads(render_dashboard())
    panels = [
        panel
        for outer in dashboard["panels"]
        for panel in [outer, *outer.get("panels", [])]
        if panel.get("targets")
    ]

    answers = {
        (panel["title"], target["refId"]): prometheus.query(_filled(target["expr"]))
        for panel in panels
        for target in panel["targets"]
    }
    notes = [prometheus.query(_filled(n["expr"])) for n in dashboard["annotations"]["list"]]

    empty = {where for where, answer in answers.items() if not answer}
    faults = "Left out, failed or set aside"
    assert {(faults, ref) for ref in "ABCDEF"} == empty
    assert len(notes) == 5
    portraits = {
        one["metric"]["portrait"] for one in answers["Flagged features", "A"] if one["metric"]
    }
    assert "http://c/f/lite0@3fa1c2d4e5f6/_blocks.14/channel/33/portrait.png" in portraits


def test_the_variables_find_their_values(source: Any, serve: Any, start_prometheus: Any) -> None:
    """The chain of variables ends at the path of each flagged feature's page."""
    prometheus = start_prometheus(render_rules(), serve(source).port)
    eventually(lambda: prometheus.query("sidecar_feature_info"), "a scrape")
    found = {}

    for variable in json.loads(render_dashboard())["templating"]["list"]:
        if variable["type"] == "query":
            text = variable["query"]["query"]
            ((expr, label),) = re.findall(r"label_values\((.*), (\w+)\)", text)
            values = prometheus.get(f"label/{label}/values", **{"match[]": _filled(expr)})
            found[variable["name"]] = values

    assert ["lite0"] == found["model"]
    assert ["33", "34"] == found["feature"]
    first = "lite0@3fa1c2d4e5f6/_blocks.14/channel/33"
    assert [first, "lite0@3fa1c2d4e5f6/_blocks.14/channel/34"] == found["portrait"]


def _filled(expr: str) -> str:
    expr = expr.replace("$__rate_interval", "10s").replace("${console:raw}", "http://c")
    return re.sub(r"\$[a-z]+", ".+", expr)
