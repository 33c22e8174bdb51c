"""What is certain without statistics: values never seen, not finite, only zeros, or stuck.

These compare a window with facts of the baseline. The chance of a silent or saturated stretch is at most
``CHANCE`` for requests that are independent of each other; a single stretch of like requests can be
longer, which is why at least ``LEAST_REQUESTS`` are asked for.

A record is a fact, not an alarm rate: of heavy tails a baseline of an hour knows little. Simulated, with 1,024
values in each window of 10 s and a baseline of an hour, Student's t with 3 degrees of freedom had 1.8 new
records in the first day of a feature and 2.4 in the first three, a lognormal of sigma 1.5 had 0.8 and 1.1, and a
normal none; after a baseline of a day the first day had 0.2 and 0.1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect.saved import plain, real, whole
from sidecar.errors import CorruptState, ShapeMismatch

_VERSION = 1

HOLD_WINDOWS = 6
"""Sampled windows a condition holds after it was last seen: a minute by default, some scrapes."""

CHANCE = 1e-9
"""Of a stretch as long as that in which the baseline's values would still not vary."""

LEAST_REQUESTS = 64
"""Requests of one moment may share a cause: fewer prove nothing, however rare zeros were."""

_FARTHER = 2.0
"""Times the baseline's greatest value from which one is called never seen: records grow slowly."""

_GONE = np.iinfo(np.int32).max


class Condition(StrEnum):
    """What a feature certainly does."""

    NEVER_SEEN = "never_seen"
    NONFINITE = "nonfinite"
    SILENT = "silent"
    SATURATED = "saturated"


