"""What the demo shows: the flagged features, which of them must spike, and the detection settings.

A photo service has learned its usual traffic: people, vehicles, food, buildings, textures. Then a new
client joins and most of the requests are photographs of a cat. Two flagged features rise far above
their baseline, the other four stay where they were. ``python -m demo.measure`` prints the numbers
(see ``demo/README.md``).
"""

from dataclasses import dataclass

from demo.lite0 import CENTRE, SIZE, SPREAD


@dataclass(frozen=True, slots=True)
class Flagged:
    """A feature somebody wants to be told about.

    Attributes:
        layer: Module path.
        kind: ``channel`` or ``logit``.
        index: Which unit of the layer.
        name: What people call it. Channels were named by their portraits, before any alert.
        spikes: Whether the cat photographs drive it above its baseline.
        severity: Label of the alert.
    """

    layer: str
    kind: str
    index: int
    name: str
    spikes: bool
    severity: str = "warning"

    @property
    def selector(self) -> str:
        """The text form ``sidecar.yaml`` takes."""
        return f"{MODEL}/{self.layer}/{self.kind}/{self.index}"


MODEL = "lite0"

FLAGGED = (
    Flagged("_blocks.15", "channel", 261, "animal face", spikes=True, severity="critical"),
    Flagged("_fc", "logit", 282, "tiger cat", spikes=True),
    Flagged("_blocks.14", "channel", 35, "metal tubes", spikes=False),
    Flagged("_blocks.14", "channel", 121, "brickwork", spikes=False),
    Flagged("_fc", "logit", 698, "palace", spikes=False),
    Flagged("_fc", "logit", 967, "espresso", spikes=False),
)

QUANTILE = 0.99
"""A request exceeds above this baseline quantile; the default's 0.999 needs thousands of requests."""

BASELINE_REQUESTS = 600
"""Requests of the baseline: of its second half, which is counted, about three lie above the quantile. So few
rule out no rate below 11 %, and a spike has to be far above that, before the recent level learns it: with 400
and half of the requests one of two was not found on a busy machine."""

BASELINE_SECONDS = 30.0
"""Least length of the baseline."""

QUIET_SECONDS = 12.0
"""How long everyday traffic goes on after the baseline is frozen: six windows without an alarm."""

RATE = 14.0
"""Requests a second: about 40 ms of one core each, so half of it is left for the portrait."""

CAT_SHARE = 0.7
"""Share of the new client's requests once it has joined."""

INPUT = {"size": SIZE, "mean": [CENTRE / 255] * 3, "std": [SPREAD / 255] * 3}
"""The network's input as ``sidecar.yaml`` says it, in units of the 0 to 1 range."""
