"""Whether a whole layer has shifted: the screen's counts, judged over several windows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sidecar.detect.policy import State
from sidecar.detect.screen import ScreenPolicy
from sidecar.errors import CorruptState, InvalidInput

_VERSION = 1

_NEVER = 2**31 - 1
"""Windows without a judged feature, of a layer that never had one; counters stop here."""

_COUNTERS = ("loud", "calm", "resolved", "unsampled")


@dataclass(frozen=True, slots=True)
class LayerScreen:
    """What the screen remembers of a layer.

    Attributes:
        state: How it stands.
        since: Unix seconds of its last change.
        loud: Loud windows in a row.
        calm: Calm windows in a row.
        resolved: Windows since it resolved.
        unsampled: Windows in a row in which no feature was judged.
    """

    state: State = State.UNKNOWN
    since: float = 0.0
    loud: int = 0
    calm: int = 0
    resolved: int = 0
    unsampled: int = _NEVER

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able values for ``from_dict``."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            "version": _VERSION,
            "state": self.state.value,
            "since": self.since,
            **counters,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return what ``to_dict`` saw.

        Raises:
            CorruptState: It is another version, or not what ``to_dict`` returns.
        """
        try:
            if saved["version"] != _VERSION:
                raise CorruptState(f"screen state version {saved['version']!r}, need {_VERSION}")
            state, since = State(saved["state"]), float(saved["since"])
            counters = {name: saved[name] for name in _COUNTERS}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptState(f"screen state cannot be read back: {error!r}") from error
        if any(type(n) is not int or not 0 <= n <= _NEVER for n in counters.values()):
            raise CorruptState(f"screen state has counters {counters}: need whole numbers")
        return cls(state, since, **counters)


@dataclass(frozen=True, slots=True)
class LayerTransition:
    """One change of state of a layer.

    Attributes:
        before: Its state before.
        after: Its state now.
        at: Unix seconds.
        reason: Why, in words, with the numbers.
        significant: Significant features of the window.
        judged: Features the window could judge.
    """

    before: State
    after: State
    at: float
    reason: str
    significant: int
    judged: int


def is_loud(significant: int, judged: int, policy: ScreenPolicy) -> bool:
    """Whether so many features of a window are significant that the layer as a whole may move."""
    return significant >= policy.layer_minimum and significant > policy.layer_ratio * judged


def layer_step(
    layer: LayerScreen, significant: int, judged: int, policy: ScreenPolicy, now: float
) -> tuple[LayerScreen, LayerTransition | None]:
    """Take in what the screen found in one closed window.

    A loud window makes a layer pending, ``pending_windows`` of them in a row make it firing; a window
    that is not loud takes it back. After ``clear_windows`` calm windows in a row a firing layer is
    resolved, and after ``resolved_windows`` more normal; it fires again only on a new row of loud
    windows. Windows in which nothing was judged neither add to a row nor break it, and after
    ``unsampled_windows`` of them the layer is unknown, a firing one too.

    Args:
        layer: As returned by the last step, or ``LayerScreen()``.
        significant: Significant features.
        judged: Features that could be judged.
        policy: When a layer counts as shifted.
        now: Unix seconds of the window's end.

    Returns:
        The new state, and the change if there was one.

    Raises:
        InvalidInput: More features are significant than were judged.
    """
    if not 0 <= significant <= judged:
        raise InvalidInput(f"{significant} significant features of {judged} judged ones")
    loud = is_loud(significant, judged, policy)
    calm = significant < policy.layer_minimum or significant <= policy.clear_ratio * judged
    if judged:
        rows = (layer.loud + 1 if loud else 0, layer.calm + 1 if calm else 0, 0)
    else:
        rows = (layer.loud, layer.calm, min(layer.unsampled + 1, _NEVER))
    seen = LayerScreen(layer.state, layer.since, rows[0], rows[1], layer.resolved, rows[2])
    state = _next(seen, policy, sampled=judged > 0, loud=loud)
    if state is layer.state:
        resolved = layer.resolved + 1 if state is State.RESOLVED else 0
        return _with(seen, state, layer.since, resolved), None
    reason = _reason(state, seen, significant, judged, policy)
    change = LayerTransition(layer.state, state, now, reason, significant, judged)
    return _with(seen, state, now, 0), change


def _next(layer: LayerScreen, policy: ScreenPolicy, *, sampled: bool, loud: bool) -> State:
    """Return the state after a window whose counters ``layer`` already holds."""
    state = layer.state
    if layer.unsampled >= policy.unsampled_windows:
        return State.UNKNOWN
    if state is State.FIRING:
        return State.RESOLVED if layer.calm >= policy.clear_windows else state
    if not sampled and state in {State.PENDING, State.UNKNOWN}:
        return state
    if layer.loud >= policy.pending_windows:
        return State.FIRING
    if state is State.RESOLVED:
        return state if layer.resolved + 1 < policy.resolved_windows else State.NORMAL
    return State.PENDING if loud else State.NORMAL


def _with(layer: LayerScreen, state: State, since: float, resolved: int) -> LayerScreen:
    """Return the state with its counters; a row of calm windows is counted within one state only."""
    known = state is not State.UNKNOWN
    return LayerScreen(
        state,
        since,
        loud=min(layer.loud, _NEVER) if known else 0,
        calm=min(layer.calm, _NEVER) if known and state is layer.state else 0,
        resolved=resolved,
        unsampled=layer.unsampled,
    )


def _reason(
    state: State, layer: LayerScreen, significant: int, judged: int, policy: ScreenPolicy
) -> str:
    if state is State.UNKNOWN:
        return f"no feature was judged for {policy.unsampled_windows} windows (was {layer.state})"
    counted = f"{significant} of {judged} features significant"
    if state is State.RESOLVED:
        return f"calm for {policy.clear_windows} windows; {counted}"
    limit = f"{100 * policy.layer_ratio:.3g} % of them, and {policy.layer_minimum}, count as loud"
    if state is State.FIRING:
        return f"{counted}, the {policy.pending_windows}. loud window in a row; {limit}"
    return f"{counted}; {limit}"
