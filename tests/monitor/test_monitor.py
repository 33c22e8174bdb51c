"""The monitor: windows, flags, baselines, states, survival."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import EvidenceConfig, SpikeConfig, StatisticsConfig
from sidecar.detect import Detector, State
from sidecar.errors import (
    BaselineNotReady,
    CorruptState,
    LayerConflict,
    LimitReached,
    UnknownFeature,
    UnknownLayer,
    UnknownModel,
)
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Scope,
    Slice,
    View,
)
from sidecar.monitor import EvidenceBook, Flag, Monitor, Window, alerts_of

pytestmark = pytest.mark.unit

COUNTERS = ("sampled_requests", "sampled_exceedances", "spikes")
WIDTH = 6
WINDOW = 10.0
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
OTHER = LayerKey("m", "b" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW, warmup_rows=32, baseline_min_requests=6400, baseline_min_seconds=20
)
SPIKE = SpikeConfig(quantile=0.99, clear_windows=2, resolved_windows=2, unsampled_windows=3)


SETTLED = 150
"""Windows after which the recent level has forgotten where it began."""


def monitor(*layers: LayerKey) -> Monitor:
    """Return a monitor at time 0 with these layers registered."""
    made = Monitor(STATISTICS, SPIKE, now=0.0)
    for layer in layers:
        made.register(layer, WIDTH, Capture(server="test"), 0.0)
    return made


def sample(rng: np.random.Generator, rows: int = 64, layer: LayerKey = LAYER) -> LayerSample:
    """Return standard normal activations, one request a row."""
    values = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    requests = tuple(Request(str(i)) for i in range(rows))
    return LayerSample(layer, values, np.arange(rows, dtype=np.int32), requests)


def spike(rng: np.random.Generator, index: int, share: float = 0.5) -> LayerSample:
    """Return the same, with one feature far up in a share of the requests."""
    found = sample(rng)
    found.values[: int(len(found.values) * share), index] = 8.0
    return found


def learn(made: Monitor, rng: np.random.Generator, windows: int = 104) -> float:
    """Feed ordinary traffic until the baseline is frozen; return the time."""
    now = 0.0
    for _ in range(windows):
        made.apply(sample(rng), now + 1)
        now += WINDOW
        made.tick(now)
    return now


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(7)


def test_a_spike_fires_then_resolves_then_is_normal(rng: np.random.Generator) -> None:
    """The whole life of an alert, told by events; nearly a third of requests is no suspicion."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    now = learn(made, rng)
    states = []

    for step in range(30):
        made.apply(spike(rng, 2) if step < 4 else sample(rng), now + 1)
        now += WINDOW
        states += [e.what for e in made.tick(now) if e.what != "feature_condition"]

    assert ["feature_firing", "feature_resolved", "feature_normal"] == states
    assert State.NORMAL is made.feature(LAYER.feature(2)).state


def test_one_suspicious_window_alone_does_not_fire(rng: np.random.Generator) -> None:
    """A mild burst makes a feature pending and no more."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    now = learn(made, rng, SETTLED)
    states = []

    for step in range(12):
        made.apply(spike(rng, 2, share=0.22) if step == 0 else sample(rng), now + 1)
        now += WINDOW
        states += [e.what for e in made.tick(now) if e.what != "feature_condition"]

    assert ["feature_pending", "feature_normal"] == states


def test_the_status_of_a_firing_feature_says_why(rng: np.random.Generator) -> None:
    """The alert's numbers are in words a person can check."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes", "critical")}, 0.0)
    now = learn(made, rng, SETTLED)

    for _ in range(3):
        made.apply(spike(rng, 2), now + 1)
        now += WINDOW
        made.tick(now)
    found = made.feature(LAYER.feature(2))

    assert (State.FIRING, "critical") == (found.state, found.flag.severity if found.flag else "")
    assert found.exceedance_ratio == pytest.approx(0.5, abs=0.05)
    assert found.baseline_ratio == pytest.approx(0.01, abs=0.01)
    assert found.threshold == pytest.approx(2.33, abs=0.4)
    assert 8.0 == found.last
    assert "requests beyond the baseline's 99 % quantile" in found.explanation
    assert 0.0 == found.evidence_log10
    assert math.log10(8640 * 1000) == pytest.approx(found.evidence_threshold_log10)
    assert found.level_ratio == pytest.approx(0.01, abs=0.01)
    assert found.tolerated_ratio == pytest.approx(4 * found.level_ratio, rel=0.5)


