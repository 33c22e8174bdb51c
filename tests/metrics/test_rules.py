"""The rules as Prometheus will read them."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.metrics import render_rules
from sidecar.metrics.alerts import ALERTS, RECORDINGS, Alert, Recording
from sidecar.metrics.catalogue import BORROWED, FAMILIES, sample_names
from sidecar.metrics.runbooks import RUNBOOKS

pytestmark = pytest.mark.unit

SENTENCE = re.compile(r"[A-Z][^.{}]*\.")


def rules_of(text: str) -> dict[str, Any]:
    """Return the alert rules of a file by alert."""
    groups = yaml.safe_load(text)["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def selected(expr: str) -> list[Any]:
    """Return the vector selectors of an expression."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expr), found.append)
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


@pytest.mark.parametrize("alert", [*ALERTS, *RECORDINGS], ids=lambda alert: alert.name)
def test_a_rule_asks_only_for_metrics_that_exist(alert: Alert | Recording) -> None:
    """Every metric name in an expression is of the catalogue, with labels that it has."""
    known = {family.name: set(family.labels) | {"job", "instance"} for family in FAMILIES}

    asked = selected(alert.expr)

    assert asked
    for one in asked:
        assert one.name in sample_names()
        if one.name not in BORROWED:
            assert {matcher.name for matcher in one.matchers.matchers} <= known[one.name]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_tells_people_what_they_need(alert: Alert) -> None:
    """The summary is one static sentence, the severity is known, and a runbook is there."""
    book = RUNBOOKS[alert.name]

    assert alert.name.startswith("Sidecar")
    assert SENTENCE.fullmatch(alert.summary)
    assert "{{" in alert.description
    assert alert.severity in ("", "info", "warning", "critical")
    texts = (book.meaning, book.impact, book.diagnosis, book.mitigation, book.picture, book.silence)
    assert all(len(text) > 20 for text in texts)


def test_every_runbook_belongs_to_an_alert() -> None:
    """Alerts and runbooks have the same names, each once."""
    assert sorted(RUNBOOKS) == sorted(alert.name for alert in ALERTS)


def test_runbooks_name_only_metrics_that_exist() -> None:
    """A query pasted from a runbook finds something."""
    texts = "\n".join(str(book) for book in RUNBOOKS.values())
    named = set(re.findall(r"\b(?:sidecar_[a-z_]+|process_[a-z_]+)", texts))

    assert named <= sample_names()
    assert len(named) > 10


def test_links_start_with_the_given_addresses() -> None:
    """Console, Grafana and runbooks are where the operator says; a final slash does no harm."""
    rules = rules_of(
        render_rules("https://console.example/", "https://grafana.example/g", "https://wiki/run/")
    )

    notes = rules["SidecarFeatureSpike"]["annotations"]
    feature = (
        "https://console.example/f/{{ $labels.model }}@{{ $labels.revision }}/{{ $labels.layer }}"
        "/{{ $labels.kind }}/{{ $labels.feature }}"
    )
    assert feature == notes["feature_url"]
    assert f"{feature}/portrait.png" == notes["portrait_url"]
    assert f"{feature}/evidence" == notes["evidence_url"]
    assert notes["dashboard_url"].startswith(
        "https://grafana.example/g/d/sidecar-overview?var-model="
    )
    assert notes["runbook_url"] == "https://wiki/run/SidecarFeatureSpike"
    assert "127.0.0.1" not in render_rules("http://a", "http://b", "http://c")


def test_only_alerts_with_a_record_lead_to_the_evidence() -> None:
    """Evidence is kept of spikes alone: no other alert, and no other runbook, sends anybody to it."""
    rules = rules_of(render_rules())

    found = [name for name, rule in rules.items() if "evidence_url" in rule["annotations"]]
    assert found == ["SidecarFeatureSpike"]
    assert found == [name for name, book in RUNBOOKS.items() if "evidence_url" in str(book)]


def test_the_waiting_time_is_the_operators() -> None:
    """``for_seconds`` sets how long a spike or a shift lasts, and ``keep_seconds`` how long it is kept."""
    for name in ("SidecarFeatureSpike", "SidecarLayerShift"):
        usual = rules_of(render_rules())[name]
        waits = rules_of(render_rules(for_seconds=5))[name]
        kept = rules_of(render_rules(keep_seconds=7))[name]

        assert ("for" in usual, usual["keep_firing_for"]) == (False, "120s")
        assert (waits["for"], waits["keep_firing_for"]) == ("5s", "120s")
        assert ("for" in kept, kept["keep_firing_for"]) == (False, "7s")
        assert "keep_firing_for" not in rules_of(render_rules(keep_seconds=0))[name]


def test_what_hangs_on_a_window_waits_for_windows() -> None:
    """With longer windows a condition that is held for six of them must hold for longer."""
    rules = [rules_of(render_rules(window_seconds=w)) for w in (2.5, 10.0, 60.0)]

    waits = [rule["SidecarFeatureNeverSeen"]["for"] for rule in rules]
    assert waits == ["23s", "90s", "540s"]
    kept = [rule["SidecarFeatureNeverSeen"]["keep_firing_for"] for rule in rules]
    assert kept == ["46s", "180s", "1080s"]


def test_the_scrape_job_can_have_another_name() -> None:
    """Rules about the targets themselves follow the name of the job."""
    rules = rules_of(render_rules(job="models/sidecar"))

    assert rules["SidecarDown"]["expr"] == 'up{job="models/sidecar"} == 0'
    assert rules["SidecarAbsent"]["expr"] == 'absent(up{job="models/sidecar"})'


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40), st.integers(0, 86_400))
def test_any_address_and_time_gives_readable_yaml(address: str, seconds: int) -> None:
    """Quotes, colons and hashes in an address never break the file."""
    rules = rules_of(render_rules(address, address, address, for_seconds=seconds))

    assert sorted(rules) == sorted(a.name for a in ALERTS)
    base = address.rstrip("/")
    assert rules["SidecarDown"]["annotations"]["runbook_url"] == f"{base}/SidecarDown"


def test_promtool_accepts_what_is_rendered(tmp_path: Path, need: Callable[[str], str]) -> None:
    """Prometheus' own checker takes the rules, also with odd arguments."""
    path = tmp_path / "rules.yaml"
    path.write_text(render_rules("https://c.example/x?y={z}", for_seconds=0, job="models/side-car"))

    done = subprocess.run(
        [need("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS) + len(RECORDINGS)} rules found" in done.stdout
