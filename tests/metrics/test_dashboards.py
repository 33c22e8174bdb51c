"""The dashboard, checked by the rules of Grafana's own linter and some stricter ones."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from sidecar.audits import AuditState, NightState
from sidecar.detect import State
from sidecar.metrics.catalogue import BORROWED, FAMILIES, sample_names
from sidecar.metrics.dashboards import render_dashboard
from sidecar.metrics.tables import EXEMPLAR

pytestmark = pytest.mark.unit

DASHBOARD = json.loads(render_dashboard())
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
BUILT_IN = {"__rate_interval", "__field", "__data", "__all"}

# Units this dashboard may use; a typing error in one shows as a bare number in Grafana.
UNITS = {"none", "short", "percentunit", "s", "bytes", "Bps", "reqps"}


def panels() -> Iterator[dict[str, Any]]:
    """Yield every panel, also those of folded rows, without the rows themselves."""
    for panel in DASHBOARD["panels"]:
        inner = panel.get("panels", [])
        yield from inner if panel["type"] == "row" else [panel]


def all_ids() -> list[int]:
    """Return the ids of panels and rows."""
    return [p["id"] for p in DASHBOARD["panels"]] + [
        inner["id"] for p in DASHBOARD["panels"] for inner in p.get("panels", [])
    ]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield where an expression stands, and the expression as Prometheus would get it."""
    for panel in panels():
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", plain(target["expr"])
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], plain(note["expr"])


def plain(expr: str) -> str:
    """Return an expression with Grafana's variables filled in."""
    expr = expr.replace("$__rate_interval", "1m").replace("${console:raw}", "http://c")
    return re.sub(r"\$[a-z]+", ".+", expr)


def selected(expr: str) -> list[Any]:
    """Return the vector selectors of an expression."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expr), found.append)
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


@pytest.mark.parametrize(("where", "expr"), list(expressions()))
def test_a_query_asks_only_for_metrics_and_labels_that_exist(where: str, expr: str) -> None:
    """Every selector of every query names a family of the catalogue and labels it has."""
    known = {family.sample: set(family.labels) | {"job", "instance"} for family in FAMILIES}

    asked = selected(expr)

    assert asked, where
    for one in asked:
        assert one.name in sample_names(), f"{where}: {one.name}"
        if one.name not in BORROWED:
            assert {m.name for m in one.matchers.matchers} <= known[one.name], where


@pytest.mark.parametrize(("where", "expr"), list(expressions()))
def test_a_query_is_written_as_it_should_be(where: str, expr: str) -> None:
    """Counters are only looked at as rates and increases; what Prometheus 2.42 lacks is not used."""
    counters = re.findall(r"\b\w+_total\b", expr)
    rated = re.findall(r"(?:rate|increase)\((\w+_total)\{", expr)

    assert counters == rated, where
    assert not re.search(r"histogram_(avg|stddev|stdvar)|\btopk\b", expr), where


def test_every_family_is_on_the_dashboard_or_deliberately_not() -> None:
    """What is exported is looked at; the exceptions have a reason."""
    asked = {one.name for _, expr in expressions() for one in selected(expr)}

    unseen = {family.sample for family in FAMILIES} - asked
    reasons = {
        "sidecar_audit_regressed": "serves an alert; the nights and what failed of them are shown",
        "sidecar_artifacts": "their bytes are shown, against the limit",
        "sidecar_artifacts_removed_total": "as configured, and nobody is woken by it",
        "sidecar_batches_accepted_total": "what becomes of them is shown",
        "sidecar_feature_activation": "exists only where native histograms are switched on",
        "sidecar_feature_state_changed_timestamp_seconds": "the state timeline shows it",
        "sidecar_flag_unmatched": "an alert; there is no feature to show",
        "sidecar_job_gpu_free_bytes": "only where jobs share a GPU, whose exporter shows more",
        "sidecar_jobs_held_back_total": "the waiting jobs are shown, and each says what for",
        "sidecar_layer_features": "fills the variables",
        "sidecar_layer_flagged_features": "serves an alert",
        "sidecar_layer_memory_bytes": "the sum of all is shown, against its limit",
        "sidecar_layer_rows_total": "requests are the unit of every test",
        "sidecar_recording_bytes": "bounded, and nobody is woken by a recording",
        "sidecar_recording_limit_bytes": "as above",
        "sidecar_windows_recorded_total": "those that could not be are shown",
        "sidecar_jobs_quarantined_total": "each is a failed job, and those are shown",
        "sidecar_layer_baseline_requests": "the baseline panel shows whether it is enough",
        "sidecar_hook_batches_sent_total": "what arrives is shown",
    }
    assert set(reasons) == unseen


def test_identity_is_stable() -> None:
    """Alerts, bookmarks and other dashboards link here: the uid never changes."""
    assert DASHBOARD["uid"] == "sidecar-overview"
    assert DASHBOARD["id"] is None
    assert DASHBOARD["editable"] is False
    assert DASHBOARD["schemaVersion"] == 39
    assert DASHBOARD["graphTooltip"] == 1
    assert DASHBOARD["tags"] == ["sidecar"]
    assert "__inputs" not in DASHBOARD
    assert "gnetId" not in DASHBOARD


def test_panel_ids_are_unique() -> None:
    """Grafana drops one of two panels with equal ids."""
    ids = all_ids()

    assert len(ids) == len(set(ids))
    assert all(isinstance(number, int) for number in ids)


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_is(panel: dict[str, Any]) -> None:
    """Title, description with the metric's name, unit, and words for when there is no data."""
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert panel["datasource"] == SOURCE
    if panel["type"] == "text":
        return
    defaults = panel["fieldConfig"]["defaults"]
    assert re.search(r"Metrics?: `", panel["description"]), "the description names its metric"
    assert defaults["unit"] in UNITS or defaults["unit"].startswith("suffix:")
    assert defaults["noValue"]
    assert panel["targets"]
    assert {str(SOURCE)} == {str(target["datasource"]) for target in panel["targets"]}
    named = set(re.findall(r"`(\w+)`", panel["description"])) & sample_names()
    asked = {one.name for t in panel["targets"] for one in selected(plain(t["expr"]))}
    assert named & asked


