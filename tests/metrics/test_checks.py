"""The checks of people's own rule files."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.metrics import check_rules, render_rules

pytestmark = pytest.mark.unit

RULE = {
    "alert": "Mine",
    "expr": 'sidecar_feature_state{model="m"} == 3',
    "for": "1m30s",
    "labels": {"severity": "warning"},
    "annotations": {"runbook_url": "https://wiki/mine"},
}


def found(rule: object, *labels: str) -> list[str]:
    """Return what is wrong with a rule in a file of its own."""
    text = yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]})
    return [finding.what for finding in check_rules(text, labels).findings]


def test_what_is_shipped_is_right() -> None:
    """The rendered rules pass, and are counted."""
    checked = check_rules(render_rules())

    assert checked.findings == ()
    assert (checked.alerts, checked.recordings) == (24, 4)


def test_a_rule_of_ones_own_is_right() -> None:
    """Other people's metrics, the shipped recordings and a histogram's buckets may be used."""
    expr = (
        'feature:sidecar_feature_exceedance:ratio5m > 10 and on (job) up{cluster="eu"} # sidecar_x\n'
        'or sum by (le) (rate(sidecar_feature_activation_levels_bucket{le="1"}[5m])) > 1\n'
        "or histogram_count(sidecar_feature_activation) > 1 or mine:own > 1"
    )

    assert found(RULE) == found(RULE | {"expr": expr}) == []
    assert found({"record": "mine:sidecar_state:max", "expr": "max(sidecar_feature_state)"}) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"expr": "sidecar_feature_stat == 3"},
            "no metric is called `sidecar_feature_stat`; did you mean `sidecar_feature_state`?",
        ),
        (
            {"expr": 'sidecar_feature_state{featur="1"} == 3'},
            "`sidecar_feature_state` has no label `featur`; did you mean `feature`?",
        ),
        (
            {"expr": "max by (modell) (sidecar_feature_state) == 3"},
            "no metric has a label `modell`; did you mean `model`?",
        ),
        ({"expr": ""}, "needs an `expr`"),
        ({"for": "soon"}, "`for` is 'soon': need a duration such as 30s or 5m"),
        ({"labels": {"evidence_id": "x"}}, "label `evidence_id` has a new value for every event"),
        ({"labels": {"feature_url": "x"}}, "label `feature_url` has a new value for every event"),
        ({"labels": {"share": "{{ $value }}"}}, "label `share` takes its value from a number"),
        ({"labels": {"alertname": "x"}}, "label `alertname` is the name of the alert"),
        ({"labels": {"my-team": "x"}}, "label `my-team` is no label name"),
        ({"labels": ["x"]}, "`labels` is ['x']: need names and values"),
        ({"annotations": {"summary": "x"}}, "has no annotation `runbook_url`"),
        ({"annotation": {}}, "unknown key `annotation`; did you mean `annotations`?"),
        ({"record": "x"}, "needs either `alert` or `record`"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(change: dict[str, object], what: str) -> None:
    """One mistake is one finding, and names what was meant where that can be guessed."""
    (finding,) = found(RULE | change)

    assert finding.startswith(what)


def test_labels_that_prometheus_adds_can_be_allowed() -> None:
    """A label of people's own configuration is no mistake once it is named."""
    rule = RULE | {"expr": 'max by (cluster) (sidecar_feature_state{cluster="eu"}) == 3'}

    assert len(found(rule)) == 2
    assert found(rule, "cluster") == []


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("groups:\n  - name: [\n", "line 3", "no YAML"),
        ("rules: []", "file", "needs a list `groups`"),
        ("", "file", "needs a list `groups`"),
        ("groups: [{rules: []}]", "group 1", "needs a `name`"),
        ("groups: [{name: g, rules: []}]", "g", "has no `rules`"),
        ("groups: [{name: g, rule: []}]", "g", "unknown key `rule`; did you mean `rules`?"),
        ("groups: [3]", "group 1", "needs a `name`"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_place(text: str, where: str, what: str) -> None:
    """The first finding names the place and what is missing."""
    first = check_rules(text).findings[0]

    assert first.where == where
    assert first.what.startswith(what)


def test_a_group_that_is_there_twice_is_found() -> None:
    """Prometheus refuses such a file."""
    group = {"name": "g", "rules": [RULE]}
    findings = check_rules(yaml.safe_dump({"groups": [group, group]})).findings

    assert ["a group of this name is there before; names are unique in a file"] == [
        finding.what for finding in findings
    ]


@given(st.text(max_size=60) | st.text(st.sampled_from("groups:[]{}-name \n\"'&*#|>"), max_size=60))
def test_no_text_ends_the_check(text: str) -> None:
    """Whatever a file holds, there is an answer."""
    checked = check_rules(text)

    assert checked.findings or checked.alerts == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "rules", "alert", "expr", "labels", "annotations", "for"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_structure_ends_the_check(value: object) -> None:
    """Lists where names belong, and numbers where rules belong, are findings and no crash."""
    check_rules(yaml.safe_dump({"groups": value}))
    check_rules(yaml.safe_dump({"groups": [value]}))
    check_rules(yaml.safe_dump({"groups": [{"name": "g", "rules": [value]}]}))


def test_the_committed_file_is_right() -> None:
    """What people copy from the project passes as it is."""
    text = Path("deploy/prometheus/rules/sidecar.yaml").read_text(encoding="utf-8")

    assert check_rules(text).findings == ()
