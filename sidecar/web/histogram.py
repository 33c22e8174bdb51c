"""Draws two distributions over each other as one inline SVG.

The picture needs no script and no style of its own: colours come from the page's style sheet by
class, so it follows the reader's colour scheme and stays inside a strict content security policy.

The bins of a distribution are log-linear: narrow near its centre, wide in its tails. Drawn as they
are, a tail would look heavier than it is; so the mass is first spread over bars of equal width. The
height of a bar is the share of values in it on a logarithmic axis, because a spike is a matter of
one value in a thousand. Exact zeros stand apart, as a pin, because a rectified feature is mostly
zero and one bar would hide everything else.
"""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from sidecar.monitor import FeatureDistribution
from sidecar.web.wording import compact, count, percent

_BARS = {"wide": 84, "narrow": 44}
_SIZE = {"wide": (720, 270), "narrow": (340, 230)}
_MARGIN = (54.0, 10.0, 26.0, 34.0)  # left, right, top, bottom: room for labels at 12 px
_DECADES = 6  # shares below one in a million are not drawn
_ROBUST = (0.0005, 0.9995)
_STRETCH = 2.5  # outliers may widen the picture up to this factor; beyond it they are told in words
_TICKS_APART = 90.0


@dataclass(frozen=True, slots=True)
class Bars:
    """One distribution over the bars of the picture, as shares of all its finite values.

    Attributes:
        shares: Share in each bar without the exact zeros, shape ``(bars,)``.
        zero: Share of exact zeros.
        below: Share left of the picture.
        above: Share right of it.
    """

    shares: NDArray[np.float64]
    zero: float
    below: float
    above: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The thresholds of the spike test; NaN where there is none.

    Attributes:
        high: A value above exceeds.
        low: Or one below.
    """

    high: float = math.nan
    low: float = math.nan

    @property
    def known(self) -> tuple[float, ...]:
        """Those that there are, in increasing order."""
        return tuple(one for one in (self.low, self.high) if math.isfinite(one))


def rebin(distribution: FeatureDistribution, grid: NDArray[np.float64]) -> Bars:
    """Spread a distribution over bars of equal width.

    Within a bin the values are taken to lie evenly, which is off by at most one bin's width.

    Args:
        distribution: Any; an empty one gives empty bars.
        grid: Borders of the bars in increasing order, shape ``(bars + 1,)``.

    Returns:
        Shares that add up to 1 together with ``zero``, ``below`` and ``above``, or to 0.
    """
    edges, counts = _finite_edges(distribution), distribution.counts.astype(np.float64)
    total = counts.sum()
    if not total:
        return Bars(np.zeros(len(grid) - 1), 0.0, 0.0, 0.0)
    holds_zero = int(np.searchsorted(edges, 0.0, side="right")) - 1
    zeros = 0.0
    if 0 <= holds_zero < len(counts):
        zeros = min(float(round(distribution.zero_ratio * distribution.count)), counts[holds_zero])
        counts[holds_zero] -= zeros
    cumulative = np.concatenate(([0.0], np.cumsum(counts)))  # (bins + 1,)
    at_grid = np.interp(grid, edges, cumulative)  # (bars + 1,)
    return Bars(
        shares=np.diff(at_grid) / total,
        zero=zeros / total,
        below=float(at_grid[0]) / total,
        above=float(cumulative[-1] - at_grid[-1]) / total,
    )


def _finite_edges(distribution: FeatureDistribution) -> NDArray[np.float64]:
    """Return the bin edges with the open ends of overflow bins pulled to the values seen."""
    edges = distribution.edges.astype(np.float64)
    if not len(edges):
        return edges
    low = min(distribution.minimum, float(edges[1]))
    high = max(distribution.maximum, float(edges[-2]))
    edges[0] = low if np.isneginf(edges[0]) else edges[0]
    edges[-1] = high if np.isposinf(edges[-1]) else edges[-1]
    return edges


def span(distributions: tuple[FeatureDistribution, ...], limits: Limits) -> tuple[float, float]:
    """Return the stretch of values worth drawing.

    All values where they are near each other, else all but the outermost ones; the thresholds
    are always inside, and so is a margin to either side.
    """
    filled = [one for one in distributions if one.count and one.counts.sum()]
    if not filled:
        return 0.0, 1.0
    least = min(one.minimum for one in filled)
    most = max(one.maximum for one in filled)
    inner = [_quantiles(one) for one in filled]
    low, high = min(pair[0] for pair in inner), max(pair[1] for pair in inner)
    low, high = min(low, *limits.known, low), max(high, *limits.known, high)
    reach = (_STRETCH - 1) / 2 * (high - low)
    low, high = max(least, low - reach, -1e300), min(max(most, high), high + reach, 1e300)
    low, high = min(low, *limits.known, low), max(high, *limits.known, high)
    # A constant feature has no width; a twentieth of its size shows it as one bar.
    margin = 0.03 * (high - low) or max(abs(high), 1e-12) / 20
    return low - margin, high + margin


def _quantiles(distribution: FeatureDistribution) -> tuple[float, float]:
    edges, counts = _finite_edges(distribution), distribution.counts
    cumulative = np.concatenate(([0.0], np.cumsum(counts))) / counts.sum()
    low, high = np.interp(_ROBUST, cumulative, edges)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps values and shares to pixels."""

    width: float
    height: float
    low: float
    high: float
    floor: int  # exponent of the least share drawn

    def x(self, value: float) -> float:
        left, right, _, _ = _MARGIN
        ratio = (value - self.low) / (self.high - self.low)
        return left + (self.width - left - right) * ratio

    def y(self, share: float) -> float:
        _, _, top, bottom = _MARGIN
        exponent = math.log10(share) if share > 0 else -math.inf
        ratio = min(1.0, max(0.0, 1 - exponent / self.floor))
        return self.height - bottom - (self.height - top - bottom) * ratio

    @property
    def base(self) -> float:
        return self.height - _MARGIN[3]


