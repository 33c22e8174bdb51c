"""The picture of a replay shows what the numbers say."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from sidecar.detect import SpikePolicy
from sidecar.replay import PANELS, Panel, Player, Policy, draw, measure
from tests.replay.conftest import LAYER, Traffic, unsampled

pytestmark = pytest.mark.unit

_COLUMNS_OF_A_SUBJECT = (
    "indices",
    "thresholds",
    "baseline_rate",
    "baseline_share",
    "factor",
    "judged",
    "level_rates",
    "level_shares",
    "sides",
)
SVG = "{http://www.w3.org/2000/svg}"
POLICY = Policy("three", SpikePolicy(factor=3.0))


def panel(count: int = 400, *, compared: bool = False, index: int = 0) -> Panel:
    """A feature that fires from window 100 to 120."""
    rng = np.random.default_rng(1)
    traffic = Traffic()
    windows = [
        *traffic.windows(count, rng, spikes=[(0, 100, 120, 0.4)], start=0.0),
        *traffic.windows(50, rng, start=10.0 * count + 3600),
    ]
    windows[50:60] = [unsampled(window) for window in windows[50:60]]
    player = Player(POLICY, [LAYER.feature(index)])
    for window in windows:
        player.play(window)
    found = player.finish()
    return Panel(
        feature=LAYER.feature(index),
        trace=player.traces[LAYER.feature(index)],
        alarms=found.alarms,
        in_force=found.alarms if compared else None,
        gaps=measure(windows)[LAYER].gaps,
    )


def rectangles(text: str, name: str) -> list[dict[str, float]]:
    """Return the rectangles of a class in the panels, legend left out."""
    return [
        {key: float(one.get(key, "0")) for key in ("x", "y", "width", "height")}
        for one in ET.fromstring(text).iter(f"{SVG}rect")  # noqa: S314 - our own text
        if one.get("class") == name and one.get("width") != "16"
    ]


def test_an_alarm_is_a_bar_at_its_time() -> None:
    """Its ends are where they belong on the axis, which begins with the first window."""
    one = panel()
    text = draw([one], "What three fires on")

    (alarm,), (bar,) = one.alarms, rectangles(text, "bar")
    first, last = one.trace.at[0], one.trace.at[-1]
    scale = (1000 - 64 - 16) / (last - first)
    assert bar["x"] == pytest.approx(64 + (alarm.start - first) * scale, abs=0.1)
    assert bar["width"] == pytest.approx((alarm.end - alarm.start) * scale, abs=0.2)


def test_an_alarm_of_one_window_in_a_week_is_seen() -> None:
    """A bar is never thinner than three pixels."""
    one = panel(8640)

    (bar,) = rectangles(draw([one], "x"), "bar")

    assert 3.0 == bar["width"]


def test_what_is_not_recorded_is_shaded_and_no_line_leads_across() -> None:
    """A gap is not a stretch of calm."""
    text = draw([panel()], "x")

    (gap,) = rectangles(text, "gap")
    path = re.findall(r'class="mean" d="([^"]*)"', text)[-1]
    points = [tuple(map(float, at)) for at in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    inside = [x for x, _ in points if gap["x"] + 3 < x < gap["x"] + gap["width"] - 3]
    assert gap["width"] > 200
    assert [] == inside
    assert path.count("M") >= 2


def few() -> Panel:
    """A feature of 190 windows: one column in two or three has one."""
    player = Player(POLICY, [LAYER.feature(0)])
    for window in Traffic(rate=0.2).windows(190, np.random.default_rng(1)):
        player.play(window)
    return Panel(LAYER.feature(0), player.traces[LAYER.feature(0)], player.finish().alarms)


@pytest.mark.parametrize("name", ["mean", "tolerated"])
def test_of_few_windows_neighbours_are_joined(name: str) -> None:
    """A column without a window between two that have one is no gap: the line is one."""
    text = draw([few()], "x")

    path = re.findall(rf'class="{name}" d="([^"]*)"', text)[-1]
    assert 1 == path.count("M")
    assert 189 == path.count("L")


def test_of_few_windows_bars_leave_no_stripes() -> None:
    """Each begins where the one before it ends, and only the first is as narrow as a column."""
    text = draw([few()], "x")

    bars = re.findall(r'class="peak" d="([^"]*)"', text)[-1]
    spans = [
        (float(left), float(right))
        for left, right in re.findall(r"M([\d.]+) [\d.]+V[\d.]+H([\d.]+)", bars)
    ]
    assert 190 == len(spans)
    assert [right for _, right in spans[:-1]] == [left for left, _ in spans[1:]]


def test_a_missing_window_breaks_the_line_of_few() -> None:
    """Nothing is drawn where a layer was recorded and the feature was not."""
    traffic = Traffic(rate=0.2)
    of = traffic.subject()
    others = replace(of, **{name: getattr(of, name)[1:] for name in _COLUMNS_OF_A_SUBJECT})
    windows = [
        *traffic.windows(60, np.random.default_rng(1), start=0.0, subject=of),
        *replace(traffic, features=3).windows(
            60, np.random.default_rng(2), start=600.0, subject=others
        ),
        *traffic.windows(60, np.random.default_rng(3), start=1200.0, subject=of),
    ]
    player = Player(POLICY, [LAYER.feature(0)])
    for window in windows:
        player.play(window)

    text = draw([Panel(LAYER.feature(0), player.traces[LAYER.feature(0)], ())], "x")

    path = re.findall(r'class="mean" d="([^"]*)"', text)[-1]
    assert [] == measure(windows)[LAYER].gaps
    assert (2, 118) == (path.count("M"), path.count("L"))


def test_the_highest_column_is_the_spike() -> None:
    """Windows are more than columns: the greatest of each is drawn, so no spike gets lost."""
    one = panel(8640)
    text = draw([one], "x")
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", text)]

    most = np.nanmax(one.trace.rate)
    top = next(t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if most <= t)

    assert min(heights) == pytest.approx(86 + 110 * (1 - most / top), abs=0.1)


def test_the_policy_in_force_has_a_bar_of_its_own() -> None:
    """Two policies are told apart, and the legend says which is which."""
    alone, both = draw([panel()], "x"), draw([panel(compared=True)], "x")

    assert (0, 1) == (len(rectangles(alone, "force")), len(rectangles(both, "force")))
    assert "under the policy in force" not in alone
    assert "1 page, 1 under the policy in force" in both


def test_a_title_cannot_break_the_picture() -> None:
    """File names may hold anything."""
    text = draw([panel()], "<script>&\"'")

    found = ET.fromstring(text).find(f"{SVG}title")  # noqa: S314 - our own text
    assert found is not None
    assert "<script>&\"'" == found.text


def test_without_a_feature_the_picture_says_so() -> None:
    """An empty picture is one too."""
    assert "No feature to show." in draw([], "x")


def test_of_too_many_features_the_rest_is_told() -> None:
    """Twelve panels can be read; the picture says how many are left out."""
    one = panel()

    text = draw([one] * (PANELS + 3), "x")

    assert PANELS == len(rectangles(text, "bar"))
    assert "Not shown: 3 further features." in text