def test_without_a_baseline_nothing_is_said(rng: np.random.Generator) -> None:
    """A feature whose ordinary range is unknown is unknown, whatever it does."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag()}, 0.0)

    made.apply(spike(rng, 2, share=1.0), 1.0)
    events = made.tick(WINDOW)
    found = made.feature(LAYER.feature(2))

    assert () == events
    assert State.UNKNOWN is found.state
    assert "Learning its baseline: 64 of at least 6400 requests" in found.explanation


def test_all_flagged_features_share_the_false_alarms(rng: np.random.Generator) -> None:
    """The threshold counts those of every layer, and those whose flag asks for the spike test."""
    made = monitor(LAYER, OTHER)
    names = [f"m/conv/channel/{index}" for index in range(4)]
    flags = {FeatureSelector.parse(name): Flag() for name in names}
    flags[FeatureSelector.parse(names[0])] = Flag(detectors=(Detector.CONDITIONS,))
    made.set_flags(flags, 0.0)
    learn(made, rng)

    first, second, *_ = made.watched()

    assert math.log10(8640 * 1000 * 6) == pytest.approx(second.evidence_threshold_log10)
    assert (State.UNKNOWN, "its flag does not ask for the spike test") == (
        first.state,
        first.explanation,
    )
    assert State.NORMAL is second.state


def test_a_flags_own_factor_is_used(rng: np.random.Generator) -> None:
    """A more patient flag tolerates more of its recent level."""
    made = monitor(LAYER)
    names = [f"m/conv/channel/{index}" for index in range(2)]
    selectors = [FeatureSelector.parse(name) for name in names]
    made.set_flags({selectors[0]: Flag(), selectors[1]: Flag(factor=12.0)}, 0.0)
    now = learn(made, rng)
    made.apply(sample(rng), now + 1)
    made.tick(now + WINDOW)

    common, own = made.watched()

    assert 3 * common.level_ratio == pytest.approx(common.tolerated_ratio)
    assert 12 * own.level_ratio == pytest.approx(own.tolerated_ratio)


def test_a_reset_drops_what_was_counted_at_once(rng: np.random.Generator) -> None:
    """A baseline learned anew within the same window does not inherit an alarm."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag()}, 0.0)
    now = learn(made, rng)
    made.apply(spike(rng, 2), now + 1)
    made.tick(now + WINDOW)
    before = made.feature(LAYER.feature(2)).state

    events = made.reset([LAYER], now + WINDOW + 1)
    made.apply(sample(rng), now + WINDOW + 2)
    made.freeze([LAYER], now + WINDOW + 3)
    made.apply(sample(rng), now + WINDOW + 4)
    made.tick(now + 2 * WINDOW)

    assert State.FIRING is before
    assert ["baseline_relearned", "feature_unknown", "feature_condition"] == [
        event.what for event in events
    ]
    assert "no baseline to compare with (was firing)" == events[1].detail
    assert State.NORMAL is made.feature(LAYER.feature(2)).state


def test_a_flag_follows_its_feature_into_a_new_revision(rng: np.random.Generator) -> None:
    """A new revision learns a baseline of its own, and never borrows the old one's."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    now = learn(made, rng)
    made.register(OTHER, WIDTH, Capture(), now)

    found = {s.key.layer.revision[0]: s.state for s in made.watched()}

    assert {"a": State.NORMAL, "b": State.UNKNOWN} == found


def test_an_unsampled_feature_becomes_unknown_and_not_quiet(rng: np.random.Generator) -> None:
    """No data is another thing than nothing unusual."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag()}, 0.0)
    now = learn(made, rng)
    made.apply(sample(rng), now + 1)
    made.tick(now + WINDOW)
    before = made.feature(LAYER.feature(2)).state

    for i in range(2, 7):
        made.tick(now + i * WINDOW)

    assert State.NORMAL is before
    assert State.UNKNOWN is made.feature(LAYER.feature(2)).state


