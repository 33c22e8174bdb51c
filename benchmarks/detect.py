"""How often the detectors are wrong and how late they are right, beside what one would use instead.

Rivals are given the values of the same traffic in the same run, at their common defaults.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from scipy.stats import false_discovery_control, nbinom

from benchmarks.detectors import (
    BASELINE,
    PATIENCE,
    SCREEN,
    SCREEN_BASELINE,
    SETTLED,
    WINDOWS_A_DAY,
    ConditionTest,
    SpikeTest,
    baseline_rate,
    delays,
    errors,
    expectation,
    false_alarms,
    first_alarms,
    layer_alarms,
    median_delay,
)
from benchmarks.drifting import SMALL, ticket_hours
from benchmarks.learned import REQUESTS, ROWS, learned_alarms, learned_delays
from benchmarks.rivals import RIVALS, Drawn, Rival
from benchmarks.row import Row, least_cpu_seconds
from sidecar.detect import screen
from sidecar.stats import compiled
from sidecar.testing import SCENARIOS, Injection, Marginal, Scenario, Traffic

SIZES = (64, 256)
FEATURES, DAYS = 1200, 0.5
"""Of each scenario: 600 feature-days."""

SHARES = (0.1, 0.2)
"""Of requests that spike."""

SPIKING, STARTS = 2000, 10
"""Spikes, and runs that they are shared by: in one run all begin in the same window."""

LEARNED_SPIKING = 500
"""Spikes after a learned baseline."""

DRAWN_FEATURES, DRAWN_DAYS = 20, 1.0
"""Of each scenario for the rivals, whose every token is drawn."""

DRAWN_SPIKING = 80
SPIKES = {"all_tokens": 1.0, "few_tokens": 0.1}
"""Share of the tokens of a spiking request that are raised, by four standard deviations."""

SCREENED, TRUE, SCREEN_WINDOWS = 4096, 40, 200
BURSTS = {
    "": SCENARIOS["B"],
    "_own_bursts": SCENARIOS["C"],
    "_shared_bursts": replace(SCENARIOS["C"], shared=1.0),
    "_unequal": SCENARIOS["D"],
    "_strong_bursts": SCENARIOS["E"],
}
"""What the screen is measured on, by the suffix of its rows."""

WIDE, WIDE_BASELINE = 131_072, 360
LAYER, LAYER_DAYS, SHIFTED = 256, 3.0, 0.1
"""Features of a layer, days without a shift, and the share of features that a shift moves."""

DRIFTING, DRIFT_DAYS, SHIFTS = 60, 3.0, (0.1, 0.2, 0.5)
"""Features, days after the first two, and shifts of the mean in standard deviations."""

AIMS = {"A": 0.005, "B": 0.005, "C": 0.005, "D": 0.005, "E": 0.02}
AIM, AIM_DELAY = "the aim", 2.0
PER_DAY, WINDOWS, MISSED = "alarms a feature and day", "windows of 10 s", "% of spikes"
FALSE, FOUND, LOUD = "false share of findings", "found share of spikes", "% of quiet windows"
RECORDS, AIM_RECORDS = "values never seen, a feature and day", 1.0
TICKETS, HOURS, AIM_TICKETS = "false tickets a feature and day", "hours", 0.02
PER_LAYER = "alarms a layer and day"


def run() -> Sequence[Row]:
    """Measure the spike test, the screen, and the rivals; seeds are fixed."""
    ours, theirs, learned = spike_rows(), rival_rows(), learned_rows()
    heads = [*_headlines(ours, theirs), *_learned_headlines(learned)]
    return [*heads, *screen_rows(), *drift_rows(), *ours, *learned, *theirs]


# -- the spike test ---------------------------------------------------------------------------------


def spike_rows() -> Sequence[Row]:
    """Return the spike test's rows for every scenario and number of requests."""
    rows = []
    for number, (name, plain) in enumerate(SCENARIOS.items()):
        for requests in SIZES:
            scenario, where = plain.of(requests), f"{name}_{requests}"
            rate = false_alarms(scenario, FEATURES, DAYS, number)
            label = f"detect.spike.false_alarms.{where}"
            rows.append(_row(label, rate, PER_DAY, AIM, AIMS[name], 1 / (FEATURES * DAYS)))
            for share in SHARES:
                found = _delays(scenario, Injection.spike(share), number)
                missed, late = 100 * float(np.isinf(found).mean()), median_delay(found)
                end = f"{where}_{100 * share:.0f}pct"
                rows += [
                    _row(f"detect.spike.delay.{end}", late, WINDOWS, AIM, AIM_DELAY, 1.0),
                    _row(f"detect.spike.missed.{end}", missed, MISSED, AIM, 5.0, 100 / SPIKING),
                ]
    return rows


