"""Views of features that people ask for one at a time."""

import math

import numpy as np

from sidecar.detect import State
from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor.views import FeatureDistribution, FeatureStatus, Window
from sidecar.stats import Distribution, SparseDistribution

LEVELS = np.array([0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999])
"""Quantile levels shown to people; dense in the upper tail, where spikes live."""


def unwatched(layer: LayerKey, index: int) -> FeatureStatus:
    """Return the status of a feature that nobody flagged."""
    unknown = math.nan
    return FeatureStatus(
        key=layer.feature(index),
        flag=None,
        state=State.UNKNOWN,
        since=0.0,
        requests=0,
        exceedance_ratio=unknown,
        baseline_ratio=unknown,
        threshold=unknown,
        last=unknown,
        explanation="Not flagged: its distribution is kept, but nothing is said of it.",
    )


def describe(
    key: FeatureKey, window: Window, one: Distribution | SparseDistribution
) -> FeatureDistribution:
    """Turn a one-feature distribution into a view, cut to its occupied bins."""
    counts = one.counts[0].astype(np.int64)  # (bins,)
    edges = one.edges(0)  # (bins + 1,)
    occupied = np.flatnonzero(counts)
    first, last = (occupied[0], occupied[-1] + 1) if len(occupied) else (0, 0)
    count = int(one.count[0])
    return FeatureDistribution(
        key=key,
        window=window,
        count=count,
        mean=float(one.mean[0]) if count else math.nan,
        variance=float(one.variance[0]) if count else math.nan,
        minimum=float(one.minimum[0]),
        maximum=float(one.maximum[0]),
        zero_ratio=float(one.zeros[0]) / count if count else 0.0,
        nonfinite=one.rows - count,
        edges=edges[first : last + 1] if count else np.empty(0),
        counts=counts[first:last],
        levels=LEVELS,
        quantiles=one.quantile(LEVELS)[0],
        relative_error=one.relative_error,
        started=one.started,
        ended=one.ended,
    )
