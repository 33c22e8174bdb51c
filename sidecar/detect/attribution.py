"""Which slice of the traffic explains a spike: each is left out in turn, and the rest is looked at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.errors import InvalidInput

EXCEEDANCES_LEAST = 5
"""Exceedances below which nothing is said: with fewer, one request is a fifth of the answer."""

CHANCE_MOST = 1e-3
"""Chance, over all pairs together, that exceedances spread over requests at random look as concentrated
in one pair: a wrong name in front of whoever is woken is worse than none."""

SLACK_DEVIATIONS = 2.0
"""Standard deviations by which the rest may pass what is tolerated and still count as calm: of a few
hundred requests a single exceedance more would otherwise undo the answer."""

SHARE_LEAST = 0.5
"""Share of the excess a slice must explain to be called the cause: less, and most of the spike is
elsewhere, even where the rest falls just below what is tolerated."""

SHARE_TIE = 0.05
"""Shares so close are a tie: of nested slices (a region, and the one route in it that spikes) the wider
one explains a little more by accident, and the narrower one says more."""

TIES_NAMED = 3
"""Slices named beside the cause because their counts are the same; all of them are in ``ranked``."""


@dataclass(frozen=True, slots=True)
class SliceCount:
    """What was counted of the requests that carry one pair of a slice.

    Attributes:
        key: Such as ``route``.
        value: Such as ``/v1/eu``.
        requests: Requests with this pair.
        exceedances: Those of them that exceed.
    """

    key: str
    value: str
    requests: int
    exceedances: int

    @property
    def name(self) -> str:
        """The pair as people write it: ``route=/v1/eu``."""
        return f"{self.key}={self.value}"

    @property
    def rate(self) -> float:
        """Share of its requests that exceed; NaN without requests."""
        return self.exceedances / self.requests if self.requests else math.nan


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The traffic without one pair.

    Attributes:
        left: The pair that was left out.
        rate: Share of the other requests that exceed; NaN where there are none.
        share: Share of the excess over the baseline that went with the pair, 0 to 1.
        gone: Whether the other requests exceed no more often than is tolerated, give or take chance.
        telling: Whether so many of the exceedances have the pair that chance is no explanation.
    """

    left: SliceCount
    rate: float
    share: float
    gone: bool
    telling: bool


@dataclass(frozen=True, slots=True)
class Attribution:
    """What the slices say of a spike.

    Attributes:
        words: One sentence or two for people.
        cause: Name of the pair without which the spike is gone, ``key=value``; empty where none is.
        share: Share of the excess it explains, 0 to 1; 0 without a cause.
        ranked: Every pair that not all requests have, the one that explains most first.
    """

    words: str
    cause: str = ""
    share: float = 0.0
    ranked: tuple[LeftOut, ...] = ()


def attribute(
    requests: int,
    exceedances: int,
    pairs: Sequence[SliceCount],
    *,
    baseline_rate: float,
    tolerated_rate: float,
    uncounted: int = 0,
) -> Attribution:
    """Say which single pair, left out, takes the spike away.

    A pair is the cause if the requests without it exceed no more often than is tolerated, at least half
    of the excess went with it, and the exceedances are concentrated in it beyond chance: were they
    spread over the requests at random, any pair at all would be named with a chance of at most
    ``CHANCE_MOST``. Of several such pairs the one that explains most is named; of those that explain
    about the same, the one with the fewest requests. Pairs that all requests have are never the
    cause: there is nothing to compare with.

    Args:
        requests: All requests of the windows since the spike began, with or without a slice.
        exceedances: Those that exceed.
        pairs: What was counted of each pair; each pair once, in any order. A request counts for every
            pair of its slice.
        baseline_rate: Share of requests that exceed in the baseline; NaN: there is none.
        tolerated_rate: Share from which on it is a spike.
        uncounted: Requests with pairs beyond those in ``pairs``, because there were too many.

    Returns:
        The same for every order of ``pairs``.

    Raises:
        InvalidInput: A count is negative, above that of the whole, or has more exceedances than
            requests.

    Complexity:
        O(pairs log pairs).

    Source:
        The chance is bounded by Chernoff 1952, "A measure of asymptotic efficiency for tests of a
        hypothesis based on the sum of observations": P(X >= k) <= exp(-n KL(k/n, p)) of a binomial
        X, times the number of pairs (Bonferroni).
    """
    _check(requests, exceedances, pairs)
    silence = _why_silent(requests, exceedances, pairs, baseline_rate, tolerated_rate)
    if silence:
        return Attribution(silence)
    part = [pair for pair in pairs if 0 < pair.requests < requests]
    whole = SliceCount("", "", requests, exceedances)
    need = math.log(max(len(part), 1) / CHANCE_MOST)
    ranked = sorted(
        (_left_out(pair, whole, baseline_rate, tolerated_rate, need) for pair in part),
        key=lambda one: (-one.share, one.left.requests, one.left.name),
    )
    if not ranked:
        return Attribution(_all_in_one(requests, pairs))
    cause = _cause(ranked)
    if cause is None:
        words = _unexplained(ranked[0], whole, tolerated_rate) + _beyond(uncounted)
        return Attribution(words, ranked=tuple(ranked))
    words = _explained(cause, ranked, whole)
    return Attribution(words, cause.left.name, cause.share, tuple(ranked))


