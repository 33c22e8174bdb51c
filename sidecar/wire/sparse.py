"""Rows of sparse layers to protobuf, and untrusted protobuf back to checked rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import MalformedMessage, PayloadMismatch, ShapeMismatch, UnsupportedDtype
from sidecar.features import Request, SparseSample
from sidecar.wire.messages import OutgoingSparse, RegisterLayer
from sidecar.wire.v1 import ingest_pb2 as pb

_INDEX = np.dtype("<u4")
_DTYPES: dict[int, np.dtype[Any]] = {
    pb.DTYPE_F32: np.dtype("<f4"),
    pb.DTYPE_F16: np.dtype("<f2"),
    pb.DTYPE_BF16: np.dtype("<u2"),
}


def encode_sparse(tensor: OutgoingSparse, dtype: pb.Dtype.ValueType) -> pb.SparseLayerTensor:
    """Return the message for rows of a sparse layer; nothing is checked."""
    return pb.SparseLayerTensor(
        layer_id=tensor.layer_id,
        dtype=dtype,
        row_splits=tensor.row_splits.astype(_INDEX).tobytes(),
        latents=tensor.latents.astype(_INDEX).tobytes(),
        values=bytes(tensor.values),
    )


def decode_sparse(
    tensor: pb.SparseLayerTensor,
    registered: RegisterLayer,
    index: NDArray[np.int32],
    requests: tuple[Request, ...],
) -> tuple[SparseSample, int]:
    """Read and check rows of a sparse layer.

    Args:
        tensor: What was received.
        registered: The layer it names.
        index: For each row of the batch the index of its request, shape ``(rows,)``.
        requests: The requests of the batch.

    Returns:
        The rows, whose arrays are read-only, and the bytes they came in.

    Raises:
        MalformedMessage: The layer was not registered as sparse, rows overlap, or a row's latents do
            not increase.
        UnsupportedDtype: The dtype is none of f32, f16, bf16.
        PayloadMismatch: The lengths of the arrays do not fit each other.
        ShapeMismatch: There are not as many rows as the batch has, or a latent is not below the
            layer's width.
    """
    name = registered.layer.layer
    if not registered.sparse:
        raise MalformedMessage(
            f"layer {name}: sparse rows, but it was not registered as sparse: register it so"
        )
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise UnsupportedDtype(
            f"layer {name}: dtype number {tensor.dtype} is none of f32, f16, bf16"
        )
    # Read once: every access to a bytes field copies it.
    splits, latents, values = tensor.row_splits, tensor.latents, tensor.values
    entries = len(latents) // _INDEX.itemsize
    if len(latents) % _INDEX.itemsize or len(values) != entries * dtype.itemsize:
        raise PayloadMismatch(
            f"layer {name}: {len(latents)} bytes of latents and {len(values)} of values: send 4 and "
            f"{dtype.itemsize} bytes for each entry"
        )
    if len(splits) != (len(index) + 1) * _INDEX.itemsize:
        raise ShapeMismatch(
            f"layer {name}: {len(splits)} bytes of row_splits, but the batch says whose {len(index)} "
            f"rows are: send {(len(index) + 1) * _INDEX.itemsize}"
        )
    sample = SparseSample(
        layer=registered.layer,
        width=registered.width,
        row_splits=_native(splits, _INDEX),
        latents=_native(latents, _INDEX),
        values=_native(values, dtype),
        request_index=index,
        requests=requests,
    )
    return sample, len(splits) + len(latents) + len(values)


def _native(payload: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.frombuffer(payload, dtype)
    return array.astype(dtype.newbyteorder("="), copy=False)
