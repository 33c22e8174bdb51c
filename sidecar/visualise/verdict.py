"""From measures to a verdict in words: the one table of thresholds, and where they come from.

Those of the score and of the path were set on 42 random units of seven layers of EfficientNet-Lite0 with
its ImageNet weights, and the same units of the network with its weights shuffled or drawn anew; those of
robustness, selectivity and transfer are judgement. ``benchmarks/reliability.py`` measures other units, and
other random weights; ``docs/portraits.md`` has the table and says where they fail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

TRUSTED, WEAK, UNRELIABLE = "trusted", "weak", "unreliable"

POOR_SCORE = 0.45
"""Below this a picture is unreliable: three of 42 sound units, 41 of a shuffled network and 39 of one drawn
anew, of those that the threshold was set on."""

GOOD_SCORE = 0.65
"""From here on no unit of a shuffled or redrawn network was seen; the highest had 0.62."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one measure says, and what of it is enough.

    Attributes:
        unit: What the number counts.
        meaning: What it says, in a sentence.
        good: What a trusted picture has at least; at most, where ``poor`` is greater. None: the measure
            is told, and has no part in the verdict.
        poor: Where the scale from ``poor`` to ``good`` begins.
        fatal: Whether a picture beyond ``poor`` is unreliable, whatever else is true.
        weight: Its part of the score.
        scaled_by: A measure whose share that part is multiplied by.
        reason: What is said of a value that is not good, with ``{value}`` and ``{good}``.
    """

    unit: str
    meaning: str
    good: float | None = None
    poor: float = 0.0
    fatal: bool = False
    weight: float = 0.0
    scaled_by: str = ""
    reason: str = ""

    def share(self, value: float) -> float:
        """Return where a value lies between poor, 0, and good, 1; beyond them it is cut off."""
        if self.good is None:
            return 1.0
        return min(max((value - self.poor) / (self.good - self.poor), 0.0), 1.0)


RULES: Mapping[str, Rule] = {
    "rise": Rule(
        "standard deviations",
        "How far the unit is above the best of 33 pictures of nothing (clouds, noise, plain colours), in "
        "the standard deviations it has on those.",
        good=2.0,
        poor=-1.5,
        weight=0.5,
        reason="Against the best of 33 pictures of nothing the unit reaches {value} standard deviations, "
        "while sound units reach +{good}: give it more steps, or look at photographs instead.",
    ),
    "stirred": Rule(
        "standard deviations",
        "How far the optimiser moved the unit from where it began, in the standard deviations it has on "
        "pictures of nothing.",
        good=4.0,
        poor=1.0,
        weight=0.25,
        reason="The optimiser moved the unit by {value} standard deviations only, while sound units move by "
        "{good}: give it more steps, or look at photographs instead.",
    ),
    "agreement": Rule(
        "difference of cosines",
        "How much more alike the unit's pictures from several seeds are than pictures of different units, "
        "in the network's last maps. Counts as far as the unit prefers its own pictures.",
        good=0.25,
        poor=0.08,
        weight=0.25,
        scaled_by="preference",
        reason="Other seeds give other pictures (agreement {value}; {good} is much): make several, and "
        "trust only what they share.",
    ),
    "preference": Rule(
        "share of pairs",
        "How often one of the unit's pictures excites it more than a picture of another unit.",
        good=0.8,
        poor=0.5,
        reason="The unit is excited more by its own pictures than by those of other units in {percent} of "
        "pairs only: another seed's picture of it need not show the same.",
    ),
    "selectivity": Rule(
        "share of units",
        "Share of the layer's other units that the picture excites more, each measured in its own spread on "
        "pictures of nothing.",
        good=0.1,
        poor=0.5,
        reason="The picture excites {percent} of the layer's other units more than this one: it shows "
        "what many units like.",
    ),
    "robustness": Rule(
        "ratio",
        "Share of the rise above the median picture of nothing that is left in random views of the picture, "
        "zoomed, turned and noisy.",
        good=0.5,
        poor=0.2,
        fatal=True,
        reason="Only {percent} of the excitation is left when the picture is cropped, turned or noisy: it "
        "rests on pixels that nobody sees. Use crops and noise in the recipe.",
    ),
    "reencoded": Rule(
        "ratio",
        "Share of that rise that is left after JPEG at quality 75; the picture itself is measured at 8 bits.",
        good=0.5,
        poor=0.2,
        fatal=True,
        reason="Only {percent} of the excitation survives JPEG: it rests on pixels that nobody sees. Use "
        "noise in the recipe.",
    ),
    "path": Rule(
        "ratio",
        "How far the channels through which the picture excites the unit are those through which the "
        "photographs do that excite it most: 1 as far as for one photograph and another, 0 not at all.",
        good=0.5,
        poor=0.3,
        fatal=True,
        reason="The picture excites the unit by another way through the network than photographs do "
        "(path {value}, sound units {good} and more): it may be fooled on purpose. Believe the photographs, "
        "not the picture.",
    ),
    "transfer": Rule(
        "probability",
        "What a sibling network, which the optimiser never saw, gives the class: mean of its best 3 of 9 "
        "views.",
        good=0.3,
        poor=0.0,
        reason="A sibling network sees the class with probability {value} only: what the picture shows is "
        "this network's own.",
    ),
    "seeds_stirred": Rule(
        "pictures",
        "Other seeds from which the optimiser found anything.",
        good=1.0,
        poor=0.0,
        fatal=True,
        reason="No other seed stirred the unit: the picture is an accident of its start. Use more steps or "
        "another recipe.",
    ),
    "robustness_spread": Rule("ratio", "Standard deviation of robustness over the views."),
    "best_example": Rule(
        "ratio", "Activation against that of the best photograph; far above 1 is normal."
    ),
    "score": Rule(
        "ratio",
        "Rise (two parts), stirred (one) and agreement times preference (one), each on a scale from 0, as in "
        "random networks, to 1, as in sound ones.",
    ),
}
"""Every measure, those that decide first."""


@dataclass(frozen=True, slots=True)
class Report:
    """How far one picture can be believed.

    Attributes:
        verdict: ``trusted``, ``weak`` or ``unreliable``.
        reasons: Sentences that say why it is not trusted; empty if it is.
        measures: Every number that was taken, by name.
    """

    verdict: str
    reasons: tuple[str, ...]
    measures: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return the report as the manifest has it."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "measures": {
                name: {
                    "value": value,
                    "unit": RULES[name].unit,
                    "meaning": RULES[name].meaning,
                    "decides": RULES[name].good is not None,
                }
                for name, value in self.measures.items()
            },
        }


def judge(measures: Mapping[str, float]) -> Report:
    """Turn measures into a verdict.

    ``unreliable``: the score is poor, or something fatal is; ``trusted``: the score is good, and so is every
    measure that decides and is no part of it; ``weak``: anything else.

    Args:
        measures: By the names of ``RULES``; those that could not be taken are absent.
    """
    shares = {name: RULES[name].share(value) for name, value in measures.items()}
    score = _score(shares)
    fatal = any(share == 0.0 for name, share in shares.items() if RULES[name].fatal)
    # A part of a good score that is not good itself is made up for by the others.
    lacking = {
        name
        for name, share in shares.items()
        if (share < GOOD_SCORE > score if RULES[name].weight else share < 1.0)
    }
    if fatal or score < POOR_SCORE:
        verdict = UNRELIABLE
    else:
        verdict = WEAK if lacking or score < GOOD_SCORE else TRUSTED
    order = [name for name in RULES if name in lacking]
    reasons = tuple(_sentence(name, measures[name]) for name in order)
    return Report(verdict, reasons, {**measures, "score": score})


def _score(shares: Mapping[str, float]) -> float:
    """Return the weighed mean of those of its parts that were measured."""
    total, weight = 0.0, 0.0
    for name, share in shares.items():
        rule = RULES[name]
        total += rule.weight * share * shares.get(rule.scaled_by, 1.0)
        weight += rule.weight
    return total / weight if weight else 0.0


def weakest(reports: Sequence[Report]) -> Report:
    """Return the report on a sheet: that of its picture that can be believed least.

    Args:
        reports: On its pictures from left to right, at least one.
    """
    if len(reports) == 1:
        return reports[0]
    order = {UNRELIABLE: 0, WEAK: 1, TRUSTED: 2}
    ranked = [(order[one.verdict], one.measures["score"], n) for n, one in enumerate(reports)]
    *_, worst = min(ranked)
    named = f"Picture {worst + 1} of {len(reports)}: "
    found = reports[worst]
    return replace(found, reasons=tuple(named + reason for reason in found.reasons))


def _sentence(name: str, value: float) -> str:
    rule = RULES[name]
    good = rule.good if rule.good is not None else 0.0
    return rule.reason.format(value=f"{value:.2g}", good=f"{good:g}", percent=f"{value:.0%}")
