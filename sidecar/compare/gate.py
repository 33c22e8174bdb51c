"""Gates: how many units of a layer may have been lost or moved."""

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.errors import InvalidInput

FATES = ("same", "moved", "lost", "new")
"""What becomes of units, see ``visualise.agreement``."""

_GATED = FATES[1:]


@dataclass(frozen=True, slots=True)
class Rule:
    """Most units of one fate in any layer.

    Attributes:
        fate: ``moved``, ``lost`` or ``new``.
        limit: As many may have it; a share of the layer's units where ``share`` is set.
        share: Whether ``limit`` is a share, from 0 to 1.
    """

    fate: str
    limit: float = 0.0
    share: bool = False

    def broken(self, counts: Mapping[str, int], units: int) -> str:
        """Return how a layer's counts break the rule, in words; empty where they keep it."""
        count, most = counts[self.fate], self.limit * units if self.share else self.limit
        if count <= most:
            return ""
        allowed = f"{100 * self.limit:g} %" if self.share else f"{self.limit:g}"
        return f"{count} of {units} units {self.fate} ({count / units:.1%}), allowed: {allowed}"

    def __str__(self) -> str:
        """Return the text form, as ``parse_rules`` reads it."""
        return f"{self.fate}={100 * self.limit:g}%" if self.share else f"{self.fate}={self.limit:g}"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read ``lost,moved=5%,new=10``: fates with the most units that may have them, 0 where not said.

    Raises:
        InvalidInput: Another fate, or another limit than a whole number or a percentage; or a fate twice.

    Example:
        >>> [str(rule) for rule in parse_rules("lost,moved=5%")]
        ['lost=0', 'moved=5%']
    """
    rules = tuple(_rule(part.strip()) for part in text.split(",") if part.strip())
    fates = [rule.fate for rule in rules]
    if doubled := sorted({fate for fate in fates if fates.count(fate) > 1}):
        raise InvalidInput(f"{doubled[0]} is there twice in {text!r}: name it once")
    return rules


def _rule(text: str) -> Rule:
    fate, equals, limit = text.partition("=")
    if fate not in _GATED:
        raise InvalidInput(f"fate {fate[:40]!r} is unknown: use one of {', '.join(_GATED)}")
    if not equals:
        return Rule(fate)
    share = limit.endswith("%")
    try:
        value = float(limit[:-1]) / 100 if share else float(int(limit))
    except ValueError as error:
        raise InvalidInput(
            f"limit {limit[:40]!r} of {fate} is neither a whole number nor a percentage, such as 5%"
        ) from error
    if not 0 <= value <= (1.0 if share else float("inf")):
        raise InvalidInput(f"limit {limit} of {fate} is out of range: use 0 or more, at most 100%")
    return Rule(fate, value, share)
