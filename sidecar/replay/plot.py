"""Draws what a policy does with a recording, as one standalone SVG.

A panel a feature: the share of exceeding requests over time, the share that the policy tolerates, and
a bar for each time it fires; below it, where two policies are compared, the bars of the one in force.
Where there are more windows than pixels each column shows the greatest share of its windows as a bar
and their mean as a line: a spike of one window is seen, and so is what is usual. Where there are fewer
a bar is as wide as its window, and a line leads from one window to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.features import FeatureKey
from sidecar.replay.playing import Alarm, Gap, Trace
from sidecar.replay.words import counted

PANELS = 12
"""Most features in one picture; more are no picture any more."""

_WIDTH, _PLOT_HEIGHT = 1000.0, 110.0
_LEFT, _RIGHT, _HEAD, _FOOT = 64.0, 16.0, 64.0, 40.0
_TITLE, _STRIP, _SPACE = 22.0, 8.0, 18.0
_COLUMNS = 460
_STEP = (_WIDTH - _LEFT - _RIGHT) / _COLUMNS  # two pixels
_LEAST_BAR = 3.0  # an alarm of one window in a week must still be seen
_TICKS = 8
_STEPS_SECONDS = (10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 604_800)
_DAY = 86_400
_TOPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_STYLE = """
text { font: 12px ui-sans-serif, system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #566070; }
.title { font-size: 16px; font-weight: 600; fill: #171c23; }
.name { font-weight: 600; fill: #171c23; }
.ground { fill: #fff; } .frame { fill: #f5f6f8; }
.grid { stroke: #dde1e7; fill: none; } .axis { stroke: #566070; fill: none; }
.peak { fill: #a8c8e8; } .mean { stroke: #0b5cab; stroke-width: 1.2; fill: none; }
.tolerated { stroke: #7d4b00; stroke-width: 1.4; fill: none; }
.fires { fill: #c8372d; fill-opacity: .2; } .bar { fill: #c8372d; } .force { fill: #566070; }
.gap { fill: #c9ced6; fill-opacity: .6; }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One feature of the picture.

    Attributes:
        feature: Which feature.
        trace: It, window by window.
        alarms: When it fires under the policy.
        in_force: When it fires under the policy in force; None: that is not compared.
        gaps: Where nothing is recorded.
    """

    feature: FeatureKey
    trace: Trace
    alarms: Sequence[Alarm]
    in_force: Sequence[Alarm] | None = None
    gaps: Sequence[Gap] = ()


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a panel's plot is, and what its axes mean."""

    top: float
    first: float
    last: float
    most: float

    @property
    def base(self) -> float:
        return self.top + _PLOT_HEIGHT

    def x(self, at: float) -> float:
        share = (at - self.first) / (self.last - self.first)
        return _LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, rate: float) -> float:
        return self.base - min(rate / self.most, 1.0) * _PLOT_HEIGHT


def draw(panels: Sequence[Panel], title: str) -> str:
    """Return the picture as SVG text.

    Args:
        panels: At most ``PANELS`` features; more are left out, and the picture says so.
        title: What it shows, in words.
    """
    shown = list(panels[:PANELS])
    times = [at for panel in shown for at in panel.trace.at]
    first, last = (min(times), max(times)) if times else (0.0, 1.0)
    last = max(last, first + 1.0)
    each = _TITLE + _PLOT_HEIGHT + _STRIP * 2 + _SPACE
    height = _HEAD + each * max(len(shown), 1) + _FOOT
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" '
            f'width="{_WIDTH:g}" height="{height:g}" role="img">'
        ),
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH:g}" height="{height:g}"/>',
        f'<text class="title" x="{_LEFT:g}" y="24">{escape(title)}</text>',
        *_legend(any(panel.in_force is not None for panel in shown)),
    ]
    if not shown:
        parts.append(f'<text x="{_LEFT:g}" y="{_HEAD + 20:g}">No feature to show.</text>')
    for number, panel in enumerate(shown):
        top = _HEAD + number * each + _TITLE
        parts += _panel(panel, _Frame(top, first, last, _most(panel.trace)))
    base = _HEAD + each * max(len(shown), 1)
    parts += _time_axis(_Frame(base - _PLOT_HEIGHT - _SPACE + 4, first, last, 1.0))
    if len(panels) > PANELS:
        words = f"Not shown: {counted(len(panels) - PANELS, 'further feature')}."
        parts.append(f'<text x="{_LEFT:g}" y="{height - 6:g}">{words}</text>')
    return "".join([*parts, "</svg>\n"])


def _most(trace: Trace) -> float:
    """Return the top of the axis: a round share that the greatest and the tolerated one fit below."""
    seen = [value for value in (*trace.rate, *trace.tolerated) if not math.isnan(value)]
    greatest = max(seen, default=0.0)
    return next((top for top in _TOPS if greatest <= top), 1.0)


def _legend(compared: bool) -> list[str]:
    entries = [
        ("peak", "greatest share of exceeding requests"),
        ("mean", "its mean"),
        ("tolerated", "tolerated"),
        ("bar", "fires"),
        *([("force", "fires under the policy in force")] if compared else []),
        ("gap", "not recorded"),
    ]
    parts, x = [], _LEFT
    for name, words in entries:
        if name in ("mean", "tolerated"):
            parts.append(f'<path class="{name}" d="M{x:g} 43h16"/>')
        else:
            parts.append(f'<rect class="{name}" x="{x:g}" y="38" width="16" height="9"/>')
        parts.append(f'<text x="{x + 22:g}" y="47">{words}</text>')
        x += 40 + 6.3 * len(words)
    return parts


def _panel(panel: Panel, frame: _Frame) -> list[str]:
    width = _WIDTH - _LEFT - _RIGHT
    words = counted(len(panel.alarms), "page")
    if panel.in_force is not None:
        words += f", {len(panel.in_force)} under the policy in force"
    return [
        f'<text class="name" x="{_LEFT:g}" y="{frame.top - 7:.1f}">{escape(_short(panel.feature))}</text>',
        (f'<text x="{_WIDTH - _RIGHT:g}" y="{frame.top - 7:.1f}" text-anchor="end">{words}</text>'),
        f'<rect class="frame" x="{_LEFT:g}" y="{frame.top:.1f}" width="{width:g}" height="{_PLOT_HEIGHT:g}"/>',
        *(_span(frame, gap.start, gap.end, "gap", frame.top, _PLOT_HEIGHT) for gap in panel.gaps),
        *(_bar(frame, alarm, "fires", frame.top, _PLOT_HEIGHT) for alarm in panel.alarms),
        *_rate_axis(frame),
        *_curves(panel.trace, frame),
        *(_bar(frame, alarm, "bar", frame.base + 1, _STRIP - 1) for alarm in panel.alarms),
        *(
            _bar(frame, alarm, "force", frame.base + _STRIP + 1, _STRIP - 2)
            for alarm in panel.in_force or ()
        ),
    ]


def _short(feature: FeatureKey) -> str:
    layer = feature.layer
    return f"{layer.model}@{layer.shown_revision}/{layer.layer}/{layer.kind}/{feature.label}"


def _rate_axis(frame: _Frame) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = frame.y(share * frame.most)
        parts.append(
            f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}"/>'
            f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{100 * share * frame.most:g} %</text>'
        )
    return parts


def _curves(trace: Trace, frame: _Frame) -> list[str]:
    if not trace.at:
        return []
    grid = _Grid.of_trace(trace, frame)
    rate = np.array(trace.rate)
    sums = grid.sum(np.nan_to_num(rate))
    counts = grid.sum(~np.isnan(rate))
    mean = np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1)
    tolerated = grid.greatest(np.array(trace.tolerated))
    return [
        f'<path class="peak" d="{_bars(grid, grid.greatest(rate), frame)}"/>',
        f'<path class="mean" d="{_line(grid, mean, frame)}"/>',
        f'<path class="tolerated" d="{_line(grid, tolerated, frame)}"/>',
        f'<path class="axis" d="M{_LEFT:g} {frame.base:.1f}H{_WIDTH - _RIGHT:g}"/>',
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """The columns that have a window, ``c`` of them; where windows are few most columns have none.

    Attributes:
        of: Which of them each window is in, shape ``(windows,)``.
        column: Where they are, increasing, shape ``(c,)``.
        begin: Where the windows of each begin: at the column before it, or where something is missing
            between the two at its own left end, shape ``(c,)``.
        joined: Whether nothing is missing between it and the one before, shape ``(c,)``.
    """

    of: NDArray[np.int64]
    column: NDArray[np.int64]
    begin: NDArray[np.int64]
    joined: NDArray[np.bool_]

    @classmethod
    def of_trace(cls, trace: Trace, frame: _Frame) -> "_Grid":
        """Put a trace of at least one window into columns."""
        edges = np.linspace(frame.first, frame.last, _COLUMNS + 1)
        columns = np.searchsorted(edges, np.array(trace.at), side="right") - 1
        column, first, of = np.unique(
            np.clip(columns, 0, _COLUMNS - 1), return_index=True, return_inverse=True
        )
        joined = np.array(trace.follows)[first]
        before = np.concatenate([[-1], column[:-1]])
        return cls(of, column, np.where(joined, before + 1, column), joined)

    def sum(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of the windows' values in each column."""
        return np.asarray(np.bincount(self.of, values, len(self.column)), np.float64)

    def greatest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the greatest of the windows' values in each column, NaN where there is none."""
        found = np.full(len(self.column), -np.inf)
        np.fmax.at(found, self.of, values)
        return np.where(np.isinf(found), np.nan, found)


def _bars(grid: _Grid, values: NDArray[np.float64], frame: _Frame) -> str:
    """Return a path of one bar a column, each as long as its windows last."""
    return "".join(
        f"M{_LEFT + begin * _STEP:.1f} {frame.base:.1f}V{frame.y(value):.1f}"
        f"H{_LEFT + (column + 1) * _STEP:.1f}V{frame.base:.1f}Z"
        for column, begin, value in zip(grid.column, grid.begin, values, strict=True)
        if value > 0
    )


def _line(grid: _Grid, values: NDArray[np.float64], frame: _Frame) -> str:
    """Return a path through the middles of columns; it is broken where nothing is known."""
    path, drawing = [], False
    for column, joined, value in zip(grid.column, grid.joined, values.tolist(), strict=True):
        if math.isnan(value):
            drawing = False
            continue
        word = "L" if drawing and joined else "M"
        path.append(f"{word}{_LEFT + (column + 0.5) * _STEP:.1f} {frame.y(value):.1f}")
        drawing = True
    return "".join(path)


def _bar(frame: _Frame, alarm: Alarm, name: str, top: float, height: float) -> str:
    end = frame.last if math.isnan(alarm.end) else alarm.end
    return _span(frame, alarm.start, end, name, top, height)


def _span(frame: _Frame, start: float, end: float, name: str, top: float, height: float) -> str:
    left, right = frame.x(start), frame.x(end)
    width = max(right - left, _LEAST_BAR)
    return f'<rect class="{name}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _time_axis(frame: _Frame) -> list[str]:
    """Return ticks at round times, and a word which they are."""
    length = frame.last - frame.first
    step = next((s for s in _STEPS_SECONDS if length / s <= _TICKS), _STEPS_SECONDS[-1])
    form = "%H:%M:%S" if step < 60 else "%H:%M" if step < _DAY else "%m-%d"  # noqa: PLR2004 - a minute
    parts = []
    for number in range(math.ceil(frame.first / step), math.floor(frame.last / step) + 1):
        x = frame.x(number * step)
        when = datetime.fromtimestamp(number * step, UTC)
        words = when.strftime(form)
        if number * step % _DAY == 0 and step < _DAY:
            words = when.strftime("%m-%d")
        parts.append(
            f'<path class="axis" d="M{x:.1f} {frame.base:.1f}v5"/>'
            f'<text x="{x:.1f}" y="{frame.base + 19:.1f}" text-anchor="middle">{words}</text>'
        )
    day = datetime.fromtimestamp(frame.first, UTC).strftime("%Y-%m-%d")
    parts.append(
        f'<text x="{_WIDTH - _RIGHT:g}" y="{frame.base + 36:.1f}" text-anchor="end">'
        f"UTC, from {day}</text>"
    )
    return parts
