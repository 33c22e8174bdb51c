"""What an audit will do, in words, for ``sidecar check config``."""

import math
from datetime import datetime
from zoneinfo import ZoneInfo

from sidecar.audits.watching import (
    audited_layers,
    comparable,
    flagged_features,
    layer_of,
    portrayable,
    unit_of,
)
from sidecar.config import AuditConfig, SidecarConfig
from sidecar.jobs import next_start


def describe(audit: AuditConfig, config: SidecarConfig, now: float) -> str:
    """Return a line: what is held against what, how often each flag has its turn, when it is due.

    Args:
        audit: Which audit.
        config: Its models, datasets and flags.
        now: Unix seconds.
    """
    layers = audited_layers(audit, config)
    flags = [one for one in flagged_features(audit, config) if layer_of(one) in layers]
    pictured = [one for one in flags if portrayable(one)]
    due = datetime.fromtimestamp(next_start(audit.schedule, audit.zone, now), ZoneInfo(audit.zone))
    against = f" against {audit.against} on {audit.dataset}" if audit.against else ""
    parts = [f"audit {audit.name}: {audit.model}{against}", f"layers {', '.join(layers)}"]
    if audit.against and (left := [one for one in layers if not comparable(unit_of(one, 0))]):
        parts.append(f"not compared, for their kind: {', '.join(left)}")
    if pictured:
        nights = math.ceil(len(pictured) / audit.features)
        turns = "every night" if nights == 1 else f"within {nights} nights"
        parts.append(f"each of {len(pictured)} flags has its turn {turns}")
    else:
        parts.append("none of its features is flagged: the first units of each layer are pictured")
    if lost := len(flags) - len(pictured):
        parts.append(f"{lost} flags are of kinds that no picture can be made of")
    return "; ".join([*parts, f"next night {due:%Y-%m-%d %H:%M} {audit.zone}"])
