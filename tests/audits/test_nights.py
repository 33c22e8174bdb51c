"""Real nights of a real daemon on a tiny network: what passes, what regresses, and how that is told."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.audits import Night, NightState
from sidecar.cli import main
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.audits.conftest import DAY, HALF_PAST_TWO, HOUR, settings_in, write_weights

pytestmark = pytest.mark.e2e

PATIENCE = 120.0
"""For the jobs of a night: each is a process that imports torch, on two cores that others use."""


@dataclass(frozen=True)
class Nights:
    """Two nights by schedule and one by command, of which the last has broken weights."""

    nights: tuple[Night, ...]
    said: dict[str, Result]
    page: str
    report: dict[str, Any]
    log: dict[str, str]
    references: set[str]


def judged(running: RunningDaemon, number: int) -> Night:
    """Wait until so many nights are judged, and return the newest."""
    audits = running.daemon.audits

    def newest() -> Night | None:
        nights = [one for one in audits.status("nightly").nights if one.state.judged]
        return nights[0] if len(nights) == number else None

    return wait_until(newest, PATIENCE, f"night {number}")


def audit(running: RunningDaemon, *arguments: str) -> Result:
    """Run ``sidecar audit`` on the daemon."""
    return CliRunner().invoke(main, ["audit", *arguments, "--address", running.grpc])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """The first night is as it should be, the second likewise, the third's second layer is dead."""
    root = tmp_path_factory.mktemp("nights")
    clock = FakeClock(HALF_PAST_TWO - HOUR)
    with running_daemon(root / "state", settings_in(root), clock=clock) as running:
        clock.advance(HOUR + 1)
        first = judged(running, 1)
        clock.advance(DAY)
        second = judged(running, 2)
        write_weights(root / "tiny.safetensors", "silent")
        clock.advance(HOUR)
        said = {
            "run": audit(running, "run", "nightly", "--wait"),
            "show": audit(running, "show", "nightly"),
            "list": audit(running, "list", "-o", "json"),
            "report": audit(running, "report", "nightly", "--to", str(root / "to")),
            "accept": audit(running, "accept", "nightly", "--note", "Ada: retired on purpose"),
            "unknown": audit(running, "show", "away"),
        }
        running.daemon.operations.flush_events()
        return Nights(
            nights=(first, second, judged(running, 3)),
            said=said,
            page=(root / "to" / "report.html").read_text(),
            report=json.loads((root / "to" / "report.json").read_text()),
            log={event.what: event.detail for event in running.daemon.operations.events(None, 100)},
            references={one.digest for one in running.daemon.storage.references.of()},
        )


def outcomes(night: Night) -> dict[str, str]:
    """Return what came of each check."""
    return {one.name: one.outcome.value for one in night.checks}


def reason(night: Night, check: str) -> str:
    """Return why a check came out as it did."""
    return next(one.reason for one in night.checks if one.name == check)


def test_a_first_night_passes_with_nothing_to_be_held_against(ran: Nights) -> None:
    """What needs an earlier night, or a hook, is not possible, which is no failure."""
    night = ran.nights[0]

    assert ("20260925T023000Z", NightState.PASSED) == (night.id, night.state)
    assert {
        "complete": "passed",
        "comparison": "passed",
        "counts": "impossible",
        "reproduced": "impossible",
        "verdict": "impossible",
        "verified": "passed",
        "revision": "impossible",
        "live": "impossible",
    } == outcomes(night)
    assert {"same": 12, "moved": 0, "lost": 0, "new": 0} == night.counts
    assert 1 == night.features
    assert "/audits/nightly/20260925T023000Z/report.html" == night.report


def test_the_next_night_makes_a_portrait_again_and_finds_it_the_same(ran: Nights) -> None:
    """What was answered from the store is said to be."""
    night = ran.nights[1]

    assert NightState.PASSED == night.state
    assert {"passed"} == {outcomes(night)[name] for name in ("counts", "reproduced", "verdict")}
    assert "1 portrait made anew, the same as before pixel by pixel" in reason(night, "reproduced")
    assert "1 portrait answered from the store prove" in reason(night, "reproduced")
    assert "Answered from the store" in reason(night, "comparison")


def test_broken_weights_regress(ran: Nights) -> None:
    """The checks that see it fail with the numbers, and no other."""
    night = ran.nights[2]

    assert NightState.REGRESSED == night.state
    assert {"complete", "comparison", "counts"} == {one.name for one in night.failed_checks}
    assert "2/channel has 12 of 12 units moved, had 0" in reason(night, "counts")
    assert "The comparison with twin breaks lost=0, moved=5%: 2/channel: 12 of 12" in reason(
        night, "comparison"
    )
    assert "portraits-0 failed (SC803" in reason(night, "complete")
    assert "counts: More than on 20260926T023000Z" in ran.log["audit_regressed"]


def test_a_report_says_the_same_as_page_and_as_json(ran: Nights) -> None:
    """Nothing is loaded, nothing runs; the pictures it shows stay in the store."""
    night = ran.nights[2]
    pictures = {one["picture"] for one in ran.report["comparison"]["features"]}

    assert [one.name for one in night.checks] == [one["name"] for one in ran.report["checks"]]
    assert ["passed", "passed", "regressed"] == [one["state"] for one in ran.report["trend"]]
    assert any("2/channel: 12 units more moved" in one for one in ran.report["changes"])
    assert pictures
    assert pictures <= ran.references
    assert "<script" not in ran.page
    assert "http://" not in ran.page
    assert "https://" not in ran.page
    assert "<b>Regressed</b>: 3 of 8 checks failed: complete, comparison, counts." in ran.page
    assert ran.page.count("data:image/png;base64,") == len(pictures)


def test_commands_say_how_it_went(ran: Nights) -> None:
    """A command that waits exits with 6; accepting is in the audit log; an unknown audit is exit 3."""
    codes = {name: one.exit_code for name, one in ran.said.items()}
    night = ran.nights[2]

    wanted = {"run": 6, "show": 0, "list": 0, "report": 0, "accept": 0, "unknown": 3}
    assert wanted == codes, [one.output for one in ran.said.values()]
    assert f"night {night.id}: regressed, 1 features pictured" in ran.said["run"].stdout
    assert "state  regressed" in ran.said["show"].stdout
    assert "12 / 0 / " in ran.said["show"].stdout
    listed = json.loads(ran.said["list"].stdout)
    assert ["AUDIT_STATE_REGRESSED"] == [one["state"] for one in listed]
    assert f"night {night.id}: Ada: retired on purpose" == ran.log["audit_accepted"]
