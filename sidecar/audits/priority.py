"""Which features a night pictures: what is the matter first, and everything in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Reason(IntEnum):
    """Why a feature was chosen, the most urgent first."""

    FIRED = 0
    STRANGE = 1
    FLAGGED = 2
    FILLER = 3

    @property
    def words(self) -> str:
        """The reason for people."""
        return _WORDS[self]


_WORDS = {
    Reason.FIRED: "fired since the last night",
    Reason.STRANGE: "drifts, or the screen finds it",
    Reason.FLAGGED: "flagged, and its turn",
    Reason.FILLER: "stands for its layer, of which nothing is flagged",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature that may be pictured.

    Attributes:
        feature: Its text form without model and revision, ``LAYER/KIND/INDEX[;VIEW[;SCOPE]]``.
        flagged: Whether somebody watches it.
        fired: Whether it fired since the last night.
        strange: Whether it drifts, or the screen found it.
        pictured_at: When an earlier night pictured it last, in unix seconds; 0: never.
        negative: Whether its least values are what is watched.
    """

    feature: str
    flagged: bool = True
    fired: bool = False
    strange: bool = False
    pictured_at: float = 0.0
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """A feature that is pictured, and why.

    Attributes:
        feature: As in ``Candidate``.
        reason: What gave it its place.
        negative: As in ``Candidate``.
    """

    feature: str
    reason: Reason
    negative: bool = False


def choose(candidates: Sequence[Candidate], limit: int) -> tuple[Chosen, ...]:
    """Take the most urgent features, and leave half of the places to those whose turn it is.

    What fired or is strange has up to ``limit - limit // 2`` places before anything else, and more where the
    others leave some. The rest goes to flags, the one pictured longest ago first. With ``n`` flags and
    nothing urgent each is pictured within ``ceil(n / limit)`` nights; whatever is urgent, within
    ``ceil(n / (limit // 2))``, if the limit is at least 2.

    Args:
        candidates: Each feature once.
        limit: Most that are taken; at least 1.

    Returns:
        At most ``limit`` features, the most urgent first; among equals the one pictured longest ago,
        then by name.

    Example:
        >>> found = choose([Candidate("a/channel/1"), Candidate("b/channel/2", strange=True)], 1)
        >>> found[0].feature, found[0].reason.words
        ('b/channel/2', 'drifts, or the screen finds it')
    """
    ranked = sorted(
        ((_reason(one), one.pictured_at, one.feature, one) for one in candidates),
        key=lambda entry: entry[:3],
    )
    urgent = [entry for entry in ranked if entry[0] <= Reason.STRANGE]
    # An urgent flag has its turn like any other: else one that fires every night starves the rest.
    in_turn = sorted(ranked, key=lambda entry: (_turn(entry[3]), *entry[1:3]))
    taken = urgent[: limit - limit // 2]
    held = {entry[2] for entry in taken}
    taken += [entry for entry in in_turn if entry[2] not in held][: limit - len(taken)]
    taken.sort(key=lambda entry: entry[:3])
    return tuple(Chosen(one.feature, reason, one.negative) for reason, _, _, one in taken)


def _reason(one: Candidate) -> Reason:
    if one.fired:
        return Reason.FIRED
    if one.strange:
        return Reason.STRANGE
    return Reason.FLAGGED if one.flagged else Reason.FILLER


def _turn(one: Candidate) -> int:
    """Return 0 of flags, 1 of what is strange and not flagged, 2 of the rest."""
    if one.flagged:
        return 0
    return 1 if _reason(one) <= Reason.STRANGE else 2
