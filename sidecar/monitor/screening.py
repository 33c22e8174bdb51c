"""Every feature of one dense layer against its own threshold, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidecar.detect import Expected, LayerScreen, ScreenPolicy, State, layer_step, screen
from sidecar.errors import CorruptState
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
        judged: Features that the newest window could judge.
        significant: Those of them that exceeded too often.
    """

    layer: LayerScreen = field(default_factory=LayerScreen)
    shifted: bool = False
    judged: int = 0
    significant: int = 0
    _expected: Expected | None = None

    def use_baseline(self, expected: Expectation | None) -> None:
        """Compare with what was measured of a frozen baseline; None: with nothing."""
        self._expected = None
        if expected is not None and expected.windows:
            rate = np.where(np.isfinite(expected.thresholds), expected.rate, np.nan)
            typical = expected.requests / expected.windows
            self._expected = Expected(rate, expected.dispersion, typical, expected.windows)

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
        self.layer, _ = layer_step(self.layer, self.significant, self.judged, policy, now)
        loud = self.layer.state in (State.PENDING, State.FIRING)
        together = spiking >= TOGETHER
        # What began together ends together: features are held longer than their windows are loud.
        shifted = self.layer.state is State.FIRING or (together and (loud or self.shifted))
        changed, self.shifted = shifted != self.shifted, shifted
        return self._words(spiking) if changed else None

    def _words(self, spiking: int) -> str:
        return (
            f"{self.significant} of {self.judged} features exceed more often than the baseline "
            f"explains, {spiking} flagged ones spike"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values for ``restore``."""
        return {"layer": self.layer.to_dict(), "shifted": self.shifted}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the state back from ``to_dict``.

        Raises:
            CorruptState: It is not what ``to_dict`` returns; so may KeyError and TypeError say.
        """
        if not isinstance(saved["shifted"], bool):
            raise CorruptState(f"a layer that is shifted: {saved['shifted']!r}: need true or false")
        self.layer, self.shifted = LayerScreen.from_dict(saved["layer"]), saved["shifted"]
