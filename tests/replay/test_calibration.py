"""Calibration finds what is known of made traffic, and its intervals hold the truth."""

import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.detect import SpikePolicy
from sidecar.replay import Calibration, Policy, calibrate, play
from sidecar.replay.delay import delay, enough_requests
from sidecar.replay.false_alarms import Cut, false_alarms, poisson_high, poisson_low
from sidecar.replay.traffic import FEATURES, Stretch, behaviour, stretches
from sidecar.store import Recordings, WindowRecord
from tests.replay.conftest import LAYER, Traffic

pytestmark = pytest.mark.unit

# Traffic that bursts, and a policy that is wrong often enough to be counted in seconds.
BURSTY = Traffic(features=4, variation=0.8, memory=0.9, rows=3.0)
JUMPY = Policy("jumpy", SpikePolicy(factor=1.5, false_alarms_per_1000_days=1e5))


def stretch(traffic: Traffic, windows: int, seed: int, policy: Policy = JUMPY) -> Stretch:
    """Return what ``stretches`` makes of recorded traffic, without the records in between."""
    rng, n = np.random.default_rng(seed), traffic.features
    counts = rng.binomial(traffic.requests, traffic.rates(windows, rng))
    more = rng.negative_binomial(np.maximum(counts, 1), 1 / traffic.rows)
    return Stretch(
        layer=LAYER,
        terms=policy.put_to(traffic.subject()),
        baseline=(360 * traffic.requests, 3600.0),
        flagged=n,
        of=n,
        at=10.0 * np.arange(1, windows + 1),
        requests=np.full(windows, traffic.requests),
        rows=np.full(windows, 16 * traffic.requests),
        compared=np.full((windows, n), traffic.requests),
        exceedances=counts,
        beyond=np.where(counts > 0, counts + more, 0),
        own=counts,
    )


def test_recorded_windows_become_a_stretch() -> None:
    """Every number of the measured features is where it belongs."""
    windows = list(BURSTY.windows(30, np.random.default_rng(1)))

    (part,) = stretches(windows, JUMPY)

    assert [w.at for w in windows] == part.at.tolist()
    assert [w.exceedances.tolist() for w in windows] == part.exceedances.tolist()
    assert [w.rows_beyond.tolist() for w in windows] == part.beyond.tolist()
    assert (4, 4, (23_040, 3600.0)) == (part.of, part.flagged, part.baseline)


def test_another_quantile_is_measured_at_its_level() -> None:
    """Exceedances are those of the policy, clustering is that of the recorded threshold."""
    windows = list(BURSTY.windows(5, np.random.default_rng(1)))

    (part,) = stretches(windows, Policy("p99", SpikePolicy(quantile=0.99)))

    assert [w.level_exceedances[:, 0].tolist() for w in windows] == part.exceedances.tolist()
    assert [w.exceedances.tolist() for w in windows] == part.own.tolist()


def test_another_baseline_is_another_stretch() -> None:
    """What was counted against two thresholds is not one series; without a baseline it is none."""
    rng, of = np.random.default_rng(1), BURSTY.subject()
    unlearned = replace(
        of, baseline="", baseline_rate=np.full(4, np.nan), baseline_share=np.full(4, np.nan)
    )
    windows = [
        *BURSTY.windows(5, rng, subject=unlearned),
        *BURSTY.windows(6, rng, subject=of),
        *BURSTY.windows(7, rng, subject=replace(of, baseline="other")),
    ]

    assert [6, 7] == [len(part.at) for part in stretches(windows, JUMPY)]


def test_incidents_are_left_out() -> None:
    """What really happened is no traffic to calibrate on."""
    windows = list(BURSTY.windows(20, np.random.default_rng(1), start=0.0))

    (part,) = stretches(windows, JUMPY, [(45.0, 95.0)])

    assert [10.0, 20.0, 30.0, 40.0, 100.0] == part.at[:5].tolist()


def test_of_very_many_features_an_even_choice_is_measured() -> None:
    """A layer with a thousand flags is measured in the same time as one with two hundred."""
    many = Traffic(features=1000)

    (part,) = stretches(many.windows(3, np.random.default_rng(1)), JUMPY)

    assert (3, FEATURES) == part.compared.shape
    assert 1000 == part.of