def _delays(scenario: Scenario, spike: Injection, number: int) -> np.ndarray:
    """Return delays of ``SPIKING`` spikes, which begin in windows of ``STARTS`` different sizes."""
    each = SPIKING // STARTS
    seeds = range(1000 * number, 1000 * number + STARTS)
    return np.concatenate([delays(scenario, spike, each, seed) for seed in seeds])


def learned_rows() -> Sequence[Row]:
    """Return false alarms and delays where thresholds and rates are those of a learned baseline."""
    rows, kernels = [], compiled()
    for number, (name, plain) in enumerate(SCENARIOS.items()):
        for tokens in ROWS:
            for requests in REQUESTS:
                scenario = replace(plain, requests=requests, tokens=tokens)
                rate = learned_alarms(scenario, FEATURES, DAYS, 80 + number, kernels)
                label = f"detect.learned.false_alarms.{name}_{requests}x{tokens}"
                rows.append(_row(label, rate, PER_DAY, AIM, AIMS[name], 1 / (FEATURES * DAYS)))
    for tokens in ROWS:
        for requests in REQUESTS:
            scenario = replace(SCENARIOS["B"], requests=requests, tokens=tokens)
            spike = Injection.spike(0.2)
            found = learned_delays(scenario, spike, LEARNED_SPIKING, 90, kernels)
            late, label = median_delay(found), f"detect.learned.delay.B_{requests}x{tokens}"
            rows.append(_row(label, late, WINDOWS, AIM, AIM_DELAY, 1.0))
    return rows


def _learned_headlines(learned: Sequence[Row]) -> Sequence[Row]:
    """Return the worst row of each scenario."""
    rows = []
    for name in SCENARIOS:
        first = f"detect.learned.false_alarms.{name}_"
        worst = max(row.value for row in learned if row.name.startswith(first))
        label, least = f"detect.false_alarms.learned.{name}", 1 / (FEATURES * DAYS)
        rows.append(_row(label, worst, PER_DAY, AIM, AIMS[name], least))
    return rows


def _headlines(ours: Sequence[Row], theirs: Sequence[Row]) -> Sequence[Row]:
    """Return the aims' rows, the worse size of each, beside the best rival able to see a spike."""
    value = {row.name: row.value for row in ours}
    rival = {row.name: row for row in theirs}
    late = {name: rival[f"detect.rival.delay.all_tokens.{name}"] for name in RIVALS}
    able = [name for name, row in late.items() if row.peer_value <= AIM_DELAY]
    rows = []
    for name in SCENARIOS:
        best = _least([rival[f"detect.rival.false_alarms.{name}.{peer}"] for peer in able])
        worst = max(value[f"detect.spike.false_alarms.{name}_{size}"] for size in SIZES)
        label = f"detect.false_alarms.{name}"
        least = 1 / (FEATURES * DAYS)
        rows.append(_row(label, worst, PER_DAY, best.peer, best.peer_value, least))
    best, delay = _least(list(late.values())), value["detect.spike.delay.B_64_20pct"]
    return [*rows, _row("detect.delay.20pct", delay, WINDOWS, best.peer, best.peer_value, 1.0)]


def _least(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row.peer_value)


# -- the rivals -------------------------------------------------------------------------------------


