"""From measures to a verdict in words: the one table of thresholds, and where they come from.

Those of the score were set on 49 random units of seven layers of EfficientNet-Lite0 with its ImageNet
weights, and the same units of the same network with its weights shuffled or drawn anew; those of
robustness, selectivity and transfer are judgement. ``benchmarks/reliability.py`` measures the score
again, and ``docs/portraits.md`` has the table and says where they fail.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRUSTED, WEAK, UNRELIABLE = "trusted", "weak", "unreliable"

POOR_SCORE = 0.42
"""Below this a picture is unreliable: one sound unit in twenty, all of a shuffled network and nineteen in
twenty of one drawn anew."""

GOOD_SCORE = 0.65
"""From here on no unit of a shuffled or redrawn network was seen; the highest had 0.59."""


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
        reason: What is said of a value that is not good, with ``{value}`` and ``{good}``.
    """

    unit: str
    meaning: str
    good: float | None = None
    poor: float = 0.0
    fatal: bool = False
    weight: float = 0.0
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
        weight=0.6,
        reason="Against the best of 33 pictures of nothing the unit reaches {value} standard deviations, "
        "while sound units reach +{good}: give it more steps, or look at photographs instead.",
    ),
    "agreement": Rule(
        "difference of cosines",
        "How much more alike the unit's pictures from several seeds are than pictures of different units, "
        "in the network's last maps.",
        good=0.25,
        poor=0.08,
        weight=0.4,
        reason="Other seeds give other pictures (agreement {value}, sound units {good}): make several, and "
        "trust only what they share.",
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
        "How far the picture is, in later layers, along the way that the photographs take which excite the "
        "unit most: 1 as far as they are, 0 where any other photograph is.",
        good=0.8,
        poor=0.5,
        fatal=True,
        reason="The picture excites the unit by another way through the network than photographs do "
        "(it is {value} of their way along, honest units at least {good}): it may be fooled on purpose. "
        "Believe the photographs, not the picture.",
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
    "preference": Rule(
        "share of pairs",
        "How often one of the unit's pictures excites it more than a picture of another unit.",
    ),
    "stirred": Rule(
        "standard deviations",
        "How far the optimiser moved the unit from the random start.",
    ),
    "robustness_spread": Rule("ratio", "Standard deviation of robustness over the views."),
    "best_example": Rule(
        "ratio", "Activation against that of the best photograph; far above 1 is normal."
    ),
    "score": Rule(
        "ratio",
        "Rise (three parts) and agreement (two), each on a scale from 0, as in random networks, to 1, as in "
        "sound ones.",
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

    ``unreliable``: the score is poor, or something fatal is; ``trusted``: the score and every measure
    that decides is good; ``weak``: anything else.

    Args:
        measures: By the names of ``RULES``; those that could not be taken are absent.
    """
    shares = {name: RULES[name].share(value) for name, value in measures.items()}
    weights = {name: RULES[name].weight for name in shares if RULES[name].weight}
    weight = sum(weights.values())
    score = sum(shares[n] * part for n, part in weights.items()) / weight if weight else 0.0
    fatal = any(share == 0.0 for name, share in shares.items() if RULES[name].fatal)
    lacking = [n for n, share in shares.items() if share < (GOOD_SCORE if n in weights else 1.0)]
    if fatal or score < POOR_SCORE:
        verdict = UNRELIABLE
    else:
        verdict = WEAK if lacking or score < GOOD_SCORE else TRUSTED
    order = [name for name in RULES if name in lacking]
    reasons = tuple(_sentence(name, measures[name]) for name in order)
    return Report(verdict, reasons, {**measures, "score": score})


def _sentence(name: str, value: float) -> str:
    rule = RULES[name]
    good = rule.good if rule.good is not None else 0.0
    return rule.reason.format(value=f"{value:.2g}", good=f"{good:g}", percent=f"{value:.0%}")
