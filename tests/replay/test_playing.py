"""A replay does what the daemon did, and says what another policy would have done."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import FlagConfig, PolicyConfig, SpikeConfig
from sidecar.detect import SpikePolicy, State
from sidecar.features import Capture, FeatureSelector
from sidecar.monitor import Event, Flag, Monitor
from sidecar.replay import Alarm, Player, Policy, compare, days, measure, play, tallies
from sidecar.store import WindowRecord
from tests.monitor.test_monitor import LAYER as LIVE
from tests.monitor.test_monitor import OTHER, SPIKE, STATISTICS, WIDTH, sample, spike
from tests.monitor.test_monitor import WINDOW as LIVE_WINDOW
from tests.replay.conftest import LAYER, WINDOW, Traffic, unsampled

pytestmark = pytest.mark.unit

FACTOR_3 = Policy("three", SpikePolicy(factor=3.0))


def in_force() -> Policy:
    """The policy of the live monitor of these tests."""
    return Policy.of("live", PolicyConfig(spike=SPIKE))


class Live:
    """A monitor whose windows are recorded, and its events."""

    def __init__(self, seed: int) -> None:
        self.windows: list[WindowRecord] = []
        self.events: list[Event] = []
        self.rng, self.now = np.random.default_rng(seed), 0.0
        self.monitor = self._monitor()
        self.monitor.register(LIVE, WIDTH, Capture(), 0.0)
        self.monitor.register(OTHER, WIDTH, Capture(), 0.0)
        self.flag(1, 2)

    def _monitor(self) -> Monitor:
        return Monitor(
            STATISTICS, SPIKE, now=self.now, on_window=self.windows.append, levels=(0.9,)
        )

    def flag(self, *indices: int, factor: float | None = None) -> None:
        """Flag these features in both layers."""
        flags = {FeatureSelector.parse(f"m/conv/channel/{i}"): Flag(factor=factor) for i in indices}
        self.monitor.set_flags(flags, self.now)

    def run(self, kinds: str) -> None:
        """Live through windows: ``n`` normal, ``s`` spiking, ``0`` without traffic, and commands.

        ``f`` flags a third feature, ``u`` unflags it; ``r`` forgets the baseline and ``R`` learns
        another within the window; ``k`` restarts.
        """
        for kind in kinds:
            self._command(kind)
            if kind != "0":
                for layer in (LIVE, OTHER):
                    found = spike(self.rng, 2) if kind == "s" else sample(self.rng)
                    self.monitor.apply(replace(found, layer=layer), self.now + 2)
            if kind == "R":
                self.events += self.monitor.freeze([LIVE], self.now + 3)
            self.now += LIVE_WINDOW
            self.events += self.monitor.tick(self.now)

    def _command(self, kind: str) -> None:
        if kind == "f":
            self.flag(1, 2, 3, factor=2.0)
        elif kind == "u":
            self.flag(1, 2)
        elif kind == "k":
            payload = self.monitor.encode()
            self.monitor = self._monitor()
            self.monitor.restore(payload, self.now)
            self.flag(1, 2)
        elif kind in "rR":
            self.events += self.monitor.reset([LIVE], self.now + 1)

    def changes(self) -> list[tuple[float, str, str, str]]:
        """Return what became of features, in order."""
        return [
            (event.at, event.what.removeprefix("feature_"), event.subject, event.detail)
            for event in self.events
            if event.what.removeprefix("feature_") in set(State)
        ]


def replayed(windows: list[WindowRecord]) -> list[tuple[float, str, str, str]]:
    """Return what a replay of the same policy says became of features."""
    return [
        (
            change.transition.at,
            str(change.transition.after),
            str(change.feature),
            change.transition.reason,
        )
        for change in play(windows, in_force()).changes
    ]


def test_a_replay_of_the_policy_in_force_is_what_happened() -> None:
    """Every change of state is there, at the same time and with the same words."""
    live = Live(7)

    live.run("n" * 104 + "ssss" + "n" * 12 + "0000" + "nn" + "k" + "ssss" + "000" + "n" * 10)

    assert live.changes() == replayed(live.windows)
    assert {"firing", "resolved", "normal", "unknown"} <= {one[1] for one in live.changes()}


@settings(max_examples=15)
@given(kinds=st.lists(st.sampled_from("nnss0fuk"), max_size=25), seed=st.integers(0, 99))
def test_whatever_happens_a_replay_tells_the_same(kinds: list[str], seed: int) -> None:
    """Spikes, silences, flags that come and go, restarts: the record holds all that matters."""
    live = Live(seed)

    live.run("n" * 102 + "".join(kinds))

    assert live.changes() == replayed(live.windows)


@pytest.mark.parametrize("kind", ["r", "R"])
def test_a_baseline_that_is_learned_anew_is_seen(kind: str) -> None:
    """Also one that was replaced within a window; the time is then that of the window's end."""
    live = Live(3)

    live.run("n" * 104 + "ssss" + kind + "n" * 10)

    told, found = live.changes(), replayed(live.windows)
    assert [one[1:] for one in told] == [one[1:] for one in found]
    assert all(abs(a[0] - b[0]) < LIVE_WINDOW for a, b in zip(told, found, strict=True))


