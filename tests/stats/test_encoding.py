from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.errors import CorruptState
from sidecar.stats import Binning, Distribution
from sidecar.stats.batch import EVERY, Batch
from sidecar.stats.binning import learn_grid
from sidecar.stats.encoding import decode, encode, pack, unpack
from sidecar.stats.kernels import NUMPY
from sidecar.stats.tally import Tally

pytestmark = pytest.mark.unit

ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 20), st.integers(1, 4)), elements=st.floats(width=32)
)


def counted(rows: np.ndarray) -> Distribution:
    """Return the distribution of rows on bins learned from them."""
    grid = learn_grid(rows, Binning())
    tally = Tally.empty(rows.shape[1], grid.binning.bins)
    if len(rows):
        NUMPY.absorb(tally, Batch(rows, np.arange(len(rows)), EVERY, 5.0), grid)
    return tally.distribution(grid)


SAMPLE = encode(counted(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)))


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_decoding_gives_back_what_was_encoded(rows: np.ndarray) -> None:
    """Every number and dtype survives, those of empty distributions too."""
    seen = counted(rows)

    found = decode(encode(seen))

    for name in seen.__slots__:
        expected, actual = getattr(seen, name), getattr(found, name)
        assert getattr(expected, "dtype", None) == getattr(actual, "dtype", None)
        np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize("length", [0, 1, 21, 22, 23, len(SAMPLE) // 2, len(SAMPLE) - 1])
def test_truncated_bytes_are_corrupt(length: int) -> None:
    """Cutting anywhere is noticed."""
    with pytest.raises(CorruptState):
        decode(SAMPLE[:length])


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_corrupt(garbage: bytes) -> None:
    """Bytes from anywhere raise CorruptState and nothing else, behind a good head too."""
    for payload in (garbage, SAMPLE[:22] + garbage, SAMPLE + garbage + b"."):
        with pytest.raises(CorruptState):
            decode(payload)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(SAMPLE) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_is_corrupt(at: int, flip: int) -> None:
    """No single changed byte goes unnoticed, in the head or in the body."""
    changed = bytearray(SAMPLE)
    changed[at] ^= flip

    with pytest.raises(CorruptState):
        decode(bytes(changed))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(header=JSON, part=st.sampled_from(["mantissa_bits", "octaves", "span"]))
def test_other_content_behind_a_right_checksum_is_corrupt_or_sound(
    header: object, part: str
) -> None:
    """A block that another program wrote in our format is refused, or is a whole distribution."""
    good, arrays = unpack(b"dist", SAMPLE)

    for wrong in (header, {**good, part: header}):
        try:
            found = decode(pack(b"dist", wrong, arrays))  # type: ignore[arg-type]
        except CorruptState:
            continue
        assert found.count.tolist() == found.counts.sum(axis=1).tolist()
        assert (found.features, 1) == found.quantile(np.array([0.5])).shape


@pytest.mark.parametrize("name", ["centre", "exponent", "sums", "minimum", "zeros", "counts"])
@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, 2)), np.zeros((9, 600), np.uint8)])
def test_arrays_that_do_not_fit_together_are_corrupt(name: str, wrong: np.ndarray) -> None:
    """An array of another shape or dtype, or none, never becomes a distribution."""
    header, arrays = unpack(b"dist", SAMPLE)
    missing = {key: array for key, array in arrays.items() if key != name}

    for broken in (missing, {**arrays, name: wrong}):
        with pytest.raises(CorruptState):
            decode(pack(b"dist", header, broken))


def test_another_kind_of_block_is_corrupt() -> None:
    """A bank's bytes are not a distribution's."""
    header, arrays = unpack(b"dist", SAMPLE)

    with pytest.raises(CorruptState, match="bank"):
        decode(pack(b"bank", header, arrays))


HEAVY: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "t4": lambda rng, shape: rng.standard_t(4, shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 1.5, shape),
    "relu": lambda rng, shape: np.maximum(rng.normal(-1.2816, 1, shape), 0),
    # Every bin is occupied, and what is counted in it is mostly noise, which nothing compresses.
    "t1.5": lambda rng, shape: rng.standard_t(1.5, shape),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_feature_takes_few_bytes(name: str) -> None:
    """65,536 heavy-tailed values a feature are 2,100 bytes of counters and at most 400 encoded."""
    width = 256  # one block has one head, whatever the width
    rows = HEAVY[name](np.random.default_rng(0), (65_536, width)).astype(np.float32)
    seen = counted(rows)

    size = len(encode(seen)) / width

    assert size <= 400
    assert Tally.of(seen).nbytes / width <= 2100