def test_panels_do_not_overlap() -> None:
    """Every cell of the grid belongs to one panel, and none reaches over the right edge."""
    for group in (
        DASHBOARD["panels"],
        *[p["panels"] for p in DASHBOARD["panels"] if p.get("panels")],
    ):
        taken: dict[tuple[int, int], str] = {}
        for panel in group:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert (x, y) not in taken, f"{panel['title']} on {taken.get((x, y))}"
                    taken[x, y] = panel["title"]


def test_the_first_row_answers_whether_all_is_well() -> None:
    """At most eight stats come first, the firing alerts before all others."""
    first = [panel for panel in DASHBOARD["panels"] if panel["gridPos"]["y"] == 0]

    assert [panel["type"] for panel in first] == ["stat"] * 8
    assert first[0]["title"] == "Firing alerts"


def test_opening_costs_few_queries() -> None:
    """Before a folded row is opened, at most 25 queries are asked."""
    shown = [t for panel in DASHBOARD["panels"] for t in panel.get("targets", [])]

    assert len(shown) <= 25


def test_variables_are_chained_and_refreshed() -> None:
    """Each variable narrows the next, fills itself on every change of the time range, and exists."""
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    chain = ["job", "instance", "model", "revision", "layer", "kind", "feature", "portrait"]

    assert ["datasource", *chain, "console", "filters"] == list(variables)
    assert variables["datasource"]["type"] == "datasource"
    assert variables["filters"]["type"] == "adhoc"
    for place, name in enumerate(chain):
        query = variables[name]["query"]["query"]
        used = set(re.findall(r"\$([a-z]+)", query))
        assert variables[name]["refresh"] == 2
        assert variables[name]["multi"] is True
        assert used <= set(chain[:place])
        assert place == 0 or chain[place - 1] in used
        ((expr, _),) = re.findall(r"label_values\((.*), (\w+)\)", query)
        assert selected(plain(expr))[0].name in sample_names()


def test_only_variables_that_exist_are_used() -> None:
    """A variable that is not defined would stand as text in queries and links."""
    defined = {v["name"] for v in DASHBOARD["templating"]["list"]} | BUILT_IN

    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(DASHBOARD)))

    assert used <= defined


