"""One step of the spike test: a closed window goes in, changes of state come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.eprocess import beyond_judging, grown, in_tens, tolerated_rate, winsorised
from sidecar.detect.policy import STATES, Direction, Observation, SpikePolicy, State, Transition
from sidecar.detect.state import NEVER, SpikeState, fitted, rates, sums
from sidecar.errors import InvalidInput, ShapeMismatch

UNKNOWN, NORMAL, PENDING, FIRING, RESOLVED = (state.code for state in STATES)

_PENDING_SHARE = 0.5
"""Share of an alarm's evidence, as a power of ten, from which a feature is pending."""

_CALM_TOP = 0.5
"""Nobody calls it calm when most requests exceed; it is also the greatest tolerated rate."""

_FIRST_LEVEL = 2.0
"""Of the baseline's share, where the level starts: traffic may be in a burst, and it takes some windows
to learn that. From the share itself, a feature in a hundred would begin with a false alarm."""

_LEAST_CALM = 1e-4
"""Stands in for a baseline rate and a level of 0, below which nothing could be."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What a window says of each feature; all arrays have shape ``(n,)``."""

    baseline: NDArray[np.float64]
    share: NDArray[np.float64]
    directions: Sequence[Direction]
    tolerated: NDArray[np.float64]
    evidence: NDArray[np.float64]
    threshold: float
    sampled: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    closed: NDArray[np.bool_]
    silent: NDArray[np.bool_]
    held: NDArray[np.bool_]
    alarm: NDArray[np.bool_]
    raised: NDArray[np.bool_]
    calm: NDArray[np.bool_]


def step(
    state: SpikeState, observation: Observation, policy: SpikePolicy, now: float, *, flagged: int
) -> tuple[SpikeState, tuple[Transition, ...]]:
    """Take in one closed window.

    A feature is ``unknown`` while it has no baseline, is not judged, exceeds in the baseline so often
    that ``baseline_factor`` times that is above 1/2, or had no request for ``unsampled_windows``
    windows. Otherwise it is ``pending`` from half of an alarm's evidence on (as powers of ten) and
    ``firing`` from all of it on. An alarm is held: the evidence starts over at 0 when it ends, so it
    neither flaps nor depends on how many features are flagged by then. After ``clear_windows`` calm
    windows in a row it is ``resolved``, and after ``resolved_windows`` more ``normal``; a new alarm
    fires it again. A held alarm that becomes ``unknown`` for want of samples is not forgotten: the
    first sampled window brings it back as ``firing``, or as ``resolved`` if it is calm.

    Windows without a request are evidence of nothing: they neither add to anything nor break it.

    Args:
        state: As returned by the last step, or ``initial``.
        observation: The window, of the same features.
        policy: When a feature counts as spiking.
        now: Unix seconds of the window's end.
        flagged: Features flagged in all layers, these among them: they share the false alarms.

    Returns:
        The new state and what changed, in the order of the features; ``state`` is not changed.

    Raises:
        ShapeMismatch: The observation is of another number of features.
        InvalidInput: A count is negative, or more requests exceed than there are; a factor is not
            above 1.
    """
    _check(observation, len(state))
    before = fitted(state, policy.short_windows, policy.lag_windows)
    counted, seen = _weigh(before, observation, policy, flagged)
    after = _advance(counted, seen, policy, now)
    changed = np.flatnonzero(after.codes != state.codes)
    return after, tuple(_explain(int(i), counted, after, seen, policy, now) for i in changed)


def _check(observation: Observation, n: int) -> None:
    arrays = (
        observation.requests,
        observation.exceedances,
        observation.baseline_rate,
        observation.baseline_share,
        observation.factor,
        observation.judged,
    )
    if any(array.shape != (n,) for array in arrays):
        raise ShapeMismatch(
            f"observation of shapes {[array.shape for array in arrays]}, need ({n},): resize the "
            "state when the watched features change"
        )
    if len(observation.directions) not in (0, n):
        raise ShapeMismatch(f"{len(observation.directions)} directions of {n} features")
    requests, exceedances = observation.requests, observation.exceedances
    if np.any(exceedances < 0) or np.any(exceedances > requests):
        raise InvalidInput("a window has fewer than no exceedances, or more than requests")
    if not np.all((observation.factor > 1) & np.isfinite(observation.factor)):
        raise InvalidInput("a factor over the recent level is not a number above 1")


