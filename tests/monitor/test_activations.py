"""What watched features did since the start: totals, quantiles, bounds, and what survives a change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    View,
)
from sidecar.monitor import Flag, LayerActivations, Monitor
from sidecar.monitor.activations import BOUND_LIMIT, FALLBACK_BOUNDS
from sidecar.monitor.exponential import BUCKET_LIMIT

pytestmark = pytest.mark.unit

WIDTH = 6
WINDOW = 10.0
WARMUP = 64
LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.NEURON, View.RAW)
NEXT = LayerKey("m", "b" * 64, "conv", FeatureKind.NEURON, View.RAW)
STATISTICS = StatisticsConfig(
    window_seconds=WINDOW,
    warmup_rows=WARMUP,
    baseline_min_requests=10_000,
    baseline_min_seconds=1e9,
    layer_limit=1,
)

SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "mostly zero": lambda rng, n: np.maximum(rng.normal(-1.28, 1.0, n), 0.0),
    "far from zero": lambda rng, n: rng.normal(100.0, 1.0, n),
    "heavy tails": lambda rng, n: rng.standard_t(1.5, n),
    "negative": lambda rng, n: -rng.lognormal(0.0, 1.0, n),
    "constant": lambda _, n: np.full(n, -2.5),
}


class Traffic:
    """A monitor that watches all features of one layer, and all that it was sent after warm-up."""

    def __init__(
        self,
        indices: tuple[int, ...] = tuple(range(WIDTH)),
        limit: int = 1000,
        warmup_rows: int = WARMUP,
    ) -> None:
        """Register the layer and flag these features."""
        settings = STATISTICS.model_copy(update={"warmup_rows": warmup_rows})
        self.monitor = Monitor(settings, SpikeConfig(), now=0.0, activation_limit=limit)
        self.monitor.register(LAYER, WIDTH, Capture(), 0.0)
        self.flag(*indices)
        self.sent: list[np.ndarray] = []
        self.now = 0.0

    def flag(self, *indices: int) -> None:
        """Watch exactly these features."""
        chosen = [FeatureSelector.parse(f"m/conv/neuron/{index}") for index in indices]
        self.monitor.set_flags({one: Flag() for one in chosen}, 0.0)

    def window(self, values: np.ndarray) -> None:
        """Send rows, one request each, and close the window."""
        rows = values.astype(np.float32)
        requests = tuple(Request() for _ in rows)
        index = np.arange(len(rows), dtype=np.int32)
        self.monitor.apply(LayerSample(LAYER, rows, index, requests), self.now + 1.0)
        self.now += WINDOW
        self.monitor.tick(self.now)
        self.sent.append(rows)

    def view(self) -> LayerActivations:
        """Return the layer's activations."""
        (found,) = self.monitor.activations()
        return found


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(11)


