"""Both implementations of the inner loops: against each other to the bit, and against naive twins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.stats import NUMPY, Binning, Kernels, compiled
from sidecar.stats.batch import EVERY, Batch, decoded
from sidecar.stats.binning import Grid, learn_grid
from sidecar.stats.tally import Tally
from tests import reference

pytestmark = pytest.mark.unit

NUMBA = compiled()
BOTH = pytest.mark.parametrize("kernels", [NUMPY, NUMBA], ids=lambda kernels: kernels.name)

VALUES = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, 3e38, 1e-40])
WIDENED = (1, 1 << 17, 1 << 33)
"""Rows for which counters of 16, 32 and 64 bits are reserved."""


def halved(rows: np.ndarray, form: str) -> np.ndarray:
    """Return rows as they would come over the wire, read-only."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = {
            "f32": rows.copy,
            "f16": lambda: rows.astype(np.float16),
            "bf16": lambda: (rows.view(np.uint32) >> 16).astype(np.uint16),
        }[form]()
    found.setflags(write=False)
    return found


def state(tally: Tally) -> dict[str, object]:
    """Return everything a tally holds, arrays as bytes: -0.0 is not 0.0 here."""
    return {
        name: (value.dtype, value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else value
        for name in tally.__slots__
        for value in [getattr(tally, name)]
    }


def absorbed(kernels: Kernels, batches: list[Batch], grid: Grid, reserved: int = 1) -> Tally:
    """Return the tally of batches."""
    tally = Tally.empty(len(grid.centre), grid.binning.bins)
    tally.reserve(reserved)
    for batch in batches:
        kernels.absorb(tally, batch, grid)
    return tally


@st.composite
def problems(draw: st.DrawFn) -> tuple[Grid, list[Batch], int]:
    """Draw bins, a few batches of any form and weight, and how wide the counters are."""
    width = draw(st.integers(1, 5))
    binning = Binning(draw(st.integers(2, 6)), draw(st.integers(8, 18)))
    first = draw(hnp.arrays(np.float32, (draw(st.integers(0, 6)), width), elements=VALUES))
    batches = []
    for at in range(draw(st.integers(1, 3))):
        shape = (draw(st.integers(1, 20)), width)
        rows = draw(hnp.arrays(np.float32, shape, elements=VALUES))
        values = halved(rows, draw(st.sampled_from(["f32", "f16", "bf16"])))
        weights = hnp.arrays(np.int64, len(rows), elements=st.integers(1, 1 << 20))
        copies = draw(st.just(EVERY) | weights)
        batches.append(Batch(values, np.arange(len(rows)), copies, float(at)))
    return learn_grid(first, binning), batches, draw(st.sampled_from(WIDENED))


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_compiled_and_plain_loops_leave_the_same_state(
    problem: tuple[Grid, list[Batch], int],
) -> None:
    """Whatever the values, forms, weights and counters: to the bit, so that either may go on."""
    grid, batches, reserved = problem

    expected, actual = (absorbed(one, batches, grid, reserved) for one in (NUMPY, NUMBA))

    assert state(expected) == state(actual)


@pytest.mark.parametrize("form", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("weighed", [False, True])
def test_loops_agree_over_many_tiles(form: str, weighed: bool) -> None:
    """Tiles and blocks meet without gap or overlap, with and without something not finite."""
    rng = np.random.default_rng(3)
    rows = rng.standard_t(1.5, (1100, 1300)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = 0
    rows[77, 300], rows[500, 699], rows[1099, 0] = np.nan, np.inf, -np.inf
    copies = rng.integers(1, 1 << 20, len(rows)) if weighed else EVERY
    grid = learn_grid(rows[:256], Binning())
    batch = Batch(halved(rows, form), np.arange(len(rows)), copies, 1.0)

    expected, actual = (absorbed(one, [batch], grid) for one in (NUMPY, NUMBA))

    assert state(expected) == state(actual)
    alone = Tally.empty(rows.shape[1], grid.binning.bins)
    NUMBA.moments(alone, batch.values, copies, grid)
    for name in ("sums", "squares_high", "squares_low"):
        assert np.array_equal(getattr(expected, name), getattr(alone, name))
    assert (batch.rows, 3) == (actual.rows, np.count_nonzero(actual.odd))


@BOTH
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_loops_count_as_the_definition_says(
    kernels: Kernels, problem: tuple[Grid, list[Batch], int]
) -> None:
    """Bins, zeros, extremes and moments are those of the naive twin, value by value."""
    grid, batches, _ = problem
    binning = grid.binning

    found = absorbed(kernels, batches, grid)

    rows = np.concatenate([decoded(batch.values) for batch in batches])
    copies = np.concatenate([batch.counted for batch in batches])
    for j in range(rows.shape[1]):
        finite = np.isfinite(rows[:, j])
        counts, units, squares = np.zeros(binning.bins, np.int64), 0, 0
        for x, times in zip(rows[finite, j].tolist(), copies[finite].tolist(), strict=True):
            place = float(grid.centre[j]), int(grid.exponent[j])
            counts[reference.bin_of(x, *place, binning.mantissa_bits, binning.octaves)] += times
            once = reference.unit_moments([x], *place)
            units, squares = units + times * once[0], squares + times * once[1]
        assert counts.tolist() == found.counts[j].tolist()
        assert units == found.sums[j]
        assert squares == (int(found.squares_high[j]) << 64) + int(found.squares_low[j])
        assert copies[rows[:, j] == 0].sum() == found.zeros[j]
        assert copies[np.isnan(rows[:, j])].sum() == found.nans[j]
        assert copies[np.isinf(rows[:, j])].sum() == found.infinities[j]
        least, most = rows[finite, j].min(initial=np.inf), rows[finite, j].max(initial=-np.inf)
        assert (least, most) == (found.minimum[j], found.maximum[j])


@BOTH
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_moments_alone_are_those_beside_bins(
    kernels: Kernels, problem: tuple[Grid, list[Batch], int]
) -> None:
    """Leaving out bins and zeros changes nothing else."""
    grid, batches, _ = problem
    alone = Tally.empty(len(grid.centre), grid.binning.bins)

    for batch in batches:
        kernels.moments(alone, batch.values, batch.copies, grid)
        alone.saw(batch)

    whole = absorbed(kernels, batches, grid)
    whole.counts, whole.zeros = alone.counts, alone.zeros
    assert state(whole) == state(alone)
    assert not alone.counts.any()


@BOTH
@pytest.mark.parametrize("form", ["f16", "bf16"])
def test_every_half_is_read_exactly(kernels: Kernels, form: str) -> None:
    """All 65,536 bit patterns, denormals included: the extremes of one-row batches are the values."""
    bits = np.arange(1 << 16, dtype=np.uint16)[None, :]
    values = bits.view(np.float16) if form == "f16" else bits
    exact = decoded(values)[0]
    grid = Grid(Binning(2, 8), np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.int32))

    found = absorbed(kernels, [Batch(values, np.zeros(1, np.int64), EVERY, 1.0)], grid)

    finite = np.isfinite(exact)
    assert (exact[finite] + np.float32(0)).tobytes() == found.minimum[finite].tobytes()
    assert np.isnan(exact).tolist() == found.nans.tolist()
    assert np.isinf(exact).tolist() == found.infinities.tolist()


@BOTH
@settings(max_examples=60, deadline=None)
@given(data=st.data(), form=st.sampled_from(["f32", "f16", "bf16"]))
def test_requests_pass_thresholds_as_the_definition_says(
    kernels: Kernels, data: st.DataObject, form: str
) -> None:
    """Each request counts once for each threshold it passes, whatever the rows hold."""
    rows = data.draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(4)), elements=VALUES)
    )
    later = data.draw(st.sets(st.integers(1, 11))) & set(range(len(rows)))
    starts = np.array([0, *sorted(later)], np.int64)
    indices = np.array(data.draw(st.sampled_from([[0, 1, 2, 3], [2, 0], [3]])), np.int64)
    shape = (len(indices), data.draw(st.integers(1, 3)))
    thresholds = data.draw(hnp.arrays(np.float32, shape, elements=VALUES))
    values = halved(rows, form)
    passed, maximum = np.zeros(shape, np.int64), np.full(len(indices), np.nan, np.float32)

    kernels.exceed(values, starts, indices, thresholds, passed, maximum)

    owners = np.searchsorted(starts, np.arange(len(rows)), side="right").tolist()
    for at, feature in enumerate(indices):
        column = decoded(values)[:, feature]
        for k in range(shape[1]):
            expected = reference.request_exceedances(column.tolist(), owners, thresholds[at, k])
            assert expected == passed[at, k]
        finite = column[np.isfinite(column)]
        assert np.array_equal(
            [finite.max() if len(finite) else np.nan], maximum[[at]], equal_nan=True
        )


