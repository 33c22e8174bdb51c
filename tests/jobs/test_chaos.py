"""The storm of ``make chaos``, short and seeded."""

from pathlib import Path

import pytest

from benchmarks.chaos import run_chaos

pytestmark = pytest.mark.e2e


def test_jobs_are_done_exactly_once_while_daemons_and_workers_are_killed(tmp_path: Path) -> None:
    """Twenty jobs, dozens of kills: pictures verify, no process and no file is left."""
    findings = run_chaos(tmp_path, 20, 7)

    assert () == findings.problems
    assert findings.worker_kills > 0
    assert findings.daemon_kills + findings.worker_kills >= 5