def draw(
    now: FeatureDistribution,
    baseline: FeatureDistribution,
    limits: Limits,
    *,
    shape: str = "wide",
) -> Markup:
    """Return the SVG element of two windows and the thresholds of the spike test.

    Args:
        now: Drawn as a line over a light area; what is beyond a threshold is marked.
        baseline: Drawn as an area.
        limits: The thresholds.
        shape: ``wide`` for 720 px and more, ``narrow`` for a telephone.

    Returns:
        Markup without any id that could clash with the other shape's.
    """
    low, high = span((now, baseline), limits)
    grid = np.linspace(low, high, _BARS[shape] + 1)
    past, present = rebin(baseline, grid), rebin(now, grid)
    frame = _Frame(*_SIZE[shape], low, high, _floor(now, baseline))
    title, text = f"{shape}-title", f"{shape}-description"
    parts = [
        (
            f'<svg class="histogram {shape}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
            f'aria-labelledby="{title} {text}">'
        ),
        f'<title id="{title}">Distribution now and in the baseline</title>',
        f'<desc id="{text}">{escape(describe(now, baseline, limits))}</desc>',
        *_axes(frame),
        f'<path class="past" d="{_outline(frame, grid, past.shares, closed=True)}"/>',
        *_present(frame, grid, present, limits, shape),
        *_pins(frame, past, present),
        *_thresholds(frame, limits),
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704 - numbers and escaped words only


def _floor(*distributions: FeatureDistribution) -> int:
    """Return the exponent of ten just below the share of a single value, -2 at the highest.

    Spreading a wide bin over bars makes shares of less than one value; they are no news.
    """
    largest = max(one.count for one in distributions)
    return max(-_DECADES, min(-2, math.floor(-math.log10(max(1, largest)))))


def _outline(
    frame: _Frame, grid: NDArray[np.float64], shares: NDArray[np.float64], *, closed: bool
) -> str:
    """Return the path of a staircase: ``closed`` to the base line, or its top alone."""
    path = [f"M{frame.x(float(grid[0])):.1f} {frame.base:.1f}"]
    level = frame.base
    for right, share in zip(grid[1:], shares, strict=True):
        wanted = frame.y(float(share))
        if abs(wanted - level) > 0.05:  # noqa: PLR2004 - half of the last digit written
            path.append(f"V{wanted:.1f}")
            level = wanted
        path.append(f"H{frame.x(float(right)):.1f}")
    if closed:
        path.append(f"V{frame.base:.1f}Z")
    return "".join(path)


def _present(
    frame: _Frame, grid: NDArray[np.float64], bars: Bars, limits: Limits, shape: str
) -> list[str]:
    area = _outline(frame, grid, bars.shares, closed=True)
    line = _outline(frame, grid, bars.shares, closed=False)
    parts = [f'<path class="present" d="{area}"/>']
    stretches = [(0.0, frame.x(limits.low))] if math.isfinite(limits.low) else []
    stretches += [(frame.x(limits.high), frame.width)] if math.isfinite(limits.high) else []
    if stretches:
        clip = f"{shape}-beyond"
        boxes = "".join(
            f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{frame.height:g}"/>'
            for left, right in stretches
        )
        parts += [
            f'<clipPath id="{clip}">{boxes}</clipPath>',
            f'<path class="beyond" clip-path="url(#{clip})" d="{area}"/>',
        ]
    return [*parts, f'<path class="present-line" d="{line}"/>']


def _pins(frame: _Frame, past: Bars, present: Bars) -> list[str]:
    """Return a pin each for the exact zeros, side by side so that neither hides the other."""
    if not frame.low <= 0 <= frame.high:
        return []
    parts = []
    for share, name, aside in ((past.zero, "past-pin", -3.0), (present.zero, "present-pin", 3.0)):
        if share > 0:
            x, y = frame.x(0.0) + aside, frame.y(share)
            parts.append(
                f'<path class="{name}" d="M{x:.1f} {frame.base:.1f}V{y:.1f}"/>'
                f'<circle class="{name}-head" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            )
    return parts


def _thresholds(frame: _Frame, limits: Limits) -> list[str]:
    both = len(limits.known) == 2  # noqa: PLR2004 - each then needs its own name, and its own line
    named = ((limits.high, "upper threshold", 17), (limits.low, "lower threshold", 32))
    return [
        _threshold(frame, value, *((name, y) if both else ("threshold", 17)))
        for value, name, y in named
        if math.isfinite(value)
    ]


def _threshold(frame: _Frame, value: float, name: str, y: int) -> str:
    x = frame.x(value)
    right = x > frame.width * 0.6  # the words go to the side that has room
    anchor, aside = ("end", -5) if right else ("start", 5)
    return (
        f'<path class="threshold" d="M{x:.1f} 8V{frame.base:.1f}"/>'
        f'<text class="threshold-name" x="{x + aside:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{name} {compact(value)}</text>"
    )


def _axes(frame: _Frame) -> list[str]:
    left, right, _, bottom = _MARGIN
    parts = []
    for exponent in range(0, frame.floor - 1, -1):
        y = frame.y(10.0**exponent)
        parts.append(
            f'<path class="grid" d="M{left:g} {y:.1f}H{frame.width - right:g}"/>'
            f'<text x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{percent(10.0**exponent)}</text>'
        )
    parts.append(f'<path class="axis" d="M{left:g} {frame.base:.1f}H{frame.width - right:g}"/>')
    for value in ticks(frame.low, frame.high, int((frame.width - left - right) / _TICKS_APART)):
        x = frame.x(value)
        parts.append(
            f'<path class="axis" d="M{x:.1f} {frame.base:.1f}v4"/>'
            f'<text x="{x:.1f}" y="{frame.height - bottom + 17:g}" text-anchor="middle">'
            f"{compact(value)}</text>"
        )
    middle = left + (frame.width - left - right) / 2
    parts.append(
        f'<text class="axis-name" x="{middle:.1f}" y="{frame.height - 2:g}" text-anchor="middle">'
        "activation</text>"
    )
    return parts


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return round values between ``low`` and ``high``, about ``wanted`` of them.

    Example:
        >>> ticks(-0.3, 6.2, 7)
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    raw = (high - low) / max(1, wanted)
    if not math.isfinite(raw) or raw <= 0:
        return []
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def describe(now: FeatureDistribution, baseline: FeatureDistribution, limits: Limits) -> str:
    """Say in words what the picture shows."""
    parts = [_sentence("Now", now), _sentence("Baseline", baseline)]
    for side, value in (("above", limits.high), ("below", limits.low)):
        if math.isfinite(value):
            parts.append(f"Values {side} {compact(value)} exceed.")
    return " ".join(parts)


def _sentence(name: str, one: FeatureDistribution) -> str:
    if not one.count:
        return f"{name}: no values."
    return (
        f"{name}: {count(one.count)} values from {compact(one.minimum)} to {compact(one.maximum)}, "
        f"mean {compact(one.mean)}, {percent(one.zero_ratio)} exactly zero."
    )


def beyond(now: FeatureDistribution, baseline: FeatureDistribution, limits: Limits) -> str:
    """Say what the picture leaves out, or nothing where it shows all."""
    low, high = span((now, baseline), limits)
    grid = np.array([low, high])
    parts = []
    for name, one in (("now", now), ("in the baseline", baseline)):
        bars = rebin(one, grid)
        outside = bars.below + bars.above
        if outside * one.count > 0.5:  # noqa: PLR2004 - at least one value
            parts.append(f"{percent(outside)} {name}")
    return f"Outside the picture: {' and '.join(parts)}." if parts else ""
