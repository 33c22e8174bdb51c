"""What a scrape says, read back from real HTTP."""

import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from sidecar.audits import AuditState, NightState
from sidecar.detect import Direction, State
from sidecar.features import FeatureKey, FeatureKind, LayerKey, Scope, View
from sidecar.metrics import Collector
from sidecar.metrics.catalogue import (
    AUDIT_SERIES,
    FEATURE_SERIES,
    LAYER_SERIES,
    OWN_SERIES,
    SCALAR_FAMILIES,
)
from sidecar.metrics.collector import AUDITS_LIMIT
from sidecar.monitor import Anomaly, Flag, IngestCounts

pytestmark = pytest.mark.service

FEATURE = {
    "model": "lite0",
    "revision": "3fa1c2d4e5f6",
    "layer": "_blocks.14",
    "kind": "channel",
    "feature": "33",
}
LAYER = {**{k: v for k, v in FEATURE.items() if k != "feature"}, "view": "max"}


def key(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return what a scrape is indexed by."""
    return name, frozenset(labels.items())


def of_feature(found: Mapping[Any, float], name: str, label: str) -> dict[str, float]:
    """Return the values of feature 33 in a family with one label more."""
    return {
        dict(labels)[label]: value
        for (n, labels), value in found.items()
        if n == name and FEATURE.items() <= dict(labels).items()
    }


def with_label(found: Mapping[Any, float], name: str, label: str) -> dict[str, float]:
    """Return the values of a family by one of its labels."""
    return {dict(labels)[label]: value for (n, labels), value in found.items() if n == name}


def test_every_value_of_a_flagged_feature_arrives(source: Any, serve: Any, scrape: Any) -> None:
    """A flagged feature has all its series, with exact values and labels, and its buckets."""
    found = scrape(serve(source))

    mine = {n: v for (n, labels), v in found.items() if FEATURE.items() <= dict(labels).items()}
    assert mine.pop("sidecar_feature_activation_levels_bucket")
    buckets = {
        labels["le"]: value
        for (name, one), value in found.items()
        if name.endswith("_bucket") and FEATURE.items() <= (labels := dict(one)).items()
    }
    assert {"-1.0": 1, "0.0": 2, "2.5": 2, "+Inf": 3} == buckets
    expected = {
        "sidecar_feature_state": 3,
        "sidecar_feature_spiking": 1,
        "sidecar_feature_state_changed_timestamp_seconds": 1_795_448_000.0,
        "sidecar_feature_exceedance_ratio": 0.425,
        "sidecar_feature_baseline_exceedance_ratio": 0.001,
        "sidecar_feature_window_requests": 128,
        "sidecar_feature_spike_evidence_log10": 9.5,
        "sidecar_feature_level_ratio": 0.0015,
        "sidecar_feature_tolerated_ratio": 0.006,
        "sidecar_feature_requests_total": 640,
        "sidecar_feature_exceedances_total": 54,
        "sidecar_feature_spikes_total": 1,
        "sidecar_feature_drift_wasserstein_sigma": 0.25,
        "sidecar_feature_drifting": 0,
        "sidecar_feature_info": 1,
    }
    conditions = of_feature(found, "sidecar_feature_condition", "condition")
    drift = of_feature(found, "sidecar_feature_drift_js_distance", "reference")
    assert {"never_seen": 1, "nonfinite": 0, "silent": 0, "saturated": 0} == conditions
    assert {"baseline": 0.125, "yesterday": 0.0625} == drift
    assert expected == {n: v for n, v in mine.items() if n in expected}
    assert set(mine) - set(expected) == {
        "sidecar_feature_condition",
        "sidecar_feature_drift_js_distance",
        "sidecar_feature_threshold",
        "sidecar_feature_last_activation",
    }
    assert {"above": 3.25} == of_feature(found, "sidecar_feature_threshold", "side")
    assert {"above": 9.75} == of_feature(found, "sidecar_feature_last_activation", "side")
    two_sides = 2 + 2
    assert len(expected) + len(conditions) + len(drift) + two_sides == FEATURE_SERIES
    about = {"name": "stop signs", "severity": "critical", "owner": "vision", "slice": "route=eu"}
    about["direction"] = "above"
    path = "lite0@3fa1c2d4e5f6/_blocks.14/channel/33"
    assert found[key("sidecar_feature_info", **FEATURE, **about, path=path)] == 1


@pytest.mark.parametrize(
    ("direction", "threshold", "last"),
    [
        (Direction.ABOVE, {"above": 3.25}, {"above": 1.5}),
        (Direction.BELOW, {"below": -2.5}, {"below": -7.0}),
        (Direction.BOTH, {"above": 3.25, "below": -2.5}, {"above": 1.5, "below": -7.0}),
    ],
)
def test_each_side_that_is_watched_has_its_threshold_and_its_value(
    source: Any,
    make_feature: Any,
    make_layer: Any,
    serve: Any,
    scrape: Any,
    direction: Direction,
    threshold: dict[str, float],
    last: dict[str, float],
) -> None:
    """What is compared with a low threshold is the least value, not the greatest."""
    shown = -2.5 if direction is Direction.BELOW else 3.25
    sides = {"direction": str(direction), "threshold": shown, "low_threshold": -2.5, "least": -7.0}
    source.watched = [make_feature(make_layer().feature(33), **sides)]

    found = scrape(serve(source))

    assert threshold == of_feature(found, "sidecar_feature_threshold", "side")
    assert last == of_feature(found, "sidecar_feature_last_activation", "side")


def anomaly(key: FeatureKey, p_log10: float, windows: int = 2) -> Anomaly:
    """Return a finding: 8 of 64 requests where 1 in 100 is usual."""
    return Anomaly(key, 1.0, 2.0, windows, 64, 8, 0.01, p_log10, p_log10 + 1)


def test_the_furthest_unflagged_findings_have_a_series_up_to_a_hard_limit(
    source: Any, make_layer: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Of all layers together; what was found once may be chance and has none."""
    first, second = make_layer(), make_layer("_blocks.15")
    likely = tuple(anomaly(first.feature(i), -5.0 - i) for i in range(10))
    source.registered = [
        make_status(first, anomalies=likely),
        make_status(
            second, anomalies=(anomaly(second.feature(3), -99), anomaly(second.feature(4), -99, 1))
        ),
    ]

    few = scrape(serve(source, limits={"anomalies_limit": 3}))
    none = scrape(serve(source, limits={"anomalies_limit": 0}))

    name = "sidecar_anomaly_factor"
    shown = {
        (dict(labels)["layer"], dict(labels)["feature"]): value
        for (one, labels), value in few.items()
        if one == name
    }
    assert {
        ("_blocks.15", "3"): 12.5,
        ("_blocks.14", "9"): 12.5,
        ("_blocks.14", "8"): 12.5,
    } == shown
    assert not [1 for one, _ in none if one == name]


def test_what_is_not_known_is_absent(source: Any, serve: Any, scrape: Any) -> None:
    """A feature without samples or baseline has a state and no shares, rather than zeros or NaN."""
    found = scrape(serve(source))

    other = FEATURE | {"feature": "34"}
    mine = {n for n, labels in found if other.items() <= dict(labels).items()}
    expected = {"state", "spiking", "state_changed_timestamp_seconds", "window_requests", "info"}
    expected |= {"activation_levels_bucket", "condition"}
    expected |= {f"{name}_total" for name in ("requests", "exceedances", "spikes")}
    assert {f"sidecar_feature_{name}" for name in expected} == mine
    assert found[key("sidecar_feature_state", **other)] == 0
    assert found[key("sidecar_feature_condition", **other, condition="nonfinite")] == 0
    held = [dict(labels) for n, labels in found if n == "sidecar_feature_condition"]
    assert [one["condition"] for one in held if one["feature"] == "34"] == ["nonfinite"]
    assert not [name for name, value in found.items() if value != value]  # noqa: PLR0124 - NaN


def test_every_state_has_its_number(
    source: Any, make_feature: Any, make_layer: Any, serve: Any, scrape: Any
) -> None:
    """The codes are those that the documents and the dashboard name; only firing spikes."""
    source.watched = [make_feature(make_layer().feature(i), state) for i, state in enumerate(State)]

    found = scrape(serve(source))

    names = ("unknown", "normal", "pending", "firing", "resolved")
    assert list(names) == [str(state) for state in State]
    codes = with_label(found, "sidecar_feature_state", "feature")
    assert {str(i): float(i) for i in range(5)} == codes
    spiking = with_label(found, "sidecar_feature_spiking", "feature")
    assert {"0": 0, "1": 0, "2": 0, "3": 1, "4": 0} == spiking


def test_batches_are_conserved(source: Any, serve: Any, scrape: Any) -> None:
    """Received is accepted and refused; accepted is processed, dropped and in flight."""
    found = scrape(serve(source))

    refused = with_label(found, "sidecar_batches_refused_total", "reason")
    dropped = with_label(found, "sidecar_batches_dropped_total", "reason")
    received = found[key("sidecar_batches_received_total")]
    accepted = found[key("sidecar_batches_accepted_total")]
    processed = found[key("sidecar_batches_processed_total")]
    assert received == accepted + sum(refused.values()) == 110
    in_flight = found[key("sidecar_batches_in_flight")]
    assert accepted == processed + sum(dropped.values()) + in_flight == 100
    assert {"queue_full": 7, "payload_mismatch": 3} == {r: v for r, v in refused.items() if v}
    assert refused["malformed"] == 0


def test_what_a_snapshot_brought_back_is_in_no_counter(
    source: Any, serve: Any, scrape: Any
) -> None:
    """A counter that goes back a little after a kill looks to Prometheus like all of it anew."""
    source.registered[0] = replace(source.registered[0], nonfinite=9, restored=(600, 300, 8))
    found = scrape(serve(source))

    names = ("rows", "requests", "nonfinite")
    assert [40, 20, 1] == [found[key(f"sidecar_layer_{name}_total", **LAYER)] for name in names]


def test_layers_jobs_and_storage_arrive(source: Any, serve: Any, scrape: Any) -> None:
    """Aggregates of layers, jobs, disk and build carry the source's numbers."""
    found = scrape(serve(source))

    assert found[key("sidecar_layer_features", **LAYER)] == 192
    assert found[key("sidecar_layer_flagged_features", **LAYER)] == 2
    assert found[key("sidecar_layer_requests_total", **LAYER)] == 320
    assert found[key("sidecar_layer_baseline_frozen", **LAYER)] == 1
    last = found[key("sidecar_layer_last_sample_timestamp_seconds", **LAYER)]
    assert last == 1_795_448_001.5
    assert found[key("sidecar_layer_screened_features", **LAYER)] == 192
    assert found[key("sidecar_layer_significant_features", **LAYER)] == 3
    assert found[key("sidecar_layer_shifted", **LAYER)] == 0
    assert found[key("sidecar_layer_baseline_windows", **LAYER)] == 180
    assert found[key("sidecar_layer_baseline_info", **LAYER, baseline="b7e23ec29af2")] == 1
    assert found[key("sidecar_spike_threshold_log10")] == 8.25
    assert found[key("sidecar_spike_expected_false_alarms")] == 1
    assert found[key("sidecar_model_info", model="lite0", revision="3fa1c2d4e5f6")] == 1
    jobs = with_label(found, "sidecar_jobs", "state")
    assert {"queued": 2, "running": 0, "done": 5, "failed": 1, "cancelled": 0} == jobs
    assert found[key("sidecar_job_run_seconds_total")] == 90
    assert found[key("sidecar_artifact_bytes")] == 2048
    assert found[key("sidecar_layer_memory_bytes", **LAYER)] == 1_620_096
    assert found[key("sidecar_statistics_kernels_info", kernels="numba")] == 1
    assert found[key("sidecar_statistics_kernels_failed")] == 0
    assert found[key("sidecar_statistics_memory_bytes")] == 1_620_096
    assert found[key("sidecar_statistics_memory_limit_bytes")] == 1 << 29
    assert found[key("sidecar_snapshot_timestamp_seconds")] == 1_795_448_000.0
    assert found[key("sidecar_flag_unmatched", flag="lite0/_blocks.99/channel/1")] == 1
    assert found[key("sidecar_build_info", version="0.1.0", config="ab" * 6)] == 1
    assert found[key("sidecar_hook_seconds_total")] == 0.25
    assert found[key("sidecar_hook_governed_forwards_total")] == 40
    assert found[key("sidecar_hook_sampling_ratio")] == 0.25
    assert found[key("sidecar_hook_overhead_ratio")] == 0.004


def test_an_audit_says_what_its_newest_judged_night_came_to(
    source: Any, serve: Any, scrape: Any
) -> None:
    """Also while another runs; a check that was not possible, and what is no number, is absent."""
    found = scrape(serve(source))

    audit = {"audit": "nightly-int8", "model": "lite0", "against": "lite0-int8"}
    assert (1.0, 3.0, 1.0) == (
        found[key("sidecar_audit_state", **audit)],
        found[key("sidecar_audit_night_state", **audit)],
        found[key("sidecar_audit_regressed", **audit)],
    )
    failed = with_label(found, "sidecar_audit_check_failed", "check")
    assert {"complete": 0.0, "comparison": 1.0, "live": 1.0} == failed
    values = with_label(found, "sidecar_audit_check_value", "check")
    limits = with_label(found, "sidecar_audit_check_limit", "check")
    assert {"complete": 0.0, "comparison": 12.5} == values
    assert {"complete": 0.0, "comparison": 5.0} == limits
    units = with_label(found, "sidecar_audit_units", "fate")
    assert {"same": 150, "moved": 24, "lost": 18, "new": 3} == units
    nights = with_label(found, "sidecar_audit_nights", "state")
    assert {"passed": 1, "regressed": 1, "failed": 0} == nights
    assert (1_795_440_900.0, 1_795_612_800.0, 0.0, 32.0) == tuple(
        found[key(f"sidecar_audit_{name}", **audit)]
        for name in (
            "last_end_timestamp_seconds",
            "next_start_timestamp_seconds",
            "overdue",
            "features",
        )
    )


def test_a_night_that_failed_ends_no_regression(
    source: Any, make_audit: Any, serve: Any, scrape: Any
) -> None:
    """Nobody has looked at the model since; the next night that passes does."""
    known = make_audit()
    night = replace(known.last, id="20261126T013000Z", state=NightState.FAILED)
    better = replace(night, id="20261127T013000Z", state=NightState.PASSED)
    source.nightly = [
        make_audit("failed", last=night, running=None, nights=(night, *known.nights[1:])),
        make_audit("passed", last=better, running=None, nights=(better, night, *known.nights[1:])),
    ]
    found = with_label(scrape(serve(source)), "sidecar_audit_regressed", "audit")

    assert {"failed": 1.0, "passed": 0.0} == found


def test_an_audit_before_its_first_night_has_come_to_nothing(
    source: Any, make_audit: Any, serve: Any, scrape: Any
) -> None:
    """Only its state and its next night are known; no comparison leaves the other model empty."""
    waiting = AuditState.WAITING
    source.nightly = [
        make_audit(against="", state=waiting, last=None, running=None, nights=(), overdue=True)
    ]

    found = scrape(serve(source))

    there = {name for name, _ in found if name.startswith("sidecar_audit_")}
    known = ("state", "regressed", "next_start_timestamp_seconds", "overdue", "nights")
    assert {f"sidecar_audit_{name}" for name in known} == there
    labels = {"audit": "nightly-int8", "model": "lite0", "against": ""}
    assert 1.0 == found[key("sidecar_audit_overdue", **labels)]


def test_audits_have_series_up_to_a_hard_limit(
    source: Any, make_audit: Any, serve: Any, scrape: Any
) -> None:
    """However many are configured; what is left out is told."""
    source.nightly = [make_audit(f"audit-{n}") for n in range(AUDITS_LIMIT + 7)]

    found = scrape(serve(source))

    assert AUDITS_LIMIT == len(with_label(found, "sidecar_audit_state", "audit"))
    assert 7 == found[key("sidecar_series_truncated", subject="audits")]


def test_a_layer_that_is_not_screened_has_neither_moved_nor_stayed(
    source: Any, make_layer: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Without a screen there is no verdict and no baseline to name; a shift that was seen stays."""
    source.registered = [
        make_status(make_layer("new"), screened_features=0, baseline_id=""),
        make_status(make_layer("moved"), screened_features=0, shifted=True),
    ]

    found = scrape(serve(source))

    assert {"moved": 1} == with_label(found, "sidecar_layer_shifted", "layer")
    assert {} == with_label(found, "sidecar_layer_significant_features", "layer")
    assert {"new": 0, "moved": 0} == with_label(found, "sidecar_layer_screened_features", "layer")
    assert {"moved": 1} == with_label(found, "sidecar_layer_baseline_info", "layer")


def test_every_family_of_the_catalogue_is_exposed_and_no_other(source: Any, serve: Any) -> None:
    """Names, types and help of the exposition are the catalogue's, whether there is data or not."""
    server = serve(source)

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))

    mine = {f.name: f for f in families if f.name.startswith("sidecar_")}
    expected = {f.name.removesuffix("_total"): f for f in SCALAR_FAMILIES}
    assert set(expected) == set(mine)
    assert {n: f.help for n, f in expected.items()} == {n: f.documentation for n, f in mine.items()}
    counters = {n for n, f in expected.items() if f.type == "counter"}
    assert counters == {n for n, f in mine.items() if f.type == "counter"}
    for name, family in mine.items():
        for sample in family.samples:
            assert set(expected[name].labels) >= set(sample.labels)


