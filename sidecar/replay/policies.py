"""A policy as a file states it, put to the features of a recording."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sidecar.config import FlagConfig, PolicyConfig
from sidecar.detect import Direction, SpikePolicy
from sidecar.features import FeatureSelector
from sidecar.replay.words import counted
from sidecar.store import Subject, WindowRecord

SPIKE = "spike"
"""What a flag's ``detectors`` call the spike test."""

_DIRECTIONS = tuple(Direction)  # by their code


@dataclass(frozen=True, slots=True)
class Policy:
    """When features fire, by the words of one file.

    Attributes:
        name: What people call it: the file, or ``default``.
        spike: The spike test's settings; its window length is that of the recording.
        flags: What the file says of single features; those it does not name are as recorded.
    """

    name: str = "default"
    spike: SpikePolicy = field(default_factory=SpikePolicy)
    flags: Mapping[FeatureSelector, FlagConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, config: PolicyConfig) -> Self:
        """Return the policy of a file."""
        flags = {FeatureSelector.parse(flag.feature): flag for flag in config.flags}
        return cls(name, SpikePolicy(**config.spike.model_dump()), flags)

    def put_to(self, subject: Subject) -> "Terms":
        """Return what it means for the features of one layer."""
        factor, judged = subject.factor.copy(), subject.judged.copy()
        for at, index in enumerate(subject.indices.tolist()):
            for selector, flag in self.flags.items():
                if selector.index == index and selector.matches(subject.layer):
                    factor[at] = flag.factor or np.nan
                    judged[at] = SPIKE in flag.detectors
        column, level = _nearest(subject, self.spike.quantile)
        rate, share = subject.baseline_rate, subject.baseline_share
        if column is not None:
            rate = subject.level_rates[:, column]
            # A feature that is watched below, or on a slice, has no further levels.
            own = np.isnan(rate) & ~np.isnan(subject.baseline_rate)
            rate = np.where(own, subject.baseline_rate, rate)
            share = np.where(own, subject.baseline_share, subject.level_shares[:, column])
        else:
            own = np.ones(len(subject), np.bool_)
        return Terms(
            spike=replace(self.spike, quantile=level, window_seconds=subject.window_seconds),
            factor=np.where(np.isnan(factor), self.spike.factor, factor),
            judged=judged,
            baseline_rate=rate,
            baseline_share=share,
            directions=tuple(map(_DIRECTIONS.__getitem__, subject.sides.tolist())),
            column=column,
            own=own,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A policy put to the ``n`` features of one layer.

    Attributes:
        spike: The settings, with the quantile level that is really used and the recorded window length.
        factor: Each feature's minimum factor over the recent level, shape ``(n,)``.
        judged: Whether it is tested, shape ``(n,)``.
        baseline_rate: Rate granted at the used level because of the baseline, shape ``(n,)``.
        baseline_share: Share of baseline requests beyond it, shape ``(n,)``.
        directions: On which side each exceeds.
        column: Which of the subject's further levels is used; None: the recorded thresholds.
        own: Features for which the recorded threshold is used all the same, shape ``(n,)``.
    """

    spike: SpikePolicy
    factor: NDArray[np.float64]
    judged: NDArray[np.bool_]
    baseline_rate: NDArray[np.float64]
    baseline_share: NDArray[np.float64]
    directions: tuple[Direction, ...]
    column: int | None
    own: NDArray[np.bool_]

    def exceedances(self, window: WindowRecord) -> NDArray[np.int64]:
        """Return the requests of a window beyond the used level, shape ``(n,)``."""
        if self.column is None:
            return window.exceedances
        return np.where(self.own, window.exceedances, window.level_exceedances[:, self.column])

    def select(self, places: NDArray[np.int64]) -> "Terms":
        """Return the terms of some features, in that order."""
        return Terms(
            spike=self.spike,
            factor=self.factor[places],
            judged=self.judged[places],
            baseline_rate=self.baseline_rate[places],
            baseline_share=self.baseline_share[places],
            directions=tuple(self.directions[place] for place in places.tolist()),
            column=self.column,
            own=self.own[places],
        )

    def note(self, subject: Subject, wanted: float) -> str:
        """Say where the policy's quantile was not recorded; empty where it was."""
        own = int((self.own & np.isfinite(subject.thresholds)).sum())
        if self.column is not None and own and wanted != subject.quantile:
            return (
                f"{subject.layer}: {counted(own, 'feature')} watched below the baseline or on a slice: "
                f"only the own threshold was recorded there, quantile {subject.quantile:g} is used"
            )
        if self.spike.quantile == wanted:
            return ""
        recorded = ", ".join(f"{level:g}" for level in sorted({subject.quantile, *subject.levels}))
        return (
            f"{subject.layer}: quantile {wanted:g} was not recorded, {self.spike.quantile:g} is the "
            f"nearest of {recorded} and is used: add {wanted:g} to recording.levels for the next time"
        )


def _nearest(subject: Subject, wanted: float) -> tuple[int | None, float]:
    """Return the recorded level whose tail is the nearest by factor: its column, and the level."""

    def distance(level: float) -> float:
        return abs(float(np.log((1.0 - level) / (1.0 - wanted))))

    column, best = None, subject.quantile
    for at, level in enumerate(subject.levels.tolist()):
        if distance(level) < distance(best) - 1e-12:
            column, best = at, level
    return column, best