@pytest.mark.parametrize("rows", [1.0, 2.0, 4.0])
def test_clustering_is_recovered(rows: float) -> None:
    """Rows of an exceeding request: their mean, and how much more their number varies by it.

    Of a geometric number of mean ``m`` the variance is ``m (m - 1)``, so the design effect is
    ``2 m - 1``.
    """
    found = behaviour([stretch(Traffic(rows=rows), 8640, 1)])

    assert rows == pytest.approx(found.beyond_per_request, rel=0.03)
    assert 2 * rows - 1 == pytest.approx(found.design_effect, rel=0.1)
    assert 16.0 == found.rows_per_request


@pytest.mark.parametrize(("variation", "memory"), [(0.3, 0.8), (0.6, 0.95), (0.8, 0.9)])
def test_burstiness_is_recovered(variation: float, memory: float) -> None:
    """The spread of the true rate and its correlation over time, with chance taken out."""
    traffic = Traffic(features=40, variation=variation, memory=memory)

    found = behaviour([stretch(traffic, 8640, 2)])

    squared = math.exp(variation**2) - 1  # of a lognormal rate, over its squared mean
    assert math.sqrt(squared) == pytest.approx(found.variation, rel=0.06)
    dispersion = 1 + 63 * 0.016 * squared / 0.984
    assert dispersion == pytest.approx(found.dispersion, rel=0.06)
    shares = [(math.exp(variation**2 * memory**k) - 1) / squared for k in range(200)]
    assert shares[1] == pytest.approx(found.next_window, rel=0.1)
    assert 1 + 2 * sum(s for s in shares[1:] if s > 0.05) == pytest.approx(
        found.burst_windows, rel=0.2
    )


def test_independent_requests_have_no_bursts() -> None:
    """Chance alone is not taken for burstiness."""
    found = behaviour([stretch(Traffic(), 8640, 3)])

    assert 1.0 == pytest.approx(found.dispersion, abs=0.03)
    assert 1.0 == found.burst_windows
    assert math.isnan(found.next_window)


def test_the_error_of_a_baseline_counts_its_bursts() -> None:
    """An hour of independent requests knows a rate better than an hour with bursts."""
    calm = behaviour([stretch(Traffic(), 4320, 3)])
    bursty = behaviour([stretch(BURSTY, 4320, 3)])

    assert math.sqrt(0.984 / (23_040 * 0.016)) == pytest.approx(calm.baseline_error, rel=0.05)
    assert bursty.baseline_error > 3 * calm.baseline_error


def truth() -> tuple[float, int]:
    """Return the rate of false alarms of the jumpy policy in many feature-days, and their number."""
    part = replace(stretch(replace(BURSTY, features=400), 2166, 100), flagged=4)
    found = false_alarms([part], Cut(66, 2100), np.random.default_rng(0))
    return found.per_feature_day, found.alarms


def test_the_predicted_rate_of_false_alarms_is_within_its_interval() -> None:
    """Of ten recordings of five hours at most one may miss the rate of a hundred feature-days."""
    rate, alarms = truth()
    found = []
    for seed in range(10):
        part = stretch(BURSTY, 1800, seed)
        cut = Cut.of([part], JUMPY.spike, behaviour([part]).burst_windows)
        found.append(false_alarms([part], cut, np.random.default_rng(0)))

    assert alarms > 200
    assert sum(one.low <= rate <= one.high for one in found) >= 9
    assert 0.7 < np.mean([one.per_feature_day for one in found]) / rate < 1.4
    assert all(one.low < one.per_feature_day < one.high for one in found)
    assert np.mean([one.high for one in found]) < 4 * rate  # an interval that says something


def test_without_an_alarm_the_interval_begins_at_nothing() -> None:
    """Nothing seen in so many feature-days is no proof of nothing."""
    part = stretch(Traffic(), 2160, 1, Policy())
    cut = Cut.of([part], SpikePolicy(), 1.0)

    found = false_alarms([part], cut, np.random.default_rng(0))

    assert (0, 0, 0.0, 0.0) == (found.alarms, found.clumps, found.per_feature_day, found.low)
    assert 4 * 5 * 360 / 8640 == pytest.approx(found.feature_days)  # five whole blocks
    assert 3.69 / found.feature_days == pytest.approx(found.high, rel=0.01)
    assert found.resampled_feature_days > 1000 * found.feature_days


