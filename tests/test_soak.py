"""The soak in short: what it asserts about two hours holds for minutes, and its verdicts can fail."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.soak import TOLERANCE, Report, describe, growth, run
from sidecar.monitor import IngestCounts

pytestmark = pytest.mark.service

MIB = 1 << 20


def resident(per_window: float, noise: float = 0.0) -> np.ndarray:
    """Return 72 looks at memory that starts at 200 MiB and grows by so many MiB a window."""
    windows = np.arange(0, 720, 10)
    wobble = noise * np.random.default_rng(0).standard_normal(len(windows))
    return np.stack([windows, (200 + per_window * windows + wobble) * MIB], axis=1)


def test_a_short_soak_loses_no_batch() -> None:
    """Bursts, lies and strangers are refused and dropped by reason, and everything adds up."""
    report = run(windows=8, every=1)

    counts = report.counts
    assert report.conserved
    assert 0 == counts.in_flight
    assert {"payload_mismatch", "malformed", "queue_full"} == set(counts.refused)
    # In a burst a stranger may find the queue full, and is refused for that.
    assert {"unregistered_layer"} == set(counts.dropped)
    assert counts.dropped["unregistered_layer"] in (7, 8)
    assert (8, 8) == (counts.refused["payload_mismatch"], counts.refused["malformed"])
    assert counts.processed > 70
    assert np.isfinite(report.growth)
    assert "conservation  exact" in describe(report, TOLERANCE)


def test_memory_that_grows_is_told_from_noise() -> None:
    """A leak of 30 kB a window is over the tolerance; a wobble of a MiB about nothing is not."""
    assert growth(resident(0.03), 720) > TOLERANCE
    assert growth(resident(0.0, noise=1.0), 720) < TOLERANCE


@pytest.mark.parametrize("lost", ["received", "accepted", "processed", "in_flight"])
def test_a_batch_that_is_lost_is_noticed(lost: str) -> None:
    """One batch more or less anywhere breaks the identity."""
    counts = IngestCounts(10, 8, {"malformed": 2}, 7, {"internal": 1})
    report = Report(counts, Counter(), resident(0.0), 720)

    broken = replace(report, counts=replace(counts, **{lost: getattr(counts, lost) + 1}))

    assert report.conserved
    assert not broken.conserved
    assert "conservation  BROKEN" in describe(broken, TOLERANCE)
