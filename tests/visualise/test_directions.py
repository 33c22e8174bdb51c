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
    [
        np.array([{}], object),
        np.full((2, 2), np.nan),
        np.full((2, 2), 1e300),
        np.ones((1, 2, 3)),
        np.ones((0, 3)),
        np.array(1.0),
        np.ones((2, 2), complex),
        np.array(["one", "two"]),
        np.ones(2, [("x", "f4")]),
        np.array([[1.0, 2.0], [0.0, 0.0]]),
    ],
    ids=[
        "pickle", "nan", "beyond float32", "cube", "empty", "scalar", "complex", "words", "records",
        "nowhere",
    ],
)  # fmt: skip
def test_what_is_no_dictionary_is_refused_with_its_path(tmp_path: Path, values: np.ndarray) -> None:
    """Pickles are not run, and numbers must be finite."""
    np.save(tmp_path / "d.npy", values, allow_pickle=True)

    with pytest.raises(ModelLoadFailed, match=r"d\.npy"):
        read_directions(tmp_path / "d.npy")


@pytest.mark.parametrize("tensors", [{}, {"a": np.ones(2), "b": np.ones(2)}])
def test_safetensors_must_hold_one_tensor(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Which of several would be meant nobody can tell."""
    save_file(tensors, tmp_path / "d.safetensors")

    with pytest.raises(ModelLoadFailed, match=f"it holds {len(tensors)} tensors: need one"):
        read_directions(tmp_path / "d.safetensors")


@pytest.mark.parametrize("name", ["d.npy", "d.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"\xff" * 64])
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Archives, pickles and noise; whatever the parser says of them."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelLoadFailed, match="cannot be read"):
        read_directions(tmp_path / name)
