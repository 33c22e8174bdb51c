"""Raw payload bytes to numpy arrays."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import PayloadMismatch, ShapeMismatch, UnsupportedDtype

ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of one value of each dtype a tensor may have."""

_LITTLE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}


def check_payload(length: int, dtype: str, shape: tuple[int, ...]) -> None:
    """Check that a payload can be an array of this dtype and shape.

    Args:
        length: Bytes of the payload.
        dtype: Claimed dtype.
        shape: Claimed shape; Python integers, so no claim can overflow the product.

    Raises:
        UnsupportedDtype: The dtype is none of ``f32``, ``f16``, ``bf16``.
        ShapeMismatch: The shape is not two positive dimensions.
        PayloadMismatch: The payload is shorter or longer than the shape says.
    """
    if dtype not in ITEM_BYTES:
        raise UnsupportedDtype(f"dtype {dtype[:40]!r}: use one of {', '.join(ITEM_BYTES)}")
    if len(shape) != 2 or min(shape) < 1:  # noqa: PLR2004 - rows and width
        raise ShapeMismatch(
            f"shape {shape[:8]} of {len(shape)} dimensions: use (rows, width), both at least 1"
        )
    wanted = shape[0] * shape[1] * ITEM_BYTES[dtype]
    if length != wanted:
        raise PayloadMismatch(
            f"payload has {length} bytes, but shape {shape} of {dtype} needs {wanted}"
        )


def read_tensor(payload: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a payload as it is, without a copy.

    Args:
        payload: Little-endian values in C order.
        dtype: ``f32``, ``f16`` or ``bf16``.
        shape: ``(rows, width)``.

    Returns:
        Shape ``(rows, width)``, C-contiguous, aliasing the payload: float32, float16, or uint16
        with the bits of bfloat16. On a big-endian machine a fresh array.

    Raises:
        UnsupportedDtype: Another dtype.
        ShapeMismatch: Not two positive dimensions.
        PayloadMismatch: The length of the payload does not fit the shape.
    """
    check_payload(memoryview(payload).nbytes, dtype, shape)
    values = np.ndarray(shape, _LITTLE[dtype], payload)
    if sys.byteorder == "little":
        return values
    return values.astype(values.dtype.newbyteorder("="))
