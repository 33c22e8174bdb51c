"""Renders the catalogue's alerts as a Prometheus rule file."""

from typing import Any

import yaml

from sidecar.metrics.alerts import ALERTS, JOB, Alert, Subject

DASHBOARD_UID = "sidecar-overview"
"""Links in alerts and in people's bookmarks hang on it: it never changes."""

CONSOLE_URL = "http://127.0.0.1:8080"
GRAFANA_URL = "http://127.0.0.1:3000"
RUNBOOK_URL = "http://127.0.0.1:9464/runbooks"
"""Where the committed files point: everything on one machine, at the default ports."""

_HEADER = """\
# Generated from sidecar/metrics/alerts.py by tools/golden.py; do not edit.
# Each alert's runbook is docs/alerts/<name>.md.
"""

_FEATURE_PATH = (
    "{{ $labels.model }}@{{ $labels.revision }}/{{ $labels.layer }}/{{ $labels.kind }}"
    "/{{ $labels.feature }}"
)
_VARIABLES = {
    Subject.FEATURE: ("model", "revision", "layer", "kind", "feature"),
    Subject.LAYER: ("model", "revision", "layer", "kind"),
    Subject.SIDECAR: (),
}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as literal blocks, as people write expressions."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def render_rules(
    console_url: str = CONSOLE_URL,
    grafana_url: str = GRAFANA_URL,
    runbook_url: str = RUNBOOK_URL,
    *,
    for_seconds: int = 30,
    job: str = "sidecar",
) -> str:
    """Return the alert rules as YAML, ready for ``rule_files``.

    Args:
        console_url: How people reach the console; pages and portraits of features are under it.
        grafana_url: How people reach Grafana.
        runbook_url: Where the runbooks are, one ``/<alert>`` each. The metrics server serves them.
        for_seconds: How long a feature spikes before the alert fires; at least two scrapes. It still
            fires for twice as long afterwards, so that one calm window does not end it.
        job: Name of the scrape job of the sidecars in Prometheus.

    Returns:
        Text that is equal for equal arguments.
    """
    links = (console_url.rstrip("/"), grafana_url.rstrip("/"), runbook_url.rstrip("/"))
    groups = [
        {"name": f"sidecar-{subject}", "rules": [_rule(a, links, for_seconds, job) for a in alerts]}
        for subject, alerts in _by_subject().items()
    ]
    body = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=10_000)
    return _HEADER + body


def _by_subject() -> dict[Subject, list[Alert]]:
    return {subject: [a for a in ALERTS if a.subject is subject] for subject in Subject}


def _rule(alert: Alert, links: tuple[str, str, str], for_seconds: int, job: str) -> dict[str, Any]:
    hold = for_seconds if alert.for_seconds is None else alert.for_seconds
    keep = 2 * hold if alert.keep_firing_seconds is None else alert.keep_firing_seconds
    expr = alert.expr.replace(JOB, f'job="{job}"')
    rule: dict[str, Any] = {"alert": alert.name, "expr": expr}
    if hold:
        rule["for"] = f"{hold}s"
    if keep:
        rule["keep_firing_for"] = f"{keep}s"
    if alert.severity:
        rule["labels"] = {"severity": alert.severity}
    rule["annotations"] = _annotations(alert, *links)
    return rule


def _annotations(alert: Alert, console: str, grafana: str, runbooks: str) -> dict[str, str]:
    found = {"summary": alert.summary, "description": alert.description}
    if alert.subject is Subject.FEATURE:
        found["feature_url"] = f"{console}/f/{_FEATURE_PATH}"
        found["portrait_url"] = f"{console}/f/{_FEATURE_PATH}/portrait.png"
    query = "&".join(
        f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in _VARIABLES[alert.subject]
    )
    found["dashboard_url"] = f"{grafana}/d/{DASHBOARD_UID}" + (f"?{query}" if query else "")
    found["runbook_url"] = f"{runbooks}/{alert.name}"
    return found
