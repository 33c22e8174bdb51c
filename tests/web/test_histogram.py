import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor import FeatureDistribution, Window
from sidecar.web import histogram
from sidecar.web.histogram import Limits

pytestmark = pytest.mark.unit

KEY = FeatureKey(LayerKey("lite0", "ab" * 32, "_blocks.14"), 33)
LEVELS = np.array([0.5, 0.99])


def view(values: np.ndarray, edges: np.ndarray | None = None) -> FeatureDistribution:
    """Return the view of values over given or plain edges."""
    count = len(values)
    if edges is None:
        low, high = (float(values.min()), float(values.max())) if count else (0.0, 1.0)
        margin = max(abs(low), abs(high), 1e-9) * 1e-3
        edges = np.linspace(low - margin, high + margin, 34)
    counts = np.histogram(values, edges)[0].astype(np.int64)
    least, most = (values.min(), values.max()) if count else (math.nan, math.nan)
    return FeatureDistribution(
        key=KEY,
        window=Window.CURRENT,
        count=count,
        mean=float(values.mean()) if count else math.nan,
        variance=float(values.var()) if count else math.nan,
        minimum=float(least),
        maximum=float(most),
        zero_ratio=float(np.mean(values == 0)) if count else 0.0,
        nonfinite=0,
        edges=edges if count else np.empty(0),
        counts=counts if count else np.empty(0, np.int64),
        levels=LEVELS,
        quantiles=np.quantile(values, LEVELS) if count else np.full(2, math.nan),
        relative_error=0.0303,
    )


EMPTY = view(np.empty(0))
VALUES = hnp.arrays(
    np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)
THRESHOLD = st.one_of(st.just(math.nan), st.floats(-1e7, 1e7))


def naive_shares(distribution: FeatureDistribution, grid: np.ndarray) -> np.ndarray:
    """Spread each bin over the bars by overlap, one at a time."""
    shares = np.zeros(len(grid) - 1)
    for left, right, count in zip(
        distribution.edges, distribution.edges[1:], distribution.counts, strict=False
    ):
        for bar in range(len(shares)):
            overlap = min(right, grid[bar + 1]) - max(left, grid[bar])
            shares[bar] += max(0.0, overlap) / (right - left) * count
    return shares / distribution.counts.sum()


@given(VALUES, st.floats(-10, 10), st.floats(0.1, 100))
def test_no_value_is_lost_between_bars_pins_and_margins(
    values: np.ndarray, low: float, width: float
) -> None:
    """Shares of bars, zeros and both sides add up to one wherever the picture is cut."""
    bars = histogram.rebin(view(values), np.linspace(low, low + width, 20))

    total = bars.shares.sum() + bars.zero + bars.below + bars.above
    assert math.isclose(1.0, total, rel_tol=1e-9)
    assert min(bars.shares.min(), bars.zero, bars.below, bars.above) >= -1e-12


@given(VALUES)
def test_spreading_equals_overlap_bin_by_bin(values: np.ndarray) -> None:
    """The cumulative way and the plain double loop draw the same bars."""
    values = values[values != 0]
    if not len(values):
        return
    distribution = view(values)
    grid = np.linspace(values.min() - 1, values.max() + 1, 15)

    np.testing.assert_allclose(
        histogram.rebin(distribution, grid).shares, naive_shares(distribution, grid), atol=1e-9
    )


@settings(deadline=None)
@given(VALUES, VALUES, THRESHOLD, THRESHOLD)
def test_every_picture_is_well_formed_and_inside_its_frame(
    now: np.ndarray, baseline: np.ndarray, high: float, low: float
) -> None:
    """Whatever the values, the SVG parses and no coordinate is NaN or outside."""
    for shape, (width, height) in {"wide": (720, 270), "narrow": (340, 230)}.items():
        text = histogram.draw(view(now), view(baseline), Limits(high, low), shape=shape)
        root = ET.fromstring(text)  # noqa: S314 - our own output

        assert "nan" not in text.lower().replace("nan or", "")
        for path in root.iter("path"):
            xs = [float(x) for x in _after(path.get("d", ""), "H")]
            ys = [float(y) for y in _after(path.get("d", ""), "V")]
            assert all(-1 <= x <= width + 1 for x in xs)
            assert all(-1 <= y <= height + 1 for y in ys)


def _after(path: str, letter: str) -> list[str]:
    parts = path.replace("Z", "").replace("M", " M").replace("H", " H").replace("V", " V").split()
    return [part[1:] for part in parts if part.startswith(letter)]


