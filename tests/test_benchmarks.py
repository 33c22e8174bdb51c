"""The parts of the benchmarks that can be wrong without anybody noticing a number."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import detectors, latents, learned
from benchmarks.detection_page import filled
from benchmarks.drifting import ticket_hours
from benchmarks.report import BEGIN, END, rewritten
from sidecar.stats import SparseBank
from sidecar.testing import SCENARIOS, Injection, Marginal, Traffic

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


# -- the detectors on simulated traffic: small runs with fixed seeds; `make bench` has the large ones -


@pytest.mark.parametrize("requests", [64, 256])
def test_alarms_of_the_spike_test_are_rare_in_every_scenario(requests: int) -> None:
    """None is false in 24 feature-days of each of A to D, and at most one in as many of E."""
    alarms = {
        name: round(24 * detectors.false_alarms(scenario.of(requests), 400, 0.06, 1))
        for name, scenario in SCENARIOS.items()
    }

    assert alarms.pop("E") <= 1
    assert {"A": 0, "B": 0, "C": 0, "D": 0} == alarms


@pytest.mark.parametrize(("requests", "share"), [(64, 0.2), (256, 0.2), (256, 0.1)])
def test_a_spike_is_found_within_two_windows(requests: int, share: float) -> None:
    """In the median, where requests do not come in bursts; and it is missed by next to none."""
    scenario, spike = SCENARIOS["B"].of(requests), Injection.spike(share)

    found = detectors.delays(scenario, spike, 400, 2)

    assert 1 <= np.median(found) <= 2
    assert np.isinf(found).mean() <= 0.02


def test_learned_baselines_ring_in_no_scenario() -> None:
    """Where a window expects a tenth of an exceeding request, and a baseline has seen a handful."""
    hard = replace(SCENARIOS["E"], requests=16, tokens=1)

    assert 0.0 == learned.learned_alarms(hard, 400, 0.1, 1)


def test_a_spike_is_found_within_two_windows_of_a_learned_baseline() -> None:
    """With thresholds and rates that are as wrong as they are."""
    found = learned.learned_delays(SCENARIOS["B"], Injection.spike(0.2), 60, 3)

    assert detectors.median_delay(found) <= 2


def test_delays_count_from_the_first_window_with_a_spike() -> None:
    """An alarm at its end is a delay of 1, and what came before it does not count."""
    quiet, loud = np.zeros(3, np.bool_), np.ones(3, np.bool_)
    second = np.array([False, True, False])
    windows = [loud] * detectors.SETTLED + [quiet, second, np.array([True, True, False])]

    found = detectors.first_alarms(windows, 3)

    assert [3.0, 2.0, np.inf] == found.tolist()
    assert 3.0 == detectors.median_delay(found)
    assert detectors.PATIENCE + 1 == detectors.median_delay(np.full(3, np.inf))


@pytest.mark.parametrize("name", ["B", "C"])
def test_the_screen_keeps_its_share_of_false_findings(name: str) -> None:
    """With and without bursts of each feature's own; and finds the spikes."""
    false, power, _ = detectors.errors(SCENARIOS[name], 1024, 20, 60, 3)

    assert false <= 0.07  # 0.05 and the noise of 60 windows
    assert power >= 0.95


def test_a_shift_of_a_layer_is_found_in_five_minutes_and_quiet_traffic_is_not_one() -> None:
    """A tenth of its features is enough."""
    moved = Injection.spike(0.2).during(detectors.SCREEN_BASELINE).on(range(20))

    assert [30] == detectors.layer_alarms(SCENARIOS["C"], [moved], 200, 40, 4)
    assert [] == detectors.layer_alarms(SCENARIOS["C"], [], 200, 500, 4)


def test_rivals_see_what_they_should() -> None:
    """Each notices a spike in every token of most requests, and most of them are quiet before it."""
    pytest.importorskip("river", reason="rivals need the bench extra")
    suite = importlib.import_module("benchmarks.detect")
    spike = Injection.spike(0.8).during(detectors.BASELINE + 60)
    traffic = Traffic(SCENARIOS["A"].of(16), 8, seed=5, injections=[spike])

    found = list(suite.contest(traffic, Marginal.NORMAL, 120))

    before, after = found[:58], found[58:]  # an alarm may have begun just before the spike
    for name in ("ours", *suite.RIVALS):
        assert np.any([window[name] for window in after], axis=0).all(), name
    false = {name: int(np.sum([w[name] for w in before])) for name in ("ours", *suite.RIVALS)}
    assert 0 == false["ours"] == false["psi"] == false["adwin"] == false["page_hinkley"]
    assert false["robust_z"] <= 5
    assert false["ewma"] <= 10
    assert 2 <= false["ks"] <= 60  # 5 % of 480, but for two that follow each other


def test_a_shift_is_a_ticket_within_three_hours() -> None:
    """Of half a standard deviation, where the mix drifts; without one there is none."""
    small = replace(SCENARIOS["C"], requests=8, tokens=4)

    assert (ticket_hours(small, 3, 0.2, 6, shift=0.5) <= 3).all()


def test_the_detection_page_shows_the_rows() -> None:
    """Each table has what was measured at its place, and the text around it stays."""
    names = ("spike", "learned", "rivals", "screen", "layers", "slow")
    page = "".join(f"{n} <!-- {n}: begin -->\nold\n<!-- {n}: end -->\n" for n in names)
    rows = [measured(name, 0.5) for name in detect_rows()]
    late = [r for r in rows if r["name"] == "detect.spike.delay.E_64_10pct"]
    late[0]["value"] = detectors.PATIENCE + 1.0

    once = filled(page, rows)

    assert "| E | 64 | 0.5 | 0.5 | 0.5 % | > 120 | 0.5 % |" in once.splitlines()
    assert "| 1 | 8 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 |" in once.splitlines()
    assert "| **spike test** |" in once
    assert "| p | 10 |" in once
    assert "| B, lognormal | 0.5 |  |" in once
    assert "| E, 50 % | 0.5 |" in once
    assert "old" not in once
    assert once == filled(once, rows)


def detect_rows() -> list[str]:
    """Return the names of the rows of the suite ``detect`` that the page shows."""
    spikes = [f"{name}_{size}" for name in SCENARIOS for size in (64, 256)]
    sizes = [f"{requests}x{rows}" for rows in learned.ROWS for requests in learned.REQUESTS]
    traffic = [*SCENARIOS, "B_lognormal"]
    ends = ("", "_own_bursts", "_shared_bursts", "_unequal", "_strong_bursts")
    return [
        *(f"detect.spike.false_alarms.{where}" for where in spikes),
        *(
            f"detect.spike.{what}.{where}_{share}pct"
            for where in spikes
            for what in ("delay", "missed")
            for share in (10, 20)
        ),
        *(f"detect.learned.false_alarms.{name}_{size}" for name in SCENARIOS for size in sizes),
        *(f"detect.learned.delay.B_{size}" for size in sizes),
        *(f"detect.rival.false_alarms.{where}.ewma" for where in traffic),
        *(f"detect.rival.delay.{tokens}.ewma" for tokens in ("all_tokens", "few_tokens")),
        *(f"detect.screen.{what}{end}" for what in ("fdr", "power", "quiet") for end in ends),
        "detect.layer.false_alarms.E_50pct_shared",
        *(f"detect.conditions.records.{where}" for where in traffic),
        *(f"detect.drift.false_tickets.{name}" for name in SCENARIOS),
    ]
