"""The spike test's memory: recent windows, level and evidence of every watched feature."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.eprocess import MULTIPLES, in_tens
from sidecar.detect.policy import STATES, SpikePolicy, State
from sidecar.detect.saved import plain, real, whole
from sidecar.errors import CorruptState, ShapeMismatch

_VERSION = 2

NEVER = np.iinfo(np.int32).max
"""Windows without a sample, of a feature that never had one; counters stop here."""

_STREAKS = ("calm", "resolved", "unsampled")
_RATES = ("level", "onset")


@dataclass(frozen=True, slots=True, eq=False)
class SpikeState:
    """What the detector knows of ``n`` watched features.

    Windows here are those in which the feature was sampled; others leave everything but ``unsampled``
    as it was.

    Attributes:
        codes: State of each feature, see ``State.code``, shape ``(n,)``, int8.
        since: Unix seconds of its last change, shape ``(n,)``.
        requests: Requests of the short windows, newest last, shape ``(short windows, n)``.
        exceedances: Those beyond the threshold, shape ``(short windows, n)``.
        recent: Rates that the level has not learned yet, newest last, shape ``(lag windows, n)``; NaN
            where there is none.
        level: Recent level of the rate, shape ``(n,)``; NaN while nothing is known of it.
        evidence: Natural logarithm of 1 + S of each alternative, shape ``(5, n)``; 0 while it fires.
        onset: Level when the alarm was raised, shape ``(n,)``; NaN where none is held.
        calm: Calm windows in a row, shape ``(n,)``.
        resolved: Windows since it resolved, shape ``(n,)``.
        unsampled: Windows in a row without a request, shape ``(n,)``.
    """

    codes: NDArray[np.int8]
    since: NDArray[np.float64]
    requests: NDArray[np.int64]
    exceedances: NDArray[np.int64]
    recent: NDArray[np.float64]
    level: NDArray[np.float64]
    evidence: NDArray[np.float64]
    onset: NDArray[np.float64]
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
        short = policy.short_windows if policy else len(self.requests)
        lag = policy.lag_windows if policy else len(self.recent)
        fresh, mine = _fresh(1, short, lag, now), fitted(self, short, lag)
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
            **{name: plain(getattr(self, name)) for name in self.__slots__ if name != "codes"},
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
            n, counted = len(codes), ("requests", "exceedances", *_STREAKS)
            reals = ("since", "recent", "evidence", *_RATES)
            found = cls(
                codes=codes,
                **{name: whole(saved[name], n) for name in counted},
                **{name: real(saved[name], n) for name in reals},
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptState(f"spike state cannot be read back: {error!r}") from error
        _check(found)
        return found


def initial(n: int, policy: SpikePolicy, now: float) -> SpikeState:
    """Return the state of ``n`` features of which nothing is known yet."""
    return _fresh(n, policy.short_windows, policy.lag_windows, now)


def rates(
    state: SpikeState,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return how often requests exceed, lately.

    Returns:
        Requests of the last short windows with a sample, the exceeding share of them, and the recent
        level; shape ``(n,)`` each, NaN where nothing is known.
    """
    requests, exceedances = sums(state)
    share = np.where(requests > 0, exceedances, np.nan) / np.maximum(requests, 1)
    return requests, share, state.level


def evidence(state: SpikeState) -> NDArray[np.float64]:
    """Return the evidence against the tolerated rate, as a power of ten, shape ``(n,)``.

    It is log10 of 1 + S: 0 without any, and while an alarm is held.
    """
    return in_tens(state.evidence)


def sums(state: SpikeState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the requests and exceeding requests of the short windows, shape ``(n,)`` each."""
    return state.requests.sum(axis=0), state.exceedances.sum(axis=0)


def fitted(state: SpikeState, short: int, lag: int) -> SpikeState:
    """Return the state with so many remembered windows; older ones than known held nothing."""
    if (len(state.requests), len(state.recent)) == (short, lag):
        return state
    rings: dict[str, NDArray[Any]] = {
        "requests": _cut(state.requests, short, 0),
        "exceedances": _cut(state.exceedances, short, 0),
        "recent": _cut(state.recent, lag, math.nan),
    }
    rest = {name: getattr(state, name) for name in state.__slots__ if name not in rings}
    return SpikeState(**rings, **rest)


def _cut(ring: NDArray[Any], windows: int, nothing: float) -> NDArray[Any]:
    missing = max(0, windows - len(ring))
    return np.pad(ring, ((missing, 0), (0, 0)), constant_values=nothing)[-windows:]


def _fresh(n: int, short: int, lag: int, now: float) -> SpikeState:
    return SpikeState(
        codes=np.full(n, State.UNKNOWN.code, np.int8),
        since=np.full(n, now, np.float64),
        requests=np.zeros((short, n), np.int64),
        exceedances=np.zeros((short, n), np.int64),
        recent=np.full((lag, n), np.nan),
        level=np.full(n, np.nan),
        evidence=np.zeros((len(MULTIPLES), n)),
        onset=np.full(n, np.nan),
        calm=np.zeros(n, np.int64),
        resolved=np.zeros(n, np.int64),
        unsampled=np.full(n, NEVER, np.int64),
    )


def _check(state: SpikeState) -> None:
    n = len(state)
    per_feature = [state.since, *(getattr(state, name) for name in (*_RATES, *_STREAKS))]
    windows = state.requests.shape
    if (
        any(array.shape != (n,) for array in per_feature)
        or windows != state.exceedances.shape
        or any(ring.ndim != 2 or ring.shape[1] != n for ring in (state.requests, state.recent))  # noqa: PLR2004 - (windows, n)
        or not (len(state.requests) and len(state.recent))
        or state.evidence.shape != (len(MULTIPLES), n)
    ):
        raise CorruptState(f"spike state of {n} features has arrays of other shapes")
    if np.any(state.exceedances > state.requests) or np.any(state.exceedances < 0):
        raise CorruptState("spike state has windows with more exceedances than requests")
    shares = np.concatenate([state.recent.ravel(), state.level, state.onset])
    if np.any((shares < 0) | (shares > 1)):
        raise CorruptState("spike state has rates that are not between 0 and 1")
    if not np.all((state.evidence >= 0) & np.isfinite(state.evidence)):
        raise CorruptState("spike state has evidence that is no finite number of at least 0")