def test_a_constant_feature_is_drawn() -> None:
    """No width of its own does not mean division by zero."""
    constant = view(np.full(50, 3.0))

    low, high = histogram.span((constant, EMPTY), Limits())

    assert low < 3.0 < high
    assert 'class="present-line"' in histogram.draw(constant, EMPTY, Limits())


def test_open_ended_bins_are_drawn_up_to_the_values_seen() -> None:
    """Overflow bins with infinite edges put their values where the extremes are."""
    values = np.array([-9.0, 0.5, 1.5, 80.0])
    edges = np.array([-np.inf, 0.0, 1.0, 2.0, np.inf])
    bars = histogram.rebin(view(values, edges), np.linspace(-10, 90, 101))

    assert math.isclose(1.0, bars.shares.sum(), rel_tol=1e-9)


def test_outliers_do_not_squeeze_the_picture_but_are_told() -> None:
    """One value of a million leaves the scale to the others and is mentioned in words."""
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 20_000), 1e6)
    edges = np.append(np.linspace(-6, 6, 200), [9e5, 1.1e6])
    distribution = view(values, edges)

    low, high = histogram.span((distribution, EMPTY), Limits())

    assert high - low < 40
    assert "Outside the picture" in histogram.beyond(distribution, EMPTY, Limits())


def test_nothing_is_said_to_be_outside_when_all_is_inside() -> None:
    """The sentence about outliers appears only with outliers."""
    rng = np.random.default_rng(0)

    assert not histogram.beyond(view(rng.normal(size=500)), EMPTY, Limits(3.0))


def test_exact_zeros_stand_as_a_pin_and_in_words() -> None:
    """A rectified feature shows its zeros apart, and a screen reader hears their share."""
    values = np.concatenate((np.zeros(700), np.linspace(0.1, 5, 300)))
    picture = histogram.draw(view(values), EMPTY, Limits(4.0))

    assert 'class="present-pin"' in picture
    assert "70 % exactly zero" in picture


def test_zero_lies_between_negative_and_positive_values() -> None:
    """Signed features keep their order: a negative bar is left of zero, a positive one right."""
    values = np.concatenate((np.full(10, -2.0), np.full(10, 2.0)))
    grid = np.linspace(-3, 3, 61)
    shares = histogram.rebin(view(values), grid).shares

    assert shares[:30].sum() == pytest.approx(0.5)
    assert shares[30:].sum() == pytest.approx(0.5)


def test_the_threshold_is_always_in_the_picture() -> None:
    """Even where no value comes near it."""
    _, high = histogram.span((view(np.linspace(0, 1, 100)), EMPTY), Limits(25.0))

    assert high > 25.0


def test_what_is_below_a_lower_threshold_is_marked_and_nothing_else() -> None:
    """A feature watched below has its mark on the left, one watched on both sides on either."""
    values = view(np.linspace(-5, 5, 200))

    def marked(limits: Limits) -> list[tuple[float, float]]:
        root = ET.fromstring(histogram.draw(values, EMPTY, limits))  # noqa: S314 - our own output
        boxes = [(float(r.get("x", "")), float(r.get("width", ""))) for r in root.iter("rect")]
        return [(left, left + width) for left, width in boxes]

    (above,), (below,) = marked(Limits(high=2.0)), marked(Limits(low=-2.0))
    both = marked(Limits(high=2.0, low=-2.0))

    assert (0.0, 720.0) == (below[0], above[1])
    assert below[1] < 360 < above[0]
    assert [below, above] == both
    assert [] == marked(Limits())


def test_two_thresholds_have_names_that_tell_them_apart() -> None:
    """One alone is the threshold; words and picture agree on the sides."""
    values = view(np.linspace(-5, 5, 200))
    both = histogram.draw(values, EMPTY, Limits(2.5, -1.5))
    below = histogram.draw(values, EMPTY, Limits(low=-1.5))

    assert "upper threshold 2.5<" in both
    assert "lower threshold \u22121.5<" in both
    assert "Values above 2.5 exceed. Values below \u22121.5 exceed." in both
    assert ">threshold \u22121.5<" in below
    assert "above" not in below


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 12))
def test_ticks_are_inside_in_order_and_few(low: float, width: float, wanted: int) -> None:
    """Axis labels never pile up."""
    high = low + width
    if not low < high:
        return
    found = histogram.ticks(low, high, wanted)

    assert sorted(found) == found
    assert len(found) <= 2 * wanted + 3
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_an_empty_pair_is_described_as_empty() -> None:
    """The description never claims numbers that are not there."""
    assert "Now: no values. Baseline: no values." == histogram.describe(EMPTY, EMPTY, Limits())
