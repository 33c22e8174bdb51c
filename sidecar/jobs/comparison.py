"""Compares a picture that was made again with the original."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidecar.errors import ShapeMismatch
from sidecar.jobs.png import read_pixels

CLOSE_LEVELS = 1
"""Largest difference of a pixel, in steps of 1/255, that still counts as equal: the rounding of another
library or device moves values across the border between two steps."""

_COMPARED = ("code", "device", "method", "model", "weights_file", "input", "typical_digest")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two pictures of one request are apart.

    Attributes:
        verdict: ``identical``, ``equal within 1/255`` or ``different``.
        max_difference: Largest difference of a pixel's channel, in the range 0 to 1.
        mean_difference: Their mean.
        activation_difference: New activation of the whole picture less the original's; None where a
            manifest does not say it.
        changed: What differs between the two runs: dotted name, original, new.
    """

    verdict: str
    max_difference: float
    mean_difference: float
    activation_difference: float | None
    changed: tuple[tuple[str, str, str], ...]

    @property
    def equal(self) -> bool:
        """Whether the pictures are the same, but perhaps for rounding."""
        return self.verdict != "different"


def compare(
    original: bytes, again: bytes, facts: Mapping[str, Any], facts_again: Mapping[str, Any]
) -> Comparison:
    """Compare two PNGs pixel by pixel, and the manifests beside them.

    Raises:
        CorruptState: One is no PNG that can be read.
        ShapeMismatch: They have different sizes.
    """
    before, after = read_pixels(original), read_pixels(again)
    if before.shape != after.shape:
        raise ShapeMismatch(
            f"the original is {before.shape}, the new picture {after.shape}: not the same request"
        )
    apart = np.abs(before.astype(np.int16) - after.astype(np.int16))  # (height, width, channels)
    largest = int(apart.max())
    if not largest:
        verdict = "identical"
    else:
        verdict = "equal within 1/255" if largest <= CLOSE_LEVELS else "different"
    return Comparison(
        verdict,
        largest / 255,
        float(apart.mean()) / 255,
        _activation_difference(facts, facts_again),
        tuple(_changed(facts, facts_again)),
    )


def _activation_difference(
    facts: Mapping[str, Any], facts_again: Mapping[str, Any]
) -> float | None:
    values = [one.get("activation", {}).get("plain") for one in (facts, facts_again)]
    if not all(isinstance(value, int | float) for value in values):
        return None
    return float(values[1] - values[0])


def _changed(
    facts: Mapping[str, Any], facts_again: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield what differs of the things that can move a pixel; what one did not note is no change."""
    for name in _COMPARED:
        if name not in facts or name not in facts_again:
            continue
        before, after = dict(_leaves(name, facts[name])), dict(_leaves(name, facts_again[name]))
        for leaf in sorted(before.keys() & after.keys()):
            if before[leaf] != after[leaf]:
                yield leaf, str(before[leaf]), str(after[leaf])


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value