CONDITIONS = tuple(Condition)
"""Conditions in the order of the memory's rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """What one closed window says of ``n`` features beside the facts of their baselines.

    All arrays have shape ``(n,)``; those of the baseline are NaN where there is none.

    Attributes:
        requests: Requests sampled; 0: not sampled, which is not silent.
        rows: Values, finite or not.
        zeros: Values that are exactly zero.
        nonfinite: NaN and infinite values.
        minimum: Least finite value; NaN without one.
        maximum: Greatest finite value; NaN without one.
        baseline_minimum: The same in the baseline.
        baseline_maximum: The same in the baseline.
        baseline_nonzero_ratio: Share of the baseline's values that are not zero.
        baseline_varying_ratio: Share of them that are surely not the commonest value.
    """

    requests: NDArray[np.int64]
    rows: NDArray[np.int64]
    zeros: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    baseline_minimum: NDArray[np.float64]
    baseline_maximum: NDArray[np.float64]
    baseline_nonzero_ratio: NDArray[np.float64]
    baseline_varying_ratio: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ConditionChange:
    """One condition that began or ended.

    Attributes:
        index: Which of the features.
        condition: Which condition.
        holds: Whether it began.
        at: Unix seconds.
        reason: Why, in words, with the numbers.
    """

    index: int
    condition: Condition
    holds: bool
    at: float
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ConditionMemory:
    """What is remembered of ``n`` features between windows.

    Attributes:
        ages: Sampled windows since each condition was last seen, shape ``(4, n)``; the order is that of
            ``CONDITIONS``.
        zeros: Requests in a row with nothing but zeros, shape ``(n,)``.
        stuck: Requests in a row with one and the same value other than zero, shape ``(n,)``.
        value: That value, shape ``(n,)``; NaN where there is none.
        top: Requests in a row at or above the baseline's greatest value, shape ``(n,)``.
        highest: Greatest value that was ever reported as never seen, shape ``(n,)``; NaN: none.
        lowest: Least such value, shape ``(n,)``.
    """

    ages: NDArray[np.int64]
    zeros: NDArray[np.int64]
    stuck: NDArray[np.int64]
    value: NDArray[np.float64]
    top: NDArray[np.int64]
    highest: NDArray[np.float64]
    lowest: NDArray[np.float64]

    @classmethod
    def initial(cls, n: int) -> Self:
        """Return the memory of ``n`` features of which nothing was seen."""
        return cls(
            ages=np.full((len(CONDITIONS), n), _GONE, np.int64),
            zeros=np.zeros(n, np.int64),
            stuck=np.zeros(n, np.int64),
            value=np.full(n, np.nan),
            top=np.zeros(n, np.int64),
            highest=np.full(n, np.nan),
            lowest=np.full(n, np.nan),
        )

    def without_baseline(self) -> Self:
        """Return what is still known when the baseline is gone: values that are not finite."""
        fresh, row = self.initial(len(self)), CONDITIONS.index(Condition.NONFINITE)
        fresh.ages[row] = self.ages[row]
        return fresh

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.zeros)

    def holding(self) -> list[tuple[Condition, ...]]:
        """Return the conditions that hold for each feature."""
        rows = (self.ages < HOLD_WINDOWS).T.tolist()
        return [tuple(c for c, held in zip(CONDITIONS, row, strict=True) if held) for row in rows]

    def resized(self, keep: NDArray[np.int64]) -> Self:
        """Return the memory of another set of features.

        Args:
            keep: For each feature of the new set its place in the old one, or -1 where it is new.

        Raises:
            ShapeMismatch: A place is not in the old set.
        """
        keep = np.asarray(keep, np.int64)
        if len(keep) and not -1 <= keep.min() <= keep.max() < len(self):
            raise ShapeMismatch(f"places {keep.min()} to {keep.max()} of {len(self)} features")
        fresh = self.initial(1)
        joined = {
            name: np.concatenate([getattr(self, name), getattr(fresh, name)], axis=-1)
            for name in self.__slots__
        }
        return type(self)(**{name: array[..., keep] for name, array in joined.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as JSON-able values for ``from_dict``."""
        return {
            "version": _VERSION,
            **{name: plain(getattr(self, name)) for name in self.__slots__},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return what ``to_dict`` saw.

        Raises:
            CorruptState: It is another version, or not what ``to_dict`` returns.
        """
        try:
            if saved["version"] != _VERSION:
                raise CorruptState(f"conditions of version {saved['version']!r}, need {_VERSION}")
            n = len(saved["zeros"])
            counted = ("ages", "zeros", "stuck", "top")
            found = cls(
                **{name: whole(saved[name], n) for name in counted},
                **{name: real(saved[name], n) for name in cls.__slots__ if name not in counted},
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptState(f"conditions cannot be read back: {error!r}") from error
        shapes = {getattr(found, name).shape for name in cls.__slots__ if name != "ages"}
        if shapes != {(n,)} or found.ages.shape != (len(CONDITIONS), n):
            raise CorruptState(f"conditions of {n} features have arrays of other shapes")
        if any(np.any(getattr(found, name) < 0) for name in counted):
            raise CorruptState("conditions have a count below 0")
        return found


def conditions(
    memory: ConditionMemory, extremes: Extremes, now: float
) -> tuple[ConditionMemory, tuple[ConditionChange, ...]]:
    """Take in one closed window.

    - *never seen*: a value above twice the greatest of the baseline, if that is positive, or above it by
      more than the baseline's whole range; likewise below. What was reported once counts as seen when
      the condition has ended, so a record is told again only when it is doubled.
    - *nonfinite*: a NaN or an infinity. It needs no baseline.
    - *silent*: nothing but exact zeros, in so many requests in a row that the baseline's share of
      non-zero values makes it a chance of ``CHANCE`` or less, at least ``LEAST_REQUESTS``.
    - *saturated*: one and the same value other than zero, or none below the baseline's greatest, in so
      many requests in a row that the share of varying values makes it such a chance.

    A condition holds until ``HOLD_WINDOWS`` sampled windows in a row were without it. A window in
    which a feature was not sampled changes nothing.

    Args:
        memory: As returned by the last call, or ``ConditionMemory.initial``.
        extremes: The window, of the same features.
        now: Unix seconds of the window's end.

    Returns:
        The new memory and what began or ended, in the order of the features; ``memory`` is not changed.

    Raises:
        ShapeMismatch: The window is of another number of features.
    """
    n = len(memory)
    if any(getattr(extremes, name).shape != (n,) for name in extremes.__slots__):
        raise ShapeMismatch(f"a window needs arrays of {n} features: resize the memory first")
    sampled = (extremes.requests > 0) & (extremes.rows > 0)
    held = memory.ages < HOLD_WINDOWS
    high, low = _limits(memory, extremes, held[0])
    runs = _counted(memory, extremes, sampled)
    seen = np.stack(
        [
            (extremes.maximum > high) | (extremes.minimum < low),
            extremes.nonfinite > 0,
            runs.zeros >= requests_needed(extremes.baseline_nonzero_ratio),
            np.maximum(runs.stuck, runs.top) >= requests_needed(extremes.baseline_varying_ratio),
        ]
    )  # (condition, n)
    ages = np.where(seen, 0, np.minimum(memory.ages + 1, _GONE))
    ages = np.where(sampled, ages, memory.ages)
    holds = ages < HOLD_WINDOWS
    told = sampled & holds[0]
    after = ConditionMemory(
        ages=ages,
        zeros=runs.zeros,
        stuck=runs.stuck,
        value=runs.value,
        top=runs.top,
        highest=np.where(told, np.fmax(memory.highest, extremes.maximum), memory.highest),
        lowest=np.where(told, np.fmin(memory.lowest, extremes.minimum), memory.lowest),
    )
    changed = np.argwhere((held != holds).T).tolist()
    return after, tuple(
        ConditionChange(
            index=i,
            condition=CONDITIONS[row],
            holds=bool(holds[row, i]),
            at=now,
            reason=_reason(CONDITIONS[row], i, extremes, after) if holds[row, i] else _OVER,
        )
        for i, row in changed
    )


_OVER = f"not seen for {HOLD_WINDOWS} windows"


def requests_needed(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many requests in a row make it certain that a value does not vary any more.

    Each request counts as one value, however many it has: more would only make it more certain.

    Args:
        ratio: Share of the baseline's values that do vary, shape ``(n,)``.

    Returns:
        Shape ``(n,)``, at least ``LEAST_REQUESTS``; infinite where it never varied, or is unknown.
    """
    varying = np.where(np.isnan(ratio), 0.0, np.clip(ratio, 0.0, 1.0))
    with np.errstate(divide="ignore"):
        needed = math.log(CHANCE) / np.log1p(-varying)  # -log / -0 is inf, -log / -inf is 0
    return np.where(varying > 0, np.maximum(np.ceil(needed), LEAST_REQUESTS), np.inf)


def _limits(
    memory: ConditionMemory, extremes: Extremes, held: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values beyond which one is called never seen; NaN without a baseline.

    While the condition is ``held`` its own records do not count, or it would end at once.
    """
    least, most = extremes.baseline_minimum, extremes.baseline_maximum
    top = np.where(held | np.isnan(most), most, np.fmax(most, memory.highest))
    bottom = np.where(held | np.isnan(least), least, np.fmin(least, memory.lowest))
    width = top - bottom
    high, low = top + width, bottom - width
    high = np.where(top > 0, np.minimum(high, _FARTHER * top), high)
    low = np.where(bottom < 0, np.maximum(low, _FARTHER * bottom), low)
    return high, low


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Requests in a row that did not vary, shape ``(n,)`` each."""

    zeros: NDArray[np.int64]
    stuck: NDArray[np.int64]
    value: NDArray[np.float64]
    top: NDArray[np.int64]


def _counted(memory: ConditionMemory, extremes: Extremes, sampled: NDArray[np.bool_]) -> _Runs:
    """Return the runs with the window counted in."""
    finite = extremes.nonfinite == 0
    only_zeros = finite & (extremes.zeros == extremes.rows)
    constant = finite & (extremes.minimum == extremes.maximum) & (extremes.maximum != 0)
    goes_on = constant & (extremes.maximum == memory.value)
    high = finite & (extremes.minimum >= extremes.baseline_maximum)

    def grown(run: NDArray[np.int64], now: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.where(sampled, np.where(now, run + extremes.requests, 0), run)

    value = np.where(constant, extremes.maximum, np.nan)
    return _Runs(
        zeros=grown(memory.zeros, only_zeros),
        stuck=grown(np.where(goes_on | ~sampled, memory.stuck, 0), constant),
        value=np.where(sampled, value, memory.value),
        top=grown(memory.top, high),
    )


def _reason(condition: Condition, index: int, extremes: Extremes, after: ConditionMemory) -> str:
    """Return why a condition began, with its numbers."""
    if condition is Condition.NONFINITE:
        return f"{extremes.nonfinite[index]} of {extremes.rows[index]} values are NaN or infinite"
    if condition is Condition.SILENT:
        share = 100 * extremes.baseline_nonzero_ratio[index]
        return (
            f"only zeros in {after.zeros[index]} requests; in the baseline {share:.3g} % of values "
            "are not zero"
        )
    low, high = extremes.baseline_minimum[index], extremes.baseline_maximum[index]
    if condition is Condition.NEVER_SEEN:
        found = (
            extremes.maximum[index] if extremes.maximum[index] > high else extremes.minimum[index]
        )
        return f"a value of {found:.4g}; those of the baseline are from {low:.4g} to {high:.4g}"
    if after.stuck[index] >= after.top[index]:
        return f"the same value, {after.value[index]:.4g}, in {after.stuck[index]} requests"
    return f"no value below the baseline's greatest, {high:.4g}, in {after.top[index]} requests"
