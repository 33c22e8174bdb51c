"""A layer's frozen baseline as bytes: what another replica, or this one later, can be compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sidecar.errors import CorruptState, LayerConflict
from sidecar.stats.binning import Binning, Grid
from sidecar.stats.encoding import (
    Arrays,
    corrupt_unless_read,
    pack,
    put_counters,
    take_counters,
    take_grid,
    unpack,
)
from sidecar.stats.own_counts import OWN_COUNTS, OwnCount
from sidecar.stats.screen import Expectation, put_expectation, take_expectation
from sidecar.stats.tally import Tally

_KIND = b"base"
_VERSION = 1

_WIDEST = 8
"""Bytes of the widest counters."""

_PLAIN_BYTES = 128
"""Of a feature beside its bins, more than there is."""

_SLACK = 4, 64 << 20
"""How much larger than a baseline of its own, as a factor and in bytes, one is read to say why it does
not fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """What a layer's windows are compared with.

    Attributes:
        grid: Where the bins of its features lie.
        tally: What was counted of ordinary traffic: at least one row.
        expectation: How often requests of it passed each feature's threshold; None where there were no
            thresholds.
        own: What was measured for flags that are watched in a way of their own.
    """

    grid: Grid
    tally: Tally
    expectation: Expectation | None
    own: tuple[OwnCount, ...] = ()

    def encode(self) -> bytes:
        """Return the baseline as bytes that ``decode`` turns back into an equal one.

        Complexity:
            7 us a feature, for 260 bytes each. Compressing harder would take 19 us for a tenth less.
        """
        arrays: Arrays = {"centre": self.grid.centre, "exponent": self.grid.exponent}
        expected = self.expectation
        header = {
            "version": _VERSION,
            "width": len(self.grid.centre),
            "binning": asdict(self.grid.binning),
            "span": put_counters(arrays, "", self.tally),
            "expectation": (
                None if expected is None else put_expectation(expected, arrays, "expected.")
            ),
            "own": [one.to_dict() for one in self.own],
        }
        return pack(_KIND, header, arrays)

    @classmethod
    def decode(cls, payload: bytes, width: int, binning: Binning) -> "Baseline":
        """Return what ``encode`` saw.

        Args:
            payload: From anywhere.
            width: Features it must have.
            binning: How finely they must have been counted.

        Raises:
            CorruptState: The bytes are not what ``encode`` makes.
            LayerConflict: They are of a layer of another width, or counted in other bins.
        """
        factor, beside = _SLACK
        limit = factor * width * (binning.bins * _WIDEST + _PLAIN_BYTES) + beside
        with corrupt_unless_read("baseline"):
            header, arrays = unpack(_KIND, payload, limit)
            if header["version"] != _VERSION:
                raise CorruptState(
                    f"baseline has version {header['version']!r}, and this sidecar reads {_VERSION}"
                )
            check_fits(header["width"], Binning(**header["binning"]), width, binning)
            grid = take_grid(arrays, "", binning, width)
            tally = take_counters(arrays, "", header["span"], width, binning.bins)
            if not tally.requests:
                raise ValueError("nothing was seen")
            _check_zeros(tally, grid)
            saved = header["expectation"]
            expected = (
                None if saved is None else take_expectation(arrays, "expected.", saved, width)
            )
            return cls(grid, tally, expected, _own(header.get("own", ()), width))


def _own(saved: Sequence[Mapping[str, Any]], width: int) -> tuple[OwnCount, ...]:
    """Return what was measured for flags; ValueError if it cannot be of a layer this wide."""
    found = tuple(map(OwnCount.from_dict, saved))
    if len(found) > OWN_COUNTS or any(one.index >= width for one in found):
        raise ValueError(f"counts of {len(found)} flags on {width} features")
    return found


def check_fits(found: int, found_binning: Binning, width: int, binning: Binning) -> None:
    """Refuse a baseline of ``found`` features and bins for a layer of others.

    Raises:
        LayerConflict: They differ.
    """
    if found != width:
        raise LayerConflict(
            f"the baseline is of {found!r} features and the layer has {width}: it is of another layer "
            "or model"
        )
    if found_binning != binning:
        raise LayerConflict(
            f"the baseline was counted with {found_binning} and the layer is with {binning}: use the "
            "same statistics.mantissa_bits, and as much memory for the layer"
        )


def _check_zeros(tally: Tally, grid: Grid) -> None:
    """Raise ValueError unless every exact zero is in the bin of zeros, too."""
    bins = grid.index(np.zeros((1, len(grid.centre)), np.float32))[0]
    if np.any(tally.zeros > tally.counts[np.arange(len(bins)), bins]):
        raise ValueError("more zeros than values in their bin")
