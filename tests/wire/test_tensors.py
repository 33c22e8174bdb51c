import numpy as np
import pytest

from sidecar.errors import PayloadMismatch, ShapeMismatch, SidecarError, UnsupportedDtype
from sidecar.wire.tensors import read_tensor

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("dtype", "kind"), [("f32", np.float32), ("f16", np.float16), ("bf16", np.uint16)]
)
def test_every_dtype_is_read_without_a_copy(dtype: str, kind: type[np.generic]) -> None:
    """A payload is aliased as it is, so it costs no memory, and cannot be written through."""
    payload = np.arange(6).astype(kind).tobytes()

    values = read_tensor(payload, dtype, (2, 3))

    assert np.array_equal(np.arange(6).reshape(2, 3).astype(kind), values)
    assert kind is values.dtype.type
    assert np.shares_memory(values, np.frombuffer(payload, np.uint8))
    assert not values.flags.writeable
    assert values.flags.c_contiguous


def test_memoryviews_are_payloads_too() -> None:
    """A sender's memoryview decodes like bytes."""
    payload = memoryview(np.ones(4, dtype="<f4").tobytes())

    assert np.array_equal([[1, 1, 1, 1]], read_tensor(payload, "f32", (1, 4)))


@pytest.mark.parametrize(
    ("dtype", "shape", "length", "error"),
    [
        ("f64", (1, 1), 8, UnsupportedDtype),
        ("", (1, 1), 4, UnsupportedDtype),
        ("f32", (4,), 16, ShapeMismatch),
        ("f32", (1, 2, 2), 16, ShapeMismatch),
        ("f32", (), 4, ShapeMismatch),
        ("f32", (0, 4), 0, ShapeMismatch),
        ("f32", (4, 0), 0, ShapeMismatch),
        ("f32", (-1, -4), 16, ShapeMismatch),
        ("f32", (2, 2), 15, PayloadMismatch),
        ("f32", (2, 2), 17, PayloadMismatch),
        ("bf16", (2, 2), 16, PayloadMismatch),
        # 2**32 * 2**32 * 4 is 0 modulo 2**64: the product must not be taken in machine words.
        ("f32", (2**32, 2**32), 0, PayloadMismatch),
    ],
)
def test_lies_about_a_payload_are_refused(
    dtype: str, shape: tuple[int, ...], length: int, error: type[SidecarError]
) -> None:
    """Dtype, shape and length must fit each other, in numbers of any size."""
    with pytest.raises(error):
        read_tensor(bytes(length), dtype, shape)
