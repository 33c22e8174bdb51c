"""Decides what of the watched features is unusual, from what closed windows held, and says why.

Promises: pure and replayable, for equal inputs give equal outputs and no clock is read; every feature is
judged at once, and apart from the others. The spike test holds for any dependence between requests:
while the chance of the next one to exceed stays within the tolerated rate, the flagged features together
raise no more false alarms than the policy says. A feature that is not sampled, has no baseline, or cannot
be judged is ``unknown`` and never silently ``normal``; every change of state carries the numbers that
made it. ``attribute`` says which slice of the traffic a spike is of, or why that cannot be said.
"""

from sidecar.detect.attribution import Attribution, LeftOut, SliceCount, attribute
from sidecar.detect.certain import (
    Condition,
    ConditionChange,
    ConditionMemory,
    Extremes,
    conditions,
)
from sidecar.detect.chance import measured_rate, measured_share
from sidecar.detect.drift import (
    DriftChange,
    DriftMemory,
    DriftPolicy,
    Places,
    Reference,
    drift_step,
)
from sidecar.detect.eprocess import beyond_judging, tolerated_rate
from sidecar.detect.layers import LayerScreen, is_loud, layer_step
from sidecar.detect.machine import blindness, step
from sidecar.detect.policy import (
    Detector,
    Direction,
    Observation,
    SpikePolicy,
    State,
    Transition,
)
from sidecar.detect.screen import Expected, Screened, ScreenPolicy, screen
from sidecar.detect.state import SpikeState, evidence, initial, rates

__all__ = [
    "Attribution",
    "Condition",
    "ConditionChange",
    "ConditionMemory",
    "Detector",
    "Direction",
    "DriftChange",
    "DriftMemory",
    "DriftPolicy",
    "Expected",
    "Extremes",
    "LayerScreen",
    "LeftOut",
    "Observation",
    "Places",
    "Reference",
    "ScreenPolicy",
    "Screened",
    "SliceCount",
    "SpikePolicy",
    "SpikeState",
    "State",
    "Transition",
    "attribute",
    "beyond_judging",
    "blindness",
    "conditions",
    "drift_step",
    "evidence",
    "initial",
    "is_loud",
    "layer_step",
    "measured_rate",
    "measured_share",
    "rates",
    "screen",
    "step",
    "tolerated_rate",
]
