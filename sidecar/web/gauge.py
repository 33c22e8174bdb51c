"""Draws the share of exceeding requests against its baseline, as a bar the height of a text line."""

import math

from markupsafe import Markup

_WIDTH, _HEIGHT = 132.0, 10.0
_FLOOR = -4.0  # one in ten thousand; rarer shares start at the left end


def draw(now: float, baseline: float, *, alarming: bool) -> Markup:
    """Return an SVG bar on a logarithmic scale from 0.01 % to 100 %; the numbers stand beside it.

    Args:
        now: Share now; nothing is drawn for NaN.
        baseline: Share in the baseline, drawn as a tick.
        alarming: Whether the detector suspects it; the bar then has the colour of that.
    """
    parts = [
        f'<svg class="gauge" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" ',
        f'height="{_HEIGHT:g}" aria-hidden="true" focusable="false">',
        f'<rect class="track" x="0" y="3" width="{_WIDTH:g}" height="4" rx="2"/>',
    ]
    if not math.isnan(now):
        name = "more" if alarming else "same"
        parts.append(
            f'<rect class="{name}" x="0" y="3" width="{_along(now):.1f}" height="4" rx="2"/>'
        )
    if not math.isnan(baseline):
        x = min(_along(baseline), _WIDTH - 2)
        parts.append(f'<rect class="usual" x="{x:.1f}" y="0" width="2" height="{_HEIGHT:g}"/>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - numbers only


def _along(share: float) -> float:
    if share <= 0:
        return 0.0
    return _WIDTH * min(1.0, max(0.02, 1 - math.log10(share) / _FLOOR))
