import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sidecar.errors import ModelLoadFailed
from sidecar.visualise import read_directions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_of_vectors_is_read_with_its_digest(tmp_path: Path, suffix: str) -> None:
    """Either format, and the digest is of the file's bytes."""
    path, vectors = tmp_path / f"d{suffix}", np.arange(6, dtype=np.float32).reshape(2, 3)
    if suffix == ".npy":
        np.save(path, vectors)
    else:
        save_file({"directions": vectors}, path)

    found = read_directions(path)

    assert np.array_equal(vectors, found.vectors)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found.digest


def test_a_single_vector_is_one_direction(tmp_path: Path) -> None:
    """Its shape need not say so."""
    np.save(tmp_path / "d.npy", np.ones(4))

    assert (1, 4) == read_directions(tmp_path / "d.npy").vectors.shape


@pytest.mark.parametrize(
    "values",
    [np.array([{}], object), np.full((2, 2), np.nan), np.ones((1, 2, 3)), np.ones((0, 3))],
    ids=["pickle", "nan", "cube", "empty"],
)
def test_what_is_no_dictionary_is_refused_with_its_path(tmp_path: Path, values: np.ndarray) -> None:
    """Pickles are not run, and numbers must be finite."""
    np.save(tmp_path / "d.npy", values, allow_pickle=True)

    with pytest.raises(ModelLoadFailed, match=r"d\.npy"):
        read_directions(tmp_path / "d.npy")