def test_alarms_have_a_beginning_an_end_and_words() -> None:
    """A spike in the traffic is one alarm of one feature."""
    rng = np.random.default_rng(1)
    windows = list(Traffic().windows(200, rng, spikes=[(2, 100, 120, 0.3)]))

    found = play(windows, FACTOR_3)

    (alarm,) = found.alarms
    assert LAYER.feature(6) == alarm.feature
    assert windows[100].at <= alarm.start <= windows[102].at
    assert windows[125].at <= alarm.end <= windows[130].at
    assert alarm.evidence_log10 >= alarm.threshold_log10 > 7
    assert 0.25 < alarm.peak_rate < 0.6
    assert "requests beyond the baseline's 99.9 % quantile" in alarm.reason


def test_an_alarm_that_lasts_has_no_end() -> None:
    """What still fires at the end of the recording is told as that."""
    rng = np.random.default_rng(1)
    windows = Traffic().windows(120, rng, spikes=[(0, 100, 120, 0.3)])

    (alarm,) = play(windows, FACTOR_3).alarms

    assert math.isnan(alarm.end)


def test_an_alarm_is_held_through_a_silence() -> None:
    """A feature that is not sampled for a while has not fired twice."""
    rng = np.random.default_rng(1)
    windows = list(Traffic().windows(200, rng, spikes=[(0, 100, 140, 0.3)]))
    windows[110:120] = [unsampled(window) for window in windows[110:120]]

    (alarm,) = play(windows, FACTOR_3).alarms

    assert alarm.end >= windows[140].at


def test_another_policy_fires_on_other_things() -> None:
    """A smaller factor finds what a greater one tolerates."""
    rng = np.random.default_rng(1)
    spikes = [(0, 100, 110, 0.4), (1, 300, 320, 0.09)]
    windows = list(Traffic(requests=256).windows(400, rng, spikes=spikes))

    low = play(windows, Policy("low", SpikePolicy(factor=2.0)))
    high = play(windows, Policy("high", SpikePolicy(factor=6.0)))
    found = compare(low.alarms, high.alarms)

    assert [LAYER.feature(3)] == [one.feature for one in found.new]
    assert [LAYER.feature(0)] == [one.feature for one in found.kept]
    assert () == found.gone
    assert found.new == compare(high.alarms, low.alarms).gone


def test_alarms_that_overlap_are_one() -> None:
    """Two policies see one spike at slightly different times."""

    def alarm(start: float, end: float, index: int = 0) -> Alarm:
        return Alarm(LAYER.feature(index), start, end, 8.0, 7.0, 0.2, "")

    kept = compare([alarm(100, 200)], [alarm(180, math.nan)]).kept
    apart = compare([alarm(100, 200)], [alarm(300, math.nan)])
    other = compare([alarm(100, 200)], [alarm(100, 200, 1)])

    assert 1 == len(kept)
    assert (1, 1) == (len(apart.new), len(apart.gone))
    assert (1, 1) == (len(other.new), len(other.gone))


def test_a_flag_of_the_policy_counts_for_its_feature() -> None:
    """A factor of its own, or that it is not tested, is put to the recorded counts."""
    rng = np.random.default_rng(1)
    windows = list(Traffic().windows(200, rng, spikes=[(0, 100, 120, 0.3), (1, 100, 120, 0.3)]))

    def under(**flag: object) -> set[int]:
        flags = [FlagConfig.model_validate({"feature": "lite0/_blocks.14/channel/3", **flag})]
        policy = Policy.of("p", PolicyConfig(flags=flags))
        return {one.feature.index for one in play(windows, policy).alarms}

    assert {0, 3} == under()
    assert {0} == under(factor=30.0)
    assert {0} == under(detectors=["drift"])


