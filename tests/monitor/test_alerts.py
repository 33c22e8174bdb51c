"""Which alerts what holds of a feature raises: those that are shipped, and no other."""

from dataclasses import replace

import pytest

from sidecar.detect import Condition, State
from sidecar.features import FeatureKind, LayerKey, View
from sidecar.metrics.alerts import ALERTS
from sidecar.monitor import Flag, alerts_of
from sidecar.monitor.describe import unwatched

pytestmark = pytest.mark.unit

CALM = replace(
    unwatched(LayerKey("m", "r", "conv", FeatureKind.CHANNEL, View.MAX), 1),
    flag=Flag(),
    state=State.NORMAL,
    requests=64,
)


def test_every_state_leads_to_an_alert_that_is_shipped() -> None:
    """A runbook that is named can be read."""
    everything = replace(
        CALM, state=State.FIRING, drifting=True, conditions=tuple(map(str, Condition))
    )
    found = [
        *alerts_of(everything, shifted=True),
        *alerts_of(replace(CALM, state=State.UNKNOWN, requests=0), shifted=False),
    ]

    assert 1 + len(Condition) + 2 + 1 == len(found) == len(set(found))
    assert set(found) <= {alert.name for alert in ALERTS}


def test_nobody_is_told_of_a_calm_or_unflagged_feature() -> None:
    """Nor does a layer that moves concern a feature that nobody flagged."""
    assert () == alerts_of(CALM, shifted=False)
    assert () == alerts_of(replace(CALM, flag=None, state=State.UNKNOWN, requests=0), shifted=True)