def _check(requests: int, exceedances: int, pairs: Sequence[SliceCount]) -> None:
    if not 0 <= exceedances <= requests:
        raise InvalidInput(
            f"{exceedances} exceedances of {requests} requests: need 0 to {requests}"
        )
    for pair in pairs:
        fits = pair.requests <= requests and pair.exceedances <= exceedances
        if not (0 <= pair.exceedances <= pair.requests and fits):
            raise InvalidInput(
                f"slice {pair.name} has {pair.exceedances} exceedances of {pair.requests} requests, "
                f"where all have {exceedances} of {requests}: count each request once"
            )


def _why_silent(
    requests: int,
    exceedances: int,
    pairs: Sequence[SliceCount],
    baseline_rate: float,
    tolerated_rate: float,
) -> str:
    """Return why nothing can be said of any pair; empty where something can."""
    if not any(pair.requests for pair in pairs):
        return "No request names its slice, so it cannot be said which traffic this is."
    if not (math.isfinite(baseline_rate) and math.isfinite(tolerated_rate)):
        return "There is no baseline, so it cannot be said which traffic exceeds it."
    if exceedances < EXCEEDANCES_LEAST:
        return f"{exceedances} exceedances are too few to say which traffic this is."
    rate = exceedances / requests
    if rate < tolerated_rate or rate <= baseline_rate:
        return (
            f"{_share(rate)} of the {requests} requests at hand exceed, which is tolerated "
            f"({_share(tolerated_rate)}): there is no excess to explain."
        )
    return ""


def _left_out(
    pair: SliceCount, whole: SliceCount, baseline_rate: float, tolerated_rate: float, need: float
) -> LeftOut:
    rest, beyond = whole.requests - pair.requests, whole.exceedances - pair.exceedances
    excess = whole.exceedances - baseline_rate * whole.requests
    remaining = max(0.0, beyond - baseline_rate * rest)
    tolerated = tolerated_rate * rest
    return LeftOut(
        left=pair,
        rate=beyond / rest,
        share=min(1.0, max(0.0, 1.0 - remaining / excess)),
        gone=beyond <= tolerated + SLACK_DEVIATIONS * math.sqrt(tolerated),
        telling=_concentration(pair, whole) >= need,
    )


def _concentration(pair: SliceCount, whole: SliceCount) -> float:
    """Return a lower bound of -log of the chance that a pair has so many of all exceedances."""
    found, expected = pair.exceedances / whole.exceedances, pair.requests / whole.requests
    if found <= expected:
        return 0.0
    inside = found * math.log(found / expected)
    outside = (1 - found) * math.log((1 - found) / (1 - expected)) if found < 1 else 0.0
    return whole.exceedances * (inside + outside)


def _cause(ranked: Sequence[LeftOut]) -> LeftOut | None:
    found = [one for one in ranked if one.gone and one.telling and one.share >= SHARE_LEAST]
    if not found:
        return None
    near = [one for one in found if one.share >= found[0].share - SHARE_TIE]
    return min(near, key=lambda one: (one.left.requests, -one.share, one.left.name))


def _explained(cause: LeftOut, ranked: Sequence[LeftOut], whole: SliceCount) -> str:
    left = cause.left
    counts = (left.requests, left.exceedances)
    same = [
        one.left.name
        for one in ranked
        if one is not cause and (one.left.requests, one.left.exceedances) == counts
    ]
    words = (
        f"Without {left.name} the spike is gone: {_share(cause.share)} of the excess. "
        f"{left.exceedances} of its {left.requests} requests exceed, "
        f"{whole.exceedances - left.exceedances} of the other {whole.requests - left.requests}."
    )
    if not same:
        return words
    more = f" and {len(same) - TIES_NAMED} more" if len(same) > TIES_NAMED else ""
    return f"{words} Its counts are also those of {', '.join(same[:TIES_NAMED])}{more}: which of them it is cannot be told."


def _unexplained(most: LeftOut, whole: SliceCount, tolerated_rate: float) -> str:
    left = most.left
    if not most.gone:
        return (
            f"No single slice explains it: without {left.name}, which takes away most "
            f"({_share(most.share)} of the excess), still {_share(most.rate)} of requests exceed; "
            f"{_share(tolerated_rate)} would be tolerated."
        )
    if most.telling:
        return (
            f"No single slice explains it: leaving out {left.name} takes away most, "
            f"{_share(most.share)} of the excess."
        )
    return (
        f"No slice can be blamed: {left.exceedances} of {whole.exceedances} exceedances are of "
        f"{left.name}, but so are {left.requests} of {whole.requests} requests, and so few may fall "
        "like this by chance."
    )


def _all_in_one(requests: int, pairs: Sequence[SliceCount]) -> str:
    names = sorted(pair.name for pair in pairs if pair.requests)
    shown = ", ".join(names[:TIES_NAMED]) + (" and more" if len(names) > TIES_NAMED else "")
    return (
        f"All {requests} requests have {shown}: there is no other traffic to compare with, so the "
        "spike may be of this slice or of all."
    )


def _beyond(uncounted: int) -> str:
    if not uncounted:
        return ""
    return f" {uncounted} requests have slices that were not counted, because there are too many."


def _share(ratio: float) -> str:
    """Return a share in percent with two digits; one that is nearly all is not called all."""
    if ratio >= 0.995:  # noqa: PLR2004 - what two digits would round to 100
        return "100 %" if ratio >= 1 else "over 99 %"
    return f"{100 * ratio:.2g} %"
