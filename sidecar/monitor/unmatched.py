"""Why a flag fits no feature: which part of its name is wrong, and what there is instead."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from sidecar.features import FeatureSelector, LayerKey, revision_matches, short_revision

NEAREST_LIMIT = 3
"""Names offered in place of one that is wrong."""


@dataclass(frozen=True, slots=True)
class UnmatchedFlag:
    """A flag without a feature, so that nobody is told of anything.

    Attributes:
        flag: Its text form.
        field: The first part of it that nothing has: ``model``, ``revision``, ``layer``, ``kind``,
            ``view``, ``scope`` or ``index``.
        value: What it says there.
        nearest: What is there instead, the most alike first; of an index the range.
    """

    flag: str
    field: str
    value: str
    nearest: tuple[str, ...]

    @property
    def words(self) -> str:
        """What is wrong, and what to do."""
        if not self.nearest:
            return f"no hook has registered {self.field} {self.value!r}, nor any other so far"
        if self.field == "index":
            return f"index {self.value} is not in the layer: use {self.nearest[0]}"
        names = ", ".join(map(repr, self.nearest))
        return f"no hook has registered {self.field} {self.value!r}; the nearest: {names}"


_PARTS: tuple[tuple[str, Callable[[FeatureSelector | LayerKey], str]], ...] = (
    ("model", lambda one: one.model),
    ("revision", lambda one: one.revision),
    ("layer", lambda one: one.layer),
    ("kind", lambda one: str(one.kind)),
    ("view", lambda one: str(one.view)),
    ("scope", lambda one: str(one.scope)),
)
"""The parts of a feature's name from left to right."""


def explain(flag: FeatureSelector, layers: Iterable[tuple[LayerKey, int]]) -> UnmatchedFlag | None:
    """Say which part of a flag no layer has; None where it fits a feature.

    Args:
        flag: Which feature it names.
        layers: The layers there are, with their widths.
    """
    left = list(layers)
    for field, part in _PARTS:
        wanted = part(flag)
        fitting = [
            (key, width)
            for key, width in left
            if (
                revision_matches(wanted, key.revision)
                if field == "revision"
                else part(key) == wanted
            )
        ]
        if not fitting:
            return UnmatchedFlag(
                str(flag), field, wanted, _nearest(field, wanted, [part(k) for k, _ in left])
            )
        left = fitting
    widest = max(width for _, width in left)
    if flag.index < widest:
        return None
    return UnmatchedFlag(str(flag), "index", str(flag.index), (f"0 to {widest - 1}",))


def _nearest(field: str, wanted: str, names: Sequence[str]) -> tuple[str, ...]:
    shown = short_revision if field == "revision" else str
    there = sorted(set(map(shown, names)))
    # All are offered where few are there, however little they are alike.
    return tuple(get_close_matches(shown(wanted), there, NEAREST_LIMIT, cutoff=0.0))
