"""The documents that are generated from the catalogue."""

import re

import pytest

from sidecar.audits import CHECKS, NightState
from sidecar.compare.gate import FATES
from sidecar.metrics import render_files
from sidecar.metrics.alerts import ALERTS, CHECK_WORDS
from sidecar.metrics.catalogue import (
    ANOMALY,
    AUDIT_CHECKS,
    AUDIT_FATES,
    AUDIT_SERIES,
    FAMILIES,
    FEATURE,
    FEATURE_SERIES,
)
from sidecar.metrics.documents import render_metric_docs, render_runbook

pytestmark = pytest.mark.unit

HEADINGS = [
    "Meaning",
    "Impact",
    "Diagnosis",
    "Mitigation",
    "What the picture shows",
    "When to silence",
]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_runbook_has_its_six_headings(alert: object) -> None:
    """Whoever is woken finds the same six sections in the same order."""
    text = render_runbook(alert.name)

    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert alert.expr in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_there_is_no_runbook_of_an_unknown_alert() -> None:
    """A name nobody knows gives an empty text, whatever it is made of."""
    assert {render_runbook(name) for name in ("", "Nothing", "../errors", "SidecarDown ")} == {""}


def test_the_metric_document_names_every_family_and_alert() -> None:
    """Nothing is exported or raised that the document does not explain."""
    text = render_metric_docs()

    rows = set(
        re.findall(
            r"^\| `(\w+)` \| (?:counter|gauge|info|histogram|native histogram) ", text, re.MULTILINE
        )
    )
    assert rows == {family.name for family in FAMILIES}
    assert set(re.findall(r"\(alerts/(\w+)\.md\)", text)) == {alert.name for alert in ALERTS}


def test_the_stated_cost_of_a_feature_is_right() -> None:
    """The number of series a flagged feature costs is counted, not remembered."""
    plain = [f for f in FAMILIES if "histogram" not in f.type and set(FEATURE) <= set(f.labels)]
    plain.remove(ANOMALY)  # of features that nobody flagged
    several = {"condition": 4, "reference": 2, "side": 2}

    assert sum(several.get(family.labels[-1], 1) for family in plain) == FEATURE_SERIES == 25
    assert f"at most {FEATURE_SERIES} series" in render_metric_docs()


def test_the_stated_cost_of_an_audit_is_right() -> None:
    """Every check, fate and state is a series, once."""
    each = {"check": CHECKS, "fate": FATES, "state": [s for s in NightState if s.judged]}
    families = [f for f in FAMILIES if f.name.startswith("sidecar_audit_")]

    found = sum(len(each.get(family.labels[-1], "x")) for family in families)
    assert found == AUDIT_SERIES == 38
    assert f"a nightly audit {AUDIT_SERIES}" in render_metric_docs()
    assert AUDIT_CHECKS == CHECKS == tuple(CHECK_WORDS)
    assert set(AUDIT_FATES) == set(FATES)


def test_names_follow_the_conventions() -> None:
    """Prefix, suffixes and uniqueness are as Prometheus' users expect them."""
    names = [family.name for family in FAMILIES]

    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"sidecar_[a-z]+(_[a-z]+)*(_log10)?", family.name)
        assert (family.type == "counter") == family.name.endswith("_total")
        assert (family.type == "info") == family.name.endswith("_info")
        assert family.help.endswith(".")
        assert not {"request", "request_id", "id"} & set(family.labels)


def test_rendering_is_deterministic() -> None:
    """Two renderings are equal, byte for byte."""
    assert render_files() == render_files()
