"""The vocabulary of the dashboard's panels: what a panel is, its colours and common queries."""

from dataclasses import dataclass

from sidecar.metrics import catalogue as c

SIDECAR = 'job=~"$job",instance=~"$instance"'
MODEL = f'{SIDECAR},model=~"$model",revision=~"$revision"'
LAYER = f'{MODEL},layer=~"$layer",kind=~"$kind"'
FEATURE = f'{LAYER},feature=~"$feature"'
ON_FEATURE = ", ".join(("job", "instance", *c.FEATURE))
WINDOW = "[$__rate_interval]"

# Okabe and Ito's palette: told apart by people with any kind of colour vision. One meaning each.
GOOD, WATCH, BAD = "#009E73", "#E69F00", "#D55E00"
PLAIN, LATER, OTHER, QUIET = "#0072B2", "#56B4E9", "#CC79A7", "#999999"

STATES = (
    (0, "unknown", QUIET),
    (1, "normal", GOOD),
    (2, "pending", WATCH),
    (3, "firing", BAD),
    (4, "resolved", LATER),
)
"""Value, text and colour of ``sidecar_feature_state``."""

AUDIT_STATES = tuple(
    (number, state, colour)
    for number, (state, colour) in enumerate(
        zip(c.AUDIT_STATES, (QUIET, PLAIN, GOOD, BAD, OTHER, WATCH), strict=True)
    )
)
"""Value, text and colour of ``sidecar_audit_state`` and of what a night came to."""

YES_NO = ((0, "no", WATCH), (1, "yes", GOOD))
NO_YES = ((0, "no", GOOD), (1, "yes", BAD))

SERIES_NAME = "{{layer}} {{kind}} {{feature}} {{name}}"
"""Legend of a flagged feature's series."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL with Grafana's variables.
        legend: Name of its series.
        colour: Fixed colour, for series with a fixed meaning; empty: from the palette.
        dashed: Whether it is a reference (a baseline, a limit) rather than a measurement.
    """

    expr: str
    legend: str = ""
    colour: str = ""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """How a table shows one field: new title, unit, width in pixels."""

    field: str
    title: str
    unit: str = ""
    width: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        type: Grafana's panel type.
        description: What it is, from which metric, and what to do about it.
        unit: Grafana's unit id, or ``suffix:…``.
        queries: What it asks.
        size: Width and height in Grafana's grid of 24 columns.
        no_value: What is written where there is no data.
        steps: Threshold and colour from there on, ascending; the first threshold is ignored.
        mappings: Value, text and colour of values that stand for words.
        columns: Fields of a table, in order; what is not named is hidden.
        stacked: Whether series add up.
        to_feature: Whether a click on a series leads to the feature's page in the console.
        to_audit: Whether it leads to the audit's page there.
        text: HTML of a text panel.
        repeat: Variable by whose values the panel is repeated.
        exemplars: Whether the graph shows exemplars as dots.
    """

    title: str
    type: str
    description: str
    unit: str = ""
    queries: tuple[Query, ...] = ()
    size: tuple[int, int] = (12, 8)
    no_value: str = "no data"
    steps: tuple[tuple[float, str], ...] = ((0, PLAIN),)
    mappings: tuple[tuple[int, str, str], ...] = ()
    columns: tuple[Column, ...] = ()
    stacked: bool = False
    to_feature: bool = False
    to_audit: bool = False
    text: str = ""
    repeat: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A titled group of panels; a folded one asks nothing until it is opened."""

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False


def of_feature(family: c.Family) -> str:
    """Return the chosen features' values."""
    return f"{family.name}{{{FEATURE}}}"


def about(family: c.Family, labels: str) -> str:
    """Return a feature's value with what is known about the feature as labels."""
    return (
        f"{of_feature(family)} * on ({ON_FEATURE}) group_left ({labels}) "
        f"{of_feature(c.FEATURE_INFO)}"
    )


def rate_by(family: c.Family, by: str, selector: str = SIDECAR) -> str:
    """Return the query for a counter's rate, added up over all labels but ``by``."""
    return f"sum by ({by}) (rate({family.name}{{{selector}}}{WINDOW}))"


def total_rate(family: c.Family) -> str:
    """Return the query for a counter's rate over all chosen sidecars."""
    return f"sum(rate({family.name}{{{SIDECAR}}}{WINDOW}))"


HOOK_SHARE = f"{total_rate(c.HOOK_SECONDS)} / ({total_rate(c.FORWARD_SECONDS)} > 0)"
