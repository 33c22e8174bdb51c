"""Half-precision values are read exactly."""

import numpy as np
import pytest
import torch

from sidecar.stats.batch import decoded

pytestmark = pytest.mark.unit

PATTERNS = np.arange(65_536, dtype=np.uint16)


def test_every_half_precision_pattern_is_widened_exactly() -> None:
    """All 65,536 f16 values come out as the same real number, NaNs as NaNs."""
    expected = PATTERNS.view(np.float16)

    actual = decoded(expected)

    finite = np.isfinite(expected)
    assert np.array_equal(np.isnan(expected), np.isnan(actual))
    assert np.array_equal(expected[np.isinf(expected)].astype(np.float64), actual[np.isinf(actual)])
    assert np.array_equal(expected[finite].astype(np.float64), actual[finite].astype(np.float64))
    assert np.array_equal(np.signbit(expected[finite]), np.signbit(actual[finite]))


def test_every_bfloat16_pattern_is_widened_exactly() -> None:
    """All 65,536 bf16 values become the float32 whose upper half they are, as torch reads them."""
    expected = torch.from_numpy(PATTERNS.view(np.int16)).view(torch.bfloat16).float().numpy()

    actual = decoded(PATTERNS)

    assert np.array_equal(PATTERNS.astype(np.uint32) * 65_536, actual.view(np.uint32))
    assert np.array_equal(expected, actual, equal_nan=True)


def test_float32_is_not_widened_twice() -> None:
    """What is wide already comes back as it is."""
    values = np.ones((1, 2), np.float32)

    assert decoded(values) is values
