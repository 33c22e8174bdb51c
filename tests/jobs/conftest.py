"""Fixtures of the job tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.bench import Bench, bench_at, children


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a bench; afterwards no child and no scratch file is left."""
    made = bench_at(tmp_path / "state")
    before = {process.pid for process in children()}
    yield made
    for runner in made.runners:
        runner.stop(10)
    made.database.close()
    assert [] == [process for process in children() if process.pid not in before]
    assert [] == (list(made.scratch.iterdir()) if made.scratch.exists() else [])
