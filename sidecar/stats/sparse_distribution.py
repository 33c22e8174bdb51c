"""The distribution of many sparse latents at once, as an immutable value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ShapeMismatch, UnknownFeature
from sidecar.stats.encoding import corrupt_unless_read, pack, typed, unpack
from sidecar.stats.sparse_record import (
    BINS,
    INVALID,
    LIMB_BITS,
    MAXIMUM,
    ROUND,
    SLOTS,
    SQUARES,
    SUM,
    SUM_SLOT,
    Hits,
    Octaves,
    Records,
    counter_type,
)

_KIND = b"spar"
_SPAN = ("rows", "sampled", "requests", "started", "ended")
_ARRAYS = ("sums", "squares", "maximum", "invalid", "hits")


@dataclass(frozen=True, slots=True, eq=False)
class SparseDistribution:
    """What was seen of ``F`` sparse latents over one stretch of time.

    A row that does not list a latent has an exact zero there. Non-zero values are counted in
    octaves, which are the same for every latent and every replica, so any two distributions merge,
    and merging is exact and the same in every order: counts, extremes, times and both sums.

    A quantile within an octave is off by at most a third of its value, one below the octaves by at
    most half of ``2.0**exponent``; zeros and the greatest value are exact. The mean is off by at
    most ``2.0**(exponent - 13)``, because each value is rounded to a multiple of twice that before
    it is summed.

    NaN, infinities, negative values and those of ``2.0**(exponent + 25)`` or more are no
    activations a latent can have: they are counted as ``invalid`` and touch nothing else.

    Attributes:
        octaves: Where the octaves lie.
        rows: Rows of traffic: each sampled row counts as many as it stands for.
        sampled: Rows sampled.
        requests: Requests those rows belonged to; one split over several samples counts for each.
        sums: Sum of the valid values in units of ``octaves.sum_unit``, as multiples of ``2**62`` and
            the rest, shape ``(F, 2)``, int64.
        squares: Sum of their squares in units of ``octaves.square_unit``, likewise.
        maximum: Greatest valid value, shape ``(F,)``, float32; 0 where all were zero.
        invalid: Invalid values, shape ``(F,)``, unsigned.
        hits: Non-zero valid values in each octave, from below the lowest to above the highest, shape
            ``(F, 21)``, uint32, or uint64 beyond 2**32 - 1 rows.
        started: Unix seconds of the first row; 0: empty.
        ended: Unix seconds of the last row; 0: empty.
    """

    octaves: Octaves
    rows: int
    sampled: int
    requests: int
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    maximum: NDArray[np.float32]
    invalid: NDArray[np.unsignedinteger[Any]]
    hits: NDArray[np.unsignedinteger[Any]]
    started: float
    ended: float

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same latents."""
        count = self.features
        found = [getattr(self, name).shape for name in _ARRAYS]
        if found != [(count, 2), (count, 2), (count,), (count,), (count, BINS)]:
            raise ShapeMismatch(f"arrays of {count} latents have shapes {found}")

    @property
    def features(self) -> int:
        """How many latents it describes."""
        return len(self.maximum)

    @property
    def count(self) -> NDArray[np.int64]:
        """Valid values of each latent, zeros included, shape ``(F,)``."""
        return self.rows - self.invalid.astype(np.int64)

    @property
    def nonzero(self) -> NDArray[np.int64]:
        """Valid values that are not zero, shape ``(F,)``."""
        return np.asarray(self.hits.sum(axis=1, dtype=np.int64))

    @property
    def zeros(self) -> NDArray[np.int64]:
        """Exact zeros, listed or not, shape ``(F,)``."""
        return self.count - self.nonzero

    @property
    def counts(self) -> NDArray[np.unsignedinteger[Any]]:
        """Values in each bin of ``edges``, shape ``(F, 21)``: the octaves, zeros in the first."""
        found = self.hits.copy()
        found[:, 0] += self.zeros.astype(found.dtype)
        return found

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the valid values, shape ``(F,)``; NaN where there is none."""
        return _ratio(_float(self.sums) * self.octaves.sum_unit, self.count)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance of the valid values, shape ``(F,)``; NaN where there is none."""
        second = _ratio(_float(self.squares) * self.octaves.square_unit, self.count)
        return np.maximum(second - self.mean**2, 0.0)

    @property
    def minimum(self) -> NDArray[np.float64]:
        """Least valid value, shape ``(F,)``: 0 if there was a zero, else the foot of its octave."""
        lowest = self.octaves.edges()[np.argmax(self.hits > 0, axis=1)]
        least = np.where(self.zeros > 0, 0.0, lowest)
        return np.where(self.count > 0, least, np.nan)

    @property
    def relative_error(self) -> float:
        """Largest error of a quantile within the octaves, as a ratio of the value."""
        return 1.0 / 3.0

    def quantile(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return quantiles of the valid values, zeros included.

        The quantile at level ``p`` of ``n`` values is the ``ceil(p * n)``-th smallest.

        Args:
            levels: Shape ``(q,)``, each from 0 to 1.

        Returns:
            Shape ``(F, q)``; NaN where nothing was counted. An octave from ``a`` to ``b``, which is
            ``2 * a`` or the greatest value, is represented by ``2 * a * b / (a + b)``.

        Complexity:
            O(F * (bins + q * bins)); a temporary of ``(F, bins)`` int64 for each level.
        """
        low, high, rank = self._bounds(np.asarray(levels, np.float64))
        high = np.minimum(high, self.maximum[:, None].astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(low > 0, 2 * low * high / (low + high), high / 2)
        return self._sharpened(found, rank)

    def threshold(self, level: float) -> NDArray[np.float64]:
        """Return the least bin edge with at most ``1 - level`` of the valid values above it.

        Of the values counted here, the share above it is never more than ``1 - level``. It is 0
        where zeros alone make up that level: then any activation exceeds.

        Args:
            level: From 0 to 1.

        Returns:
            Shape ``(F,)``, each exactly a float32; NaN where nothing was counted.
        """
        _, high, rank = self._bounds(np.array([level]))
        edge = np.minimum(high, self.maximum[:, None].astype(np.float64))
        return self._sharpened(edge, rank)[:, 0]

    def floor(self, level: float) -> NDArray[np.float64]:
        """Return the greatest bin edge with at most ``level`` of the valid values below it.

        Args:
            level: From 0 to 1.

        Returns:
            Shape ``(F,)``, each exactly a float32, and 0, which nothing is below, where zeros alone make
            up that level; NaN where nothing was counted.
        """
        low, _, rank = self._bounds(np.array([level]))
        return self._sharpened(low, rank)[:, 0]

    def exceedance(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of valid values above one threshold for each latent.

        Exact for 0, for bin edges and for the greatest value; elsewhere values are taken to lie
        evenly over their octave.

        Args:
            thresholds: Shape ``(F,)``.

        Returns:
            Shape ``(F,)``; NaN where nothing was counted or the threshold is NaN.
        """
        limit = np.asarray(thresholds, np.float64)[:, None]
        low = np.broadcast_to(self.octaves.edges(), self.hits.shape)
        most = self.maximum[:, None].astype(np.float64)
        high = np.minimum(np.append(self.octaves.edges()[1:], np.inf), most)
        with np.errstate(invalid="ignore", divide="ignore"):
            inside = np.where(high > low, (high - limit) / (high - low), high > limit)
        above = (self.hits * np.clip(inside, 0.0, 1.0)).sum(axis=1) + self.zeros * (limit[:, 0] < 0)
        return np.where(np.isnan(limit[:, 0]), np.nan, _ratio(above, self.count))

    def edges(self, index: int) -> NDArray[np.float64]:
        """Return one latent's bin edges.

        Args:
            index: Which latent.

        Returns:
            Shape ``(bins + 1,)``, finite and increasing: bin ``i`` holds ``[edges[i], edges[i+1])``.
            The outermost lies beyond every value seen.

        Raises:
            UnknownFeature: There is no such latent.
        """
        most = self.select(np.array([index])).maximum[0]
        inner = self.octaves.edges()
        return np.append(inner, max(2.0 * inner[-1], float(np.nextafter(most, np.float32(np.inf)))))

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Return the distribution of some latents, in the order of ``indices``.

        Raises:
            UnknownFeature: An index is negative or not below the number of latents.
        """
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= self.features)]
        if len(wrong):
            raise UnknownFeature(f"latent {wrong[0]}: use 0 to {self.features - 1}")
        return self._with(**{name: getattr(self, name)[chosen] for name in _ARRAYS})

    def merge(self, other: Self) -> Self:
        """Combine two disjoint samples as if they had been one, exactly.

        Any order and any grouping of several merges gives the same bits; an empty side is the
        identity.

        Args:
            other: A distribution of the same latents on the same octaves.

        Returns:
            A new distribution; neither argument is changed.

        Raises:
            ShapeMismatch: It has other latents or octaves.
        """
        if (self.features, self.octaves) != (other.features, other.octaves):
            raise ShapeMismatch(
                f"distributions of {self.features} latents from 2**{self.octaves.exponent} and of "
                f"{other.features} from 2**{other.octaves.exponent} do not merge"
            )
        rows = self.rows + other.rows
        wide = counter_type(rows)
        return self._with(
            rows=rows,
            sampled=self.sampled + other.sampled,
            requests=self.requests + other.requests,
            sums=_normal(self.sums + other.sums),
            squares=_normal(self.squares + other.squares),
            maximum=np.maximum(self.maximum, other.maximum),
            invalid=np.add(self.invalid, other.invalid, dtype=wide),
            hits=np.add(self.hits, other.hits, dtype=wide),
            started=min((x.started for x in (self, other) if x.rows), default=0.0),
            ended=max(self.ended, other.ended),
        )

    def encode(self) -> bytes:
        """Return the distribution as one checksummed block, for ``decode``.

        Complexity:
            About 15 to 50 bytes for each latent that was hit, 1 byte for each that was not.
        """
        header = {
            "exponent": self.octaves.exponent,
            **{name: getattr(self, name) for name in _SPAN},
        }
        return pack(_KIND, header, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Return what ``encode`` saw; its arrays are read-only.

        Raises:
            CorruptState: The bytes are not what ``encode`` makes: cut short, changed, or something
                else.
        """
        with corrupt_unless_read("sparse distribution"):
            header, arrays = unpack(_KIND, payload)
            rows = int(header["rows"])
            found = cls(
                Octaves(int(header["exponent"])),
                rows,
                int(header["sampled"]),
                int(header["requests"]),
                typed(arrays["sums"], np.int64),
                typed(arrays["squares"], np.int64),
                typed(arrays["maximum"], np.float32),
                typed(arrays["invalid"], counter_type(rows).type),
                typed(arrays["hits"], counter_type(rows).type),
                float(header["started"]),
                float(header["ended"]),
            )
            if found.features and (rows < 0 or found.zeros.min() < 0):
                raise ValueError(f"some latent has more values than the {rows} rows")
            return found

    def _with(self, **changed: Any) -> Self:
        """Return a copy with other fields, whose arrays are read-only."""
        found = {name: getattr(self, name) for name in self.__slots__} | changed
        for value in found.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        return type(self)(**found)

    def _bounds(self, levels: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Return the edges of the bins that hold these levels, and the ranks: each ``(F, q)``."""
        count = self.count[:, None]
        rank = np.clip(np.ceil(levels * count).astype(np.int64) - 1, 0, np.maximum(count - 1, 0))
        running = np.cumsum(self.counts, axis=1, dtype=np.int64)  # (F, bins)
        place = np.stack([(running <= column[:, None]).sum(axis=1) for column in rank.T], axis=1)
        lower = self.octaves.edges()
        place = np.minimum(place, BINS - 1)
        return lower[place], np.append(lower[1:], np.inf)[place], rank

    def _sharpened(
        self, found: NDArray[np.float64], rank: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Replace what is known exactly: zeros come first, the greatest value last."""
        count = self.count[:, None]
        most = self.maximum[:, None].astype(np.float64)
        known = np.where(rank == count - 1, most, np.where(rank < self.zeros[:, None], 0.0, found))
        return np.where(count > 0, known, np.nan)


def gather(
    seen: Records | Hits, octaves: Octaves, latents: NDArray[np.int64]
) -> SparseDistribution:
    """Return an immutable copy of what records hold of some latents.

    Args:
        seen: Records of a layer, or the ones of a closed window.
        octaves: On which they were counted.
        latents: Which, in this order, all within the layer, shape ``(F,)``.
    """
    words, span = _words(seen, latents), seen.span
    counted = words.view(np.uint16)[:, INVALID:].astype(counter_type(span.rows))  # (F, 1 + bins)
    limbs = [np.stack((np.zeros(len(words), np.int64), words[:, at]), 1) for at in (SUM, SQUARES)]
    for place, slot, rounds in _placed(seen.carries, latents):
        if slot < SUM_SLOT:
            counted[place, slot] += counted.dtype.type(rounds * ROUND)
        else:
            limbs[slot - SUM_SLOT][place, 0] += rounds
    found = SparseDistribution(
        octaves=octaves,
        rows=span.rows,
        sampled=span.sampled,
        requests=span.requests,
        sums=limbs[0],
        squares=limbs[1],
        maximum=words.view(np.float32)[:, MAXIMUM].copy(),
        invalid=counted[:, 0].copy(),
        hits=np.ascontiguousarray(counted[:, 1:]),
        started=span.started,
        ended=span.ended,
    )
    return found._with()  # noqa: SLF001 - same file


def _words(seen: Records | Hits, latents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a copy of the records, shape ``(F, 8)``; a latent that was not hit has an empty one."""
    if isinstance(seen, Records):
        return seen.words[latents]
    found = np.zeros((len(latents), seen.words.shape[1]), np.int64)
    if len(seen.latents):
        place = np.minimum(np.searchsorted(seen.latents, latents), len(seen.latents) - 1)
        known = seen.latents[place] == latents
        found[known] = seen.words[place[known]]
    return found


def _placed(
    carries: Mapping[int, int], latents: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """Yield ``(place in latents, slot, rounds)`` of every carry of one of the latents."""
    if not carries:
        return
    order = np.argsort(latents, kind="stable")
    owner, slot = np.divmod(np.fromiter(carries, np.int64, len(carries)), SLOTS)
    first, end = (np.searchsorted(latents, owner, side, order) for side in ("left", "right"))
    for at, rounds in enumerate(carries.values()):
        for place in order[first[at] : end[at]]:
            yield int(place), int(slot[at]), rounds


def _normal(limbs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Carry over what two lower limbs, each below ``2**62``, have too much."""
    high, low = limbs.T
    return np.stack((high + (low >> LIMB_BITS), low & ((1 << LIMB_BITS) - 1)), axis=1)


def _float(limbs: NDArray[np.int64]) -> NDArray[np.float64]:
    high, low = limbs.T.astype(np.float64)
    return np.asarray(high * 2.0**LIMB_BITS + low)


def _ratio(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide, giving NaN where there is nothing to divide by."""
    return np.where(whole > 0, part, np.nan) / np.maximum(whole, 1)