@BOTH
@settings(max_examples=80, deadline=None)
@given(data=st.data(), form=st.sampled_from(["f32", "f16", "bf16"]))
def test_every_feature_is_screened_as_the_definition_says(
    kernels: Kernels, data: st.DataObject, form: str
) -> None:
    """Each request counts once for each feature that passes its threshold; counts are added up."""
    rows = data.draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=VALUES)
    )
    later = data.draw(st.sets(st.integers(1, 39))) & set(range(len(rows)))
    starts = np.array([0, *sorted(later)], np.int64)
    thresholds = data.draw(hnp.arrays(np.float32, 3, elements=VALUES))
    thresholds.setflags(write=False)
    values, found = halved(rows, form), np.array([5, 0, 1], np.int64)

    kernels.screen(values, starts, thresholds, found)

    owners = np.searchsorted(starts, np.arange(len(rows)), side="right").tolist()
    assert [
        before + reference.request_exceedances(column.tolist(), owners, threshold)
        for before, column, threshold in zip(
            (5, 0, 1), decoded(values).T, thresholds.tolist(), strict=True
        )
    ] == found.tolist()


@BOTH
@pytest.mark.parametrize("form", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("longest", [1, 2, 30, 200])
def test_screened_tiles_and_blocks_meet(kernels: Kernels, form: str, longest: int) -> None:
    """Wider than a tile and taller than a block, with requests that lie across them."""
    rng = np.random.default_rng(longest)
    rows = rng.normal(size=(300, 5000)).astype(np.float32)
    lengths = rng.integers(1, longest + 1, len(rows))
    starts = np.concatenate(([0], np.cumsum(lengths)))
    starts = starts[starts < len(rows)]
    values, thresholds = halved(rows, form), rng.normal(1, 1, 5000).astype(np.float32)
    found = np.zeros(5000, np.int64)

    kernels.screen(values, starts, thresholds, found)

    most = np.maximum.reduceat(decoded(values), starts, axis=0)
    assert (most > thresholds).sum(axis=0).tolist() == found.tolist()
