"""For tests of and against the sidecar: a real daemon in this process, and clocks that obey."""

from sidecar.testing.clock import FakeClock, wait_until
from sidecar.testing.daemon import RunningDaemon, running_daemon

__all__ = ["FakeClock", "RunningDaemon", "running_daemon", "wait_until"]
