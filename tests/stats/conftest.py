from collections.abc import Callable

import numpy as np
import pytest

from sidecar.features import LayerKey, LayerSample, Request
from sidecar.stats import Bank, Binning

LAYER = LayerKey("m", "r", "layer")


@pytest.fixture
def layer() -> LayerKey:
    """Return the key of the one layer most tests need."""
    return LAYER


@pytest.fixture
def make_bank() -> Callable[..., Bank]:
    """Return a factory of banks with small limits."""

    def make(**changed: float) -> Bank:
        settings = {
            "warmup_rows": 4,
            "history_seconds": 100.0,
            "layer_limit": 4,
            "feature_limit": 64,
        }
        return Bank(Binning(), **{**settings, **changed})

    return make


@pytest.fixture
def make_sample() -> Callable[..., LayerSample]:
    """Return a factory of samples; without requests every row is its own."""

    def make(
        rows: object, requests: list[int] | None = None, layer: LayerKey = LAYER
    ) -> LayerSample:
        values = np.array(rows, np.float32)
        index = np.arange(len(values)) if requests is None else np.array(requests)
        known = tuple(Request() for _ in range(int(index.max(initial=-1)) + 1))
        return LayerSample(layer, values, index.astype(np.int32), known)

    return make