def rival_rows() -> Sequence[Row]:
    """Return every rival's rows, each beside ours on the same drawn values."""
    rows: list[Row] = []
    for name, scenario in SCENARIOS.items():
        rows += _rival_alarms(name, Traffic(scenario, DRAWN_FEATURES, seed=20), Marginal.NORMAL)
    heavy = Traffic(SCENARIOS["B"], DRAWN_FEATURES, seed=21)
    rows += _rival_alarms("B_lognormal", heavy, Marginal.LOGNORMAL)
    for label, tokens in SPIKES.items():
        spike = Injection.spike(0.2, tokens=tokens).during(BASELINE + SETTLED)
        traffic = Traffic(SCENARIOS["B"], DRAWN_SPIKING, seed=22, injections=[spike])
        rows += _rival_delays(label, traffic)
    return rows


def contest(traffic: Traffic, marginal: Marginal, windows: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield, for each window after the baseline's, which features each detector alarms on.

    Our spike test goes by the name of ``ours``, our certain conditions by ``conditions``.
    """
    threshold, baseline = marginal.quantile(traffic.level), []
    exceeding, requests = np.zeros(traffic.features), 0
    values = traffic.values(BASELINE + windows, marginal)
    for drawn in islice(values, BASELINE):
        baseline.append(Drawn.of(drawn))
        exceeding += _exceeding(drawn, threshold)
        requests += len(drawn)
    spikes = SpikeTest(baseline_rate(exceeding, requests))
    certain = ConditionTest(
        np.min([window.ordered[:, 0] for window in baseline], axis=0),
        np.max([window.ordered[:, -1] for window in baseline], axis=0),
    )
    rivals: dict[str, Rival] = {name: make(baseline) for name, (_, make) in RIVALS.items()}
    del baseline  # hundreds of megabytes
    for drawn in values:
        window = Drawn.of(drawn)
        found = {name: rival(window) for name, rival in rivals.items()}
        found["ours"] = spikes(len(drawn), _exceeding(drawn, threshold))
        yield {**found, "conditions": certain(len(drawn), window.ordered)}


def _rival_alarms(name: str, traffic: Traffic, marginal: Marginal) -> Sequence[Row]:
    alarms = dict.fromkeys((*RIVALS, "ours", "conditions"), 0)
    days = traffic.features * DRAWN_DAYS
    for found in contest(traffic, marginal, round(DRAWN_DAYS * WINDOWS_A_DAY)):
        for rival, alarmed in found.items():
            alarms[rival] += int(alarmed.sum())
    ours, records = alarms.pop("ours") / days, alarms.pop("conditions") / days
    label = f"detect.rival.false_alarms.{name}"
    rows = [
        _row(f"{label}.{rival}", ours, PER_DAY, RIVALS[rival][0], count / days, 1 / days)
        for rival, count in alarms.items()
    ]
    label = f"detect.conditions.records.{name}"
    return [*rows, _row(label, records, RECORDS, AIM, AIM_RECORDS, 1 / days)]


def _rival_delays(label: str, traffic: Traffic) -> Sequence[Row]:
    windows = list(contest(traffic, Marginal.NORMAL, SETTLED + PATIENCE))
    late = {
        name: median_delay(first_alarms((window[name] for window in windows), traffic.features))
        for name in ("ours", *RIVALS)
    }
    ours = late.pop("ours")
    return [
        _row(f"detect.rival.delay.{label}.{name}", ours, WINDOWS, RIVALS[name][0], theirs, 1.0)
        for name, theirs in late.items()
    ]


def _exceeding(values: np.ndarray, threshold: float) -> np.ndarray:
    return (values > threshold).any(axis=1).sum(axis=0)


# -- the screen -------------------------------------------------------------------------------------


def screen_rows() -> Sequence[Row]:
    """Return false findings and power with 40 true spikes among 4,096 features, layers, and cost."""
    rows = []
    for suffix, scenario in BURSTS.items():
        false, power, quiet = errors(scenario, SCREENED, TRUE, SCREEN_WINDOWS, 30)
        loud, least = 100 * quiet, 100 / SCREEN_WINDOWS
        rows += [
            _row(f"detect.screen.fdr{suffix}", false, FALSE, AIM, 0.05, 0.001),
            Row(f"detect.screen.power{suffix}", power, FOUND, AIM, 0.95, power / 0.95),
            _row(f"detect.screen.quiet{suffix}", loud, LOUD, AIM, 5.0, least),
        ]
    return [*rows, *_layer_rows(), _cost()]


def _layer_rows() -> Sequence[Row]:
    """Return how often and how late a whole layer fires whose features share their bursts."""
    rows = []
    for name, shared in (("C", 1.0), ("E", 0.5), ("E", 1.0)):
        scenario = replace(SCENARIOS[name], shared=shared)
        alarms = layer_alarms(scenario, (), LAYER, round(LAYER_DAYS * WINDOWS_A_DAY), 40)
        rate = len(alarms) / LAYER_DAYS
        label = f"detect.layer.false_alarms.{name}_{100 * shared:.0f}pct_shared"
        rows.append(_row(label, rate, PER_LAYER, AIM, 1.0, 1 / LAYER_DAYS))
    moved = Injection.spike(0.2).during(SCREEN_BASELINE).on(range(round(SHIFTED * LAYER)))
    late = [*layer_alarms(SCENARIOS["C"], [moved], LAYER, PATIENCE, 41), PATIENCE + 1]
    return [*rows, _row("detect.layer.delay", float(late[0]), WINDOWS, AIM, 30.0, 1.0)]


def _cost() -> Row:
    """Return the milliseconds a window of 131,072 features takes, beside the same test with scipy."""
    spike = Injection.spike(0.2).during(WIDE_BASELINE).on(range(WIDE // 100))
    traffic = Traffic(SCENARIOS["C"], WIDE, seed=50, injections=[spike])
    windows = traffic.counts(WIDE_BASELINE + 1)
    expected = expectation(islice(windows, WIDE_BASELINE), WIDE)
    last = next(windows)
    counts, requests = last.exceedances, last.requests
    ours = 1e3 * least_cpu_seconds(lambda: screen(counts, requests, expected, SCREEN))
    size = expected.requests * expected.rate / np.maximum(expected.dispersion - 1, 1e-4)
    rest = size / (size + requests * expected.rate)

    def scipy() -> object:
        chances = nbinom.sf(counts - 1, size, rest)
        return false_discovery_control(chances) <= SCREEN.false_discoveries

    theirs = 1e3 * least_cpu_seconds(scipy, 3)
    label = "scipy nbinom, false_discovery_control"
    return Row("detect.screen.131k_ms", ours, "ms of CPU a window", label, theirs, theirs / ours)


def drift_rows() -> Sequence[Row]:
    """Return false tickets of every scenario, and how late a shift is seen where traffic drifts."""
    rows = []
    for number, (name, plain) in enumerate(SCENARIOS.items()):
        scenario = replace(plain, **SMALL)
        found = ticket_hours(scenario, DRIFTING, DRIFT_DAYS, 60 + number)
        days = DRIFTING * DRIFT_DAYS
        rate, label = float(np.isfinite(found).sum()) / days, f"detect.drift.false_tickets.{name}"
        rows.append(_row(label, rate, TICKETS, AIM, AIM_TICKETS, 1 / days))
    for shift in SHIFTS:
        scenario = replace(SCENARIOS["C"], **SMALL)
        found = ticket_hours(scenario, DRIFTING, 1.0, 70, shift)
        late = min(float(np.median(found)), 25.0)
        rows.append(_row(f"detect.drift.delay.{shift:g}_sigma", late, HOURS, AIM, 3.0, 1.0))
    return rows


def _row(name: str, value: float, unit: str, peer: str, peer_value: float, least: float) -> Row:
    """Return a row of which less is better; what was never seen counts as seen once, ``least``."""
    return Row(name, value, unit, peer, peer_value, max(peer_value, least) / max(value, least))
