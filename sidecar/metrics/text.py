"""Renders tables as text: Prometheus 0.0.4 or OpenMetrics 1.0, byte for byte as the client does.

All of a line but its value is the same in every scrape, so it is made once, and again only when the
set of series changes; a line whose value is the same too is used again whole. What is left is to
write the numbers that changed, and to join strings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.metrics.catalogue import Family, FamilyType
from sidecar.metrics.tables import EXEMPLAR, Labels, Scrape, Table

# From here on the client writes exponents, as Go does; below, repr() is what it writes.
_EXPONENT_FROM = 1e6
_EXPONENT_DIGITS = 6


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """What a family was, and how it was written."""

    labels: Sequence[Labels]
    head: str
    prefixes: list[str]
    values: Sequence[float]
    lines: list[str]


class TextRenderer:
    """Renders scrapes in one of the two text formats. May be used from several threads at once.

    Args:
        openmetrics: Whether to write OpenMetrics rather than Prometheus' own format.

    Complexity:
        About 0.4 µs a series whose value changed, 0.1 µs for one that is as it was, and 5 µs for a
        new one. Two lines of text stay in memory for each series.
    """

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._known: dict[Family, _Written] = {}

    def render(self, scrape: Scrape) -> bytes:
        """Return the families and samples of a scrape, without OpenMetrics' end mark."""
        parts: list[str] = []
        for table in scrape.tables:
            written = self._written(table)
            self._known[table.family] = written
            parts.append(written.head)
            parts += _marked(written.lines, table) if self._openmetrics else written.lines
        return "".join(parts).encode()

    def _written(self, table: Table) -> _Written:
        family, values = table.family, table.values
        old = self._known.get(family)
        if old is None or (old.labels is not table.labels and old.labels != table.labels):
            prefixes = [f"{_series(family, labels)} " for labels in table.labels]
            head = _openmetrics_head(family) if self._openmetrics else _plain_head(family)
            lines = [_line(*one) for one in zip(prefixes, values, strict=True)]
            return _Written(table.labels, head, prefixes, values, lines)
        # Most values are what they were, many the very same object. Other zeros are written anew: they have
        # two signs, and are equal.
        # Chained comparisons are false for NaN and infinities, which take the slow way.
        lines = [
            line
            if value is before or (value == before and value)
            else f"{prefix}{value!r}\n"
            if -math.inf < value < _EXPONENT_FROM
            else _line(prefix, value)
            for line, before, prefix, value in zip(
                old.lines, old.values, old.prefixes, values, strict=True
            )
        ]
        return _Written(table.labels, old.head, old.prefixes, values, lines)


def number(value: float) -> str:
    """Return a number as the client library writes it.

    Example:
        >>> number(0.5), number(1795448000.5), number(float("inf"))
        ('0.5', '1.7954480005e+09', '+Inf')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    whole, dot, rest = text.partition(".")
    if not dot or value < 0 or len(whole) <= _EXPONENT_DIGITS:
        return text
    mantissa = f"{whole[0]}.{whole[1:]}{rest}".rstrip("0.")
    return f"{mantissa}e+{len(whole) - 1:02d}"


def _line(prefix: str, value: float) -> str:
    """Return a line that ``repr`` cannot end; nothing where there is no value."""
    return "" if value != value else f"{prefix}{number(value)}\n"  # noqa: PLR0124 - NaN


def _marked(lines: list[str], table: Table) -> list[str]:
    """Return the lines with the exemplars of those that have one; only OpenMetrics knows them."""
    if not table.exemplars:
        return lines
    label, value = EXEMPLAR
    found = list(lines)
    for place, text in table.exemplars.items():
        if line := found[place].removesuffix("\n"):
            found[place] = f'{line} # {{{label}="{_escaped(text)}"}} {number(value)}\n'
    return found


def _series(family: Family, labels: Labels) -> str:
    if not labels:
        return family.sample
    pairs = sorted(zip(family.labels, labels, strict=True))
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{family.sample}{{{inner}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _plain_head(family: Family) -> str:
    kind = "gauge" if family.type is FamilyType.INFO else family.type.exposed
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {family.name} {text}\n# TYPE {family.name} {kind}\n"


def _openmetrics_head(family: Family) -> str:
    name = family.name.removesuffix("_total").removesuffix("_info")
    head = f"# HELP {name} {_escaped(family.help)}\n# TYPE {name} {family.type.exposed}\n"
    return head + (f"# UNIT {name} {family.exposed_unit}\n" if family.exposed_unit else "")