def shaped(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return rows with one column of each shape."""
    return np.stack([make(rng, rows) for make in SHAPES.values()], axis=1)


def quantile(seen: LayerActivations, place: int, level: float) -> float:
    """Return a quantile as Prometheus reads it off a native histogram: linear within a bucket."""
    mine = seen.bucket_features == place
    ranks, counts = seen.bucket_ranks[mine], seen.bucket_counts[mine]
    wanted = level * counts.sum()
    at = int(np.searchsorted(np.cumsum(counts), wanted))
    below = counts[:at].sum()
    zero = 2.0 ** int(seen.zero_exponent[place])
    step = 2.0 ** -int(seen.schema[place])
    rank = int(ranks[at])
    if rank == 0:
        low = -zero if ranks[0] < 0 else 0.0
        high = zero if ranks[-1] > 0 or ranks[0] == 0 else 0.0
    else:
        low, high = sorted(np.sign(rank) * zero * 2.0 ** (step * (abs(rank) - np.array([1, 0]))))
    return float(low + (high - low) * (wanted - below) / counts[at])


def test_counts_sums_and_quantiles_are_those_of_what_was_sent(rng: np.random.Generator) -> None:
    """Over windows of many shapes totals are exact and quantiles right to a bucket and a bin."""
    traffic = Traffic()
    for _ in range(5):
        traffic.window(shaped(rng, 4000))

    seen = traffic.view()

    sent = np.concatenate(traffic.sent).astype(np.float64)
    assert [len(sent)] * WIDTH == seen.count.tolist()
    np.testing.assert_allclose(seen.sum, sent.sum(axis=0), rtol=1e-6, atol=1e-3)
    for place in range(WIDTH):
        mine = seen.bucket_counts[seen.bucket_features == place]
        assert mine.sum() == len(sent)
        assert (mine > 0).all()
        assert len(mine) <= BUCKET_LIMIT
        width = 2.0 ** (2.0 ** -int(seen.schema[place])) - 1.0
        centre = np.median(sent[:, place])
        for level in (0.01, 0.25, 0.75, 0.99, 0.999):
            exact = np.quantile(sent[:, place], level)
            # A bucket's width, a bin's 6 % of the distance from the centre, the zero bucket's.
            room = width * abs(exact) + 0.07 * abs(exact - centre)
            room += 2.0 ** int(seen.zero_exponent[place])
            assert abs(quantile(seen, place, level) - exact) <= room, (place, level)


def test_values_close_together_get_finer_buckets(rng: np.random.Generator) -> None:
    """Far from zero the schema is the finest; over many factors of two it is as coarse as needed."""
    traffic = Traffic()
    traffic.window(shaped(rng, 4000))

    schema = dict(zip(SHAPES, traffic.view().schema.tolist(), strict=True))

    assert 8 == schema["far from zero"] == schema["constant"]
    assert schema["normal"] >= 4
    assert schema["heavy tails"] >= 3


def test_counts_only_grow_whatever_the_traffic_does(rng: np.random.Generator) -> None:
    """When values reach farther, when bins are placed anew, nothing that was counted is lost."""
    traffic = Traffic()
    before = None
    for step in range(8):
        traffic.window(rng.normal(size=(500, WIDTH)) * 10.0 ** (step % 5) + step)
        if step == 4:
            traffic.monitor.reset([LAYER], traffic.now)
        seen = traffic.view()
        if before is not None:
            assert (seen.count >= before.count).all()
            assert (seen.schema <= before.schema).all()
            assert (seen.zero_exponent >= before.zero_exponent).all()
        assert seen.count.sum() == seen.bucket_counts.sum()
        before = seen

    assert before is not None
    assert before.count[0] == 500 * 8


def test_bins_placed_anew_move_no_value(rng: np.random.Generator) -> None:
    """Zero buckets only widen, over what was near zero; everything else stays where it was."""
    traffic = Traffic()
    borders = []
    for scale in (1.0, 1000.0, 1.0):
        traffic.window(rng.normal(size=(4000, WIDTH)) * scale)
        borders.append(traffic.view().zero_exponent.tolist())
        traffic.monitor.reset([LAYER], traffic.now)

    seen = traffic.view()

    sent = np.concatenate(traffic.sent)
    assert borders[0] < borders[1] == borders[2]
    for place in range(WIDTH):
        zero = 2.0 ** int(seen.zero_exponent[place])
        assert 20.0 < zero < 80.0
        central = seen.bucket_counts[(seen.bucket_features == place) & (seen.bucket_ranks == 0)]
        assert (np.abs(sent[:, place]) <= zero).sum() == pytest.approx(int(central[0]), abs=40)
        for level in (0.02, 0.9, 0.98):
            exact = np.quantile(sent[:, place], level)
            assert quantile(seen, place, level) == pytest.approx(exact, rel=0.15, abs=zero)


def test_what_a_reader_holds_never_changes(rng: np.random.Generator) -> None:
    """A view taken before a window is the same after it."""
    traffic = Traffic()
    traffic.window(shaped(rng, 500))
    view = traffic.view()
    saved = [np.array(getattr(view, name)) for name in ("count", "bucket_counts", "below", "sum")]

    traffic.window(shaped(rng, 500))

    held = [getattr(view, name) for name in ("count", "bucket_counts", "below", "sum")]
    assert all(np.array_equal(a, b) for a, b in zip(saved, held, strict=True))


def test_bounds_come_from_the_baseline_and_stay(rng: np.random.Generator) -> None:
    """Before a baseline they are decades; then readable quantiles, zero among them, for its life."""
    traffic = Traffic()
    traffic.window(shaped(rng, 4000))
    first = traffic.view().bounds
    traffic.monitor.freeze([LAYER], traffic.now)
    frozen = traffic.view().bounds
    traffic.window(shaped(rng, 4000) * 3)

    later = traffic.view()

    assert list(FALLBACK_BOUNDS) == first[0][np.isfinite(first[0])].tolist()
    assert frozen is later.bounds
    for row in frozen:
        finite = row[np.isfinite(row)]
        assert 0.0 in finite.tolist()
        assert len(finite) <= BOUND_LIMIT
        assert (np.diff(finite) > 0).all()
        assert all(len(f"{bound:.10g}".lstrip("-0.")) <= 6 for bound in finite), finite
    far = frozen[list(SHAPES).index("far from zero")]
    assert np.count_nonzero((far > 95) & (far < 105)) >= 12


def test_bucket_counts_are_those_of_what_was_sent(rng: np.random.Generator) -> None:
    """Each bound's count is right to the values of the one bin that holds it; zero is exact."""
    traffic = Traffic()
    traffic.window(shaped(rng, 4000))
    traffic.monitor.freeze([LAYER], traffic.now)
    traffic.sent.clear()
    for _ in range(3):
        traffic.window(shaped(rng, 4000))

    seen = traffic.view()

    sent = np.concatenate(traffic.sent)
    for place, name in enumerate(SHAPES):
        exact = (sent[:, place, None] <= seen.bounds[place]).sum(axis=0)
        assert len(sent) == seen.below[place, -1]
        assert (np.diff(seen.below[place]) >= 0).all()
        if name != "constant":
            assert np.abs(seen.below[place] - exact).max() <= 0.03 * len(sent), name
    zeros = list(SHAPES).index("mostly zero")
    at_zero = int(np.flatnonzero(seen.bounds[zeros] == 0.0)[0])
    assert (sent[:, zeros] <= 0).sum() == seen.below[zeros, at_zero]


def test_flags_come_and_go(rng: np.random.Generator) -> None:
    """A feature that stays watched keeps its counts; a new one starts at zero."""
    traffic = Traffic((0, 1))
    traffic.window(shaped(rng, 500))
    traffic.flag(1, 4)
    traffic.window(shaped(rng, 300))

    seen = traffic.view()

    assert [1, 4] == [key.index for key in seen.keys]
    assert [800, 300] == seen.count.tolist()
    assert [800, 300] == seen.below[:, -1].tolist()
    assert seen.bucket_counts[seen.bucket_features == 0].sum() == 800


def test_the_warm_up_is_not_in_it(rng: np.random.Generator) -> None:
    """Until the bins are placed nothing is counted; a feature has zero counts, not none."""
    traffic = Traffic()
    traffic.window(shaped(rng, WARMUP - 1))

    seen = traffic.view()

    assert [0] * WIDTH == seen.count.tolist()
    assert not len(seen.bucket_counts)


def test_nan_and_infinities_are_in_no_bucket(rng: np.random.Generator) -> None:
    """Only finite values count."""
    traffic = Traffic()
    values = shaped(rng, 500)
    values[7, 0], values[8, 0], values[9, 1] = np.nan, np.inf, -np.inf
    traffic.window(values)

    assert [498, 499, 500, 500, 500, 500] == traffic.view().count.tolist()
    traffic.window(np.full((9, WIDTH), np.nan))
    assert [498, 499, 500, 500, 500, 500] == traffic.view().count.tolist()


def test_a_layer_that_is_retired_gives_its_room_to_others(rng: np.random.Generator) -> None:
    """The limit is on what is there: a new revision's features take the place of the old one's."""
    traffic = Traffic(limit=WIDTH)
    traffic.window(shaped(rng, 500))
    later = traffic.now + STATISTICS.retire_seconds + 1.0

    traffic.monitor.register(NEXT, WIDTH, Capture(), later)

    assert NEXT.feature(0) in traffic.view().keys
    assert [NEXT] == [status.key for status in traffic.monitor.layers()]
    assert WIDTH == len(traffic.monitor.watched())
    assert () == traffic.monitor.unmatched()


@settings(max_examples=60, deadline=None)
@given(
    windows=st.lists(
        hnp.arrays(np.float32, (4, WIDTH), elements=st.floats(width=32) | st.just(0.0)),
        min_size=1,
        max_size=4,
    ),
    frozen=st.booleans(),
)
def test_any_values_at_all_are_counted_once(windows: list[np.ndarray], frozen: bool) -> None:
    """Denormals, the largest floats and whatever bins they make: counts add up, within the limits."""
    traffic = Traffic(warmup_rows=1)
    for number, values in enumerate(windows):
        traffic.window(values)
        if frozen and not number:
            traffic.monitor.freeze([LAYER], traffic.now)

    seen = traffic.view()

    finite = np.isfinite(np.concatenate(windows)).sum(axis=0)
    buckets = np.bincount(seen.bucket_features, seen.bucket_counts, WIDTH)
    assert finite.tolist() == seen.count.tolist() == buckets.tolist()
    assert (np.diff(seen.below, axis=1) >= 0).all()
    last = finite - np.isfinite(windows[0]).sum(axis=0) if frozen else finite
    assert last.tolist() == seen.below[:, -1].tolist()
    for place in range(WIDTH):
        mine = np.count_nonzero(seen.bucket_features == place)
        assert mine <= (BUCKET_LIMIT if seen.schema[place] else 2 * 277 + 1)


def test_features_beyond_the_limit_cost_nothing(rng: np.random.Generator) -> None:
    """Only as many features as the limit says are added up."""
    traffic = Traffic(limit=2)
    traffic.window(shaped(rng, 500))

    seen = traffic.view()

    assert [0, 1] == [key.index for key in seen.keys]
    assert [500, 500] == seen.count.tolist()