def test_features_and_audits_lead_to_the_console() -> None:
    """State, table and graphs of one link to its page, with the labels of the series."""
    linked = {
        panel["title"]: panel["fieldConfig"]["defaults"]["links"][0]["url"]
        for panel in panels()
        if panel.get("fieldConfig", {}).get("defaults", {}).get("links")
    }

    by_labels = (
        "${console:raw}/f/${__field.labels.model}@${__field.labels.revision}/${__field.labels.layer}"
        "/${__field.labels.kind}/${__field.labels.feature:percentencode}"
    )
    by_audit = "${console:raw}/audits/${__field.labels.audit:percentencode}"
    assert linked == {
        "Audits": "${console:raw}/audits/${__data.fields.audit:percentencode}",
        "Nights": by_audit,
        "Failed checks": by_audit,
        "Checks against their limits": by_audit,
        "Units that are not the same": by_audit,
        "Overdue": by_audit,
        "State": by_labels,
        "Flagged features": "${console:raw}/f/${__data.fields.path}",
        "Share of requests beyond the threshold": by_labels,
        "Newest extreme against the threshold": by_labels,
        "Evidence against the threshold": by_labels,
        "Share against what is tolerated": by_labels,
        "Certain conditions": by_labels,
        "Drift: Jensen-Shannon distance of an hour": by_labels,
        "Drift: how far values moved": by_labels,
    }


def test_spikes_show_their_evidence() -> None:
    """Exemplars are asked for where they are, and the data source leads from one to the console."""
    source = yaml.safe_load(Path("grafana/provisioning/datasources/prometheus.yaml").read_text())

    asked = [p["title"] for p in panels() for t in p.get("targets", []) if t["exemplar"]]
    assert asked == ["Spikes"]
    (link,) = source["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["name"] == EXEMPLAR[0]
    # Two dollars: one alone is a variable of the environment in Grafana's provisioning files.
    url = link["url"].replace("$${__value.raw}", "ev-1")
    for name in ("model", "revision", "layer", "kind", "feature"):
        url = url.replace(f"$${{__data.fields.{name}}}", f"<{name}>")
    page = "<model>@<revision>/<layer>/<kind>/<feature>/evidence?record=ev-1"
    assert url == f"http://127.0.0.1:8080/f/{page}"


def test_states_are_words_as_well_as_colours() -> None:
    """The timeline maps every state of the detector to its own word and colour."""
    timeline = next(p for p in panels() if p["title"] == "State")

    options = timeline["fieldConfig"]["defaults"]["mappings"][0]["options"]
    words = {int(value): option["text"] for value, option in options.items()}
    assert words == {state.code: str(state) for state in State}
    assert len({option["color"] for option in options.values()}) == 5


def test_the_state_of_an_audit_is_a_word_as_well_as_a_colour() -> None:
    """Numbers of the metrics are the states that audits and their nights may have."""
    found = {panel["title"]: panel for panel in panels()}
    table = next(
        one["properties"][0]["value"][0]["options"]
        for one in found["Audits"]["fieldConfig"]["overrides"]
        if one["matcher"]["options"] == "State"
    )
    nights = found["Nights"]["fieldConfig"]["defaults"]["mappings"][0]["options"]

    words = {int(number): one["text"] for number, one in table.items()}
    assert words == dict(enumerate(map(str, AuditState)))
    assert len({one["color"] for one in table.values()}) == len(AuditState)
    judged = {words[int(number)] for number in nights}
    assert judged == {str(state) for state in NightState if state.judged}
    assert all(nights[number] | {"index": 0} == table[number] | {"index": 0} for number in nights)


def test_the_portrait_survives_grafanas_sanitiser() -> None:
    """The text panel uses only what an unchanged Grafana keeps: no script, no style, no relative path."""
    (portrait,) = (p for p in panels() if p["type"] == "text")

    content = portrait["options"]["content"]
    assert '<img src="${console:raw}/f/${portrait:raw}/portrait.png"' in content
    assert "alt=" in content
    assert not re.search(r"<(script|style|svg|iframe)|\son\w+=|srcset|position", content)
    assert portrait["repeat"] == "portrait"


def test_annotations_can_be_told_apart() -> None:
    """Firing alerts and new revisions are marked, each kind in its own colour."""
    notes = {note["name"]: note for note in DASHBOARD["annotations"]["list"]}

    assert {"Firing alerts", "New revisions"} <= set(notes)
    assert len({note["iconColor"] for note in notes.values()}) == len(notes)
    assert all(note["datasource"] == SOURCE for note in notes.values())


def test_the_console_address_is_the_operators() -> None:
    """The default of the variable ``console`` is the argument, without its final slash."""
    dashboard = json.loads(render_dashboard("https://console.example/"))

    (console,) = (v for v in dashboard["templating"]["list"] if v["name"] == "console")
    assert console["query"] == "https://console.example"
