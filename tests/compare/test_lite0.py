"""EfficientNet-Lite0 against itself in eight bits, and against itself with one block drawn anew."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.lite0 import build
from demo.photos import load_everyday
from sidecar.features import FeatureKey
from sidecar.recipes import Comparison, Dataset, Target
from sidecar.visualise import (
    ImageModel,
    InputForm,
    Materials,
    Picture,
    VisionModel,
    load_onnx,
    method_for,
)

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("onnxscript")
quantization = pytest.importorskip("onnxruntime.quantization")

pytestmark = pytest.mark.service

SIDE = 224
FORM = InputForm(SIDE, SIDE, 255.0)
MEAN, STD = (127.0,) * 3, (128.0,) * 3
RECIPE = Comparison(other="next", dataset="photos", steps=0, canvas=64)
COUNT = 60
LAYERS = ("_blocks.10", "_blocks.15")
SAME_LEAST = 0.98
"""Share of a layer that eight bits leave as they were, on so few photographs."""


def lite0() -> ImageModel:
    """The network with its trained weights."""
    module = build().requires_grad_(requires_grad=False)
    return ImageModel(module, "d" * 64, SIDE, MEAN, STD, torch.device("cpu"), FORM)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Crops of the everyday photographs."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    everyday = load_everyday()
    for number in range(COUNT):
        image = everyday[number % len(everyday)].image.convert("RGB")
        side = int(min(image.size) * rng.uniform(0.4, 0.9))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        crop.save(folder / f"{number:02d}.png")
    paths = sorted(folder.iterdir())
    files = tuple((one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in paths)
    return Dataset("photos", str(folder), files)


@pytest.fixture(scope="session")
def int8(photos: Dataset, tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    """It exported, and quantised statically, a scale for each channel, on a third of the crops."""
    folder = tmp_path_factory.mktemp("int8")
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        programme = torch.onnx.export(
            build(),
            (torch.rand(2, 3, SIDE, SIDE),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert programme is not None
    programme.save(folder / "lite0.onnx")
    (name,) = (one.name for one in programme.model.graph.inputs)
    calibration = [Path(photos.folder, one) for one, _ in photos.files[::3]]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]  # has no types
        def __init__(self) -> None:
            self.paths = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            path = next(self.paths, None)
            if path is None:
                return None
            image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
            return {name: FORM.apply(image.float() / 255, MEAN, STD).numpy()}

    quantization.quantize_static(
        folder / "lite0.onnx", folder / "int8.onnx", Reader(), per_channel=True
    )
    return load_onnx(
        folder / "int8.onnx", form=FORM, mean=MEAN, std=STD, device="cpu", gradients=False
    )


def compare(photos: Dataset, other: VisionModel) -> dict[str, Picture]:
    """Compare a unit of each layer, by layer."""
    targets = [Target(FeatureKey.parse(f"m@v1/{layer}/channel/7")) for layer in LAYERS]
    materials = Materials(datasets={"photos": photos}, models={"next": other})
    found = method_for(RECIPE).run(lite0(), targets, RECIPE, materials)
    return dict(zip(LAYERS, found, strict=True))


def test_eight_bits_leave_the_units_what_they_were(photos: Dataset, int8: VisionModel) -> None:
    """Under the same names, although a quantiser put nodes in the midst of every module."""
    for layer, picture in compare(photos, int8).items():
        summary = picture.findings["layer"]
        assert layer == picture.findings["other"]["layer"]
        assert summary["counts"]["same"] >= SAME_LEAST * summary["units"], (layer, summary)
        assert 0 == summary["counts"]["lost"], (layer, summary)


def test_a_block_drawn_anew_is_found_and_nothing_below_it(photos: Dataset) -> None:
    """Below it every unit is the same; in it none is."""
    other = lite0()
    with torch.random.fork_rng():
        torch.manual_seed(15)
        for module in other.module.get_submodule("_blocks.15").modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    found = {layer: one.findings["layer"] for layer, one in compare(photos, other).items()}

    for layer in LAYERS[:-1]:
        assert found[layer]["units"] == found[layer]["counts"]["same"]
    assert 0 == found["_blocks.15"]["counts"]["same"]
