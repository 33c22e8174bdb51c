"""The detector's memory: the last windows of every watched feature and where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.policy import STATES, SpikePolicy, State
from sidecar.errors import CorruptState, ShapeMismatch

_VERSION = 1

NEVER = np.iinfo(np.int32).max
"""Windows without a sample, of a feature that never had one; counters stop here."""

_STREAKS = ("suspect", "calm", "resolved", "unsampled")


@dataclass(frozen=True, slots=True, eq=False)
class SpikeState:
    """What the detector knows of ``n`` watched features.

    Attributes:
        codes: State of each feature, see ``State.code``, shape ``(n,)``, int8.
        since: Unix seconds of its last change, shape ``(n,)``.
        requests: Requests of the last windows, newest last, shape ``(windows, n)``.
        exceedances: Those above the threshold, shape ``(windows, n)``.
        suspect: Suspect windows in a row, shape ``(n,)``.
        calm: Calm windows in a row, shape ``(n,)``.
        resolved: Windows since it resolved, shape ``(n,)``.
        unsampled: Windows in a row without a request, shape ``(n,)``.
    """

    codes: NDArray[np.int8]
    since: NDArray[np.float64]
    requests: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    suspect: NDArray[np.int64]
    calm: NDArray[np.int64]
    resolved: NDArray[np.int64]
    unsampled: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of watched features."""
        return len(self.codes)

    def state(self, index: int) -> State:
        """Return the state of one watched feature."""
        return STATES[self.codes[index]]

    def states(self) -> list[State]:
        """Return the states of all watched features."""
        return [STATES[code] for code in self.codes.tolist()]

    def resized(
        self, keep: NDArray[np.int64], policy: SpikePolicy | None = None, now: float = 0.0
    ) -> Self:
        """Return the state of another set of watched features.

        Args:
            keep: For each feature of the new set its place in the old one, or -1 where it is new,
                shape ``(m,)``.
            policy: Gives the number of windows to remember; as before when left out.
            now: Unix seconds since which new features are unknown.

        Raises:
            ShapeMismatch: A place is not in the old set.
        """
        keep = np.asarray(keep, np.int64)
        if len(keep) and not -1 <= keep.min() <= keep.max() < len(self):
            raise ShapeMismatch(f"places {keep.min()} to {keep.max()} of {len(self)} features")
        windows = policy.kept_windows if policy else len(self.requests)
        fresh = _fresh(1, windows, now)
        mine = _fitted(self, windows)
        joined = {
            name: np.concatenate([getattr(mine, name), getattr(fresh, name)], axis=-1)
            for name in self.__slots__
        }
        return type(self)(**{name: array[..., keep] for name, array in joined.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able values for ``from_dict``."""
        return {
            "version": _VERSION,
            "states": [STATES[code].value for code in self.codes],
            **{name: getattr(self, name).tolist() for name in self.__slots__ if name != "codes"},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return what ``to_dict`` saw.

        Raises:
            CorruptState: It is another version, or not what ``to_dict`` returns.
        """
        try:
            if saved["version"] != _VERSION:
                raise CorruptState(f"spike state version {saved['version']!r}, need {_VERSION}")
            codes = np.array([State(name).code for name in saved["states"]], np.int8)
            since = np.array(saved["since"], np.float64)
            rings = {name: _ring(saved[name], len(codes)) for name in ("requests", "exceedances")}
            streaks = {name: _whole(saved[name]) for name in _STREAKS}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptState(f"spike state cannot be read back: {error!r}") from error
        found = cls(codes=codes, since=since, **rings, **streaks)
        _check(found)
        return found


def initial(n: int, policy: SpikePolicy, now: float) -> SpikeState:
    """Return the state of ``n`` features of which nothing is known yet."""
    return _fresh(n, policy.kept_windows, now)


def rates(
    state: SpikeState, policy: SpikePolicy
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return how often requests exceed, lately.

    Returns:
        Requests of the short windows, exceeding share of the short windows, and of the long ones;
        shape ``(n,)`` each, shares NaN where there were no requests.
    """
    short, _ = sums(state, policy.short_windows)
    return (
        short,
        _share(state, policy.short_windows),
        _share(state, policy.long_windows),
    )


def sums(state: SpikeState, windows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the requests and the exceeding requests of the last windows, shape ``(n,)`` each."""
    return state.requests[-windows:].sum(axis=0), state.exceedances[-windows:].sum(axis=0)


def shifted(
    state: SpikeState, requests: NDArray[np.int64], exceedances: NDArray[np.int64], windows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the remembered windows with the oldest dropped and a new one added."""
    fitted = _fitted(state, windows)
    return (
        np.concatenate([fitted.requests[1:], requests[None]]),
        np.concatenate([fitted.exceedances[1:], exceedances[None]]),
    )


def _share(state: SpikeState, windows: int) -> NDArray[np.float64]:
    requests, exceedances = sums(state, windows)
    return np.where(requests > 0, exceedances, np.nan) / np.maximum(requests, 1)


def _fresh(n: int, windows: int, now: float) -> SpikeState:
    return SpikeState(
        codes=np.full(n, State.UNKNOWN.code, np.int8),
        since=np.full(n, now, np.float64),
        requests=np.zeros((windows, n), np.int64),
        exceedances=np.zeros((windows, n), np.int64),
        suspect=np.zeros(n, np.int64),
        calm=np.zeros(n, np.int64),
        resolved=np.zeros(n, np.int64),
        unsampled=np.full(n, NEVER, np.int64),
    )


def _fitted(state: SpikeState, windows: int) -> SpikeState:
    """Return the state with so many remembered windows; older ones than known held nothing."""
    missing = max(0, windows - len(state.requests))
    rings = {
        name: np.pad(getattr(state, name), ((missing, 0), (0, 0)))[-windows:]
        for name in ("requests", "exceedances")
    }
    rest = {name: getattr(state, name) for name in state.__slots__ if name not in rings}
    return SpikeState(**rings, **rest)


def _whole(values: Any) -> NDArray[np.int64]:
    """Return whole numbers, and nothing that merely could be read as such."""
    found = np.array(values)
    if found.size and found.dtype.kind != "i":
        raise ValueError(f"numbers of type {found.dtype} where whole ones belong")
    return found.astype(np.int64)


def _ring(values: Any, n: int) -> NDArray[np.int64]:
    found = _whole(values)
    # Without features every window is an empty list, which numpy cannot tell from no windows.
    return found.reshape(len(values), n) if not n else found


def _check(state: SpikeState) -> None:
    n = len(state)
    per_feature = [state.since, *(getattr(state, name) for name in _STREAKS)]
    windows = state.requests.shape
    if (
        any(array.shape != (n,) for array in per_feature)
        or windows != state.exceedances.shape
        or windows[1:] != (n,)
        or not windows[0]
    ):
        raise CorruptState(f"spike state of {n} features has arrays of other shapes")
    if np.any(state.exceedances > state.requests) or np.any(state.exceedances < 0):
        raise CorruptState("spike state has windows with more exceedances than requests")
