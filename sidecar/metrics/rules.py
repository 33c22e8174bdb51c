"""Renders the catalogue's recordings and alerts as a Prometheus rule file."""

import math
from typing import Any

import yaml

from sidecar.metrics.alerts import ALERTS, JOB, RECORDINGS, Alert, Recording, Subject

DASHBOARD_UID = "sidecar-overview"
"""Links in alerts and in people's bookmarks hang on it: it never changes."""

CONSOLE_URL = "http://127.0.0.1:8080"
GRAFANA_URL = "http://127.0.0.1:3000"
RUNBOOK_URL = "http://127.0.0.1:9464/runbooks"
"""Where the committed files point: everything on one machine, at the default ports."""

FOR_SECONDS = 0
"""How long a spike lasts before it is told, in the committed files: the detector has bounded false alarms."""

KEEP_SECONDS = 120
"""How long it is told after it was last seen, in the committed files: a restart of the daemon is shorter."""

WINDOW_SECONDS = 10.0
"""Their detection window: the default of ``statistics.window_seconds``."""

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
    Subject.AUDIT: ("model",),
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
    for_seconds: int = FOR_SECONDS,
    keep_seconds: int = KEEP_SECONDS,
    window_seconds: float = WINDOW_SECONDS,
    job: str = "sidecar",
) -> str:
    """Return the recording and alert rules as YAML, ready for ``rule_files``.

    Args:
        console_url: How people reach the console; pages and portraits of features are under it.
        grafana_url: How people reach Grafana.
        runbook_url: Where the runbooks are, one ``/<alert>`` each. The metrics server serves them.
        for_seconds: How long a feature spikes, or a layer is shifted, before the alert fires. Above a
            detection window, a scrape and an evaluation together it also holds back features that spike
            a window before their layer is seen to shift.
        keep_seconds: How long those alerts still fire when there is nothing to fire on any more. Longer
            than a restart of the daemon, so that it neither ends an alert nor has it told again.
        window_seconds: Detection window of the sidecars, ``statistics.window_seconds``.
        job: Name of the scrape job of the sidecars in Prometheus.

    Returns:
        Text that is equal for equal arguments.
    """
    links = (console_url.rstrip("/"), grafana_url.rstrip("/"), runbook_url.rstrip("/"))
    groups: list[dict[str, Any]] = [
        {"name": "sidecar-recordings", "rules": [_recording(one) for one in RECORDINGS]}
    ]
    for subject, alerts in _by_subject().items():
        rules = [
            _rule(
                alert, links, waiting_seconds(alert, for_seconds, window_seconds), keep_seconds, job
            )
            for alert in alerts
        ]
        groups.append({"name": f"sidecar-{subject}", "rules": rules})
    body = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=10_000)
    return _HEADER + body


def _by_subject() -> dict[Subject, list[Alert]]:
    return {subject: [a for a in ALERTS if a.subject is subject] for subject in Subject}


def _recording(recording: Recording) -> dict[str, Any]:
    return {"record": recording.name, "expr": recording.expr}


def waiting_seconds(alert: Alert, for_seconds: int, window_seconds: float) -> int:
    """Return how long an alert's condition holds before it fires, in rules rendered with these."""
    hold = for_seconds if alert.for_seconds is None else alert.for_seconds
    return hold + math.ceil(alert.for_windows * window_seconds)


def _rule(
    alert: Alert, links: tuple[str, str, str], hold: int, keep: int, job: str
) -> dict[str, Any]:
    if alert.for_windows:
        keep = 2 * hold
    elif alert.keep_firing_seconds is not None:
        keep = alert.keep_firing_seconds
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
    if alert.subject is Subject.AUDIT:
        found["audit_url"] = f"{console}/audits/{{{{ $labels.audit }}}}"
        found["report_url"] = f"{found['audit_url']}/latest"
    if alert.with_evidence:
        found["evidence_url"] = f"{console}/f/{_FEATURE_PATH}/evidence"
    query = "&".join(
        f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in _VARIABLES[alert.subject]
    )
    found["dashboard_url"] = f"{grafana}/d/{DASHBOARD_UID}" + (f"?{query}" if query else "")
    found["runbook_url"] = f"{runbooks}/{alert.name}"
    return found
