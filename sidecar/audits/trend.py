"""The trend over nights as SVG: drawn here, so that a report needs no script."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sidecar.audits.book import Entry

_WIDTH, _LEFT, _RIGHT = 720, 40, 8
_UPPER = (14, 110)  # top and bottom of the units
_LOWER = (140, 188)  # of the checks that failed
_HEIGHT = 214
_WIDEST_BAR = 26.0
_FATES = ("lost", "moved")  # from the ground up


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a night is drawn, in pixels."""

    left: float
    width: float


def render_trend(nights: Sequence[Entry]) -> str:
    """Return the trend of nights, the oldest first, as an SVG element that needs the page's colours.

    Above, units lost and moved; below, how many checks failed. Heights are in proportion to the greatest
    of the nights shown, which is written at the axis.
    """
    units = [sum(one.night.counts.get(fate, 0) for fate in _FATES) for one in nights]
    failures = [len(one.night.failed_checks) for one in nights]
    body = [
        *_axis(*_UPPER, max(units, default=0), "Units lost and moved"),
        *_axis(*_LOWER, max(failures, default=0), "Checks failed"),
    ]
    for entry, slot in zip(nights, _slots(len(nights)), strict=True):
        body.append(f"<g><title>{html.escape(_words(entry))}</title>")
        body += _stack(entry, slot, max(*units, 1))
        body += _failures(entry, slot, max(*failures, 1))
        body.append("</g>")
    body += _ends(nights)
    words = f"Trend over {len(nights)} nights"
    return (
        f'<svg class="trend" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">'
        + "".join(body)
        + "</svg>"
    )


def _slots(count: int) -> Iterator[_Slot]:
    step = (_WIDTH - _LEFT - _RIGHT) / max(count, 1)
    width = min(step * 0.8, _WIDEST_BAR)
    for number in range(count):
        yield _Slot(_LEFT + step * number + (step - width) / 2, width)


def _axis(top: float, bottom: float, greatest: int, title: str) -> Iterator[str]:
    yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text x="{_LEFT}" y="{top - 4}">{title}</text>'
    yield f'<text class="end" x="{_LEFT - 5}" y="{bottom + 4}">0</text>'
    if greatest:
        yield f'<text class="end" x="{_LEFT - 5}" y="{top + 9}">{greatest}</text>'


def _stack(entry: Entry, slot: _Slot, greatest: int) -> Iterator[str]:
    """Draw units lost, and on them those moved."""
    top, bottom = _UPPER
    ground = float(bottom)
    for fate in _FATES:
        height = (bottom - top - 4) * entry.night.counts.get(fate, 0) / greatest
        if height:
            ground -= height
            yield _bar(fate, slot, ground, height)


def _failures(entry: Entry, slot: _Slot, greatest: int) -> Iterator[str]:
    top, bottom = _LOWER
    failed = len(entry.night.failed_checks)
    height = (bottom - top - 4) * failed / greatest
    if height:
        yield _bar("lost", slot, bottom - height, height)
    elif entry.night.state == "failed":
        yield f'<text class="mid" x="{slot.left + slot.width / 2:.1f}" y="{bottom - 3}">?</text>'
    else:
        yield _bar("same", slot, bottom - 2, 2)


def _bar(kind: str, slot: _Slot, top: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{slot.left:.1f}" y="{top:.1f}" width="{slot.width:.1f}" '
        f'height="{height:.1f}"/>'
    )


def _ends(nights: Sequence[Entry]) -> Iterator[str]:
    """Write the dates of the first and the last night."""
    y = _HEIGHT - 6
    if nights:
        yield f'<text x="{_LEFT}" y="{y}">{_date(nights[0])}</text>'
    if len(nights) > 1:
        yield f'<text class="end" x="{_WIDTH - _RIGHT}" y="{y}">{_date(nights[-1])}</text>'


def _date(entry: Entry) -> str:
    name = entry.night.id
    return f"{name[:4]}-{name[4:6]}-{name[6:8]}"


def _words(entry: Entry) -> str:
    night = entry.night
    counts = (
        ", ".join(f"{night.counts.get(fate, 0)} {fate}" for fate in _FATES)
        if night.counts
        else "nothing compared"
    )
    failed = ", ".join(one.name for one in night.failed_checks)
    return f"{_date(entry)}: {night.state}; {counts}{f'; failed: {failed}' if failed else ''}"
