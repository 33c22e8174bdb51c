"""Real nights of a real daemon on a tiny network: what passes, what regresses, and what survives kill -9."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.audits import Night, NightState
from sidecar.cli import main
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.audits.conftest import DAY, HALF_PAST_TWO, HOUR, write_weights

pytestmark = pytest.mark.e2e

PATIENCE = 90.0


def judged(running: RunningDaemon, number: int) -> Night:
    """Wait until so many nights are judged, and return the newest."""
    audits = running.daemon.audits

    def newest() -> Night | None:
        nights = [one for one in audits.status("nightly").nights if one.state.judged]
        return nights[0] if len(nights) == number else None

    return wait_until(newest, PATIENCE, f"night {number}")


def outcomes(night: Night) -> dict[str, str]:
    """Return what came of each check."""
    return {one.name: one.outcome.value for one in night.checks}


def reason(night: Night, check: str) -> str:
    """Return why a check came out as it did."""
    return next(one.reason for one in night.checks if one.name == check)


def audit(running: RunningDaemon, *arguments: str) -> Result:
    """Run ``sidecar audit`` on the daemon."""
    return CliRunner().invoke(main, ["audit", *arguments, "--address", running.grpc])


def test_a_night_with_a_broken_revision_regresses(settings: dict[str, Any], tmp_path: Path) -> None:
    """The first night passes, the second has the same, the third is of weights whose layer is dead."""
    clock = FakeClock(HALF_PAST_TWO - HOUR)
    with running_daemon(tmp_path / "state", settings, clock=clock) as running:
        audits = running.daemon.audits
        assert "waiting" == audits.status("nightly").state
        assert HALF_PAST_TWO == audits.status("nightly").next_at

        clock.advance(HOUR + 1)
        first = judged(running, 1)
        clock.advance(DAY)
        second = judged(running, 2)
        write_weights(tmp_path / "tiny.safetensors", "silent")
        clock.advance(HOUR)
        ran = audit(running, "run", "nightly", "--wait")
        third = judged(running, 3)
        shown = audit(running, "show", "nightly")
        listed = audit(running, "list", "-o", "json")
        fetched = audit(running, "report", "nightly", "--to", str(tmp_path / "to"))
        accepted = audit(running, "accept", "nightly", "--note", "Ada: retired on purpose")
        running.daemon.operations.flush_events()
        log = {event.what: event.detail for event in running.daemon.operations.events(None, 100)}
        references = {one.digest for one in running.daemon.storage.references.of()}

    page = (tmp_path / "to" / "report.html").read_text()
    report = json.loads((tmp_path / "to" / "report.json").read_text())
    nothing_hooked = {"revision": "impossible", "live": "impossible"}
    good = dict.fromkeys(("complete", "comparison", "verified"), "passed")
    assert ("20260925T023000Z", NightState.PASSED) == (first.id, first.state)
    assert {
        **good,
        **nothing_hooked,
        **dict.fromkeys(("counts", "reproduced", "verdict"), "impossible"),
    } == outcomes(first)
    assert {"same": 12, "moved": 0, "lost": 0, "new": 0} == first.counts
    assert NightState.PASSED == second.state
    assert (
        "passed"
        == outcomes(second)["counts"]
        == outcomes(second)["reproduced"]
        == outcomes(second)["verdict"]
    )
    assert "1 portrait made anew, the same as before to within 0/255" in reason(
        second, "reproduced"
    )
    assert "Answered from the store" in reason(second, "comparison")

    assert NightState.REGRESSED == third.state
    assert {"complete", "comparison", "counts"} == {one.name for one in third.failed_checks}
    assert "2/channel has 12 of 12 units lost, had 0" in reason(third, "counts")
    assert "1 layer of the comparison with twin breaks lost=0: 2/channel: 12 of 12" in reason(
        third, "comparison"
    )
    assert "SC803" in reason(third, "complete")
    assert 12 == third.counts["lost"]

    assert [one.name for one in third.checks] == [one["name"] for one in report["checks"]]
    assert ["passed", "passed", "regressed"] == [one["state"] for one in report["trend"]]
    assert any("2/channel: 12 units more lost" in one for one in report["changes"])
    pictures = {one["picture"] for one in report["comparison"]["features"]}
    assert pictures
    assert pictures <= references
    assert "<script" not in page
    assert "<b>Regressed: 3 of 8 checks failed</b>" in page
    assert page.count("data:image/png;base64,") >= len(pictures)

    assert (6, 0, 0, 0) == (ran.exit_code, shown.exit_code, fetched.exit_code, accepted.exit_code)
    assert "counts      failed        More than on 20260926T023000Z" in ran.stdout
    assert "state  regressed" in shown.stdout
    assert f"{third.id}  regressed  0 / 12 / " in shown.stdout
    assert ["AUDIT_STATE_REGRESSED"] == [one["state"] for one in json.loads(listed.stdout)]
    assert "counts: More than on 20260926T023000Z" in log["audit_regressed"]
    assert f"night {third.id}: Ada: retired on purpose" == log["audit_accepted"]
