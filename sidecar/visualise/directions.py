"""Dictionaries of vectors over a layer's units: read from files, and handed to what looks at them."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import ModelLoadFailed, ShapeMismatch
from sidecar.features import FeatureKind, LayerKey
from sidecar.visualise.method import Directions, Materials
from sidecar.visualise.units import Site

_NPY = b"\x93NUMPY"
"""How such a file begins; what numpy takes for a pickle or an archive is not even looked at."""


def read_directions(path: Path) -> Directions:
    """Return the vectors in a file: ``.npy``, or safetensors with one tensor.

    The file's shape is ``(directions, width)`` or, for a single one, ``(width,)``.

    Raises:
        ModelLoadFailed: It cannot be read, holds pickled objects, or other shapes or numbers; or a
            vector is 0 everywhere.
    """
    try:
        content = path.read_bytes()
        found = _parse(path, content)
    except Exception as error:  # the parsers have errors of their own
        raise ModelLoadFailed(f"directions {path} cannot be read: {_words(error)}") from error
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2) or 0 in found.shape:
        raise ModelLoadFailed(
            f"directions {path} have shape {found.shape} of {found.dtype}: need real numbers, "
            "(directions, units of the layer) or (units,)"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        vectors = np.atleast_2d(np.asarray(found, np.float32))
    _refuse_senseless(path, vectors)
    return Directions(vectors, hashlib.sha256(content).hexdigest())


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "its header claims more numbers than there is memory for"
    return f"{type(error).__name__}: {error}"


def _refuse_senseless(path: Path, vectors: NDArray[np.float32]) -> None:
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise ModelLoadFailed(
            f"directions {path}: row {int(np.argmin(finite))} is NaN, infinite, or beyond float32"
        )
    lengths = vectors.any(1)
    if not lengths.all():
        raise ModelLoadFailed(
            f"directions {path}: row {int(np.argmin(lengths))} is 0 everywhere, which points nowhere: "
            "remove it"
        )


def _parse(path: Path, content: bytes) -> NDArray[Any]:
    if path.suffix != ".safetensors":
        if not content.startswith(_NPY):
            raise ValueError("it does not begin as a .npy file does")
        loaded: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return loaded
    from safetensors.numpy import load  # noqa: PLC0415 - optional package

    tensors = load(content)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors: need one")
    only: NDArray[Any] = next(iter(tensors.values()))
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
