"""Which of the shipped alerts what holds of a feature raises: the names of their runbooks."""

from types import MappingProxyType

from sidecar.detect import State
from sidecar.monitor.views import FeatureStatus

CONDITION_ALERTS = MappingProxyType(
    {
        "never_seen": "SidecarFeatureNeverSeen",
        "nonfinite": "SidecarNonFinite",
        "silent": "SidecarFeatureSilent",
        "saturated": "SidecarFeatureSaturated",
    }
)
"""The alert on each condition."""


def alerts_of(status: FeatureStatus, *, shifted: bool) -> tuple[str, ...]:
    """Return the alerts to read about, what is certain first; none of a feature that nobody flagged.

    Args:
        status: How the feature stands.
        shifted: Whether its layer moves as a whole: one alert then stands for those of its features.
    """
    if status.flag is None:
        return ()
    found = [CONDITION_ALERTS[name] for name in status.conditions if name in CONDITION_ALERTS]
    if status.state is State.FIRING:
        found.append("SidecarFeatureSpike")
    if status.drifting:
        found.append("SidecarFeatureDrift")
    if status.state is State.UNKNOWN and not status.requests:
        found.append("SidecarFeatureUnsampled")
    return ("SidecarLayerShift", *found) if shifted else tuple(found)
