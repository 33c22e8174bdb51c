"""Real nights of a real daemon on a tiny network: what passes, what regresses, and what survives kill -9."""

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.audits import Night, NightState, Outcome
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.audits.conftest import write_weights

pytestmark = pytest.mark.e2e

HALF_PAST_TWO = 1_790_303_400.0  # 2026-09-25 02:30 UTC
HOUR, DAY = 3600.0, 86_400.0
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
        clock.advance(DAY)
        third = judged(running, 3)

        report = json.loads(audits.report("nightly", third.id, "json"))
        page = audits.report("nightly", third.id, "html").decode()
        log = running.daemon.operations.events(None, 100)

    print(first, second, third, sep="\n\n")
    assert ("20260925T023000Z", NightState.PASSED) == (first.id, first.state)
    assert 0
