"""Decides which watched features spike, from counts of requests, and says why.

Promises: pure and replayable, for equal inputs give equal outputs and no clock is read; every feature is
judged at once; a feature fires only on at least ``min_exceedances`` requests that are improbable
under its baseline, twice in a row; one that is not sampled, or has no baseline, is ``unknown`` and
never silently ``normal``; every change of state carries the numbers that made it. The false-alarm
probability holds for requests that are independent of each other; bursts of like traffic raise it.
"""

from sidecar.detect.machine import step
from sidecar.detect.policy import Observation, SpikePolicy, State, Transition
from sidecar.detect.state import SpikeState, initial, rates

__all__ = [
    "Observation",
    "SpikePolicy",
    "SpikeState",
    "State",
    "Transition",
    "initial",
    "rates",
    "step",
]