def test_a_feature_that_learns_is_sampled(rng: np.random.Generator) -> None:
    """Nothing is judged yet, but nobody is told that there is no data; when there is none they are."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag()}, 0.0)
    for i in range(3):
        made.apply(sample(rng), i * WINDOW + 1)
        made.tick((i + 1) * WINDOW)

    learning = made.feature(LAYER.feature(2))
    for i in range(4, 12):
        made.tick(i * WINDOW)
    silent = made.feature(LAYER.feature(2))

    assert State.UNKNOWN is learning.state
    assert learning.requests >= 64
    assert () == alerts_of(learning, shifted=False)
    assert 0 == silent.requests
    assert ("SidecarFeatureUnsampled",) == alerts_of(silent, shifted=False)


def test_a_frozen_baseline_stands_while_traffic_moves(rng: np.random.Generator) -> None:
    """The baseline is what was accepted as ordinary, not what came last."""
    made = monitor(LAYER)
    now = learn(made, rng)
    before = made.distribution(LAYER.feature(0), Window.BASELINE)
    for _ in range(5):
        made.apply(spike(rng, 0, share=1.0), now + 1)
        now += WINDOW
        made.tick(now)

    after = made.distribution(LAYER.feature(0), Window.BASELINE)
    assert before.count == after.count
    assert before.counts.tolist() == after.counts.tolist()


def test_freezing_before_any_sample_is_refused(rng: np.random.Generator) -> None:
    """There is nothing to freeze; and the refusal freezes nothing else."""
    made = monitor(LAYER, OTHER)
    made.apply(sample(rng), 1.0)

    with pytest.raises(BaselineNotReady, match="no sample seen since"):
        made.freeze(made.select(), 2.0)
    assert [False, False] == [layer.baseline_frozen for layer in made.layers()]


def test_freeze_and_reset_by_command_are_told(rng: np.random.Generator) -> None:
    """Both leave an audit entry, and after a reset nothing is said again."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag()}, 0.0)
    made.apply(sample(rng), 1.0)
    made.tick(WINDOW)

    frozen = made.freeze(made.select("m"), 11.0)
    ready = made.feature(LAYER.feature(2)).threshold
    reset = made.reset(made.select("m"), 12.0)

    assert ["baseline_frozen", "baseline_relearned"] == [frozen[0].what, reset[0].what]
    assert np.isfinite(ready)
    assert np.isnan(made.feature(LAYER.feature(2)).threshold)


def test_resolving_a_name_says_what_there_is_instead() -> None:
    """Each kind of mistake in a name has its own error that helps."""
    made = monitor(LAYER, OTHER)

    assert LAYER.feature(3) == made.resolve("m@aaaa/conv/channel/3")
    with pytest.raises(UnknownFeature, match="fits revisions"):
        made.resolve("m/conv/channel/3")
    with pytest.raises(UnknownFeature, match="use 0 to 5"):
        made.resolve("m@aaaa/conv/channel/6")
    with pytest.raises(UnknownLayer, match="there are conv/channel"):
        made.resolve("m@aaaa/fc/channel/0")
    with pytest.raises(UnknownLayer):
        made.resolve("m@aaaa/conv/channel/3;mean")
    with pytest.raises(UnknownModel, match="no layer of model 'x'"):
        made.resolve("x@aaaa/conv/channel/3")


def test_a_layer_cannot_change_its_width() -> None:
    """Two widths under one name would mix two features' statistics."""
    made = monitor(LAYER)

    with pytest.raises(LayerConflict):
        made.register(LAYER, WIDTH + 1, Capture(), 1.0)


