"""For tests of and against the sidecar: a real daemon, clocks that obey, traffic of known hardness.

The daemon runs in this process. Of simulated traffic every alarm is known to be true or false.
"""

from sidecar.testing.clock import FakeClock, wait_until
from sidecar.testing.daemon import RunningDaemon, running_daemon
from sidecar.testing.marginals import Marginal
from sidecar.testing.traffic import SCENARIOS, Counted, Injection, Scenario, Traffic

__all__ = [
    "SCENARIOS",
    "Counted",
    "FakeClock",
    "Injection",
    "Marginal",
    "RunningDaemon",
    "Scenario",
    "Traffic",
    "running_daemon",
    "wait_until",
]