def _weigh(
    state: SpikeState, window: Observation, policy: SpikePolicy, flagged: int
) -> tuple[SpikeState, _Seen]:
    """Count the window in, and say what it means; alarms are still as they were."""
    blind = ~((window.baseline_rate >= 0) & (window.baseline_rate <= 1))
    baseline = np.where(blind, np.nan, window.baseline_rate)
    closed = blind | ~window.judged | beyond_judging(baseline, policy.baseline_factor)
    sampled = (window.requests > 0) & ~blind
    unsampled = np.where(window.requests > 0, 0, np.minimum(state.unsampled + 1, NEVER))
    silent = unsampled >= policy.unsampled_windows
    share = np.where(blind, np.nan, window.baseline_share)
    level = _learned(state, share, sampled, policy)
    tolerated = tolerated_rate(baseline, level, window.factor, policy.baseline_factor)
    counts = np.where(sampled, window.requests, 0), np.where(sampled, window.exceedances, 0)
    free = sampled & ~closed & np.isnan(state.onset)
    evidence = np.where(
        free, grown(state.evidence, *counts, np.where(free, tolerated, 0.5)), state.evidence
    )
    counted = SpikeState(
        codes=state.codes,
        since=state.since,
        # Counts without a baseline were made against another threshold, or none.
        requests=np.where(blind | silent, 0, _pushed(state.requests, counts[0], sampled)),
        exceedances=np.where(blind | silent, 0, _pushed(state.exceedances, counts[1], sampled)),
        recent=np.where(
            blind, np.nan, _pushed(state.recent, winsorised(*counts, tolerated), sampled)
        ),
        level=level,
        evidence=np.where(closed, 0.0, evidence),
        onset=np.where(closed, np.nan, state.onset),
        calm=state.calm,
        resolved=state.resolved,
        unsampled=unsampled,
    )
    strength, threshold = in_tens(counted.evidence), policy.threshold_log10(flagged)
    _, short, _ = rates(counted)
    usual = np.fmax(np.fmax(baseline, counted.onset), _LEAST_CALM)
    seen = _Seen(
        baseline=baseline,
        share=share,
        directions=window.directions,
        tolerated=np.where(closed, np.nan, tolerated),
        evidence=strength,
        threshold=threshold,
        sampled=sampled & ~closed,
        asked=window.judged,
        closed=closed,
        silent=silent,
        held=~np.isnan(counted.onset),
        alarm=free & (strength >= threshold),
        raised=strength >= _PENDING_SHARE * threshold,
        calm=short < np.minimum(policy.clear_factor * usual, _CALM_TOP),
    )
    return counted, seen


def _learned(
    state: SpikeState,
    share: NDArray[np.float64],
    sampled: NDArray[np.bool_],
    policy: SpikePolicy,
) -> NDArray[np.float64]:
    """Return the level with the oldest waiting window in it; it starts above the baseline's share."""
    level = np.where(np.isnan(share), np.nan, state.level)
    level = np.where(np.isnan(level) & sampled, np.minimum(_FIRST_LEVEL * share, 1.0), level)
    weight = 1.0 / policy.level_windows
    oldest = state.recent[0]
    learns = sampled & ~np.isnan(oldest)
    return np.where(learns, (1 - weight) * level + weight * oldest, level)


