"""What every test may rely on."""

import os
import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# One compilation of the kernels serves this process and every daemon it starts.
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "numba")
)

# The same examples in every run of continuous integration, so that a red run is about the change;
# everywhere else new ones are looked for each time.
settings.register_profile("ci", derandomize=True, print_blob=True, deadline=None)
# No deadlines: a machine that is shared is slow at times, and what things cost is measured elsewhere.
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True, scope="session")
def log_to_stderr() -> None:
    """Keep the log out of stdout, which commands print their data to."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