def test_everything_comes_back_from_its_encoding(rng: np.random.Generator) -> None:
    """After a restart the same distributions, baselines and firing states are there."""
    flags = {FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}
    made = monitor(LAYER, OTHER)
    made.set_flags(flags, 0.0)
    now = learn(made, rng)
    for _ in range(2):
        made.apply(spike(rng, 2), now + 1)
        now += WINDOW
        made.tick(now)

    again = Monitor(STATISTICS, SPIKE, now=now)
    again.restore(made.encode(), now)
    again.set_flags(flags, now)
    # Records are kept on the disk by themselves.
    again.show_evidence({record.feature: record.id for record in made.waiting_evidence()})

    assert made.layers() == tuple(replace(one, restored=(0, 0, 0)) for one in again.layers())
    assert (made.layers()[0].rows, made.layers()[0].requests, 0) == again.layers()[0].restored
    # Counters of a scrape start with the daemon.
    told = [replace(one, **dict.fromkeys(COUNTERS, 0)) for one in made.watched()]
    assert repr(tuple(told)) == repr(again.watched())
    assert State.FIRING is again.feature(LAYER.feature(2)).state
    for window in Window:
        key = LAYER.feature(2)
        assert repr(made.distribution(key, window)) == repr(again.distribution(key, window))
    # What fired before is not told again while it goes on.
    again.apply(spike(rng, 2), now + 1)
    assert () == again.tick(now + WINDOW)
    assert State.FIRING is again.feature(LAYER.feature(2)).state


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_snapshot_is_refused_and_changes_nothing(data: st.DataObject) -> None:
    """Whatever bytes come from the disk, the monitor stays usable."""
    rng = np.random.default_rng(0)
    made = monitor(LAYER)
    learn(made, rng, windows=2)
    payload = bytearray(made.encode())
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))]
    else:
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    again = Monitor(STATISTICS, SPIKE, now=0.0)

    try:
        again.restore(bytes(payload), 0.0)
    except CorruptState:
        assert () == again.layers()


def test_a_clock_that_jumps_neither_stalls_nor_floods(rng: np.random.Generator) -> None:
    """An hour ahead closes one window; an hour back does not wait an hour."""
    made = monitor(LAYER)

    def closed() -> int:
        return made.distribution(LAYER.feature(0), Window.HISTORY).count

    made.apply(sample(rng), 1.0)
    made.tick(3600.0)
    ahead = closed()
    made.apply(sample(rng), 3601.0)
    made.tick(3601.0)
    waiting = closed()
    made.tick(20.0)

    assert (64, 64, 128) == (ahead, waiting, closed())


def test_a_clock_that_is_put_back_does_not_put_off_the_baseline(rng: np.random.Generator) -> None:
    """A start in the future, from a clock that was wrong, is taken back."""
    made = monitor(LAYER)
    made.apply(sample(rng), 1_000_000.0)

    learn(made, rng)

    assert made.layers()[0].baseline_frozen


def test_requests_without_a_row_fill_no_baseline(rng: np.random.Generator) -> None:
    """A baseline of nothing cannot be frozen, and asking for it would stop every other layer's."""
    made = monitor(OTHER, LAYER)
    empty = LayerSample(
        OTHER,
        np.empty((0, WIDTH), np.float32),
        np.empty(0, np.int32),
        tuple(Request() for _ in range(1000)),
    )
    made.apply(empty, 1.0)

    learn(made, rng)

    assert [(6656, True), (0, False)] == [
        (layer.requests, layer.baseline_frozen) for layer in made.layers()
    ]


def test_a_feature_of_one_scope_is_named_apart_from_the_others() -> None:
    """The same unit on other positions is another feature."""
    bos = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX, Scope.BOS)
    made = monitor(LAYER, bos)

    assert LAYER.feature(1) == made.resolve(str(LAYER.feature(1)))
    assert bos.feature(1) == made.resolve(str(bos.feature(1)))


def test_a_snapshot_that_watches_beyond_a_layer_is_refused() -> None:
    """What the statistics would choke on is found before anything is changed."""
    made = monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/5"): Flag()}, 0.0)
    payload = made.encode().replace(b'"indices":[5]', b'"indices":[7]')
    again = Monitor(STATISTICS, SPIKE, now=0.0)

    with pytest.raises(CorruptState, match="features that"):
        again.restore(payload, 0.0)
    assert () == again.layers()


def test_flags_without_a_feature_are_told() -> None:
    """Neither a layer nobody has nor an index beyond the width is silently unwatched."""
    made = monitor(LAYER)
    selectors = [FeatureSelector.parse(f"m/conv/channel/{i}") for i in (0, WIDTH)]
    selectors.append(FeatureSelector.parse("m/fc/channel/0"))

    made.set_flags(dict.fromkeys(selectors, Flag()), 0.0)

    assert tuple(selectors[1:]) == made.unmatched()


