"""What a scrape holds before it has a format: one table of series and values for each family."""

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sidecar.metrics.catalogue import Family
from sidecar.monitor import LayerActivations

Labels = tuple[str, ...]
"""Label values of one series, in the order of the family's label names."""

EXEMPLAR = ("evidence_id", 1.0)
"""Label and value of every exemplar: one spike. The value stays the same and there is no timestamp, so
that Prometheus stores an evidence once, however often it is scraped."""

_EXEMPLAR_LIMIT = 128

_Subject = TypeVar("_Subject")
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The series of one family.

    Attributes:
        family: Which.
        labels: Of each series. If it can be, the very same object for as long as the series are the
            same: renderers keep what they made of it, and compare.
        values: Of each series; NaN: the series is absent from this scrape.
        exemplars: ``evidence_id`` of some series' exemplars, by their place; of counters only.
    """

    family: Family
    labels: tuple[Labels, ...]
    values: Sequence[float]
    exemplars: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Histograms:
    """The native histograms of one layer's features.

    Attributes:
        labels: Of each histogram, as in ``Table``.
        places: Where each is in the layer's activations.
        activations: The layer's.
    """

    labels: tuple[Labels, ...]
    places: tuple[int, ...]
    activations: LayerActivations


@dataclass(frozen=True, slots=True, eq=False)
class Scrape:
    """Everything one scrape says.

    Attributes:
        tables: One for each family of the catalogue but native histograms, in its order.
        histograms: What the native histograms are made of.
    """

    tables: tuple[Table, ...]
    histograms: tuple[Histograms, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which subjects have series, and under which labels.

    Attributes:
        places: Their positions in what was chosen from, increasing.
        labels: Of each.
        left_out: How many subjects have none.
    """

    places: tuple[int, ...]
    labels: tuple[Labels, ...]
    left_out: int


class Memo(Generic[_Made]):
    """Keeps what was last made, for as long as it would be made from the very same objects.

    May be used from several threads at once; they may then make the same thing twice.
    """

    def __init__(self) -> None:
        self._known: tuple[Hashable, Sequence[object], _Made] | None = None

    def get(self, setting: Hashable, sources: Sequence[object], make: Callable[[], _Made]) -> _Made:
        """Return what ``make`` returned for these sources, calling it only if they changed.

        Args:
            setting: Compared by value.
            sources: Compared by identity, which is fast; kept alive, so that no other object can
                take their place.
            make: Its results compare by value: an equal one is replaced by the one before.
        """
        known = self._known
        if (
            known is not None
            and known[0] == setting
            and len(known[1]) == len(sources)
            and all(map(operator.is_, known[1], sources))
        ):
            return known[2]
        made = make()
        if known is not None and known[2] == made:
            made = known[2]
        self._known = (setting, tuple(sources), made)
        return made


class Room:
    """The series that a scrape may still hold."""

    def __init__(self, series: int) -> None:
        self._series = max(series, 0)

    def fits(self, each: int) -> int:
        """Return how many subjects of ``each`` series there is room for."""
        return self._series // each

    def take(self, series: int) -> None:
        """Take room for so many series; ask ``fits`` first."""
        self._series -= series


def choose(subjects: Iterable[_Subject], label: Callable[[_Subject], Labels], limit: int) -> Chosen:
    """Choose the first ``limit`` subjects with different labels.

    Prometheus rejects a scrape, or drops samples without a word, when two series are equal.
    """
    kept: dict[Labels, int] = {}
    total = 0
    for place, subject in enumerate(subjects):
        total += 1
        if len(kept) < limit:
            kept.setdefault(label(subject), place)
    return Chosen(tuple(kept.values()), tuple(kept), total - len(kept))


def fitting(exemplars: Mapping[int, str]) -> dict[int, str]:
    """Return the exemplars that OpenMetrics allows: at most 128 characters, the label's name included."""
    label, _ = EXEMPLAR
    return {
        place: text for place, text in exemplars.items() if len(label + text) <= _EXEMPLAR_LIMIT
    }