def test_openmetrics_is_strictly_valid(source: Any, serve: Any) -> None:
    """The strict OpenMetrics parser takes the exposition, units and types included."""
    server = serve(source)
    accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5"}

    with urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/metrics", headers=accept)
    ) as a:
        media_type, text = a.headers["Content-Type"], a.read().decode()

    families = {family.name: family for family in parse_openmetrics(text)}
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert families["sidecar_queue_bytes"].unit == "bytes"
    assert families["sidecar_feature"].type == "info"


def test_promtool_finds_nothing_to_complain_about(
    source: Any, serve: Any, need: Callable[[str], str]
) -> None:
    """Prometheus' own linter accepts names, types and help texts of our families."""
    promtool = need("promtool")
    with urllib.request.urlopen(f"{serve(source).url}/metrics") as answer:
        text = answer.read()

    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )

    complaints = [line for line in done.stderr.decode().splitlines() if "sidecar_" in line]
    assert not complaints, complaints


def test_the_limit_is_hard_and_what_is_left_out_is_counted(
    source: Any, make_feature: Any, make_layer: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Whatever is flagged or registered, series stay below the limit and the rest is told."""
    source.watched = [make_feature(make_layer().feature(i)) for i in range(50)]
    source.registered = [make_status(make_layer(f"_blocks.{i}")) for i in range(13)]
    source.unmatched = [f"lite0/x/channel/{i}" for i in range(11)]

    found = scrape(serve(source, 10))

    first = {str(i) for i in range(10)}
    assert first == set(with_label(found, "sidecar_feature_state", "feature"))
    left_out = with_label(found, "sidecar_series_truncated", "subject")
    assert {
        "features": 40,
        "layers": 3,
        "audits": 0,
        "flags": 1,
        "histograms": 40,
        "heatmaps": 40,
    } == left_out


def test_all_series_together_stay_below_the_limit(
    source: Any, make_feature: Any, make_layer: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Features come first, and the daemon's own series are always there; the rest is told."""
    source.watched = [make_feature(make_layer().feature(i)) for i in range(50)]
    source.registered = [make_status(make_layer(f"_blocks.{i}")) for i in range(13)]
    source.unmatched = [f"lite0/x/channel/{i}" for i in range(11)]
    limit = OWN_SERIES + 14 * FEATURE_SERIES
    server = serve(source, limits={"series_limit": limit})

    before = scrape(server)
    invented = {f"reason-{i:04}": 2 for i in range(500)}
    source.counts = replace(
        source.counts, hook_dropped=invented, refused=invented, dropped=invented
    )
    found = scrape(server)

    assert len(found) <= limit
    kept = set(with_label(found, "sidecar_feature_state", "feature"))
    assert {str(i) for i in range(14)} == kept
    assert kept == set(with_label(before, "sidecar_feature_state", "feature"))
    left_out = with_label(found, "sidecar_series_truncated", "subject")
    assert {
        "features": 36,
        "layers": 13,
        "audits": 1,
        "flags": 11,
        "histograms": 50,
        "heatmaps": 50,
    } == left_out
    assert found[key("sidecar_series_limit")] == limit
    own = [name for name, _ in found if name.startswith("sidecar_")]
    assert found[key("sidecar_series")] == len(own)


def test_heat_maps_are_the_first_to_go(
    source: Any, make_feature: Any, make_layer: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """With room for some buckets, whole features have theirs, in order, and no series is over."""
    source.watched = [make_feature(make_layer().feature(i)) for i in range(10)]
    # Its own, those of features and of the layer, 1 flag, 10 native, then 4 buckets each.
    before = OWN_SERIES + 10 * FEATURE_SERIES + LAYER_SERIES + AUDIT_SERIES + 1 + 10
    server = serve(source, limits={"series_limit": before + 11})

    found = scrape(server)

    buckets = with_label(found, "sidecar_feature_activation_levels_bucket", "feature")
    assert {"0", "1"} == set(buckets)
    left_out = with_label(found, "sidecar_series_truncated", "subject")
    assert {"heatmaps": 8} == {subject: n for subject, n in left_out.items() if n}


def test_heat_maps_can_be_switched_off(source: Any, serve: Any, scrape: Any) -> None:
    """Without classic buckets there are none, and nothing counts as left out."""
    found = scrape(serve(source, limits={"classic_buckets": False}))

    assert not [name for name, _ in found if name.endswith("_bucket")]
    assert {0.0} == set(with_label(found, "sidecar_series_truncated", "subject").values())


def test_equal_labels_never_make_equal_series(
    source: Any, make_feature: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Two revisions that share twelve characters are one series and a count, not a broken scrape."""
    layers = [LayerKey("m", "0123456789ab" + c * 52, "l", FeatureKind.NEURON) for c in "cd"]
    source.registered = [make_status(layer) for layer in layers]
    source.watched = [make_feature(layer.feature(1)) for layer in layers]

    found = scrape(serve(source))

    left_out = with_label(found, "sidecar_series_truncated", "subject")
    assert {
        "features": 1,
        "layers": 1,
        "audits": 0,
        "flags": 0,
        "histograms": 1,
        "heatmaps": 1,
    } == left_out


def test_revisions_named_by_people_are_kept_whole(
    source: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """Only a sha256 is cut: two names that begin alike stay two revisions."""
    names = ("production-2026-11", "production-2026-12")
    layers = [LayerKey("m", name, "l", FeatureKind.NEURON) for name in names]
    source.registered = [make_status(layer) for layer in layers]

    found = scrape(serve(source))

    assert set(names) == set(with_label(found, "sidecar_model_info", "revision"))


def test_views_and_scopes_are_told_apart(
    source: Any, make_feature: Any, make_status: Any, serve: Any, scrape: Any
) -> None:
    """One layer seen in three ways is three layers, and its features' labels say which."""
    ways = ((View.MAX, Scope.ALL), (View.MEAN, Scope.ALL), (View.MAX, Scope.BOS))
    layers = [LayerKey("m", "r", "l", FeatureKind.CHANNEL, *way) for way in ways]
    source.registered = [make_status(layer) for layer in layers]
    source.watched = [make_feature(layer.feature(7)) for layer in layers]

    found = scrape(serve(source))

    views = set(with_label(found, "sidecar_layer_rows_total", "view"))
    assert {"max", "mean", "max;bos"} == views
    features = set(with_label(found, "sidecar_feature_state", "feature"))
    assert {"7", "7;mean", "7;max;bos"} == features


@pytest.mark.parametrize(
    "section",
    ["features", "flags", "layers", "audits", "activations", "ingest", "jobs", "storage"],
)
def test_a_section_that_cannot_be_read_costs_only_itself(
    section: str, source: Any, serve: Any, scrape: Any
) -> None:
    """The rest of the scrape is served and every failure is counted."""
    source.broken = {section}
    server = serve(source)

    scrape(server)
    found = scrape(server)

    errors = with_label(found, "sidecar_collect_errors_total", "section")
    assert {section: 2.0} == {name: count for name, count in errors.items() if count}
    survivors = {
        "features": "sidecar_feature_state",
        "layers": "sidecar_layer_rows_total",
        "ingest": "sidecar_batches_received_total",
        "jobs": "sidecar_jobs",
        "storage": "sidecar_artifact_bytes",
        "flags": "sidecar_flag_unmatched",
        "audits": "sidecar_audit_state",
        "activations": "sidecar_feature_activation_levels_bucket",
    }
    there = {name for name, _ in found}
    assert survivors[section] not in there
    assert set(survivors.values()) - {survivors[section]} <= there


def test_reasons_from_hooks_cannot_grow_the_scrape(source: Any, serve: Any, scrape: Any) -> None:
    """A client that invents reasons gets them summed under ``other``; nothing is lost."""
    invented = {f"reason-{i:04}": 2 for i in range(500)}
    source.counts = replace(source.counts, hook_dropped=invented)

    found = with_label(scrape(serve(source)), "sidecar_hook_batches_dropped_total", "reason")

    assert len(found) <= 33
    assert sum(found.values()) == 1000
    assert found["other"] > 900


TEXT = st.text(st.characters(), max_size=80)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=TEXT, owner=TEXT, value=st.floats(), reason=TEXT)
def test_no_text_or_number_breaks_the_exposition(
    name: str,
    owner: str,
    value: float,
    reason: str,
    source: Any,
    make_feature: Any,
    make_layer: Any,
) -> None:
    """Quotes, line ends, surrogates, NaN and infinities come through, or are replaced or absent."""
    feature: FeatureKey = make_layer().feature(1)
    flag = Flag(name, "warning", owner)
    source.watched = [make_feature(feature, State.NORMAL, flag, last=value, threshold=value)]
    source.counts = IngestCounts(received=1, refused={reason: 1})
    registry = CollectorRegistry()
    registry.register(Collector(source, version="0", config_digest="0"))

    samples = [
        sample
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    ]

    labels = next(s.labels for s in samples if s.name == "sidecar_feature_info")
    assert name.encode("utf-8", "replace").decode() == labels["name"]
    refused = [s.value for s in samples if s.name == "sidecar_batches_refused_total"]
    assert sum(refused) == 1
