"""The parts of the benchmarks that can be wrong without anybody noticing a number."""

import importlib

import numpy as np
import pytest

from benchmarks import latents
from benchmarks.report import BEGIN, END, rewritten
from sidecar.stats import SparseBank

pytestmark = pytest.mark.service


def measured(name: str, value: float) -> dict[str, str | float]:
    """Return a row as a suite writes it."""
    return {
        "name": name,
        "value": value,
        "unit": "ns",
        "peer": "p",
        "peer_value": 10.0,
        "ratio": 10.0 / value,
    }


def test_the_report_rewrites_one_suite_and_keeps_the_others() -> None:
    """What stands around the table stays, and so do rows of suites that were not run."""
    first = rewritten(
        f"head\n{BEGIN}\n{END}\ntail\n",
        {"bank": [measured("bank.full", 2.0)], "hook": [measured("hook.1_1", 4.0)]},
    )
    second = rewritten(first, {"bank": [measured("bank.full", 5.0), measured("bank.a", 1.0)]})

    assert second.startswith("head\n")
    assert second.endswith("\ntail\n")
    rows = [line for line in second.splitlines() if line.startswith("| `")]
    assert [
        "| `bank.full` | 5 | ns | p | 10 | 2 |",
        "| `bank.a` | 1 | ns | p | 10 | 10 |",
        "| `hook.1_1` | 4 | ns | p | 10 | 2.5 |",
    ] == rows


def test_sparse_batches_are_what_they_claim() -> None:
    """As many distinct latents a row as asked for, and the popular ones in most rows."""
    found = latents.batches(4096, rows=64, active=20, count=2)

    for sample in found:
        assert 64 * 20 == len(sample.latents) == len(sample.values)
        assert 0.3 < np.bincount(sample.latents).max() / 64 <= 1.0
    assert found[0].latents.tolist() != found[1].latents.tolist()


@pytest.mark.parametrize("name", ["bincount", "add_at", "scipy", "torch"])
def test_sparse_peers_do_the_work_they_are_timed_at(name: str) -> None:
    """Each peer arrives at the greatest values that the bank keeps, so it has seen every value."""
    pytest.importorskip("datasketches", reason="peers need the bench extra")
    peers = importlib.import_module("benchmarks.peers")
    sample = latents.batches(512, rows=16, active=10, count=1)[0]
    ours = SparseBank(history_seconds=1, layer_limit=1, latent_limit=512)
    ours.register(latents.LAYER, 512)
    ours.update(sample, 1.0)
    most = np.zeros(512, np.float32)
    np.maximum.at(most, sample.latents, sample.values)

    found = peers.SPARSE[name][1](512)(sample)

    assert most.tolist() == np.asarray(found).tolist()
