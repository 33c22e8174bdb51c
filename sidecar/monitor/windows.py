"""Closed windows of a layer's flagged features as they are recorded."""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import Direction, measured_rate
from sidecar.features import Capture
from sidecar.monitor.views import Flag
from sidecar.monitor.watch import LayerWatch
from sidecar.stats import Distribution, SparseDistribution, WindowCounts
from sidecar.store import Screened, Subject, WindowRecord

NAME_DIGITS = 12
"""Hexadecimal digits of the names of captures and baselines: as many as are shown of a revision."""


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Further quantiles of the baseline at which requests are counted, for other policies.

    Attributes:
        levels: Shape ``(k,)``.
        thresholds: Shape ``(n, k)``, float32; infinity without a baseline.
        row_rates: Share of baseline rows above each, shape ``(n, k)``; NaN without a baseline.
        plain: Whether a feature is watched above its baseline and on all traffic, shape ``(n,)``:
            only then are levels, and rows above the threshold, those of what is watched.
    """

    levels: NDArray[np.float64]
    thresholds: NDArray[np.float32]
    row_rates: NDArray[np.float64]
    plain: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        baseline: Distribution | SparseDistribution | None,
        levels: Sequence[float],
        flags: Sequence[Flag],
    ) -> Self:
        """Return the levels of flagged features, by their frozen baseline where there is one."""
        wanted = np.array(levels, np.float64)
        plain = np.array(
            [flag.direction is Direction.ABOVE and not flag.traffic.pairs for flag in flags],
            np.bool_,
        )
        if baseline is None or not len(wanted):
            shape = (len(flags), len(wanted))
            return cls(wanted, np.full(shape, np.inf, np.float32), np.full(shape, np.nan), plain)
        found = [baseline.threshold(level) for level in levels]
        # As for the threshold of the spike test: a sample cannot show a rate of 0.
        least = 1.0 / (baseline.sampled + 1)
        rates = [np.maximum(baseline.exceedance(one), least) for one in found]
        limits = np.where(np.isfinite(found), found, np.inf).astype(np.float32)
        return cls(wanted, limits.T, np.stack(rates, axis=1), plain)


def subject_of(
    watch: LayerWatch,
    capture: Capture,
    baseline: Distribution | SparseDistribution | None,
    levels: Levels,
    *,
    quantile: float,
    baseline_factor: float,
    window_seconds: float,
) -> Subject:
    """Return what the windows of a layer are about from now on.

    Args:
        watch: Its flagged features, with their thresholds.
        capture: How it is measured.
        baseline: The frozen baseline of those features; None without one.
        levels: Further levels counted.
        quantile: Level of the thresholds.
        baseline_factor: Of a baseline's rate that is tolerated.
        window_seconds: Configured length of a window.
    """
    rates, shares = _at_levels(watch, baseline, levels, baseline_factor)
    return Subject(
        layer=watch.layer,
        capture=_name(*astuple(capture)),
        window_seconds=window_seconds,
        quantile=quantile,
        indices=watch.indices.copy(),
        thresholds=watch.thresholds.copy(),
        baseline_rate=watch.baseline_rates.copy(),
        baseline_share=watch.baseline_shares.copy(),
        factor=np.array([flag.factor or np.nan for flag in watch.flags], np.float64),
        judged=watch.tested,
        baseline="" if baseline is None else baseline_name(baseline),
        baseline_requests=0 if baseline is None else baseline.requests,
        baseline_seconds=0.0 if baseline is None else baseline.ended - baseline.started,
        levels=levels.levels,
        level_rates=rates,
        level_shares=shares,
        sides=np.array([flag.direction.code for flag in watch.flags], np.int64),
    )


def _at_levels(
    watch: LayerWatch,
    baseline: Distribution | SparseDistribution | None,
    levels: Levels,
    baseline_factor: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is granted at each level, and the share of baseline requests above it, ``(n, k)`` each.

    Requests are compared with the threshold alone while a baseline is learned. Those above another
    level follow from its rows, and are scaled by how far that is off at the threshold. As at the
    threshold, so much more is granted as the requests that were measured cannot rule out.
    """
    if baseline is None or not levels.levels.size:
        return levels.row_rates, levels.row_rates
    each = max(1.0, baseline.sampled / max(baseline.requests, 1))  # rows a request
    mine = np.maximum(baseline.exceedance(watch.thresholds), 1.0 / (baseline.sampled + 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = watch.limits.shares / (1.0 - (1.0 - mine) ** each)
    derived = 1.0 - (1.0 - levels.row_rates) ** each
    shares, measured = np.clip(derived * scale[:, None], 0.0, 1.0), watch.limits.requests[:, None]
    passed = np.maximum(shares * (measured + 1) - 0.5, 0.0)  # as ``measured_share`` has it
    rates = np.where(measured > 0, measured_rate(passed, measured, baseline_factor), shares)
    plain = levels.plain[:, None]
    return np.where(plain, rates, np.nan), np.where(plain, shares, np.nan)


def baseline_name(baseline: Distribution | SparseDistribution) -> str:
    """Return a name that another baseline of the layer does not have, and a restart does not change."""
    return _name(baseline.started, baseline.ended, baseline.requests, baseline.sampled)


def _name(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:NAME_DIGITS]


def record_of(
    subject: Subject,
    counts: WindowCounts,
    plain: NDArray[np.bool_],
    now: float,
    flagged: int,
) -> WindowRecord:
    """Return a closed window as it is recorded.

    Args:
        subject: What it is about.
        counts: What it held.
        plain: See ``Levels``.
        now: Unix seconds of its end.
        flagged: Features that are tested in all layers.
    """
    n = len(subject)
    known = np.isfinite(subject.thresholds)
    exceedances = np.where(known, counts.exceedances, 0)
    nothing = np.zeros(n, np.int64)
    seen = counts.watched
    return WindowRecord(
        subject=subject,
        at=now,
        flagged=flagged,
        requests=counts.requests,
        rows=counts.rows,
        compared=np.where(known, counts.watched_requests, 0),
        exceedances=exceedances,
        level_exceedances=np.where(known[:, None], counts.level_exceedances, 0),
        rows_beyond=nothing
        if seen is None
        else np.where(plain, _rows_beyond(seen, subject, exceedances), 0),
        maximum=counts.maximum,
        minimum=np.full(n, np.nan, np.float32) if seen is None else seen.minimum,
        zeros=nothing if seen is None else seen.zeros,
        nonfinite=nothing if seen is None else seen.nans + seen.infinities,
        screened=_screened(counts),
    )


def _screened(counts: WindowCounts) -> Screened | None:
    if counts.screened is None:
        return None
    return Screened(len(counts.screened), counts.screened_requests, int(counts.screened.sum()))


def _rows_beyond(
    seen: Distribution, subject: Subject, exceedances: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the sampled rows beyond each threshold: at least one of each request that exceeds.

    Thresholds lie on edges of the bins, so this is exact where each row stands for itself.
    """
    share = seen.exceedance(subject.thresholds) * seen.count / max(seen.rows, 1)
    rows = np.round(np.nan_to_num(share) * seen.sampled).astype(np.int64)
    return np.where(exceedances > 0, np.maximum(rows, exceedances), 0)
