"""Every feature of one dense layer against its own threshold, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidecar.detect import (
    Expected,
    LayerScreen,
    LayerTransition,
    ScreenPolicy,
    State,
    layer_step,
    screen,
)
from sidecar.stats import Expectation, WindowCounts

LEAST_WINDOWS = 20
"""Windows from which a dispersion can be told: its standard error is then about a third."""


@dataclass(slots=True)
class Screening:
    """The screen of a layer.

    Attributes:
        layer: How the layer stands.
        judged: Features that the newest window could judge.
        significant: Those of them that exceeded too often.
        reason: Words of the layer's last transition.
    """

    layer: LayerScreen = field(default_factory=LayerScreen)
    judged: int = 0
    significant: int = 0
    reason: str = ""
    _expected: Expected | None = None

    @property
    def shifted(self) -> bool:
        """Whether the layer moves as a whole, or may be about to."""
        return self.layer.state in (State.PENDING, State.FIRING)

    def use_baseline(self, expected: Expectation | None) -> None:
        """Compare with what was measured of a frozen baseline; None: with nothing."""
        self._expected = None
        if expected is not None and expected.windows >= LEAST_WINDOWS:
            typical = expected.requests / expected.windows
            rate = np.where(np.isfinite(expected.thresholds), expected.rate, np.nan)
            self._expected = Expected(rate, expected.dispersion, typical)

    def observe(
        self, counts: WindowCounts, policy: ScreenPolicy, now: float
    ) -> LayerTransition | None:
        """Take in one closed window and return what became of the layer."""
        self.judged = self.significant = 0
        if self._expected is not None and counts.screened is not None:
            found = screen(counts.screened, counts.screened_requests, self._expected, policy)
            self.judged, self.significant = found.judged, int(found.significant.sum())
        self.layer, change = layer_step(self.layer, self.significant, self.judged, policy, now)
        if change is not None:
            self.reason = change.reason
        return change

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values for ``restore``."""
        return {"layer": self.layer.to_dict(), "reason": self.reason}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the state back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError say.
        """
        self.layer, self.reason = LayerScreen.from_dict(saved["layer"]), str(saved["reason"])
