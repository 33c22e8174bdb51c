"""What a picture is of: a unit, one of its two sides, or several units weighed together."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from sidecar.errors import UnsupportedTarget
from sidecar.features import FeatureKey, FeatureKind

PICTURE_KINDS = frozenset(
    {
        FeatureKind.CHANNEL,
        FeatureKind.NEURON,
        FeatureKind.LOGIT,
        FeatureKind.DIRECTION,
        FeatureKind.NORM,
    }
)
"""Kinds of unit that activation maximisation of an image model applies to. A ``norm`` is its whole layer,
and has index 0; a ``direction`` is a row of the layer's dictionary of vectors."""

SIDED_KINDS = PICTURE_KINDS - {FeatureKind.NORM}
"""Of these, the kinds of unit that have least values to look for, and can be weighed."""

TERMS_LIMIT = 16
"""Most further units of one target; each is read in every pass."""


class Side(StrEnum):
    """Which end of a unit's range is looked at."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


@dataclass(frozen=True, slots=True)
class Term:
    """A further unit of a target, and how much it counts beside the first.

    Attributes:
        feature: The unit, of the same layer.
        weight: Times its value; negative to push away from it. The first unit counts 1.
    """

    feature: FeatureKey
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that are no numbers."""
        if not math.isfinite(self.weight) or self.weight == 0:
            raise UnsupportedTarget(
                f"weight {self.weight} of {self.feature}: use a finite number other than 0"
            )


@dataclass(frozen=True, slots=True)
class Target:
    """What one picture is of.

    Attributes:
        feature: The unit; the answer is filed under it.
        position: ``(row, column)`` in the layer's spatial grid for a neuron; None for its centre,
            and for channels and logits.
        side: Whether its greatest or its least values are looked for.
        terms: Units that are weighed together with it: sums, differences, ways between two units.
    """

    feature: FeatureKey
    position: tuple[int, int] | None = None
    side: Side = Side.POSITIVE
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        """Refuse units that no picture can be made of."""
        kind = self.feature.layer.kind
        if kind not in PICTURE_KINDS:
            wanted = ", ".join(sorted(PICTURE_KINDS))
            raise UnsupportedTarget(f"no picture of a {kind} can be made yet: use one of {wanted}")
        if self.position is not None and kind is not FeatureKind.NEURON:
            raise UnsupportedTarget(f"a position applies to neurons, not to a {kind}: leave it out")
        if kind not in SIDED_KINDS and (
            self.feature.index or self.terms or self.side is Side.NEGATIVE
        ):
            raise UnsupportedTarget(
                f"{self.feature}: a {kind} is a whole layer: use index 0, the positive side, no terms"
            )
        if len(self.terms) > TERMS_LIMIT:
            raise UnsupportedTarget(
                f"{self.feature} has {len(self.terms)} further units: use at most {TERMS_LIMIT}"
            )
        for term in self.terms:
            if term.feature.layer != self.feature.layer:
                raise UnsupportedTarget(
                    f"{term.feature} is not in the layer of {self.feature}: weigh units of one layer"
                )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the answer depends on beside the weights, see ``content_key``."""
        return ("directions",) if self.feature.layer.kind is FeatureKind.DIRECTION else ()

    def document(self) -> dict[str, Any]:
        """Return the target as JSON-able values; what is as usual is left out."""
        found: dict[str, Any] = {"feature": str(self.feature), "position": self.position}
        if self.side is not Side.POSITIVE:
            found["side"] = str(self.side)
        if self.terms:
            found["terms"] = [[str(term.feature), term.weight] for term in self.terms]
        return found

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Read a document back.

        Raises:
            InvalidName: A feature is none.
            UnsupportedTarget: No picture can be made of it; what is no document at all raises
                KeyError, TypeError or ValueError.
        """
        position = document["position"]
        return cls(
            FeatureKey.parse(document["feature"]),
            None if position is None else tuple(position),
            Side(document.get("side", Side.POSITIVE)),
            tuple(
                Term(FeatureKey.parse(feature), float(weight))
                for feature, weight in document.get("terms", ())
            ),
        )
