"""What live traffic says about the features of a job."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import NotFound
from sidecar.features import FeatureKey
from sidecar.jobs import JobRequest, LiveContext
from sidecar.monitor.monitor import Monitor
from sidecar.monitor.views import FeatureDistribution, Window

PREFERENCE = (Window.BASELINE, Window.HISTORY, Window.CURRENT)
"""Which distribution a picture is held against: the accepted one, or else the fullest there is."""


def live_contexts(monitor: Monitor, request: JobRequest) -> Mapping[str, LiveContext]:
    """Return what live traffic says about each target of a job.

    Returns:
        From the text form of a target's feature key; a feature that was never seen is left out.
    """
    # The ranges of all units of a layer are seconds of work, and only this prior wants them.
    layers = (
        {t.feature.layer for t in request.targets} if "typical" in request.recipe.inputs else set()
    )
    ranges = {layer: monitor.typical_range(layer) for layer in layers}
    found = {}
    for target in request.targets:
        try:
            live = _fullest(monitor, target.feature)
        except NotFound:  # a direction, which nobody need watch to have it drawn
            continue
        if live.count:
            found[str(target.feature)] = _context(live, ranges.get(target.feature.layer))
    return found


def _fullest(monitor: Monitor, key: FeatureKey) -> FeatureDistribution:
    found = [monitor.distribution(key, window) for window in PREFERENCE]
    return next((live for live in found if live.count), found[0])


def _context(
    live: FeatureDistribution, typical: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> LiveContext:
    low, high = typical if typical is not None else (None, None)
    return LiveContext(
        levels=live.levels,
        values=live.quantiles,
        count=live.count,
        minimum=live.minimum,
        maximum=live.maximum,
        window=str(live.window),
        started=live.started,
        ended=live.ended,
        typical_low=low,
        typical_high=high,
    )