def test_pages_of_features_join_to_the_whole() -> None:
    """Paging skips nothing and shows nothing twice."""
    made = monitor(LAYER, OTHER)
    keys = []
    for offset in range(0, 2 * WIDTH, 5):
        page, total = made.features(made.select(), offset, 5)
        keys += [status.key for status in page]

    assert 2 * WIDTH == total
    assert [layer.feature(i) for layer in (LAYER, OTHER) for i in range(WIDTH)] == keys


def test_a_revision_name_means_itself_and_not_what_begins_like_it() -> None:
    """Resetting v1 leaves v10 alone, and a feature of v1 can be named while v10 is known."""
    v1, v10 = (LayerKey("m", name, "conv") for name in ("v1", "v10"))
    made = monitor(v1, v10)

    assert (v1,) == made.select("m", "v1")
    assert v1.feature(3) == made.resolve("m@v1/conv/channel/3")
    assert v10.feature(3) == made.resolve("m@v10/conv/channel/3")


def test_layers_of_revisions_no_longer_served_give_way(rng: np.random.Generator) -> None:
    """A year of deployments fits: the longest silent layer goes, and nothing that is sampled."""
    limits = STATISTICS.model_copy(update={"layer_limit": 2, "retire_seconds": 100.0})
    made = Monitor(limits, SPIKE, now=0.0)
    for layer in (LAYER, OTHER):
        made.register(layer, WIDTH, Capture(), 0.0)
    made.apply(sample(rng), 50.0)
    third = LayerKey("m", "c" * 64, "conv")
    with pytest.raises(LimitReached):
        made.register(third, WIDTH, Capture(), 99.0)
    made.register(third, WIDTH, Capture(), 120.0)
    events = made.tick(130.0)

    assert {LAYER, third} == {status.key for status in made.layers()}
    assert [("layer_retired", str(OTHER))] == [(event.what, event.subject) for event in events]


def test_a_layer_no_retiring_could_make_room_for_costs_nobody_anything() -> None:
    """What is wider than the limit is refused, and old layers stay."""
    limits = STATISTICS.model_copy(update={"feature_limit": 10, "retire_seconds": 1.0})
    made = Monitor(limits, SPIKE, now=0.0)
    made.register(LAYER, WIDTH, Capture(), 0.0)
    with pytest.raises(LimitReached):
        made.register(OTHER, 11, Capture(), 1000.0)

    assert [LAYER] == [status.key for status in made.layers()]


@pytest.mark.parametrize("enabled", [False, True])
def test_a_feature_that_fires_has_a_record_that_names_the_route(
    rng: np.random.Generator, *, enabled: bool
) -> None:
    """Of two routes one spikes: record, audit entry and status agree on which."""
    book = EvidenceBook(EvidenceConfig(enabled=enabled))
    made = Monitor(STATISTICS, SPIKE, now=0.0, evidence=book)
    made.register(LAYER, WIDTH, Capture(), 0.0)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    now, events = learn(made, rng), []
    routes = [Slice.of({"route": "/eu" if i < 16 else "/us"}) for i in range(64)]

    for _ in range(3):
        loud = spike(rng, 2, share=0.25)
        requests = tuple(map(Request, map(str, range(64)), routes))
        made.apply(replace(loud, requests=requests), now + 1)
        now += WINDOW
        events += made.tick(now)
    (record,) = made.waiting_evidence()
    status = made.feature(LAYER.feature(2))

    assert "route=/eu" == record.attribution.cause
    assert "Without route=/eu the spike is gone" in next(
        event.detail for event in events if event.what == "feature_firing"
    )
    assert record.id == status.evidence_id == made.watched()[0].evidence_id
    assert status.threshold == pytest.approx(record.above)
    assert record.numbers["baseline_share"] == pytest.approx(status.baseline_ratio)
    assert enabled == bool(record.rows)
    made.show_evidence({})  # the disk has none of it yet
    assert record.id == made.feature(LAYER.feature(2)).evidence_id
    made.evidence_saved(record.id)
    made.show_evidence({})  # and now it has expired
    assert "" == made.feature(LAYER.feature(2)).evidence_id
    assert {"route=/eu"} >= {row.traffic for row in record.rows if row.value == 8.0}
    assert (128, 0) == (record.requests, record.uncounted)
