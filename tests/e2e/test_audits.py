"""From broken weights to a page: a real night, Prometheus, Alertmanager, and the report that the page links."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sidecar.audits import Night
from sidecar.metrics import render_rules
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.alerting import Pager, alerting
from tests.audits.conftest import DAY, HALF_PAST_TWO, HOUR, settings_in, write_weights
from tests.prometheus import eventually

pytestmark = pytest.mark.e2e

PATIENCE = 120.0
"""For the jobs of a night: each is a process that imports torch, on two cores that others use."""


def judged(running: RunningDaemon, number: int) -> Night:
    """Wait until so many nights are judged, and return the newest."""

    def newest() -> Night | None:
        nights = [one for one in running.daemon.audits.status("nightly").nights if one.ended_at]
        return nights[0] if len(nights) == number else None

    return wait_until(newest, PATIENCE, f"night {number}")


def told(pager: Pager, name: str) -> dict[str, Any] | None:
    """Return the first firing alert of a name that people were told."""
    alerts = (alert for _, message in pager.messages for alert in message["alerts"])
    return next(
        (a for a in alerts if a["labels"]["alertname"] == name and a["status"] == "firing"), None
    )


def test_a_night_that_regresses_pages_with_what_failed_and_a_report(tmp_path: Path) -> None:
    """The night is started in the console; the page names the check and leads to the report."""
    clock = FakeClock(HALF_PAST_TWO - HOUR)
    with running_daemon(tmp_path / "state", settings_in(tmp_path), clock=clock) as running:
        rules = render_rules(running.console_url)
        port = int(urlsplit(running.metrics_url).port or 0)
        console_url = running.console_url
        with (
            alerting(
                tmp_path / "alerting", rules, metrics_port=port, console_url=console_url
            ) as stack,
            httpx.Client(base_url=console_url, trust_env=False, timeout=30) as console,
        ):
            waiting = stack.prometheus.query("sidecar_audit_state")
            clock.advance(HOUR + 1)
            first = judged(running, 1)
            eventually(
                lambda: stack.prometheus.query("sidecar_audit_night_state == 2"), "a night passed"
            )
            calm = told(stack.pager, "SidecarAuditRegressed")

            write_weights(tmp_path / "tiny.safetensors", "silent")
            clock.advance(DAY / 2)
            page = console.get("/audits/nightly").text
            token = re.search(r'name="token" value="([^"]+)"', page)
            assert token
            pressed = console.post("/audits/nightly/run", data={"token": token[1]})
            second = judged(running, 2)
            alert = eventually(
                lambda: told(stack.pager, "SidecarAuditRegressed"), "somebody is told"
            )
            report = console.get(alert["annotations"]["report_url"], follow_redirects=True)
            shown = console.get(alert["annotations"]["audit_url"]).text
            failed = stack.prometheus.query("sidecar_audit_check_failed == 1")

    assert ("0", None) == (waiting[0]["value"][1], calm)
    assert 303 == pressed.status_code
    assert ("schedule", "console") == (first.actor, second.actor)
    checks = {one.name for one in second.failed_checks}
    assert {"comparison", "counts"} <= checks == {one["metric"]["check"] for one in failed}
    words = alert["annotations"]["description"]
    assert "audit nightly (tiny against twin) regressed, and none has passed since" in words
    assert "comparison: layers break the gate on the comparison (1, at most 0);" in words
    assert ("critical", "tiny") == (alert["labels"]["severity"], alert["labels"]["model"])
    assert (200, f"{console_url}{second.report}") == (report.status_code, str(report.url))
    assert running.daemon.audits.status("nightly").last == second
    assert "regressed" in report.text
    assert report.headers["content-security-policy"].endswith("sandbox")
    assert all(one.reason.split(":")[0] in shown for one in second.failed_checks)
