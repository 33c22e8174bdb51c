"""How a feature is to be watched, as far as somebody says so by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sidecar.detect import Detector, Direction
from sidecar.errors import InvalidInput, InvalidName
from sidecar.features import Slice
from sidecar.monitor.views import Flag

COMMON_FACTOR = 0.0
"""Says that a feature has no factor of its own: not to be confused with nothing being said of it."""


@dataclass(frozen=True, slots=True)
class Watching:
    """What is to change of how a feature is watched; None stays as it is.

    Attributes:
        factor: Its least factor over the recent level, more than 1; ``COMMON_FACTOR``: none of its own.
        direction: On which side of its baseline.
        traffic: Only requests with all these pairs count; without any, all do.
        detectors: What looks at it.
    """

    factor: float | None = None
    direction: Direction | None = None
    traffic: Slice | None = None
    detectors: tuple[Detector, ...] | None = None

    @classmethod
    def of(
        cls,
        factor: float | None = None,
        direction: str = "",
        traffic: str | None = None,
        detectors: Sequence[str] = (),
    ) -> Self:
        """Return what people or programs wrote.

        Args:
            factor: As the attribute.
            direction: ``above``, ``below`` or ``both``; empty: as it is.
            traffic: ``key=value`` pairs joined by commas; empty: all traffic; None: as it is.
            detectors: Any of ``spike``, ``conditions`` and ``drift``; none: as they are.

        Raises:
            InvalidInput: A value is none that it may have.
        """
        if factor is not None and not (factor == COMMON_FACTOR or 1 < factor < math.inf):
            raise InvalidInput(f"factor {factor:g}: use a number above 1, or 0 for the common one")
        if direction and direction not in tuple(Direction):
            raise InvalidInput(f"direction {direction[:40]!r}: use one of {', '.join(Direction)}")
        for name in detectors:
            if name not in tuple(Detector):
                raise InvalidInput(f"detector {name[:40]!r}: use any of {', '.join(Detector)}")
        if len(set(detectors)) != len(detectors):
            raise InvalidInput(f"detectors {', '.join(detectors)}: name each once")
        return cls(
            factor,
            Direction(direction) if direction else None,
            None if traffic is None else _slice(traffic),
            tuple(one for one in Detector if one in detectors) or None,
        )

    def after(self, earlier: "Watching") -> "Watching":
        """Return this with what an earlier one says and this does not."""
        return Watching(
            earlier.factor if self.factor is None else self.factor,
            self.direction or earlier.direction,
            earlier.traffic if self.traffic is None else self.traffic,
            self.detectors or earlier.detectors,
        )

    def beside(self, common: Flag) -> "Watching":
        """Return this without what is so anyway: then it goes on following the configuration."""
        own = common.factor or COMMON_FACTOR
        return Watching(
            None if self.factor == own else self.factor,
            None if self.direction is common.direction else self.direction,
            None if self.traffic == common.traffic else self.traffic,
            None if self.detectors == common.detectors else self.detectors,
        )

    def over(self, common: Flag) -> Flag:
        """Return a flag that is watched so, and else as another."""
        return replace(
            common,
            factor=common.factor if self.factor is None else self.factor or None,
            direction=self.direction or common.direction,
            traffic=common.traffic if self.traffic is None else self.traffic,
            detectors=self.detectors or common.detectors,
        )

    def __str__(self) -> str:
        """Return it in words for the audit log; empty: nothing is said."""
        parts = (
            "" if self.factor is None else f"factor {self.factor or 'common'}",
            str(self.direction or ""),
            "" if self.traffic is None else f"on {str(self.traffic) or 'all traffic'}",
            f"for {' and '.join(self.detectors)}" if self.detectors else "",
        )
        return ", ".join(part for part in parts if part)

    def encode(self) -> str:
        """Return it as text for ``decode``; empty: nothing is said."""
        known: dict[str, Any] = {
            "factor": self.factor,
            "direction": self.direction,
            "slice": None if self.traffic is None else str(self.traffic),
            "detectors": self.detectors,
        }
        said = {name: value for name, value in known.items() if value is not None}
        return json.dumps(said) if said else ""

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what ``encode`` wrote.

        Raises:
            InvalidInput: It is something else.
        """
        try:
            said = json.loads(text or "{}")
            return cls.of(
                said.get("factor"),
                said.get("direction", ""),
                said.get("slice"),
                said.get("detectors", ()),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(f"watched {text[:80]!r}: not as it was written") from error


def _slice(text: str) -> Slice:
    """Return the slice of pairs as people write them."""
    pairs: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"slice {pair[:80]!r}: use key=value pairs, joined by commas")
        if key in pairs:
            raise InvalidInput(f"slice {text[:80]!r}: {key[:40]} is there twice")
        pairs[key] = value
    try:
        return Slice.of(pairs)
    except InvalidName as error:
        raise InvalidInput(error.message) from error