def test_alarms_of_one_cause_widen_the_interval() -> None:
    """Four features that burst together are less evidence than four that burst apart."""
    apart = stretch(BURSTY, 4320, 5)
    together = replace(
        apart,
        exceedances=np.repeat(apart.exceedances[:, :1], 4, axis=1),
        own=np.repeat(apart.own[:, :1], 4, axis=1),
    )
    cut = Cut(66, 360)

    wide, narrow = (false_alarms([one], cut, np.random.default_rng(0)) for one in (together, apart))

    assert wide.alarms > 3 * wide.clumps
    assert (wide.high - wide.low) / wide.per_feature_day > 1.2 * (
        (narrow.high - narrow.low) / narrow.per_feature_day
    )


def by_night(part: Stretch) -> Stretch:
    """Return the stretch as if nothing had exceeded in its first half."""
    counts = part.exceedances.copy()
    counts[: len(counts) // 2] = 0
    return replace(part, exceedances=counts)


def test_traffic_that_is_only_at_times_noisy_widens_the_interval() -> None:
    """Which hours a recording happens to have matters more than how many alarms it has."""
    part, cut = stretch(BURSTY, 2160, 1), Cut(66, 360)

    even, uneven = (
        false_alarms([one], cut, np.random.default_rng(0)) for one in (part, by_night(part))
    )

    width, other = ((one.high - one.low) / one.per_feature_day for one in (even, uneven))
    assert 1.3 * width < other


def test_the_same_seed_gives_the_same_numbers() -> None:
    """What is drawn by chance can be drawn again."""
    part, cut = by_night(stretch(BURSTY, 2160, 1)), Cut(66, 360)

    first, second, other = (
        false_alarms([part], cut, np.random.default_rng(seed), replicates=20) for seed in (1, 1, 2)
    )

    assert first == second
    assert first != other


def test_poisson_bounds_are_those_of_the_tables() -> None:
    """Garwood's, to three digits."""
    assert [0.0, 0.0253, 1.623, 37.1] == pytest.approx(
        [poisson_low(k, 0.025) for k in (0, 1, 5, 50)], rel=2e-3
    )
    assert [3.69, 5.57, 11.67, 65.9] == pytest.approx(
        [poisson_high(k, 0.025) for k in (0, 1, 5, 50)], rel=2e-3
    )


@pytest.mark.parametrize("requests", [12, 24, 64, 200])
def test_the_delay_is_what_a_replay_shows(requests: int) -> None:
    """Spikes in a fifth of the requests, in the traffic from the start, are found as often and as soon."""
    traffic = Traffic(features=800, requests=requests)
    spikes = [(feature, 100, 120, 0.2) for feature in range(800)]
    windows = list(traffic.windows(120, np.random.default_rng(1), spikes=spikes))
    quiet = stretches(traffic.windows(300, np.random.default_rng(2)), Policy())

    told = delay(quiet, np.random.default_rng(0))
    found = [(alarm.start - windows[99].at) / 10.0 for alarm in play(windows, Policy()).alarms]

    assert told is not None
    assert told.missed == pytest.approx(1 - len(found) / 800, abs=0.08)
    delays = [*found, *[math.inf] * (800 - len(found))]
    assert np.median(delays) in (told.windows, told.windows - 1, told.windows + 1)


def test_more_requests_find_spikes_in_time() -> None:
    """The number that is advised keeps its promise."""
    traffic = Traffic(requests=16)
    (part,) = stretches(traffic.windows(300, np.random.default_rng(2)), Policy())
    rng = np.random.default_rng(0)

    enough = enough_requests(part, behaviour([part]), rng, windows=2, missed=0.05)

    assert enough is not None
    assert 40 < enough < 120
    more = stretches(replace(traffic, requests=enough).windows(300, rng), Policy())
    told, before = delay(more, rng), delay([part], rng)
    assert told is not None
    assert before is not None
    assert told.windows <= 3 < before.windows
    assert told.missed < 0.1 < before.missed


def advised(found: Calibration) -> str:
    """Return the advice as one text."""
    return "\n".join(found.advice)


def test_advice_names_what_to_set() -> None:
    """A factor that is quiet, a baseline that is long enough, a sample that finds spikes in time."""
    small = replace(BURSTY, requests=16)
    windows = list(small.windows(4320, np.random.default_rng(1)))
    policy = Policy("p", SpikePolicy(factor=1.5, false_alarms_per_1000_days=1000.0))

    found = calibrate(windows, policy, (), np.random.default_rng(0))

    assert "With factor 1.5 expect" in advised(found)
    assert "Set spike.factor to" in advised(found) or "comes nearest" in advised(found)
    assert "statistics.baseline_min_seconds" in advised(found)
    assert "requests a window" in advised(found)
    assert "Rows of one request exceed together: 3" in advised(found)
    assert "can show no rate below" in found.limits[0]
    assert "--incident" in found.limits[1]


def test_windows_too_thin_for_the_quantile_are_told() -> None:
    """Where a window holds less than one exceeding request, calibration cannot vouch for bursts."""
    few, many = (
        calibrate(
            list(replace(BURSTY, requests=requests).windows(2000, np.random.default_rng(1))),
            Policy("p", SpikePolicy()),
            (),
            np.random.default_rng(0),
        )
        for requests in (16, 640)
    )

    assert any(line.startswith("Bursts of what is rare: a window holds") for line in few.limits)
    assert not any(line.startswith("Bursts of what is rare") for line in many.limits)


def test_a_stale_baseline_is_told() -> None:
    """Traffic that exceeds twice as often as when it was learned asks for another baseline."""
    rates = np.full(4, 0.008)
    of = replace(BURSTY.subject(), baseline_rate=rates, baseline_share=rates)
    calm = replace(BURSTY, variation=0.0)
    windows = list(calm.windows(600, np.random.default_rng(1), subject=of))

    found = calibrate(windows, Policy(), (), np.random.default_rng(0))

    assert () == play(windows, Policy()).alarms
    assert "requests exceed 2 times as often" in advised(found)
    assert "learn it anew (sidecar baseline relearn); if this was an incident" in advised(found)


def incident(count: int, share: float = 0.4) -> list[WindowRecord]:
    """Return as many windows, of which the last three quarters are an incident of all features."""
    spikes = [(feature, count // 4, count, share) for feature in range(4)]
    return list(Traffic().windows(count, np.random.default_rng(1), spikes=spikes, start=0.0))


def test_in_an_incident_nobody_is_told_to_learn_it() -> None:
    """What fires may be true: the way out is to name its time, and then nothing is left to say."""
    windows = incident(800)

    found = calibrate(windows, Policy(), (), np.random.default_rng(0))
    without = calibrate(windows, Policy(), [(2001.0, 8000.0)], np.random.default_rng(0))

    assert "19 times as often as in the baseline, with 4 alarms" in advised(found)
    assert "name the times of true incidents with --incident" in advised(found)
    assert "learn" not in advised(found)
    assert "as often as in the baseline" not in advised(without)


def test_minutes_say_nothing_of_a_baseline() -> None:
    """A recording of less than an hour may be any traffic; that is said instead."""
    found = calibrate(incident(300), Policy(), (), np.random.default_rng(0))

    assert "baseline" not in advised(found)
    assert "of 1 layer less than 1 h is recorded, which may be any traffic" in found.limits[-1]


def test_no_shorter_baseline_is_advised_than_the_default() -> None:
    """Busy traffic needs minutes only, and the screen needs its two hours all the same."""
    busy = Traffic(requests=400)
    of = replace(busy.subject(), baseline_requests=900, baseline_seconds=1200.0)
    windows = busy.windows(600, np.random.default_rng(1), subject=of)

    found = calibrate(windows, Policy(), (), np.random.default_rng(0))

    assert "the baseline of 900 requests over 20 min knows its rates to" in advised(found)
    assert "learn for 2 h at this traffic (statistics.baseline_min_seconds: 7200)" in advised(found)


def test_advice_does_not_contradict_itself() -> None:
    """Where a policy is too noisy already, no lower factor is advised for the sake of its delay."""
    text = advised(calibrate(incident(800), Policy(), (), np.random.default_rng(0)))

    assert "Watch a higher spike.quantile." in text
    assert "a lower spike.factor would find them, and be wrong even more often" in text
    assert "lower spike.factor or raise" not in text
    assert "learn the baseline on traffic like this" not in text


def test_a_recording_that_is_too_short_says_so() -> None:
    """What can be measured is, and the rate of false alarms is not made up."""
    windows = BURSTY.windows(200, np.random.default_rng(1))

    found = calibrate(windows, Policy(), (), np.random.default_rng(0))

    assert found.rates is None
    assert found.overall is not None
    assert "record for longer" in found.limits[0]


def test_without_a_baseline_there_is_nothing_to_calibrate() -> None:
    """The answer says what to wait for."""
    found = calibrate((), Policy(), (), np.random.default_rng(0))

    assert ("No window has a baseline: record until it is learned, and calibrate then.",) == (
        found.advice
    )


# -- the command ----------------------------------------------------------------------------------


def record(root: Path, seed: int = 1) -> list[float]:
    """Record six hours of bursty traffic; return when."""
    recordings = Recordings(root, limit_bytes=1 << 24, segment_bytes=1 << 20)
    times = []
    for window in BURSTY.windows(2160, np.random.default_rng(seed)):
        recordings.append(window)
        times.append(window.at)
    recordings.close()
    return times


def run(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


def test_the_command_prints_what_was_measured(tmp_path: Path) -> None:
    """As a table and as JSON, with the same numbers."""
    record(tmp_path / "recordings")
    policy = tmp_path / "policy.yaml"
    policy.write_text("factor: 1.5\nfalse_alarms_per_1000_days: 100000\n")

    table = run(tmp_path / "recordings", "--config", policy)
    answer = json.loads(run(tmp_path / "recordings", "--config", policy, "--format", "json").stdout)

    assert 0 == table.exit_code, table.output
    assert "DISPERSION" in table.stdout
    assert "What this cannot know:" in table.stdout
    assert "1 h, " in table.stdout
    assert not re.search(r"\de[+-]\d|\b1 \w+s\b", table.stdout)  # neither 1e+02 nor 1 windows
    assert 3.0 == pytest.approx(answer["overall"]["beyond_per_request"], rel=0.05)
    mine = answer["false_alarms"]
    assert f"{mine['alarms']} alarms in {mine['feature_days']:.3g} feature-days" in table.stdout
    assert mine["low"] < mine["per_feature_day"] < mine["high"]
    others = answer["other_factors"]
    assert [2.0, 3.0, 4.0, 6.0, 8.0] == [one["factor"] for one in others]
    missed = [one["spikes"]["missed"] for one in (answer, *others)]
    assert sorted(missed) == missed
    assert missed[0] < 0.1 < missed[-1]  # a greater factor is quieter, and blinder
    assert mine["per_1000_days"]["expected"] == pytest.approx(4000 * mine["per_feature_day"])


def test_incidents_are_named_by_their_times(tmp_path: Path) -> None:
    """In UTC where nothing else is said."""
    times = record(tmp_path)
    start, end = (datetime.fromtimestamp(times[i], UTC) for i in (0, 1079))
    text = f"{start:%Y-%m-%dT%H:%M:%S}/{end:%Y-%m-%dT%H:%M:%S}+00:00"

    whole = json.loads(run(tmp_path, "--format", "json").stdout)
    part = json.loads(run(tmp_path, "--format", "json", "--incident", text).stdout)

    assert whole["overall"]["windows"] - 1080 == part["overall"]["windows"]
    assert "incidents are left out" in part["cannot_know"][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yesterday", "is not FROM/TO"),
        ("2026-11-26T03:00", "is not FROM/TO"),
        ("2026-11-26T03:00/2026-11-26T02:00", "ends before it begins"),
    ],
)
def test_an_incident_that_is_no_time_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """With an example of one that is."""
    record(tmp_path)

    found = run(tmp_path, "--incident", text)

    assert 2 == found.exit_code
    assert message in found.stderr
