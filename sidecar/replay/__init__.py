"""Asks recordings: what would a policy have fired on, and how trustworthy is it on this traffic.

The room promises that a replay runs the detector's own step over what the detector saw, so that the
policy in force changes state where the daemon did; that what is missing from a recording is said; and
that a false-alarm rate comes with its interval, with the feature-days it rests on, and with what it
cannot know. Nothing here reads a clock; files are read by ``store``.
"""

from sidecar.replay.calibration import Calibration, calibrate
from sidecar.replay.calibration import as_json as calibration_as_json
from sidecar.replay.comparison import as_json, compare, days, tallies
from sidecar.replay.delay import Delay
from sidecar.replay.false_alarms import FalseAlarms
from sidecar.replay.playing import Alarm, Extent, Playback, Player, measure, play
from sidecar.replay.plot import PANELS, Panel, draw
from sidecar.replay.policies import Policy
from sidecar.replay.traffic import Behaviour
from sidecar.replay.words import counted, lasting, rounded

__all__ = [
    "PANELS",
    "Alarm",
    "Behaviour",
    "Calibration",
    "Delay",
    "Extent",
    "FalseAlarms",
    "Panel",
    "Playback",
    "Player",
    "Policy",
    "as_json",
    "calibrate",
    "calibration_as_json",
    "compare",
    "counted",
    "days",
    "draw",
    "lasting",
    "measure",
    "play",
    "rounded",
    "tallies",
]
