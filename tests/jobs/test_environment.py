"""The environment of a child."""

import pytest

from sidecar.config import JobsConfig
from sidecar.jobs.assignment import child_environment

pytestmark = pytest.mark.unit


def test_a_child_keeps_freed_memory_unless_the_operator_says_otherwise() -> None:
    """The allocator reads both when the process starts, so only its parent can set them."""
    ours = child_environment(JobsConfig(), {"PATH": "/bin"})
    theirs = child_environment(JobsConfig(), {"MALLOC_TRIM_THRESHOLD_": "131072"})

    assert ours["PATH"] == "/bin"
    assert ours["MALLOC_MMAP_THRESHOLD_"] == ours["MALLOC_TRIM_THRESHOLD_"] == str(1 << 30)
    assert theirs["MALLOC_TRIM_THRESHOLD_"] == "131072"


def test_threads_are_capped_only_where_the_configuration_says_so() -> None:
    """Every library has a variable of its own."""
    assert "OMP_NUM_THREADS" not in child_environment(JobsConfig(), {})
    capped = child_environment(JobsConfig(threads=3), {})
    assert capped["OMP_NUM_THREADS"] == capped["MKL_NUM_THREADS"] == "3"