def test_a_recorded_factor_holds_unless_the_policy_names_the_feature() -> None:
    """What a flag said when this was recorded is part of the policy in force."""
    rng = np.random.default_rng(1)
    traffic = Traffic()
    of = replace(traffic.subject(), factor=np.array([30.0, np.nan, np.nan, np.nan]))
    spikes = [(0, 100, 120, 0.3), (1, 100, 120, 0.3)]
    windows = list(traffic.windows(200, rng, spikes=spikes, subject=of))
    named = FlagConfig(feature="lite0/_blocks.14/channel/0")

    assert {3} == {one.feature.index for one in play(windows, FACTOR_3).alarms}
    policy = Policy.of("p", PolicyConfig(flags=[named]))
    assert {0, 3} == {one.feature.index for one in play(windows, policy).alarms}


def quantile(level: float) -> Policy:
    """A policy with another quantile."""
    return Policy.of("q", PolicyConfig(spike=SpikeConfig(quantile=level)))


def test_a_recorded_level_is_used_for_another_quantile() -> None:
    """Its counts and its baseline are taken, and nothing has to be said of it."""
    windows = list(Traffic().windows(60, np.random.default_rng(1)))
    player = Player(quantile(0.99), [LAYER.feature(0)])

    for window in windows:
        player.play(window)

    trace, found = player.traces[LAYER.feature(0)], player.finish()
    assert [w.level_exceedances[0, 0] / 64 for w in windows] == trace.rate
    assert pytest.approx(1 - (1 - 0.016) ** 10) == trace.baseline[0]
    assert () == found.notes
    assert "99 % quantile" in found.changes[0].transition.reason


@pytest.mark.parametrize(
    ("wanted", "used"), [(0.9, 0.99), (0.996, 0.99), (0.997, 0.999), (0.99999, 0.9999)]
)
def test_a_quantile_that_was_not_recorded_is_the_nearest_and_said(
    wanted: float, used: float
) -> None:
    """The nearest is that whose tail is the most alike."""
    found = play(Traffic().windows(20, np.random.default_rng(1)), quantile(wanted))

    (note,) = found.notes
    assert f"quantile {wanted:g} was not recorded, {used:g} is the nearest" in note
    assert "recording.levels" in note


def test_a_feature_without_that_level_keeps_its_threshold() -> None:
    """One that is watched below its baseline is counted at its own threshold alone."""
    traffic = Traffic()
    rates = traffic.subject().level_rates.copy()
    rates[1] = np.nan
    of = replace(traffic.subject(), level_rates=rates)
    windows = list(traffic.windows(60, np.random.default_rng(1), subject=of))
    player = Player(quantile(0.99), [LAYER.feature(0), LAYER.feature(3)])

    for window in windows:
        player.play(window)

    trace = player.traces[LAYER.feature(3)]
    assert [w.exceedances[1] / 64 for w in windows] == trace.rate
    (note,) = player.finish().notes
    assert "1 feature watched below the baseline or on a slice" in note


def test_gaps_are_found_and_left_out_of_the_days() -> None:
    """A recording with an hour missing covers an hour less."""
    rng, traffic = np.random.default_rng(1), Traffic()
    windows = [
        *traffic.windows(360, rng, start=0.0),
        *traffic.windows(360, rng, start=7200.0),
    ]

    (extent,) = measure(windows).values()

    (gap,) = extent.gaps
    assert (3600.0, 7210.0) == (gap.start, gap.end)
    assert pytest.approx(2 / 24) == days({LAYER: extent})
    assert (720, 720, 0) == (extent.windows, extent.sampled, extent.backward)


def test_windows_that_go_back_in_time_are_counted() -> None:
    """Two daemons in one replay would be one feature that is in two states."""
    rng, traffic = np.random.default_rng(1), Traffic()
    windows = [*traffic.windows(5, rng), *traffic.windows(5, rng)]

    (extent,) = measure(windows).values()

    assert 1 == extent.backward


def test_the_noisiest_feature_comes_first() -> None:
    """The table begins with what is worth looking at."""
    rng = np.random.default_rng(1)
    spikes = [(1, 100, 110, 0.4), (2, 100, 110, 0.4), (2, 200, 210, 0.4)]
    windows = list(Traffic().windows(300, rng, spikes=spikes))
    found = play(windows, FACTOR_3)

    ordered = tallies(found.alarms, measure(windows))

    assert [(6, 2), (3, 1)] == [(one.feature.index, one.pages) for one in ordered]
    assert all(one.seconds >= 10 * WINDOW for one in ordered)


def test_a_feature_that_is_unflagged_no_longer_fires() -> None:
    """Its alarm ends with the flag."""
    rng, traffic = np.random.default_rng(1), Traffic()
    spikes = [(3, 100, 110, 0.4)]
    less = Traffic(features=3)
    windows = [
        *traffic.windows(110, rng, spikes=spikes, start=0.0),
        *less.windows(20, rng, start=1100.0),
    ]

    (alarm,) = play(windows, FACTOR_3).alarms

    assert 1110.0 == alarm.end
