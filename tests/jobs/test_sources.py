"""What names another model in a content key: all that it is made from, and nothing else."""

from pathlib import Path

import pytest

from sidecar.config import InputConfig, ModelConfig
from sidecar.errors import ModelLoadFailed, UnknownModel
from sidecar.jobs.sources import ModelSources

pytestmark = pytest.mark.service


def source(**values: object) -> str:
    """Return the source of a model that is configured so."""
    model = ModelConfig(name="m", **values)  # type: ignore[arg-type]  # checked by pydantic
    return ModelSources(lambda _: model).read("m").source


def test_the_source_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    """The same bytes elsewhere are the same model; other bytes, factory or input are another."""
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    usual = source(factory="pkg:make", weights=tmp_path / "a.pt")

    others = [
        source(factory="pkg:make", weights=tmp_path / "c.pt"),
        source(factory="pkg:other", weights=tmp_path / "a.pt"),
        source(factory="pkg:make"),
        source(factory="pkg:make", weights=tmp_path / "a.pt", digest="f" * 64),
        source(factory="pkg:make", weights=tmp_path / "a.pt", input=InputConfig(size=96)),
    ]

    assert source(factory="pkg:make", weights=tmp_path / "b.pt") == usual
    assert len(others) + 1 == len({usual, *others})


def test_weights_beside_an_onnx_file_count(tmp_path: Path) -> None:
    """An exporter may put them into a second file, whose change is a change of the model."""
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"graph")
    (tmp_path / "net.onnx.data").write_bytes(b"one")
    before = source(onnx=onnx)

    (tmp_path / "net.onnx.data").write_bytes(b"other weights")

    assert before != source(onnx=onnx)
    assert source(onnx=onnx) != source(onnx=onnx, gradients=False)


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The unknown one, the one without anything to load, and the one whose file is gone."""
    weights = tmp_path / "gone.pt"
    weights.touch()
    gone = ModelConfig(name="gone", factory="pkg:make", weights=weights)
    weights.unlink()
    sources = ModelSources({"bare": ModelConfig(name="bare"), "gone": gone}.get)

    with pytest.raises(UnknownModel, match="model 'next' is not in the configuration"):
        sources.read("next")
    with pytest.raises(ModelLoadFailed, match="model 'bare' has neither factory nor onnx"):
        sources.read("bare")
    with pytest.raises(ModelLoadFailed, match=r"model gone: .*No such file"):
        sources.read("gone")
