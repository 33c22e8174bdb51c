"""Crafted model files: each is refused by name and reason, and nothing in it runs."""

from pathlib import Path

import pytest
import torch

from sidecar.errors import ModelLoadFailed
from sidecar.visualise import InputForm, load_onnx
from sidecar.visualise.weight_files import scan_weights
from tests.hostile_files import GRAPHS, WEIGHTS

pytestmark = pytest.mark.service


@pytest.mark.parametrize("kind", WEIGHTS)
def test_crafted_weights_are_refused_before_a_loader_sees_them(tmp_path: Path, kind: str) -> None:
    """The scan alone refuses them, so no loader has to be trusted."""
    name, write, words = WEIGHTS[kind]
    write(tmp_path / name, tmp_path / "it-ran")

    with pytest.raises(ModelLoadFailed, match=words) as caught:
        scan_weights(tmp_path / name)

    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", GRAPHS)
def test_crafted_graphs_are_refused_by_either_runtime(
    tmp_path: Path, kind: str, *, gradients: bool
) -> None:
    """The same words, whether it would have been converted or run as it is."""
    write, words = GRAPHS[kind]
    write(tmp_path / "m.onnx", tmp_path / "it-ran")

    with pytest.raises(ModelLoadFailed, match=words) as caught:
        load_onnx(
            tmp_path / "m.onnx",
            form=InputForm(32, 32),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            device="cpu",
            gradients=gradients,
        )

    assert "m.onnx" in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_pipe_and_a_folder_are_no_weights(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    import os  # noqa: PLC0415 - of this test alone

    os.mkfifo(tmp_path / "pipe.pt")

    for path in (tmp_path / "pipe.pt", tmp_path):
        with pytest.raises(ModelLoadFailed, match="no ordinary file"):
            scan_weights(path)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_honest_weights_pass_the_scan(tmp_path: Path, dtype: torch.dtype, *, legacy: bool) -> None:
    """Whatever torch.save writes of tensors and parameters."""
    state = {"w": torch.nn.Parameter(torch.ones(3)), "b": torch.ones(2).to(dtype)}

    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)

    scan_weights(tmp_path / "w.pt")