def _pushed(ring: NDArray[Any], newest: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the ring with the oldest window dropped for a new one, for the features ``where``."""
    return np.where(where, np.concatenate([ring[1:], newest[None]]), ring)


def _advance(state: SpikeState, seen: _Seen, policy: SpikePolicy, now: float) -> SpikeState:
    """Return the state after the window whose counts and evidence ``state`` already holds."""
    was, lost = state.codes, seen.closed | seen.silent
    calm = np.where(seen.sampled, np.where(seen.calm, state.calm + 1, 0), state.calm)
    resolved = state.resolved + seen.sampled
    codes = np.select(
        [
            lost,
            ~seen.sampled,
            seen.held & (was == UNKNOWN),
            seen.held,
            seen.alarm,
            was == RESOLVED,
        ],
        [
            UNKNOWN,
            was,
            np.where(seen.calm, RESOLVED, FIRING),
            np.where(calm >= policy.clear_windows, RESOLVED, FIRING),
            FIRING,
            np.where(resolved >= policy.resolved_windows, NORMAL, RESOLVED),
        ],
        np.where(seen.raised, PENDING, NORMAL),
    ).astype(np.int8)
    changed = codes != was
    onset = np.where(seen.alarm, state.level, state.onset)
    return SpikeState(
        codes=codes,
        since=np.where(changed, now, state.since),
        requests=state.requests,
        exceedances=state.exceedances,
        recent=state.recent,
        level=state.level,
        evidence=np.where(seen.alarm, 0.0, state.evidence),
        onset=np.where(codes == RESOLVED, np.nan, onset),
        calm=np.where(changed, 0, np.minimum(calm, NEVER)),
        resolved=np.where(codes == RESOLVED, np.where(changed, 0, resolved), 0),
        unsampled=state.unsampled,
    )


def _explain(
    index: int,
    counted: SpikeState,
    after: SpikeState,
    seen: _Seen,
    policy: SpikePolicy,
    now: float,
) -> Transition:
    old, new = counted.state(index), after.state(index)
    _, short, level = rates(counted)
    return Transition(
        index=index,
        before=old,
        after=new,
        at=now,
        reason=_reason(index, old, new, counted, seen, policy),
        evidence_log10=float(seen.evidence[index]),
        threshold_log10=seen.threshold,
        short_rate=float(short[index]),
        level=float(level[index]),
        baseline_share=float(seen.share[index]),
        tolerated=float(seen.tolerated[index]),
    )


def _reason(
    index: int, old: State, new: State, counted: SpikeState, seen: _Seen, policy: SpikePolicy
) -> str:
    was = f" (was {old})" if old in (State.PENDING, State.FIRING, State.RESOLVED) else ""
    if new is State.UNKNOWN:
        known = float(seen.baseline[index]), float(seen.share[index])
        direction, judged = _direction(index, seen), bool(seen.asked[index])
        blind = blindness(*known, policy, judged=judged, direction=direction)
        silence = f"no request sampled for {counted.unsampled[index]} windows"
        return (blind or silence) + was
    occasion = _occasion(old, new, policy, held=bool(seen.held[index]))
    return occasion + _numbers(index, counted, seen, policy)


def _direction(index: int, seen: _Seen) -> Direction:
    return seen.directions[index] if seen.directions else Direction.ABOVE


def blindness(
    rate: float,
    share: float,
    policy: SpikePolicy,
    *,
    judged: bool,
    direction: Direction = Direction.ABOVE,
) -> str:
    """Return in words why a feature cannot be judged however much it is sampled; empty if it can.

    Args:
        rate: Rate that is granted because of its baseline; NaN: there is none.
        share: Share of requests that exceed in its baseline.
        policy: When a feature counts as spiking.
        judged: Whether its flag asks for the spike test.
        direction: On which side it exceeds.
    """
    if not 0 <= rate <= 1:
        return "no baseline to compare with"
    if not judged:
        return "its flag does not ask for the spike test"
    if beyond_judging(np.array(share), policy.baseline_factor):
        return (
            f"{100 * share:.3g} % of the baseline's requests are {direction.beyond(policy.quantile)}, "
            "too many to tell a spike from them: raise spike.quantile"
        )
    if beyond_judging(np.array(rate), policy.baseline_factor):
        return "its baseline is too short to tell a spike from what so few requests allow"
    return ""


def _occasion(old: State, new: State, policy: SpikePolicy, *, held: bool) -> str:
    if old is State.UNKNOWN and held:
        calm = "and calm" if new is State.RESOLVED else "and not calm"
        return f"sampled again {calm}, after an alarm that was held: "
    if new is State.RESOLVED:
        return f"calm for {policy.clear_windows} windows; "
    if old is State.RESOLVED and new is State.FIRING:
        return "again: "
    if old is State.RESOLVED:
        return f"resolved for {policy.resolved_windows} windows; "
    if old is State.PENDING and new is State.NORMAL:
        return "no longer suspect: "
    return ""


def _numbers(index: int, counted: SpikeState, seen: _Seen, policy: SpikePolicy) -> str:
    """Return, such as, "41 of 64 requests beyond the baseline's 99.9 % quantile, 641 times ..."."""
    requests, exceedances = (int(found[index]) for found in sums(counted))
    where = _direction(index, seen).beyond(policy.quantile)
    parts = [f"{exceedances} of {requests} requests {where}"]
    if exceedances:
        parts += [_times(exceedances / requests, float(seen.share[index]), "baseline share")]
        parts += [_times(exceedances / requests, float(counted.level[index]), "recent level")]
    words = f"{', '.join(parts)}; tolerated {100 * seen.tolerated[index]:.3g} %"
    if seen.held[index]:  # no evidence is gathered meanwhile
        return words
    proof = f"evidence 10^{seen.evidence[index]:.1f}, an alarm takes 10^{seen.threshold:.1f}"
    return f"{words}; {proof}"


def _times(rate: float, usual: float, of_what: str) -> str:
    return f"{rate / usual:.3g} times the {of_what}" if usual > 0 else f"a {of_what} of 0"
