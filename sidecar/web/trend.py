"""Draws an audit's nights side by side as one inline SVG, coloured by the page's style sheet.

Each night is a bar, and below it a mark of what it came to: a dot, a triangle or a cross, so that colour
alone says nothing. The same numbers stand in the list of nights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from sidecar.audits import Night, NightState
from sidecar.web.histogram import ticks
from sidecar.web.wording import compact, count, day

_SIZE = {"wide": (720.0, 190.0), "narrow": (340.0, 180.0)}
_NIGHTS = {"wide": 60, "narrow": 24}
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 10.0, 46.0  # room for labels at 12 px, and for the marks
_WIDEST = 26.0  # of a bar: a few nights are no wall
_MARK = 4.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One night in the picture.

    Attributes:
        night: Which.
        parts: Name of each part, which is its class, and how much it is; from the bottom up.
    """

    night: Night
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """How high it is."""
        return sum(amount for _, amount in self.parts)


def of_units(nights: Sequence[Night]) -> tuple[Bar, ...]:
    """Return the nights in which something was compared, oldest first: units lost and moved."""
    compared = [night for night in reversed(nights) if night.counts]
    names = ("lost", "moved")
    return tuple(
        Bar(night, tuple((name, night.counts.get(name, 0)) for name in names)) for night in compared
    )


def of_checks(nights: Sequence[Night]) -> tuple[Bar, ...]:
    """Return the judged nights, oldest first: checks that failed."""
    judged = [night for night in reversed(nights) if night.state.judged]
    return tuple(Bar(night, (("checks", len(night.failed_checks)),)) for night in judged)


def draw(bars: Sequence[Bar], what: str, *, shape: str = "wide") -> Markup:
    """Return an SVG element; the newest nights where there are too many to tell apart.

    Args:
        bars: Oldest first; at least one.
        what: What a bar counts, in words for those who do not see it.
        shape: ``wide`` or ``narrow``.
    """
    shown = bars[-_NIGHTS[shape] :]
    width, height = _SIZE[shape]
    base, most = height - _BOTTOM, max(1, *(bar.total for bar in shown))
    steps = [value for value in ticks(0, most, 3) if value == int(value)]
    most = max(most, int(steps[-1])) if steps else most
    room = (width - _LEFT - _RIGHT) / max(len(shown), 4)
    head = f'<svg class="trend {shape}" viewBox="0 0 {width:g} {height:g}" role="img" '
    parts = [f'{head}aria-label="{escape(describe(bars, what))}">']
    for value in steps:
        y = base - (base - _TOP) * value / most
        parts.append(
            f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{width - _RIGHT:g}"/>'
            f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{compact(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT:g} {base:g}H{width - _RIGHT:g}"/>')
    for place, bar in enumerate(shown):
        parts += _night(bar, _LEFT + room * (place + 0.5), room, base, (base - _TOP) / most)
    parts += _dates(shown, room, height)
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - numbers, known names and escaped words


def strip(nights: Sequence[Night]) -> Markup:
    """Return one mark a night, oldest first, as an SVG element the height of a text line."""
    step = 14
    told = ", ".join(f"{day(one.started_at)} {one.state}" for one in nights)
    marks = "".join(
        f"<g><title>{day(one.started_at)}: {one.state}</title>"
        f'<path class="mark {one.state}" d="{_mark(one.state, step * (place + 0.5), 7, _MARK)}"/></g>'
        for place, one in enumerate(nights)
    )
    width = step * len(nights)
    return Markup(  # noqa: S704 - numbers and known names only
        f'<svg class="trend strip-of-nights" viewBox="0 0 {width} 14" width="{width}" height="14" '
        f'role="img" aria-label="{told}">{marks}</svg>'
    )


def _night(bar: Bar, middle: float, room: float, base: float, each: float) -> list[str]:
    """Return a bar from ``base`` upwards, ``each`` high for one, and the mark below it."""
    wide = min(room * 0.72, _WIDEST)
    told = ", ".join(f"{count(amount)} {name}" for name, amount in bar.parts)
    found = [f"<g><title>{day(bar.night.started_at)}: {bar.night.state}; {escape(told)}</title>"]
    y = base
    for name, amount in bar.parts:
        if amount:
            y -= amount * each
            found.append(
                f'<rect class="{name}" x="{middle - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" '
                f'height="{amount * each:.1f}"/>'
            )
    size = min(_MARK, room * 0.42)
    path = _mark(bar.night.state, middle, base + 11, size)
    return [*found, f'<path class="mark {bar.night.state}" d="{path}"/></g>']


def _mark(state: NightState, x: float, y: float, r: float) -> str:
    """Return the outline of what a night came to."""
    match state:
        case NightState.REGRESSED:
            return f"M{x:.1f} {y - r:.1f}l{r:.1f} {2 * r:.1f}h{-2 * r:.1f}z"
        case NightState.FAILED:
            return (
                f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}"
                f"l{-2 * r:.1f} {2 * r:.1f}"
            )
        case _:
            return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z"


def _dates(shown: Sequence[Bar], room: float, height: float) -> list[str]:
    """Return the day of the oldest and of the newest night."""
    y = height - 6
    first = f'<text x="{_LEFT:g}" y="{y:g}">{day(shown[0].night.started_at)}</text>'
    if len(shown) == 1:
        return [first]
    right = _LEFT + room * len(shown)
    anchor, x = ("end", right) if right > _LEFT + 180 else ("start", _LEFT + 100)
    return [
        first,
        f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{day(shown[-1].night.started_at)}</text>',
    ]


def describe(bars: Sequence[Bar], what: str) -> str:
    """Say in words what the picture shows."""
    newest = bars[-1]
    told = " and ".join(f"{count(amount)} {name}" for name, amount in newest.parts)
    most = max(bars, key=lambda bar: bar.total)
    return (
        f"{what} in {len(bars)} {'night' if len(bars) == 1 else 'nights'}: {told} in the newest, "
        f"at most {count(most.total)}, on {day(most.night.started_at)}."
    )
