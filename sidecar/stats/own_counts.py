"""How often requests of some traffic passed thresholds of one feature that is watched in its own way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sidecar.features import Slice

OWN_COUNTS = 4096
"""Most of them that are kept of one layer."""

_MOST = 1 << 62
"""Requests beyond which a count is no count."""


@dataclass(frozen=True, slots=True)
class OwnCount:
    """What was measured for one flag that an ``Expectation`` says nothing of.

    Attributes:
        index: The feature.
        traffic: The requests that were compared: those whose slice has all these pairs.
        level: Of the baseline quantile at which the thresholds lie, from 0 to 1.
        high: A request exceeds when any of its rows is above; infinity: none is.
        low: Or when any is below; minus infinity: none is.
        requests: How many were compared.
        exceedances: How many of them exceeded.
    """

    index: int
    traffic: Slice
    level: float
    high: float
    low: float
    requests: int = 0
    exceedances: int = 0

    def plus(self, requests: int, exceedances: int) -> "OwnCount":
        """Return the count with those of one more window."""
        return replace(
            self, requests=self.requests + requests, exceedances=self.exceedances + exceedances
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values for ``from_dict``."""
        return {
            "index": self.index,
            "traffic": [list(pair) for pair in self.traffic.pairs],
            "level": self.level,
            "high": self.high if math.isfinite(self.high) else None,
            "low": self.low if math.isfinite(self.low) else None,
            "requests": self.requests,
            "exceedances": self.exceedances,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "OwnCount":
        """Return what ``to_dict`` saw.

        Raises:
            ValueError: It cannot be that; so may KeyError, TypeError and InvalidName say.
        """
        index, requests, exceedances = (
            saved[name] for name in ("index", "requests", "exceedances")
        )
        if not all(type(one) is int for one in (index, requests, exceedances)):
            raise ValueError(f"counts of a flag are no whole numbers: {saved!r}")
        if not (index >= 0 and 0 <= exceedances <= requests <= _MOST):
            raise ValueError(f"counts of a flag are out of their range: {saved!r}")
        found = cls(
            index,
            Slice.of(dict(saved["traffic"])),
            float(saved["level"]),
            _single(saved["high"], math.inf),
            _single(saved["low"], -math.inf),
            requests,
            exceedances,
        )
        if not 0 <= found.level <= 1 or not (math.isfinite(found.high) or math.isfinite(found.low)):
            raise ValueError(f"a flag has neither a threshold nor a level: {saved!r}")
        return found


def _single(saved: object, instead: float) -> float:
    """Return a threshold, which is exactly a float32; one that is None is ``instead``."""
    if saved is None:
        return instead
    if (
        not isinstance(saved, float)
        or not math.isfinite(saved)
        or float(np.float32(saved)) != saved
    ):
        raise ValueError(f"a threshold of {saved!r} is no number that values are compared with")
    return saved
