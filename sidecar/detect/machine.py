"""One step of the detector: a closed window goes in, changes of state come out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.chance import log_tail
from sidecar.detect.policy import STATES, Observation, SpikePolicy, State, Transition
from sidecar.detect.state import NEVER, SpikeState, rates, shifted, sums
from sidecar.errors import InvalidInput, ShapeMismatch

_LOG_LEAST = -708.0
"""Natural logarithm of the least chance a float still holds."""

_TEN = math.log(10.0)

UNKNOWN, NORMAL, PENDING, FIRING, RESOLVED = (state.code for state in STATES)


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    """What a window says of each feature; all arrays have shape ``(n,)``."""

    requests: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    short: NDArray[np.float64]
    long: NDArray[np.float64]
    baseline: NDArray[np.float64]
    log_chance: NDArray[np.float64]
    sampled: NDArray[np.bool_]
    suspect: NDArray[np.bool_]
    calm: NDArray[np.bool_]


def step(
    state: SpikeState, observation: Observation, policy: SpikePolicy, now: float
) -> tuple[SpikeState, tuple[Transition, ...]]:
    """Take in one closed window.

    A feature is ``unknown`` exactly while it has no baseline or had no request for
    ``unsampled_windows`` windows. Otherwise a suspect window makes it ``pending``, and after
    ``pending_windows`` suspect windows in a row the next one ``firing``; a window that is not
    suspect takes it back to ``normal``. A window that is itself as quiet as ``clear_factor`` asks is
    never suspect, however loud the one before it was. After ``clear_windows`` calm windows in a row a firing
    feature is ``resolved``, and after ``resolved_windows`` more ``normal``; a suspect window before
    that fires it again at once. Windows without a request are evidence of nothing: they neither add
    to a row of windows nor break it.

    Args:
        state: As returned by the last step, or ``initial``.
        observation: The window, of the same features.
        policy: When a feature counts as spiking.
        now: Unix seconds of the window's end.

    Returns:
        The new state and what changed, in the order of the features; ``state`` is not changed.

    Raises:
        ShapeMismatch: The observation is of another number of features.
        InvalidInput: A count is negative, or more requests exceed than there are.
    """
    _check(observation, len(state))
    blind = ~((observation.baseline_rate >= 0) & (observation.baseline_rate <= 1))
    requests, exceedances = shifted(
        state, observation.requests, observation.exceedances, policy.kept_windows
    )
    # Counts without a baseline were made against another threshold, or none.
    requests, exceedances = np.where(blind, 0, requests), np.where(blind, 0, exceedances)
    before = SpikeState(
        codes=state.codes,
        since=state.since,
        requests=requests,
        exceedances=exceedances,
        suspect=state.suspect,
        calm=state.calm,
        resolved=state.resolved,
        unsampled=np.where(observation.requests > 0, 0, np.minimum(state.unsampled + 1, NEVER)),
    )
    evidence = _weigh(before, observation, policy)
    after = _advance(before, evidence, blind, policy, now)
    changed = np.flatnonzero(after.codes != state.codes)
    return after, tuple(_explain(int(i), before, after, evidence, policy, now) for i in changed)


def required_rate(baseline: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Return the rate that counts as ``factor`` times the baseline's.

    That is the multiple itself while it can be reached. A baseline rate near or above
    ``1 / factor`` has no such multiple; there, the share of requests that do *not* exceed must be
    ``factor`` times smaller than the baseline's. Of the two the lower rate counts, so no feature is
    silently beyond detection.
    """
    return np.minimum(factor * baseline, 1.0 - (1.0 - baseline) / factor)


def _check(observation: Observation, n: int) -> None:
    arrays = (observation.requests, observation.exceedances, observation.baseline_rate)
    if any(array.shape != (n,) for array in arrays):
        raise ShapeMismatch(
            f"observation of shapes {[array.shape for array in arrays]}, need ({n},): resize the "
            "state when the watched features change"
        )
    requests, exceedances = observation.requests, observation.exceedances
    if np.any(exceedances < 0) or np.any(exceedances > requests):
        raise InvalidInput("a window has fewer than no exceedances, or more than requests")


def _weigh(state: SpikeState, observation: Observation, policy: SpikePolicy) -> _Evidence:
    """Compare the short and long rates with the baseline's."""
    requests, exceedances = sums(state, policy.short_windows)
    _, short, long = rates(state, policy)
    baseline = observation.baseline_rate
    sampled = observation.requests > 0
    log_chance = log_tail(exceedances, requests, baseline)
    log_chance = np.where(requests > 0, log_chance, np.nan)
    newest = observation.exceedances / np.maximum(observation.requests, 1)
    suspect = (
        sampled
        # One loud window stays in the short rate of the next; alone it must not look like two.
        & (newest >= required_rate(baseline, policy.clear_factor))
        & (short >= required_rate(baseline, policy.factor))
        & (long >= required_rate(baseline, policy.long_factor))
        & (exceedances >= policy.min_exceedances)
        & (log_chance <= math.log(policy.false_alarm_probability))
    )
    # Nothing is below a multiple of a baseline rate of 0, so no exceedance at all is calm as well.
    low = (exceedances == 0) | (short < required_rate(baseline, policy.clear_factor))
    calm = sampled & ~suspect & low
    return _Evidence(
        requests, exceedances, short, long, baseline, log_chance, sampled, suspect, calm
    )


