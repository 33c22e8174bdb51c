"""Every feature of one dense layer against its own threshold, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidecar.detect import (
    Expected,
    LayerScreen,
    ScreenPolicy,
    State,
    is_loud,
    layer_step,
    screen,
)
from sidecar.errors import CorruptState
from sidecar.monitor.anomalies import Anomalies
from sidecar.stats import Expectation, WindowCounts

TOGETHER = 2
"""Flagged features that spike in one loud window: more is said by one word about their layer."""


@dataclass(slots=True)
class Screening:
    """The screen of a layer, and whether the layer moves as a whole.

    A layer is shifted when its windows are loud for long, see ``ScreenPolicy``; or at once, when a
    window is loud and flagged features of it spike together. A loud window alone may be a burst that
    all features share; that no two flagged features spike in such a burst is what the spike test is
    for.

    Attributes:
        layer: How the screen holds the layer.
        shifted: Whether it moves as a whole: one word about it then stands for its features' own.
        calm: Windows in a row since the last loud one, while it is shifted.
        judged: Features that the newest window could judge.
        significant: Those of them that exceeded too often.
        anomalies: The unflagged ones among these, for how long, and by how much.
    """

    layer: LayerScreen = field(default_factory=LayerScreen)
    shifted: bool = False
    calm: int = 0
    judged: int = 0
    significant: int = 0
    anomalies: Anomalies = field(default_factory=Anomalies)
    _expected: Expected | None = None

    def use_baseline(self, expected: Expectation | None) -> None:
        """Compare with what was measured of a frozen baseline; None: with nothing."""
        self._expected = None
        if expected is not None and expected.windows:
            rate = np.where(np.isfinite(expected.thresholds), expected.rate, np.nan)
            typical = expected.requests / expected.windows
            self._expected = Expected(rate, expected.dispersion, typical, expected.windows)
        else:
            self.anomalies.forget()

    def observe(
        self, counts: WindowCounts, spiking: int, policy: ScreenPolicy, now: float
    ) -> str | None:
        """Take in one closed window; return words if the layer began or ceased to be shifted.

        Args:
            counts: The window.
            spiking: Flagged features of the layer that fire, this window counted in.
            policy: When a window is loud, and a layer shifted.
            now: Unix seconds of the window's end.
        """
        self.judged = self.significant = 0
        if self._expected is not None and counts.screened is not None:
            found = screen(counts.screened, counts.screened_requests, self._expected, policy)
            self.judged, self.significant = found.judged, int(found.significant.sum())
            self.anomalies.observe(
                found,
                counts.screened,
                counts.screened_requests,
                self._expected,
                flagged=counts.indices,
                quiet_windows=policy.clear_windows,
                now=now,
            )
        self.layer, _ = layer_step(self.layer, self.significant, self.judged, policy, now)
        loud = is_loud(self.significant, self.judged, policy)
        together = spiking >= TOGETHER
        self.calm = 0 if loud else self.calm + 1
        # Features are held for some windows after the last loud one: what began together ends together.
        # Not for longer, or two features that go on spiking alone would hide every other's alert.
        held = self.shifted and self.calm <= 2 * policy.clear_windows
        shifted = self.layer.state is State.FIRING or (together and (loud or held))
        changed, self.shifted = shifted != self.shifted, shifted
        return self._words(spiking) if changed else None

    def _words(self, spiking: int) -> str:
        return (
            f"{self.significant} of {self.judged} features exceed more often than the baseline "
            f"explains, {spiking} flagged ones spike"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values for ``restore``."""
        return {"layer": self.layer.to_dict(), "shifted": self.shifted, "calm": self.calm}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the state back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError and TypeError say.
        """
        if not isinstance(saved["shifted"], bool):
            raise CorruptState(f"a layer that is shifted: {saved['shifted']!r}: need true or false")
        self.layer, self.shifted = LayerScreen.from_dict(saved["layer"]), saved["shifted"]
        self.calm = int(saved["calm"])
