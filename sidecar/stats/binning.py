"""Log-linear bins read off the bits of a float32: which bin a value falls into, and its edges.

A float32 without its sign, read as an integer, grows with the value, and its leading bits are the
exponent and the top of the mantissa. Dropping the low bits therefore gives a bin number whose bins
split every octave into ``2**mantissa_bits`` equal parts: no logarithm, no branch, no search. Values
are binned by their distance from a frozen centre, because relative error around zero says nothing
about a feature whose mean is many times its spread.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidecar.errors import InvalidInput

_MANTISSA = 23
"""Mantissa bits of a float32."""

_BIAS = 127
"""Exponent bias of a float32."""

_MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits of a float32 but its sign."""

_BELOW_SCALE = 6
"""Octaves below the scale: values nearer the centre than 1/64 of it are not told apart."""

_CENTRE_OCTAVES = 29
"""Octaves between a centre and its narrowest bin: finer than float32 spacing is there, and far
enough from the 52 bits of float64 that edges stay distinct."""

_MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""

_PLACED = 1024
"""Features placed at a time: a few MB of temporaries for 256 rows, whatever the layer's width."""

_LEAST_BITS, _MOST_BITS = 2, 6
_LEAST_OCTAVES, _MOST_OCTAVES = 8, 64


@dataclass(frozen=True, slots=True)
class Binning:
    """How finely the distance from a centre is binned.

    Ordered from most negative to most positive, the bins are: one for all that is further below the
    centre than ``2**octaves`` times the near-zero width, ``octaves * 2**mantissa_bits`` of falling
    width, one of the near-zero width on either side of the centre, and the mirror image.

    Attributes:
        mantissa_bits: Each octave has ``2**mantissa_bits`` bins; 2 to 6.
        octaves: Factors of two between the near-zero width and the overflow bins; 8 to 64.

    Example:
        >>> binning = Binning()
        >>> binning.bins, round(binning.relative_error, 4), round(binning.usual_error, 4)
        (516, 0.0455, 0.016)
    """

    mantissa_bits: int = 4
    octaves: int = 16

    def __post_init__(self) -> None:
        """Refuse bins that a float32 cannot tell apart or that nobody could keep."""
        if not _LEAST_BITS <= self.mantissa_bits <= _MOST_BITS:
            raise InvalidInput(
                f"mantissa_bits {self.mantissa_bits}: use {_LEAST_BITS} to {_MOST_BITS}"
            )
        if not _LEAST_OCTAVES <= self.octaves <= _MOST_OCTAVES:
            raise InvalidInput(f"octaves {self.octaves}: use {_LEAST_OCTAVES} to {_MOST_OCTAVES}")

    @property
    def half(self) -> int:
        """Bins on one side of the centre: the near-zero one, the octaves, the overflow."""
        return (self.octaves << self.mantissa_bits) + 2

    @property
    def bins(self) -> int:
        """Bins on both sides."""
        return 2 * self.half

    @property
    def exponents(self) -> tuple[int, int]:
        """The least and the greatest exponent of a near-zero width whose bins float32 can tell apart.

        Below the first, float32 has denormals, whose bits are not log-linear.
        """
        return 1 - _BIAS, _BIAS + 1 - self.octaves

    @property
    def relative_error(self) -> float:
        """Largest error of a quantile as a ratio of its distance from the centre, whatever the values.

        Any place in a bin from ``a`` to ``b`` between ``b * (1 - error)`` and ``a * (1 + error)`` keeps
        that promise. The least error for which there is one is ``(b - a) / (b + a)``; half as much
        again leaves the middle half of the bin, over which quantiles are spread by their rank. The
        widest bins, at the foot of each octave, have ``b = a * (1 + 2**-mantissa_bits)``.
        """
        return 1.5 / (2.0 ** (self.mantissa_bits + 1) + 1.0)

    @property
    def usual_error(self) -> float:
        """The same where values are spread evenly over their bins: what is cut off at either end.

        Few bins hold so few values that this does not hold: then it is a matter of the sample, not of
        the bins, where a quantile lies.
        """
        width = 2.0**-self.mantissa_bits
        lowest, highest = (1.0 + width) * (1.0 - self.relative_error), 1.0 + self.relative_error
        return max(lowest - 1.0, 1.0 - highest / (1.0 + width))


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The frozen position of the bins of many features.

    Attributes:
        binning: How finely.
        centre: Where each feature's bins mirror, shape ``(features,)``, float32, finite.
        exponent: The near-zero bins of a feature end ``2.0**exponent`` from its centre, shape
            ``(features,)``, int32.
    """

    binning: Binning
    centre: NDArray[np.float32]
    exponent: NDArray[np.int32]

    def index(self, values: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the bin of every value.

        Args:
            values: Shape ``(rows, features)``. A NaN gets some bin; an infinity an overflow bin.

        Returns:
            Numbers from 0 to ``bins - 1``, shape ``(rows, features)``: bin ``i`` holds the values
            whose float32 distance from the centre is in ``[edge i, edge i + 1)``.
        """
        bits = self.away(values).view(np.int32)
        negative = bits >> 31  # 0 or -1
        found = bits & _MAGNITUDE
        # One less on the negative side makes its bins closed below like all others.
        found += negative
        found >>= self.shift
        found -= self.base
        np.clip(found, 0, self.binning.half - 1, out=found)
        found ^= negative  # t becomes -1 - t on the negative side
        found += self.binning.half
        return found

    def away(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the float32 distances from the centre that bins and moments are made of."""
        # Adding the negated centre turns -0.0 into +0.0, so both zeros share a bin.
        with np.errstate(over="ignore", invalid="ignore"):
            return values + self.negated

    @property
    def negated(self) -> NDArray[np.float32]:
        """What distances are values plus, shape ``(features,)``."""
        return np.float32(0) - self.centre

    @property
    def base(self) -> NDArray[np.int32]:
        """Shifted bits at which each feature's near-zero bin ends, less one, shape ``(features,)``."""
        return ((self.exponent + _BIAS) << self.binning.mantissa_bits) - 1

    @property
    def shift(self) -> int:
        """How far a distance's bits are shifted down to number its bin."""
        return _MANTISSA - self.binning.mantissa_bits

    def edge_offset(
        self, edges: NDArray[np.int64], features: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return where bin edges lie, as distances from the centre.

        Args:
            edges: Edge numbers from 0 to ``bins``; edge ``i`` is the lower one of bin ``i``.
            features: The features they belong to; broadcasts with ``edges``.

        Returns:
            Signed distances, float64; edges 0 and ``bins`` are infinitely far away.
        """
        bits = self.binning.mantissa_bits
        signed = edges - self.binning.half
        # Edge 0 is the centre itself, 1 ends the near-zero bin, then 2**bits to each octave.
        step = np.maximum(np.abs(signed) - 1, 0)
        mantissa = 1.0 + (step & ((1 << bits) - 1)) / (1 << bits)
        size = np.ldexp(mantissa, (step >> bits) + self.exponent[features])
        size = np.where(np.abs(signed) == self.binning.half, np.inf, size)
        return np.asarray(np.sign(signed) * np.where(signed == 0, 0.0, size), np.float64)

    def select(self, features: NDArray[np.int64]) -> "Grid":
        """Return the grid of some of the features."""
        return Grid(self.binning, self.centre[features], self.exponent[features])

    def part(self, columns: slice) -> "Grid":
        """Return the grid of neighbouring features, sharing memory."""
        return Grid(self.binning, self.centre[columns], self.exponent[columns])

    def equals(self, other: "Grid") -> bool:
        """Whether both put every value into the same bin."""
        return (
            self.binning == other.binning
            and np.array_equal(self.centre, other.centre)
            and np.array_equal(self.exponent, other.exponent)
        )


def learn_grid(rows: NDArray[np.float32], binning: Binning) -> Grid:
    """Place the bins of every feature from a first look at its values.

    The centre is the (lower) median, so features that are mostly one value, such as exact zero,
    have it exactly; the scale is the median distance of the *other* values from it, made comparable
    to a standard deviation. Neither minds outliers. Features that have not varied yet borrow the
    median scale of the layer, or 1 where nothing varied.

    Args:
        rows: First values, shape ``(rows, features)``; NaN and infinities are ignored, and there
            may be no rows at all.
        binning: How finely.

    Returns:
        Bins that reach from at most 1/64 of the scale to at least 512 times it, for 16 octaves.
    """
    parts = [_first_look(rows[:, at : at + _PLACED]) for at in range(0, rows.shape[1], _PLACED)]
    centre, scale = (np.concatenate(found) for found in zip(*parts, strict=True))
    varied = scale[np.isfinite(scale)]
    scale = np.where(np.isfinite(scale), scale, np.median(varied) if len(varied) else 1.0)
    exponent = np.floor(np.log2(scale)) - _BELOW_SCALE
    magnitude = np.abs(centre.astype(np.float64))
    finest = np.floor(np.log2(magnitude, where=magnitude > 0, out=np.full(len(centre), -1e3)))
    exponent = np.maximum(exponent, finest - _CENTRE_OCTAVES)
    exponent = np.clip(exponent, *binning.exponents)
    return Grid(binning, centre, exponent.astype(np.int32))


def _first_look(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return centre and scale of some features; the scale is NaN of what did not vary."""
    finite = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)  # (rows, features)
    centre = np.nan_to_num(_lower_median(finite)).astype(np.float32)
    away = np.abs(finite - centre)
    away[away == 0] = np.nan
    return centre, _MAD_TO_SIGMA * _lower_median(away)


def _lower_median(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an actual middle value of each column, ignoring NaN; NaN where there is nothing."""
    known = np.count_nonzero(~np.isnan(rows), axis=0)  # (features,)
    if not len(rows):
        return np.full(rows.shape[1], np.nan)
    ordered = np.sort(rows, axis=0)  # NaN last
    middle = np.maximum(known - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, middle[None, :], axis=0)[0], np.float64)


def round_up(values: ArrayLike) -> NDArray[np.float64]:
    """Return the least float32 that is not below each value, as float64."""
    exact = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        near = exact.astype(np.float32)
        near = np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)
    return near.astype(np.float64)


def round_down(values: ArrayLike) -> NDArray[np.float64]:
    """Return the greatest float32 that is not above each value, as float64."""
    return 0.0 - round_up(-np.asarray(values, np.float64))  # and not -0.0