def _advance(
    state: SpikeState,
    seen: _Evidence,
    blind: NDArray[np.bool_],
    policy: SpikePolicy,
    now: float,
) -> SpikeState:
    """Return the state after the window whose counts ``state`` already holds."""
    lost = blind | (state.unsampled >= policy.unsampled_windows)
    suspect = np.where(seen.sampled, np.where(seen.suspect, state.suspect + 1, 0), state.suspect)
    calm = np.where(seen.sampled, np.where(seen.calm, state.calm + 1, 0), state.calm)
    resolved = state.resolved + 1
    was = state.codes
    rising = np.where(seen.suspect, PENDING, NORMAL)
    fires = seen.suspect & (suspect > policy.pending_windows)
    codes = np.select(
        [
            lost,
            (was == UNKNOWN) | (was == NORMAL),
            (was == PENDING) & ~seen.sampled,
            was == PENDING,
            was == FIRING,
            (was == RESOLVED) & seen.suspect,
        ],
        [
            UNKNOWN,
            rising,
            PENDING,
            np.where(fires, FIRING, rising),
            np.where(calm >= policy.clear_windows, RESOLVED, FIRING),
            FIRING,
        ],
        np.where(resolved >= policy.resolved_windows, NORMAL, RESOLVED),
    ).astype(np.int8)
    changed = codes != was
    return SpikeState(
        codes=codes,
        since=np.where(changed, now, state.since),
        requests=state.requests,
        exceedances=state.exceedances,
        # A row of windows is counted within one state only, except suspicion, which builds up.
        suspect=np.where(lost, 0, np.minimum(suspect, NEVER)),
        calm=np.where(changed, 0, np.minimum(calm, NEVER)),
        resolved=np.where(codes == RESOLVED, np.where(changed, 0, resolved), 0),
        unsampled=state.unsampled,
    )


def _explain(
    index: int,
    before: SpikeState,
    after: SpikeState,
    seen: _Evidence,
    policy: SpikePolicy,
    now: float,
) -> Transition:
    old, new = before.state(index), after.state(index)
    return Transition(
        index=index,
        before=old,
        after=new,
        at=now,
        reason=_reason(index, old, new, before, seen, policy),
        short_rate=float(seen.short[index]),
        long_rate=float(seen.long[index]),
        baseline_rate=float(seen.baseline[index]),
        probability=_chance(float(seen.log_chance[index])),
    )


def _reason(
    index: int, old: State, new: State, before: SpikeState, seen: _Evidence, policy: SpikePolicy
) -> str:
    was = f" (was {old})" if old in (State.PENDING, State.FIRING, State.RESOLVED) else ""
    if new is State.UNKNOWN:
        if not math.isfinite(seen.baseline[index]):
            return f"no baseline to compare with{was}"
        return f"no request sampled for {before.unsampled[index]} windows{was}"
    return _occasion(old, new, policy) + _numbers(index, seen, policy)


def _occasion(old: State, new: State, policy: SpikePolicy) -> str:
    if new is State.RESOLVED:
        return f"calm for {policy.clear_windows} windows; "
    if old is State.RESOLVED and new is State.FIRING:
        return "again: "
    if old is State.RESOLVED:
        return f"resolved for {policy.resolved_windows} windows; "
    if old is State.PENDING and new is State.NORMAL:
        return "no longer suspect: "
    return ""


def _numbers(index: int, seen: _Evidence, policy: SpikePolicy) -> str:
    """Return, such as, "41 of 64 requests above the baseline's 99.9 % quantile, 641 times ..."."""
    requests = int(seen.requests[index])
    if not requests:
        return f"no request in the last {policy.short_windows} windows"
    exceedances, baseline = int(seen.exceedances[index]), float(seen.baseline[index])
    counted = (
        f"{exceedances} of {requests} requests above the baseline's "
        f"{100 * policy.quantile:.6g} % quantile"
    )
    times = (
        f"{seen.short[index] / baseline:.3g} times the baseline rate"
        if baseline
        else ("which the baseline never passed")
    )
    if not exceedances:
        return counted
    return f"{counted}, {times}; chance {_chance_in_words(float(seen.log_chance[index]))}"


def _chance(log_chance: float) -> float:
    return 0.0 if log_chance < _LOG_LEAST else math.exp(log_chance)


def _chance_in_words(log_chance: float) -> str:
    """Return two digits while they mean something, then the power of ten, however small."""
    if math.isinf(log_chance):
        return "0"
    tens = log_chance / _TEN
    return f"{math.exp(log_chance):.2g}" if tens > -4 else f"1e{round(tens)}"  # noqa: PLR2004 - where .2g turns to powers
