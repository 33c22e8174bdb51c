"""Checks rule files that people write over the sidecar's metrics, beyond what promtool knows."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

from sidecar.metrics.alerts import RECORDINGS
from sidecar.metrics.catalogue import FAMILIES, sample_names

_GROUP_KEYS = {"name", "interval", "limit", "query_offset", "partial_response_strategy", "rules"}
_ALERT_KEYS = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
_RECORD_KEYS = {"record", "expr", "labels"}

# Each value of such a label is an alert of its own, and a time series.
_UNBOUNDED = re.compile(r"(request|trace|span|evidence)_?id|value|.*_url", re.IGNORECASE)

_DURATION = re.compile(r"(\d+(ms|[smhdwy]))+|0")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_COMMENT = re.compile(r"#.*")
_OURS = re.compile(r"(?<![\w:])[a-zA-Z_:][\w:]*")
_SELECTED = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")

_ADDED = frozenset({"job", "instance"})  # by Prometheus to everything it scrapes
_OF_ALERTS = frozenset({"alertname", "alertstate", "severity"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong in a rule file.

    Attributes:
        where: Group and rule, or the place in the file.
        what: What is wrong, and what to do.
    """

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to.

    Attributes:
        alerts: Alerts in the file.
        recordings: Recording rules in it.
        findings: What is wrong; empty: nothing.
    """

    alerts: int
    recordings: int
    findings: tuple[Finding, ...]


def check_rules(text: str, labels: Collection[str] = ()) -> Checked:
    """Check a rule file: its form, names of metrics and labels, and what an alert must have.

    PromQL is not parsed; promtool does that. Metrics that are not the sidecar's are taken as they come.

    Args:
        text: YAML, as for ``rule_files``.
        labels: Label names that people's own configuration adds, such as ``cluster``.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "file"
        return Checked(0, 0, (Finding(where, f"no YAML: {getattr(error, 'problem', error)}"),))
    groups = document.get("groups") if isinstance(document, dict) else None
    if not isinstance(groups, list):
        return Checked(0, 0, (Finding("file", "needs a list `groups`"),))
    rules = [rule for group in groups for rule in _rules(group)]
    names = {str(rule["record"]) for rule in rules if "record" in rule}
    known = _Known(names, frozenset(labels))
    findings = tuple(_findings(groups, known))
    return Checked(sum("alert" in rule for rule in rules), len(names), findings)


class _Known:
    """Names that rules may use."""

    def __init__(self, recorded: Collection[str], labels: frozenset[str]) -> None:
        shipped = {recording.name for recording in RECORDINGS}
        natives = {family.name for family in FAMILIES if "histogram" in family.type}
        self.names = sample_names() | natives | shipped | set(recorded)
        self.extra = _ADDED | labels
        self.of_family: Mapping[str, frozenset[str]] = {
            name: frozenset(family.labels) | self.extra
            for family in FAMILIES
            for name in (family.sample, family.name)
        }
        every = (label for family in FAMILIES for label in family.labels)
        self.every = frozenset(every) | self.extra | _OF_ALERTS


def _rules(group: Any) -> list[dict[str, Any]]:
    rules = group.get("rules") if isinstance(group, dict) else None
    return [rule for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []


def _findings(groups: list[Any], known: _Known) -> Iterator[Finding]:
    seen: set[str] = set()
    for place, group in enumerate(groups):
        name = str(group.get("name", "")) if isinstance(group, dict) else ""
        where = name or f"group {place + 1}"
        if not name:
            yield Finding(where, "needs a `name`")
        elif name in seen:
            yield Finding(where, "a group of this name is there before; names are unique in a file")
        seen.add(name)
        if isinstance(group, dict):
            yield from _unknown_keys(where, group, _GROUP_KEYS)
        if not _rules(group):
            yield Finding(where, "has no `rules`")
        for number, rule in enumerate(_rules(group)):
            title = rule.get("alert") or rule.get("record") or f"rule {number + 1}"
            for what in _wrong(rule, known):
                yield Finding(f"{where}/{title}", what)


def _unknown_keys(where: str, given: Mapping[str, Any], known: set[str]) -> Iterator[Finding]:
    for key in sorted(set(map(str, given)) - known):
        yield Finding(where, f"unknown key `{key}`{_meant(key, known)}")


def _wrong(rule: Mapping[str, Any], known: _Known) -> Iterator[str]:
    """Yield what is wrong with one rule."""
    if ("alert" in rule) == ("record" in rule):
        yield "needs either `alert` or `record`"
        return
    keys = _ALERT_KEYS if "alert" in rule else _RECORD_KEYS
    for key in sorted(set(map(str, rule)) - keys):
        yield f"unknown key `{key}`{_meant(key, keys)}"
    expr = rule.get("expr")
    if not isinstance(expr, str) or not expr.strip():
        yield "needs an `expr`"
    else:
        yield from _wrong_in_query(expr, known)
    for key in ("for", "keep_firing_for"):
        if key in rule and not _DURATION.fullmatch(str(rule[key])):
            yield f"`{key}` is {rule[key]!r}: need a duration such as 30s or 5m"
    yield from _wrong_labels(rule.get("labels") or {})
    if "alert" in rule:
        annotations = rule.get("annotations") or {}
        if not isinstance(annotations, dict) or not annotations.get("runbook_url"):
            yield "has no annotation `runbook_url`: whoever is woken needs to know what to do"


def _wrong_labels(labels: Any) -> Iterator[str]:
    if not isinstance(labels, dict):
        yield f"`labels` is {labels!r}: need names and values"
        return
    for name, value in labels.items():
        if not _LABEL.fullmatch(str(name)) or str(name).startswith("__"):
            yield f"label `{name}` is no label name"
        elif name == "alertname":
            yield "label `alertname` is the name of the alert and cannot be set"
        elif _UNBOUNDED.fullmatch(str(name)):
            yield f"label `{name}` has a new value for every event: make it an annotation"
        elif "$value" in str(value) or "query" in str(value):
            yield f"label `{name}` takes its value from a number: make it an annotation"


def _wrong_in_query(expr: str, known: _Known) -> Iterator[str]:
    plain = _COMMENT.sub("", _STRING.sub('""', expr))
    names = dict.fromkeys(name for name in _OURS.findall(plain) if "sidecar_" in name)
    for name in names:
        if name not in known.names:
            yield f"no metric is called `{name}`{_meant(name, known.names)}"
    for name, matchers in _SELECTED.findall(plain):
        there = known.of_family.get(name, frozenset())
        for label in _MATCHER.findall(matchers):
            if there and label not in there:
                yield f"`{name}` has no label `{label}`{_meant(label, there)}"
    if names:
        for listed in _GROUPED.findall(plain):
            for label in _LABEL.findall(listed):
                if label not in known.every:
                    yield f"no metric has a label `{label}`{_meant(label, known.every)}"


def _meant(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean `{close[0]}`?" if close else ""
