"""Dictionaries of vectors over a layer's units: read from files, and handed to what looks at them."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import ModelLoadFailed, ShapeMismatch
from sidecar.features import FeatureKind, LayerKey
from sidecar.visualise.method import Directions, Materials
from sidecar.visualise.units import Site


def read_directions(path: Path) -> Directions:
    """Return the vectors in a file: ``.npy``, or safetensors with one tensor.

    The file's shape is ``(directions, width)`` or, for a single one, ``(width,)``.

    Raises:
        ModelLoadFailed: It cannot be read, holds pickled objects, or other shapes or numbers.
    """
    try:
        content = path.read_bytes()
        found = _parse(path, content)
    except (OSError, ValueError, ImportError) as error:
        raise ModelLoadFailed(f"directions {path} cannot be read: {error}") from error
    vectors = np.atleast_2d(np.asarray(found, np.float32))
    if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():  # noqa: PLR2004
        raise ModelLoadFailed(
            f"directions {path} have shape {found.shape}: need finite (directions, width)"
        )
    return Directions(vectors, hashlib.sha256(content).hexdigest())


def _parse(path: Path, content: bytes) -> NDArray[np.float32]:
    if path.suffix != ".safetensors":
        loaded: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        return loaded
    from safetensors.numpy import load  # noqa: PLC0415 - optional package

    tensors = load(content)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors: need one")
    only: NDArray[np.float32] = next(iter(tensors.values()))
    return only


def vectors_of(layer: LayerKey, site: Site, materials: Materials) -> torch.Tensor | None:
    """Return a layer's directions, shape ``(directions, width)``; None where its units are others.

    Raises:
        ShapeMismatch: They are over another number of units than the layer has.
    """
    if layer.kind is not FeatureKind.DIRECTION:
        return None
    vectors = materials.directions[layer.layer].vectors
    if vectors.shape[1] != site.width:
        raise ShapeMismatch(
            f"directions of {layer.layer} are over {vectors.shape[1]} units, the layer has "
            f"{site.width}"
        )
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
